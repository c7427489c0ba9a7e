"""What every model is to the rest of the project: a clip in, logits and named feature maps out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import Clip, FeatureMap, InputSpec, Outputs


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """The full description of a model, apart from its classes and its weights."""

    input: InputSpec

    @abstractmethod
    def build(self, classes: Sequence[str], *, pretrained: bool = True) -> "VideoModel":
        """The model with a head for `classes`; its published weights are fetched only if `pretrained`."""


class VideoModel(nn.Module, ABC):
    """A network with its own door: it takes bytes, and makes float and normalises by its own input spec.

    Every model offers the taps "frames" (the last map before time is pooled away) and "clip" (pooled, before the
    head), and the stages that `taps` names.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, classes: Sequence[str], *, taps: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.classes = tuple(classes)
        self.taps = (*taps, "frames", "clip")
        self.register_buffer("mean", torch.tensor(config.input.mean).view(1, 3, 1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.input.std).view(1, 3, 1, 1, 1) * 255, persistent=False)

    def forward(self, clip: Clip, taps: Sequence[str] = ()) -> Outputs:
        """Logits (B, K) and the feature maps named in `taps`.

        Raises:
            ValueError: for a clip of another shape than the input spec's, or a tap that the model does not have.
        """
        self.check_taps(taps)
        spec = self.config.input
        if clip.frames.shape[1:] != (spec.frames, 3, spec.size, spec.size):
            raise ValueError(
                f"{type(self).__name__} takes clips (B, {spec.frames}, 3, {spec.size}, {spec.size}), "
                f"got {tuple(clip.frames.shape)}"
            )
        video = rearrange(clip.frames, "b t c h w -> b c t h w")
        # Convolutions are faster with the channels last; what comes after keeps the layout.
        video = video.to(self.mean.dtype, memory_format=torch.channels_last_3d)
        return self.run(video.sub_(self.mean).div_(self.std), clip.times, taps)

    @abstractmethod
    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """The network on a normalised video (B, 3, T, H, W) with frame times (B, T)."""

    def check_taps(self, taps: Sequence[str]) -> None:
        """Raises a `ValueError` with the nearest name for a tap that the model does not have."""
        for tap in taps:
            if tap not in self.taps:
                raise ValueError(f"{type(self).__name__} has no tap {tap!r}{nearest(tap, self.taps)}")


def unavailable(weights: str, error: OSError) -> ValueError:
    """What to say of published weights that could not be fetched or read."""
    return ValueError(
        f"the weights {weights!r} could not be had: {error}. "
        "Name a local file, or train from scratch with --student.weights None"
    )


def conv_map(values: Tensor, times: Tensor) -> FeatureMap:
    """A feature map of a 3D convolution's output (B, C, T', H', W') and the times of its steps (B, T')."""
    return FeatureMap(rearrange(values, "b c t h w -> b t h w c"), times)


def clip_map(vector: Tensor, times: Tensor) -> FeatureMap:
    """A feature map of one vector per clip (B, C), at the middle of the frame times (B, T)."""
    return FeatureMap(vector[:, None, None, None, :], times.mean(dim=1, keepdim=True))


def step_times(times: Tensor, *, stride: int, kernel: int = 3, padding: int = 1) -> Tensor:
    """Centre times (B, T') of a convolution's output steps, from those of its input steps (B, T).

    Step j of the output is centred on the input position j x stride - padding + (kernel - 1) / 2.
    """
    num_steps = times.shape[1]
    num_outputs = (num_steps + 2 * padding - kernel) // stride + 1
    position = torch.arange(num_outputs, device=times.device) * stride - padding + (kernel - 1) / 2
    position = position.clamp(0, num_steps - 1)
    low, high = position.floor().long(), position.ceil().long()
    return torch.lerp(times[:, low], times[:, high], (position - low).to(times.dtype))
