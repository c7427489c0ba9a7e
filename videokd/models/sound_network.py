"""A model that listens: the log-mel spectrogram of a clip's own sound as a picture, seen by a timm backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import FeatureMap, Outputs, SoundSpec
from videokd.models.model import ModelConfig, SoundModel, named, unavailable
from videokd.models.timm_video import load_file


@dataclass(frozen=True, kw_only=True)
class MelNetwork(ModelConfig):
    """A timm image backbone over log-mel spectrograms [Hershey et al. 2017].

    It hears the sound around the frames that the others see, and says nothing of clips without sound.
    """

    input: SoundSpec = SoundSpec(seconds=2.0, sample_rate=16000)
    backbone: str = "mobilenetv3_small_100"
    """A name of `timm.list_models()`: a convolutional network, which takes pictures of any shape."""
    weights: str | None = None
    """None, "timm" for timm's image weights (their colours summed), or a local file."""
    mels: int = 64
    """Bands of the spectrogram."""
    window: float = 0.025
    """Seconds of a spectrum."""
    hop: float = 0.01
    """Seconds between spectra."""
    dropout: float = 0.2
    drop_path: float | None = None
    """Stochastic depth of the backbone's residual blocks, rising to this at the last; None is the backbone's own."""

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "MelNetworkModel":
        """The model.

        Raises:
            ValueError: for an unknown backbone (with the nearest name), one that is not convolutional, or weights that
                can't be had or do not fit.
        """
        if self.backbone.split(".")[0] not in timm.list_models():
            raise ValueError(f"timm has no backbone {self.backbone!r}{nearest(self.backbone, timm.list_models())}")
        overlay = None
        if pretrained and self.weights is not None and self.weights != "timm":
            whole = timm.create_model(self.backbone)
            load_file(whole, self.weights, keep_head=False)
            overlay = {"state_dict": whole.state_dict()}
        options: dict[str, Any] = {} if self.drop_path is None else {"drop_path_rate": self.drop_path}
        try:
            backbone: Any = timm.create_model(
                self.backbone,
                pretrained=pretrained and self.weights is not None,
                pretrained_cfg_overlay=overlay,
                features_only=True,
                in_chans=1,
                **options,
            )
        except OSError as error:
            assert self.weights is not None
            raise unavailable(self.weights, error) from error
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self.backbone} has no stages, takes no drop_path, or its weights do not fit: {error}"
            ) from error
        if overlay:
            _forget_weights(backbone)
        return MelNetworkModel(self, named(classes, None, of="MelNetwork"), backbone)


def _forget_weights(backbone: nn.Module) -> None:
    """Takes away the copies of its weights that timm keeps beside them."""
    for module in backbone.modules():
        if isinstance(description := getattr(module, "pretrained_cfg", None), dict):
            description.pop("state_dict", None)


class MelNetworkModel(SoundModel):
    """See `MelNetwork`. Maps are (B, T', bands, 1, C): time in seconds of the video, bands of the spectrum as rows."""

    def __init__(self, config: MelNetwork, classes: Sequence[str], backbone: Any) -> None:
        stages = tuple(f"stage{number}" for number in range(1, len(backbone.feature_info.channels()) + 1))
        super().__init__(config, classes, taps=stages, input=config.input)
        self.spectrogram = LogMel(config)
        self.norm = nn.BatchNorm2d(1)
        self.backbone: Any = backbone
        self.stages = stages
        self.steps = _steps(config, backbone, self.spectrogram(torch.zeros(1, config.input.samples))[:, None])
        width = backbone.feature_info.channels()[-1]
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, len(self.classes)))

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        trunk: nn.Module = self.backbone
        return trunk

    def run(self, samples: Tensor, start: Tensor, taps: Sequence[str]) -> Outputs:
        """See `SoundModel.run`."""
        spectra = self.spectrogram(samples)  # (B, mels, N)
        picture = self.norm(spectra[:, None])
        found = self.backbone(picture)
        last = found[-1]
        maps = {}
        for tap, values, steps in zip((*self.stages, "frames"), (*found, last), (*self.steps, self.steps[-1])):
            if tap in taps:
                maps[tap] = self._map(values, start, steps)
        pooled = last.mean(dim=(2, 3))
        if "clip" in taps:
            middle = start[:, None] + self.input.seconds / 2
            maps["clip"] = FeatureMap(pooled[:, None, None, None], middle)
        return Outputs(self.head(pooled), maps)

    def _map(self, values: Tensor, start: Tensor, steps: "_Steps") -> FeatureMap:
        # Spectrum n is centred on n x hop.
        spectra = steps.first + steps.spacing * torch.arange(values.shape[3], device=start.device)
        times = start[:, None] + (spectra * self.spectrogram.hop).clamp(0, self.input.seconds)
        return FeatureMap(rearrange(values, "b c f t -> b t f 1 c"), times)


class _Steps(NamedTuple):
    """Where the steps of a map are centred, counted in spectra."""

    first: float
    spacing: float


class _Shorter(NamedTuple):
    """What a layer that shortens time makes of it."""

    length: int
    kernel: int
    first: float
    """Where its first step is centred, counted in steps of its input."""
    stride: int


@torch.no_grad()
def _steps(config: MelNetwork, backbone: Any, picture: Tensor) -> list[_Steps]:
    """The steps of every stage, by the convolutions and poolings on the way from the picture (1, 1, bands, N).

    Raises:
        ValueError: if it does not take the picture, or other layers shorten time.
    """
    layers: dict[int, _Shorter] = {}

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        before, after = inputs[0].shape[-1], output.shape[-1]
        if after < before:
            found = _shorter(module, before, after)
            # Beside the main path there are shortcuts of smaller kernels, and attention of larger strides.
            layers[before] = max(layers.get(before, found), found)

    kinds = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
    handles = [module.register_forward_hook(watch) for module in backbone.modules() if isinstance(module, kinds)]
    training = backbone.training
    backbone.eval()
    wanted = f"MelNetwork takes convolutional backbones, such as MobileNets and ResNets, and {config.backbone}"
    try:
        maps = backbone(picture)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{wanted} does not take spectra of {tuple(picture.shape[2:])}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        backbone.train(training)
    steps, length, found = _Steps(0.0, 1.0), picture.shape[3], []
    for values, width in zip(maps, backbone.feature_info.channels()):
        while length > values.shape[3] and length in layers:
            layer = layers[length]
            steps = _Steps(steps.first + steps.spacing * layer.first, steps.spacing * layer.stride)
            length = layer.length
        if values.shape[1] != width or values.shape[3] != length:
            raise ValueError(
                f"{wanted} has a stage {tuple(values.shape)} that is not (B, {width}, bands, steps), with time "
                "shortened by convolutions and poolings alone"
            )
        found.append(steps)
    return found


def _shorter(layer: Any, before: int, after: int) -> _Shorter:
    """What a convolution or pooling did to time, from `before` steps to `after`."""
    stride, kernel, padding, dilation = (
        _in_time(getattr(layer, name, 1)) for name in ("stride", "kernel_size", "padding", "dilation")
    )
    reach = dilation * (kernel - 1)
    if (before + 2 * padding - reach - 1) // stride + 1 != after:
        # TensorFlow's padding: as much as the stride needs, the odd one behind.
        padding = max((after - 1) * stride + reach + 1 - before, 0) // 2
    return _Shorter(after, kernel, reach / 2 - padding, stride)


def _in_time(setting: Any) -> int:
    return int(setting if isinstance(setting, int) else setting[-1])


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
