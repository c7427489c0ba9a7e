"""What a run will need, from a few of its batches: time, memory, disk."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from videokd.assembly import Assembly
from videokd.preflight.report import Finding, Forecast
from videokd.teachers import Teacher
from videokd.timing import bound_by, duration

TIGHT = 0.9
"""Of the memory that is there: what a forecast leaves out may take the rest."""
LONG = 24 * 3600.0
"""Seconds of a run that whoever starts it should know of."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of one step."""

    teacher: float
    student: float
    """Forward, losses and backward."""
    forward: float
    """Of the student alone."""


def forecast(
    made: Assembly,
    steps: Sequence[Timed],
    *,
    unfrozen: Timed | None = None,
    learned: int,
    loader: float,
    peak: int,
    remembered: int,
    out: Path,
) -> Forecast:
    """What the run needs.

    Args:
        made: the run.
        steps: measured ones; the first is left out if there are more.
        unfrozen: a measured step after `optim.freeze_until`, where these come before it.
        learned: bytes of the parameters that learn in the last step.
        loader: seconds in which the loader makes a batch.
        peak: bytes of memory of a step, without the optimiser's.
        remembered: bytes of a clip's view that teachers keep.
        out: folder that the run is to be written to.
    """
    data, total = made.recipe.data, made.recipe.optim.steps
    warm = steps[1:] or steps
    teacher = fmean(one.teacher for one in warm) * _taught(made)
    student, forward = fmean(one.student for one in warm), fmean(one.forward for one in warm)
    if unfrozen is not None:
        frozen_share = made.recipe.optim.freeze_until
        student = frozen_share * student + (1 - frozen_share) * unfrozen.student
    state = 2 * learned  # AdamW's two moments
    module = sum(one.nbytes for one in made.student.state_dict().values())
    model = sum(one.nbytes for one in made.student.model.state_dict().values())
    # The running mean of the weights, and the weights of the best validation.
    keeps_best = made.recipe.keep == "best" and made.val_clips is not None
    copies = model * ((made.recipe.optim.ema is not None) + keeps_best)
    validation = 0.0
    if made.val_clips is not None:
        times = -(-total // made.recipe.validate_every)
        validation = times * len(made.val_clips) / data.batch_size * _together(made, loader, forward)
    return Forecast(
        loader=_together(made, loader, teacher + student) - (teacher + student),
        teacher=teacher,
        student=student,
        steps=total,
        validation=validation,
        memory=peak + state + copies + remembered * _remembered_views(made),
        memory_there=memory_there(made.device),
        # A checkpoint is written beside the one before.
        disk=2 * (module + state + copies) + model,
        disk_free=shutil.disk_usage(
            next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
        ).free,
    )


def findings(found: Forecast, *, device: torch.device, out: Path) -> Iterator[Finding]:
    """Each forecast in words."""
    bound = bound_by(found.loader, found.teacher, found.student)
    checked = f" and {duration(found.validation)} of validation" if found.validation else ""
    said = f"{found.steps} steps{checked} take about {duration(found.seconds)}, without the optimiser's part; {bound}"
    yield Finding(level="warning" if found.seconds > LONG else "ok", what="time", said=said)
    kind = "the GPU's memory" if device.type == "cuda" else "memory"
    said = f"about {_size(found.memory)} of {kind}"
    if found.memory_there is not None:
        said += f", of {_size(found.memory_there)}"
    tight = found.memory_there is not None and found.memory > TIGHT * found.memory_there
    advice = "; make data.batch_size smaller, or take --machine.precision bf16" if tight else ""
    yield Finding(level="warning" if tight else "ok", what="memory", said=said + advice)
    said = f"checkpoints and the model take {_size(found.disk)}, and {_size(found.disk_free)} are free at {out}"
    full = found.disk > found.disk_free
    advice = ": make room, or name another folder with --out" if full else ""
    yield Finding(level="error" if full else "ok", what="disk", said=said + advice)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: on a GPU, of tensors since `torch.cuda.reset_peak_memory_stats`; else of this process since it
    began, workers apart. 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def memory_there(device: torch.device) -> int | None:
    """Bytes that this process may have: of the GPU, or of the machine or its container; None where it is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (limit := container.read_text(encoding="ascii").strip()).isdigit():
        limits.append(int(limit))
    return min(limits, default=None)


def _together(made: Assembly, loader: float, computing: float) -> float:
    """Seconds of a step: workers decode while it computes."""
    return max(loader, computing) if made.recipe.data.workers else loader + computing


def _taught(made: Assembly) -> float:
    """Share of the steps at which teachers compute: those that remember do so once for every view."""
    teachers = [one for one in made.teachers.values() if isinstance(one, Teacher)]
    if not teachers or not all(one.remembers for one in teachers):
        return 1.0
    return min(1.0, _remembered_views(made) / (made.recipe.optim.steps * made.recipe.data.batch_size))


def _remembered_views(made: Assembly) -> int:
    """Views of clips that the run has."""
    views, total = made.recipe.data.views, made.recipe.optim.steps * made.recipe.data.batch_size
    return total if views is None else min(total, views * len(made.clips))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
