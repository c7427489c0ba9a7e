"""Reads packed sets: tar shards, local or at a URL, with an index that says where every video and frame lies."""

import hashlib
import mmap
import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from av import CodecContext, FFmpegError, Packet
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from videokd.clips import reading
from videokd.clips.manifest import Packed, Video, is_url
from videokd.clips.pictures import MAX_PIXELS, Box, Canvas, Cut, cut_out, places
from videokd.clips.reading import Frames, VideoError, VideoIndex
from videokd.clips.table import FrameTable, index_of
from videokd.disk import whole_file
from videokd.text import has_secret, redacted


class ShardReader:
    """Reads a video of a packed set, in any of its formats."""

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels

    def scan(self, video: Video) -> VideoIndex:
        """From the set's frame table, which every packed set has."""
        row = _row(video)
        try:
            return index_of(row)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise _damaged(video) from error

    def read(self, video: Video, cuts: Sequence[Cut], *, index: VideoIndex) -> list[Frames]:
        """Reads no more of the shard than the video, or than the frames where each can be found."""
        packed = _packed(video)
        if index.height * index.width > self.max_pixels:
            size = f"its frames have {index.width} x {index.height} pixels"
            limit = f"the limit is {self.max_pixels:,} pixels (max_pixels)"
            reason = f"{size}, and {limit}: raise it, make the video smaller, or drop it from the data set"
            raise VideoError(video.path, reason, "too large")
        if packed.format == "mp4":
            data = _bytes(video, packed.offset, packed.size)
            return reading.read_cuts(video.path, cuts, index=index, data=data, max_pixels=self.max_pixels)
        found = []
        for cut, frames in zip(
            cuts, _jpeg(video, cuts, index) if packed.format == "jpeg" else _raw(video, cuts, index)
        ):
            found.append(Frames(frames, torch.from_numpy(index.times[np.asarray(cut.numbers, dtype=np.int64)])))
        return found


def local_index(url: str) -> Path:
    """A copy of a remote set's index.jsonl, with its frame table beside it; fetched again only if it changed.

    Raises:
        ValueError: if there is none, the package that knows the URL's protocol is not installed, or the URL holds a
            secret.
    """
    if has_secret(url):
        raise ValueError(
            f"{redacted(url)}: a URL with a password or a query is not taken, since recipes and logs would keep it. "
            "Write the secret into fsspec's configuration (see data/packed.md), and name the URL without it"
        )
    try:
        files, path = fsspec.core.url_to_fs(url)
        state = f"{url} {files.checksum(path)}"
        folder = _cache() / hashlib.blake2b(state.encode(), digest_size=12).hexdigest()
        for name in ("index.frames", "index.jsonl"):
            if not (folder / name).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                with (
                    files.open(path.removesuffix("index.jsonl") + name, "rb") as source,
                    whole_file(folder / name, shared=True) as copy,
                ):
                    shutil.copyfileobj(source, copy)
    # Without their causes: messages of other packages may hold what is kept out of this one.
    except ImportError as error:
        raise ValueError(f"{url} can't be read ({redacted(str(error))}): pip install {_package(url)}") from None
    except ValueError as error:  # no such protocol
        raise ValueError(f"{url} can't be read: {redacted(str(error))}") from None
    except Exception as error:  # each protocol has errors of its own
        said = redacted(str(error)) or type(error).__name__
        raise ValueError(f"{url} is no index of a packed set: {said}") from None
    return folder / "index.jsonl"


def _package(url: str) -> str:
    """What to install for the protocol of a URL."""
    protocol = url.rpartition("::")[2].partition("://")[0].lower()
    return _PACKAGES.get(protocol, f"the package that reads {protocol}://")


