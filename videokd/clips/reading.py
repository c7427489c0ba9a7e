"""Exact frames of a video by number, decoding only what they need.

`scan` lists a video's packets once; `read` plans with that list. Wanted here are frames 6 and 10:

    packets    I0 P4 b1 b2 b3 P8 b5 b6 b7 | I9 P13 b10 b11 b12       (b: no other frame refers to it)
    decoded    I0 P4          P8    b6    ^ I9 P13 b10
                                          a seek, as it saves a packet

A frame that no other refers to is skipped unless it is wanted; all others are decoded as usual, so the wanted ones
are bit for bit those of plain sequential decoding.
"""

import heapq
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from videokd.clips.pictures import MAX_PIXELS, Canvas, Cut, orientation_of, turned
from videokd.clips.video_file import MOST_REORDERED, Fault, Run, VideoError, VideoFile, opened

__all__ = [
    "Decoded",
    "Fault",
    "Frames",
    "VideoError",
    "VideoIndex",
    "decode_whole",
    "read",
    "read_cuts",
    "scan",
    "walk",
]

Access = Literal["seek", "start", "count"]


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
    exact; from the start by counting, where pts do not tell frames apart or contradict the order of the frames."""
    mirrored: bool = False
    """Whether left and right are swapped after the rotation; `read` applies it."""

    @property
    def num_frames(self) -> int:
        """Frames that decoding shows."""
        return len(self.pts)

    @property
    def max_pixels(self) -> int:
        """A limit for those who read it later: its own size was within the limit of the scan."""
        return max(MAX_PIXELS, self.height * self.width)

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


def scan(path: str | Path, *, data: bytes | None = None, max_pixels: int = MAX_PIXELS) -> VideoIndex:
    """The index of a video: from its packets alone where they can be trusted, else by decoding it once.

    Trusted are MP4, MOV, Matroska and WebM files of codecs with one shown frame to a packet, if the times of their
    packets fit the order of decoding. In the others (AVI, MPEG-TS, ...) packets may hold no frame or lack their pts:
    there only the decoder knows the frames. Of trusted files the key frames are decoded, and the headers of all other
    frames, so that a file is refused whose decoding fails midway; what only decoding all of it shows (damage within a
    frame that is no key frame) is seen where a clip is read, and by `decode_whole`.

    Args:
        path: of the video file.
        data: the file's content, where it is no file of its own.
        max_pixels: of a frame; a video of larger ones is refused before they are decoded.

    Raises:
        VideoError: for a video that can't be read.
    """
    with opened(Path(path), data, max_pixels) as video:
        index = _index(video)
        frame = next(video.decode_all(), None)
        if frame is None:
            raise VideoError(path, f"it lists {index.num_frames} frames, but none decodes", "no frames")
        turns, mirrored = orientation = orientation_of(frame)
        height, width = turned((frame.height, frame.width), orientation.turns)
        return replace(index, height=height, width=width, rotation=90 * turns, mirrored=mirrored)


def read(
    path: str | Path,
    numbers: Sequence[int],
    *,
    index: VideoIndex | None = None,
    short_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Frames:
    """The frames with these numbers, in this order; a number may come twice.

    `index` saves the scan. `short_side` resizes: the shorter side gets that many pixels, the longer one keeps the
    aspect ratio, rounded half up. Where a video changes its picture size midway, all frames get the index's size.
    """
    return read_cuts(path, [Cut(numbers, size=short_side)], index=index, max_pixels=max_pixels)[0]


def read_cuts(
    path: str | Path,
    cuts: Sequence[Cut],
    *,
    index: VideoIndex | None = None,
    data: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[Frames]:
    """Several clips of one video in one go: a frame that two of them share is decoded once.

    Args:
        path: of the video file.
        cuts: what is wanted of it.
        index: of the video; saves the scan.
        data: the file's content, where it is no file of its own; `path` then only names it.
        max_pixels: of a frame; larger ones are refused before they are decoded.

    Raises:
        VideoError: for a video that can't be read, or frames that the decoder flags as damaged.
        ValueError: for a frame number or a box outside of the video.
    """
    cuts = [replace(cut, numbers=[operator.index(number) for number in cut.numbers]) for cut in cuts]
    numbers = sorted({number for cut in cuts for number in cut.numbers})
    if index is None and not numbers:
        index = scan(path, data=data, max_pixels=max_pixels)
    # Without an index the first frame decoded tells the size: the header does not know of rotation.
    size = None if index is None else (index.height, index.width)
    with opened(Path(path), data, max_pixels) as video:
        if index is None:
            index = _index(video)
        for number in numbers:
            if not 0 <= number < index.num_frames:
                raise ValueError(f"frame number must lie in [0, {index.num_frames}) in {path}, got {number}")
        counts = index.access == "count"
        names = np.arange(index.num_frames) if counts else index.pts  # what tells the decoded frames apart
        canvases = [Canvas(cut, names=names, size=size) for cut in cuts]
        with suppress(av.FFmpegError, VideoError):  # the fault may be the seek's: decoding from the start decides
            for run in _plan(index, np.array(numbers, dtype=np.int64)):
                _paint(canvases, ((frame.pts, frame) for frame in video.undamaged(video.decode_run(run))))
        everything = video.undamaged(video.decode_all())
        decoded = _paint(canvases, ((n if counts else frame.pts, frame) for n, frame in enumerate(everything)))
        if any(canvas.missing for canvas in canvases):
            reason = f"{decoded} of its {index.num_frames} frames decode, not all those asked for"
            raise VideoError(path, reason, "broken" if decoded else "no frames")
        times = index.times
        return [
            Frames(canvas.frames(), torch.from_numpy(times[np.array(cut.numbers, dtype=np.int64)]))
            for canvas, cut in zip(canvases, cuts)
        ]


def decode(
    path: str | Path, cuts: Sequence[Cut], *, index: VideoIndex, max_pixels: int = MAX_PIXELS
) -> list[tuple[int | None, VideoFrame]]:
    """The first half of `read_cuts`, for those who time it: the wanted frames, decoded, and nothing made of them.

    Raises:
        VideoError: for a video that can't be read.
    """
    numbers = sorted({number for cut in cuts for number in cut.numbers})
    counts = index.access == "count"
    names = {int(number if counts else index.pts[number]) for number in numbers}
    found: list[tuple[int | None, VideoFrame]] = []
    with opened(Path(path), None, max_pixels) as video:
        if counts:
            for place, frame in enumerate(video.undamaged(video.decode_all())):
                if place in names:
                    found.append((place, frame))
                if len(found) == len(names):
                    break
        for run in _plan(index, np.array(numbers, dtype=np.int64)):
            frames = video.undamaged(video.decode_run(run))
            found += [(frame.pts, frame) for frame in frames if frame.pts in names]
    return found


def paint(cuts: Sequence[Cut], decoded: Iterable[tuple[int | None, VideoFrame]], *, index: VideoIndex) -> list[Tensor]:
    """The second half of `read_cuts`: pictures uint8 (T, 3, H, W) from what `decode` returned."""
    names = np.arange(index.num_frames) if index.access == "count" else index.pts
    canvases = [Canvas(cut, names=names, size=(index.height, index.width)) for cut in cuts]
    _paint(canvases, decoded)
    return [canvas.frames() for canvas in canvases]


def walk(path: str | Path, cut: Cut, *, index: VideoIndex, max_pixels: int = MAX_PIXELS) -> Iterator[Tensor]:
    """The cut's frames one by one, in one pass, upright: uint8 (3, H, W); `cut.numbers` rise.

    Raises:
        VideoError: where one can't be read, or at the first frame that the decoder flags as damaged.
    """
    numbers = {int(pts): number for number, pts in enumerate(index.pts)}
    wanted = iter(cut.numbers)
    awaited, shown = next(wanted, None), 0
    with opened(Path(path), None, max_pixels) as video:
        for place, frame in enumerate(video.undamaged(video.decode_all()) if awaited is not None else ()):
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


@dataclass(frozen=True)
class Decoded:
    """What plain sequential decoding of a whole video shows."""

    num_frames: int
    num_damaged: int
    """Frames that the decoder flags as corrupt: it concealed what it could not decode."""
    index: VideoIndex | None
    """The given index; frames are counted in it where their times contradict the order in which they are shown."""
    fault: VideoError | None
    """What ended decoding early, or is wrong with its frames; None for a sound video."""


def decode_whole(
    path: str | Path,
    *,
    index: VideoIndex | None = None,
    max_pixels: int = MAX_PIXELS,
    watch: Callable[[int, VideoFrame], None] = lambda number, frame: None,
) -> Decoded:
    """Decode every frame of a video, and compare with what its index lists; `watch` gets each with its number."""
    pts: list[int] = []
    damaged, fault = 0, None
    try:
        with opened(Path(path), None, max_pixels) as video:
            rate = video.rate
            for frame in video.decode_all():
                watch(len(pts), frame)
                pts.append(_NO_PTS if frame.pts is None else frame.pts)
                damaged += frame.is_corrupt
            if index is not None and len(pts) != index.num_frames:
                reason = f"{len(pts)} of the {index.num_frames} frames that it lists decode"
                fault = VideoError(path, reason, "broken")
            elif index is not None and index.access != "count" and pts != index.pts.tolist():
                index = _index_of_decoded(index, pts, rate)
    except VideoError as error:
        fault = error
    if damaged and fault is None:
        reason = f"the decoder flags {damaged} of its {len(pts)} frames as damaged, and those after them may be wrong"
        fault = VideoError(path, reason, "damaged")
    return Decoded(len(pts), damaged, index, fault)


_IN_DECODING_ORDER = {"vp9", "av1", "libdav1d", "mjpeg", "ffv1"}
"""Those of them that show frames in the order in which they are decoded."""

_LONG_GAP = 16
"""Times the usual gap between frames."""

_NO_PTS = -(1 << 62)


def _index(video: VideoFile) -> VideoIndex:
    """The video's index; its height, width and rotation are the header's, before any frame is decoded."""
    may_trust = video.is_listed
    listed = _index_of_packets(video.sounded_packets() if may_trust else video.packets(), video)
    # Frames shown before the first key frame lack what they refer to, and decoders drop them.
    starts_cleanly = listed.access == "seek" and listed.pts[0] >= listed.key_pts[0]
    trusted = may_trust and starts_cleanly and _fits_decoding_order(listed, video)
    return listed if trusted else _confirmed_by_decoding(listed, video)


def _index_of_packets(packets: "Iterable[Packet[VideoStream]]", video: VideoFile) -> VideoIndex:
    """The index that the packets declare; "count" where their pts do not tell frames apart."""
    rows = [(_NO_PTS if p.pts is None else p.pts, p.duration or 0, p.is_keyframe, p.is_discard) for p in packets]
    pts, ticks, is_key, is_discard = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    shown = np.flatnonzero(is_discard == 0)  # an edit list discards its pre-roll: decoded, never shown
    if len(shown) == 0:
        raise VideoError(video.path, "its video stream holds no frames", "no frames")
    order = shown[np.argsort(pts[shown])]
    keys = np.flatnonzero(is_key)
    access: Access = "start"
    if (pts == _NO_PTS).any() or (np.diff(pts[order]) == 0).any():
        access = "count"
    elif video.seeks_exactly and is_key[0] and (np.diff(pts[keys]) > 0).all():
        access = "seek"
    return VideoIndex(
        pts=pts[order],
        packets=order,
        key_pts=pts[keys],
        key_packets=keys,
        last_ticks=int(ticks[order[-1]]) or max(1, round(1 / (video.rate * video.time_base))),
        time_base=video.time_base,
        height=video.stream.height,
        width=video.stream.width,
        rotation=0,
        access=access,
    )


def _fits_decoding_order(index: VideoIndex, video: VideoFile) -> bool:
    """Whether the times of packets can be those of the frames that come out of the decoder.

    A decoder shows frames in an order of its own, whatever their times say. Seen without decoding is a frame that
    would have to wait for, or overtake, more frames than the decoder can hold back; and a long gap in time is doubted
    that is not one in decoding order, or lies so near to an end that a single wrong time could make it.
    `decode_whole` sees all.
    """
    order = index.packets  # (N,) the packet of each frame, in order of time
    decoder = video.stream.codec_context
    if decoder.name in _IN_DECODING_ORDER:
        return bool((np.diff(order) > 0).all())
    shown_at = np.argsort(np.argsort(order))  # (N,) place in decoding order, of each frame in order of time
    places = np.argsort(shown_at)  # (N,) place in order of time, of each frame in decoding order
    overtaken = np.empty(len(places), dtype=np.int64)  # how many frames are decoded before it and shown after it
    latest: list[int] = []  # places of the frames decoded so far that are shown last
    for number, place in enumerate(places.tolist()):
        overtaken[number] = sum(other > place for other in latest)
        heapq.heappush(latest, place)
        if len(latest) > MOST_REORDERED + 1:
            heapq.heappop(latest)
    waiting = places - np.arange(len(places)) + overtaken  # how many are decoded after it and shown before it
    gaps = np.diff(index.pts)
    long = gaps > _LONG_GAP * np.median(gaps) if len(gaps) else np.zeros(0, dtype=bool)
    crossed = np.maximum.accumulate(order)[:-1] > np.minimum.accumulate(order[::-1])[::-1][1:]
    near_end = np.minimum(np.arange(1, len(order)), np.arange(1, len(order))[::-1]) <= MOST_REORDERED
    depth = min(decoder.reorder_depth, MOST_REORDERED)
    doubtful = bool((long & (crossed | near_end)).any())
    return bool(overtaken.max() <= depth and waiting.max() <= MOST_REORDERED) and not doubtful


def _confirmed_by_decoding(listed: VideoIndex, video: VideoFile) -> VideoIndex:
    """The index of the frames that decoding shows; "count" unless each is one of those listed."""
    decoded = [_NO_PTS if frame.pts is None else frame.pts for frame in video.decode_all()]
    if not decoded:
        raise VideoError(video.path, "no frame of its video stream decodes", "no frames")
    return _index_of_decoded(listed, decoded, video.rate)


def _index_of_decoded(listed: VideoIndex, decoded: Sequence[int], rate: Fraction) -> VideoIndex:
    pts = np.array(decoded, dtype=np.int64)
    has_times = pts[0] != _NO_PTS and bool((np.diff(pts) > 0).all())
    if has_times and listed.access != "count" and np.isin(pts, listed.pts).all():
        return replace(listed, pts=pts, packets=listed.packets[np.isin(listed.pts, pts)])
    if has_times:
        return replace(listed, pts=pts, packets=np.arange(len(pts)), access="count")
    # Without usable pts the frames are taken to be evenly spaced.
    number = np.arange(len(pts))
    return replace(listed, pts=number, packets=number, last_ticks=1, time_base=1 / rate, access="count")


def _plan(index: VideoIndex, numbers: NDArray[np.int64]) -> list[Run]:
    """Runs that show these frames: each begins with a seek to a key frame, and goes on where a seek saves nothing."""
    wanted = np.unique(numbers)
    if index.access == "count":
        return []
    pts = index.pts[wanted]
    if index.access == "start":
        return [Run(None, pts.tolist())]
    # A frame shown before a key frame may refer across it: its key frame is the one shown before it.
    keys = np.maximum(np.searchsorted(index.key_pts, pts, side="right") - 1, 0)
    runs: list[Run] = []
    last_packet = -1
    for shown_at, packet, key in zip(pts.tolist(), index.packets[wanted].tolist(), keys.tolist()):
        # A seek costs less than decoding a single frame, so any packet it saves is worth it.
        if not runs or index.key_packets[key] > last_packet + 1:
            runs.append(Run(int(index.key_pts[key]), []))
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
