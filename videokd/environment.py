"""Where a run happened, as plain data: versions, revision, processor, GPUs. No names of users or machines."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import torch

import videokd
from videokd.text import redacted

PACKAGES = ("torch", "torchvision", "timm", "av", "numpy", "einops", "safetensors", "tyro")
READERS = ("decord2", "torchcodec")
EXTRAS = {
    "transformers": "hf",
    "opencv-python-headless": "flow",
    "onnxruntime": "onnx",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
"""Packages that are not always needed, and the extra of this package that installs each."""

_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "MALLOC_CONF",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_ID",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "THP_MEM_ALLOC_ENABLE",
    "WORLD_SIZE",
)
_SECONDS_OF_A_COMMAND = 10.0


def environment() -> dict[str, Any]:
    """What environment.json says, ready for JSON; what is not known here is None.

    "git" holds the revision of the working folder and that of the folder that the package is imported from, if it is a
    checkout; "changed" says whether files that git knows differ from it. "variables" are a few named ones of torch,
    memory and Slurm, if they are set, and no others.
    """
    checkout = Path(videokd.__file__).parent.parent
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *map(_without_user, sys.argv[1:])],
        "videokd": videokd.__version__,
        # An installed package may lie inside a repository (.venv) that it is no part of.
        "git": {"folder": _revision(Path()), "package": _revision(checkout) if (checkout / ".git").exists() else None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
        "cpu": _cpu(),
        "gpu": _gpu(),
        "processes": _processes(),
        "variables": {name: _without_user(os.environ[name]) for name in _VARIABLES if name in os.environ},
    }


def _without_user(argument: str) -> str:
    """An argument without the name that a home folder gives away, and without the secrets of a URL."""
    home = os.path.expanduser("~")
    argument = argument.replace(home, "~") if len(home) > 1 else argument
    return redacted(argument)


def _packages() -> dict[str, str]:
    """Those that are installed, with their versions."""
    found = {}
    for name in (*PACKAGES, *READERS, *EXTRAS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {"torch": str(torch.__version__)}  # with the CUDA that it was built for


def _revision(folder: Path) -> dict[str, Any] | None:
    """The commit that is checked out there, or None outside a repository and without git.

    The repository may be somebody else's, and its configuration can name commands that `git status` runs: a monitor of
    files, which is switched off here, and filters of contents, with which "changed" stays unknown.
    """
    git = ("git", "-C", str(folder), "-c", "core.fsmonitor=false")
    revision = _said(*git, "rev-parse", "HEAD")
    if revision is None:
        return None
    settings = _said(*git, "config", "--list", "--includes", "--show-scope", "--name-only")
    lines = [line.lower().split("\t") for line in (settings or "").splitlines()]
    if not lines or any(scope in ("local", "worktree") and name.startswith("filter.") for scope, name in lines):
        return {"revision": revision, "changed": None}
    changes = _said(*git, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return {"revision": revision, "changed": None if changes is None else changes != ""}


def _cpu() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "torch_threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    if sys.platform == "darwin" and (model := _said("sysctl", "-n", "machdep.cpu.brand_string")):
        return model
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _gpu() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "names": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
    }


def _processes() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE") or 1)


def _said(*command: str) -> str | None:
    """What a command prints; None if it is not installed, fails, or takes too long."""
    try:
        # Looking at a repository must not lock it against its owner.
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS_OF_A_COMMAND, env=quiet, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
