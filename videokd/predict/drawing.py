"""A copy of a video on which is written what a model says of it."""

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from videokd.clips.backends import is_picture
from videokd.clips.container import open_container
from videokd.clips.pictures import Cut
from videokd.clips.reading import VideoError, VideoIndex, walk
from videokd.disk import name_of, whole_file
from videokd.text import visible

_LEAST_SIDE = 240
"""Pixels of a frame's short side below which nothing can be read on it: it is enlarged by a whole number."""
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_BAR, _UNSURE_BAR, _TROUGH = (79, 195, 247), (170, 170, 170), (90, 90, 90)

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB


@dataclass(frozen=True)
class Caption:
    """What is written on a frame."""

    label: str
    probability: float
    is_sure: bool = True


def draw(
    path: Path,
    out: Path,
    caption: Callable[[float], Caption],
    *,
    index: VideoIndex,
    advance: Callable[[int], None] = lambda frames: None,
) -> str | None:
    """Writes a copy of the video with a caption, a bar for its probability, and the time on every frame.

    H.264 in an mp4; every frame is shown when the source shows it, counted from the source's beginning. Rotated videos
    are turned upright, oblong pixels made square, and small pictures enlarged.

    Args:
        path: of the video file.
        out: the mp4; appears whole or not at all.
        caption: of the seconds since the first frame.
        index: of the video.
        advance: called with the number of frames done.

    Returns:
        Why the copy has no sound though the video has; None where nothing is lost.

    Raises:
        ValueError: if `out` is the video itself, or is there already.
        VideoError: for a video that can't be read.
        OSError: if the copy can't be written.
    """
    check_copy(path, out)
    if is_picture(path):
        raise VideoError(path, "it is a still image, and captions are drawn on video files alone")
    try:
        with (
            open_container(path) as source,
            whole_file(out) as file,
            # By name: FFmpeg reads it again to put its header first.
            av.open(f"file:{name_of(file)}", "w", format="mp4", options={"movflags": "+faststart"}) as copy,
        ):
            return _write(path, source, copy, caption, index, advance)
    except av.FFmpegError as error:
        raise VideoError(path, f"no copy of it can be written to {out} ({error.strerror})") from error


def check_copy(path: Path, out: Path) -> None:
    """Raises a `ValueError` where a copy of the video can't be written without loss: `out` is there already."""
    if out.exists():
        itself = "is the video itself" if path.exists() and out.samefile(path) else "is there already"
        raise ValueError(f"{out} {itself}: name another file for the copy")


