"""Losses for classes of which some have many clips and others few."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import Outputs
from videokd.losses.logits import CrossEntropy, SoftTargets, divergence, known_temperature, logits_of
from videokd.losses.loss import Facts, at_least, on_device

Counts = tuple[int, ...] | None
"""Labelled training clips of every class; None counts those of the training set."""


@dataclass(frozen=True, kw_only=True)
class BalancedSoftmax(CrossEntropy):
    """Cross-entropy of logits to which the log of the class's clips is added, in training alone: at test time all
    classes are then as likely. A distillation term beside it stays on the plain logits."""

    paper: ClassVar[str] = "Ren et al. 2020, arXiv 2007.10740"
    class_counts: Counts = None

    def fitted(self, facts: Facts) -> Self:
        """See `Loss.fitted`."""
        return replace(self, class_counts=self.class_counts or facts.class_counts)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        logits = logits_of(student)
        counts = on_device(_of(self.class_counts, logits), logits.device)
        # A class without any clip is as good as never: log of a small number, so that nothing becomes infinite.
        return super().each(Outputs(logits + counts.clamp(min=1e-6).log()), teacher, label)


@dataclass(frozen=True, kw_only=True)
class ClassBalanced(CrossEntropy):
    """Cross-entropy by weights of the class, (1 - beta) / (1 - beta^n), that sum to K."""

    paper: ClassVar[str] = "Cui et al. 2019, arXiv 1901.05555"
    beta: float = 0.999
    """Near 1, weights go with 1 / n; at 0 they are all alike."""
    class_counts: Counts = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_beta(self.beta)

    def fitted(self, facts: Facts) -> Self:
        """See `Loss.fitted`."""
        return replace(self, class_counts=self.class_counts or facts.class_counts)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`; of a mixed clip, each class's part by the class's weight."""
        logits = logits_of(student)
        weights = on_device(effective_weights(_of(self.class_counts, logits), self.beta), logits.device)
        shares = F.one_hot(label.clamp(min=0), logits.shape[1]).float() if label.ndim == 1 else label.clamp(min=0)
        return F.cross_entropy(logits, shares, weight=weights, label_smoothing=self.label_smoothing, reduction="none")


@dataclass(frozen=True, kw_only=True)
class BKD(SoftTargets):
    """`SoftTargets` in which the teacher's probabilities are multiplied by the weights of `ClassBalanced` and made to
    sum to 1 again; the cross-entropy beside it stays plain."""

    paper: ClassVar[str] = "BKD, Zhang et al. 2021, arXiv 2104.10510"
    beta: float = 0.999
    """See `ClassBalanced`."""
    class_counts: Counts = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_beta(self.beta)

    def fitted(self, facts: Facts) -> Self:
        """See `Loss.fitted`."""
        return replace(super().fitted(facts), class_counts=self.class_counts or facts.class_counts)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        temperature, of_teacher = known_temperature(self.temperature), logits_of(teacher)
        weights = on_device(effective_weights(_of(self.class_counts, of_teacher), self.beta), of_teacher.device)
        return divergence(logits_of(student) / temperature, of_teacher / temperature + weights.log()) * temperature**2


@lru_cache(maxsize=64)
def effective_weights(counts: tuple[int, ...], beta: float) -> tuple[float, ...]:
    """Weights of classes by their effective number of clips [Cui et al. 2019], which sum to the number of classes.

    A class without clips has the weight of one with a single clip.
    """
    raw = [(1 - beta) / (1 - beta ** max(count, 1)) for count in counts]
    return tuple(len(raw) * one / sum(raw) for one in raw)


def _of(counts: Counts, logits: Tensor) -> tuple[int, ...]:
    if counts is None:
        raise ValueError("class_counts is counted on the training set by `fitted` (as `videokd train` does), or given")
    if len(counts) != logits.shape[1]:
        raise ValueError(f"class_counts has {len(counts)} numbers, and there are {logits.shape[1]} classes")
    return counts


def _check_beta(beta: float) -> None:
    at_least(0, beta=beta)
    if beta >= 1:
        raise ValueError(f"beta must be below 1, got {beta}")
