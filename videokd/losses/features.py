"""Losses on features: of the clip, of its frames, of places in its frames."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import FeatureMap, Outputs
from videokd.losses.align import align_in_time, align_maps, layer_normalised, mean_over_shared
from videokd.losses.connectors import (
    Connector,
    ConvNorm,
    Linear,
    MaskedGeneration,
    ThroughHead,
    Variational,
)
from videokd.losses.loss import ClipwiseLoss, Facts, FrameLoss, Loss, Pair, above_zero, at_least, in_range, on_device

Distance = Literal["smooth_l1", "cosine", "mse"]
Targets = Literal["layer_normalised", "whitened", "raw"]
"""The teacher's features at unit scale, vector by vector; at mean 0 and deviation 1, channel by channel, by the first
training clips (better for the sparse features that come after a ReLU); or as they are."""
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of every channel."""


@dataclass(frozen=True, kw_only=True)
class _Hint:
    """Which features are compared, and how: shared by the losses that follow a teacher's features as they are."""

    distance: Distance = "smooth_l1"
    targets: Targets = "layer_normalised"
    connector: Connector | None = Linear()
    """From the student's features to the teacher's; None for features of one width."""
    moments: Moments | None = None
    """Of whitened targets; None finds them on the first training clips."""

    @property
    def needs_calibration(self) -> bool:
        """To whiten."""
        return self.targets == "whitened" and self.moments is None

    def target(self, features: Tensor) -> Tensor:
        """What the student is to give, for a teacher's features (..., C)."""
        if self.targets == "raw":
            return features.float()
        if self.targets == "layer_normalised":
            return layer_normalised(features)
        if self.moments is None:
            raise ValueError("the moments of whitened targets are found on training clips by `fitted`, or given")
        mean, deviation = (on_device(one, features.device) for one in self.moments)
        return (features.float() - mean) / deviation


@dataclass(frozen=True, kw_only=True)
class ClipFeatures(_Hint, ClipwiseLoss):
    """The student's projected clip vector against the teacher's.

    Departure: the target is layer-normalised, unless `targets` is "raw", so that the weight does not depend on the
    teacher's feature scale.
    """

    paper: ClassVar[str] = "hints, Romero et al. 2015, arXiv 1412.6550; cosine as in UMT, Li et al. 2023"
    distance: Distance = "cosine"
    student_tap: str = "clip"
    teacher_tap: str = "clip"

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of clip vectors."""
        return (Pair(self.student_tap, self.teacher_tap, grid="clip", connector=self.connector, target=self.targets),)

    def fitted(self, facts: Facts) -> Self:
        """See `Loss.fitted`."""
        return replace(self, moments=_moments(facts, self.teacher_tap, "clip")) if self.needs_calibration else self

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        predicted, target = clip_vectors(student, self.student_tap), clip_vectors(teacher, self.teacher_tap)
        return distance_between(predicted, self.target(target), self.distance)


@dataclass(frozen=True, kw_only=True)
class FrameFeatures(_Hint, FrameLoss):
    """The student's projected frame vectors against the teacher's of the same seconds (`losses.align`).

    Departure: as of `ClipFeatures`.
    """

    paper: ClassVar[str] = "hints, Romero et al. 2015, arXiv 1412.6550, frame by frame"

    @property
    def wanted(self) -> str:
        """See `FrameLoss.wanted`."""
        return self.targets

    def fitted(self, facts: Facts) -> Self:
        """See `Loss.fitted`."""
        return replace(self, moments=_moments(facts, self.teacher_tap, "frames")) if self.needs_calibration else self

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' aligned steps."""
        aligned = align_in_time(*_sides(self, student, teacher))
        values = distance_between(aligned.student, self.target(aligned.teacher), self.distance)
        return mean_over_shared(values, aligned.shared)


@dataclass(frozen=True, kw_only=True)
class _MapLoss(Loss):
    """A loss on one tap's features, place by place."""

    student_tap: str = "frames"
    teacher_tap: str = "frames"


@dataclass(frozen=True, kw_only=True)
class MapFeatures(_Hint, _MapLoss):
    """FitNets' hint, place by place: the student's map through a regressor against the teacher's, on the coarser grid
    of the two in time and space."""

    paper: ClassVar[str] = "FitNets, Romero et al. 2015, arXiv 1412.6550; published weight 100"
    distance: Distance = "mse"
    targets: Targets = "raw"
    connector: Connector | None = ConvNorm()

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of maps."""
        return (Pair(self.student_tap, self.teacher_tap, grid="map", connector=self.connector, target=self.targets),)

    def fitted(self, facts: Facts) -> Self:
        """See `Loss.fitted`."""
        return replace(self, moments=_moments(facts, self.teacher_tap, "map")) if self.needs_calibration else self

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' aligned steps and places."""
        aligned = align_maps(*_sides(self, student, teacher))
        values = distance_between(aligned.student, self.target(aligned.teacher), self.distance)
        return mean_over_shared(values.mean(dim=(2, 3)), aligned.shared)