_PACKAGES = {
    **dict.fromkeys(("http", "https"), "'videokd[http]'"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "hf": "huggingface_hub",
    "webhdfs": "requests",
}


def _jpeg(video: Video, cuts: Sequence[Cut], index: VideoIndex) -> list[torch.Tensor]:
    packed, offsets = _packed(video), _offsets(video, index)
    canvases = [_canvas(cut, index) for cut in cuts]
    numbers = sorted({number for cut in cuts for number in cut.numbers})
    data, first = b"", 0
    if numbers and is_url(packed.shard):  # one request for all from the first to the last
        first = int(offsets[numbers[0], 0])
        data = _bytes(video, packed.offset + first, int(offsets[numbers[-1]].sum()) - first)
    decoder = CodecContext.create("mjpeg", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    # All pictures have the index's size; FFmpeg adds margins to it when it allocates.
    decoder.options = {"max_pixels": str(2 * index.height * index.width + (1 << 16))}
    for number in numbers:
        start, size = offsets[number].tolist()
        picture = data[start - first : start - first + size] if data else _bytes(video, packed.offset + start, size)
        try:
            (frame,) = decoder.decode(Packet(picture))
        except (FFmpegError, ValueError) as error:
            raise VideoError(video.path, f"frame {number} of its pictures does not decode", "broken") from error
        if frame.is_corrupt:
            raise VideoError(video.path, f"the decoder flags frame {number} of its pictures as damaged", "damaged")
        for canvas in canvases:
            canvas.paint(number, frame)
    return [canvas.frames() for canvas in canvases]


def _canvas(cut: Cut, index: VideoIndex) -> Canvas:
    return Canvas(cut, names=np.arange(index.num_frames), size=(index.height, index.width))


def _raw(video: Video, cuts: Sequence[Cut], index: VideoIndex) -> list[torch.Tensor]:
    packed, shape = _packed(video), (index.height, index.width, 3)
    frame = int(np.prod(shape))
    start = packed.offset + packed.size - index.num_frames * frame  # what comes before is npy's header
    _check_inside(video, start, index.num_frames * frame)
    found = []
    for cut in cuts:
        box = cut.box or Box(0, 0, index.height, index.width)
        if min(box) < 0 or box.top + box.height > index.height or box.left + box.width > index.width:
            raise ValueError(f"{box} does not lie in a picture {index.height} pixels high and {index.width} wide")
        numbers = np.asarray(cut.numbers, dtype=np.int64)
        if is_url(packed.shard):
            low, high = (int(numbers.min()), int(numbers.max()) + 1) if len(numbers) else (0, 0)
            data = bytearray(_bytes(video, start + low * frame, (high - low) * frame))
            pictures, numbers = np.frombuffer(data, np.uint8).reshape(-1, *shape), numbers - low
        else:
            mapped = _mapped(packed.shard, packed.shard_bytes)
            every = np.frombuffer(mapped, np.uint8, count=index.num_frames * frame, offset=start)
            pictures = every.reshape(index.num_frames, *shape)
        part = pictures[:, box.top : box.top + box.height, box.left : box.left + box.width]
        wanted = torch.from_numpy(part)[places(numbers)].permute(0, 3, 1, 2)
        found.append(cut_out(wanted, Cut((), None, cut.size)))
    return found


def _bytes(video: Video, start: int, size: int) -> bytes:
    """A stretch of the video's shard."""
    packed = _packed(video)
    _check_inside(video, start, size)
    try:
        if is_url(packed.shard):
            files, path = _remote(packed.shard)
            data: bytes = files.cat_file(path, start=start, end=start + size)
        else:
            data = _mapped(packed.shard, packed.shard_bytes)[start : start + size]
    except OSError as error:
        raise VideoError(video.path, f"its shard can't be read ({redacted(str(error))})", "missing") from None
    if len(data) < size:
        raise VideoError(video.path, f"its shard ends after {len(data)} of its {size} bytes")
    return data


def _check_inside(video: Video, start: int, size: int) -> None:
    """Whether these bytes of the shard are the video's own."""
    packed = _packed(video)
    if size < 0 or start < packed.offset or start + size > packed.offset + packed.size:
        raise _damaged(video)


def _offsets(video: Video, index: VideoIndex) -> NDArray[np.int64]:
    """Where each frame's picture lies in the video's bytes, and how long it is: (N, 2)."""
    found = _row(video).get("offsets", np.empty(0, np.int64))
    if found.shape != (2 * index.num_frames,) or (found < 0).any():
        raise _damaged(video)
    pairs: NDArray[np.int64] = found.reshape(-1, 2)
    return pairs


def _damaged(video: Video) -> VideoError:
    return VideoError(
        video.path, f"{_packed(video).table} does not say where its frames are: pack the set again", "broken"
    )


@lru_cache(maxsize=64)
def _mapped(shard: str, num_bytes: int) -> mmap.mmap:
    with open(shard, "rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != num_bytes:
            raise VideoError(shard, f"the shard has {found} bytes and was packed with {num_bytes}: it is not whole")
        # A private map: frames can be handed out as they lie, and who writes to them writes to a copy.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


@lru_cache(maxsize=64)
def _remote(shard: str) -> tuple[Any, str]:
    files, path = fsspec.core.url_to_fs(shard)
    return files, path


def _row(video: Video) -> dict[str, Any]:
    row = _table(_packed(video).table).row(video.id)
    if row is None:
        raise VideoError(video.path, f"{_packed(video).table} does not know it", "missing")
    return row


@lru_cache(maxsize=8)
def _table(path: str) -> FrameTable:
    return FrameTable(Path(path))


def _packed(video: Video) -> Packed:
    assert video.packed is not None, "only packed videos come here"
    return video.packed


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videokd"
