"""Optimisers: parameter groups and schedules, pure functions of the model and the step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from videokd.config import nearest
from videokd.models import Model
from videokd.models.depth import layer_depths

Schedule = Literal["cosine", "step", "constant"]
"""How the learning rate goes on after the warm-up: along half a cosine [Loshchilov and Hutter 2017], down by a factor
at milestones, or not at all."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """What every optimiser has: a budget, a schedule, and which parts of the student learn, at what rate."""

    steps: int
    """Optimiser steps of the whole run: the budget."""
    lr: float
    """Highest learning rate."""
    weight_decay: float
    """On weights alone: not on biases, norms and other vectors."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    schedule: Schedule = "cosine"
    """How it goes on: "cosine" falls all the way to `lr_end`, "step" by `gamma` at each of the `milestones`."""
    lr_end: float = 0.0
    """Share of the learning rate that "cosine" ends at."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """Shares of the run at which "step" falls: 150, 180 and 210 of 240 epochs, as in CRD [Tian et al. 2020] and what
    compares itself with it."""
    gamma: float = 0.1
    """Factor of "step"."""
    clip_norm: float | None = 5.0
    """Largest norm of the gradient; None for no limit."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer of the student's backbone to the one before it [Clark et al. 2020;
    Bao et al. 2022]; heads, connectors and what losses learn keep the full rate. None has one rate for all."""
    freeze: tuple[str, ...] = ()
    """Modules of the student's model that do not learn before `freeze_until`, such as "backbone" or
    "backbone.blocks.0": neither their parameters, nor the running statistics of their batch norms."""
    freeze_until: float = 1.0
    """Share of the run at which they begin to learn; 1 is never."""
    accumulate: int = 1
    """Parts into which a batch is cut for the student, to need less memory; the teacher sees it whole. Losses that
    compare clips with each other, and batch norms, see a part alone."""
    ema: float | None = None
    """Decay of a running mean of the student's weights, which is then what is validated, kept and shipped: 0.999 is the
    mean of about the last thousand steps. None keeps the weights themselves."""

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0, or None for no limit, got {self.clip_norm}")
        if self.steps < 1 or self.lr <= 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"steps must be at least 1, lr above 0 and warmup in [0, 1), "
                f"got steps={self.steps}, lr={self.lr}, warmup={self.warmup}"
            )
        if not 0 <= self.lr_end <= 1 or not 0 < self.gamma <= 1:
            raise ValueError(f"lr_end lies in [0, 1] and gamma in (0, 1], got {self.lr_end} and {self.gamma}")
        if list(self.milestones) != sorted(set(self.milestones)) or not all(0 < one < 1 for one in self.milestones):
            raise ValueError(f"milestones are rising shares of the run, above 0 and below 1, got {self.milestones}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay lies in (0, 1], or is None for one rate, got {self.layer_decay}")
        if not 0 < self.freeze_until <= 1:
            raise ValueError(f"freeze_until is a share of the run, above 0 and up to 1, got {self.freeze_until}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate counts parts of a batch: at least 1, got {self.accumulate}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema lies in (0, 1), or is None for no mean, got {self.ema}")

    @abstractmethod
    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of all parameters that learn, frozen ones too: call it before `set_frozen`.

        Args:
            module: a model, or what holds one; with `layer_decay`, the first model in it is what has layers.

        Raises:
            ValueError: with `layer_decay`, for a model whose layers can't be told.
        """

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup_steps = self.warmup * self.steps
        rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return self.lr * rising * self._share_at(step)

    def set_lr(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Gives every group of parameters the learning rate of a step, counted from 0; returns the highest."""
        lr = self.lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def frozen_at(self, step: int) -> bool:
        """Whether `freeze` is in force at a step, counted from 0."""
        return bool(self.freeze) and (self.freeze_until == 1 or step < self.freeze_until * self.steps)

    def set_frozen(self, model: nn.Module, frozen: bool) -> None:
        """Freezes the modules that `freeze` names, or has those learn again that it froze.

        Parameters of frozen modules have no gradient, and optimisers leave them as they are. Their batch norms stay in
        eval mode, whatever mode the model is put into.

        Raises:
            ValueError: for a name that is not in the model (with the nearest), or if nothing is left to learn.
        """
        parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
        for name in self.freeze:
            if name not in parameters and (name not in modules or not name):
                beside = _beside(name, dict.fromkeys((*modules, *parameters)))
                raise ValueError(f"freeze names {name!r}, which the student does not have{nearest(name, beside)}")
        for name, parameter in parameters.items():
            # Some never learn, such as tables of sines: those are not to begin now.
            if self._names(name) and (parameter.requires_grad if frozen else hasattr(parameter, _MARK)):
                parameter.requires_grad_(not frozen)
                setattr(parameter, _MARK, True)
        for name, module in modules.items():
            if self._names(name) and isinstance(module, _BatchNorm):
                if frozen:
                    module.eval()
                    vars(module)["train"] = MethodType(_stay, module)
                elif vars(module).pop("train", None):
                    module.train(model.training)
        if frozen and not any(parameter.requires_grad for parameter in parameters.values()):
            raise ValueError(f"freeze leaves nothing of the student to learn: {', '.join(self.freeze)}")

    def _names(self, path: str) -> bool:
        return any(path == name or path.startswith(f"{name}.") for name in self.freeze)

    def _share_at(self, step: int) -> float:
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "step":
            return self.gamma ** sum(step >= milestone * self.steps for milestone in self.milestones)
        return self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Parameters that learn, by their weight decay and, with `layer_decay`, their layer."""
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in layer if (p.ndim > 1) == is_weight], "weight_decay": decay, **scale}
            for layer, scale in self._layers(module, learning)
            for is_weight, decay in ((True, self.weight_decay), (False, 0.0))
        ]

    def _layers(
        self, module: nn.Module, learning: list[nn.Parameter]
    ) -> Iterator[tuple[list[nn.Parameter], dict[str, float]]]:
        """The parameters of each layer, from the last to the first, with the share of the learning rate."""
        if self.layer_decay is None:
            yield learning, {}
            return
        model = next((part for part in module.modules() if isinstance(part, Model)), None)
        if model is None:
            raise ValueError(f"layer_decay is for the layers of a model, and {type(module).__name__} holds none")
        depths = layer_depths(model)
        head = max(depths.values())
        numbers = {id(parameter): depths[name] for name, parameter in model.named_parameters()}
        for depth in range(head, -1, -1):
            layer = [parameter for parameter in learning if numbers.get(id(parameter), head) == depth]
            yield layer, {"lr_scale": self.layer_decay ** (head - depth)}


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW [Loshchilov and Hutter 2019]."""

    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """On weights alone: not on biases, norms and other vectors."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the root of the latter."""

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """See `Optimizer.build`."""
        return torch.optim.AdamW(self._groups(module), lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum. Weight decay is part of the gradient, and as strong as the rate."""

    lr: float = 0.05
    """Highest learning rate."""
    weight_decay: float = 5e-4
    """On weights alone: not on biases, norms and other vectors."""
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1 or (self.nesterov and not self.momentum):
            raise ValueError(
                f"momentum lies in [0, 1), above 0 with nesterov, got {self.momentum} and nesterov={self.nesterov}"
            )

    def build(self, module: nn.Module) -> torch.optim.SGD:
        """See `Optimizer.build`."""
        # Not fused: torch's fused one takes no parameter that gets its first gradient later than others, as those do
        # that were frozen.
        return torch.optim.SGD(self._groups(module), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


_MARK = "_frozen_by_recipe"


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a batch norm that is frozen."""
    return module


def _beside(path: str, known: Collection[str]) -> list[str]:
    """What there is at the place where a path leaves what is there."""
    parent = path
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    return [one for one in known if one and one.rpartition(".")[0] == parent]
