"""Why a run stops before its end: a signal, a loss that is no number, validations that bring nothing."""

import signal
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from videokd.processes import is_distributed
from videokd.recipe import Recipe


class NotFiniteError(ValueError):
    """A loss that is no number: what was learned after it is worth nothing."""


class Finite:
    """Says which losses are not numbers: at once on the CPU; on a GPU one step later, so that nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._pending: tuple[list[str], Tensor, torch.cuda.Event, int] | None = None

    def wrong(self, losses: Mapping[str, Tensor], step: int) -> str | None:
        """A sentence, if a step's losses are wrong."""
        names, found = list(losses), torch.stack(list(losses.values())).isfinite()
        if not self._on_gpu:
            return _not_finite(names, found, step)
        before = self.of_last_step()
        there = torch.empty(len(names), dtype=torch.bool, pin_memory=True)
        there.copy_(found, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = names, there, event, step
        return before

    def of_last_step(self) -> str | None:
        """The sentence that is still due."""
        if self._pending is None:
            return None
        names, found, event, step = self._pending
        event.synchronize()
        self._pending = None
        return _not_finite(names, found, step)


def _not_finite(names: Sequence[str], found: Tensor, step: int) -> str | None:
    if found.all():
        return None
    wrong = ", ".join(name for name, fine in zip(names, found.tolist(), strict=True) if not fine)
    return (
        f"at step {step} these losses are not finite: {wrong}; take a lower optim.lr and another --out (a "
        "checkpoint from before would lead there again)"
    )


class Validations:
    """Scores on the validation split so far, from the log: which was best, and whether to go on."""

    def __init__(self, recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> None:
        self._key, self._patience = f"val_{recipe.metric}", recipe.patience
        self.rows = [dict(row) for row in rows if self._key in row]

    def add(self, step: int, found: Mapping[str, float]) -> bool:
        """Whether this is the best so far."""
        self.rows.append({"step": step, **found})
        return self.best is self.rows[-1]

    @property
    def best(self) -> dict[str, Any] | None:
        """The first of the best."""
        return max(self.rows, key=lambda row: row[self._key], default=None)

    @property
    def last(self) -> dict[str, Any] | None:
        """The last one."""
        return self.rows[-1] if self.rows else None

    @property
    def enough(self) -> bool:
        """Whether so many validations brought nothing that it is time to stop."""
        if self._patience is None or self.best is None:
            return False
        return len(self.rows) - 1 - self.rows.index(self.best) >= self._patience


class Stop:
    """Turns Ctrl-C and SIGTERM into a request to stop after the step; a second Ctrl-C stops at once.

    Of several processes none stops by itself: torchrun passes a signal on, which then comes twice.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number: int = signal.SIGINT
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT and not is_distributed():
            raise KeyboardInterrupt
        self.requested, self.number = True, number
