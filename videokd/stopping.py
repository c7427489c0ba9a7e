"""Why a run stops before its end, signals apart: a loss that is NaN or infinite, validations without a new best."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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

    def has(self, step: int) -> bool:
        """Whether there was one after this step."""
        return any(row["step"] == step for row in self.rows)

    @property
    def enough(self) -> bool:
        """Whether so many validations brought nothing that it is time to stop."""
        if self._patience is None or self.best is None:
            return False
        return len(self.rows) - 1 - self.rows.index(self.best) >= self._patience
