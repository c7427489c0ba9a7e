import math

import pytest
import torch

from videokd.machine import Machine, seed_step
from videokd.optim import AdamW


def test_the_learning_rate_rises_and_falls_as_computed_by_hand() -> None:
    optim = AdamW(steps=100, lr=1.0, warmup=0.1)
    # Warm-up over 10 steps times the cosine.
    assert optim.lr_at(0) == pytest.approx(0.1)
    assert optim.lr_at(4) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.04)))
    assert optim.lr_at(50) == pytest.approx(0.5)
    assert optim.lr_at(99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert AdamW(steps=10, lr=1.0, warmup=0.0).lr_at(0) == 1.0


def test_weight_decay_is_on_weights_alone() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    module[0].weight.requires_grad_(True)
    decayed, free = AdamW(steps=1, weight_decay=0.1).build(module).param_groups
    assert ([p.ndim for p in decayed["params"]], decayed["weight_decay"]) == ([4], 0.1)
    assert ([p.ndim for p in free["params"]], free["weight_decay"]) == ([1, 1, 1], 0.0)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1, "lr": 0.0}, {"steps": 1, "warmup": 1.0}])
def test_an_impossible_schedule_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        AdamW(**wrong)  # type: ignore[arg-type]


def test_a_gradient_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_norm must be above 0, or None"):
        AdamW(steps=1, clip_norm=0.0)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no device 'warp' here"):
        Machine(device="warp").find()
    assert Machine(device="cpu").find() == torch.device("cpu")


def test_bf16_is_autocast() -> None:
    with Machine(precision="bf16").autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with Machine().autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_step_draws_the_same_again() -> None:
    seed_step(3, 5)
    first = torch.rand(2)
    seed_step(3, 6)
    assert not torch.equal(first, torch.rand(2))
    seed_step(3, 5)
    assert torch.equal(first, torch.rand(2))
