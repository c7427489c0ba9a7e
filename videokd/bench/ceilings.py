"""What this machine can do at best, measured beside what it does."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from videokd.bench.devices import current
from videokd.bench.results import Ceiling
from videokd.clips.container import open_container

_ROUNDS = 7


def ceilings(device: torch.device, *, precisions: Sequence[str], files: Sequence[Path]) -> list[Ceiling]:
    """A large matrix product in every precision, a large copy, a copy to the GPU, and bare decoding of some files.

    Args:
        device: whose ceilings.
        precisions: "fp32", "bf16", "fp16".
        files: videos that are decoded from beginning to end by libavcodec in one thread, and nothing made of the
            frames; none leaves this out.
    """
    with current(device):
        found = [_products(device, precision) for precision in precisions]
        found.append(_copies(device))
        if device.type == "cuda":
            found.append(_copies_there(device))
    if files:
        found.append(_decoding(files))
    return found


def _products(device: torch.device, precision: str) -> Ceiling:
    size = 8192 if device.type == "cuda" else 1024
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = _rounds(lambda: one @ other, device)
    what: Any = f"matmul {precision}"
    return _ceiling(what, [size**3 / each for each in seconds], unit="MAC")


def _copies(device: torch.device) -> Ceiling:
    # Larger than every cache.
    source = torch.empty((1 << 30) if device.type == "cuda" else (1 << 27), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    seconds = _rounds(lambda: target.copy_(source), device)
    # What is read and what is written.
    return _ceiling("memory copy", [2 * source.nbytes / each for each in seconds], unit="byte")


def _copies_there(device: torch.device) -> Ceiling:
    source = torch.ones(1 << 28, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    seconds = _rounds(lambda: target.copy_(source, non_blocking=True), device)
    return _ceiling("copy to device", [source.nbytes / each for each in seconds], unit="byte")


def _decoding(files: Sequence[Path]) -> Ceiling:
    each = []
    for _ in range(3):
        started, frames = time.perf_counter(), 0
        for file in files:
            with open_container(file) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                frames += sum(1 for _ in container.decode(stream))
        each.append(frames / (time.perf_counter() - started))
    return _ceiling("bare decode", each, unit="frame")


def _rounds(call: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of a call, round by round: the best of a few each, for a ceiling is what can be reached."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def seconds() -> float:
        wait()
        started = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - started

    for _ in range(3):
        seconds()
    return [min(seconds() for _ in range(3)) for _ in range(_ROUNDS)]


def _ceiling(what: Any, each: list[float], *, unit: Literal["MAC", "byte", "frame"]) -> Ceiling:
    return Ceiling(what=what, per_second=statistics.median(each), unit=unit, rounds=each)
