"""Losses on logits."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import UNLABELLED, Outputs, labelled
from videokd.losses.gather import gathered
from videokd.losses.loss import ClipwiseLoss, Facts, Loss, above_zero, at_least, in_range

Target = Literal["label", "teacher"]
"""Which class of a clip is the true one: that of its label, or the teacher's first, which unlabelled and mixed clips
have too."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(ClipwiseLoss):
    """Cross-entropy with the labels, of one class or shared by mixed clips; unlabelled clips do not count."""

    paper: ClassVar[str] = "label smoothing: Szegedy et al. 2016; shares: mixup, Zhang et al. 2018"
    needs_teacher: ClassVar[bool] = False
    several_labels: ClassVar[bool] = False
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""

    def __post_init__(self) -> None:
        in_range(label_smoothing=(self.label_smoothing, 0, 1))

    @property
    def needs_labels(self) -> bool:
        """It has nothing else."""
        return True

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`; of shares (B, K), the cross-entropy with these."""
        logits = logits_of(student)
        if label.ndim == 2:
            return F.cross_entropy(logits, label.clamp(min=0), label_smoothing=self.label_smoothing, reduction="none")
        return F.cross_entropy(
            logits, label, ignore_index=UNLABELLED, label_smoothing=self.label_smoothing, reduction="none"
        )

    def counted(self, label: Tensor) -> Tensor:
        """The labelled ones."""
        return labelled(label).float()


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(ClipwiseLoss):
    """Every class by itself, there or not: for clips that have several labels. Unlabelled clips do not count.

    Summed over classes, so that it has the scale of the one-class loss and not that divided by K.
    """

    needs_teacher: ClassVar[bool] = False

    @property
    def needs_labels(self) -> bool:
        """It has nothing else."""
        return True

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`; label int64 (B,), or 1 for every class of the clip (B, K)."""
        logits = logits_of(student)
        target = F.one_hot(label.clamp(min=0), logits.shape[1]) if label.ndim == 1 else label.clamp(min=0)
        return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").sum(dim=1)

    def counted(self, label: Tensor) -> Tensor:
        """The labelled ones."""
        return labelled(label).float()


@dataclass(frozen=True, kw_only=True)
class SoftTargets(ClipwiseLoss):
    """KL divergence from the teacher's softened classes to the student's, times T^2.

    Summed over classes and averaged over clips ("batchmean"): the published definition, not divided by K. Alone,
    without hard labels, it is function matching [Beyer et al. 2022].
    """

    paper: ClassVar[str] = "KD, Hinton et al. 2015, arXiv 1503.02531"
    needs_teacher_logits: ClassVar[bool] = True
    several_labels: ClassVar[bool] = False
    temperature: float | Literal["auto"] = 4.0
    """"auto" softens the teacher until its first class has a mean probability of 0.6 on the first training clips."""

    def __post_init__(self) -> None:
        if isinstance(self.temperature, str) and self.temperature != "auto":
            raise ValueError(f"temperature is a number above 0 or 'auto', got {self.temperature!r}")
        if self.temperature != "auto":
            above_zero(temperature=self.temperature)

    @property
    def needs_calibration(self) -> bool:
        """To find its temperature."""
        return self.temperature == "auto"

    def fitted(self, facts: Facts) -> Self:
        """See `Loss.fitted`."""
        if self.temperature != "auto":
            return self
        assert facts.teacher is not None
        return replace(self, temperature=auto_temperature(logits_of(facts.teacher)))

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`; clips with and without label."""
        temperature = known_temperature(self.temperature)
        # T^2 keeps the gradient's size about independent of the temperature.
        return divergence(logits_of(student) / temperature, logits_of(teacher) / temperature) * temperature**2


