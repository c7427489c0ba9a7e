#!/usr/bin/env bash
# An environment with videokd and the tools that it is measured against: benchmarks/peers.sh [FOLDER]
# torchcodec needs the system's FFmpeg libraries besides (on Debian and Ubuntu: apt-get install ffmpeg).
# Its release follows that of torch in constraints.txt: the two are changed together.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="${1:-$here/.peers}"
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --upgrade pip "setuptools<81" wheel
"$folder/bin/python" -m pip install --quiet --constraint "$here/../constraints.txt" --editable "$here/.." "torchcodec==0.17.*"
# mmaction2 asks for packages of its own age by name only; its pipelines run beside today's torch.
"$folder/bin/python" -m pip install --quiet mmengine "mmcv-lite<2.2" opencv-python-headless importlib_metadata
"$folder/bin/python" -m pip install --quiet --no-deps mmaction2
# What it needs besides is there, or is for parts of it that are not measured.
"$folder/bin/python" -m pip install --quiet --no-deps "torchdistill==1.1.5"
echo "peers installed: $folder/bin/python benchmarks/reading.py, benchmarks/loader.py, benchmarks/training.py"
