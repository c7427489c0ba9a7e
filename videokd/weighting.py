"""Weights: of an objective's terms, from step to step; and of the clips of a term."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import Outputs, labelled
from videokd.losses.logits import logits_of
from videokd.losses.loss import above_zero, at_least, in_range
from videokd.processes import mean_over_processes


@dataclass(frozen=True)
class Weighting(ABC):
    """How the terms of an objective are weighted against each other, on top of the weights that the recipe gives."""

    paper: ClassVar[str] = ""
    """Where it comes from."""

    @abstractmethod
    def build(self, names: Sequence[str]) -> "Weigher":
        """Its state, for terms of these names, in this order.

        Raises:
            ValueError: if it names a term that is not there.
        """


class Weigher(nn.Module):
    """Weights from losses. What it learns or keeps is part of the run's checkpoint.

    Args:
        names: of the terms.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.shared: Sequence[Tensor] = ()
        """Parameters that all terms may have a gradient of, first to last; for those that weigh by gradients."""

    def forward(self, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        """Factors (N,) of the terms' own weights, and what is added to each: from N losses, as the terms give them."""
        raise NotImplementedError


def scheduled_weight(weight: float, progress: float, *, warmup: float, decay: float) -> float:
    """A weight at a share `progress` of the run: rising from zero over the first `warmup` of it, falling to zero over
    the last `decay`, both linear."""
    rising = min(1.0, progress / warmup) if warmup else 1.0
    falling = min(1.0, (1 - progress) / decay) if decay else 1.0
    return weight * min(rising, falling)


@dataclass(frozen=True, kw_only=True)
class FixedWeights(Weighting):
    """The weights of the recipe, with their warm-up and decay."""

    def build(self, names: Sequence[str]) -> Weigher:
        """See `Weighting.build`."""
        return _Fixed(names)


class _Fixed(Weigher):
    def forward(self, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        return torch.ones(len(losses), device=losses[0].device), 0.0


@dataclass(frozen=True, kw_only=True)
class ScaleNormalised(Weighting):
    """Every term is brought to the size of one of them: divided by its running mean, times that one's. A weight then
    means the same whatever the loss, the width and the number of steps."""

    reference: str = "hard"
    """The term whose size is taken."""
    momentum: float = 0.99
    """Of the running means; at first they are plain means. A term that is zero (no clip counted) keeps its mean."""
    limit: float = 1000.0
    """A factor is at most this, and at least one over it."""

    def __post_init__(self) -> None:
        in_range(momentum=(self.momentum, 0, 1))
        at_least(1, limit=self.limit)

    def build(self, names: Sequence[str]) -> Weigher:
        """See `Weighting.build`."""
        return _ScaleNormalised(names, self)


class _ScaleNormalised(Weigher):
    mean: Tensor
    steps: Tensor

    def __init__(self, names: Sequence[str], config: ScaleNormalised) -> None:
        super().__init__(names)
        self.reference, self.config = _place(config.reference, names), config
        self.register_buffer("mean", torch.zeros(len(names)))
        self.register_buffer("steps", torch.zeros(len(names)))

    def forward(self, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        found = mean_over_processes(torch.stack(list(losses))).abs()
        self.steps += found > 0
        # The plain mean until it reaches as far back as the running one.
        momentum = (1 - 1 / self.steps.clamp(min=1)).clamp(max=self.config.momentum)
        self.mean.copy_(torch.where(found > 0, found + momentum * (self.mean - found), self.mean))
        return _ratios(self.mean[self.reference], self.mean, self.config.limit), 0.0


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Weighting):
    """A learned s for every term: loss / (2 exp(s)) + s / 2, times the term's own weight. It favours terms that become
    small, useful or not; s stays in [-3, 3], and has no weight decay."""

    paper: ClassVar[str] = "Kendall, Gal and Cipolla 2018, arXiv 1705.07115"
    initial: float = -0.5
    """Of s."""

    def __post_init__(self) -> None:
        in_range(initial=(self.initial, -3, 3))

    def build(self, names: Sequence[str]) -> Weigher:
        """See `Weighting.build`."""
        return _Uncertainty(names, self)


class _Uncertainty(Weigher):
    def __init__(self, names: Sequence[str], config: Uncertainty) -> None:
        super().__init__(names)
        self.log_variance = nn.Parameter(torch.full((len(names),), config.initial))

    def forward(self, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        with torch.no_grad():
            self.log_variance.clamp_(-3, 3)
        return 0.5 * torch.exp(-self.log_variance), 0.5 * self.log_variance


@dataclass(frozen=True, kw_only=True)
class DWA(Weighting):
    """Terms that fall slowly weigh more: N times the softmax of the ratio of their last two means over `interval`
    steps, by the temperature. All alike for the first two intervals."""

    paper: ClassVar[str] = "DWA, Liu, Johns and Davison 2019, arXiv 1803.10704"
    temperature: float = 2.0
    interval: int = 100
    """Steps that stand for an epoch."""

    def __post_init__(self) -> None:
        above_zero(temperature=self.temperature)
        at_least(1, interval=self.interval)

    def build(self, names: Sequence[str]) -> Weigher:
        """See `Weighting.build`."""
        return _DWA(names, self)


class _DWA(Weigher):
    totals: Tensor  # (N,) of the interval that runs
    means: Tensor  # (2, N) of the last two
    steps: Tensor

    def __init__(self, names: Sequence[str], config: DWA) -> None:
        super().__init__(names)
        self.temperature, self.interval = config.temperature, config.interval
        self.register_buffer("totals", torch.zeros(len(names)))
        self.register_buffer("means", torch.ones(2, len(names)))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        ratio = self.means[1].abs() / self.means[0].abs().clamp(min=1e-8)
        started = self.steps >= 2 * self.interval
        factors = torch.where(started, len(losses) * (ratio / self.temperature).softmax(dim=0), torch.ones_like(ratio))
        self.totals += mean_over_processes(torch.stack(list(losses)))
        self.steps += 1
        over = self.steps % self.interval == 0
        self.means.copy_(torch.where(over, torch.stack([self.means[1], self.totals / self.interval]), self.means))
        self.totals.copy_(torch.where(over, torch.zeros_like(self.totals), self.totals))
        return factors, 0.0


@dataclass(frozen=True, kw_only=True)
class GradientRatio(Weighting):
    """Every term's gradient, in the last layer that all of them reach, is made `target` times that of one of them: a
    cheap GradNorm. Costs a short backward pass for every term, every `interval` steps."""

    paper: ClassVar[str] = "after GradNorm, Chen et al. 2018, arXiv 1711.02257"
    reference: str = "hard"
    """The term that the others are measured by."""
    target: float = 0.5
    """Norm of a term's gradient, its own weight being 1, over that of the reference."""
    limit: float = 1000.0
    """A factor is at most this, and at least one over it."""
    momentum: float = 0.9
    """Of the running mean of the norms."""
    interval: int = 10
    """Steps between measurements."""

    def __post_init__(self) -> None:
        above_zero(target=self.target)
        at_least(1, limit=self.limit, interval=self.interval)
        in_range(momentum=(self.momentum, 0, 1))

    def build(self, names: Sequence[str]) -> Weigher:
        """See `Weighting.build`."""
        return _GradientRatio(names, self)


class _GradientRatio(Weigher):
    norms: Tensor
    steps: Tensor

    def __init__(self, names: Sequence[str], config: GradientRatio) -> None:
        super().__init__(names)
        self.config, self.reference = config, _place(config.reference, names)
        self._step = -1  # the buffer's value, where it can be read without waiting for the device
        self.register_buffer("norms", torch.zeros(len(names)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._layer: tuple[Tensor, ...] = ()  # not registered: it is the model's

    def forward(self, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        if self._step < 0:
            self._step = int(self.steps)
        if self._step % self.config.interval == 0:
            self._measure(losses)
        self._step += 1
        self.steps += 1
        factors = _ratios(self.config.target * self.norms[self.reference], self.norms, self.config.limit)
        factors[self.reference] = 1.0
        return factors, 0.0

    def _measure(self, losses: Sequence[Tensor]) -> None:
        if not self._layer:
            self._layer = (self._last_common(losses),)
        norms = torch.stack([_norm(loss, self._layer[0]) for loss in losses])
        # A term that is silent for a while (no labelled clip in the batch) keeps the norm that it had.
        found = norms
        first = self.norms == 0
        running = torch.where(first, found, self.norms.lerp(found, 1 - self.config.momentum))
        self.norms.copy_(torch.where(found > 0, running, self.norms))

    def _last_common(self, losses: Sequence[Tensor]) -> Tensor:
        weights = [parameter for parameter in self.shared if parameter.ndim > 1 and parameter.requires_grad]
        reached = [
            [
                gradient is not None
                for gradient in torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            ]
            if loss.requires_grad
            else [False] * len(weights)
            for loss in losses
        ]
        common = [weight for place, weight in enumerate(weights) if all(one[place] for one in reached)]
        if not common:
            raise ValueError("no layer of the student has a gradient of every term: GradientRatio can't weigh them")
        return common[-1]


@dataclass(frozen=True, kw_only=True)
class RandomWeights(Weighting):
    """A control: N times the softmax of normal random numbers, new at every step. A scheme that adapts must beat it."""

    paper: ClassVar[str] = "RLW, Lin et al. 2022, arXiv 2111.10603"
    seed: int = 0

    def build(self, names: Sequence[str]) -> Weigher:
        """See `Weighting.build`."""
        return _Random(names, self)


class _Random(Weigher):
    steps: Tensor

    def __init__(self, names: Sequence[str], config: RandomWeights) -> None:
        super().__init__(names)
        self.seed = config.seed
        self._step = -1  # the buffer's value, where it can be read without waiting for the device
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        if self._step < 0:
            self._step = int(self.steps)
        # A generator of its own: the same for every process, device and model.
        rng = np.random.default_rng([self.seed, self._step])
        self._step += 1
        self.steps += 1
        drawn = torch.from_numpy(rng.standard_normal(len(losses))).float().softmax(dim=0)
        return len(losses) * drawn.to(losses[0].device, non_blocking=True), 0.0


@dataclass(frozen=True)
class ClipWeights(ABC):
    """Weights of a term's clips, without gradient: where a teacher is worth following."""

    paper: ClassVar[str] = ""
    """Where it comes from."""

    @abstractmethod
    def __call__(self, student: Outputs, teacher: Outputs, label: Tensor) -> Tensor:
        """(B,) in [0, 1]; of clips without a label 1, where the weight would need it."""


@dataclass(frozen=True, kw_only=True)
class WhereStudentIsWorse(ClipWeights):
    """1 - exp(-CE of the student / CE of the teacher): less for clips that the student already gets as right as its
    teacher does."""

    paper: ClassVar[str] = "WSLD, Zhou et al. 2021, arXiv 2102.00650; published T = 2, weight 2.5"

    def __call__(self, student: Outputs, teacher: Outputs, label: Tensor) -> Tensor:
        """See `ClipWeights`."""
        of_student, of_teacher = (_cross_entropy(one, label) for one in (student, teacher))
        weights = 1 - torch.exp(-of_student / of_teacher.clamp(min=1e-7))
        return torch.where(labelled(label), weights, 1.0)


@dataclass(frozen=True, kw_only=True)
class WhereTeacherIsRight(ClipWeights):
    """1 where the teacher's first class is the label, else 0; of mixed clips, the share of that class."""

    def __call__(self, student: Outputs, teacher: Outputs, label: Tensor) -> Tensor:
        """See `ClipWeights`."""
        first = logits_of(teacher).argmax(dim=1)
        right = (first == label).float() if label.ndim == 1 else label.clamp(min=0).gather(1, first[:, None]).squeeze(1)
        return torch.where(labelled(label), right, 1.0)


@dataclass(frozen=True, kw_only=True)
class WhereTeacherIsSure(ClipWeights):
    """1 - entropy of the teacher's classes over that of no knowledge at all; it needs no label."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        above_zero(temperature=self.temperature)

    def __call__(self, student: Outputs, teacher: Outputs, label: Tensor) -> Tensor:
        """See `ClipWeights`."""
        log_probs = (logits_of(teacher).detach() / self.temperature).log_softmax(dim=1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1)
        return 1 - entropy / torch.log(torch.tensor(float(log_probs.shape[1])))


def _cross_entropy(outputs: Outputs, label: Tensor) -> Tensor:
    logits = logits_of(outputs).detach()
    return F.cross_entropy(logits, label.clamp(min=0), reduction="none")


def _norm(loss: Tensor, parameter: Tensor) -> Tensor:
    gradient: Tensor | None = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    # Of the mean over processes: norms of each one's own would also count what cancels out between them.
    norm: Tensor = mean_over_processes(torch.zeros_like(parameter) if gradient is None else gradient).float().norm()
    return norm


def _ratios(wanted: Tensor, found: Tensor, limit: float) -> Tensor:
    """wanted / found (N,), within the limit; 1 where either is not known yet."""
    known = (found > 0) & (wanted > 0)
    return torch.where(known, (wanted / found.clamp(min=1e-30)).clamp(1 / limit, limit), 1.0)


def _place(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise ValueError(
            f"the weights are measured by term {name!r}, which the objective does not have{nearest(name, names)}"
        )
    return list(names).index(name)
