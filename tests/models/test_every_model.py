"""What holds for every model at every tap: shapes, widths, times, gradients, cost, saving and loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CLASSES, EVERY, SEES, built, wake
from torch.utils.flop_counter import FlopCounterMode

from videokd.contracts import Clip, FeatureMap, Outputs, Sound
from videokd.models import Model, load_model, save_model

ALL = pytest.mark.parametrize("name", EVERY)


def noise(model: Model[Any], *, batch: int = 2, seed: int = 0) -> Any:
    view = model.blank(batch)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(view, Clip):
        frames = torch.randint(0, 256, view.frames.shape, dtype=torch.uint8, generator=generator)
        return Clip(frames, view.times / 8 + 3)
    if isinstance(view, Sound):
        return Sound(0.1 * torch.randn(view.samples.shape, generator=generator), view.start + 3, view.heard)
    return torch.arange(batch) % len(CLASSES)


def same(one: Outputs, other: Outputs) -> bool:
    logits = one.logits is other.logits or torch.equal(one.logits, other.logits)  # type: ignore[arg-type]
    return logits and all(torch.equal(one.features[tap].values, other.features[tap].values) for tap in one.features)


@ALL
@torch.no_grad()
def test_every_tap_has_a_map_whose_times_rise_inside_the_clip(name: str, originals: Path) -> None:
    model = built(name, originals).eval()
    view = noise(model)
    outputs = model(view, model.taps)
    assert set(outputs.features) == set(model.taps) >= {"frames", "clip"}
    assert (outputs.logits is not None) == model.has_logits
    if outputs.logits is not None:
        assert outputs.logits.shape == (2, len(model.classes))
    assert outputs.features["clip"].values.shape[1:4] == (1, 1, 1)
    for tap, found in outputs.features.items():
        assert isinstance(found, FeatureMap), tap
        assert found.values.isfinite().all(), tap
        if isinstance(view, Clip):
            assert (found.times >= view.times[:, :1]).all(), tap
            assert (found.times <= view.times[:, -1:]).all(), tap
        if isinstance(view, Sound):
            assert (found.times >= view.start[:, None]).all(), tap
            assert (found.times <= view.start[:, None] + model.input.seconds).all(), tap  # type: ignore[union-attr]
        assert (found.times.diff(dim=1) > 0).all(), tap


@ALL
def test_gradients_reach_every_parameter_and_are_finite(name: str, originals: Path) -> None:
    model = built(name, originals).train()
    outputs = model(noise(model), model.taps)
    parts = [found.values.square().mean() for found in outputs.features.values()]
    parts += [] if outputs.logits is None else [outputs.logits.square().sum()]
    loss = torch.stack(parts).sum()
    if not list(model.parameters()):
        assert not loss.requires_grad
        return
    loss.backward()
    # All but SimKD's last layer, which is its teacher's, learn.
    still = ["head.weight", "head.bias"] if name.startswith("SimKD") else []
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == still
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@ALL
@torch.no_grad()
def test_a_saved_model_comes_back_alone(name: str, originals: Path, tmp_path: Path) -> None:
    model = built(name, originals).eval()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.config, loaded.classes) == (model.config, model.classes)
    assert same(loaded(noise(model), model.taps), model(noise(model), model.taps))


@ALL
@torch.no_grad()
def test_taps_change_nothing_and_none_cost_nothing(name: str, originals: Path) -> None:
    model = built(name, originals).eval()
    view = noise(model)
    counters = [FlopCounterMode(display=False), FlopCounterMode(display=False)]
    with counters[0]:
        plain = model(view)
    with counters[1]:
        tapped = model(view, model.taps)
    assert plain.features == {}
    assert plain.logits is tapped.logits or torch.equal(plain.logits, tapped.logits)
    assert counters[0].get_total_flops() <= counters[1].get_total_flops()


@ALL
def test_a_tap_that_is_not_there_names_the_nearest(name: str, originals: Path) -> None:
    model = built(name, originals)
    with pytest.raises(ValueError, match=r"has no tap 'frame'; did you mean 'frames'\?"):
        model(noise(model), ("frame",))


@pytest.mark.parametrize("name", SEES)
@torch.no_grad()
def test_a_flash_is_felt_most_at_its_second(name: str, originals: Path) -> None:
    model = built(name, originals).eval()
    wake(model)
    frames = model.input.frames  # type: ignore[union-attr]
    for flashed in ({2, 3}, {frames - 4, frames - 3}):
        changes: dict[str, torch.Tensor] = {}
        for seed in range(3):
            view = noise(model, batch=2, seed=seed)
            bright = Clip(view.frames.clone(), view.times)
            bright.frames[:, sorted(flashed)] = 255 - bright.frames[:, sorted(flashed)]
            before, after = model(view, model.taps).features, model(bright, model.taps).features
            for tap in model.taps:
                energy = (after[tap].values - before[tap].values).square().sum(dim=(0, 2, 3, 4))
                changes[tap] = changes.get(tap, 0) + energy / energy.sum().clamp(min=1e-30)
        second = view.times[0, sorted(flashed)].mean()
        for tap, energy in changes.items():
            times = before[tap].times[0]
            if len(times) < 4:
                continue  # it says too little of when
            spacing = (times[1] - times[0]).item()
            peak = times[energy.argmax()]
            # Random weights lean to one side or the other: by no more than a step, and the width of the flash.
            assert abs(peak - second) <= spacing + 1 / 8 + 1e-6, (tap, flashed, peak, second)


@pytest.mark.gpu
@torch.no_grad()
def test_every_model_says_on_a_gpu_what_it_says_on_a_cpu(originals: Path) -> None:
    for name in EVERY:
        model = built(name, originals).eval()
        view = noise(model)
        here = model(view, model.taps)
        there = model.to("cuda")(view.to("cuda"), model.taps)
        for tap in model.taps:
            found = there.features[tap]
            assert (found.values.device.type, found.times.device.type) == ("cuda", "cuda"), (name, tap)
            torch.testing.assert_close(found.values.cpu(), here.features[tap].values, rtol=1e-2, atol=1e-2)
