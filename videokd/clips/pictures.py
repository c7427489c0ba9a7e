"""Decoded frames to the pictures that were asked for: cropped, resized and turned upright, as RGB bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

MAX_PIXELS = 60_000_000
"""Pixels of a frame above which a video or picture is refused, unless told otherwise. 8K video has 35 million."""


class Orientation(NamedTuple):
    """How a stored picture is turned to be displayed: one of eight ways."""

    turns: int = 0
    """Quarter turns counterclockwise, 0 to 3."""
    mirrored: bool = False
    """Whether left and right are swapped after turning."""


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Cut:
    """Which frames of a video, which part of them, and how large."""

    numbers: Sequence[int]
    """Of the frames, in the order wanted; one may come twice."""
    box: Box | None = None
    """In pixels of the displayed frame; None is all of it. Where colour is stored more coarsely than brightness, the
    box begins at the next pixel up and left that has a colour sample: an even one in 4:2:0."""
    size: tuple[int, int] | int | None = None
    """(height, width) in pixels to resize to; a single number is the shorter side, the longer one keeping the aspect
    ratio, rounded half up; None leaves the pixels as they are."""

    def __post_init__(self) -> None:
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        if any(side < 1 for side in sides):
            raise ValueError(f"a picture has at least 1 pixel a side, got size={self.size}")


def cut_out(pictures: Tensor, cut: Cut) -> Tensor:  # (T, 3, H, W) -> (T, 3, H', W'), both uint8
    """The cut's part of pictures that are RGB already, at the cut's size; `cut.numbers` plays no part.

    Raises:
        ValueError: for a box outside of the pictures.
    """
    box = _checked(cut.box, (pictures.shape[-2], pictures.shape[-1]))
    part = pictures[..., box.top : box.top + box.height, box.left : box.left + box.width]
    height, width = resized((box.height, box.width), cut.size)
    if part.shape[-2:] == (height, width):
        return part
    smaller: Tensor = transforms.resize(part, [height, width], antialias=True)
    return smaller


def places(numbers: NDArray[np.int64]) -> slice | Tensor:
    """Evenly spaced places as a slice, which copies no frame; others as they are."""
    step = int(numbers[1] - numbers[0]) if len(numbers) > 1 else 1
    if step > 0 and (np.diff(numbers) == step).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1, step)
    return torch.from_numpy(numbers)


class Canvas:
    """The tensor of one cut; each frame is converted once, on its way there."""

    def __init__(self, cut: Cut, *, names: NDArray[np.int64], size: tuple[int, int] | None) -> None:
        self._cut = cut
        self._rows: dict[int, list[int]] = {}
        for row, name in enumerate(names[np.array(cut.numbers, dtype=np.int64)].tolist()):
            self._rows.setdefault(name, []).append(row)
        self.missing = set(self._rows)
        self._size = size
        self._reformatter = VideoReformatter()
        self._pixels: NDArray[np.uint8] | None = None  # (T, H, W, 3)

    def paint(self, name: int | None, frame: VideoFrame) -> bool:
        """Takes a frame if it is a missing one."""
        if name not in self.missing:
            return False
        orientation = orientation_of(frame)
        if self._size is None:
            self._size = turned((frame.height, frame.width), orientation.turns)
        pixels = self._made()
        first, *others = self._rows[name]
        pixels[first] = displayed(self._rgb(frame, orientation, size=pixels.shape[1:3]), orientation)
        pixels[others] = pixels[first]
        self.missing.remove(name)
        return True

    def frames(self) -> Tensor:
        """What was painted: uint8 (T, 3, H, W), RGB; channels lie last in memory, as swscale writes them."""
        return torch.from_numpy(self._made()).permute(0, 3, 1, 2)

    def _made(self) -> NDArray[np.uint8]:
        if self._pixels is None:
            assert self._size is not None, "a size is known or a frame was painted"
            box = _checked(self._cut.box, self._size)
            height, width = resized((box.height, box.width), self._cut.size)
            self._pixels = np.empty((len(self._cut.numbers), height, width, 3), dtype=np.uint8)
        return self._pixels

    def _rgb(self, frame: VideoFrame, orientation: Orientation, *, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the cut's picture (H, W, 3) as stored; `size` is (height, width) as displayed."""
        assert self._size is not None
        if self._cut.box is not None:
            stored = turned(self._size, orientation.turns)
            if (frame.height, frame.width) != stored:  # the video changes its picture size midway
                frame = frame.reformat(width=stored[1], height=stored[0], threads=1)
            frame = _cropped(frame, _stored_box(self._cut.box, self._size, orientation))
        return self._converted(frame, turned(size, orientation.turns))

    def _converted(self, frame: VideoFrame, size: tuple[int, int]) -> NDArray[np.uint8]:  # (H, W, 3)
        height, width = size
        # swscale's bilinear widens its triangle when it shrinks, so every source pixel counts. That is Pillow's and
        # torchvision's antialiased bilinear, and no dearer than swscale's own area averaging, which is farther from it.
        # One thread: waking more takes longer than converting a small frame.
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
        )
        return _lines(rgb, 0)[:, : width * 3].reshape(height, width, 3)


