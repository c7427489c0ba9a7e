"""The running mean of weights."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from videokd.averaging import WeightAverage


def test_mean_matches_hand_computed_values() -> None:
    """decay 0.5: at step 1 the decay is min(0.5, 2 / 11), at step 2 min(0.5, 3 / 12) = 0.25, at step 20 it is 0.5."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    average = WeightAverage(module, 0.5)
    nn.init.constant_(module.weight, 2.0)
    average.update(module)
    first = 1.0 * 2 / 11 + 2.0 * 9 / 11
    assert average.values["weight"].item() == pytest.approx(first)
    nn.init.constant_(module.weight, 4.0)
    average.update(module)
    assert average.values["weight"].item() == pytest.approx(first * 0.25 + 4.0 * 0.75)
    average.steps = 19
    before = average.values["weight"].item()
    average.update(module)
    assert average.values["weight"].item() == pytest.approx(before * 0.5 + 4.0 * 0.5)


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    module = nn.BatchNorm1d(2)
    average = WeightAverage(module, 0.9)
    for _ in range(3):
        module(torch.randn(8, 2) + 5)
        average.update(module)
    assert average.values["num_batches_tracked"] == 3
    assert 0 < average.values["running_mean"].mean() < module.running_mean.mean()  # type: ignore[union-attr]


def test_the_model_gets_its_own_weights_back() -> None:
    module = nn.Linear(2, 2)
    average = WeightAverage(module, 0.9)
    with torch.no_grad():
        module.weight += 1
    now = module.weight.detach().clone()
    average.update(module)
    with suppress(RuntimeError), average.in_place_of(module):
        assert torch.equal(module.weight, average.values["weight"])
        raise RuntimeError("validation failed")
    assert torch.equal(module.weight, now)
    assert not torch.equal(average.values["weight"], now)
