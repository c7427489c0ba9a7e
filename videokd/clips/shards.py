"""Reads packed sets: tar shards, local or at a URL, with an index that says where every video and frame lies."""

import hashlib
import mmap
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from av import CodecContext, FFmpegError, Packet
from av.video.codeccontext import VideoCodecContext

from videokd.clips import reading
from videokd.clips.manifest import Packed, Video, is_url
from videokd.clips.pictures import Box, Canvas, Cut, cut_out, places
from videokd.clips.reading import Frames, VideoError, VideoIndex
from videokd.clips.table import FrameTable, index_of


class ShardReader:
    """Reads a video of a packed set, in any of its formats."""

    def scan(self, video: Video) -> VideoIndex:
        """From the set's frame table, which every packed set has."""
        return index_of(_row(video))

    def read(self, video: Video, cuts: Sequence[Cut], *, index: VideoIndex) -> list[Frames]:
        """Reads no more of the shard than the video, or than the frames where each can be found."""
        packed = _packed(video)
        if packed.format == "mp4":
            data = _bytes(video, packed.offset, packed.size)
            return reading.read_cuts(video.path, cuts, index=index, data=data)
        found = []
        for cut, frames in zip(
            cuts, _jpeg(video, cuts, index) if packed.format == "jpeg" else _raw(video, cuts, index)
        ):
            found.append(Frames(frames, torch.from_numpy(index.times[np.asarray(cut.numbers, dtype=np.int64)])))
        return found


def local_index(url: str) -> Path:
    """A copy of a remote set's index.jsonl, with its frame table beside it; fetched again only if it changed.

    Raises:
        ValueError: if there is none, or the package that knows the URL's protocol is not installed.
    """
    try:
        files, path = fsspec.core.url_to_fs(url)
        state = f"{url} {files.checksum(path)}"
        folder = _cache() / hashlib.blake2b(state.encode(), digest_size=12).hexdigest()
        for name in ("index.frames", "index.jsonl"):
            if not (folder / name).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                partial = folder / f"{name}.partial-{os.getpid()}"
                files.get_file(path.removesuffix("index.jsonl") + name, str(partial))
                partial.replace(folder / name)
    except (ImportError, ValueError) as error:  # fsspec names the package to install
        raise ValueError(f"{url} can't be read: {error}") from error
    except OSError as error:
        raise ValueError(f"{url} is no index of a packed set: {error}") from error
    return folder / "index.jsonl"


def _jpeg(video: Video, cuts: Sequence[Cut], index: VideoIndex) -> list[torch.Tensor]:
    packed, offsets = _packed(video), _row(video)["offsets"].reshape(-1, 2)
    canvases = [_canvas(cut, index) for cut in cuts]
    numbers = sorted({number for cut in cuts for number in cut.numbers})
    data, first = b"", 0
    if numbers and is_url(packed.shard):  # one request for all from the first to the last
        first = int(offsets[numbers[0], 0])
        data = _bytes(video, packed.offset + first, int(offsets[numbers[-1]].sum()) - first)
    decoder = CodecContext.create("mjpeg", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    for number in numbers:
        start, size = offsets[number].tolist()
        picture = data[start - first : start - first + size] if data else _bytes(video, packed.offset + start, size)
        try:
            (frame,) = decoder.decode(Packet(picture))
        except (FFmpegError, ValueError) as error:
            raise VideoError(video.path, f"frame {number} of its pictures does not decode", "broken") from error
        for canvas in canvases:
            canvas.paint(number, frame)
    return [canvas.frames() for canvas in canvases]


def _canvas(cut: Cut, index: VideoIndex) -> Canvas:
    return Canvas(cut, names=np.arange(index.num_frames), size=(index.height, index.width))


def _raw(video: Video, cuts: Sequence[Cut], index: VideoIndex) -> list[torch.Tensor]:
    packed, shape = _packed(video), (index.height, index.width, 3)
    frame = int(np.prod(shape))
    start = packed.offset + packed.size - index.num_frames * frame  # what comes before is npy's header
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
    try:
        if is_url(packed.shard):
            files, path = _remote(packed.shard)
            data: bytes = files.cat_file(path, start=start, end=start + size)
        else:
            data = _mapped(packed.shard, packed.shard_bytes)[start : start + size]
    except OSError as error:
        raise VideoError(video.path, f"its shard can't be read ({error})", "missing") from error
    if len(data) < size:
        raise VideoError(video.path, f"its shard ends after {len(data)} of its {size} bytes")
    return data


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
