"""Losses on what happens between frames."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import Outputs
from videokd.losses.align import Aligned, align_in_time, layer_normalised, mean_over_shared
from videokd.losses.connectors import Connector, Linear
from videokd.losses.features import Distance, clip_vectors, distance_between
from videokd.losses.loss import FrameLoss, Loss, Pair, at_least


@dataclass(frozen=True, kw_only=True)
class TemporalDifference(FrameLoss):
    """The change from one frame's features to the next, after alignment: what moves counts, what stands still cancels.

    Shares its projection with `FrameFeatures` on the same taps.
    """

    paper: ClassVar[str] = "in common use; no single source"
    min_steps: ClassVar[int] = 2
    distance: Distance = "smooth_l1"
    connector: Connector | None = Linear()
    """From the student's features to the teacher's width."""

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' steps."""
        aligned = _aligned(self, student, teacher)
        target = layer_normalised(aligned.teacher)
        values = distance_between(aligned.student.diff(dim=1), target.diff(dim=1), self.distance)
        shared = aligned.shared
        return mean_over_shared(values, None if shared is None else shared[:, 1:] * shared[:, :-1])


@dataclass(frozen=True, kw_only=True)
class TemporalAffinity(FrameLoss):
    """Which frames of a clip resemble which: cosine of every pair of frames, student against teacher, squared.

    SP over the frames of a clip in place of the clips of a batch. Departure: the clip's mean is taken off first, so
    that the affinities tell the motion and not the scene. It needs no projection.
    """

    paper: ClassVar[str] = "after SP, Tung and Mori 2019, arXiv 1907.09682"
    min_steps: ClassVar[int] = 2

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' pairs of steps."""
        aligned = _aligned(self, student, teacher)
        error = affinity(aligned.student, aligned.shared) - affinity(aligned.teacher, aligned.shared)
        shared = aligned.shared
        both = None if shared is None else shared[:, :, None] * shared[:, None, :]
        return mean_over_shared(error.square(), both)


@dataclass(frozen=True, kw_only=True)
class TemporalSpectrum(FrameLoss):
    """How fast features change: their discrete Fourier transform over the clip's steps, orthonormal, smooth L1.

    "amplitude", as published, tells how fast and not when: an event a second later is the same to it. "complex" tells
    both. Departure: layer-normalised targets; without the paper's terms on parameters. Steps that one party did not see
    are zero for both.
    """

    paper: ClassVar[str] = "Su et al. 2020, arXiv 2009.06902"
    min_steps: ClassVar[int] = 2
    part: Literal["amplitude", "complex"] = "amplitude"
    connector: Connector | None = Linear()
    """From the student's features to the teacher's width."""

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over clips, frequencies from 0 on, and channels; of "complex", summed over its two parts."""
        aligned = _aligned(self, student, teacher)
        sides = (aligned.student, layer_normalised(aligned.teacher))
        if aligned.shared is not None:
            sides = (sides[0] * aligned.shared[:, :, None], sides[1] * aligned.shared[:, :, None])
        of_student, of_teacher = (torch.view_as_real(torch.fft.rfft(one, dim=1, norm="ortho")) for one in sides)
        if self.part == "amplitude":
            # Under the root, so that a silent frequency has a finite gradient.
            of_student, of_teacher = ((one.square().sum(dim=-1) + 1e-8).sqrt() for one in (of_student, of_teacher))
        error = F.smooth_l1_loss(of_student, of_teacher, reduction="none")
        return (error if self.part == "amplitude" else error.sum(dim=-1)).mean()


@dataclass(frozen=True, kw_only=True)
class ShuffleRelation(Loss):
    """How much a clip's features change when its pieces of time are shuffled, for the student as for the teacher: a
    student that does not look at the order is told so. It asks both for a second pass, over the shuffled clip.

    The distance between the clip vector as filmed and shuffled, in units of their length, student against teacher,
    squared. (A cosine would have no gradient for the very student that hardly looks at the order.)
    """

    paper: ClassVar[str] = "order as a relation, after the shuffled difficulty of SAKD 2025, arXiv 2504.00606"
    number_of_pieces: int = 4
    """Into which the clip is cut; it must divide the frames of both."""
    student_tap: str = "clip"
    teacher_tap: str = "clip"

    def __post_init__(self) -> None:
        at_least(2, number_of_pieces=self.number_of_pieces)

    @property
    def pieces(self) -> int:
        """See `Loss.pieces`."""
        return self.number_of_pieces

    def pairs(self) -> tuple[Pair, ...]:
        """Clip vectors, as filmed and shuffled."""
        return tuple(
            Pair(self.student_tap, self.teacher_tap, grid="clip", shuffled=shuffled) for shuffled in (False, True)
        )

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over clips."""
        filmed, shuffled = self.pairs()
        of_student = _change(*(clip_vectors(student, pair.student_name) for pair in (filmed, shuffled)))
        of_teacher = _change(*(clip_vectors(teacher, pair.teacher_name) for pair in (filmed, shuffled)))
        return (of_student - of_teacher).square().mean()


def affinity(features: Tensor, shared: Tensor | None) -> Tensor:
    """Cosines (B, T, T) between the frames of features (B, T, C), their mean over the shared steps (B, T) taken off."""
    if shared is None:
        mean = features.mean(dim=1, keepdim=True)
    else:
        counted = shared[:, :, None]
        mean = (features * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp(min=1)
    centred = features - mean
    gram = centred @ centred.transpose(1, 2)
    # The lengths are on its diagonal: fewer numbers to divide than the features have.
    over_length = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-12).rsqrt()
    return gram * over_length[:, :, None] * over_length[:, None, :]


def _change(one: Tensor, other: Tensor) -> Tensor:
    """Distance of vectors (B, C) over the root of their mean square length: (B,), 0 to 2."""
    length = ((one.square() + other.square()).sum(dim=1) / 2).clamp(min=1e-10)
    # Under the root, so that the gradient is finite where nothing changed.
    return ((one - other).square().sum(dim=1) / length + 1e-10).sqrt()


def _aligned(loss: FrameLoss, student: Outputs, teacher: Outputs | None) -> Aligned:
    assert teacher is not None
    return align_in_time(student.features[loss.student_tap], teacher.features[loss.teacher_tap])
