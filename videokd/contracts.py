"""What crosses the borders between clips, models and losses, with shapes.

Letters used everywhere: B clips, T frames, H height, W width, C channels, K classes, S samples of sound.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

UNLABELLED = -1
"""The label of a clip whose class is unknown: it carries the distillation terms alone."""


Short = Literal["repeat", "wrap", "error"]
"""What a video shorter than the clip does: repeat its last frame, begin anew, or be refused."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Consecutive frames at a fixed stride, as most 3D networks are trained (16x4 = 16 frames, stride 4)."""

    stride: int = 1
    short: Short = "repeat"

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Frames at a fixed rate in time, whatever the rate of the file: for sets of mixed frame rates."""

    fps: float
    """Frames of the clip a second."""
    short: Short = "repeat"

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps must be above 0, got {self.fps}")


@dataclass(frozen=True, kw_only=True)
class Segments:
    """One frame from each of equally long segments of the whole video [TSN, Wang et al. 2016]."""


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Frames evenly spread over the whole video, its first and its last among them; nothing is random."""


Sampling = Dense | Timed | Segments | Uniform

Resize = Literal["crop", "squash"]
"""How a frame becomes the square that a model takes: "crop" keeps its shape and cuts out a square, "squash" resizes
height and width each by its own factor."""


def labelled(label: Tensor) -> Tensor:  # -> bool (B,)
    """Which clips have a label: class numbers int64 (B,), or float (B, K) shares of classes (of mixed clips, or 1 for
    each of several labels), where a row of UNLABELLED is a clip of which nothing is known."""
    return label != UNLABELLED if label.ndim == 1 else label[:, 0] != UNLABELLED


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What one model wants to see; saved with its weights, so training, testing and prediction agree."""

    frames: int
    """T, frames in a clip."""
    size: int
    """Height and width in pixels of the square crop that the model sees."""
    sampling: Sampling = field(default_factory=Dense)
    """Which frames of the video."""
    crop_fraction: float = 0.875
    """Crop side over the short side of the frame: 112 px from a short side of 128 is 0.875. With resize="squash", share
    of the short side of the squashed frame: 1 shows all of a square one."""
    resize: Resize = "crop"
    """How the frame becomes a square."""
    aspect: float = 1.0
    """With resize="squash", width over height to which the frame is brought before the square is cut out: 1 where a
    square is made of all of it, 171 / 128 for a resize to 128 x 171."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """RGB mean subtracted at the model's door, in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """RGB deviation divided by at the model's door, in [0, 1]."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.size < 1:
            raise ValueError(f"frames and size must be at least 1, got frames={self.frames}, size={self.size}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must lie in (0, 1], got {self.crop_fraction}")
        if self.resize not in get_args(Resize):
            raise ValueError(f"resize is one of {', '.join(get_args(Resize))}, got {self.resize!r}")
        if not 0 < self.aspect < float("inf") or (self.resize == "crop" and self.aspect != 1):
            raise ValueError(f"aspect is above 0, and 1 unless resize is 'squash', got {self.aspect}, {self.resize!r}")

    @property
    def short_side(self) -> int:
        """Pixels of the frame's short side before the crop."""
        return round(self.size / self.crop_fraction)


@dataclass(frozen=True, kw_only=True)
class SoundSpec:
    """What a model that listens wants to hear: the sound around the frames that the others see."""

    seconds: float = 2.0
    """Length of the sound, around the middle of the clip."""
    sample_rate: int = 16000
    """Samples a second; every file is resampled to it, and its channels are averaged."""

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.sample_rate < 1:
            raise ValueError(
                f"seconds is above 0 and sample_rate at least 1, got {self.seconds} and {self.sample_rate}"
            )

    @property
    def samples(self) -> int:
        """S, samples in a clip."""
        return round(self.seconds * self.sample_rate)


ViewSpec = InputSpec | SoundSpec
"""What one party wants of a clip: to see it, or to hear it."""


