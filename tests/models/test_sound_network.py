"""The network that listens: its spectrogram, and when it hears what."""

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
