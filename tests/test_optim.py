import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from videokd.checkpoint import State
from videokd.contracts import InputSpec
from videokd.machine import Machine, seed_step
from videokd.models import CompactShift, Model
from videokd.optim import SGD, AdamW, Optimizer

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
EVERY = pytest.mark.parametrize(
    "cls", [AdamW, SGD, pytest.param(lambda **options: SGD(momentum=0.0, nesterov=False, **options), id="plain SGD")]
)


def student(seed: int = 0) -> Model[Any]:
    torch.manual_seed(seed)
    return CompactShift(width=4, input=InputSpec(frames=4, size=16)).build(("run", "dance")).train()


def learn(model: Model[Any], optim: Optimizer, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps on noise, each a function of its number."""
    for step in steps:
        optim.set_lr(optimizer, step)
        generator = torch.Generator().manual_seed(step)
        view = model.blank(2)
        view.frames.random_(generator=generator)
        model(view).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_learning_rate_rises_and_falls_as_computed_by_hand() -> None:
    optim = AdamW(steps=100, lr=1.0, warmup=0.1)
    # Warm-up over 10 steps times the cosine.
    assert optim.lr_at(0) == pytest.approx(0.1)
    assert optim.lr_at(4) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.04)))
    assert optim.lr_at(50) == pytest.approx(0.5)
    assert optim.lr_at(99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert AdamW(steps=10, lr=1.0, warmup=0.0).lr_at(0) == 1.0


def test_a_cosine_can_end_above_zero() -> None:
    optim = AdamW(steps=100, lr=2.0, warmup=0.0, lr_end=0.2)
    # In the middle half-way between 1 and 0.2 of the learning rate; at 75 (1 + cos(0.75 pi)) / 2 = 0.1464 of the way.
    assert optim.lr_at(50) == pytest.approx(2.0 * 0.6)
    assert optim.lr_at(75) == pytest.approx(2.0 * (0.2 + 0.8 * 0.146447), rel=1e-5)


def test_a_stepped_rate_falls_at_its_milestones() -> None:
    optim = SGD(steps=200, lr=1.0, warmup=0.05, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    # Warm-up over 10 steps; down from step 100, and again from step 150.
    assert [optim.lr_at(step) for step in (0, 4, 9, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [optim.lr_at(step) for step in (100, 149, 150, 199)] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    optim = AdamW(steps=100, lr=0.3, warmup=0.1, schedule="constant")
    assert [optim.lr_at(step) for step in (0, 9, 50, 99)] == pytest.approx([0.03, 0.3, 0.3, 0.3])


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr_end": 1.5}, r"lr_end lies in \[0, 1\] .* got 1.5"),
        ({"gamma": 0.0}, "gamma in"),
        ({"milestones": (0.5, 0.5)}, "milestones are rising"),
        ({"milestones": (0.5, 1.0)}, "milestones are rising"),
        ({"layer_decay": 1.5}, "layer_decay lies in"),
        ({"freeze_until": 0.0}, "freeze_until is a share"),
        ({"accumulate": 0}, "at least 1, got 0"),
        ({"ema": 1.0}, "ema lies in"),
    ],
)
def test_impossible_values_are_refused(wrong: dict[str, Any], message: str) -> None:
    for cls in (AdamW, SGD):
        with pytest.raises(ValueError, match=message):
            cls(steps=1, **wrong)


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": 0.0}])
def test_an_impossible_momentum_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="momentum lies in"):
        SGD(steps=1, **wrong)  # type: ignore[arg-type]


def test_a_gradient_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_norm must be above 0, or None"):
        AdamW(steps=1, clip_norm=0.0)


def test_each_layer_has_its_share_of_the_learning_rate() -> None:
    model = student()
    holder = nn.ModuleDict({"model": model, "connector": nn.Linear(3, 5)})
    optim = AdamW(steps=10, lr=1.0, warmup=0.0, layer_decay=0.5, weight_decay=0.1)
    optimizer = optim.build(holder)
    assert optim.set_lr(optimizer, 5) == pytest.approx(0.5)  # half of the cosine
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rates = {name: groups[id(parameter)]["lr"] for name, parameter in holder.named_parameters()}
    # Stem, three stages, then all that is new: factors of 1/16, 1/8, 1/4, 1/2 and 1.
    expected = {"stem": 1 / 16, "stages.0": 1 / 8, "stages.1": 1 / 4, "stages.2": 1 / 2, "over_time": 1, "head": 1}
    for part, factor in expected.items():
        found = [rate for name, rate in rates.items() if name.startswith(f"model.{part}.")]
        assert found == pytest.approx([0.5 * factor] * len(found)), part
        assert found
    assert [rates["connector.weight"], rates["connector.bias"]] == pytest.approx([0.5, 0.5])
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in holder.parameters())
    for parameter in holder.parameters():
        assert groups[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


@EVERY
def test_a_layer_decay_of_one_changes_nothing(cls: Any) -> None:
    results = []
    for options in ({}, {"layer_decay": 1.0}):
        model, optim = student(), cls(steps=4, lr=0.01, **options)
        learn(model, optim, optim.build(model), range(4))
        results.append(model.state_dict())
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-7) for name in results[0])


def test_layer_decay_is_refused_without_layers() -> None:
    with pytest.raises(ValueError, match="layer_decay is for the layers of a model, and Linear holds none"):
        AdamW(steps=1, layer_decay=0.5).build(nn.Linear(2, 2))


@EVERY
def test_frozen_modules_stay_to_the_bit_and_learn_when_they_are_set_free(cls: Any) -> None:
    model = student()
    optim = cls(steps=6, lr=0.05, weight_decay=0.1, freeze=("stem", "stages.0"), freeze_until=0.5)
    optimizer = optim.build(model)
    before = copy.deepcopy(model.state_dict())
    assert [optim.frozen_at(step) for step in range(6)] == [True] * 3 + [False] * 3
    optim.set_frozen(model, frozen=True)
    model.eval()
    model.train()  # as after a look at the validation set
    learn(model, optim, optimizer, range(3))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith(("stem.", "stages.0."))}
    optim.set_frozen(model, frozen=False)
    learn(model, optim, optimizer, range(3, 6))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(before)  # statistics of the batch norms, too
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kept", [1, 2, 3])  # in the freezing, at its end, after it
@EVERY
def test_a_run_that_goes_on_from_a_checkpoint_is_the_same_run(cls: Any, kept: int, tmp_path: Path) -> None:
    optim = cls(steps=6, lr=0.05, freeze=("stem",), freeze_until=0.5, layer_decay=0.7)
    whole = student()
    optimizer = optim.build(whole)
    for step in range(6):
        optim.set_frozen(whole, optim.frozen_at(step))
        learn(whole, optim, optimizer, range(step, step + 1))
        if step == kept:
            State(whole, optimizer, NO_SCALER, step=kept).save(tmp_path / "checkpoint.safetensors")
    resumed = student(seed=1)
    optimizer = optim.build(resumed)
    state = State(resumed, optimizer, NO_SCALER)
    state.load(tmp_path / "checkpoint.safetensors")
    assert state.step == kept
    for step in range(kept + 1, 6):
        optim.set_frozen(resumed, optim.frozen_at(step))
        learn(resumed, optim, optimizer, range(step, step + 1))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_what_never_learns_does_not_begin_to() -> None:
    model = student()
    model.stem[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    optim = AdamW(steps=2, freeze=("stem",), freeze_until=0.5)
    optim.set_frozen(model, frozen=True)
    optim.set_frozen(model, frozen=False)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["stem.0.weight"]


def test_a_copy_of_a_frozen_model_is_frozen_by_itself() -> None:
    model = student()
    optim = AdamW(steps=2, freeze=("stem",))
    optim.set_frozen(model, frozen=True)
    other = copy.deepcopy(model)
    assert other.stem[1].train() is other.stem[1]  # type: ignore[index, union-attr]
    optim.set_frozen(other, frozen=False)
    assert [part.train().stem[1].training for part in (model, other)] == [False, True]  # type: ignore[index, union-attr]


def test_freeze_to_the_end_is_the_default_and_nothing_is_frozen_without_names() -> None:
    assert AdamW(steps=3, freeze=("stem",)).frozen_at(3)
    assert not AdamW(steps=3).frozen_at(0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("stm",), r"freeze names 'stm', which the student does not have; did you mean 'stem'\?"),
        (("stages.O",), r"'stages.O', which .* have; (did you mean 'stages\.\d'|there are: stages\.0, stages\.1)"),
        (("stem", "stages.7.conv"), r"freeze names 'stages\.7\.conv'"),
        (("",), "freeze names ''"),
        (("stem", "stages", "over_time", "head"), "freeze leaves nothing of the student to learn"),
    ],
)
def test_a_freeze_that_can_not_be_is_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamW(steps=1, freeze=names).set_frozen(student(), frozen=True)


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
