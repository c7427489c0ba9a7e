"""What every loss is: a frozen configuration that can be called on two models' outputs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from videokd.contracts import Grid, Outputs
from videokd.losses.connectors import Connector
from videokd.processes import is_distributed, mean_over_processes, world_size

Bank = Literal["none", "queue", "classes"]
"""What a term keeps of its teacher: nothing, its last clip vectors, or the vectors by which it tells classes apart."""


@dataclass(frozen=True)
class Pair:
    """Two taps that a loss compares, how finely, and what the student learns to be compared."""

    student: str
    teacher: str
    grid: Grid
    connector: Connector | None = None
    """From the student's features to the teacher's; None compares them as they are."""
    target: str = "raw"
    """What the connected features are to be: of pairs that want the same, the connector is shared."""
    shuffled: bool = False
    """Of the clip with its pieces of time shuffled, in place of the clip as it was filmed."""

    @property
    def student_name(self) -> str:
        """What the student's side is called in the outputs that the loss is given."""
        return f"shuffled {self.student}" if self.shuffled else self.student

    @property
    def teacher_name(self) -> str:
        """Likewise, the teacher's side."""
        return f"shuffled {self.teacher}" if self.shuffled else self.teacher


@dataclass(frozen=True)
class Facts:
    """What is known before the first step, for what a loss takes from the data."""

    class_counts: tuple[int, ...]
    """Labelled training clips of every class."""
    teacher: Outputs | None = None
    """What the term's teacher says of some training clips."""


@dataclass(frozen=True)
class Loss(ABC):
    """A scalar from a student's and a teacher's outputs; it has no parameters, and its fields are its whole config.

    What has to be learned for it is declared, by `pairs` and `learned`, and lives in the student. What it takes from
    the data (the number of clips of a class, a temperature) it gets by `fitted`, before training.
    """

    paper: ClassVar[str] = ""
    """Where it comes from."""
    needs_teacher: ClassVar[bool] = True
    """Whether `teacher` must be given."""
    needs_teacher_logits: ClassVar[bool] = False
    """Whether the teacher's classes must be the student's."""
    needs_raw_logits: ClassVar[bool] = False
    """Whether it looks at more of the teacher's logits than the probabilities that they make."""
    several_labels: ClassVar[bool] = True
    """Whether it is right for clips that have several labels."""
    relational: ClassVar[bool] = False
    """Whether it compares clips of a batch with each other: then it counts those of all processes."""
    tells_clips_apart: ClassVar[bool] = False
    """Whether it must know which clips are views of one."""
    min_clips: ClassVar[int] = 1
    """Clips of a batch under which it says nothing."""
    min_steps: ClassVar[int] = 1
    """Steps of time that both taps must have, under which it says nothing."""
    min_places: ClassVar[int] = 1
    """Places in space, likewise."""

    @abstractmethod
    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """The mean over the clips that count: a scalar.

        Args:
            student: its logits (B, K), and the features of `pairs` under the student's tap names; what is `learned`
                under `extra`.
            teacher: likewise under the teacher's tap names; without gradient. Its bank under `extra`.
            label: (B,) int64, UNLABELLED where the class is unknown; or shares (B, K).
        """

    def pairs(self) -> tuple[Pair, ...]:
        """The taps that this loss compares."""
        return ()

    @property
    def needs_labels(self) -> bool:
        """Whether it is zero on unlabelled clips."""
        return False

    @property
    def needs_one_class(self) -> bool:
        """Whether clips must be of one class: not mixed."""
        return False

    @property
    def learned(self) -> Mapping[str, float]:
        """Numbers that are learned beside the student, by name, and where they begin."""
        return {}

    @property
    def bank(self) -> Bank:
        """What is kept of the teacher for it, of the first pair's tap."""
        return "none"

    @property
    def pieces(self) -> int:
        """Pieces of time that are shuffled for its shuffled pairs."""
        return 0

    @property
    def needs_calibration(self) -> bool:
        """Whether `fitted` wants to know what the teacher says of some clips."""
        return False

    def fitted(self, facts: Facts) -> Self:
        """This loss, with what it takes from the data filled in."""
        return self


@dataclass(frozen=True)
class ClipwiseLoss(Loss):
    """A loss that is a mean over clips, so that clips can be given weights (`Term.clips`)."""

    @abstractmethod
    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """The loss of every clip, (B,)."""

    def counted(self, label: Tensor) -> Tensor | None:
        """Which clips count: float (B,); None for all of them."""
        return None

    def __call__(
        self, student: Outputs, teacher: Outputs | None, label: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Mean over the clips that count, 0 if none does; each times its weight (B,), if these are given.

        With several processes, the sum of this one's clips over the mean number that a process has: the mean over
        processes is then the mean over all clips, whoever has more of them.
        """
        each, counted = self.each(student, teacher, label), self.counted(label)
        weighted = each if weights is None else each * weights
        if counted is not None:
            return (weighted * counted).sum() / mean_over_processes(counted.sum()).clamp(min=_least())
        if not is_distributed():
            return weighted.sum() / max(len(each), 1)
        return weighted.sum() / mean_over_processes(each.new_tensor(len(each))).clamp(min=_least())


@dataclass(frozen=True, kw_only=True)
class FrameLoss(Loss):
    """A loss on one tap's features, frame by frame."""

    student_tap: str = "frames"
    teacher_tap: str = "frames"
    connector: Connector | None = None
    """From the student's features to the teacher's; None compares them as they are."""

    @property
    def wanted(self) -> str:
        """What the connected features are to be; losses on the same taps that want the same share their connector."""
        return "layer_normalised"

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of frame vectors."""
        return (Pair(self.student_tap, self.teacher_tap, "frames", self.connector, self.wanted),)


def _least() -> float:
    """The least mean number of clips that can be divided by: one clip in all."""
    return 1 / world_size()


def in_range(**values: tuple[float, float, float]) -> None:
    """Raises a `ValueError` for a value, given as name=(value, low, high), that is not in [low, high]."""
    for name, (value, low, high) in values.items():
        if not low <= value <= high:
            limits = f"at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
            raise ValueError(f"{name} is {limits}, got {value}")


def at_least(low: float, **values: float) -> None:
    """Raises a `ValueError` for a value, given by name, that is under `low`."""
    in_range(**{name: (value, low, float("inf")) for name, value in values.items()})


def above_zero(**values: float) -> None:
    """Raises a `ValueError` for a value, given by name, that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


@lru_cache(maxsize=64)
def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32, made once."""
    return torch.tensor(values, dtype=torch.float32, device=device)
