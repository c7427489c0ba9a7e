"""Time and exactness of reading clips: videokd's reader beside decord and plain sequential decoding.

    python benchmarks/reading.py --out reading.json

Draws its own videos, reads random clips of them with every reader in turn, and prints CPU time as a ratio to
decord's on the same clip. Ratios travel between machines; the times in the JSON do not.
"""

import argparse
import json
import multiprocessing
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from videokd.clips import reading

FRAMES, STRIDE = 16, 4
HEIGHT, WIDTH, FPS, NUM_FRAMES = 256, 340, 30, 300
HANG_SECONDS = 120
"""decord can hang inside native code, so its exactness check runs in a process that can be killed."""


@dataclass(frozen=True, kw_only=True)
class File:
    name: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    max_b_frames: int | None = None


FILES = [
    File(name="gop250.mp4", codec="libx264"),  # x264's defaults
    File(name="gop12.mp4", codec="libx264", options={"g": "12"}),
    File(name="no_b_frames.mp4", codec="libx264", options={"bf": "0"}),
    File(name="h264.mkv", codec="libx264"),
    File(name="mpeg4_b_frames.avi", codec="mpeg4", options={"b": "800k"}, max_b_frames=2),
    File(name="vp9.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "b": "600k"}),
]

Reader = Callable[[Path, list[int]], NDArray[np.uint8]]  # (T, H, W, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--clips", type=int, default=31, help="clips timed per file (default: %(default)s)")
    parser.add_argument("--checked", type=int, default=12, help="clips checked per file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for file in FILES:
            path = Path(folder) / file.name
            kbit_per_second = write(file, path)
            starts = random.Random(args.seed)
            clips = [clip(starts) for _ in range(args.clips)]
            rows.append(
                {
                    "file": file.name,
                    "kbit_per_second": round(kbit_per_second),
                    "timings": timings(path, clips),
                    "wrong_frames": wrong_frames(path, clips[: args.checked]),
                    "checked_frames": FRAMES * min(args.checked, args.clips),
                }
            )
            console.print(f"[dim]{file.name} done")
    console.print(table(rows))
    if args.out:
        args.out.write_text(json.dumps({"setting": setting(vars(args)), "files": rows}, indent=2) + "\n")


def clip(rng: random.Random) -> list[int]:
    start = rng.randrange(NUM_FRAMES - (FRAMES - 1) * STRIDE)
    return [start + STRIDE * number for number in range(FRAMES)]


def write(file: File, path: Path) -> float:
    """Encode the drawn scene; kbit per second of the result."""
    with av.open(path, "w") as container:
        stream = container.add_stream(file.codec, rate=FPS, options=file.options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        if file.max_b_frames is not None:
            stream.codec_context.max_b_frames = file.max_b_frames
        for number, picture in enumerate(scene()):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.stat().st_size * 8 / 1000 / (NUM_FRAMES / FPS)


def scene() -> Iterator[NDArray[np.uint8]]:
    """A camera that sways over a natural texture (amplitude 1/f), a patch that crosses it, and sensor noise."""
    rng = np.random.default_rng(0)
    big = (2 * HEIGHT, 2 * WIDTH)
    frequency = np.hypot(np.fft.fftfreq(big[0])[:, None], np.fft.rfftfreq(big[1])[None]) + 0.005
    layers = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=big)) / frequency**1.2, s=big) for _ in range(3)]
    texture = np.stack([layers[0] + 0.3 * layer for layer in layers], axis=-1)
    texture = 128 + 45 * (texture - texture.mean()) / texture.std()
    for number in range(NUM_FRAMES):
        y = int(HEIGHT / 2 * (1 + 0.8 * np.sin(number / 41)))
        x = int(WIDTH / 2 * (1 + 0.8 * np.cos(number / 29)))
        picture = texture[y : y + HEIGHT, x : x + WIDTH].copy()
        left = 2 * number % (WIDTH - 64)
        picture[90:170, left : left + 64] = texture[100:180, 300 + number : 364 + number]
        picture += rng.normal(scale=2, size=(HEIGHT, WIDTH, 1))
        yield picture.clip(0, 255).astype(np.uint8)


def ours(path: Path, numbers: list[int], *, index: reading.VideoIndex | None = None) -> NDArray[np.uint8]:
    return reading.read(path, numbers, index=index).frames.permute(0, 2, 3, 1).numpy()


def decord(path: Path, numbers: list[int]) -> NDArray[np.uint8]:
    import decord

    frames: NDArray[np.uint8] = decord.VideoReader(str(path), num_threads=1).get_batch(numbers).asnumpy()
    return frames


def sequential(path: Path, numbers: list[int]) -> NDArray[np.uint8]:
    wanted, frames = set(numbers), []
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24", threads=1))
            if number == numbers[-1]:
                break
    return np.stack(frames)


