"""Losses on what happens between frames."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import Outputs
from videokd.losses.align import align_in_time, layer_normalised, mean_over_shared
from videokd.losses.features import Distance, distance_BT
from videokd.losses.loss import FrameLoss


@dataclass(frozen=True, kw_only=True)
class TemporalDifference(FrameLoss):
    """The change from one frame's features to the next, after alignment: what moves counts, what stands still cancels.

    Shares its projection with `FrameFeatures` on the same taps.
    """

    distance: Distance = "smooth_l1"

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' steps; 0 if the coarser grid has a single step."""
        assert teacher is not None
        aligned = align_in_time(student.features[self.student_tap], teacher.features[self.teacher_tap])
        target = layer_normalised(aligned.teacher)
        values = distance_BT(aligned.student.diff(dim=1), target.diff(dim=1), self.distance)
        return mean_over_shared(values, aligned.shared[:, 1:] * aligned.shared[:, :-1])


@dataclass(frozen=True, kw_only=True)
class TemporalAffinity(FrameLoss):
    """Which frames of a clip resemble which: cosine of every pair of frames, student against teacher, squared.

    Similarity-preserving distillation [Tung and Mori 2019] over the frames of a clip in place of the clips of a
    batch. Departure: the clip's mean is taken off first, so that the affinities tell the motion and not the scene.
    It needs no projection.
    """

    projected: ClassVar[bool] = False

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' pairs of steps."""
        assert teacher is not None
        aligned = align_in_time(student.features[self.student_tap], teacher.features[self.teacher_tap])
        error = affinity(aligned.student, aligned.shared) - affinity(aligned.teacher, aligned.shared)
        both = aligned.shared[:, :, None] * aligned.shared[:, None, :]
        return mean_over_shared(error.square(), both)


def affinity(features: Tensor, shared: Tensor) -> Tensor:
    """Cosines (B, T, T) between the frames of features (B, T, C), their mean over the shared steps (B, T) taken off."""
    features = features.float()
    counted = shared[:, :, None]
    mean = (features * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp(min=1)
    unit = F.normalize(features - mean, dim=-1, eps=1e-6)
    return unit @ unit.transpose(1, 2)
