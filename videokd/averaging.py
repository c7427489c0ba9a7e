"""The running mean of a model's weights, which is often better than the last of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The exponential moving average of weights and running statistics [Polyak and Juditsky 1992; Tarvainen and
    Valpola 2017].

    Until `decay` is reached, the decay of step t is (1 + t) / (10 + t): the mean does not remember the weights that it
    began with.

    Args:
        model: whose weights; it stays as it is.
        decay: share of the mean that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values: dict[str, Tensor] = {name: one.detach().clone() for name, one in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's weights in; call it after each step of the optimiser."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = model.state_dict()
        moving = [name for name, one in self.values.items() if one.is_floating_point()]
        get_ema_multi_avg_fn(decay)([self.values[name] for name in moving], [now[name] for name in moving], None)
        for name, one in self.values.items():
            if not one.is_floating_point():  # counters
                one.copy_(now[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The model has the mean of its weights for as long as this lasts."""
        before = {name: one.detach().clone() for name, one in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(before)

    def load(self, values: Mapping[str, Tensor], *, steps: int) -> None:
        """Goes on from what `values` was after so many steps."""
        self.steps = steps
        for name, one in self.values.items():
            one.copy_(values[name])
