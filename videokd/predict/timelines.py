"""What a model says over the course of a long video: windows that slide over it, a smoothed curve, and segments.

```
video     |---------------------------------------|     0 to its end, seconds from its first frame on
windows   [----:----]
               [----:----]          a window is seen as evaluation would see it, cut out as a video of its own
                    [----:----]
                         [---...
cells     |------:--|--:-|--:-|--...  what a window speaks for: up to halfway to the next centre
segments  |  a      |   b             cells in a row of which one class is the likeliest
```
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videokd.clips.backends import is_video_file
from videokd.clips.dataset import centred_box
from videokd.clips.manifest import Video
from videokd.clips.pictures import Cut
from videokd.clips.reading import VideoError, VideoIndex, walk
from videokd.clips.sampling import joint_frames
from videokd.contracts import Clip, Dense, InputSpec, Timed
from videokd.machine import Machine
from videokd.models import Model
from videokd.predict.drawing import Caption
from videokd.predict.videos import probabilities

UNSURE = "unsure"
_SLACK = 1e-6
"""Seconds: times are sums of rounded ones."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TimelineOptions:
    """How a timeline is made."""

    window: float | None = None
    """Seconds of a window; what the model's input spans at its own sampling if not given."""
    stride: float | None = None
    """Seconds from one window to the next; half a window if not given."""
    smooth: float = 0.0
    """Seconds over which probabilities are averaged; 0 for none."""
    threshold: float = 0.0
    """A segment of less mean probability is called "unsure"."""
    min_seconds: float = 0.0
    """A shorter segment goes to the one of its two neighbours whose class is the likelier in it."""

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is a number of seconds above 0, got {value:g}")
        if not self.smooth >= 0 or not self.min_seconds >= 0 or not 0 <= self.threshold <= 1:
            raise ValueError(
                "smooth and min_seconds are seconds, 0 or more, and threshold is a probability, got "
                f"{self.smooth:g}, {self.min_seconds:g} and {self.threshold:g}"
            )


@dataclass(frozen=True)
class Segment:
    """A stretch of a video of one class; seconds from the video's first frame on."""

    start: float
    end: float
    likeliest: str
    confidence: float
    """Its class's mean probability."""
    is_sure: bool

    @property
    def name(self) -> str:
        """Its class, or "unsure"."""
        return self.likeliest if self.is_sure else UNSURE


@dataclass(frozen=True)
class Timeline:
    """What a model says over the course of one video; seconds from the video's first frame on."""

    video: Video
    index: VideoIndex
    classes: tuple[str, ...]
    window: float
    """Seconds, of the first window."""
    centres: Floats  # (N,), of the windows
    edges: Floats  # (N + 1,), where the windows' cells begin and end: from 0 to the video's end
    raw: Floats  # (N, K), probabilities
    probabilities: Floats  # (N, K), smoothed
    segments: tuple[Segment, ...]

    def caption_at(self, seconds: float) -> Caption:
        """The segment that is on, and how likely its class is just then; beyond the ends, as at the nearest."""
        segment = self.segments[min(bisect_right(self._ends, seconds), len(self.segments) - 1)]
        cell = np.clip(np.searchsorted(self.edges, seconds, side="right") - 1, 0, len(self.centres) - 1)
        probability = float(self.probabilities[cell, self.classes.index(segment.likeliest)])
        return Caption(segment.name, probability, segment.is_sure)

    @cached_property
    def _ends(self) -> list[float]:
        return [one.end for one in self.segments]


