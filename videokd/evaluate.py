"""Scores of a model on a list of videos, over views in time and space, and what a distillation recovered of a gap."""

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
from videokd.clips.views import ViewGrid
from videokd.contracts import Clip, View
from videokd.fidelity import against_teacher
from videokd.machine import Machine
from videokd.metrics import average_views, calibration, fit_temperature, intervals, scores
from videokd.models import Model, load_model
from videokd.models.cost import cost
from videokd.predictions import Predictions
from videokd.processes import of_all, rank, world_size
from videokd.run_files import read_run_file

FrameOrder = Literal["filmed", "shuffled", "reversed", "frozen", "half"]
"""What is done to a clip's frames: nothing; a random order, the same for every model; the last first; the middle one
all along; every second one, each shown twice. Times stay. A sound is cut into sixteen pieces."""

FRAME_ORDERS: tuple[FrameOrder, ...] = ("filmed", "shuffled", "reversed", "frozen", "half")

OnBadVideo = Literal["error", "skip"]
"""Stop at a video that can't be read, or leave it out: another in its place would make it another test."""

Average = Literal["probabilities", "logits"]
"""What is averaged over a clip's views."""

_SOUND_PIECES = 16

MIN_GAP = 0.08
"""Below this gap between teacher and student alone (a share of clips), the share recovered means nothing."""


@dataclass(frozen=True)
class Evaluation:
    """What a model scored, and what it said of every clip."""

    numbers: Mapping[str, Any]  # ready for JSON
    predictions: Predictions
    validation: Predictions | None = None  # of the clips that a temperature was fitted on


def evaluate(
    model: str | Path | Model[Any],
    videos: Manifest,
    *,
    machine: Machine,
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: OnBadVideo = "error",
    time_limit: float = 60.0,
    grid: ViewGrid | None = None,
    average: Average = "probabilities",
    orders: Sequence[FrameOrder] = FRAME_ORDERS,
    calibrate_on: Manifest | None = None,
    teacher: Predictions | None = None,
    memory: FrameMemory | None = None,
    trust: Collection[str] = (),
    advance: Callable[[int], None] = lambda clips: None,
) -> Evaluation:
    """Scores a model on `videos`, as they are and with the frames of each clip in other orders.

    Preprocessing and class names come from the model.

    Args:
        model: the folder it was saved in, or a model.
        videos: what to score it on.
        machine: device and precision.
        batch_size: views at once.
        workers: processes that decode.
        on_bad_video: what to do with a video that can't be read.
        time_limit: seconds that a worker may spend on a video.
        grid: views of a video; None for the centred one.
        average: of what, over the views.
        orders: of the frames; "filmed" is always among them.
        calibrate_on: validation videos that a temperature is fitted on; None fits none.
        teacher: what the model's teacher said of the same videos.
        memory: decoded videos to use again.
        trust: packages and modules of your own whose code may run.
        advance: called with the number of clips done.

    Returns:
        The predictions, and plain numbers, ready for JSON: those of `metrics.scores` and `metrics.intervals`,
        "calibration" (not of several-label sets), "temporal" (top-1 by frame order), "views", "curve" (top-1 over
        budgets of views, where there are several), "against" the teacher, what the model costs, and the data debt:
        "skipped" here, and how many videos its training did without.

    Raises:
        ValueError: if there is no model, the videos have classes that it does not know, `calibrate_on` shares videos
            with them or has no label, or the teacher knows other classes than the model.
        VideoError: for a broken video, unless `on_bad_video` is "skip".
    """
    name = str(model) if isinstance(model, str | Path) else model.config.__class__.__name__
    trained_without = None if isinstance(model, Model) else _skipped_in_training(Path(model))
    model = (model if isinstance(model, Model) else load_model(model, trust=trust)).to(machine.find())
    if model.input is None:
        raise ValueError(f"{name} neither looks nor listens: it can't be scored on videos")
    spec, grid = model.input, grid or ViewGrid()
    if teacher is not None and (other := set(teacher.classes) ^ set(model.classes)):
        raise ValueError(f"the teacher and {name} tell other classes apart, {len(other)} such as {min(other)!r}")
    orders = tuple(dict.fromkeys(("filmed", *orders)))
    shared = {video.id for video in videos.videos} & {video.id for video in (calibrate_on or videos).videos}
    if calibrate_on is not None and not any(video.names for video in calibrate_on.videos):
        raise ValueError(f"no validation clip of {calibrate_on.source} has a label to fit a temperature on")
    if calibrate_on is not None and shared:
        raise ValueError(f"a temperature would be fitted on {len(shared)} of the videos that are scored: take others")

    def look(at: Manifest, orders: Sequence[FrameOrder]) -> tuple[dict[FrameOrder, Predictions], Any]:
        there, left_out = leave_out_bad(at, on_bad_video=on_bad_video)
        dataset = ClipDataset(there.with_classes(model.classes, of=name), {"student": spec}, grid=grid, memory=memory)
        return _look(
            model,
            dataset,
            orders=orders,
            average=average,
            left_out=left_out,
            machine=machine,
            batch_size=batch_size,
            workers=workers,
            on_bad_video=on_bad_video,
            time_limit=time_limit,
            advance=advance,
        )

    found, budgets = look(videos, orders)
    filmed, price = found["filmed"], cost(model)
    headline = "map" if filmed.several_labels else "top1"
    numbers = {
        **scores(filmed),
        **intervals(filmed),
        "calibration": None,
        "temporal": {order: scores(said)[headline] for order, said in found.items()},
        "views": {"temporal": grid.temporal, "spatial": grid.spatial, "average": average},
        "curve": [
            {
                "temporal": temporal,
                "spatial": spatial,
                "macs": temporal * spatial * price.macs,
                "top1": (best == filmed.label)[filmed.is_labelled].double().mean().item(),
            }
            for (temporal, spatial), best in budgets.items()
        ]
        or None,
        "against": None if teacher is None else _against(filmed, teacher),
        "skipped_in_training": trained_without,
        "list": str(videos.source.resolve()),
        "params": price.params,
        "macs": price.macs,
    }
    can_be_calibrated = not filmed.several_labels and len(filmed.classes) > 1
    if can_be_calibrated:
        numbers["calibration"] = calibration(filmed) | {"temperature": None, "fitted_on": None, "scaled": None}
    validation = None
    if calibrate_on is not None and can_be_calibrated:
        validation = look(calibrate_on, ("filmed",))[0]["filmed"]
        temperature = fit_temperature(validation)
        numbers["calibration"] |= {
            "temperature": temperature,
            "fitted_on": f"{int(validation.is_labelled.sum())} validation clips of {calibrate_on.source.resolve()}",
            "scaled": calibration(filmed, temperature=temperature),
        }
    return Evaluation(numbers, filmed, validation)


