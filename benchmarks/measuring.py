"""What the benchmarks share: the drawn files, interleaved timings, and the setting that a figure was measured in."""

import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

FPS, NUM_FRAMES = 30, 300


@dataclass(frozen=True, kw_only=True)
class File:
    """A video to draw."""

    name: str
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    max_b_frames: int | None = None
    height: int = 256
    width: int = 340
    frames: int = NUM_FRAMES


def write(file: File, folder: Path) -> Path:
    """Encodes the drawn scene."""
    path = folder / file.name
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(file.codec, rate=FPS, options=file.options)
        stream.width, stream.height, stream.pix_fmt = file.width, file.height, "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        if file.max_b_frames is not None:
            stream.codec_context.max_b_frames = file.max_b_frames
        for number, picture in enumerate(islice(scene(file.height, file.width), file.frames)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def scene(height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """A camera that sways over a natural texture (amplitude 1/f), a patch that crosses it, and sensor noise."""
    rng = np.random.default_rng(0)
    big = (2 * height, 2 * width)
    frequency = np.hypot(np.fft.fftfreq(big[0])[:, None], np.fft.rfftfreq(big[1])[None]) + 0.005
    layers = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=big)) / frequency**1.2, s=big) for _ in range(3)]
    texture = np.stack([layers[0] + 0.3 * layer for layer in layers], axis=-1)
    texture = 128 + 45 * (texture - texture.mean()) / texture.std()
    for number in range(NUM_FRAMES):
        y = int(height / 2 * (1 + 0.8 * np.sin(number / 41)))
        x = int(width / 2 * (1 + 0.8 * np.cos(number / 29)))
        picture = texture[y : y + height, x : x + width].copy()
        left = 2 * number % (width - 64)
        picture[90:170, left : left + 64] = texture[100:180, 300 + number : 364 + number]
        picture += rng.normal(scale=2, size=(height, width, 1))
        yield picture.clip(0, 255).astype(np.uint8)


def interleaved(
    contenders: Mapping[str, Callable[[int], object]], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every contender in every round, in changing order; each is called with the round's number."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(0)  # code and files into memory
    order = random.Random(1)
    for number in range(rounds):
        for name in order.sample(list(contenders), k=len(contenders)):
            started = clock()
            contenders[name](number)
            seconds[name].append(clock() - started)
    return seconds


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.median >= 20 else 2
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def times_faster(ours: list[float], theirs: list[float]) -> Interval:
    """How many times our speed is theirs: the median over rounds of their seconds over ours."""
    ratios = np.array(theirs) / np.array(ours)
    resampled = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high))


def setting(arguments: dict[str, Any]) -> dict[str, Any]:
    """All that one needs to know to compare these numbers with others."""
    packages = ("av", "decord2", "torchcodec", "mmaction2", "numpy", "torch", "torchvision")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "versions": {name: installed(name) for name in packages},
        "ffmpeg": {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()},
        "arguments": {name: str(value) for name, value in arguments.items() if name not in ("out", "real", "packed")},
    }


def git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else None


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
