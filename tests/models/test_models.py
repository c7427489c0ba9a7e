"""The door, the cost, and models on disk."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_clip
from tiny_models import CLASSES, SMALL, built
from torchvision.models import get_model

from videokd.contracts import Clip, InputSpec
from videokd.models import CompactShift, Conv3d, VideoResNet, load_model, save_model
from videokd.models.cost import cost, cost_of
from videokd.models.model import ModelConfig, step_times


def test_step_times_are_centres_of_the_kernel() -> None:
    times = torch.arange(8.0)[None]
    assert step_times(times, stride=2).tolist() == [[0, 2, 4, 6]]
    # A tubelet of two frames is centred between them.
    assert step_times(times, stride=2, kernel=2, padding=0).tolist() == [[0.5, 2.5, 4.5, 6.5]]
    assert step_times(times, stride=4, kernel=4, padding=0).tolist() == [[1.5, 5.5]]


def test_the_door_normalises_by_the_input_spec() -> None:
    spec = InputSpec(frames=2, size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    model = Conv3d(width=2, input=spec).build(CLASSES)
    seen: list[torch.Tensor] = []
    model.run = lambda video, times, taps: seen.append(video)  # type: ignore[method-assign, assignment, return-value]
    model(Clip(torch.full((1, 2, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(1, 2)))
    assert seen[0][0, :, 0, 0, 0].tolist() == pytest.approx([1.0, 3.0, 1.0])
    frames = torch.randint(0, 256, (2, 2, 3, 8, 8), dtype=torch.uint8)
    given = frames.clone()
    model(Clip(frames, torch.zeros(2, 2)))
    by_hand = (frames.transpose(1, 2) / 255 - torch.tensor(spec.mean).view(3, 1, 1, 1)) / torch.tensor(spec.std).view(
        3, 1, 1, 1
    )
    torch.testing.assert_close(seen[1], by_hand)
    assert seen[1].is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(frames, given)


def test_cost_is_counted_at_the_models_own_input() -> None:
    # Hand count of a linear chain: CompactShift width 16 at 8 x 32 px, 12 classes.
    price = cost(CompactShift().build([str(k) for k in range(12)]))
    stem = 8 * 8 * 8 * 16 * 3 * 25  # frames x 8 x 8 places x channels out x channels in x 5 x 5
    stages = 8 * 64 * 32 * 16 * 9 + 8 * 16 * 48 * 32 * 9 + 8 * 16 * 48 * 48 * 9
    over_time = 8 * 48 * 3
    assert price.macs == stem + stages + over_time + 48 * 12
    assert price.params == 41_436


@pytest.mark.parametrize("config", [CompactShift(), Conv3d(width=4), VideoResNet(name="r3d_18", input=SMALL)])
def test_cost_without_weights_is_that_of_the_network(config: ModelConfig) -> None:
    seen, price = cost_of(config, CLASSES)
    built_one = config.build(CLASSES, pretrained=False)
    assert price == cost(built_one)
    assert price.params == sum(one.numel() for one in built_one.parameters())
    assert seen == built_one.input


def test_attention_counts_whether_or_not_it_is_fused(originals: Path) -> None:
    # A transformer that looks at values, so that shapes alone can't be sent: its products of queries and keys, and of
    # their shares and values, are N x N x width each, a block.
    model = built("AST", originals)
    network: Any = model.network  # type: ignore[attr-defined]
    tokens, width, blocks = network.audio_spectrogram_transformer.embeddings.position_embeddings.shape[1], 32, 2
    linear = sum(
        (tokens if "layer" in name else 1) * module.weight.numel()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    patches = (tokens - 2) * width * 16 * 16
    assert cost(model).macs == linear + patches + blocks * 2 * tokens * tokens * width


@pytest.mark.parametrize("name", ["Conv3d", "CompactShift", "R3D-18", "S3D", "Swin3D-T", "MViTv2-S", "X3D", "MoViNet"])
def test_maps_that_nobody_asked_for_are_not_kept(name: str, originals: Path) -> None:
    model = built(name, originals).eval()
    first: Any = {
        "Conv3d": lambda m: m.stages[0],
        "CompactShift": lambda m: m.stages[0],
        "R3D-18": lambda m: m.network.layer1,
        "S3D": lambda m: m.network.features[0],
        "Swin3D-T": lambda m: m.network.features[0],
        "MViTv2-S": lambda m: m.network.blocks[0],
        "X3D": lambda m: m.stages[0],
        "MoViNet": lambda m: m.stages[0],
    }[name](model)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv3d)][-1]
    seen: list[Any] = []
    alive: list[bool] = []
    first.register_forward_hook(
        lambda module, inputs, output: seen.append(weakref.ref(output if torch.is_tensor(output) else output[0]))
    )
    last.register_forward_pre_hook(lambda module, inputs: alive.append(seen[0]() is not None))
    with torch.no_grad():
        model(model.blank())
        assert alive == [False]


def test_a_clip_of_another_size_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"takes clips \(B, 16, 3, 32, 32\), got \(2, 8, 3, 32, 32\)"):
        Conv3d(width=2).build(CLASSES)(random_clip(frames=8))


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no trained model"):
        load_model(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_model(Conv3d(width=2).build(CLASSES), tmp_path / "one")
    save_model(Conv3d(width=4).build(CLASSES), tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "one" / "model.safetensors")
    with pytest.raises(ValueError, match="does not belong to"):
        load_model(tmp_path / "one")
    (tmp_path / "one" / "model.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99"):
        load_model(tmp_path / "one")
    for wrong in ('{"format": 1}', '{"format": 1, "model": {"type": "videokd.contracts:Dense"}, "classes": []}'):
        (tmp_path / "one" / "model.json").write_text(wrong)
        with pytest.raises(ValueError, match="does not describe a model"):
            load_model(tmp_path / "one")


def test_a_saved_model_does_not_ask_for_its_published_weights(tmp_path: Path) -> None:
    torch.save(get_model("r3d_18", weights=None, num_classes=3).state_dict(), tmp_path / "weights.pth")
    config = VideoResNet(name="r3d_18", input=SMALL, weights=str(tmp_path / "weights.pth"))
    save_model(config.build(CLASSES), tmp_path / "run")
    (tmp_path / "weights.pth").unlink()
    assert load_model(tmp_path / "run").config == config