def orientation_of(frame: VideoFrame) -> Orientation:
    """Return how a frame is to be displayed, from its display matrix; stored upright if it has none."""
    for side_data in _side_data(frame):
        if side_data.type == SideDataType.DISPLAYMATRIX and side_data.buffer_size == 36:
            return orientation_of_matrix(np.frombuffer(bytes(side_data), dtype="=i4").reshape(3, 3))
    return Orientation()


def _side_data(frame: VideoFrame) -> list[SideData]:
    side_data: Any  # iterates over values, though it is declared as a mapping
    try:
        side_data = frame.side_data
    except ValueError:  # PyAV refuses all of it where FFmpeg knows a type that PyAV does not, such as EXIF
        known = {kind.value for kind in SideDataType}
        graph = Graph()
        chain = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))]
        chain += [graph.add("sidedata", f"mode=delete:type={kind}") for kind in set(range(64)).difference(known)]
        chain.append(graph.add("buffersink"))
        graph.link_nodes(*chain).configure()
        graph.push(frame)
        side_data = graph.pull().side_data
    return list(side_data)


def orientation_of_matrix(matrix: NDArray[np.int32]) -> Orientation:
    """Return the orientation that a display matrix (3, 3) asks for, rounded to quarter turns.

    Its first two rows hold where the stored picture's right and down go on the display; scale, translation and
    perspective are ignored. A matrix that cannot be inverted means no turn, as in FFmpeg.
    """
    right_x, right_y = matrix[0, :2].tolist()
    down_x, down_y = matrix[1, :2].tolist()
    determinant = right_x * down_y - right_y * down_x  # whole numbers: never rounded to 0
    if determinant == 0:
        return Orientation()
    if determinant < 0:  # what is left after taking the mirror off is a turn
        right_x, down_x = -right_x, -down_x
    right, down = math.hypot(right_x, right_y), math.hypot(down_x, down_y)
    # The turn that is nearest to both directions.
    angle = math.atan2(down_x / down - right_y / right, right_x / right + down_y / down)
    return Orientation(round(2 * angle / math.pi) % 4, determinant < 0)


def displayed(picture: NDArray[Any], orientation: Orientation) -> NDArray[Any]:
    """Return a stored picture (H, W, ...) as it is displayed: a view, not a copy."""
    upright = np.rot90(picture, orientation.turns)
    return upright[:, ::-1] if orientation.mirrored else upright


def turned(size: tuple[int, int], turns: int) -> tuple[int, int]:
    """(height, width) after so many quarter turns."""
    return size if turns % 2 == 0 else (size[1], size[0])


def resized(size: tuple[int, int], wanted: tuple[int, int] | int | None) -> tuple[int, int]:
    """(height, width) as a cut wants it; a given short side keeps the aspect ratio to half a pixel."""
    if not isinstance(wanted, int):
        return wanted or size
    # (2ab + c) // 2c is ab/c rounded half up, in whole numbers.
    height, width = ((2 * side * wanted + min(size)) // (2 * min(size)) for side in size)
    return height, width


def _checked(box: Box | None, size: tuple[int, int]) -> Box:
    """The box in a picture of this (height, width); None is all of it."""
    height, width = size
    if box is None:
        return Box(0, 0, height, width)
    inside = 0 <= box.top < box.top + box.height <= height and 0 <= box.left < box.left + box.width <= width
    if not inside:
        raise ValueError(f"{box} does not lie in a picture {height} pixels high and {width} wide")
    return box


def _cropped(frame: VideoFrame, box: Box) -> VideoFrame:
    """The box of a frame in its own pixel format, its corner moved to a pixel that has a colour sample."""
    components = frame.format.components
    if len({component.plane for component in components}) != len(components) or frame.format.has_palette:
        frame = frame.reformat(format="rgb24", threads=1)  # several colours lie side by side in a plane
    # How many pixels of the picture share a sample of each plane: 2 x 2 for the colours of 4:2:0.
    shares = [(round(frame.height / plane.height), round(frame.width / plane.width)) for plane in frame.planes]
    down, across = map(max, zip(*shares))
    corner = (box.top // down * down, box.left // across * across)
    part = VideoFrame(box.width, box.height, frame.format.name)
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    for number, (plane, (down, across)) in enumerate(zip(part.planes, shares)):
        top, left, step = corner[0] // down, corner[1] // across, _bytes_a_pixel(frame, number)
        source = _lines(frame, number)[top : top + plane.height, left * step : (left + plane.width) * step]
        _lines(part, number)[: source.shape[0], : source.shape[1]] = source
    return part


def _bytes_a_pixel(frame: VideoFrame, plane: int) -> int:
    return sum((component.bits + 7) // 8 for component in frame.format.components if component.plane == plane)


def _lines(frame: VideoFrame, plane: int) -> NDArray[np.uint8]:
    """The bytes of one plane, line by line; lines are padded at their end."""
    found = frame.planes[plane]
    return np.frombuffer(memoryview(found), dtype=np.uint8).reshape(found.height, found.line_size)


def _stored_box(box: Box, size: tuple[int, int], orientation: Orientation) -> Box:
    """Return where a box of the displayed picture of this (height, width) lies in the stored one."""
    if orientation.mirrored:
        box = box._replace(left=size[1] - box.left - box.width)
    for _ in range(orientation.turns):
        # One quarter clockwise: rows become columns, counted from the right.
        box = Box(box.left, size[0] - box.top - box.height, box.width, box.height)
        size = (size[1], size[0])
    return box
