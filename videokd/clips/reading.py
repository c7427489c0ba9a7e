"""Exact frames of a video by number, decoding only what they need.

`scan` lists a video's packets once; `read` plans with that list. Wanted here are frames 6 and 10:

    packets    I0 P4 b1 b2 b3 P8 b5 b6 b7 | I9 P13 b10 b11 b12       (b: no other frame refers to it)
    decoded    I0 P4          P8    b6    ^ I9 P13 b10
                                          a seek, as it saves a packet

A frame that no other refers to is skipped unless it is wanted; all others are decoded as usual, so the wanted ones
are bit for bit those of plain sequential decoding.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from videokd.clips.container import open_container
from videokd.clips.pictures import Canvas, Cut, rotation_of, turned

__all__ = ["Frames", "VideoError", "VideoIndex", "num_decodable", "read", "read_cuts", "scan", "walk"]

Fault = Literal["missing", "empty", "unreadable", "no video", "no decoder", "no frames", "broken", "slow", "crash"]
"""What can be wrong with a video: "broken" shows some of its frames, "unreadable" none; "slow" and "crash" are those
of its worker process."""

Access = Literal["seek", "start", "count"]


class VideoError(ValueError):
    """A video that cannot be read."""

    def __init__(self, path: str | Path, reason: str, fault: Fault = "unreadable") -> None:
        super().__init__(str(path), reason, fault)  # all in args, so that it survives pickling
        self.path = Path(path)
        self.reason = reason
        self.fault: Fault = fault

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}. Replace or re-encode the file, or drop it from the data set."


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """Where the frames of a video are: made by `scan`, independent of the file's path, cheap to keep."""

    pts: NDArray[np.int64]  # (N,) presentation times in ticks, increasing: frame number n is shown at pts[n]
    packets: NDArray[np.int64]  # (N,) place of each frame's packet in the file's decoding order
    key_pts: NDArray[np.int64]  # (K,) presentation times of the key frames, hidden ones included
    key_packets: NDArray[np.int64]  # (K,) their packets' places in decoding order
    last_ticks: int
    """How long the last frame is shown."""
    time_base: Fraction
    """Seconds in a tick."""
    height: int
    """Pixels as displayed, after rotation; the sample aspect ratio is not applied."""
    width: int
    rotation: int
    """Degrees counterclockwise, 0, 90, 180 or 270, from the stored picture to the displayed one; `read` applies it."""
    access: Access
    """How frames are found: by exact seeks to key frames; from the start by pts, where the container's seek is not
    exact; from the start by counting, where pts do not tell frames apart."""

    @property
    def num_frames(self) -> int:
        """Frames that decoding shows."""
        return len(self.pts)

    @property
    def times(self) -> NDArray[np.float64]:
        """Seconds at which each frame is shown, as stored: the first is often, not always, 0."""
        return self.pts * self.time_base.numerator / self.time_base.denominator

    @property
    def seconds(self) -> float:
        """Duration from the first frame's appearance to the last one's end."""
        return float((int(self.pts[-1] - self.pts[0]) + self.last_ticks) * self.time_base)

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self.num_frames / self.seconds

    def numbers_at(self, seconds: ArrayLike) -> NDArray[np.int64]:
        """Numbers of the frames shown at these seconds, as `times` counts them: right for a variable frame rate too.

        Raises:
            ValueError: for a time before the first frame or after the last one's end.
        """
        asked = np.asarray(seconds, dtype=np.float64)
        times = self.times
        # A time that was itself read off a frame may be a rounding error early.
        slack = 1e-6
        wrong = asked[(asked < times[0] - slack) | (asked >= times[0] + self.seconds)]
        if wrong.size:
            first, last = float(times[0]), float(times[0] + self.seconds)
            raise ValueError(f"no frame is shown at {wrong.flat[0]:g} s: the video runs from {first:g} to {last:g} s")
        return np.maximum(np.searchsorted(times, asked + slack, side="right") - 1, 0)


@dataclass(frozen=True)
class Frames:
    """Frames of one video in the order asked for."""

    frames: Tensor  # uint8 (T, 3, H, W), RGB; channels lie last in memory, as swscale writes them
    times: Tensor  # float64 (T,), seconds in the video