def readers(path: Path) -> dict[str, Reader]:
    index = reading.scan(path)
    found: dict[str, Reader] = {
        "scan and read": ours,
        "read": lambda path, numbers: ours(path, numbers, index=index),
    }
    if has_decord():
        found["decord"] = decord
    return found | {"sequential": sequential}


def has_decord() -> bool:
    try:
        import decord  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def timings(path: Path, clips: list[list[int]]) -> dict[str, Any]:
    """Milliseconds of every reader on every clip, the readers in turn and in changing order."""
    by_name = readers(path)
    cpu_ms: dict[str, list[float]] = {name: [] for name in by_name}
    wall_ms: dict[str, list[float]] = {name: [] for name in by_name}
    for read in by_name.values():
        read(path, clips[0])  # code and file into memory
    order = random.Random(1)
    for numbers in clips:
        for name in order.sample(list(by_name), k=len(by_name)):
            wall, cpu = time.perf_counter(), time.process_time()
            by_name[name](path, numbers)
            cpu_ms[name].append(1000 * (time.process_time() - cpu))
            wall_ms[name].append(1000 * (time.perf_counter() - wall))
    against = "decord" if "decord" in by_name else "sequential"
    return {
        name: {
            "cpu_ms": float(np.median(cpu_ms[name])),
            "wall_ms": float(np.median(wall_ms[name])),
            f"cpu_ratio_to_{against}": asdict(median_ratio(cpu_ms[name], cpu_ms[against])),
            f"wall_ratio_to_{against}": asdict(median_ratio(wall_ms[name], wall_ms[against])),
        }
        for name in by_name
    }


@dataclass(frozen=True)
class Interval:
    median: float
    low: float  # 95 % bootstrap interval of the median
    high: float


def median_ratio(times: list[float], against: list[float]) -> Interval:
    ratios = np.array(times) / np.array(against)
    resampled = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high))


def wrong_frames(path: Path, clips: list[list[int]]) -> dict[str, int | str]:
    """Frames that are not the one asked for by sequential decoding, or why they could not be counted."""
    counts: dict[str, int | str] = {name: count_wrong(name, path, clips) for name in ("scan and read", "read")}
    if has_decord():
        # spawn: a fork would inherit the threads of other libraries half alive.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            try:
                counts["decord"] = pool.apply_async(count_wrong, ("decord", path, clips)).get(HANG_SECONDS)
            except multiprocessing.TimeoutError:
                counts["decord"] = "hangs"
            except Exception as error:
                counts["decord"] = type(error).__name__
    return counts


def count_wrong(name: str, path: Path, clips: list[list[int]]) -> int:
    """Ours must equal sequential decoding bit for bit; decord's, with colours of its own, must be nearest to it."""
    everything = sequential(path, list(range(NUM_FRAMES)))
    read = readers(path)[name]
    wrong = 0
    for numbers in clips:
        for number, frame in zip(numbers, read(path, numbers)):
            if name == "decord":
                thumbnails = everything[:, ::4, ::4].astype(np.int16)
                nearest = np.abs(thumbnails - frame[::4, ::4]).mean(axis=(1, 2, 3)).argmin()
                wrong += int(nearest != number)
            else:
                wrong += int(not np.array_equal(frame, everything[number]))
    return wrong


def table(rows: list[dict[str, Any]]) -> Table:
    against = "decord" if has_decord() else "sequential"
    columns = ["scan and read", "read", "sequential"]
    caption = f"{FRAMES} frames, stride {STRIDE}, {WIDTH}x{HEIGHT}, {NUM_FRAMES} frames a file; median [95 % interval]"
    if against != "decord":
        caption += "; decord is not installed: ratios are to sequential decoding"
    result = Table(title=f"CPU time per clip as a ratio to {against}", caption=caption)
    for heading in ("file", "kbit/s", *columns, "wrong", "wrong, decord"):
        result.add_column(heading, justify="left" if heading == "file" else "right")
    for row in rows:
        ratios = [row["timings"][name][f"cpu_ratio_to_{against}"] for name in columns]
        counts = row["wrong_frames"]
        wrong = [counts["scan and read"] + counts["read"], counts.get("decord", "-")]
        checked = [2 * row["checked_frames"], row["checked_frames"]]
        result.add_row(
            row["file"],
            str(row["kbit_per_second"]),
            *(f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" for ratio in ratios),
            *(f"{count}/{out_of}" if isinstance(count, int) else count for count, out_of in zip(wrong, checked)),
        )
    return result


def setting(arguments: dict[str, Any]) -> dict[str, Any]:
    """All that one needs to know to compare these numbers with others."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "versions": {name: installed(name) for name in ("av", "decord2", "decord", "numpy", "torch")},
        "ffmpeg": {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()},
        "arguments": {name: str(value) for name, value in arguments.items() if name != "out"},
        "clip": {"frames": FRAMES, "stride": STRIDE, "height": HEIGHT, "width": WIDTH, "threads": 1},
        "files": [asdict(file) for file in FILES],
    }


def git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else None


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
