"""How a run is going, while it goes: a live bar on a terminal, a line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.text import Text

from videokd.text import for_terminal
from videokd.timing import duration

LINE_SECONDS = 30.0
"""Between two lines, where there is no terminal."""
RATE_SECONDS = 60.0
"""Rates are of the last minute: what a run does now, without its slow first steps."""


class Display:
    """Where a run is, its loss, clips per second, time left and last validation; shown while the context is open.

    On a terminal that is a bar; elsewhere a line every `LINE_SECONDS`, one at each validation and one at the end, be it
    an early one.

    Args:
        console: where to show it.
        name: of the run.
        total: steps of the whole run.
        done: steps that were done before.
        clock: seconds, from any start.
    """

    def __init__(
        self, console: Console, name: str, total: int, done: int = 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._name, self._total, self._clock = console, name, total, clock
        self._step, self._clips = done, 0
        self._loss: float | None = None
        self._score: str | None = None
        self._stopped = 0.0
        self._started = self._line_at = clock()
        self._line_step = done
        # (seconds, step, clips) of the steps that rates are taken from, the oldest first.
        self._recent = deque([(0.0, done, 0)])
        self._bar = bar(console)
        self._task = self._bar.add_task(name, total=total, completed=done, detail="")

    def __enter__(self) -> "Display":
        self._bar.start()
        self._started = self._line_at = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._line_step != self._step:
            self._line()

    @property
    def seconds(self) -> float:
        """How long it trains, without what was `stopped`."""
        return self._clock() - self._started - self._stopped

    @property
    def clips_per_second(self) -> float:
        """Of all the time that it trains."""
        return self._clips / max(self.seconds, 1e-9)

    def step(self, step: int, *, clips: int, loss: float | None = None) -> None:
        """Says that `step` is done, on so many clips. A loss is shown until the next: not every step need give one."""
        self._step, self._clips = step, self._clips + clips
        self._loss = self._loss if loss is None else loss
        now = self.seconds
        self._recent.append((now, step, self._clips))
        while len(self._recent) > 2 and now - self._recent[1][0] >= RATE_SECONDS:
            self._recent.popleft()
        self._bar.update(self._task, completed=step, detail=", ".join(self._details()))
        if self._clock() - self._line_at >= LINE_SECONDS:
            self._line()

    def validated(self, score: float, name: str = "top-1") -> None:
        """Says how the validation came out: a share."""
        self._score = f"validation {name} {score:.1%}"
        self._bar.update(self._task, detail=", ".join(self._details()))
        self._line()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A time in which it does not train, such as a validation: it counts for no rate."""
        before = self._clock()
        yield
        self._stopped += self._clock() - before

    def _line(self) -> None:
        self._line_at, self._line_step = self._clock(), self._step
        if not self._console.is_terminal:
            self._console.print(", ".join([f"{self._name}: step {self._step}/{self._total}", *self._details()]))

    def _details(self) -> list[str]:
        (before, first, clips_before), (now, step, clips) = self._recent[0], self._recent[-1]
        found = [] if self._loss is None else [f"loss {self._loss:.3f}"]
        if now > before:
            rate = (clips - clips_before) / (now - before)
            found.append(f"{rate:.0f} clips/s" if rate >= 10 else f"{rate:.1f} clips/s")
        if now > before and step < self._total:
            found.append(f"{duration((self._total - step) * (now - before) / (step - first))} left")
        return found if self._score is None else [*found, self._score]


def bar(console: Console, *, transient: bool = False, disable: bool = False) -> Progress:
    """A progress bar that shows nothing but on a terminal.

    Args:
        console: where to show it.
        transient: whether it vanishes when it is done.
        disable: whether it shows nothing there either.
    """
    return Progress(
        _Plain("description"),
        BarColumn(),
        MofNCompleteColumn(),
        _Plain("detail"),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
        disable=disable or not console.is_terminal,
    )


class _Plain(ProgressColumn):
    """A task's description, or its field `detail`: names from outside are in them, and no markup."""

    def __init__(self, part: Literal["description", "detail"]) -> None:
        super().__init__()
        self._part = part

    def render(self, task: Task) -> Text:
        return Text(for_terminal(task.description if self._part == "description" else task.fields.get("detail", "")))