def scan(path: str | Path, *, data: bytes | None = None) -> VideoIndex:
    """The index of a video: from its packets alone where they can be trusted, else by decoding it once.

    Trusted are MP4, MOV, Matroska and WebM files of codecs with one shown frame to a packet. In the others (AVI,
    MPEG-TS, ...) packets may hold no frame or lack their pts: there only the decoder knows the frames.
    `data` is the file's content, where it is no file of its own.

    Raises:
        VideoError: for a video that can't be read.
    """
    with _opened(Path(path), data) as video:
        index = _index(video)
        frame = next(video.decode_all(), None)
        if frame is None:
            raise VideoError(path, f"it lists {index.num_frames} frames, but none decodes", "no frames")
        rotation = rotation_of(frame)
        height, width = turned((frame.height, frame.width), rotation // 90)
        return replace(index, height=height, width=width, rotation=rotation)


def read(
    path: str | Path, numbers: Sequence[int], *, index: VideoIndex | None = None, short_side: int | None = None
) -> Frames:
    """The frames with these numbers, in this order; a number may come twice.

    `index` saves the scan. `short_side` resizes: the shorter side gets that many pixels, the longer one keeps the
    aspect ratio, rounded half up. Where a video changes its picture size midway, all frames get the index's size.
    """
    return read_cuts(path, [Cut(numbers, size=short_side)], index=index)[0]


def read_cuts(
    path: str | Path, cuts: Sequence[Cut], *, index: VideoIndex | None = None, data: bytes | None = None
) -> list[Frames]:
    """Several clips of one video in one go: a frame that two of them share is decoded once.

    Args:
        path: of the video file.
        cuts: what is wanted of it.
        index: of the video; saves the scan.
        data: the file's content, where it is no file of its own; `path` then only names it.

    Raises:
        VideoError: for a video that can't be read.
        ValueError: for a frame number or a box outside of the video.
    """
    cuts = [replace(cut, numbers=[operator.index(number) for number in cut.numbers]) for cut in cuts]
    numbers = sorted({number for cut in cuts for number in cut.numbers})
    if index is None and not numbers:
        index = scan(path, data=data)
    # Without an index the first frame decoded tells the size: the header does not know of rotation.
    size = None if index is None else (index.height, index.width)
    with _opened(Path(path), data) as video:
        if index is None:
            index = _index(video)
        for number in numbers:
            if not 0 <= number < index.num_frames:
                raise ValueError(f"frame number must lie in [0, {index.num_frames}) in {path}, got {number}")
        counts = index.access == "count"
        names = np.arange(index.num_frames) if counts else index.pts  # what tells the decoded frames apart
        canvases = [Canvas(cut, names=names, size=size) for cut in cuts]
        with suppress(av.FFmpegError):  # the fault may be the seek's: decoding from the start decides
            for run in _plan(index, np.array(numbers, dtype=np.int64)):
                _paint(canvases, ((frame.pts, frame) for frame in video.decode_run(run)))
        everything = ((n if counts else frame.pts, frame) for n, frame in enumerate(video.decode_all()))
        decoded = _paint(canvases, everything)
        if any(canvas.missing for canvas in canvases):
            reason = f"{decoded} of its {index.num_frames} frames decode, not all those asked for"
            raise VideoError(path, reason, "broken" if decoded else "no frames")
        times = index.times
        return [
            Frames(canvas.frames(), torch.from_numpy(times[np.array(cut.numbers, dtype=np.int64)]))
            for canvas, cut in zip(canvases, cuts)
        ]


def decode(path: str | Path, cuts: Sequence[Cut], *, index: VideoIndex) -> list[tuple[int | None, VideoFrame]]:
    """The first half of `read_cuts`, for those who time it: the wanted frames, decoded, and nothing made of them.

    Raises:
        VideoError: for a video that can't be read.
    """
    numbers = sorted({number for cut in cuts for number in cut.numbers})
    counts = index.access == "count"
    names = {int(number if counts else index.pts[number]) for number in numbers}
    found: list[tuple[int | None, VideoFrame]] = []
    with _opened(Path(path), None) as video:
        if counts:
            for place, frame in enumerate(video.decode_all()):
                if place in names:
                    found.append((place, frame))
                if len(found) == len(names):
                    break
        for run in _plan(index, np.array(numbers, dtype=np.int64)):
            found += [(frame.pts, frame) for frame in video.decode_run(run) if frame.pts in names]
    return found


def paint(cuts: Sequence[Cut], decoded: Iterable[tuple[int | None, VideoFrame]], *, index: VideoIndex) -> list[Tensor]:
    """The second half of `read_cuts`: pictures uint8 (T, 3, H, W) from what `decode` returned."""
    names = np.arange(index.num_frames) if index.access == "count" else index.pts
    canvases = [Canvas(cut, names=names, size=(index.height, index.width)) for cut in cuts]
    _paint(canvases, decoded)
    return [canvas.frames() for canvas in canvases]


def walk(path: str | Path, cut: Cut, *, index: VideoIndex) -> Iterator[Tensor]:
    """The cut's frames one by one, in one pass, upright: uint8 (3, H, W); `cut.numbers` rise.

    Raises:
        VideoError: where one can't be read.
    """
    numbers = {int(pts): number for number, pts in enumerate(index.pts)}
    wanted = iter(cut.numbers)
    awaited, shown = next(wanted, None), 0
    with _opened(Path(path), None) as video:
        for place, frame in enumerate(video.decode_all() if awaited is not None else ()):
            if awaited == (place if index.access == "count" else numbers.get(-1 if frame.pts is None else frame.pts)):
                canvas = Canvas(
                    replace(cut, numbers=[0]), names=np.zeros(1, np.int64), size=(index.height, index.width)
                )
                canvas.paint(0, frame)
                shown += 1
                yield canvas.frames()[0]
                awaited = next(wanted, None)
                if awaited is None:
                    return
    if awaited is not None:
        reason = f"{shown} of the {len(cut.numbers)} frames that are wanted of its {index.num_frames} decode"
        raise VideoError(path, reason, "broken" if shown else "no frames")


def num_decodable(path: str | Path) -> tuple[int, VideoError | None]:
    """How many frames plain sequential decoding shows, and the fault that ended it, if one did."""
    decoded = 0
    try:
        with _opened(Path(path), None) as video:
            for _ in video.decode_all():
                decoded += 1
    except VideoError as error:
        return decoded, error
    return decoded, None


_SEEK_EXACTLY = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers whose seek to a key frame's pts lands on it, by their demuxer's name."""

_ONE_FRAME_A_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "mjpeg", "ffv1"}
"""Decoders whose every packet shows one frame; elsewhere (VP8's hidden frames, MPEG-4's empty ones) some do not."""

_NO_PTS = -(1 << 62)
_QUICK_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm"}
_QUICK_PROBE = {"probesize": "32", "skip_frame": "all"}
"""MP4 and Matroska headers tell all that a decoder needs; FFmpeg's usual probe would decode a frame to check them."""


class _Video:
    """One opened file and the walks through it."""

    def __init__(self, path: Path, data: bytes | None) -> None:
        self.path = path
        self._data = data
        self._open(quick=path.suffix.lower() in _QUICK_SUFFIXES)

    def _open(self, *, quick: bool) -> None:
        source = self.path if self._data is None else self._data
        self.container: InputContainer = open_container(source, options=_QUICK_PROBE if quick else {})
        self.seeks_exactly = self.container.format.name in _SEEK_EXACTLY
        if quick and not self.seeks_exactly:  # the suffix misled
            self.close()
            return self._open(quick=False)
        self._is_as_opened = not quick
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            self.close()
            if streams:
                raise VideoError(self.path, "FFmpeg has no decoder for its video stream", "no decoder")
            raise VideoError(self.path, "it has no video stream", "no video")
        self.stream = streams[0]
        self.time_base = self.stream.time_base or Fraction(1, av.time_base)
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)  # 25 is FFmpeg's own default
        # One thread: a packet is decoded when it is sent, so skip_frame holds for that packet alone.
        self.stream.codec_context.thread_count = 1

    def _rewind(self) -> None:
        """To the first packet, as FFmpeg's full probe opens the file."""
        if not self._is_as_opened:
            self.close()
            self._open(quick=False)

    def close(self) -> None:
        self.container.close()

    def packets(self) -> "Iterator[Packet[VideoStream]]":
        """Packets from here on in decoding order, without empty ones (PyAV ends with one)."""
        self._is_as_opened = False
        return (packet for packet in self.container.demux(self.stream) if packet.size)

    def decode_all(self) -> Iterator[VideoFrame]:
        """Every frame, by plain sequential decoding: the definition of what is right."""
        self._rewind()
        decoded = 0
        try:
            for packet in chain(self.packets(), [None]):
                for frame in self.stream.codec_context.decode(packet):
                    decoded += 1
                    yield frame
        except av.FFmpegError as error:
            reason = f"decoding fails after {decoded} frames ({error.strerror})"
            raise VideoError(self.path, reason, "broken" if decoded else "no frames") from error

    def decode_run(self, run: "_Run") -> Iterator[VideoFrame]:
        """The frames of one run, among others; stops when the last of them is decoded."""
        if run.seek is None:
            self._rewind()
        else:
            self.container.seek(run.seek, stream=self.stream)
        decoder = self.stream.codec_context
        decoder.open(strict=False)  # before skip_frame is set: dav1d heeds it only here, and then for all packets
        unsent = set(run.pts)
        for packet in self.packets():
            decoder.skip_frame = "DEFAULT" if packet.pts in unsent else "NONREF"
            yield from decoder.decode(packet)
            unsent.discard(packet.pts)
            if not unsent:
                break
        # Frames held back for reordering come out here, sooner than by decoding on.
        yield from decoder.decode(None)


