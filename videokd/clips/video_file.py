"""One opened video file: its packets, and the frames that its decoder makes of them."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from videokd.clips.container import open_container

Fault = Literal[
    "missing",
    "empty",
    "unreadable",
    "no video",
    "no decoder",
    "no frames",
    "broken",
    "damaged",
    "too large",
    "slow",
    "crash",
]
"""What can be wrong with a video: "broken" shows some of its frames, "unreadable" none; "damaged" has frames that the
decoder flags as corrupt; "too large" has frames of more pixels than allowed; "slow" and "crash" are those of its worker
process."""


class VideoError(ValueError):
    """A video that cannot be read."""

    def __init__(self, path: str | Path, reason: str, fault: Fault = "unreadable") -> None:
        super().__init__(str(path), reason, fault)  # all in args, so that it survives pickling
        self.path = Path(path)
        self.reason = reason
        self.fault: Fault = fault

    def __str__(self) -> str:
        advice = "" if self.fault == "too large" else " Replace or re-encode the file, or drop it from the data set."
        return f"{self.path}: {self.reason}.{advice}"


@dataclass(frozen=True)
class Run:
    """Packets to decode in one go."""

    seek: int | None  # the pts of the key frame to start from; None is the file's first packet
    pts: list[int]  # the wanted frames on the way


_SEEK_EXACTLY = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers whose seek to a key frame's pts lands on it, by their demuxer's name."""

_ONE_FRAME_A_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "mjpeg", "ffv1"}
"""Decoders whose every packet shows one frame; elsewhere (VP8's hidden frames, MPEG-4's empty ones) some do not."""

MOST_REORDERED = 16
"""Frames that are shown, at most, between one and a later one that it refers to; decoders hold back no more."""

_QUICK_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm"}
_QUICK_PROBE = {"probesize": "32", "skip_frame": "all"}
"""MP4 and Matroska headers tell all that a decoder needs; FFmpeg's usual probe would decode a frame to check them."""


