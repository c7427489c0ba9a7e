"""Writes packed sets: the videos of a list, made smaller and faster to read, in tar shards with an index."""

import io
import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videokd.clips import reading, table
from videokd.clips.backends import is_video_file, reader_of
from videokd.clips.dataset import video_index
from videokd.clips.hashes import part_hash
from videokd.clips.manifest import Manifest, Packed, Video, row_of, write_rows
from videokd.clips.pictures import Cut, resized
from videokd.clips.reading import VideoError, VideoIndex
from videokd.clips.table import FrameTable
from videokd.clips.workers import Finished, Workers
from videokd.disk import whole_file
from videokd.interruption import deferred
from videokd.json_files import read_lines

Format = Literal["mp4", "jpeg", "raw"]
"""H.264 with a key frame every 16 and no B-frames; a JPEG for every frame; pixels as they are, memory-mapped."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How videos are packed."""

    format: Format
    short_side: int | None = None
    """Pixels; None keeps the size, and nothing is enlarged."""
    quality: int | None = None
    """mp4: x264's constant rate factor, lower is better, 20 by default; jpeg: from 1 to 95, 90 by default."""

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel, got {self.short_side}")
        low, high = {"mp4": (0, 51), "jpeg": (1, 95), "raw": (0, -1)}[self.format]
        if self.quality is not None and not low <= self.quality <= high:
            known = f"lies in [{low}, {high}]" if low <= high else "is not lost"
            raise ValueError(f"quality of {self.format} {known}, got {self.quality}")


@dataclass(frozen=True)
class _Encoded:
    """A video as it goes into a shard."""

    members: list[tuple[str, bytes]]  # (suffix of the name in the tar, content)
    index: VideoIndex
    facts: dict[str, Any]


