"""One augmentation for all frames of a clip and all parties of a run: the same place, each at its own size."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from videokd.clips.pictures import Box
from videokd.contracts import Resize


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A square of the model's own crop fraction, anywhere in the frame; for a model that squashes frames, a box of that
    share of each side, which is always the whole frame where the fraction is 1."""


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A box of random area and shape, resized to the model's size [Inception, Szegedy et al. 2015]."""

    scale: tuple[float, float] = (0.4, 1.0)
    """Area of the box over the area of the frame, from and to."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the box, from and to."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"scale must rise within (0, 1] and ratio above 0, got {self.scale} and {self.ratio}")


@dataclass(frozen=True, kw_only=True)
class ShortSideJitter:
    """A square crop of a frame whose short side was resized to a random length first [Simonyan & Zisserman 2014]."""

    fraction: tuple[float, float] = (0.7, 0.875)
    """Crop side over the resized short side, from and to: 224 of 256 to 320 is (0.7, 0.875)."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction[0] <= self.fraction[1] <= 1:
            raise ValueError(f"fraction must rise within (0, 1], got {self.fraction}")


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue, each by a random factor, in a random order."""

    brightness: float = 0.0
    """Factor drawn from 1 - brightness to 1 + brightness; contrast and saturation likewise."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Turns of the colour wheel, drawn from -hue to hue; at most 0.5."""
    grey: float = 0.0
    """Chance of no colour at all."""

    def __post_init__(self) -> None:
        factors = (self.brightness, self.contrast, self.saturation)
        if min(factors) < 0 or not 0 <= self.hue <= 0.5 or not 0 <= self.grey <= 1:
            raise ValueError(f"factors are not negative, hue is at most 0.5 and grey a probability, got {self}")


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Random operations of one strength [Cubuk et al. 2020], as torchvision has them.

    Its shears, turns and shifts move teacher's and student's pictures by the same share of their size.
    """

    num_ops: int = 2
    magnitude: int = 9
    """Of 30."""

    def __post_init__(self) -> None:
        if self.num_ops < 1 or not 0 <= self.magnitude <= 30:
            raise ValueError(f"num_ops is at least 1 and magnitude lies in [0, 30], got {self}")


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """A box of the view painted grey in all frames [Zhong et al. 2020]."""

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 0.33)
    """Area of the box over the area of the view, from and to."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Width over height of the box, from and to."""

    def __post_init__(self) -> None:
        rises = 0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]
        if not 0 <= self.probability <= 1 or not rises:
            raise ValueError(f"probability, scale and ratio must make sense, got {self}")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How a training view differs from the centred test view; one draw per clip."""

    crop: RandomCrop | RandomResizedCrop | ShortSideJitter = field(default_factory=RandomCrop)
    flip: float = 0.0
    """Chance of a left-right flip; 0 by default. A clip of a class such as "slide right" gets the label "slide left"
    with it, and is never flipped where there is no such class."""
    colour: ColourJitter | None = None
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, got {self.flip}")

    @property
    def changes_appearance(self) -> bool:
        """Whether it does more than choose a place."""
        return any(change is not None for change in (self.colour, self.rand_augment, self.erase))


@dataclass(frozen=True, kw_only=True)
class ViewGrid:
    """Test views of a clip in time and space: 10 x 3, 4 x 3, 5 x 3, or the single centred one."""

    temporal: int = 1
    """Evenly spaced from the start of the video to its end."""
    spatial: Literal[1, 3] = 1
    """3: squares of the whole short side, at both ends and in the middle of the long one; 1: the centred square of
    the model's own crop fraction."""

    def __post_init__(self) -> None:
        if self.temporal < 1 or self.spatial not in (1, 3):
            raise ValueError(f"views are at least 1 in time and 1 or 3 in space, got {self}")

    def __len__(self) -> int:
        return self.temporal * self.spatial

    def position(self, view: int) -> float:
        """Where in the video a view lies, from 0, the start, to 1; a single one is centred."""
        moment = self._checked(view) // self.spatial
        return 0.5 if self.temporal == 1 else moment / (self.temporal - 1)

    def offset(self, view: int) -> float:
        """Where in its segment a view's frame lies, from 0 to 1: views part the segment among them."""
        return (self._checked(view) // self.spatial + 0.5) / self.temporal

    def placement(
        self, view: int, *, height: int, width: int, crop_fraction: float, resize: Resize = "crop", aspect: float = 1.0
    ) -> "Placement":
        """Where in frames of height x width pixels a view lies.

        Raises:
            ValueError: for 3 views in space of a model that squashes whole frames to squares: they would be the same.
        """
        place = self._checked(view) % self.spatial
        if self.spatial == 1:
            return centred(height=height, width=width, crop_fraction=crop_fraction, resize=resize, aspect=aspect)
        if resize == "squash" and aspect == 1:
            raise ValueError(
                "the model squashes whole frames to squares (input.resize is 'squash'), so there are no 3 views in "
                "space: take 1 (--spatial 1)"
            )
        down, across = _sides(height, width, 1.0, resize, aspect)
        return Placement(Box((height - down) * place // 2, (width - across) * place // 2, down, across), flipped=False)

    def _checked(self, view: int) -> int:
        if not 0 <= view < len(self):
            raise ValueError(f"there are {len(self)} test views, {self.temporal} x {self.spatial}; no number {view}")
        return view


@dataclass(frozen=True)
class Placement:
    """What one draw of the augmentation came to."""

    box: Box
    flipped: bool


def centred(
    *, height: int, width: int, crop_fraction: float, resize: Resize = "crop", aspect: float = 1.0
) -> Placement:
    """Return the test view: a box in the middle, not flipped."""
    down, across = _sides(height, width, crop_fraction, resize, aspect)
    return Placement(Box((height - down) // 2, (width - across) // 2, down, across), flipped=False)


def drawn(
    augment: Augment,
    *,
    height: int,
    width: int,
    crop_fraction: float,
    rng: np.random.Generator,
    resize: Resize = "crop",
    aspect: float = 1.0,
    may_flip: bool = True,
) -> Placement:
    """A training view of a frame of height x width pixels; not flipped unless it may be."""
    flipped = bool(rng.random() < augment.flip) and may_flip
    if isinstance(augment.crop, RandomResizedCrop):
        area = rng.uniform(*augment.crop.scale) * height * width
        ratio = np.exp(rng.uniform(*np.log(augment.crop.ratio)))
        # A box that does not fit is cut to the frame rather than drawn again: one draw, one view.
        box_height = int(np.clip(round(np.sqrt(area / ratio)), 1, height))
        box_width = int(np.clip(round(np.sqrt(area * ratio)), 1, width))
    else:
        if isinstance(augment.crop, ShortSideJitter):
            smallest, largest = augment.crop.fraction
            # The resized side is what is drawn evenly, and the fraction its inverse.
            crop_fraction = 1 / rng.uniform(1 / largest, 1 / smallest)
        box_height, box_width = _sides(height, width, crop_fraction, resize, aspect)
    top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
    return Placement(Box(int(top), int(left), box_height, box_width), flipped)


def appearance(frames: Tensor, augment: Augment, *, seed: int) -> Tensor:
    """One party's view (T, 3, S, S), uint8, with the clip's colours, operations and erased box.

    A function of `seed`: the same draws for all frames, and for every party whatever the size of its view.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if (jitter := augment.colour) is not None:
            colours = v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
            frames = v2.RandomGrayscale(jitter.grey)(colours(frames))
        if (operations := augment.rand_augment) is not None:
            frames = v2.RandAugment(operations.num_ops, operations.magnitude, fill=_GREY)(frames)
    if augment.erase is not None:
        frames = _erased(frames, augment.erase, np.random.default_rng(seed))
    return frames


def flipped_classes(classes: Sequence[str]) -> tuple[int | None, ...]:
    """What class a clip of each class is after a left-right flip: its own number where the name knows no side, its
    partner's for such as "slide left" and "slide right", None where a flip would falsify the label."""
    numbers = {_spelt(name): number for number, name in enumerate(classes)}
    return tuple(
        number if _mirrored(name) is None else numbers.get(_spelt(_mirrored(name) or ""))
        for number, name in enumerate(classes)
    )


def flip_sensitive(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes whose names know left from right: a flip falsifies them, or makes another class of them."""
    return tuple(name for name in classes if _mirrored(name) is not None)


_GREY = 128
_MIRROR = {f"left{ending}": f"right{ending}" for ending in ("", "ward", "wards", "hand", "handed", "most")}
_MIRROR["clockwise"] = "counterclockwise"
_OPPOSITES = _MIRROR | {after: before for before, after in _MIRROR.items()}


def _words(name: str) -> list[str]:
    """The words of "swipe_left" or "PushLeft" and what lies between them, in their order; "anti-clockwise" and the
    like are one word, "counterclockwise"."""
    name = re.sub(r"(?i)(counter|anti)[-_ ]?clockwise", " counterclockwise ", name)
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z]+", name)


def _mirrored(name: str) -> str | None:
    """The name with its sides exchanged; None if it has none."""
    words = _words(name)
    swapped = [_OPPOSITES.get(word.lower(), word) for word in words]
    return None if swapped == words else "".join(swapped)


def _spelt(name: str) -> str:
    """A name by which classes are compared, whatever stands between their words."""
    return re.sub("[^a-z0-9]", "", "".join(_words(name)).lower())


def _erased(frames: Tensor, erase: RandomErasing, rng: np.random.Generator) -> Tensor:
    # All in shares of the view, so that parties of any size lose the same place.
    hit = rng.random() < erase.probability
    area, ratio = rng.uniform(*erase.scale), np.exp(rng.uniform(*np.log(erase.ratio)))
    height, width = min(np.sqrt(area / ratio), 1.0), min(np.sqrt(area * ratio), 1.0)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    if not hit:
        return frames
    frames, (rows, columns) = frames.clone(), frames.shape[-2:]
    down = slice(round(top * rows), round((top + height) * rows))
    across = slice(round(left * columns), round((left + width) * columns))
    frames[..., down, across] = _GREY
    return frames


def _sides(height: int, width: int, crop_fraction: float, resize: Resize, aspect: float) -> tuple[int, int]:
    """Height and width of a model's box in a frame: a square, or what a square of the squashed frame is in it."""
    if resize == "crop":
        side = max(1, round(min(height, width) * crop_fraction))
        return side, side
    # The squashed frame is `aspect` wide and 1 high, and the square's side a share of the shorter one.
    side_of = crop_fraction * min(1.0, aspect)
    return max(1, round(height * side_of)), max(1, round(width * side_of / aspect))