class VideoFile:
    """One opened file and the walks through it."""

    def __init__(self, path: Path, data: bytes | None, max_pixels: int) -> None:
        self.path = path
        self._data = data
        self._max_pixels = max_pixels
        self._open(quick=path.suffix.lower() in _QUICK_SUFFIXES)

    def _open(self, *, quick: bool) -> None:
        # FFmpeg compares the size that it allocates, with its margins: a little more than the picture's. Exact is
        # the comparison with every decoded frame's own size.
        limit = {"max_pixels": str(self._max_pixels + self._max_pixels // 4 + (1 << 16))}
        options = limit | (_QUICK_PROBE if quick else {})
        source = self.path if self._data is None else self._data
        self.container: InputContainer = open_container(source, options=options)
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
        decoder = self.stream.codec_context
        if decoder.width * decoder.height > self._max_pixels:
            self.close()
            raise self._too_large(decoder.width, decoder.height)
        self.time_base = self.stream.time_base or Fraction(1, av.time_base)
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)  # 25 is FFmpeg's own default
        # One thread: a packet is decoded when it is sent, so skip_frame holds for that packet alone.
        decoder.thread_count = 1
        decoder.options = dict(decoder.options) | limit

    def _rewind(self) -> None:
        """To the first packet, as FFmpeg's full probe opens the file."""
        if not self._is_as_opened:
            self.close()
            self._open(quick=False)

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    @property
    def is_listed(self) -> bool:
        """Whether its packets tell its frames: one frame to a packet, in a container that keeps their times."""
        return self.seeks_exactly and self.stream.codec_context.name in _ONE_FRAME_A_PACKET

    def packets(self) -> "Iterator[Packet[VideoStream]]":
        """Packets from here on in decoding order, without empty ones (PyAV ends with one)."""
        self._is_as_opened = False
        return (packet for packet in self.container.demux(self.stream) if packet.size)

    def sounded_packets(self) -> "Iterator[Packet[VideoStream]]":
        """All packets in decoding order; in the end, where a decoder fails at one, all is decoded to be sure.

        Key frames are decoded, of others the headers, where the decoder can skip the rest (VP9 and AV1 can not).
        """
        decoder = self.stream.codec_context
        decoder.open(strict=False)
        decoder.skip_frame = "NONKEY"
        failed = False
        for packet in self.packets():
            yield packet
            try:
                _ = failed or self._decoded(packet)
            except av.FFmpegError:
                failed = True
        if failed:
            for _ in self.decode_all():
                pass

    def _decoded(self, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
        """What comes out of the decoder when it is sent a packet; None gets out what it holds back."""
        decoder = self.stream.codec_context
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError as error:
            # Decoders that refuse a size forget it, and call it an invalid argument; others keep it.
            if isinstance(error, av.error.ArgumentError) or decoder.width * decoder.height > self._max_pixels:
                raise self._too_large(decoder.width, decoder.height) from error
            raise
        for frame in frames:
            if frame.width * frame.height > self._max_pixels:
                raise self._too_large(frame.width, frame.height)
        return frames

    def _too_large(self, width: int, height: int) -> VideoError:
        what = f"its frames have {width} x {height} pixels" if width and height else "a frame is larger than allowed"
        limit = f"the limit is {self._max_pixels:,} pixels (max_pixels)"
        reason = f"{what}, and {limit}: raise it, make the video smaller, or drop it from the data set"
        return VideoError(self.path, reason, "too large")

    def decode_all(self) -> Iterator[VideoFrame]:
        """Every frame, by plain sequential decoding: the definition of what is right."""
        self._rewind()
        decoded = 0
        try:
            for packet in chain(self.packets(), [None]):
                for frame in self._decoded(packet):
                    decoded += 1
                    yield frame
        except av.FFmpegError as error:
            reason = f"decoding fails after {decoded} frames ({error.strerror})"
            raise VideoError(self.path, reason, "broken" if decoded else "no frames") from error

    def decode_run(self, run: Run) -> Iterator[VideoFrame]:
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
            yield from self._decoded(packet)
            unsent.discard(packet.pts)
            if not unsent:
                break
        # Frames held back for reordering come out here, sooner than by decoding on.
        yield from self._decoded(None)

    def undamaged(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """The same frames, up to one that the decoder flags as corrupt.

        A frame may be predicted from one that is shown after it, and only that one is flagged. Where the decoder
        reorders frames, each is handed out when so many have come after it that none is left that it refers to.

        Raises:
            VideoError: at a flagged frame.
        """
        held: deque[VideoFrame] = deque()
        source = iter(frames)
        while True:
            try:
                frame = next(source, None)
            except (av.FFmpegError, VideoError):
                yield from held  # decoding fails after them
                raise
            if frame is None:
                break
            if frame.is_corrupt:
                at = "" if frame.pts is None else f" at {frame.time:.2f} s"
                reason = f"the decoder flags a frame{at} as damaged, and those after it may be wrong"
                raise VideoError(self.path, reason, "damaged")
            held.append(frame)
            if len(held) > (MOST_REORDERED if self.stream.codec_context.has_b_frames else 0):
                yield held.popleft()
        yield from held


@contextmanager
def opened(path: Path, data: bytes | None, max_pixels: int) -> Iterator[VideoFile]:
    """The opened video, closed in the end; every failure of FFmpeg's becomes a VideoError."""
    if data is None and not path.is_file():
        raise VideoError(path, "it is a directory" if path.is_dir() else "there is no such file", "missing")
    if (path.stat().st_size if data is None else len(data)) == 0:
        raise VideoError(path, "the file is empty", "empty")
    try:
        with closing(VideoFile(path, data, max_pixels)) as video:
            yield video
    except av.FFmpegError as error:
        raise VideoError(path, f"FFmpeg cannot read it ({error.strerror})") from error