@torch.no_grad()
def timeline(
    model: Model[Any],
    video: Video,
    index: VideoIndex,
    options: TimelineOptions = TimelineOptions(),
    *,
    several_labels: bool = False,
    machine: Machine | None = None,
    batch_size: int = 32,
    advance: Callable[[float], None] = lambda seconds: None,
) -> Timeline:
    """Runs the model over windows of a video file, in one pass that holds no more frames than a window and a batch.

    Args:
        model: on the device where it is to run.
        video: a file, however long.
        index: of it.
        options: windows, smoothing, segments.
        several_labels: a probability for each class by itself (sigmoid); else they add up to 1 (softmax).
        machine: its precision is used; None for fp32.
        batch_size: windows at once.
        advance: called with the seconds of the video that are done.

    Raises:
        ValueError: for a model that does not look, or of which no length of a window follows.
        VideoError: for a video that can't be read, or is too short for a model that does not bear it.
    """
    spec = model.input
    if not isinstance(spec, InputSpec) or not model.has_logits:
        raise ValueError(f"a timeline needs a model that tells classes apart by what it sees: {type(model).__name__}")
    if not is_video_file(video):
        raise VideoError(video.path, "a timeline is made of video files, not of packed videos or still images")
    windows = place_windows(index, spec, options, model=type(model).__name__)
    clips = _clips(video, index, spec, windows)
    device = model.device
    training = model.training
    model.eval()
    said: list[Floats] = []
    done = 0.0
    while batch := list(islice(clips, batch_size)):
        view = Clip(torch.stack([clip for clip, _ in batch]), torch.stack([times for _, times in batch])).to(device)
        with (machine or Machine()).autocast(device):
            answer = model(view)
        assert answer.logits is not None
        said.append(probabilities(answer.logits.float().cpu(), several_labels=several_labels).numpy())
        before, done = done, windows[sum(map(len, said)) - 1].end
        advance(done - before)
    model.train(training)
    raw = np.concatenate(said)
    centres = np.array([(window.start + window.end) / 2 for window in windows])
    edges = np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [index.seconds]])
    curve = smoothed(raw, centres, edges, seconds=options.smooth)
    return Timeline(
        video,
        index,
        model.classes,
        windows[0].end - windows[0].start,
        centres,
        edges,
        raw,
        curve,
        segments(curve, edges, model.classes, threshold=options.threshold, min_seconds=options.min_seconds),
    )


@dataclass(frozen=True)
class Window:
    """A part of a video."""

    frames: range
    """Numbers of its frames."""
    start: float
    """Seconds from the video's first frame on."""
    end: float


def place_windows(index: VideoIndex, spec: InputSpec, options: TimelineOptions, *, model: str) -> list[Window]:
    """Windows from the video's start to its end, the last one at the end; one, of all of it, for a video that is no
    longer than a window.

    Raises:
        ValueError: if no length is given and none follows from the model's sampling.
    """
    seconds, count = index.seconds, index.num_frames
    borders = np.append(index.times - index.times[0], seconds)  # (frames + 1,)
    if options.window is None and not isinstance(spec.sampling, Dense | Timed):
        raise ValueError(
            f"{model} spreads its {spec.frames} frames over a video of any length: say how many seconds of it a window "
            "takes (--window)"
        )
    # Of a model that counts frames, a window is so many frames, whatever the rounding of their times.
    counted = spec.frames * spec.sampling.stride if isinstance(spec.sampling, Dense) and not options.window else None
    length = options.window or _span(spec, fps=index.fps)
    if length >= seconds - _SLACK or (counted is not None and counted >= count):
        return [Window(range(count), 0.0, seconds)]
    starts = np.append(np.arange(0.0, seconds - length - _SLACK, options.stride or length / 2), seconds - length)
    firsts = np.maximum(np.searchsorted(borders[:-1], starts + _SLACK, side="right") - 1, 0)
    if counted is not None:
        firsts = np.unique(np.append(np.minimum(firsts, count - counted), count - counted))
        return [
            Window(range(first, first + counted), float(borders[first]), float(borders[first + counted]))
            for first in firsts.tolist()
        ]
    lasts = np.maximum(np.searchsorted(borders[:-1], starts + length - _SLACK), firsts + 1)
    return [
        Window(range(first, last), start, min(start + length, seconds))
        for first, last, start in zip(firsts.tolist(), lasts.tolist(), starts.tolist())
    ]


def _span(spec: InputSpec, *, fps: float) -> float:
    """Seconds that the model's input takes of a video."""
    if isinstance(spec.sampling, Timed):
        return spec.frames / spec.sampling.fps
    assert isinstance(spec.sampling, Dense)
    return spec.frames * spec.sampling.stride / fps


