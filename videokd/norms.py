"""Batch normalisation over the clips of all processes, so that a recipe gives the same on one and on many."""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videokd.processes import is_distributed, mean_over_processes, world_size


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch normalisation that counts the clips of all processes while it trains.

    Parameters, buffers and their names stay as they are. On a GPU that is torch's `SyncBatchNorm`, which does not work
    on the CPU; there the layers themselves are told to.
    """
    if device.type == "cuda":
        before = dict(module.named_modules())
        converted: nn.Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        for name, one in converted.named_modules():
            if one is not before.get(name, one):  # what reads a network's maps hangs on its modules
                one._forward_hooks, one._forward_pre_hooks = (
                    before[name]._forward_hooks,
                    before[name]._forward_pre_hooks,
                )
        return converted
    for one in module.modules():
        if isinstance(one, _BatchNorm) and not isinstance(one, nn.SyncBatchNorm):
            one.forward = _Synchronised(one)  # type: ignore[method-assign, assignment]
    return module


class _Synchronised:
    """The forward pass of one layer on the CPU."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.alone = type(norm).forward

    def __call__(self, values: Tensor) -> Any:
        norm = self.norm
        if not (norm.training and is_distributed()):
            return self.alone(norm, values)
        dims = [0, *range(2, values.ndim)]
        inputs, values = values, values.float()
        size = float(values.numel() / values.shape[1])
        count = mean_over_processes(torch.tensor(size, device=values.device)) * world_size()
        mean = _Summed.apply(values.sum(dims)) / count
        shape = [1, -1] + [1] * (values.ndim - 2)
        centred = values - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(dims)) / count
        if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
            with torch.no_grad():
                assert norm.num_batches_tracked is not None
                norm.num_batches_tracked += 1
                share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
                unbiased = variance * count / (count - 1)
                norm.running_mean.lerp_(mean, share)
                norm.running_var.lerp_(unbiased, share)
        scale = (variance + norm.eps).rsqrt()
        scale = scale * norm.weight if norm.affine else scale
        found = centred * scale.view(shape)
        if norm.affine:
            found = found + norm.bias.view(shape)
        found = found.to(inputs.dtype)
        # timm's layers go on with dropout and the activation.
        for name in ("drop", "act"):
            if isinstance(after := getattr(norm, name, None), nn.Module):
                found = after(found)
        return found


class _Summed(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total