@dataclass(frozen=True, kw_only=True)
class MultiScale(_MapLoss):
    """ReviewKD's hierarchical context loss: the squared error of the maps, and half, a quarter and an eighth as much
    that of the maps averaged to ever coarser grids; divided by the sum of these weights.

    Departure: without ReviewKD's fusion of stages; a regressor (`ConvNorm`) stands in its place. Averaged over the
    aligned steps.
    """

    paper: ClassVar[str] = "HCL of ReviewKD, Chen et al. 2021, arXiv 2104.09044; published weight 1 to 8, warm-up"
    levels: tuple[int, ...] = (4, 2, 1)
    """Sides of the coarser grids; those that are not coarser than the map are left out."""
    connector: Connector | None = ConvNorm()

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1 or list(self.levels) != sorted(set(self.levels), reverse=True):
            raise ValueError(f"levels are falling numbers of at least 1, got {self.levels}")

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of maps."""
        return (Pair(self.student_tap, self.teacher_tap, grid="map", connector=self.connector),)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' aligned steps."""
        aligned = align_maps(*_sides(self, student, teacher))
        error = aligned.student - aligned.teacher
        side = min(error.shape[2], error.shape[3])
        total, weights, weight = error.square().mean(dim=(2, 3, 4)), 1.0, 1.0
        folded = error.permute(0, 1, 4, 2, 3).flatten(0, 1)
        for level in self.levels:
            if level >= side:
                continue
            weight /= 2
            # Pooling is linear: the error of pooled maps is the pooled error.
            pooled = F.adaptive_avg_pool2d(folded, level).square().mean(dim=(1, 2, 3)).view_as(total)
            total, weights = total + weight * pooled, weights + weight
        return mean_over_shared(total / weights, aligned.shared)


@dataclass(frozen=True, kw_only=True)
class _Attention(_MapLoss):
    """A loss on where, or when, networks are active."""

    power: float = 2.0
    """Of the activations; at least 1, under which a channel that is silent has no gradient."""

    def __post_init__(self) -> None:
        at_least(1, power=self.power)

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of maps."""
        return (Pair(self.student_tap, self.teacher_tap, grid="map"),)


@dataclass(frozen=True, kw_only=True)
class SpatialAttention(_Attention):
    """Where in every frame the networks are active: their energy over channels, of length 1 in every frame.

    Mean squared difference over places, as in the authors' code, and over aligned steps. Needs no connector. A finer
    grid's energy is averaged, not its features: what is active stays so.
    """

    paper: ClassVar[str] = "AT, Zagoruyko and Komodakis 2017, arXiv 1612.03928; published weight 1000"
    min_places: ClassVar[int] = 2

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' aligned steps and places."""
        of_student, of_teacher = (_energy(one, self.power) for one in _sides(self, student, teacher))
        aligned = align_maps(of_student, of_teacher)
        attended = (unit_squares(one.flatten(2)) for one in (aligned.student, aligned.teacher))
        one, other = attended
        return mean_over_shared((one - other).square().mean(dim=2), aligned.shared)


@dataclass(frozen=True, kw_only=True)
class TemporalAttention(_Attention):
    """When in the clip the networks are active: `SpatialAttention` with the energy of whole frames over time."""

    paper: ClassVar[str] = "AT, Zagoruyko and Komodakis 2017, arXiv 1612.03928, over time; published weight 1000"
    min_steps: ClassVar[int] = 2

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' aligned steps."""
        of_student, of_teacher = (_energy(one, self.power) for one in _sides(self, student, teacher))
        aligned = align_in_time(of_student, of_teacher)
        sides = (part.squeeze(2) for part in (aligned.student, aligned.teacher))
        one, other = (unit_squares(side if aligned.shared is None else side * aligned.shared) for side in sides)
        return mean_over_shared((one - other).square(), aligned.shared)


