"""What a model costs: parameters, and multiply-accumulates per clip."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from videokd.contracts import Clip
from videokd.models.video_model import VideoModel


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass over one clip of the model's own input size."""

    params: int
    macs: int
    """Multiply-accumulates of convolutions and matrix products: half of what is often printed as FLOPs."""


def cost(model: VideoModel) -> Cost:
    """Counted by running one clip through the model (`torch.utils.flop_counter`)."""
    spec, device, training = model.config.input, model.mean.device, model.training
    frames = torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8, device=device)
    times = torch.zeros(1, spec.frames, device=device)
    counter = FlopCounterMode(display=False)
    model.eval()
    with torch.no_grad(), counter:
        model(Clip(frames, times))
    model.train(training)
    return Cost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)