@dataclass(frozen=True)
class Clip:
    """Frames as they were decoded, still bytes: each model makes them float at its own door."""

    frames: Tensor  # uint8 (B, T, 3, H, W), RGB
    times: Tensor  # float32 (B, T), seconds in the source video

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.shape[2] != 3 or self.frames.dtype != torch.uint8:
            raise ValueError(
                f"frames must be uint8 (B, T, 3, H, W), got {self.frames.dtype} {tuple(self.frames.shape)}"
            )
        if self.times.shape != self.frames.shape[:2]:
            raise ValueError(f"times must be (B, T) = {tuple(self.frames.shape[:2])}, got {tuple(self.times.shape)}")

    def to(self, device: torch.device) -> "Clip":
        """The same clip on `device`; the copy does not block when the source is pinned."""
        return Clip(self.frames.to(device, non_blocking=True), self.times.to(device, non_blocking=True))

    def pin_memory(self) -> "Clip":
        """The same clip in page-locked memory; `DataLoader` calls this."""
        return Clip(self.frames.pin_memory(), self.times.pin_memory())

    def rows(self, rows: Tensor) -> "Clip":
        """Some of the clips: int64 (N,)."""
        return Clip(self.frames[rows], self.times[rows])

    def at(self, order: Tensor) -> "Clip":
        """Frames in another order, times left in place: order int64 (B, T)."""
        picked = torch.take_along_dim(self.frames, order[:, :, None, None, None], dim=1)
        return Clip(picked, self.times)


@dataclass(frozen=True)
class Sound:
    """The sound of the same seconds, for parties that listen."""

    samples: Tensor  # float32 (B, S), mono, in [-1, 1]; 0 where there is none
    start: Tensor  # float32 (B,), seconds in the source video of the first sample
    heard: Tensor  # bool (B,), False for a video that has no sound in these seconds

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.start.shape != self.heard.shape or len(self.start) != len(self.samples):
            raise ValueError(
                "a sound is (B, S) with start and heard (B,), "
                f"got {tuple(self.samples.shape)}, {tuple(self.start.shape)} and {tuple(self.heard.shape)}"
            )

    def to(self, device: torch.device) -> "Sound":
        """The same sound on `device`; the copy does not block when the source is pinned."""
        return Sound(*(part.to(device, non_blocking=True) for part in (self.samples, self.start, self.heard)))

    def pin_memory(self) -> "Sound":
        """The same sound in page-locked memory; `DataLoader` calls this."""
        return Sound(*(part.pin_memory() for part in (self.samples, self.start, self.heard)))

    def rows(self, rows: Tensor) -> "Sound":
        """Some of the sounds: int64 (N,)."""
        return Sound(self.samples[rows], self.start[rows], self.heard[rows])

    def at(self, order: Tensor) -> "Sound":
        """Equally long pieces in another order: order int64 (B, P); what is left over at the end stays."""
        length = self.samples.shape[1] // order.shape[1]
        kept = length * order.shape[1]
        pieces = self.samples[:, :kept].unflatten(1, (order.shape[1], length))
        picked = torch.take_along_dim(pieces, order[:, :, None], dim=1).flatten(1)
        return Sound(torch.cat([picked, self.samples[:, kept:]], dim=1), self.start, self.heard)


View = Clip | Sound
"""What one party gets of a clip."""


