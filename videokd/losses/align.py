"""Student and teacher steps brought onto one grid of time, by their seconds and not by their index."""

from dataclasses import replace
from typing import NamedTuple
from weakref import ref

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from videokd.contracts import FeatureMap

_FAR = 1e6  # seconds: a single step stands for all of time


class Aligned(NamedTuple):
    """Per-frame features of both parties on the coarser of their grids."""

    student: Tensor  # (B, T, Cs)
    teacher: Tensor  # (B, T, Ct)
    shared: Tensor | None  # (B, T) 1 where both saw this time, 0 where one did not; None where both saw all of it


class AlignedMaps(NamedTuple):
    """Maps of both parties on the coarser of their grids, in time and in space."""

    student: Tensor  # (B, T, H, W, Cs)
    teacher: Tensor  # (B, T, H, W, Ct)
    shared: Tensor | None  # (B, T)


def align_in_time(student: FeatureMap, teacher: FeatureMap) -> Aligned:
    """Averages space away, then the finer map's steps into the coarser map's, weighted by their overlap in time.

    Nothing is up-sampled: a step is never matched to another second. The student's own grid is kept where the two
    are equally fine. A step's extent reaches half-way to its neighbours.
    """
    of_student, of_teacher, shared = _in_time(student.pooled("frames"), teacher.pooled("frames"))
    return Aligned(of_student[:, :, 0, 0], of_teacher[:, :, 0, 0], shared)


def align_maps(student: FeatureMap, teacher: FeatureMap) -> AlignedMaps:
    """`align_in_time` with space kept: the finer grid's places are averaged into the coarser's, in height and width
    each by itself."""
    height, width = (min(one, other) for one, other in zip(_places(student), _places(teacher), strict=True))
    return _in_time(in_space(student, height, width), in_space(teacher, height, width))


def in_space(features: FeatureMap, height: int, width: int) -> FeatureMap:
    """Averaged to a grid of height x width, which is no finer."""
    if _places(features) == (height, width):
        return features
    clips, steps = features.times.shape
    folded = rearrange(features.values, "b t h w c -> (b t) c h w").float()
    pooled = F.adaptive_avg_pool2d(folded, (height, width))
    return replace(features, values=rearrange(pooled, "(b t) c h w -> b t h w c", b=clips, t=steps))


def _places(features: FeatureMap) -> tuple[int, int]:
    return features.values.shape[2], features.values.shape[3]


def _in_time(student: FeatureMap, teacher: FeatureMap) -> AlignedMaps:
    grids = _grids(student, teacher)
    of_student, of_teacher = student.values.float(), teacher.values.float()
    if grids.weights is None:
        return AlignedMaps(of_student, of_teacher, grids.shared)
    if grids.keeps_student:
        return AlignedMaps(of_student, _averaged(grids.weights, of_teacher), grids.shared)
    return AlignedMaps(_averaged(grids.weights, of_student), of_teacher, grids.shared)


class _Grids(NamedTuple):
    """How two grids of time are brought together."""

    keeps_student: bool  # the student's is the coarser
    weights: Tensor | None  # from the finer to the coarser, None where they are the same
    shared: Tensor | None


_RECENT: list[tuple["ref[Tensor]", "ref[Tensor]", _Grids]] = []
"""Of the last pairs of times: all terms of a step ask for the same few."""


def _grids(student: FeatureMap, teacher: FeatureMap) -> _Grids:
    """Found once for the same two tensors of times (B, T)."""
    for one, other, found in _RECENT:
        if one() is student.times and other() is teacher.times:
            return found
    same, keeps_student = _compared(student, teacher)
    if same:
        found = _Grids(True, None, None)
    elif keeps_student:
        found = _Grids(True, *overlap_weights(teacher.times, student.times))
    else:
        found = _Grids(False, *overlap_weights(student.times, teacher.times))
    if not torch.compiler.is_compiling():  # a graph finds what it has twice by itself
        _RECENT.append((ref(student.times), ref(teacher.times), found))
        del _RECENT[:-4]
    return found


def _compared(student: FeatureMap, teacher: FeatureMap) -> tuple[bool, bool]:
    """Whether the two grids are the same, and whether the student's steps are as far apart or farther. The times
    themselves are read, for which the host waits, only where nothing else tells."""
    steps, other_steps = student.times.shape[1], teacher.times.shape[1]
    if 1 in (steps, other_steps):  # it stands for all of time
        return steps == other_steps, steps == 1
    if student.pace is not None and teacher.pace is not None and student.pace.unit == teacher.pace.unit:
        return student.pace == teacher.pace, student.pace.spacing >= teacher.pace.spacing * (1 - 1e-6)
    facts = [_spacing(student.times), _spacing(teacher.times)]
    facts += [(student.times - teacher.times).abs().amax()] if steps == other_steps else []
    spacing_s, spacing_t, *apart = torch.stack(facts).tolist()
    return bool(apart) and apart[0] < 1e-6, spacing_s >= spacing_t - 1e-6


def _averaged(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (B, T, T') of values (B, T', H, W, C)."""
    flat = weights @ values.flatten(2)
    return flat.view(*flat.shape[:2], *values.shape[2:])


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


def mean_over_shared(values: Tensor, shared: Tensor | None) -> Tensor:
    """Mean of (B, T) values over the steps that both parties saw; 0 if there are none."""
    if shared is None:
        return values.mean()
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


def _spacing(times: Tensor) -> Tensor:
    """Mean seconds between steps (B, T), of which there are several: ()."""
    return (times[:, -1] - times[:, 0]).float().mean() / (times.shape[1] - 1)
