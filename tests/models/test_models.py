"""What holds for every model: shapes, widths and times at every tap, gradients, saving and loading."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from conftest import random_clip
from torchvision.models import get_model

from videokd.contracts import Clip, InputSpec
from videokd.models import CompactShift, Conv3d, ModelConfig, MViT, TimmVideo, VideoResNet, load_model, save_model
from videokd.models.cost import cost
from videokd.models.model import step_times
from videokd.models.published import published
from videokd.models.timm_video import shift_residual_branches

SMALL = InputSpec(frames=8, size=32)
CLASSES = ("a", "b", "c")
# config -> steps of time at each tap, for 8 frames
MODELS: dict[str, tuple[ModelConfig, dict[str, int]]] = {
    "Conv3d": (Conv3d(width=4, input=SMALL), {"stage1": 8, "stage2": 4, "stage3": 4, "frames": 4}),
    "CompactShift": (CompactShift(width=8, input=SMALL), {"stage1": 8, "stage2": 8, "stage3": 8, "frames": 8}),
    "R3D-18": (VideoResNet(name="r3d_18", input=SMALL), {"stage1": 8, "stage2": 4, "stage3": 2, "stage4": 1}),
    "MC3-18": (VideoResNet(name="mc3_18", input=SMALL), {"stage1": 8, "stage2": 8, "stage3": 8, "stage4": 8}),
    "R(2+1)D-18": (VideoResNet(input=SMALL), {"stage1": 8, "stage2": 4, "stage3": 2, "stage4": 1, "frames": 1}),
    "MViTv2-S": (
        MViT(input=replace(SMALL, size=64)),
        {"stage1": 4, "stage2": 4, "stage3": 4, "stage4": 4, "frames": 4},
    ),
    "MobileNetV3 + shift": (TimmVideo(input=SMALL), {"spatial": 8, "frames": 8}),
    "ResNet-18 + shift": (TimmVideo(backbone="resnet18", input=SMALL), {"spatial": 8, "frames": 8}),
    "MobileNetV4 + conv": (
        TimmVideo(backbone="mobilenetv4_conv_small", temporal="conv", input=SMALL),
        {"spatial": 8, "frames": 8},
    ),
    "EfficientNet-B0 frames": (
        TimmVideo(backbone="efficientnet_b0", temporal="average", input=SMALL),
        {"spatial": 8, "frames": 8},
    ),
}
EVERY = pytest.mark.parametrize(("config", "steps"), MODELS.values(), ids=MODELS)


def clip_for(config: ModelConfig, *, seed: int = 0) -> Clip:
    return random_clip(frames=config.input.frames, size=config.input.size, seed=seed)


@EVERY
def test_every_tap_has_its_shape_and_times(config: ModelConfig, steps: dict[str, int]) -> None:
    model = config.build(CLASSES).eval()
    clip = clip_for(config)
    outputs = model(clip, model.taps)
    assert outputs.logits is not None
    assert outputs.logits.shape == (2, 3)
    assert set(outputs.features) == set(model.taps) >= {"frames", "clip", *steps}
    assert outputs.features["clip"].values.shape[1:4] == (1, 1, 1)
    torch.testing.assert_close(outputs.features["clip"].times, clip.times.mean(dim=1, keepdim=True))
    for tap, count in steps.items():
        times = outputs.features[tap].times
        assert times.shape == (2, count)
        assert clip.times.min() <= times.min()
        assert times.max() <= clip.times.max()
        assert (times.diff(dim=1) > 0).all()


@EVERY
def test_gradients_reach_every_parameter_and_are_finite(config: ModelConfig, steps: dict[str, int]) -> None:
    model = config.build(CLASSES).train()
    outputs = model(clip_for(config), ("frames",))
    (outputs.logits.square().sum() + outputs.features["frames"].values.square().mean()).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@EVERY
def test_a_saved_model_comes_back_alone(config: ModelConfig, steps: dict[str, int], tmp_path: Path) -> None:
    model = config.build(CLASSES).eval()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.config, loaded.classes) == (config, CLASSES)
    assert torch.equal(loaded(clip_for(config)).logits, model(clip_for(config)).logits)


@EVERY
def test_taps_change_no_logits(config: ModelConfig, steps: dict[str, int]) -> None:
    model = config.build(CLASSES).eval()
    clip = clip_for(config)
    plain = model(clip)
    assert plain.features == {}
    assert torch.equal(plain.logits, model(clip, model.taps).logits)


@pytest.mark.parametrize("name", ["Conv3d", "CompactShift", "R3D-18", "MobileNetV3 + shift", "MobileNetV4 + conv"])
@pytest.mark.parametrize("tap", ["first", "frames"])
def test_a_flash_is_felt_around_its_second(name: str, tap: str) -> None:
    config, steps = MODELS[name]
    config = replace(config, input=replace(config.input, frames=32))
    tap = next(iter(steps)) if tap == "first" else tap
    centres = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = config.build(CLASSES).eval()
        clip = random_clip(batch=1, frames=32, seed=seed)
        flash = Clip(clip.frames.clone(), clip.times)
        flash.frames[0, 16] = 255 - flash.frames[0, 16]  # at second 2.0
        before, after = model(clip, (tap,)).features[tap], model(flash, (tap,)).features[tap]
        change = (after.values - before.values).square().sum(dim=(2, 3, 4))[0]
        centres.append(((change * after.times[0]).sum() / change.sum()).item())
    # Random weights lean to one side or the other, by less than a fifth of a step or a frame.
    spacing = (after.times[0, 1] - after.times[0, 0]).item()
    assert sum(centres) / len(centres) == pytest.approx(2.0, abs=0.2 * max(spacing, 0.25))


def test_step_times_are_centres_of_the_kernel() -> None:
    times = torch.arange(8.0)[None]
    assert step_times(times, stride=2).tolist() == [[0, 2, 4, 6]]
    # A tubelet of two frames is centred between them.
    assert step_times(times, stride=2, kernel=2, padding=0).tolist() == [[0.5, 2.5, 4.5, 6.5]]
    assert step_times(times, stride=4, kernel=4, padding=0).tolist() == [[1.5, 5.5]]


@pytest.mark.parametrize("name", ["R3D-18", "R(2+1)D-18"])
def test_logits_equal_torchvisions_own(name: str) -> None:
    config, _ = MODELS[name]
    assert isinstance(config, VideoResNet)
    model = config.build(CLASSES).eval()
    own = get_model(config.name, weights=None, num_classes=3).eval()
    own.load_state_dict(model.network.state_dict())  # type: ignore[arg-type]
    video = torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(model.run(video, torch.zeros(2, 8), ()).logits, own(video), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_mvit_is_torchvisions_own() -> None:
    model = MViT().build(CLASSES).eval()
    own = get_model("mvit_v2_s", weights=None, num_classes=3).eval()
    own.load_state_dict(model.network.state_dict())  # type: ignore[arg-type]
    video = torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        logits = model.run(video, torch.zeros(1, 16), ()).logits
        torch.testing.assert_close(logits, own(video), rtol=1e-5, atol=1e-5)


def test_the_door_normalises_by_the_input_spec() -> None:
    spec = InputSpec(frames=2, size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    model = Conv3d(width=2, input=spec).build(CLASSES)
    seen: list[torch.Tensor] = []
    model.run = lambda video, times, taps: seen.append(video)  # type: ignore[method-assign, assignment, return-value]
    model(Clip(torch.full((1, 2, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(1, 2)))
    assert seen[0][0, :, 0, 0, 0].tolist() == pytest.approx([1.0, 3.0, 1.0])


def test_cost_is_counted_at_the_models_own_input() -> None:
    # Hand count of a linear chain: CompactShift width 16 at 8 x 32 px, 12 classes, as REGIME's student.
    price = cost(CompactShift().build([str(k) for k in range(12)]))
    stem = 8 * 8 * 8 * 16 * 3 * 25  # frames x 8 x 8 places x channels out x channels in x 5 x 5
    stages = 8 * 64 * 32 * 16 * 9 + 8 * 16 * 48 * 32 * 9 + 8 * 16 * 48 * 48 * 9
    over_time = 8 * 48 * 3
    assert price.macs == stem + stages + over_time + 48 * 12
    assert price.params == 41_436


def test_temporal_shift_mixes_frames_and_average_does_not() -> None:
    for temporal, mixes in (("shift", True), ("conv", True), ("average", False)):
        torch.manual_seed(0)
        model = TimmVideo(temporal=temporal, input=SMALL).build(CLASSES).eval()  # type: ignore[arg-type]
        clip = random_clip()
        other = Clip(clip.frames.clone(), clip.times)
        other.frames[:, 4] = 0
        one, two = (model(c, ("frames",)).features["frames"].values for c in (clip, other))
        assert (not torch.allclose(one[:, 3], two[:, 3])) == mixes, temporal


def test_an_unknown_tap_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no tap 'frame'; did you mean 'frames'\?"):
        Conv3d(width=2).build(CLASSES)(random_clip(frames=16), ("frame",))


def test_a_clip_of_another_size_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"takes clips \(B, 16, 3, 32, 32\), got \(2, 8, 3, 32, 32\)"):
        Conv3d(width=2).build(CLASSES)(random_clip(frames=8))


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'resnet81'; did you mean 'resnet"):
        TimmVideo(backbone="resnet81").build(CLASSES)


def test_shift_without_a_known_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no known place"):
        shift_residual_branches(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), share=0.1)


def test_mvit_names_the_sizes_that_it_takes() -> None:
    with pytest.raises(ValueError, match="a size that 32 divides, got frames=16, size=100"):
        MViT(input=InputSpec(frames=16, size=100)).build(CLASSES)


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


def test_published_weights_are_loaded_and_a_head_for_other_classes_is_said_to_be_new(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = get_model("r3d_18", weights=None, num_classes=5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    config = VideoResNet(name="r3d_18", input=SMALL, weights=str(tmp_path / "weights.pth"))
    with pytest.warns(UserWarning, match=r"trained for 5 other classes: the head for 3 is new"):
        model = config.build(CLASSES)
    assert torch.equal(model.network.stem[0].weight, source.stem[0].weight)  # type: ignore[union-attr, index]
    same = config.build([str(k) for k in range(5)])
    assert torch.equal(same.network.fc.weight, source.fc.weight)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="another architecture: of another shape are layer2"):
        published(str(tmp_path / "weights.pth"), head="fc").load(get_model("mc3_18", weights=None))  # type: ignore[union-attr]


def test_weights_that_are_not_there_are_named_with_a_way_on(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.pth")
    for config in (VideoResNet(input=SMALL, weights=gone), TimmVideo(input=SMALL, weights=gone)):
        with pytest.raises(ValueError, match=r"gone\.pth' could not be had: .*--student\.weights None"):
            config.build(CLASSES)


def test_local_weights_of_a_timm_backbone_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet18", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    config = TimmVideo(backbone="resnet18", temporal="conv", input=SMALL, weights=str(tmp_path / "weights.pth"))
    model = config.build(CLASSES)
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight)  # type: ignore[union-attr]


def test_a_saved_model_does_not_ask_for_its_published_weights(tmp_path: Path) -> None:
    torch.save(get_model("r3d_18", weights=None, num_classes=3).state_dict(), tmp_path / "weights.pth")
    config = VideoResNet(name="r3d_18", input=SMALL, weights=str(tmp_path / "weights.pth"))
    save_model(config.build(CLASSES), tmp_path / "run")
    (tmp_path / "weights.pth").unlink()
    assert load_model(tmp_path / "run").config == config