@dataclass(frozen=True)
class Batch:
    """One step's clips: a view of the same decode, under the same augmentation, for every party."""

    clips: Mapping[str, View]  # party name -> its view: "student", and every teacher by name
    label: Tensor  # int64 (B,), UNLABELLED where the class is unknown; or shares (B, K), see `labelled`
    id: tuple[str, ...]  # (B,), the clip's name in the manifest
    view: Tensor  # int64 (B,), view number: (seed, id, view) makes the same views again
    skipped: tuple[str, ...] = ()  # why clips that belong here are missing, one sentence each
    shuffled: Mapping[str, View] = field(default_factory=dict)  # party -> its view, pieces of time in another order

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return replace(
            self,
            clips={party: clip.to(device) for party, clip in self.clips.items()},
            label=self.label.to(device, non_blocking=True),
        )

    def at(self, rows: Tensor) -> "Batch":
        """Some of the clips: rows int64 (N,), in main memory."""
        there = rows.to(self.label.device, non_blocking=True)
        return replace(
            self,
            clips={party: view.rows(there) for party, view in self.clips.items()},
            label=self.label[there],
            id=tuple(self.id[place] for place in rows.tolist()),
            view=self.view[rows],
            shuffled={party: view.rows(there) for party, view in self.shuffled.items()},
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the batch's memory until what `stream` does with it is done, though another stream filled it."""
        for view in self.clips.values():
            for part in vars(view).values():
                part.record_stream(stream)
        self.label.record_stream(stream)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; `DataLoader` calls this."""
        clips = {party: clip.pin_memory() for party, clip in self.clips.items()}
        return replace(self, clips=clips, label=self.label.pin_memory())


@dataclass(frozen=True)
class Pace:
    """When the steps of a map are, as far as the sampling alone tells: the same for every clip, and known on the host
    without a look at the device that `FeatureMap.times` is on."""

    sampling: Sampling
    frames: int
    """T, frames in the clip."""
    centres: tuple[float, ...]
    """Frame of the clip, counted from 0, on which each step is centred."""

    @property
    def unit(self) -> str:
        """What `spacing` counts: two are comparable if they count the same."""
        kinds = {Dense: "frames of the video", Timed: "seconds", Segments: "videos", Uniform: "videos"}
        return kinds[type(self.sampling)]

    @property
    def spacing(self) -> float:
        """From one step to the next, on average."""
        if isinstance(self.sampling, Dense):
            frame = float(self.sampling.stride)
        elif isinstance(self.sampling, Timed):
            frame = 1 / self.sampling.fps
        else:  # uniform frames lie on both ends
            frame = 1 / max(self.frames - isinstance(self.sampling, Uniform), 1)
        return frame * (self.centres[-1] - self.centres[0]) / max(len(self.centres) - 1, 1)


@dataclass(frozen=True)
class FeatureMap:
    """Features on a grid of time and space, whatever the family: class and register tokens are not part of it."""

    values: Tensor  # (B, T', H', W', C)
    times: Tensor  # (B, T'), seconds: the centre of each step
    pace: Pace | None = None  # what of `times` is known without looking at them

    def __post_init__(self) -> None:
        if self.values.ndim != 5 or self.times.shape != self.values.shape[:2]:
            raise ValueError(
                "a feature map is (B, T', H', W', C) with times (B, T'), "
                f"got {tuple(self.values.shape)} with times {tuple(self.times.shape)}"
            )

    def pooled(self, grid: "Grid") -> "FeatureMap":
        """Averaged down to `grid`: "map" keeps all, "frames" averages space, "clip" averages space and time."""
        if grid == "map":
            return self
        values, times, pace = self.values, self.times, self.pace
        if values.shape[2:4] != (1, 1):
            values = values.mean(dim=(2, 3), keepdim=True)
        if grid == "clip" and values.shape[1] > 1:
            values, times, pace = values.mean(dim=1, keepdim=True), times.mean(dim=1, keepdim=True), None
        return FeatureMap(values, times, pace)


Grid = Literal["map", "frames", "clip"]
"""How fine a feature map is kept: everywhere, per frame, or one vector per clip."""


@dataclass(frozen=True)
class Outputs:
    """What a model says about a clip."""

    logits: Tensor | None  # (B, K)
    features: Mapping[str, FeatureMap] = field(default_factory=dict)  # tap name -> map
    known: Tensor | None = None  # bool (B,), the clips that it says something about; None for all of them
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # what is learned or kept for a loss, of no one clip
    clip: Tensor | None = None  # int64 (B,), a number that tells clips apart, whatever the view

    def at(self, rows: Tensor) -> "Outputs":
        """Some of the clips: rows bool (B,) or int64 (N,)."""
        return Outputs(
            None if self.logits is None else self.logits[rows],
            {tap: FeatureMap(one.values[rows], one.times[rows], one.pace) for tap, one in self.features.items()},
            None if self.known is None else self.known[rows],
            self.extra,
            None if self.clip is None else self.clip[rows],
        )
