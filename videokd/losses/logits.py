"""Losses on logits."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import UNLABELLED, Outputs, labelled
from videokd.losses.loss import Loss


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy with the labels, of one class or shared by mixed clips; unlabelled clips do not count."""

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes [Szegedy et al. 2016]."""

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over labelled clips, 0 if there are none; of shares (B, K), the cross-entropy with these."""
        assert student.logits is not None
        logits, known = student.logits.float(), labelled(label)
        if label.ndim == 2:
            each = F.cross_entropy(logits, label.clamp(min=0), label_smoothing=self.label_smoothing, reduction="none")
            return (each * known).sum() / known.sum().clamp(min=1)
        total = F.cross_entropy(
            logits, label, ignore_index=UNLABELLED, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / known.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class SoftTargets(Loss):
    """KL divergence from the teacher's softened classes to the student's, times T^2 [Hinton et al. 2015].

    Summed over classes and averaged over clips ("batchmean"): the published definition, not divided by K.
    """

    needs_teacher_logits: ClassVar[bool] = True
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over clips, labelled or not."""
        assert student.logits is not None
        assert teacher is not None
        assert teacher.logits is not None
        divergence = F.kl_div(
            F.log_softmax(student.logits.float() / self.temperature, dim=1),
            F.log_softmax(teacher.logits.float() / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        # T^2 keeps the gradient's size about independent of the temperature.
        return divergence * self.temperature**2
