"""Who reads a video: the exact planned reader unless another is named, and one for frames kept as pictures."""

import importlib
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from videokd.clips import reading
from videokd.clips.container import open_container
from videokd.clips.manifest import Video
from videokd.clips.pictures import MAX_PIXELS, Cut, cut_out
from videokd.clips.reading import Fault, Frames, VideoError, VideoIndex
from videokd.clips.shards import ShardReader

Backend = Literal["pyav", "decord", "torchcodec"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGES_PER_SECOND = 25
"""Pictures in a folder do not say when they were taken: what most frames of published sets were extracted at."""

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""What Pillow may take a picture to be, whatever its suffix: some of its other formats start programs."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> how the picture is turned to be displayed
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Reader(Protocol):
    """Reads one kind of video."""

    def scan(self, video: Video) -> VideoIndex:
        """Which frames there are, and when. Raises a `VideoError` for a video that can't be read."""

    def read(self, video: Video, cuts: Sequence[Cut], *, index: VideoIndex) -> list[Frames]:
        """The clips, from one walk through the video. Raises a `VideoError` for a video that can't be read."""


def reader_of(video: Video, backend: Backend = "pyav", *, max_pixels: int = MAX_PIXELS) -> Reader:
    """What reads this video; `backend` is for video files alone, and no frame may have more than `max_pixels`.

    Raises:
        ValueError: for a backend that can't be imported here.
    """
    if video.packed is not None:
        return ShardReader(max_pixels)
    if video.path.is_dir() or is_picture(video.path):
        return PictureReader(max_pixels)
    if backend == "pyav":
        return PlannedReader(max_pixels)
    require(backend)
    return DecordReader(max_pixels) if backend == "decord" else TorchCodecReader(max_pixels)


def is_picture(path: Path) -> bool:
    """Whether a path names a still image, by its suffix: a video of one frame."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_video_file(video: Video) -> bool:
    """Whether a video is a file that FFmpeg reads: not packed, no still image and no folder of them."""
    return video.packed is None and not is_picture(video.path) and not video.path.is_dir()


class PlannedReader:
    """PyAV under a plan of our own (`videokd.clips.reading`): exact for every container, and the default."""

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels

    def scan(self, video: Video) -> VideoIndex:
        """The frames that decoding shows."""
        return reading.scan(video.path, max_pixels=self.max_pixels)

    def read(self, video: Video, cuts: Sequence[Cut], *, index: VideoIndex) -> list[Frames]:
        """Crops and resizes in swscale, on the way from the decoder."""
        return reading.read_cuts(video.path, cuts, index=index, max_pixels=self.max_pixels)


class _WholeFrameReader(PlannedReader):
    """A library that hands out whole frames by number; they are cut here.

    Such libraries do not tell which frames the decoder flagged as damaged, and lose a mirror: a scan decodes all of
    the video with PyAV to find damage, and mirrored videos are refused.
    """

    def scan(self, video: Video) -> VideoIndex:
        """The frames that decoding shows, all of them decoded; a checked list saves it."""
        index = super().scan(video)
        fault = reading.decode_whole(video.path, index=index, max_pixels=self.max_pixels).fault
        if fault is not None:
            raise fault
        return index

    def read(self, video: Video, cuts: Sequence[Cut], *, index: VideoIndex) -> list[Frames]:
        """Frames as the library finds them: not always those that sequential decoding shows."""
        numbers = sorted({number for cut in cuts for number in cut.numbers})
        _check_pixels(video.path, index.height, index.width, self.max_pixels)
        if index.mirrored:
            raise VideoError(video.path, f"its display is mirrored, and {self.name} does not mirror: read it with pyav")
        try:
            _check_container(video.path.absolute())
            frames = self._frames(video.path.absolute(), numbers, index)
        except Exception as error:  # decord and torchcodec have errors of their own
            if isinstance(error, VideoError):
                raise
            said = str(error).strip().splitlines()
            raise VideoError(
                video.path, f"{type(self).name} cannot read it ({said[0] if said else 'no reason'})"
            ) from error
        if frames.shape[-2:] != (index.height, index.width):
            size = f"{frames.shape[-2]}x{frames.shape[-1]}, not {index.height}x{index.width}"
            raise VideoError(video.path, f"{self.name} shows it as {size} as its display matrix asks", "broken")
        return cuts_of(frames, cuts, numbers=numbers, times=index.times)

    name: str

    def _frames(self, path: Path, numbers: list[int], index: VideoIndex) -> Tensor:  # uint8 (T, 3, H, W)
        raise NotImplementedError


class DecordReader(_WholeFrameReader):
    """decord: wrong frames of MPEG-TS, edit lists and AVI with B-frames; it can hang, so give it workers."""

    name = "decord"

    def _frames(self, path: Path, numbers: list[int], index: VideoIndex) -> Tensor:
        decord = require("decord")
        video = decord.VideoReader(str(path), num_threads=1)
        _same_count(path, "decord", len(video), index)
        return torch.from_numpy(video.get_batch(numbers).asnumpy()).permute(0, 3, 1, 2)


class TorchCodecReader(_WholeFrameReader):
    """torchcodec in its exact mode, which is not exact for MPEG-TS and AVI with B-frames."""

    name = "torchcodec"

    def _frames(self, path: Path, numbers: list[int], index: VideoIndex) -> Tensor:
        decoders = require("torchcodec").decoders
        video = decoders.VideoDecoder(str(path), seek_mode="exact", num_ffmpeg_threads=1)
        _same_count(path, "torchcodec", len(video), index)
        frames: Tensor = video.get_frames_at(numbers).data
        # Whether it applies rotation differs between versions.
        upright = frames.shape[-2:] == (index.height, index.width)
        return frames if upright else torch.rot90(frames, index.rotation // 90, dims=(2, 3))


class PictureReader:
    """A still image as a video of one frame, or a folder of them in the order of the numbers in their names
    (`img_00001.jpg`, ...)."""

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels

    def scan(self, video: Video) -> VideoIndex:
        """As many frames as the list says; a picture too few is an error, more are left out."""
        files = _images(video.path)
        listed = len(files) if video.frames is None else video.frames
        if not files:
            raise VideoError(video.path, f"the folder holds no pictures ({', '.join(IMAGE_SUFFIXES)})", "no frames")
        if listed > len(files):
            there = f"the folder holds {len(files)}" if video.path.is_dir() else "a picture is one"
            raise VideoError(video.path, f"the list says {listed} frames, {there}", "broken")
        first = self._picture(video.path, files[0])
        number = np.arange(listed)
        return VideoIndex(
            pts=number,
            packets=number,
            key_pts=number,
            key_packets=number,
            last_ticks=1,
            time_base=Fraction(1, IMAGES_PER_SECOND),
            height=first.shape[1],
            width=first.shape[2],
            rotation=0,
            access="count",
        )

    def read(self, video: Video, cuts: Sequence[Cut], *, index: VideoIndex) -> list[Frames]:
        """Decodes the pictures that are asked for."""
        files = _images(video.path)
        numbers = sorted({number for cut in cuts for number in cut.numbers})
        if numbers and numbers[-1] >= len(files):
            raise VideoError(video.path, f"frame {numbers[-1]} is wanted, and there are {len(files)}", "broken")
        pictures = [self._picture(video.path, files[number]) for number in numbers]
        for number, picture in zip(numbers, pictures):
            if picture.shape[1:] != (index.height, index.width):
                size = f"{picture.shape[1]}x{picture.shape[2]}, not {index.height}x{index.width}"
                raise VideoError(video.path, f"{files[number].name} is {size} as the first one", "broken")
        empty = torch.empty((0, 3, index.height, index.width), dtype=torch.uint8)
        return cuts_of(torch.stack(pictures) if pictures else empty, cuts, numbers=numbers, times=index.times)

    def _picture(self, path: Path, file: Path) -> Tensor:  # uint8 (3, H, W)
        try:
            with file.open("rb") as content, Image.open(content, formats=_IMAGE_FORMATS) as image:
                # The header tells the size: nothing is allocated before.
                _check_pixels(path, image.height, image.width, self.max_pixels, file.name)
                pixels = _rgb(image)
                turned = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
                upright = pixels if turned is None else pixels.transpose(turned)
                return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
        except VideoError:
            raise
        except (FileNotFoundError, IsADirectoryError) as error:
            raise VideoError(path, "there is no such file", "missing") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # far above the limit
            reason = (
                f"{file.name} has more pixels than the limit of {self.max_pixels:,} or than Pillow decodes ({error})"
            )
            raise VideoError(path, reason, "too large") from error
        except Exception as error:  # of a broken or hostile picture Pillow raises errors of nearly any type
            fault: Fault = "unreadable" if file == path else "broken"
            said = (str(error).strip().splitlines() or [""])[0]
            reason = f"{file.name} is no picture that can be decoded ({type(error).__name__}: {said[:200]})"
            raise VideoError(path, reason, fault) from error


def cuts_of(frames: Tensor, cuts: Sequence[Cut], *, numbers: Sequence[int], times: NDArray[np.float64]) -> list[Frames]:
    """The clips out of whole frames: uint8 (T, 3, H, W), those with `numbers`, in rising order."""
    found = []
    for cut in cuts:
        wanted = np.asarray(cut.numbers, dtype=np.int64)
        places = torch.from_numpy(np.searchsorted(np.asarray(numbers), wanted))
        found.append(Frames(cut_out(frames[places], cut), torch.from_numpy(times[wanted])))
    return found


def require(backend: Backend) -> ModuleType:
    """The backend's module.

    Raises:
        ValueError: if it can't be imported, with the reason and what to install.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"no reader {backend!r}; there are {', '.join(get_args(Backend))}")
    try:
        if backend == "torchcodec":
            importlib.import_module("torchcodec.decoders")
        return importlib.import_module("av" if backend == "pyav" else backend)
    except (ImportError, OSError, RuntimeError) as error:
        install = {
            "torchcodec": "pip install 'videokd[torchcodec]', and FFmpeg's libraries from your system's packages",
            "decord": "pip install decord2, where there is a wheel for it",
        }
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{backend} can't be used here ({reason}); {install.get(backend, 'pip install av')}"
        ) from error