def _write(
    path: Path,
    source: InputContainer,
    copy: OutputContainer,
    caption: Callable[[float], Caption],
    index: VideoIndex,
    advance: Callable[[int], None],
) -> str | None:
    # Broadcasts begin at any time of day: players count from there.
    begin = Fraction(source.start_time or 0, av.time_base)
    pictures = _picture_stream(source, copy, index)
    sound, lost = _sound_stream(source, copy)
    packets: list[Iterator[Packet[Any]]] = [_drawn(path, pictures, caption, index, begin, advance)]
    if sound is not None:
        packets.append(_copied(source, sound, begin))
    # Interleaved as they are shown and heard, so that neither waits in memory for the other.
    for packet in heapq.merge(*packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
        copy.mux(packet)
    return lost


def _picture_stream(source: InputContainer, copy: OutputContainer, index: VideoIndex) -> VideoStream:
    stream = copy.add_stream("libx264", rate=Fraction(index.fps).limit_denominator(1001))
    stream.height, stream.width = _copy_size(source, index)
    stream.pix_fmt = "yuv420p"
    # Without B-frames a frame is coded when it is shown, and none before time 0.
    stream.options = {"preset": "veryfast", "crf": "20", "bf": "0"}
    coder = stream.codec_context
    coder.time_base = index.time_base
    # Said in a tag, and what players take it to be who read none.
    coder.colorspace, coder.color_range = _colours(stream.height), ColorRange.MPEG
    return stream


def _drawn(
    path: Path,
    stream: VideoStream,
    caption: Callable[[float], Caption],
    index: VideoIndex,
    begin: Fraction,
    advance: Callable[[int], None],
) -> "Iterator[Packet[Any]]":
    """The frames with their captions, encoded."""
    height, width = stream.height, stream.width
    pts = (index.pts - min(round(begin / index.time_base), int(index.pts[0]))).tolist()
    ticks = [*np.diff(index.pts).tolist(), index.last_ticks]
    write, convert = _Writer(height=height, width=width), VideoReformatter()
    cut = Cut(range(index.num_frames), size=(height, width))
    for number, picture in enumerate(walk(path, cut, index=index, max_pixels=index.max_pixels)):
        seconds = float((index.pts[number] - index.pts[0]) * index.time_base)
        pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        write(pixels, caption(seconds), seconds)
        frame = convert.reformat(
            av.VideoFrame.from_ndarray(pixels, "rgb24"),
            format="yuv420p",
            dst_colorspace=_colours(height),
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base, frame.duration = pts[number], index.time_base, ticks[number]
        yield from stream.encode(frame)
        advance(1)
    yield from stream.encode()


def _colours(height: int) -> Colorspace:
    return Colorspace.ITU709 if height >= 720 else Colorspace.ITU601


def _copy_size(source: InputContainer, index: VideoIndex) -> tuple[int, int]:
    """(height, width) of the copy: of square pixels, not too small to be written on, and even, as colours need it."""
    height, width = float(index.height), float(index.width)
    oblong = float(source.streams.video[0].sample_aspect_ratio or 1)
    if index.rotation % 180:
        height *= oblong
    else:
        width *= oblong
    times = max(1, math.ceil(_LEAST_SIDE / min(height, width)))
    return 2 * round(times * height / 2), 2 * round(times * width / 2)


def _sound_stream(source: InputContainer, copy: OutputContainer) -> tuple[AudioStream | None, str | None]:
    """Where the sound goes, and why it goes nowhere."""
    if not source.streams.audio:
        return None, None
    stream = source.streams.audio[0]
    codec = "an unknown codec" if stream.codec_context is None else stream.codec_context.name
    if codec not in copy.supported_codecs:
        return None, f"the copy has no sound: an mp4 can't hold the video's ({codec})"
    return copy.add_stream_from_template(stream), None


def _copied(source: InputContainer, sound: AudioStream, begin: Fraction) -> "Iterator[Packet[Any]]":
    """The packets of the video's sound, as they are."""
    for packet in source.demux(source.streams.audio[0]):
        if packet.dts is not None and packet.pts is not None and packet.size:
            shift = round(begin / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, sound
            yield packet


class _Writer:
    """Writes captions on frames of one size: on a dark strip at the bottom, the label and its probability, and below
    them the bar and the time."""

    def __init__(self, *, height: int, width: int) -> None:
        side = min(height, width)
        self._size = max(13, round(side / 18))
        self._gap = round(self._size / 2)
        self._strip = min(height, 2 * self._size + 3 * self._gap)
        self._width = width
        self._font, self._small = (ImageFont.truetype(_FONT, size) for size in (self._size, round(0.8 * self._size)))
        self._labels: dict[tuple[str, int], str] = {}

    def __call__(self, pixels: Pixels, caption: Caption, seconds: float) -> None:
        """In place."""
        below = pixels[-self._strip :]
        image = Image.fromarray((below * np.float32(0.3)).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        left, right = self._gap, self._width - self._gap
        first, second = self._gap + self._size // 2, 2 * self._gap + self._size + self._size // 2
        share, time = f"{100 * caption.probability:.0f} %", clock(seconds)
        pen.text((right, first), share, "white", self._font, "rm")
        room = right - left - self._gap - math.ceil(self._font.getlength(share))
        pen.text((left, first), self._fitted(caption.label, room), "white", self._font, "lm")
        pen.text((right, second), time, "white", self._small, "rm")
        end = right - self._gap - math.ceil(self._small.getlength("0" * len(time)))
        half = max(2, self._size // 4)
        pen.rectangle((left, second - half, end, second + half), _TROUGH)
        filled = left + round((end - left) * min(max(caption.probability, 0.0), 1.0))
        if filled > left:
            pen.rectangle((left, second - half, filled, second + half), _BAR if caption.is_sure else _UNSURE_BAR)
        below[:] = np.asarray(image)

    def _fitted(self, label: str, room: int) -> str:
        """As much of a label as there is room for."""
        if (label, room) not in self._labels:
            kept = shown = visible(label)
            while kept and self._font.getlength(kept if kept == shown else f"{kept}…") > room:
                kept = kept[:-1]
            self._labels[label, room] = kept if kept == shown else f"{kept}…"
        return self._labels[label, room]


def clock(seconds: float) -> str:
    """A time as people read it: 1:02:03.4, or 2:03.4."""
    tenths = math.floor(10 * seconds + 1e-6)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"