@contextmanager
def _opened(path: Path, data: bytes | None) -> Iterator[_Video]:
    """The opened video, closed in the end; every failure of FFmpeg's becomes a VideoError."""
    if data is None and not path.is_file():
        raise VideoError(path, "it is a directory" if path.is_dir() else "there is no such file", "missing")
    if (path.stat().st_size if data is None else len(data)) == 0:
        raise VideoError(path, "the file is empty", "empty")
    try:
        with closing(_Video(path, data)) as video:
            yield video
    except av.FFmpegError as error:
        raise VideoError(path, f"FFmpeg cannot read it ({error.strerror})") from error


def _index(video: _Video) -> VideoIndex:
    """The video's index; its height, width and rotation are the header's, before any frame is decoded."""
    listed = _index_of_packets(video)
    # Frames shown before the first key frame lack what they refer to, and decoders drop them.
    starts_cleanly = listed.access == "seek" and listed.pts[0] >= listed.key_pts[0]
    trusted = starts_cleanly and video.stream.codec_context.name in _ONE_FRAME_A_PACKET
    return listed if trusted else _confirmed_by_decoding(listed, video)


def _index_of_packets(video: _Video) -> VideoIndex:
    """The index that the packets declare; "count" where their pts do not tell frames apart."""
    rows = [
        (_NO_PTS if p.pts is None else p.pts, p.duration or 0, p.is_keyframe, p.is_discard) for p in video.packets()
    ]
    pts, ticks, is_key, is_discard = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    shown = np.flatnonzero(is_discard == 0)  # an edit list discards its pre-roll: decoded, never shown
    if len(shown) == 0:
        raise VideoError(video.path, "its video stream holds no frames", "no frames")
    packets = shown[np.argsort(pts[shown])]
    keys = np.flatnonzero(is_key)
    access: Access = "start"
    if (pts == _NO_PTS).any() or (np.diff(pts[packets]) == 0).any():
        access = "count"
    elif video.seeks_exactly and is_key[0] and (np.diff(pts[keys]) > 0).all():
        access = "seek"
    return VideoIndex(
        pts=pts[packets],
        packets=packets,
        key_pts=pts[keys],
        key_packets=keys,
        last_ticks=int(ticks[packets[-1]]) or max(1, round(1 / (video.rate * video.time_base))),
        time_base=video.time_base,
        height=video.stream.height,
        width=video.stream.width,
        rotation=0,
        access=access,
    )


