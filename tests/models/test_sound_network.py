"""The network that listens: its spectrogram, and when it hears what."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tiny_models import CLASSES
from transformers.audio_utils import mel_filter_bank

from videokd.contracts import Sound, SoundSpec
from videokd.models import MelNetwork
from videokd.models.sound_network import LogMel, mel_bands

CONFIG = MelNetwork(backbone="mobilenetv3_small_050", input=SoundSpec(seconds=2.0))


def test_mel_bands_are_those_of_htk() -> None:
    ours = mel_bands(64, num_bins=257, rate=16000).numpy()
    theirs = mel_filter_bank(257, 64, 0, 8000, 16000, norm=None, mel_scale="htk").T
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("frequency", [440.0, 1000.0, 4000.0])
def test_a_tone_lies_in_its_band(frequency: float) -> None:
    seconds = torch.arange(16000) / 16000
    spectra = LogMel(CONFIG)(torch.sin(2 * torch.pi * frequency * seconds)[None])[0].mean(dim=1)
    mel = 2595 * np.log10(1 + frequency / 700)
    highest = 2595 * np.log10(1 + 8000 / 700)
    assert spectra.argmax().item() == pytest.approx(mel / highest * 65 - 1, abs=1)


@pytest.mark.parametrize("second", [0.3, 1.0, 1.6])
@torch.no_grad()
def test_a_click_is_heard_at_its_second(second: float) -> None:
    torch.manual_seed(0)
    model = CONFIG.build(CLASSES).eval()
    silence = Sound(torch.zeros(1, 32000), torch.tensor([7.0]), torch.tensor([True]))
    click = Sound(silence.samples.clone(), silence.start, silence.heard)
    click.samples[0, round(second * 16000)] = 1
    for tap in ("stage1", "stage2", "stage3"):
        one, two = model(silence, (tap,)).features[tap], model(click, (tap,)).features[tap]
        energy = (two.values - one.values).square().sum(dim=(0, 2, 3, 4))
        spacing = (two.times[0, 1] - two.times[0, 0]).item()
        assert two.times[0, energy.argmax()].item() == pytest.approx(7 + second, abs=spacing)


@pytest.mark.parametrize(
    ("backbone", "steps"),
    [
        # Padded odd kernels: on every 2nd, 4th... spectrum.
        ("mobilenetv3_small_050", [(0, 2), (0, 4), (0, 8), (0, 16), (0, 32)]),
        # 4 spectra at a stride of 4, unpadded: (4 - 1) / 2. Then 2 steps at a stride of 2: half a step more each time.
        ("convnext_atto", [(1.5, 4), (1.5 + 2, 8), (3.5 + 4, 16), (7.5 + 8, 32)]),
        # TensorFlow pads 201, 101, 51 -> 26 as others do. Of 26 it pads kernels of 5 by one in front, two behind: a
        # step of 8 spectra later. Of 13 evenly.
        ("tf_mobilenetv3_small_100", [(0, 2), (0, 4), (0, 8), (8, 16), (8, 32)]),
    ],
)
def test_steps_lie_where_convolutions_put_them(backbone: str, steps: list[tuple[float, float]]) -> None:
    model = MelNetwork(backbone=backbone, input=SoundSpec(seconds=2.0)).build(CLASSES).eval()
    assert [tuple(stage) for stage in model.steps] == steps
    found = model(model.blank(), model.taps).features
    for number, (first, spacing) in enumerate(steps, start=1):
        expected = 0.01 * (first + spacing * torch.arange(3))
        torch.testing.assert_close(found[f"stage{number}"].times[0, :3], expected)
    torch.testing.assert_close(found["frames"].times, found[f"stage{len(steps)}"].times)


@torch.no_grad()
def test_clicks_are_heard_neither_early_nor_late_by_unpadded_kernels() -> None:
    torch.manual_seed(0)
    model = MelNetwork(backbone="convnext_atto", input=SoundSpec(seconds=2.0)).build(CLASSES).eval()
    # Stage 3 has a step every 0.16 s, and a click is heard in the step in which it falls: over clicks that are evenly
    # spread over steps, early ones and late ones make up for each other.
    seconds = 0.48 + 0.02 * torch.arange(32)
    silence = model.blank(len(seconds))
    click = Sound(silence.samples.clone(), silence.start, silence.heard)
    click.samples[torch.arange(len(seconds)), (16000 * seconds).round().long()] = 1
    one, two = model(silence, ("stage3",)).features["stage3"], model(click, ("stage3",)).features["stage3"]
    energy = (two.values - one.values).square().sum(dim=(2, 3, 4))
    heard = (two.times * energy).sum(dim=1) / energy.sum(dim=1)
    assert (heard - seconds).mean().item() == pytest.approx(0, abs=0.01)


def test_it_says_nothing_of_clips_without_sound() -> None:
    model = CONFIG.build(CLASSES).eval()
    sound = Sound(torch.zeros(2, 32000), torch.zeros(2), torch.tensor([True, False]))
    assert model(sound).known.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"takes sounds \(B, 32000\), got \(2, 100\)"):
        model(Sound(torch.zeros(2, 100), torch.zeros(2), torch.tensor([True, True])))


def test_weights_of_pictures_are_taken_for_spectrograms(tmp_path: object) -> None:
    torch.manual_seed(1)
    source = timm.create_model("mobilenetv3_small_050", num_classes=0)
    path = f"{tmp_path}/weights.pth"
    torch.save(source.state_dict(), path)
    model = MelNetwork(backbone="mobilenetv3_small_050", weights=path).build(CLASSES)
    # Of one channel instead of three: timm sums the colours.
    torch.testing.assert_close(model.backbone.conv_stem.weight, source.conv_stem.weight.sum(dim=1, keepdim=True))


def test_wrong_backbones_are_refused() -> None:
    with pytest.raises(ValueError, match="no backbone 'mobilenetv3_smal'; did you mean 'mobilenetv3_small"):
        MelNetwork(backbone="mobilenetv3_smal").build(CLASSES)
    for backbone in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        with pytest.raises(
            ValueError, match=f"takes convolutional backbones.* and {backbone} does not take spectra of"
        ):
            MelNetwork(backbone=backbone).build(CLASSES)
    with pytest.raises(ValueError, match=r"mambaout_femto has a stage .* that is not \(B, 48, bands, steps\)"):
        MelNetwork(backbone="mambaout_femto").build(CLASSES)


def test_files_of_another_architecture_are_refused(tmp_path: Path) -> None:
    source = timm.create_model("resnet18")
    torch.save({f"model.{key}": value for key, value in source.state_dict().items()}, tmp_path / "a.pth")
    weights = str(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is for another architecture: it lacks conv_stem\.weight"):
        MelNetwork(backbone="mobilenetv3_small_050", weights=weights).build(CLASSES)
    model = MelNetwork(backbone="resnet18", weights=weights).build(CLASSES)
    assert torch.equal(model.backbone.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    assert "state_dict" not in model.backbone.pretrained_cfg  # the weights are not there twice
