"""Where a run's time goes: to the loader, the teachers or the student."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch

T = TypeVar("T")
Part = Literal["teacher", "student"]

_WARM_UP = 3
_STEPS = 30
_SECONDS = 60.0


class Stopwatch:
    """Times some steps after the first few, until there are thirty or a minute is over; then it costs nothing.

    On a GPU the parts are timed by events in its stream, without waiting for it: what the host waits for the loader
    counts as far as the GPU had nothing to do meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {"loader": 0.0, "teacher": 0.0, "student": 0.0}
        self._events: list[tuple[Part, torch.cuda.Event, torch.cuda.Event]] = []
        self._seen, self._begun, self._ended = 0, 0.0, 0.0

    @property
    def is_running(self) -> bool:
        """Whether steps are still timed."""
        return not self._ended

    def waited(self, items: Iterable[T]) -> Iterator[T]:
        """The items, one for each step; what it takes to get them is the loader's time."""
        source = iter(items)
        while True:
            before = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            if self._begun and self.is_running:
                self._seconds["loader"] += time.perf_counter() - before
            yield item
            self._count()

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """What is done in it is this part's time."""
        if not self._begun or not self.is_running:
            yield
        elif self._on_gpu:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append((name, *events))
        else:
            before = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - before

    def per_step(self) -> dict[str, float] | None:
        """Seconds a step of "loader", "teacher" and "student"; None until they are known."""
        if self.is_running or not self._begun:
            return None
        steps = self._seen - _WARM_UP
        found = dict(self._seconds)
        for name, first, last in self._events:
            found[name] += first.elapsed_time(last) / 1e3
        if self._on_gpu:
            idle = self._ended - self._begun - found["teacher"] - found["student"]
            found["loader"] = min(found["loader"], max(idle, 0.0))
        return {name: seconds / steps for name, seconds in found.items()}

    def _count(self) -> None:
        if not self.is_running:
            return
        self._seen += 1
        now = time.perf_counter()
        if self._seen == _WARM_UP:
            self._begun = now
        elif self._seen >= _WARM_UP + _STEPS or (self._begun and now - self._begun > _SECONDS):
            if self._on_gpu:
                torch.cuda.synchronize()
                now = time.perf_counter()
            self._ended = now


def bound_by(loader: float, teacher: float, student: float) -> str:
    """A sentence with each part's share of a step, and what to change about the largest.

    Args:
        loader: seconds of a step in which everything else waits for clips.
        teacher: seconds in which teachers compute.
        student: seconds in which the student computes, forward and backward.
    """
    parts = {"loader": loader, "teacher": teacher, "student": student}
    total = max(sum(parts.values()), 1e-9)
    shares = {name: seconds / total for name, seconds in parts.items()}
    taught = f"{shares['teacher']:.0%} teacher, " if teacher else ""
    largest = max(shares, key=lambda name: shares[name])
    return (
        f"a step of {_seconds(total)} is {shares['loader']:.0%} waiting for clips, {taught}"
        f"{shares['student']:.0%} student; {_ADVICE[largest]}"
    )


_ADVICE = {
    "loader": ("the loader bounds the run: raise data.workers, up to the number of cores, or `videokd data pack`"),
    "teacher": (
        "the teacher bounds the run: store what it says (`videokd label`), or set data.views and the teacher's remember"
    ),
    "student": (
        "the student bounds the run: a smaller student or input is faster, and on a GPU --machine.precision bf16"
    ),
}


def duration(seconds: float) -> str:
    """As a reader says it: "45 s", "12 min", "3.4 h", "2.1 days"."""
    for most, unit, length in ((90, "s", 1), (90 * 60, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < most:
            count = seconds / length
            return f"{count:.1f} {unit}" if unit == "h" and count < 10 else f"{count:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
