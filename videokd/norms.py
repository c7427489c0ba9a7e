"""Batch normalisation over the clips of all processes, so that a recipe gives the same on one and on many."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from videokd.processes import is_distributed, mean_over_processes, world_size

_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
"""Types that `convert_sync_batchnorm` replaces exactly; of a subclass it would drop what the subclass overrides."""


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with batch norms whose training statistics count the clips of all processes.

    Parameters, buffers and their names stay as they are, and so does the forward pass of a subclass of batch norm. On
    a GPU, torch's own layers and timm's become `SyncBatchNorm`; all others, and all on the CPU, are told to compute
    their statistics over all processes.
    """
    if device.type == "cuda":
        module = _replaced(module)
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            if not isinstance(norm, nn.SyncBatchNorm) and not isinstance(norm.forward, _Synchronised):
                norm.forward = _Synchronised(norm, name)  # type: ignore[method-assign]
            norm.synchronised = True  # type: ignore[assignment]
    return module


def _replaced(module: nn.Module) -> nn.Module:
    """Replace norms of the types `_REPLACED` by `SyncBatchNorm`; one used in several places stays one."""
    done: dict[int, nn.Module] = {}

    def converted(norm: nn.Module) -> nn.Module:
        if id(norm) not in done:
            layer: nn.Module = convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
            # Taps are hooks on the modules.
            layer._forward_hooks, layer._forward_pre_hooks = norm._forward_hooks, norm._forward_pre_hooks
            done[id(norm)] = layer
        return done[id(norm)]

    if _is_replaced(module):
        return converted(module)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _is_replaced(child):
                parent._modules[name] = converted(child)
    return module


def _is_replaced(module: nn.Module) -> bool:
    own = vars(module)
    return type(module) in _REPLACED and "forward" not in own and "train" not in own


class _Synchronised:
    """The forward pass of one norm, in which `F.batch_norm` takes its statistics over all processes.

    Raises:
        ValueError: if the layer does not call `F.batch_norm`, so that its statistics would be of one process.
    """

    def __init__(self, norm: _BatchNorm, name: str) -> None:
        self.norm, self.name = norm, name
        self.forward: Callable[..., Any] = norm.forward

    # Collectives and a change of functions are not for the compiler.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.norm.training and is_distributed()):
            return self.forward(*args, **kwargs)
        with _OverProcesses() as mode:
            outputs = self.forward(*args, **kwargs)
        if not mode.called:
            raise ValueError(
                f"{type(self.norm).__name__} ({self.name or 'the module itself'}) is a batch norm with a forward pass "
                "of its own that does not call torch.nn.functional.batch_norm, so its statistics can't be taken over "
                "all processes: call that function in it, train in one process, or set machine.synchronise_norms to "
                "False"
            )
        return outputs


class _OverProcesses(TorchFunctionMode):
    """Within this context, batch normalisation in train mode counts the values of all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            self.called = True
            return _batch_norm(*args, **kwargs)
        if func is torch.batch_norm:  # the same, in another order of arguments
            self.called = True
            return _torch_batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of (N, C, ...), in train mode with mean and variance over all processes."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [0, *range(2, values.ndim)]
    shape = [1, -1] + [1] * (values.ndim - 2)
    size = float(values.numel() / values.shape[1])
    count = mean_over_processes(torch.tensor(size, device=values.device)) * world_size()
    mean = _Summed.apply(values.sum(dims)) / count
    centred = values - mean.view(shape)
    variance = _Summed.apply(centred.square().sum(dims)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    normalised = centred * scale.view(shape)
    normalised = normalised if bias is None else normalised + bias.view(shape)
    outputs: Tensor = normalised.to(input.dtype)
    return outputs


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


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
