"""One augmentation for all frames of a clip and all parties of a run: the same place, each at its own size."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms


class Box(NamedTuple):
    """A crop in pixels of the decoded frame."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A square of the model's own crop fraction, anywhere in the frame."""


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
class Augment:
    """How a training view differs from the centred test view; one draw per clip."""

    crop: RandomCrop | RandomResizedCrop = field(default_factory=RandomCrop)
    flip: float = 0.0
    """Chance of a left-right flip; 0 by default, since it falsifies labels like "slide right"."""

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, got {self.flip}")


@dataclass(frozen=True)
class Placement:
    """What one draw of the augmentation came to."""

    box: Box
    flipped: bool


def centred(*, height: int, width: int, crop_fraction: float) -> Placement:
    """The test view: a square in the middle, not flipped."""
    side = _side(height, width, crop_fraction)
    return Placement(Box((height - side) // 2, (width - side) // 2, side, side), flipped=False)


def drawn(augment: Augment, *, height: int, width: int, crop_fraction: float, rng: np.random.Generator) -> Placement:
    """A training view of a frame of height x width pixels."""
    flipped = bool(rng.random() < augment.flip)
    if isinstance(augment.crop, RandomCrop):
        side = _side(height, width, crop_fraction)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        return Placement(Box(int(top), int(left), side, side), flipped)
    area = rng.uniform(*augment.crop.scale) * height * width
    ratio = np.exp(rng.uniform(*np.log(augment.crop.ratio)))
    # A box that does not fit is cut to the frame rather than drawn again: one draw, one view.
    box_height = int(np.clip(round(np.sqrt(area / ratio)), 1, height))
    box_width = int(np.clip(round(np.sqrt(area * ratio)), 1, width))
    top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
    return Placement(Box(int(top), int(left), box_height, box_width), flipped)


def view(frames: Tensor, placement: Placement, *, size: int) -> Tensor:
    """The placed crop of uint8 frames (T, 3, H, W) at the party's size: uint8 (T, 3, size, size)."""
    top, left, height, width = placement.box
    crop = frames[:, :, top : top + height, left : left + width]
    if (height, width) != (size, size):
        crop = transforms.resize(crop, [size, size], antialias=True)
    return crop.flip(-1) if placement.flipped else crop


def _side(height: int, width: int, crop_fraction: float) -> int:
    return max(1, round(min(height, width) * crop_fraction))
