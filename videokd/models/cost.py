"""What a model costs: parameters, and multiply-accumulates per clip."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from videokd.models.model import Model


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass over one clip of the model's own input size."""

    params: int
    macs: int
    """Multiply-accumulates of convolutions and matrix products: half of what is often printed as FLOPs."""


def cost(model: Model[Any]) -> Cost:
    """Counted by running one clip through the model (`torch.utils.flop_counter`)."""
    training = model.training
    counter = FlopCounterMode(display=False)
    model.eval()
    with torch.no_grad(), counter:
        model(model.blank())
    model.train(training)
    return Cost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)
