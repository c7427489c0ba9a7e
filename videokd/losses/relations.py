"""Losses on how clips lie to each other, and to a bank of others: on clip vectors, of all processes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from videokd.contracts import UNLABELLED, Outputs
from videokd.losses.connectors import Connector, Linear
from videokd.losses.features import clip_vectors, unit, unit_squares
from videokd.losses.gather import gathered
from videokd.losses.logits import divergence
from videokd.losses.loss import Bank, Loss, Pair, above_zero, at_least
from videokd.processes import is_distributed, mean_over_processes, world_size

BANK, BANK_FILLED, BANK_LABEL, BANK_CLIP = "bank", "bank filled", "bank label", "bank clip"
"""Under these names `teacher.extra` holds a bank: vectors (Q, C), whether each is there bool (Q,), its class and which
clip it is, int64 (Q,)."""

_TINY = 1e-12
_ROUNDING = 1e-5  # of a squared distance made of inner products in fp32, relative to the squared lengths
_ANCHORS = 8  # at once, of the angles


@dataclass(frozen=True, kw_only=True)
class _ClipRelation(Loss):
    """A loss on the relations between the clip vectors of a batch; widths may differ, and nothing is learned for it."""

    relational: ClassVar[bool] = True
    min_clips: ClassVar[int] = 2
    student_tap: str = "clip"
    teacher_tap: str = "clip"

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of clip vectors."""
        return (Pair(self.student_tap, self.teacher_tap, grid="clip"),)

    def both(self, student: Outputs, teacher: Outputs | None) -> tuple[Tensor, Tensor] | None:
        """Clip vectors of all processes, (B, Cs) and (B, Ct); None if they are too few."""
        vectors = gathered(clip_vectors(student, self.student_tap)), gathered(clip_vectors(teacher, self.teacher_tap))
        return vectors if len(vectors[0]) >= self.min_clips else None


