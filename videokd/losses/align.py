"""Student and teacher steps brought onto one grid of time, by their seconds and not by their index."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import FeatureMap

_FAR = 1e6  # seconds: a single step stands for all of time


class Aligned(NamedTuple):
    """Per-frame features of both parties on the coarser of their grids."""

    student: Tensor  # (B, T, Cs)
    teacher: Tensor  # (B, T, Ct)
    shared: Tensor  # (B, T) 1 where both saw this time, 0 where one did not


def align_in_time(student: FeatureMap, teacher: FeatureMap) -> Aligned:
    """Averages space away, then the finer map's steps into the coarser map's, weighted by their overlap in time.

    Nothing is up-sampled: a step is never matched to another second. The student's own grid is kept where the two
    are equally fine. A step's extent reaches half-way to its neighbours.
    """
    student, teacher = student.pooled("frames"), teacher.pooled("frames")
    student_BTC, teacher_BTC = student.values[:, :, 0, 0].float(), teacher.values[:, :, 0, 0].float()
    if _spacing(student.times) >= _spacing(teacher.times) - 1e-6:
        weights, shared = overlap_weights(teacher.times, student.times)
        return Aligned(student_BTC, weights @ teacher_BTC, shared)
    weights, shared = overlap_weights(student.times, teacher.times)
    return Aligned(weights @ student_BTC, teacher_BTC, shared)


def overlap_weights(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each target step every source step covers.

    Args:
        source: (B, Ts) centre times in seconds, rising.
        target: (B, Tt) likewise.

    Returns:
        Weights (B, Tt, Ts) whose rows sum to 1, or to 0 where no source step reaches the target step; and (B, Tt)
        with 1 where one does.
    """
    source_start, source_end = _extents(source)
    target_start, target_end = _extents(target)
    start = torch.maximum(source_start[:, None, :], target_start[:, :, None])
    end = torch.minimum(source_end[:, None, :], target_end[:, :, None])
    overlap = (end - start).clamp(min=0)
    covered = overlap.sum(dim=2, keepdim=True)
    # Less than a thousandth of a step in common is rounding, not overlap.
    shared = covered > 1e-3 * (target_end - target_start)[:, :, None].clamp(max=1.0)
    weights = torch.where(shared, overlap / covered.clamp(min=1e-12), torch.zeros_like(overlap))
    return weights, shared.squeeze(2).to(weights.dtype)


def mean_over_shared(values: Tensor, shared: Tensor) -> Tensor:
    """Mean of (B, T) values over the steps that both parties saw; 0 if there are none."""
    return (values * shared).sum() / shared.sum().clamp(min=1)


def layer_normalised(features: Tensor) -> Tensor:
    """Targets of unit scale, so that a loss's weight does not depend on the teacher's."""
    return F.layer_norm(features.float(), features.shape[-1:])


def _extents(times: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end (B, T) of each step, half-way to its neighbours."""
    if times.shape[1] == 1:
        return times - _FAR, times + _FAR
    middles = (times[:, 1:] + times[:, :-1]) / 2
    first = times[:, :1] - (middles[:, :1] - times[:, :1])
    last = times[:, -1:] + (times[:, -1:] - middles[:, -1:])
    return torch.cat([first, middles], dim=1), torch.cat([middles, last], dim=1)


def _spacing(times: Tensor) -> float:
    """Mean seconds between steps; infinite for a single one."""
    if times.shape[1] == 1:
        return float("inf")
    return float((times[:, -1] - times[:, 0]).mean()) / (times.shape[1] - 1)