@dataclass(frozen=True, kw_only=True)
class CurriculumSoftTargets(ClipwiseLoss):
    """`SoftTargets` whose temperature is learned against the student: from soft to hard by making the loss larger.

    The temperature is start + span * sigmoid(theta); theta's gradient is reversed and scaled from 0 to 1 by a cosine
    over the first `ramp` of the run. As published, the gradient passes through T^2 too. AdamW makes steps of about the
    learning rate whatever the gradient's size, so that there the ramp says only when theta begins to move.
    """

    paper: ClassVar[str] = "CTKD, Li et al. 2023, arXiv 2211.16231 (global temperature)"
    needs_teacher_logits: ClassVar[bool] = True
    several_labels: ClassVar[bool] = False
    start: float = 1.0
    """Lowest temperature."""
    span: float = 20.0
    """Highest less lowest."""
    ramp: float = 0.05
    """Share of the run over which the adversary comes to its full strength."""

    def __post_init__(self) -> None:
        above_zero(start=self.start, span=self.span)
        in_range(ramp=(self.ramp, 0, 1))

    @property
    def learned(self) -> dict[str, float]:
        """See `Loss.learned`."""
        return {"theta": 1.0}

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`; `student.extra` holds "theta" and "progress", the share of the run that is over."""
        progress = student.extra["progress"]
        rising = (progress / self.ramp).clamp(max=1) if self.ramp else torch.ones_like(progress)
        strength = (1 - torch.cos(torch.pi * rising)) / 2
        theta = student.extra["theta"]
        # The same value, with a gradient of -strength.
        theta = theta.detach() - strength * (theta - theta.detach())
        temperature = self.start + self.span * theta.sigmoid()
        return divergence(logits_of(student) / temperature, logits_of(teacher) / temperature) * temperature**2


@dataclass(frozen=True, kw_only=True)
class StandardisedSoftTargets(ClipwiseLoss):
    """`SoftTargets` on logits of mean 0 and deviation 1 for every clip: the student learns the order and the shape of
    the teacher's answer, and not its size. Its confidence is then its own: calibrate it before use."""

    paper: ClassVar[str] = "LS, Sun et al. 2024, arXiv 2403.01427; published weight 9 beside 0.1 cross-entropy"
    needs_teacher_logits: ClassVar[bool] = True
    several_labels: ClassVar[bool] = False
    temperature: float = 2.0

    def __post_init__(self) -> None:
        above_zero(temperature=self.temperature)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        of_student, of_teacher = standardised(logits_of(student)), standardised(logits_of(teacher))
        return divergence(of_student / self.temperature, of_teacher / self.temperature) * self.temperature**2


@dataclass(frozen=True, kw_only=True)
class BinarySoftTargets(ClipwiseLoss):
    """KL divergence class by class, there or not, summed over classes: for sets with several labels a clip."""

    paper: ClassVar[str] = "MLD, Yang et al. 2023, arXiv 2308.06453; published weight 10"
    needs_teacher_logits: ClassVar[bool] = True
    needs_raw_logits: ClassVar[bool] = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        above_zero(temperature=self.temperature)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        of_student, of_teacher = (logits_of(one)[..., None] / self.temperature for one in (student, teacher))
        # Two classes, there and not there, with logits z and 0.
        both = (torch.cat([one, torch.zeros_like(one)], dim=2) for one in (of_student, of_teacher))
        return divergence(*both).sum(dim=1) * self.temperature**2


@dataclass(frozen=True, kw_only=True)
class _OfTrueClass(ClipwiseLoss):
    """A loss that sets a clip's true class against all others."""

    needs_teacher_logits: ClassVar[bool] = True
    several_labels: ClassVar[bool] = False
    target: Target = "label"
    """Which class is the true one."""

    @property
    def needs_labels(self) -> bool:
        """Unless the teacher says which class it is."""
        return self.target == "label"

    @property
    def needs_one_class(self) -> bool:
        """Likewise."""
        return self.target == "label"

    def counted(self, label: Tensor) -> Tensor | None:
        """Those that have a true class."""
        return labelled(label).float() if self.target == "label" else None


@dataclass(frozen=True, kw_only=True)
class DKD(_OfTrueClass):
    """`SoftTargets` taken apart: how sure the teacher is of the true class, and how it sees the others, by weights of
    their own. Lower `beta` where the teacher is very sure or the classes are many (0.5 on ImageNet, at T = 1)."""

    paper: ClassVar[str] = "DKD, Zhao et al. 2022, arXiv 2203.08679; published with a warm-up of 20 of 240 epochs"
    alpha: float = 1.0
    """Weight of the true class against all others."""
    beta: float = 8.0
    """Weight of the others among themselves."""
    temperature: float = 4.0

    def __post_init__(self) -> None:
        at_least(0, alpha=self.alpha, beta=self.beta)
        above_zero(temperature=self.temperature)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        of_student, of_teacher = logits_of(student) / self.temperature, logits_of(teacher) / self.temperature
        true = true_class(self.target, of_teacher, label)
        others_s, others_t = without(of_student, true), without(of_teacher, true)
        sure_s, sure_t = _against_others(of_student, others_s, true), _against_others(of_teacher, others_t, true)
        found = self.alpha * divergence(sure_s, sure_t) + self.beta * divergence(others_s, others_t)
        return found * self.temperature**2


@dataclass(frozen=True, kw_only=True)
class NKD(_OfTrueClass):
    """The teacher's probability of the true class as a soft label, and the other classes normalised among themselves.

    A cross-entropy and not a divergence: its floor is above zero.
    """

    paper: ClassVar[str] = "NKD, Yang et al. 2023, arXiv 2303.13005"
    gamma: float = 1.5
    """Weight of the other classes."""
    temperature: float = 1.0
    """Of the other classes."""

    def __post_init__(self) -> None:
        at_least(0, gamma=self.gamma)
        above_zero(temperature=self.temperature)

    def each(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """See `ClipwiseLoss.each`."""
        of_student, of_teacher = logits_of(student), logits_of(teacher)
        true = true_class(self.target, of_teacher, label)[:, None]
        sure = of_teacher.softmax(dim=1).gather(1, true).squeeze(1)
        target_class = -sure * of_student.log_softmax(dim=1).gather(1, true).squeeze(1)
        others_s = (without(of_student, true.squeeze(1)) / self.temperature).log_softmax(dim=1)
        others_t = (without(of_teacher, true.squeeze(1)) / self.temperature).softmax(dim=1)
        return target_class - self.gamma * self.temperature**2 * (others_t * others_s).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class DIST(Loss):
    """Correlation in place of divergence: of classes within a clip, and of clips within a class. Indifferent to how
    sure the teacher is. Clips of all processes count; within a class they say little unless the batch has some two
    clips a class."""

    paper: ClassVar[str] = "DIST, Huang et al. 2022, arXiv 2205.10536; published weight 2 beside cross-entropy"
    needs_teacher_logits: ClassVar[bool] = True
    several_labels: ClassVar[bool] = False
    relational: ClassVar[bool] = True
    min_clips: ClassVar[int] = 2
    beta: float = 1.0
    """Weight of the classes within a clip."""
    gamma: float = 1.0
    """Weight of the clips within a class."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        at_least(0, beta=self.beta, gamma=self.gamma)
        above_zero(temperature=self.temperature)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        """1 - Pearson's correlation, averaged over clips and over classes, times T^2."""
        mine, theirs = gathered(logits_of(student)), gathered(logits_of(teacher))
        if not len(mine):
            return 0 * logits_of(student).sum()
        # In double precision: the classes of a sure teacher differ by less than fp32 resolves next to 1.
        of_student, of_teacher = ((logits.double() / self.temperature).log_softmax(dim=1) for logits in (mine, theirs))
        loss = self.beta * (1 - _correlation(of_student, of_teacher).mean())
        if len(mine) >= self.min_clips:
            loss = loss + self.gamma * (1 - _correlation(of_student.T, of_teacher.T).mean())
        return (loss * self.temperature**2).float()


AUTO_CONFIDENCE = 0.6
"""Mean probability of the teacher's first class at the temperature that "auto" finds."""

_UNSURE, _LOWEST, _HIGHEST = 0.85, 1.0, 10.0


def auto_temperature(teacher: Tensor) -> float:
    """The lowest temperature, in halves from 1 to 10, at which a teacher's first class has a mean probability of
    `AUTO_CONFIDENCE` or less: logits (N, K).

    At most 2 for a teacher that is not sure to begin with (a mean under 0.85 at temperature 1): softened further, it
    says nothing.
    """

    def confidence(temperature: float) -> float:
        return (teacher.float() / temperature).softmax(dim=1).amax(dim=1).mean().item()

    highest = 2.0 if confidence(1.0) < _UNSURE else _HIGHEST
    candidates = [_LOWEST + half / 2 for half in range(int(2 * (highest - _LOWEST)) + 1)]
    return next((one for one in candidates if confidence(one) <= AUTO_CONFIDENCE), highest)


def known_temperature(temperature: float | Literal["auto"]) -> float:
    """The temperature, once it is found.

    Raises:
        ValueError: for "auto", which `fitted` replaces.
    """
    if temperature == "auto":
        raise ValueError("temperature 'auto' is found on training clips by `fitted`: `videokd train` does that")
    return temperature


def logits_of(outputs: Outputs | None) -> Tensor:
    """In fp32, (B, K)."""
    assert outputs is not None
    assert outputs.logits is not None
    return outputs.logits.float()


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of softmaxed logits, summed over the last dimension."""
    student, teacher = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def standardised(logits: Tensor) -> Tensor:
    """Of mean 0 and deviation 1 (unbiased) over the classes."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    # Under the root, so that logits that are all alike have a gradient.
    variance = centred.square().sum(dim=1, keepdim=True) / max(logits.shape[1] - 1, 1)
    return centred / (variance.clamp(min=1e-12).sqrt() + 1e-7)


def true_class(target: Target, teacher: Tensor, label: Tensor) -> Tensor:
    """The class that counts as a clip's true one, int64 (B,); 0 where there is none."""
    return teacher.argmax(dim=1) if target == "teacher" else label.clamp(min=0)


def without(logits: Tensor, true: Tensor) -> Tensor:
    """Logits (B, K - 1) of all other classes."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)[None]
    return logits.gather(1, columns + (columns >= true[:, None]))


def _against_others(logits: Tensor, others: Tensor, true: Tensor) -> Tensor:
    """Two logits a clip: of its true class and of all others together."""
    return torch.cat([logits.gather(1, true[:, None]), others.logsumexp(dim=1, keepdim=True)], dim=1)


def _correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two tables of log-probabilities (R, N), double precision: (R,).

    0 where a row is constant, for which it is not defined.
    """
    return (_standard_rows(student) * _standard_rows(teacher)).sum(dim=1)


def _standard_rows(log_probabilities: Tensor) -> Tensor:
    """Rows of probabilities, centred and of length 1; shorter where they differ by less than the logits' rounding."""
    mean = (log_probabilities.logsumexp(dim=1, keepdim=True) - math.log(log_probabilities.shape[1])).exp()
    # Probabilities over their mean: no row is so small that its squares underflow.
    centred = log_probabilities.softmax(dim=1) * log_probabilities.shape[1] - 1
    # A change of the logits by 1e-6 changes a probability p by p * (1 - p) * 1e-6.
    resolution = (1e-6 * (1 - mean.detach())).clamp(min=1e-14)
    return centred / torch.maximum(centred.norm(dim=1, keepdim=True), resolution)