def _against(student: Predictions, teacher: Predictions) -> dict[str, Any]:
    """On the clips that both could read, and by the classes of the student, where the teacher knows them all."""
    common = set(student.ids) & set(teacher.ids)
    both = [
        one.rows(torch.tensor([name in common for name in one.ids], dtype=torch.bool)) for one in (student, teacher)
    ]
    return {**against_teacher(*both), "clips": len(common)}


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
    average: Average = "probabilities",
    advance: Callable[[int], None] = lambda clips: None,
) -> Predictions:
    """Runs the model over every clip, by the views of the data set's grid; several processes share the clips, and all
    of them return what all found.

    Args:
        model: on the device where it is to run; put in eval mode while this runs.
        dataset: made with `specs={"student": model.input}`.
        machine: its precision is used; None for fp32.
        batch_size: views at once.
        workers: processes that decode.
        on_bad_video: "skip" leaves out a video that can't be read, and names it in `Predictions.skipped`.
        time_limit: seconds that a worker may spend on a video.
        frame_order: in which each clip's frames are handed out. A clip without sound is left out for a model that
            listens, and named.
        average: of what, over a clip's views.
        advance: called with the number of clips done.

    Raises:
        ValueError: if no clip could be read, or one could not and `on_bad_video` is "error".
    """
    found, _ = _look(
        model,
        dataset,
        orders=(frame_order,),
        average=average,
        left_out=(),
        machine=machine or Machine(),
        batch_size=batch_size,
        workers=workers,
        on_bad_video=on_bad_video,
        time_limit=time_limit,
        advance=advance,
    )
    return found[frame_order]


