"""Losses on features, per clip and per frame."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import Outputs
from videokd.losses.align import align_in_time, layer_normalised, mean_over_shared
from videokd.losses.loss import FrameLoss, Loss, Pair

Distance = Literal["smooth_l1", "cosine", "mse"]


@dataclass(frozen=True, kw_only=True)
class ClipFeatures(Loss):
    """The student's projected clip vector against the teacher's layer-normalised one [hint learning, Romero 2015].

    Departure: the target is layer-normalised, so that the weight does not depend on the teacher's feature scale.
    """

    distance: Distance = "cosine"
    student_tap: str = "clip"
    teacher_tap: str = "clip"

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of clip vectors, the student's projected."""
        return (Pair(self.student_tap, self.teacher_tap, grid="clip", projected=True),)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over clips."""
        assert teacher is not None
        predicted = student.features[self.student_tap].pooled("clip").values[:, 0, 0, 0]
        target = teacher.features[self.teacher_tap].pooled("clip").values[:, 0, 0, 0]
        return distance_BT(predicted, layer_normalised(target), self.distance).mean()


@dataclass(frozen=True, kw_only=True)
class FrameFeatures(FrameLoss):
    """The student's projected frame vectors against the teacher's layer-normalised ones of the same seconds.

    Hint learning [Romero et al. 2015] per frame, aligned by timestamp (`losses.align`).
    """

    distance: Distance = "smooth_l1"

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' aligned steps."""
        assert teacher is not None
        aligned = align_in_time(student.features[self.student_tap], teacher.features[self.teacher_tap])
        values = distance_BT(aligned.student, layer_normalised(aligned.teacher), self.distance)
        return mean_over_shared(values, aligned.shared)


def distance_BT(predicted: Tensor, target: Tensor, distance: Distance) -> Tensor:
    """Distance of vectors (..., C) -> (...): mean over channels, or 2 - 2 cos."""
    predicted, target = predicted.float(), target.float()
    if distance == "cosine":
        return 2 - 2 * F.cosine_similarity(predicted, target, dim=-1)
    if distance == "mse":
        return F.mse_loss(predicted, target, reduction="none").mean(dim=-1)
    return F.smooth_l1_loss(predicted, target, reduction="none").mean(dim=-1)