def pack(
    manifest: Manifest,
    out: Path,
    packing: Packing,
    *,
    shard_mb: int = 512,
    workers: int = 2,
    time_limit: float = 600.0,
    on_bad_video: Literal["error", "skip"] = "error",
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """Packs the videos of a list into `out`, in the list's order; returns why some are missing, a sentence each.

    `out` gets shards (000000.tar, ...), index.jsonl, which `read_manifest` reads, and index.frames. In a shard every
    video is a sample as `webdataset` reads them: NUMBER.json with what is known of it, and NUMBER.mp4, NUMBER.npy, or
    NUMBER.00000.jpg and so on. Shards appear whole, and the index when all are there: what was stopped goes on.

    Args:
        manifest: which videos.
        out: folder of the packed set.
        packing: how.
        shard_mb: a shard is closed when it has grown to this size.
        workers: processes that encode; each can be killed.
        time_limit: seconds for a video.
        on_bad_video: stop at a video that can't be read, or leave it out.
        advance: called for every video done.

    Raises:
        ValueError: for a video that can't be read, or if `out` holds a set that was packed otherwise.
    """
    if (out / "index.jsonl").exists():
        raise ValueError(f"{out} holds a packed set already: remove it, or name another folder")
    out.mkdir(parents=True, exist_ok=True)
    done, shard = _finished_shards(out, packing)
    left = [video for video in manifest.videos if video.id not in done]
    for _ in range(len(manifest.videos) - len(left)):
        advance()
    encoded = _encoded(
        left, _Encode(packing, FrameTable.beside(manifest.source), manifest.max_pixels), workers, time_limit
    )
    waiting = next(encoded, None)
    while waiting is not None:
        with _Shard(out, shard, packing) as tar:
            while waiting is not None and tar.num_bytes < shard_mb * 1_000_000:
                video, result = waiting
                if isinstance(result, str):
                    if on_bad_video == "error":
                        raise ValueError(f"{video.path}: {result}. To leave such videos out: --on-bad-video skip")
                    tar.leave_out(video, result)
                else:
                    tar.add(video, result)
                advance()
                waiting = next(encoded, None)
        shard += 1
    return _write_index(manifest, out, packing)


class _Encode:
    """What a worker does with a video."""

    def __init__(self, packing: Packing, known: FrameTable | None, max_pixels: int) -> None:
        self._packing, self._known, self._max_pixels = packing, known, max_pixels

    def __call__(self, video: Video) -> "_Encoded | str":
        try:
            if video.error is not None:
                return video.error
            index = video_index(video, self._known, max_pixels=self._max_pixels)
            size = (index.height, index.width)
            if self._packing.short_side is not None:
                size = resized(size, min(self._packing.short_side, *size))
            members = {"mp4": _mp4, "jpeg": _jpegs, "raw": _npy}[self._packing.format](
                _pictures(video, index, size, self._max_pixels), index, size, self._packing.quality
            )
        except VideoError as error:
            return error.reason
        number = np.arange(index.num_frames)
        here = replace(
            index,
            packets=number,
            key_pts=index.pts,
            key_packets=number,
            height=size[0],
            width=size[1],
            rotation=0,
            mirrored=False,
            access="count",
        )
        if self._packing.format == "mp4":
            here = reading.scan(video.path, data=members[0][1])
            if here.num_frames != index.num_frames or not np.allclose(
                np.diff(here.times), np.diff(index.times), atol=1e-4
            ):
                return "its frame times can't be kept in an mp4"
        facts = {"frames": here.num_frames, "fps": round(here.fps, 3), "seconds": round(here.seconds, 3)}
        upright = {"width": size[1], "height": size[0], "rotation": 0, "mirrored": False, "damaged": 0}
        return _Encoded(members, here, facts | upright)


def _pictures(video: Video, index: VideoIndex, size: tuple[int, int], max_pixels: int) -> Iterator[NDArray[np.uint8]]:
    """Every frame, upright, (H, W, 3)."""
    if is_video_file(video):
        cut = Cut(range(index.num_frames), size=size)
        pictures = reading.walk(video.path, cut, index=index, max_pixels=max_pixels)
    else:
        reader = reader_of(video, max_pixels=max_pixels)
        pictures = (
            reader.read(video, [Cut([number], size=size)], index=index)[0].frames[0]
            for number in range(index.num_frames)
        )
    for picture in pictures:
        yield np.ascontiguousarray(picture.permute(1, 2, 0).numpy())


def _mp4(
    pictures: Iterator[NDArray[np.uint8]], index: VideoIndex, size: tuple[int, int], quality: int | None
) -> list[tuple[str, bytes]]:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        options = {"g": "16", "bf": "0", "tune": "fastdecode", "crf": str(20 if quality is None else quality)}
        stream = container.add_stream("libx264", rate=Fraction(index.fps).limit_denominator(1001), options=options)
        stream.height, stream.width = size
        # Only even sizes have colours at half the resolution.
        stream.pix_fmt = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = index.time_base
        for picture, pts in zip(pictures, index.pts.tolist()):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = pts, index.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return [("mp4", content.getvalue())]


def _jpegs(
    pictures: Iterator[NDArray[np.uint8]], index: VideoIndex, size: tuple[int, int], quality: int | None
) -> list[tuple[str, bytes]]:
    members = []
    for number, picture in enumerate(pictures):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "JPEG", quality=90 if quality is None else quality, subsampling="4:2:0")
        members.append((f"{number:05d}.jpg", content.getvalue()))
    return members


def _npy(
    pictures: Iterator[NDArray[np.uint8]], index: VideoIndex, size: tuple[int, int], quality: int | None
) -> list[tuple[str, bytes]]:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "|u1", "fortran_order": False, "shape": (index.num_frames, *size, 3)}
    )
    for picture in pictures:
        content.write(picture.tobytes())
    return [("npy", content.getvalue())]


def _encoded(
    videos: list[Video], encode: _Encode, workers: int, time_limit: float
) -> Iterator[tuple[Video, _Encoded | str]]:
    """The videos in order, encoded a few at a time: what is done early waits, so few are begun."""
    with Workers(encode, workers=workers, time_limit=time_limit) as pool:
        to_submit, to_yield = deque(videos), deque(videos)
        done: dict[str, Finished[Video, _Encoded | str]] = {}
        while to_yield:
            while to_submit and len(to_yield) - len(to_submit) < 2 * workers:
                pool.submit(to_submit.popleft())
            while to_yield[0].id not in done:
                done |= {one.task.id: one for one in pool.wait()}
            one = done.pop(to_yield.popleft().id)
            if one.failure is not None and one.failure.kind == "raised":
                raise RuntimeError(f"{one.task.path}: {one.failure.reason}")
            yield one.task, one.result if one.result is not None else one.failure.reason if one.failure else ""