@lru_cache(maxsize=4096)
def _check_container(path: Path) -> None:
    """Raises FFmpeg's error for a file that is no video itself: these libraries would follow a playlist."""
    open_container(path).close()


def _same_count(path: Path, name: str, counted: int, index: VideoIndex) -> None:
    if counted != index.num_frames:
        raise VideoError(path, f"{name} counts {counted} frames where decoding shows {index.num_frames}", "broken")


@lru_cache(maxsize=1024)
def _images(path: Path) -> list[Path]:
    """The pictures of a folder, in the order of their numbers (2 before 10), or the picture that the path is."""
    if not path.is_dir():
        return [path]
    try:
        found = [child for child in path.iterdir() if is_picture(child)]
    except OSError as error:
        raise VideoError(path, f"the folder can't be listed ({error.strerror})", "missing") from error

    def by_number(file: Path) -> list[Any]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]

    return sorted(found, key=by_number)


def _check_pixels(path: Path, height: int, width: int, limit: int, name: str = "a frame") -> None:
    if height * width > limit:
        reason = f"{name} has {width} x {height} pixels, and the limit is {limit:,} pixels (max_pixels)"
        raise VideoError(path, f"{reason}: raise it, make the video smaller, or drop it from the data set", "too large")


def _rgb(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB; what is transparent keeps its colour."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(grey, 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow's own advice
    return image.convert("RGB")
