"""Parameter groups and schedules: pure functions of the model and the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW [Loshchilov and Hutter 2019] under a linear warm-up and a cosine down to zero."""

    steps: int
    """Optimiser steps of the whole run: the budget."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """On weights alone: not on biases, norms and other vectors."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    clip_norm: float | None = 5.0
    """Largest norm of the gradient; None for no limit."""
    accumulate: int = 1
    """Parts into which a batch is cut for the student."""
    ema: float | None = None
    """Decay of the running mean of the weights."""
    freeze: tuple[str, ...] = ()
    """Modules."""
    freeze_until: float = 1.0
    """Share."""

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0, or None for no limit, got {self.clip_norm}")
        if self.steps < 1 or self.lr <= 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"steps must be at least 1, lr above 0 and warmup in [0, 1), "
                f"got steps={self.steps}, lr={self.lr}, warmup={self.warmup}"
            )

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """The optimiser of all parameters that learn."""
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, fused=True)

    def set_lr(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Sets."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(step)

    def frozen_at(self, step: int) -> bool:
        """Whether."""
        return False

    def set_frozen(self, model: nn.Module, frozen: bool) -> None:
        """Sets."""

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup_steps = self.warmup * self.steps
        rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return self.lr * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))