@dataclass(frozen=True, kw_only=True)
class RKDDistance(_ClipRelation):
    """How far clips are from each other, in units of the mean distance: smooth L1, mean over pairs of two clips.

    Departure: pairs of a clip with itself, which are 0, are not in the mean as they are in the authors' code; nor are
    such triplets in `RKDAngle`.
    """

    paper: ClassVar[str] = "RKD-D, Park et al. 2019, arXiv 1904.05068; published weight 25"

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over pairs."""
        vectors = self.both(student, teacher)
        if vectors is None:
            return nothing(student, self.student_tap)
        one, other = (_distances(_gram(side)) for side in vectors)
        pairs = len(one) * (len(one) - 1)
        one, other = (distances * pairs / distances.sum().clamp(min=_TINY) for distances in (one, other))
        return F.smooth_l1_loss(one, other, reduction="sum") / pairs


@dataclass(frozen=True, kw_only=True)
class RKDAngle(_ClipRelation):
    """The angle at every clip between any two others: smooth L1 of cosines, mean over triplets of three clips.

    Computed for a few clips at a time, and again in the backward pass, so that memory goes with B^2 and not B^3.
    """

    paper: ClassVar[str] = "RKD-A, Park et al. 2019, arXiv 1904.05068; published weight 50"
    min_clips: ClassVar[int] = 3

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over triplets."""
        vectors = self.both(student, teacher)
        if vectors is None:
            return nothing(student, self.student_tap)
        one, other = (_gram(side) for side in vectors)
        clips = len(one)
        total = one.new_zeros(())
        for anchors in torch.arange(clips, device=one.device).split(_ANCHORS):
            found = checkpoint(_angle_error, one, other, anchors, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(found, Tensor)
            total = total + found
        return total / (clips * (clips - 1) * (clips - 2))


@dataclass(frozen=True, kw_only=True)
class SP(_ClipRelation):
    """Which clips resemble which: rows of the batch's Gram matrix, each of length 1; squared difference over B^2.

    Departure: on pooled clip vectors, so that the two maps may have different grids.
    """

    paper: ClassVar[str] = "SP, Tung and Mori 2019, arXiv 1907.09682; published weight 3000"

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Sum over pairs, by B^2."""
        vectors = self.both(student, teacher)
        if vectors is None:
            return nothing(student, self.student_tap)
        one, other = (unit_squares(side @ side.T) for side in vectors)
        return (one - other).square().mean()


@dataclass(frozen=True, kw_only=True)
class PKT(_ClipRelation):
    """How likely each clip is to pick another as its neighbour, by cosine: KL divergence, mean over clips.

    Departure: summed over neighbours, where the authors' code takes the mean over B^2: their weight of 30000 is
    30000 / B here. A clip's likeness to itself is left out, as in the paper.
    """

    paper: ClassVar[str] = "PKT, Passalis and Tefas 2018, arXiv 1803.10837; published weight 30000 / B"

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over clips."""
        vectors = self.both(student, teacher)
        if vectors is None:
            return nothing(student, self.student_tap)
        one, other = (_neighbours(side) for side in vectors)
        return (other * ((other + 1e-7).log() - (one + 1e-7).log())).sum(dim=1).mean()


@dataclass(frozen=True, kw_only=True)
class CRD(Loss):
    """Contrast: of all teacher's vectors, in the batch and in a queue of past ones, a student's must be nearest to that
    of its own clip; and the teacher's, of all students' in the batch. Clips of one class, and other views of the clip
    itself, are no counter-examples.

    Departures: InfoNCE [Oord et al. 2018] over batch and queue in place of noise contrast over a memory of every clip;
    the student is projected to the teacher's width, the teacher is not projected. Its floor is above zero.
    """

    paper: ClassVar[str] = "CRD, Tian et al. 2020, arXiv 1910.10699; published weight 0.8"
    relational: ClassVar[bool] = True
    tells_clips_apart: ClassVar[bool] = True
    min_clips: ClassVar[int] = 2
    temperature: float = 0.07
    queue: int = 1024
    """Past teacher's vectors; 0 for the batch alone."""
    connector: Connector | None = Linear()
    """From the student's features to the teacher's width."""
    student_tap: str = "clip"
    teacher_tap: str = "clip"

    def __post_init__(self) -> None:
        above_zero(temperature=self.temperature)
        at_least(0, queue=self.queue)

    @property
    def bank(self) -> Bank:
        """See `Loss.bank`."""
        return "queue" if self.queue else "none"

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of clip vectors."""
        return (Pair(self.student_tap, self.teacher_tap, grid="clip", connector=self.connector, target="direction"),)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over clips of both directions."""
        assert teacher is not None
        one = gathered(unit(clip_vectors(student, self.student_tap)))
        other = gathered(unit(clip_vectors(teacher, self.teacher_tap)))
        classes, clips = gathered(class_numbers(label)), gathered(clip_numbers(teacher, len(label)))
        if len(one) < self.min_clips:
            return nothing(student, self.student_tap)
        logits = one @ other.T / self.temperature
        alike = _alike(classes, clips, classes, clips)
        alike.fill_diagonal_(False)
        logits = logits.masked_fill(alike, -torch.inf)
        own = torch.arange(len(one), device=one.device)
        backward = F.cross_entropy(logits.T, own)
        if BANK in teacher.extra:
            more = one @ unit(teacher.extra[BANK]).T / self.temperature
            kept = teacher.extra
            no_example = ~kept[BANK_FILLED][None] | _alike(classes, clips, kept[BANK_LABEL], kept[BANK_CLIP])
            logits = torch.cat([logits, more.masked_fill(no_example, -torch.inf)], dim=1)
        return (F.cross_entropy(logits, own) + backward) / 2


@dataclass(frozen=True, kw_only=True)
class BankAffinity(Loss):
    """How a clip lies to a bank of vectors in the teacher's space: KL divergence of the softmaxed cosines, teacher's
    against student's. Needs no label.

    The bank is a queue of the teacher's past clip vectors (and those of the batch), or the vectors by which the teacher
    tells its classes apart: of CLIP, the embeddings of their names.
    """

    paper: ClassVar[str] = "TinyCLIP, Wu et al. 2023, arXiv 2309.12314"
    temperature: float = 0.07
    of: Literal["queue", "classes"] = "queue"
    """Which bank."""
    queue: int = 1024
    """Past vectors, of a queue."""
    connector: Connector | None = Linear()
    """From the student's features to the teacher's width."""
    student_tap: str = "clip"
    teacher_tap: str = "clip"

    def __post_init__(self) -> None:
        above_zero(temperature=self.temperature)
        at_least(1, queue=self.queue)

    @property
    def relational(self) -> bool:  # type: ignore[override]
        """The batch is part of a queue."""
        return self.of == "queue"

    @property
    def bank(self) -> Bank:
        """See `Loss.bank`."""
        return self.of

    def pairs(self) -> tuple[Pair, ...]:
        """One pair of clip vectors."""
        return (Pair(self.student_tap, self.teacher_tap, grid="clip", connector=self.connector, target="direction"),)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """Mean over clips."""
        assert teacher is not None
        one, other = unit(clip_vectors(student, self.student_tap)), unit(clip_vectors(teacher, self.teacher_tap))
        bank, filled = unit(teacher.extra[BANK]), teacher.extra[BANK_FILLED]
        if self.of == "queue":
            batch = gathered(other)
            bank, filled = torch.cat([batch, bank]), torch.cat([filled.new_ones(len(batch)), filled])
        # Far below any cosine: a place that is not filled yet has no part.
        empty = torch.where(filled, 0.0, -1e4)[None]
        of_student, of_teacher = (side @ bank.T / self.temperature + empty for side in (one, other))
        each = divergence(of_student, of_teacher)
        if self.relational and is_distributed():  # as in `ClipwiseLoss`
            return each.sum() / mean_over_processes(each.new_tensor(float(len(each)))).clamp(min=1 / world_size())
        return each.mean() if len(each) else nothing(student, self.student_tap)


def class_numbers(label: Tensor) -> Tensor:
    """int64 (B,): UNLABELLED for clips that are mixed, or have several labels."""
    if label.ndim == 1:
        return label
    pure = (label == 1).sum(dim=1) == 1
    return torch.where(pure & (label.clamp(min=0).sum(dim=1) == 1), label.argmax(dim=1), UNLABELLED)


NO_CLIP = -1
"""The number of a clip that is not told apart from others."""


def clip_numbers(outputs: Outputs, clips: int) -> Tensor:
    """Which clip each is, int64 (B,); NO_CLIP where that is not known."""
    if outputs.clip is not None:
        return outputs.clip
    assert outputs.logits is not None or outputs.features
    here = next(iter(outputs.features.values())).values if outputs.features else outputs.logits
    assert here is not None
    return torch.full((clips,), NO_CLIP, device=here.device)


def _alike(classes: Tensor, clips: Tensor, other_classes: Tensor, other_clips: Tensor) -> Tensor:
    """Whether two are of one class, or the same clip: bool (B, Q)."""
    one_class = (classes[:, None] == other_classes[None]) & (classes[:, None] != UNLABELLED)
    return one_class | ((clips[:, None] == other_clips[None]) & (clips[:, None] != NO_CLIP))


def nothing(student: Outputs, tap: str) -> Tensor:
    """Zero, with a gradient of zero."""
    return 0 * student.features[tap].values.float().sum()


def _gram(vectors: Tensor) -> Tensor:
    """Inner products (B, B) of vectors whose mean is taken off: distances and angles stay, rounding gets smaller."""
    centred = vectors - vectors.mean(dim=0)
    return centred @ centred.T


def _distances(gram: Tensor) -> Tensor:
    """Distances (B, B) between all clips; 0 to oneself."""
    squares = gram.diagonal()
    scale = squares[:, None] + squares[None]
    # Clamped under the root, at what is mere rounding: there its gradient has no meaning, and at 0 no end.
    distances = torch.maximum(scale - 2 * gram, _ROUNDING * scale.detach()).clamp(min=_TINY).sqrt()
    return distances.masked_fill(torch.eye(len(gram), dtype=torch.bool, device=gram.device), 0.0)


def _angle_error(one: Tensor, other: Tensor, anchors: Tensor) -> Tensor:
    """Sum over anchors and pairs of others of the smooth L1 of cosines."""
    found, wanted = _angles(one, anchors), _angles(other, anchors)
    return F.smooth_l1_loss(found, wanted, reduction="sum")


def _angles(gram: Tensor, anchors: Tensor) -> Tensor:
    """Cosine (A, B, B) of the angle at each anchor j between i and k; 0 where they are not three clips."""
    near = gram[anchors]  # (A, B): <j, i>
    inner = gram[None] - near[:, :, None] - near[:, None, :] + gram.diagonal()[anchors][:, None, None]
    squares, clips = inner.diagonal(dim1=1, dim2=2), torch.arange(len(gram), device=gram.device)
    lengths = squares.clamp(min=_TINY).sqrt()
    cosines = (inner / (lengths[:, :, None] * lengths[:, None, :])).clamp(-1, 1)
    # Two clips that are the same but for rounding have no direction between them.
    same = squares <= _ROUNDING * (gram.diagonal()[anchors][:, None] + gram.diagonal()[None])
    degenerate = same[:, :, None] | same[:, None, :] | (clips[:, None] == clips[None])[None]
    return cosines.masked_fill(degenerate, 0.0)


def _neighbours(vectors: Tensor) -> Tensor:
    """Probability (B, B) of picking each other clip, by cosine in [0, 1]."""
    directions = unit(vectors)
    likeness = (directions @ directions.T + 1) / 2
    likeness = likeness.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), 0.0)
    return likeness / likeness.sum(dim=1, keepdim=True).clamp(min=_TINY)
