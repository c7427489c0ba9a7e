"""What an evaluation costs over decoding and forward passes alone, and whether its memory grows with the list.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.json

    a  `videokd.evaluate.evaluate`, scores, intervals and all, against a bare loop that decodes the same views of the
       same videos and runs the same model over them, in CPU time, interleaved: for the quickstart's drawn videos and
       student, about the least that a list can cost, and for 256 x 340 px files and MobileNetV3-S with shift at 224 px
    b  the peak memory of evaluating a list, and of one that is eight times as long

With --quick everything is small, to see that it runs; its figures mean nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from measuring import File, interleaved, setting, times_faster, write

from videokd.clips.dataset import ClipDataset
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches
from videokd.clips.manifest import Manifest, write_manifest
from videokd.clips.order import EveryClip
from videokd.clips.synthetic import write_set
from videokd.contracts import Dense, InputSpec
from videokd.evaluate import evaluate
from videokd.machine import Machine
from videokd.models import Model, TimmVideo
from videokd.recipe import load

CPU = Machine(device="cpu")


def bare(model: Model, videos: Manifest, *, batch_size: int = 32) -> None:
    """Decoding and forward passes, their answers thrown away."""
    clips = ClipDataset(videos, {"student": model.input})
    with torch.no_grad():
        for batch in batches(clips, EveryClip(len(clips), batch_size)):
            model(batch.clips["student"])


def cost(model: Model, videos: Manifest, *, rounds: int) -> dict[str, object]:
    """Ratio of the whole evaluation, of frames as filmed, to the bare loop."""
    seconds = interleaved(
        {
            "evaluation": lambda _: evaluate(model, videos, machine=CPU, orders=()),
            "bare": lambda _: bare(model, videos),
        },
        rounds=rounds,
    )
    return {"ratio": asdict(times_faster(seconds["bare"], seconds["evaluation"])), "rounds": rounds}


_PEAK = r"""
import re, sys, torch
from pathlib import Path
from videokd.clips.lists import read_manifest
from videokd.evaluate import evaluate
from videokd.machine import Machine
from videokd.recipe import load
torch.manual_seed(0)
videos = read_manifest(sys.argv[1])
model = load("quickstart/alone.py").student.build(videos.classes)
evaluate(model, videos, machine=Machine(device="cpu"))
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def peak(videos: Path) -> float:
    """MiB resident at most while a list is evaluated, by a process of its own."""
    done = subprocess.run([sys.executable, "-c", _PEAK, str(videos)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def repeated(manifest: Manifest, times: int, folder: Path) -> Path:
    """A list of the same videos so many times, under other names."""
    folder.mkdir()
    videos = []
    for number in range(times):
        for video in manifest.videos:
            link = folder / f"{number}-{len(videos)}-{video.path.name}"
            link.symlink_to(video.path)
            videos.append(replace(video, id=link.name, path=link, group=None))
    path = folder / "list.jsonl"
    write_manifest(replace(manifest, videos=tuple(videos)), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    clips, rounds = (24, 2) if options.quick else (options.clips, options.rounds)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, object] = {"setting": setting(vars(options)), "clips": clips}
    with tempfile.TemporaryDirectory() as folder:
        counts = {"train": 12, "val": 12, "test": clips}
        videos = read_manifest(write_set(Path(folder) / "set", counts=counts)).split("test")
        student = load("quickstart/alone.py").student
        file = write(File(name="texture.mp4"), Path(folder))
        some = replace(videos, videos=tuple(replace(video, path=file) for video in videos.videos[:48]))
        large = read_manifest(repeated(some, 1, Path(folder) / "large"))
        spec = InputSpec(frames=8, size=224, sampling=Dense(stride=4))
        for name, config, scored in (
            ("drawn videos, quickstart's student", student, videos),
            ("256 x 340 px, MobileNetV3-S + shift", TimmVideo(input=spec), large),
        ):
            found[name] = cost(config.build(scored.classes).eval(), scored, rounds=rounds)
            print(name, json.dumps(found[name]), flush=True)
        sizes = {times: peak(repeated(videos, times, Path(folder) / str(times))) for times in (1, 8)}
        found["peak MiB by clips"] = {times * clips: size for times, size in sizes.items()}
        print(found["peak MiB by clips"])
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