class _Shard:
    """One tar file in the making: it gets its name when it is whole, and its rows beside it after that."""

    def __init__(self, out: Path, number: int, packing: Packing) -> None:
        self.path = out / f"{number:06d}.tar"
        self._packing = packing
        self._rows: list[dict[str, Any]] = []
        self._first = number * 1_000_000  # samples are numbered through the set, whatever the shards hold

    def __enter__(self) -> "_Shard":
        self._whole = whole_file(self.path)
        self._file = self._whole.__enter__()
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    @property
    def num_bytes(self) -> int:
        return self._file.tell()

    def add(self, video: Video, encoded: _Encoded) -> None:
        key = f"{self._first + len(self._rows):012d}"
        known = {"id": video.id, "label": list(video.labels) or video.label, "split": video.split, "group": video.group}
        self._member(f"{key}.json", json.dumps(known | encoded.facts).encode())
        places = [(self._member(f"{key}.{suffix}", content), len(content)) for suffix, content in encoded.members]
        offset, (last, last_size) = places[0][0], places[-1]
        size = last + last_size - offset
        columns = dict(table.row_of(encoded.index, num_bytes=size))
        if self._packing.format == "jpeg":
            columns["offsets"] = np.array(
                [(start - offset, length) for start, length in places], dtype=np.int64
            ).ravel()
        place = {"format": self._packing.format, "offset": offset, "size": size}
        text = table.to_text(columns)
        self._rows.append({"id": video.id, "facts": encoded.facts, "packed": place, "columns": text})

    def leave_out(self, video: Video, reason: str) -> None:
        self._rows.append({"id": video.id, "left_out": reason})

    def _member(self, name: str, content: bytes) -> int:
        """Where in the shard the content lies."""
        start = self._file.tell()
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        return start + tarfile.BLOCKSIZE

    @deferred()
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._whole.__exit__(kind, error, trace)
            return
        self._tar.close()
        num_bytes = self._file.tell()
        self._whole.__exit__(None, None, None)
        for row in self._rows:
            if "packed" in row:
                row["hash"] = part_hash(self.path, row["packed"]["offset"], row["packed"]["size"])
        head = {"packing": asdict(self._packing), "shard": self.path.name, "shard_bytes": num_bytes}
        write_rows([head, *self._rows], _rows_of(self.path))


def _rows_of(shard: Path) -> Path:
    return shard.with_suffix(".rows")


def _finished_shards(out: Path, packing: Packing) -> tuple[set[str], int]:
    """The ids that an earlier, stopped packing has dealt with, and the next shard's number."""
    done: set[str] = set()
    number = 0
    for rows in sorted(out.glob("*.rows")):
        head, *videos = read_lines(rows)
        if head["packing"] != asdict(packing):
            raise ValueError(
                f"{out} holds shards that were packed as {head['packing']}: remove them, or name another folder"
            )
        shard = out / head["shard"]
        if shard.is_file() and shard.stat().st_size == head["shard_bytes"]:
            done.update(video["id"] for video in videos)
            number = max(number, int(shard.stem) + 1)
        else:
            rows.unlink()
    return done, number


@deferred()
def _write_index(manifest: Manifest, out: Path, packing: Packing) -> list[str]:
    """index.frames first, then index.jsonl: who finds this finds all."""
    found: dict[str, dict[str, Any]] = {}
    shards = sorted(out.glob("*.rows"))
    for rows in shards:
        head, *in_shard = read_lines(rows)
        for line in in_shard:
            found[line["id"]] = line | {"shard": head["shard"], "shard_bytes": head["shard_bytes"]}
    lines, columns, left_out = [], [], []
    for video in manifest.videos:
        row = found[video.id]
        if "left_out" in row:
            left_out.append(f"{video.path}: {row['left_out']}")
            continue
        packed = Packed(
            shard=str(out / row["shard"]),
            shard_bytes=row["shard_bytes"],
            table=str(out / "index.frames"),
            **row["packed"],
        )
        facts = {**(video.facts or {}), **row["facts"]}
        facts["hash"] = row.get("hash")  # of what is packed, not of the file that it was made from
        frames = facts.pop("frames")
        lines.append(row_of(replace(video, packed=packed, facts=facts, frames=frames), folder=out))
        columns.append((video.id, table.from_text(row["columns"])))
    if not lines:
        raise ValueError(f"none of the {len(manifest.videos)} videos could be packed; the first: {left_out[0]}")
    table.write_table(out / "index.frames", columns)
    write_rows(lines, out / "index.jsonl")
    for rows in shards:
        rows.unlink()
    return left_out
