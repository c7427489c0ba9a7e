"""Scores of a model on a list of videos, agreement with another, and what a distillation recovered of a gap."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from videokd.clips.dataset import ClipDataset, FrameMemory, view_generator
from videokd.clips.loader import batches, leave_out_bad
from videokd.clips.manifest import Manifest
from videokd.clips.order import EveryClip
from videokd.contracts import UNLABELLED, Clip
from videokd.machine import Machine
from videokd.models import Model, load_model
from videokd.models.cost import cost
from videokd.processes import of_all, rank, world_size

FrameOrder = Literal["filmed", "shuffled"]
OnBadVideo = Literal["error", "skip"]
"""Stop at a video that can't be read, or leave it out: another in its place would make it another test."""

_SOUND_PIECES = 16

MIN_GAP = 0.08
"""Below this gap between teacher and student alone (a share of clips), the share recovered means nothing."""


def evaluate(
    folder: str | Path,
    videos: Manifest,
    *,
    machine: Machine,
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: OnBadVideo = "error",
    time_limit: float = 60.0,
    memory: FrameMemory | None = None,
    trust: Collection[str] = (),
    advance: Callable[[int], None] = lambda clips: None,
) -> dict[str, Any]:
    """Scores the model in `folder` on `videos`, as they are and with each clip's frames shuffled.

    Preprocessing and class names come from the model. Plain numbers, ready for JSON: those of `scores`,
    "shuffled_top1", the class predicted for every clip by name, what the model costs, and the data debt: the videos
    that were left out here, and how many its training did without.

    Raises:
        ValueError: if there is no model, or the videos have classes that it does not know.
        VideoError: for a broken video, unless `on_bad_video` is "skip".
    """
    if videos.multi_label:
        raise ValueError(f"{videos.source} has several labels a video, and they can't be scored yet")
    model = load_model(folder, trust=trust).to(machine.find())
    if model.input is None:
        raise ValueError(f"{folder} neither looks nor listens: it can't be scored on videos")
    videos, left_out = leave_out_bad(videos, on_bad_video=on_bad_video)
    dataset = ClipDataset(
        videos.with_classes(model.classes, of=str(folder)),
        {"student": model.input},
        memory=memory,
    )

    def run(frame_order: FrameOrder) -> Predictions:
        return predict(
            model,
            dataset,
            machine=machine,
            batch_size=batch_size,
            workers=workers,
            on_bad_video=on_bad_video,
            time_limit=time_limit,
            frame_order=frame_order,
            advance=advance,
        )

    ordered, shuffled = run("filmed"), run("shuffled")
    price = cost(model)
    return {
        **scores(ordered),
        "skipped": [*left_out, *ordered.skipped],
        "skipped_in_training": _skipped_in_training(Path(folder)),
        "shuffled_top1": scores(shuffled)["top1"],
        "predicted": dict(zip(ordered.ids, (model.classes[k] for k in ordered.predicted.tolist()), strict=True)),
        "list": str(videos.source.resolve()),
        "params": price.params,
        "macs": price.macs,
    }


@dataclass(frozen=True)
class Predictions:
    """What a model said of every clip of a list that could be read."""

    ids: tuple[str, ...]  # (N,)
    label: Tensor  # int64 (N,), UNLABELLED where unknown
    logits: Tensor  # float32 (N, K)
    classes: tuple[str, ...]  # (K,)
    skipped: tuple[str, ...]  # one sentence for each clip that could not be read

    @property
    def predicted(self) -> Tensor:
        """Most likely class, int64 (N,)."""
        return self.logits.argmax(dim=1)