@torch.no_grad()
def _look(
    model: Model[Any],
    dataset: ClipDataset,
    *,
    orders: Sequence[FrameOrder],
    average: Average,
    left_out: tuple[str, ...],
    machine: Machine,
    batch_size: int,
    workers: int,
    on_bad_video: OnBadVideo,
    time_limit: float,
    advance: Callable[[int], None],
) -> tuple[dict[FrameOrder, Predictions], dict[tuple[int, int], Tensor]]:
    """Predictions by frame order, all from one decode; and the class predicted, int64 (N,), of clips as filmed, by
    smaller budgets of views (in time, in space) that the grid holds, where it has several."""
    training, device = model.training, model.device
    model.eval()
    grid = dataset.grid or ViewGrid()
    budgets = {} if dataset.multi_label or len(grid) == 1 or "filmed" not in orders else _budgets(grid)
    mine = _Part([], [], {frame_order: [] for frame_order in orders}, [], [])
    # The views of a clip are in one batch, however many there are: they are averaged before the next is seen.
    clips_at_once = max(batch_size // len(grid), 1)
    order = EveryClip(len(dataset), clips_at_once * len(grid), views=len(grid), rank=rank(), world_size=world_size())
    for batch in batches(dataset, order, workers=workers, on_bad_video=on_bad_video, time_limit=time_limit):
        unread = list(dict.fromkeys(batch.skipped))
        mine.skipped.extend(unread)
        advance(len(batch.id) // len(grid) + len(unread))
        if not batch.id:
            continue
        names, label = batch.id[:: len(grid)], batch.label[:: len(grid)]
        assert names == batch.id[len(grid) - 1 :: len(grid)], "a clip's views are beside each other"
        parts = [batch.clips["student"].rows(rows) for rows in torch.arange(len(batch.id)).split(batch_size)]
        heard = torch.ones(len(names), dtype=torch.bool)
        for frame_order in orders:
            said: list[Tensor] = []
            for first, view in zip(range(0, len(batch.id), batch_size), parts, strict=True):
                shown = _in_order(view.to(device), frame_order, batch.id[first : first + batch_size])
                with machine.autocast(device):
                    answer = model(shown)
                assert answer.logits is not None
                said.append(answer.logits.float().cpu())
                if answer.known is not None:
                    heard[torch.arange(first, first + len(said[-1]))[~answer.known.cpu()] // len(grid)] = False
            each = torch.cat(said).unflatten(0, (len(names), len(grid)))
            mine.logits[frame_order].append(
                average_views(each, average=average, several_labels=dataset.multi_label)[heard]
            )
            if frame_order == "filmed" and budgets:
                fewer = [average_views(each[:, views], average=average).argmax(dim=1) for views in budgets.values()]
                mine.smaller.append(torch.stack(fewer, dim=1)[heard])
        mine.skipped.extend(
            f"{name}: the video has no sound" for name, known in zip(names, heard.tolist()) if not known
        )
        mine.labels.append(label[heard])
        mine.ids.extend(name for name, known in zip(names, heard.tolist()) if known)
    model.train(training)
    return _together(of_all(mine), dataset, budgets=tuple(budgets), left_out=left_out)


@dataclass(frozen=True)
class _Part:
    """What one process found."""

    ids: list[str]
    labels: list[Tensor]  # (n,) each, or (n, K)
    logits: dict[FrameOrder, list[Tensor]]  # (n, K) each
    smaller: list[Tensor]  # (n, budgets) each
    skipped: list[str]


def _together(
    parts: Sequence[_Part],
    dataset: ClipDataset,
    *,
    budgets: Sequence[tuple[int, int]],
    left_out: Sequence[str],
) -> tuple[dict[FrameOrder, Predictions], dict[tuple[int, int], Tensor]]:
    """In the list's order, however many processes shared it."""
    skipped = (*left_out, *(reason for part in parts for reason in part.skipped))
    ids = [name for part in parts for name in part.ids]
    if not ids:
        raise ValueError(f"none of the {len(dataset)} clips could be read; the first: {skipped[0]}")
    place = {video.id: number for number, video in enumerate(dataset.videos)}
    rows = sorted(range(len(ids)), key=lambda row: place[ids[row]])
    videos = [dataset.videos[place[ids[row]]] for row in rows]
    label = torch.cat([some for part in parts for some in part.labels])[rows]
    predictions = {
        order: Predictions(
            ids=tuple(video.id for video in videos),
            groups=tuple(video.group or video.id for video in videos),
            paths=tuple(str(video.path) for video in videos),
            label=label,
            logits=torch.cat([some for part in parts for some in part.logits[order]])[rows],
            classes=dataset.classes,
            skipped=skipped,
        )
        for order in parts[0].logits
    }
    smaller = torch.cat([some for part in parts for some in part.smaller])[rows].unbind(dim=1) if budgets else ()
    return predictions, dict(zip(budgets, smaller, strict=True))


def _in_order(view: View, order: FrameOrder, names: Sequence[str]) -> View:
    """The views of clips, in another order of their frames."""
    if order == "filmed":
        return view
    pieces = view.frames.shape[1] if isinstance(view, Clip) else _SOUND_PIECES
    filmed = torch.arange(pieces)
    if order == "shuffled":
        numbers = torch.stack([_shuffled(name, pieces) for name in names])
    else:
        one = {"reversed": filmed.flip(0), "frozen": torch.full_like(filmed, pieces // 2), "half": filmed // 2 * 2}
        numbers = one[order].expand(len(names), -1)
    return view.at(numbers.to(view.times.device if isinstance(view, Clip) else view.samples.device))


def _budgets(grid: ViewGrid) -> dict[tuple[int, int], list[int]]:
    """Which views of a grid make up smaller ones: evenly spread in time, the middle one in space, and all of them."""
    found: dict[tuple[int, int], list[int]] = {}
    for temporal in sorted({1, 2, 3, 4, 5, 10, grid.temporal}):
        if temporal > grid.temporal:
            continue
        even = np.linspace(0, grid.temporal - 1, temporal) if temporal > 1 else np.array([(grid.temporal - 1) / 2])
        moments = np.floor(even + 0.5).astype(int).tolist()
        for spatial in sorted({1, grid.spatial}):
            places = range(grid.spatial) if spatial == grid.spatial else [grid.spatial // 2]
            found[temporal, spatial] = [moment * grid.spatial + place for moment in moments for place in places]
    return found


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
    skipped = read_run_file(summary).get("skipped") if summary.is_file() else None
    return None if skipped is None else len(skipped)


def _shuffled(clip_id: str, num_frames: int) -> Tensor:
    return torch.from_numpy(view_generator(0, clip_id, 0).permutation(num_frames).astype(np.int64))
