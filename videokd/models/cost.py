"""What a model costs: parameters, and multiply-accumulates per clip."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videokd.contracts import Clip, ViewSpec
from videokd.models.model import Model, ModelConfig


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass over one clip of the model's own input size."""

    params: int
    macs: int
    """Multiply-accumulates of convolutions and matrix products: half of what is often printed as FLOPs."""


def cost(model: Model[Any]) -> Cost:
    """Counted by sending one clip through the model (`torch.utils.flop_counter`).

    Shapes alone are sent where that can be, which takes no time and no memory however big the model is.
    """
    training = model.training
    model.eval()
    params = sum(parameter.numel() for parameter in model.parameters())
    try:
        macs = _counted(model, on_meta=True)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        macs = _counted(model, on_meta=False)  # it looks at values on its way
    model.train(training)
    return Cost(params, macs)


def cost_of(config: ModelConfig, classes: Sequence[str]) -> tuple[ViewSpec | None, Cost]:
    """What a model of this configuration takes, and its cost, without weights where that can be: drawing those of a
    large one takes longer than all the rest."""
    try:
        with torch.device("meta"):
            model = config.build(classes, pretrained=False)
        return model.input, cost(model)
    except (RuntimeError, NotImplementedError):  # it looks at values on its way
        model = config.build(classes, pretrained=False)
        return model.input, cost(model)


def _counted(model: Model[Any], *, on_meta: bool) -> int:
    view = model.blank()
    counter = FlopCounterMode(display=False)
    # Attention as plain products of matrices: what is fused, or taken the fast way, is not counted on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _plain_attention():
        if not on_meta:
            with counter:
                model(view)
        else:
            if not isinstance(view, Clip):
                raise ValueError("sounds go through libraries that look at them")
            parts = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            shapes = {name: part.to("meta") for name, part in parts.items()}
            clip = Clip(view.frames.to("meta"), view.times.to("meta"))
            with counter:
                functional_call(model, shapes, (clip,))
    return counter.get_total_flops() // 2


@contextmanager
def _plain_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
