"""How alike the features of two networks are: linear CKA, unbiased, over batches of any number of clips."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videokd.contracts import FeatureMap

LEAST_CLIPS = 4
"""The unbiased estimate needs as many clips in a batch."""


@dataclass
class TapSimilarity:
    """Linear CKA [Kornblith et al. 2019] of every tap of a student with every tap of a teacher, batch after batch.

    A batch is worth the unbiased HSIC_1 [Song et al. 2012, eq. 5] of its clips, and CKA is the ratio of sums of these
    over batches [Nguyen et al. 2021, eq. 2], each batch counted by its clips: features that have nothing in common are
    at 0 on average however wide they are and however few clips there are, and may be a little below it. What is kept
    is a few numbers a pair of taps.

    A clip is one sample: its map is averaged over space and time first, as is usual. (Every step of time as a sample
    of its own would count the frames of one video as independent, and tell videos apart twice.)
    """

    clips: int = 0
    """How many were used."""
    _sums: dict[tuple[str, str], float] = field(default_factory=dict)  # (student tap, teacher tap)
    _own: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))

    def update(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """Counts a batch: tap -> features (B, C) of the same clips. One of fewer than `LEAST_CLIPS` is left out."""
        clips = len(next(iter(student.values())))
        if clips < LEAST_CLIPS:
            return
        self.clips += clips
        of_student = {tap: gram(features) for tap, features in student.items()}
        of_teacher = {tap: gram(features) for tap, features in teacher.items()}
        for kernels, own in zip((of_student, of_teacher), self._own):
            for tap, kernel in kernels.items():
                own[tap] = own.get(tap, 0.0) + clips * unbiased_hsic(kernel, kernel)
        for tap, kernel in of_student.items():
            for other, other_kernel in of_teacher.items():
                both = (tap, other)
                self._sums[both] = self._sums.get(both, 0.0) + clips * unbiased_hsic(kernel, other_kernel)

    def value(self, student: str, teacher: str) -> float | None:
        """CKA of two taps, at most about 1; None where one of them says the same of every clip, or was not seen."""
        own = self._own[0].get(student, 0.0) * self._own[1].get(teacher, 0.0)
        # Both are sums of squares but for a little noise, and a vanishing one is no length to divide by.
        if own <= 0 or self._own[0][student] <= 0:
            return None
        return self._sums[student, teacher] / math.sqrt(own)


def pooled(features: Mapping[str, FeatureMap]) -> dict[str, Tensor]:
    """Tap -> one vector a clip, (B, C): maps averaged over space and time."""
    return {tap: one.pooled("clip").values.detach().flatten(1) for tap, one in features.items()}


def gram(features: Tensor) -> Tensor:
    """Inner products of all pairs of clips, float64 (B, B) from (B, C), of features whose mean was taken away."""
    # HSIC_1 does not see the mean, but its digits are lost in the products of a large one.
    exact = features.double()
    centred = exact - exact.mean(dim=0)
    return centred @ centred.T


def unbiased_hsic(one: Tensor, other: Tensor) -> float:
    """HSIC_1 of two kernel matrices (B, B) of the same B >= 4 clips [Song et al. 2012, eq. 5]."""
    clips = len(one)
    if clips < LEAST_CLIPS:
        raise ValueError(f"the unbiased HSIC needs at least {LEAST_CLIPS} clips, got {clips}")
    one, other = one - one.diag().diag(), other - other.diag().diag()
    rows, other_rows = one.sum(dim=1), other.sum(dim=1)
    found = (one * other).sum() + rows.sum() * other_rows.sum() / ((clips - 1) * (clips - 2))
    found = found - 2 / (clips - 2) * rows @ other_rows
    return torch.Tensor.item(found) / (clips * (clips - 3))
