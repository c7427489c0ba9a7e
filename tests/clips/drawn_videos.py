"""Videos drawn for tests, with the frame's number burnt into the picture so that it can be read back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

BITS = 8
"""Blocks that hold the frame's number, most significant first: a video has at most 2 ** BITS frames."""


@dataclass(frozen=True, kw_only=True)
class DrawnVideo:
    """How to write one video; frame number n is drawn the same whatever the codec."""

    name: str
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    num_frames: int = 90
    width: int = 96
    height: int = 64
    pix_fmt: str = "yuv420p"
    ticks: Sequence[int] | None = None  # presentation times in 1/30 s; None is 0, 1, 2, ...
    max_b_frames: int | None = None
    rotation: int = 0
    """Degrees counterclockwise that the file tells players to turn the picture."""

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with av.open(path, "w", options=self.container_options) as container:
            stream = container.add_stream(self.codec, rate=30, options=self.options)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, self.pix_fmt
            if self.max_b_frames is not None:
                stream.codec_context.max_b_frames = self.max_b_frames
            if self.rotation:
                stream.set_display_rotation(self.rotation)
            for number in range(self.num_frames):
                frame = av.VideoFrame.from_ndarray(drawn(number, height=self.height, width=self.width), "rgb24")
                frame.pts = number if self.ticks is None else self.ticks[number]
                frame.time_base = Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path


def drawn(number: int, *, height: int, width: int) -> NDArray[np.uint8]:  # (H, W, 3)
    """The number's bits as black and white blocks across the top half, moving noise across the bottom half."""
    picture = np.random.default_rng(number).integers(64, 192, (height, width, 3), dtype=np.uint8)
    picture = np.kron(picture[::8, ::8], np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]
    for bit, columns in enumerate(np.array_split(np.arange(width), BITS)):
        picture[: height // 2, columns] = 255 * (number >> (BITS - 1 - bit) & 1)
    return picture


def number_in(frame: torch.Tensor) -> int:  # uint8 (3, H, W)
    """The number burnt into a decoded frame, however lossy the codec."""
    top = frame[:, : frame.shape[1] // 2].numpy().mean(axis=(0, 1))  # (W,)
    return sum(int(block.mean() > 127) << bit for bit, block in enumerate(reversed(np.array_split(top, BITS))))


def written_with_preroll(source: Path, target: Path, *, hidden: int) -> Path:
    """A copy whose edit list hides the first frames, as trimming without re-encoding writes it."""
    with (
        av.open(source) as whole,
        av.open(target, "w", options={"avoid_negative_ts": "disabled"}) as trimmed,
    ):
        stream = trimmed.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                ticks = round(hidden / 30 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, stream
                trimmed.mux(packet)
    return target


def decoded_sequentially(path: Path) -> torch.Tensor:  # uint8 (N, 3, H, W)
    """Every frame by PyAV's own loop, as stored: the slower obvious version."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
