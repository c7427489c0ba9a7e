"""Clips of all processes in one batch, for losses that compare clips with each other."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from videokd.processes import is_distributed


def gathered(values: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks: (B, ...) -> (sum of B, ...).

    Processes may have different numbers of rows, none even. The gradient goes back to the process that a row came from,
    summed over the losses of all: where every process computes the same loss and gradients are then averaged, as in
    distributed data parallel, that is the gradient of the one loss. Without other processes, the values themselves.
    """
    if not is_distributed():
        return values
    found: Tensor = _Gather.apply(values)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        rows = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(world)]
        dist.all_gather(rows, torch.tensor([len(values)], device=values.device))
        sizes: list[int] = torch.cat(rows).tolist()
        padded = values.new_zeros(max(sizes), *values.shape[1:])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.first, ctx.rows = sum(sizes[:rank]), len(values)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.rows]