@dataclass(frozen=True, kw_only=True)
class SRRL(ClipwiseLoss):
    """The student's clip vector, regressed to the teacher's, must be near to it, and must say the same through the
    teacher's own classifier: squared distance of the vectors plus `beta` times the mean squared error of the logits."""

    paper: ClassVar[str] = "SRRL, Yang et al. 2021, ICLR"
    needs_teacher_logits: ClassVar[bool] = True
    needs_raw_logits: ClassVar[bool] = True
    beta: float = 5.0
    """Weight of the classifier's answer."""
    relu: bool = True
    """Whether the regressor ends in a ReLU, as published: for teachers whose clip vectors come after one. False for
    transformers."""
    student_tap: str = "clip"
    teacher_tap: str = "clip"

    def __post_init__(self) -> None:
        at_least(0, beta=self.beta)

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of clip vectors, the student's with the logits that the teacher's head makes of it."""
        return (Pair(self.student_tap, self.teacher_tap, grid="clip", connector=ThroughHead(self.relu)),)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        assert teacher is not None
        assert teacher.logits is not None
        target = clip_vectors(teacher, self.teacher_tap)
        both, width = clip_vectors(student, self.student_tap), target.shape[1]
        features, logits = both[:, :width], both[:, width:]
        answer = (logits - teacher.logits.float()).square().mean(dim=1)
        return (features - target).square().sum(dim=1) + self.beta * answer


@dataclass(frozen=True, kw_only=True)
class VID(_MapLoss):
    """How likely the teacher's features are given the student's: a normal distribution of which the mean is regressed
    and the variance of every channel is learned. Its floor is below zero where the variance is under 1."""

    paper: ClassVar[str] = "VID, Ahn et al. 2019, arXiv 1904.05835"
    variance: float = 5.0
    """At first."""

    def __post_init__(self) -> None:
        above_zero(variance=self.variance)

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of maps, the student's mean and variance side by side."""
        return (Pair(self.student_tap, self.teacher_tap, grid="map", connector=Variational(self.variance)),)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Negative log-likelihood without its constant: mean over aligned steps, places and channels."""
        of_student, of_teacher = _sides(self, student, teacher)
        aligned = align_maps(of_student, of_teacher)
        mean, variance = aligned.student.chunk(2, dim=-1)
        if aligned.shared is not None:  # what alignment left out is zero: no certainty
            variance = torch.where(aligned.shared[:, :, None, None, None] > 0, variance, torch.ones_like(variance))
        values = 0.5 * ((aligned.teacher - mean).square() / variance + variance.log())
        return mean_over_shared(values.mean(dim=(2, 3, 4)), aligned.shared)


@dataclass(frozen=True, kw_only=True)
class MGD(_MapLoss):
    """The teacher's map generated from the student's, of which a share of the channels is hidden: squared error,
    summed over channels and places as published, averaged over clips and aligned steps."""

    paper: ClassVar[str] = "MGD, Yang et al. 2022, arXiv 2205.01529; published weight 7e-5"
    share: float = 0.15
    """Of the channels that are hidden."""

    def __post_init__(self) -> None:
        in_range(share=(self.share, 0, 1))

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of maps, the student's generated."""
        return (Pair(self.student_tap, self.teacher_tap, grid="map", connector=MaskedGeneration(self.share)),)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over the clips' aligned steps."""
        aligned = align_maps(*_sides(self, student, teacher))
        return mean_over_shared((aligned.student - aligned.teacher).square().sum(dim=(2, 3, 4)), aligned.shared)


def distance_between(predicted: Tensor, target: Tensor, distance: Distance) -> Tensor:
    """Distance of vectors (..., C) -> (...): mean over channels, or 2 - 2 cos."""
    predicted, target = predicted.float(), target.float()
    if distance == "cosine":
        return 2 - 2 * (unit(predicted) * unit(target)).sum(dim=-1)
    if distance == "mse":
        return F.mse_loss(predicted, target, reduction="none").mean(dim=-1)
    return F.smooth_l1_loss(predicted, target, reduction="none").mean(dim=-1)


def clip_vectors(outputs: Outputs | None, tap: str) -> Tensor:
    """A tap's mean over time and space, in fp32: (B, C)."""
    assert outputs is not None
    return outputs.features[tap].pooled("clip").values[:, 0, 0, 0].float()


def unit(vectors: Tensor) -> Tensor:
    """Of length 1 in the last dimension; near zero, with a gradient that stays finite."""
    return F.normalize(vectors.float(), dim=-1, eps=1e-5)


def unit_squares(rows: Tensor) -> Tensor:
    """Return rows (..., C) of products or powers of features, of length 1; rows of zeros as they are.

    `unit` takes vectors shorter than 1e-5 for zero, which the squares of features of 1e-3 are.
    """
    largest = rows.detach().abs().amax(dim=-1, keepdim=True)
    return unit(rows / torch.where(largest > 1e-20, largest, 1.0))


def _sides(loss: FrameLoss | _MapLoss, student: Outputs, teacher: Outputs | None) -> tuple[FeatureMap, FeatureMap]:
    assert teacher is not None
    return student.features[loss.student_tap], teacher.features[loss.teacher_tap]


def _energy(features: FeatureMap, power: float) -> FeatureMap:
    """Mean over channels of the activations' power, as one channel."""
    values = features.values.float().abs().pow(power).mean(dim=-1, keepdim=True)
    return replace(features, values=values)


def _moments(facts: Facts, tap: str, grid: Literal["clip", "frames", "map"]) -> Moments:
    assert facts.teacher is not None
    values = facts.teacher.features[tap].pooled(grid).values.flatten(0, 3).double()
    # A channel that is always the same says nothing, and is not blown up to unit size.
    deviation = values.std(dim=0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.amax().clamp(min=1e-12), deviation, 1.0)
    return tuple(values.mean(dim=0).tolist()), tuple(deviation.tolist())