def _clips(
    video: Video, index: VideoIndex, spec: InputSpec, windows: Sequence[Window]
) -> Iterator[tuple[Tensor, Tensor]]:  # uint8 (T, 3, S, S), float32 (T,)
    """What the model sees of each window, and when; a frame is held from the first window that shows it to the last."""
    times = index.times
    try:
        # Each window by the model's own test view, as if it were a video.
        numbers = [
            joint_frames(times[one.frames.start : one.frames.stop], {"student": spec}, rng=None)["student"]
            + one.frames.start
            for one in windows
        ]
    except ValueError as error:  # too short for a model that does not bear it
        raise VideoError(video.path, str(error), "broken") from error
    shown = np.unique(np.concatenate(numbers)).tolist()
    cut = Cut(shown, centred_box(index, spec), (spec.size, spec.size))
    pictures = zip(shown, walk(video.path, cut, index=index, max_pixels=index.max_pixels))
    # The earliest frame that this or any later window shows: those before it can go.
    needed = np.minimum.accumulate([one.min() for one in reversed(numbers)])[::-1]
    held: dict[int, Tensor] = {}
    for wanted, earliest in zip(numbers, needed.tolist()):
        for number in [number for number in held if number < earliest]:
            del held[number]
        while wanted.max() not in held:
            number, picture = next(pictures)
            held[number] = picture
        yield torch.stack([held[number] for number in wanted.tolist()]), torch.from_numpy(times[wanted]).float()


def smoothed(raw: Floats, centres: Floats, edges: Floats, *, seconds: float) -> Floats:
    """A moving average (N, K): around each centre (N,), the probabilities of the cells between edges (N + 1,), weighted
    by how many of these seconds lie in each; at the ends of the video, of those that there are."""
    if seconds == 0:
        return raw
    # The integral from the start up to each edge, and from there on in between.
    whole = np.concatenate([np.zeros((1, raw.shape[1])), np.cumsum(raw * np.diff(edges)[:, None], axis=0)])

    def up_to(moments: Floats) -> Floats:
        cell = np.clip(np.searchsorted(edges, moments, side="right") - 1, 0, len(raw) - 1)
        return np.asarray(whole[cell] + raw[cell] * (moments - edges[cell])[:, None])

    start, end = np.maximum(centres - seconds / 2, edges[0]), np.minimum(centres + seconds / 2, edges[-1])
    return np.asarray((up_to(end) - up_to(start)) / (end - start)[:, None])


def segments(
    curve: Floats, edges: Floats, classes: Sequence[str], *, threshold: float = 0.0, min_seconds: float = 0.0
) -> tuple[Segment, ...]:
    """Runs of cells of which one class is the likeliest: probabilities (N, K) of cells between edges (N + 1,).

    Args:
        curve: smoothed.
        edges: of the cells.
        classes: their names (K,).
        threshold: of the mean probability, below which a segment is "unsure".
        min_seconds: the shortest segment that is shorter goes to the neighbour whose class is the likelier in it, and
            so on until none is left, or one alone.
    """
    weights = np.diff(edges)

    def mean(run: "_Run", label: int) -> float:
        return float(np.average(curve[run.first : run.last, label], weights=weights[run.first : run.last]))

    labels = curve.argmax(axis=1)
    changes = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    runs = [_Run(first, last, int(labels[first])) for first, last in pairwise(changes)]
    while len(runs) > 1:
        place = int(np.argmin(edges[[run.last for run in runs]] - edges[[run.first for run in runs]]))
        short = runs[place]
        if edges[short.last] - edges[short.first] >= min_seconds - _SLACK:
            break
        around = slice(max(place - 1, 0), place + 2)
        label = max((run.label for run in runs[around] if run != short), key=lambda label: mean(short, label))
        runs[place] = replace(short, label=label)
        runs[around] = _joined(runs[around])
    found = []
    for run in runs:
        confidence = mean(run, run.label)
        start, end = float(edges[run.first]), float(edges[run.last])
        found.append(Segment(start, end, classes[run.label], confidence, confidence >= threshold))
    return tuple(found)


@dataclass(frozen=True)
class _Run:
    """Cells in a row, from the first to before the last."""

    first: int
    last: int
    label: int


def _joined(runs: Sequence[_Run]) -> list[_Run]:
    """Neighbours of one class as one."""
    joined: list[_Run] = []
    for run in runs:
        if joined and joined[-1].label == run.label:
            joined[-1] = replace(joined[-1], last=run.last)
        else:
            joined.append(run)
    return joined