def _confirmed_by_decoding(listed: VideoIndex, video: _Video) -> VideoIndex:
    """The index of the frames that decoding shows; "count" unless each is one of those listed."""
    decoded = [_NO_PTS if frame.pts is None else frame.pts for frame in video.decode_all()]
    if not decoded:
        raise VideoError(video.path, "no frame of its video stream decodes", "no frames")
    pts = np.array(decoded, dtype=np.int64)
    has_times = pts[0] != _NO_PTS and bool((np.diff(pts) > 0).all())
    if has_times and listed.access != "count" and np.isin(pts, listed.pts).all():
        return replace(listed, pts=pts, packets=listed.packets[np.isin(listed.pts, pts)])
    if has_times:
        return replace(listed, pts=pts, packets=np.arange(len(pts)), access="count")
    # Without usable pts the frames are taken to be evenly spaced.
    number = np.arange(len(pts))
    return replace(listed, pts=number, packets=number, last_ticks=1, time_base=1 / video.rate, access="count")


@dataclass(frozen=True)
class _Run:
    """Packets to decode in one go."""

    seek: int | None  # the pts of the key frame to start from; None is the file's first packet
    pts: list[int]  # the wanted frames on the way


def _plan(index: VideoIndex, numbers: NDArray[np.int64]) -> list[_Run]:
    """Runs that show these frames: each begins with a seek to a key frame, and goes on where a seek saves nothing."""
    wanted = np.unique(numbers)
    if index.access == "count":
        return []
    pts = index.pts[wanted]
    if index.access == "start":
        return [_Run(None, pts.tolist())]
    # A frame shown before a key frame may refer across it: its key frame is the one shown before it.
    keys = np.maximum(np.searchsorted(index.key_pts, pts, side="right") - 1, 0)
    runs: list[_Run] = []
    last_packet = -1
    for shown_at, packet, key in zip(pts.tolist(), index.packets[wanted].tolist(), keys.tolist()):
        # A seek costs less than decoding a single frame, so any packet it saves is worth it.
        if not runs or index.key_packets[key] > last_packet + 1:
            runs.append(_Run(int(index.key_pts[key]), []))
        runs[-1].pts.append(shown_at)
        last_packet = max(last_packet, packet)
    return runs


def _paint(canvases: "Sequence[Canvas]", frames: Iterable[tuple[int | None, VideoFrame]]) -> int:
    """Put the wanted ones of (name, frame) in place, until none is missing; says how many came by."""
    seen = 0
    for name, frame in frames if any(canvas.missing for canvas in canvases) else ():
        seen += 1
        painted = [canvas.paint(name, frame) for canvas in canvases]
        if any(painted) and not any(canvas.missing for canvas in canvases):
            break
    return seen
