"""A model that listens: the log-mel spectrogram of a clip's own sound as a picture, seen by a timm backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import FeatureMap, Outputs, SoundSpec
from videokd.models.model import ModelConfig, SoundModel, named, unavailable


@dataclass(frozen=True, kw_only=True)
class MelNetwork(ModelConfig):
    """A timm image backbone over log-mel spectrograms [Hershey et al. 2017].

    It hears the sound around the frames that the others see, and says nothing of clips without sound.
    """

    input: SoundSpec = SoundSpec(seconds=2.0, sample_rate=16000)
    backbone: str = "mobilenetv3_small_100"
    """A name of `timm.list_models()`, with stages."""
    weights: str | None = None
    """None, "timm" for timm's image weights (their colours summed), or a local file."""
    mels: int = 64
    """Bands of the spectrogram."""
    window: float = 0.025
    """Seconds of a spectrum."""
    hop: float = 0.01
    """Seconds between spectra."""
    dropout: float = 0.2

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "MelNetworkModel":
        """The model.

        Raises:
            ValueError: for an unknown backbone (with the nearest name), one without stages, or weights that can't be
                had.
        """
        if self.backbone.split(".")[0] not in timm.list_models():
            raise ValueError(f"timm has no backbone {self.backbone!r}{nearest(self.backbone, timm.list_models())}")
        loads = pretrained and self.weights is not None
        local = self.weights if loads and self.weights != "timm" else None
        try:
            backbone: Any = timm.create_model(
                self.backbone,
                pretrained=loads,
                pretrained_cfg_overlay={"file": local} if local else None,
                features_only=True,
                in_chans=1,
            )
        except OSError as error:
            assert self.weights is not None
            raise unavailable(self.weights, error) from error
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"{self.backbone} has no stages, or its weights do not fit: {error}") from error
        return MelNetworkModel(self, named(classes, None, of="MelNetwork"), backbone)


class MelNetworkModel(SoundModel):
    """See `MelNetwork`. Maps are (B, T', bands, 1, C): time in seconds of the video, bands of the spectrum as rows."""

    def __init__(self, config: MelNetwork, classes: Sequence[str], backbone: Any) -> None:
        stages = tuple(f"stage{number}" for number in range(1, len(backbone.feature_info.channels()) + 1))
        super().__init__(config, classes, taps=stages, input=config.input)
        self.spectrogram = LogMel(config)
        self.norm = nn.BatchNorm2d(1)
        self.backbone: Any = backbone
        self.stages = stages
        self.strides = backbone.feature_info.reduction()
        width = backbone.feature_info.channels()[-1]
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, len(self.classes)))

    def run(self, samples: Tensor, start: Tensor, taps: Sequence[str]) -> Outputs:
        """See `SoundModel.run`."""
        spectra = self.spectrogram(samples)  # (B, mels, N)
        picture = self.norm(spectra[:, None])
        found = self.backbone(picture)
        last = found[-1]
        maps = {}
        for tap, values, stride in zip((*self.stages, "frames"), (*found, last), (*self.strides, self.strides[-1])):
            if tap in taps:
                maps[tap] = self._map(values, start, stride)
        pooled = last.mean(dim=(2, 3))
        if "clip" in taps:
            middle = start[:, None] + self.input.seconds / 2
            maps["clip"] = FeatureMap(pooled[:, None, None, None], middle)
        return Outputs(self.head(pooled), maps)

    def _map(self, values: Tensor, start: Tensor, stride: int) -> FeatureMap:
        # Padded odd kernels: step j is centred on spectrum j x stride, and spectrum n on n x hop.
        seconds = torch.arange(values.shape[3], device=start.device) * stride * self.spectrogram.hop
        times = start[:, None] + seconds.clamp(max=self.input.seconds)
        return FeatureMap(rearrange(values, "b c f t -> b t f 1 c"), times)


class LogMel(nn.Module):
    """Log-mel spectrogram: magnitudes of windowed spectra in triangular bands that are equally wide in mel.

    The mel scale is HTK's, 2595 log10(1 + f / 700).
    """

    window: Tensor
    bands: Tensor

    def __init__(self, config: MelNetwork) -> None:
        super().__init__()
        rate = config.input.sample_rate
        self.length, self.step = round(config.window * rate), round(config.hop * rate)
        self.size = 1 << (self.length - 1).bit_length()
        self.hop = self.step / rate
        self.register_buffer("window", torch.hann_window(self.length), persistent=False)
        self.register_buffer("bands", mel_bands(config.mels, num_bins=self.size // 2 + 1, rate=rate), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, S) -> (B, mels, 1 + S // hop)."""
        spectrum = torch.stft(
            samples.float(),
            self.size,
            hop_length=self.step,
            win_length=self.length,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return torch.log(self.bands @ spectrum.abs() + 1e-3)


def mel_bands(count: int, *, num_bins: int, rate: int) -> Tensor:
    """Weights (count, num_bins) of the bins of a spectrum up to half the sample rate."""

    def mel(frequency: float) -> float:
        return 2595 * float(np.log10(1 + frequency / 700))

    corners = 700 * (10 ** (np.linspace(mel(0), mel(rate / 2), count + 2) / 2595) - 1)
    bins = np.linspace(0, rate / 2, num_bins)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.from_numpy(np.maximum(np.minimum(rising, falling), 0)).float()
