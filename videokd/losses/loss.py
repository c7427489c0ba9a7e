"""What every loss is: a frozen configuration that can be called on two models' outputs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from videokd.contracts import Grid, Outputs


@dataclass(frozen=True)
class Pair:
    """Two taps that a loss compares, how finely, and whether the student's is projected to the teacher's width."""

    student: str
    teacher: str
    grid: Grid
    projected: bool


@dataclass(frozen=True)
class Loss(ABC):
    """A scalar from a student's and a teacher's outputs; it has no parameters, and its fields are its whole config.

    What has to be learned for it, projections of the student, is declared by `pairs` and lives in the student.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether `teacher` must be given."""
    needs_teacher_logits: ClassVar[bool] = False
    """Whether the teacher's classes must be the student's."""
    needs_labels: ClassVar[bool] = False
    """Whether it is zero on unlabelled clips."""

    @abstractmethod
    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """The mean over the clips that count: a scalar.

        Args:
            student: its logits (B, K), and the features of `pairs` under the student's tap names.
            teacher: likewise under the teacher's tap names; without gradient.
            label: (B,) int64, UNLABELLED where the class is unknown.
        """

    def pairs(self) -> tuple[Pair, ...]:
        """The taps that this loss compares."""
        return ()


@dataclass(frozen=True, kw_only=True)
class FrameLoss(Loss):
    """A loss on one tap's features, frame by frame."""

    projected: ClassVar[bool] = True
    """Whether the student's features are projected to the teacher's width; losses on the same taps share that."""
    student_tap: str = "frames"
    teacher_tap: str = "frames"

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of frame vectors."""
        return (Pair(self.student_tap, self.teacher_tap, grid="frames", projected=self.projected),)