@torch.no_grad()
def predict(
    model: Model[Any],
    dataset: ClipDataset,
    *,
    machine: Machine | None = None,
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: OnBadVideo = "error",
    time_limit: float = 60.0,
    frame_order: FrameOrder = "filmed",
    advance: Callable[[int], None] = lambda clips: None,
) -> Predictions:
    """Runs the model over every clip, once, by its centred view; several processes share the clips, and all of them
    return what all found.

    Args:
        model: on the device where it is to run; put in eval mode while this runs.
        dataset: made with `specs={"student": model.input}`.
        machine: its precision is used; None for fp32.
        batch_size: clips at once.
        workers: processes that decode.
        on_bad_video: "skip" leaves out a video that can't be read, and names it in `Predictions.skipped`.
        time_limit: seconds that a worker may spend on a video.
        frame_order: "shuffled" hands out each clip's frames in a random order, the same for every model; of a sound,
            sixteen pieces. A clip without sound is left out for a model that listens, and named.
        advance: called with the number of clips done.

    Raises:
        ValueError: if no clip could be read, or one could not and `on_bad_video` is "error".
    """
    training = model.training
    model.eval()
    device = model.device
    labels: list[Tensor] = []
    logits: list[Tensor] = []
    ids: list[str] = []
    skipped: list[str] = []
    order = EveryClip(len(dataset), batch_size, rank=rank(), world_size=world_size())
    for batch in batches(dataset, order, workers=workers, on_bad_video=on_bad_video, time_limit=time_limit):
        skipped += batch.skipped
        advance(len(batch.id) + len(batch.skipped))
        if not batch.id:
            continue
        view = batch.clips["student"].to(device)
        if frame_order == "shuffled":
            pieces = view.frames.shape[1] if isinstance(view, Clip) else _SOUND_PIECES
            view = view.at(torch.stack([_shuffled(name, pieces) for name in batch.id]).to(device))
        with (machine or Machine()).autocast(device):
            answer = model(view)
        assert answer.logits is not None
        known = torch.ones(len(batch.id), dtype=torch.bool) if answer.known is None else answer.known.cpu()
        skipped += [f"{name}: the video has no sound" for name, heard in zip(batch.id, known.tolist()) if not heard]
        logits.append(answer.logits.float().cpu()[known])
        labels.append(batch.label[known])
        ids += [name for name, heard in zip(batch.id, known.tolist()) if heard]
    model.train(training)
    mine = (ids, torch.cat(labels), torch.cat(logits)) if ids else None
    said = of_all((mine, skipped))
    skipped = [reason for _, reasons in said for reason in reasons]
    parts = [part for part, _ in said if part is not None]
    if not parts:
        raise ValueError(f"none of the {len(dataset)} clips could be read; the first: {skipped[0]}")
    # In the list's order, however many processes shared it.
    place = {video.id: number for number, video in enumerate(dataset.videos)}
    names = [name for part, _, _ in parts for name in part]
    rows = sorted(range(len(names)), key=lambda row: place[names[row]])
    return Predictions(
        tuple(names[row] for row in rows),
        torch.cat([label for _, label, _ in parts])[rows],
        torch.cat([found for _, _, found in parts])[rows],
        model.classes,
        tuple(skipped),
    )


def scores(predictions: Predictions) -> dict[str, Any]:
    """Plain numbers, ready for JSON: top-1, top-1 by class, confusion counts, clips scored and skipped.

    Raises:
        ValueError: if no clip has a label.
    """
    known = predictions.label != UNLABELLED
    label, predicted = predictions.label[known], predictions.predicted[known]
    if not len(label):
        raise ValueError("no clip of the list has a label: nothing to score")
    num_classes = len(predictions.classes)
    confusion = torch.bincount(label * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.view(num_classes, num_classes)  # row: true class, column: predicted
    totals = confusion.sum(dim=1)
    right = confusion.diagonal()
    per_class = {name: (right[k] / totals[k]).item() for k, name in enumerate(predictions.classes) if totals[k] > 0}
    return {
        "top1": (predicted == label).float().mean().item(),
        "mean_class_accuracy": fmean(per_class.values()),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "classes": list(predictions.classes),
        "clips": len(label),
        "unlabelled": int((~known).sum()),
        "skipped": list(predictions.skipped),
    }


def agreement(one: Mapping[str, str], other: Mapping[str, str]) -> float:
    """Share of clips, by name, of which two models predict the same class.

    Raises:
        ValueError: if the two predicted different clips.
    """
    if one.keys() != other.keys():
        differing = sorted(one.keys() ^ other.keys())
        raise ValueError(f"{len(differing)} clips were scored by one model alone, such as {differing[0]}")
    return fmean(one[name] == other[name] for name in one)


@dataclass(frozen=True)
class Interval:
    """A mean over paired seeds with its 95 % interval (Student's t); no interval from a single seed."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval of independent values."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * standard_error(values)
    return Interval(mean, mean - half, mean + half)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; not a number for a single value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def gap_recovered(*, teacher: float, alone: Sequence[float], distilled: Sequence[float]) -> Interval | None:
    """G = (distilled - alone) / (teacher - alone), over seeds paired by place; shares of clips, not per cent.

    The ratio of the mean gain to the mean gap, with a jackknife interval [Tukey 1958]: a seed whose own gap happens to
    be small can't blow it up. None where the mean gap is under `MIN_GAP`, a ratio to almost nothing; no interval where
    the gap vanishes when a seed is left out.
    """
    pairs = list(zip(alone, distilled, strict=True))
    # A rounding error below the threshold is not below it.
    if teacher - fmean(alone) < MIN_GAP - 1e-9:
        return None

    def ratio(chosen: Sequence[tuple[float, float]]) -> float:
        return fmean(after - before for before, after in chosen) / fmean(teacher - before for before, _ in chosen)

    n, whole = len(pairs), ratio(pairs)
    others = [pairs[:left_out] + pairs[left_out + 1 :] for left_out in range(n)]
    if n == 1 or any(fmean(before for before, _ in left) >= teacher for left in others):
        return Interval(whole, None, None)
    pseudo_values = [n * whole - (n - 1) * ratio(left) for left in others]
    spread = interval(pseudo_values)
    assert spread.low is not None
    half = spread.mean - spread.low
    return Interval(whole, whole - half, whole + half)


def _skipped_in_training(folder: Path) -> int | None:
    """How many videos a run did without; None where that is not known."""
    summary = folder / "summary.json"
    return len(json.loads(summary.read_text(encoding="utf-8"))["skipped"]) if summary.is_file() else None


def _shuffled(clip_id: str, num_frames: int) -> Tensor:
    return torch.from_numpy(view_generator(0, clip_id, 0).permutation(num_frames).astype(np.int64))
