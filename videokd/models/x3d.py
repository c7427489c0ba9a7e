"""X3D [Feichtenhofer 2020]: compact 3D networks grown axis by axis, written from the paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.model import ModelConfig, VideoModel, clip_map, conv_map, named
from videokd.models.published import published


@dataclass(frozen=True, kw_only=True)
class X3D(ModelConfig):
    """X3D-S, and X3D-XS or X3D-M by its `input` [Feichtenhofer 2020, tables 1 and 2]: 3.8 M parameters.

    The three have one architecture: XS sees 4 frames at stride 12, S 13 at stride 6, both at 160 px, M 16 at stride 5
    and 224 px. Time is never strided.
    """

    input: InputSpec = InputSpec(
        frames=13, size=160, sampling=Dense(stride=6), mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)
    )
    width: int = 24
    """Channels of the stem and of stage 1."""
    depth: float = 2.2
    """Factor on the blocks of the stages, 1, 2, 5 and 3."""
    bottleneck: float = 2.25
    """Channels inside a block over those outside."""
    weights: str | None = None
    """None, or a local file saved from this architecture."""
    dropout: float = 0.5
    drop_path: float = 0.0
    """Stochastic depth of its blocks, rising to this at the last [Huang et al. 2016]."""

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "X3DNetwork":
        """The network."""
        found = published(self.weights if pretrained else None, head="head.4")
        names = named(classes, found.classes if found else None, of="X3D")
        network = X3DNetwork(self, names)
        if found:
            found.load(network, names)
        return network


_DEPTHS = (1, 2, 5, 3)
_HIDDEN = 2048


class X3DNetwork(VideoModel):
    """See `X3D`."""

    def __init__(self, config: X3D, classes: Sequence[str]) -> None:
        stages = tuple(f"stage{number}" for number in range(1, len(_DEPTHS) + 1))
        super().__init__(config, classes, taps=stages, input=config.input)
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
            nn.Conv3d(width, width, (5, 1, 1), padding=(2, 0, 0), groups=width, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        inputs = width
        depths = [math.ceil(depth * config.depth) for depth in _DEPTHS]
        placed, last = 0, max(1, sum(depths) - 1)
        for number, depth in enumerate(depths):
            outputs = _divisible(width * 2**number)
            inner = int(outputs * config.bottleneck)
            blocks = nn.Sequential()
            for place in range(depth):
                # Every second block has squeeze-and-excitation, the first of a stage among them.
                block = _Block(inputs, outputs, inner=inner, stride=2 if place == 0 else 1, excited=place % 2 == 0)
                block.drop.p = config.drop_path * placed / last
                blocks.append(block)
                inputs, placed = outputs, placed + 1
            self.stages.append(blocks)
        self.last = nn.Sequential(nn.Conv3d(inputs, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU(inplace=True))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inner, _HIDDEN, bias=False),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(_HIDDEN, len(self.classes)),
        )

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        maps: dict[str, FeatureMap] = {}
        values = self.stem(video)
        for number, stage in enumerate(self.stages, start=1):
            values = stage(values)
            if f"stage{number}" in taps:
                maps[f"stage{number}"] = conv_map(values, times)
        values = self.last(values)
        if "frames" in taps:
            maps["frames"] = conv_map(values, times)
        pooled = values.mean(dim=(2, 3, 4))
        if "clip" in taps:
            maps["clip"] = clip_map(pooled, times)
        return Outputs(self.head(pooled), maps)


class _Block(nn.Module):
    """A bottleneck with a depthwise 3x3x3 convolution, and SiLU (swish) before it is projected."""

    def __init__(self, inputs: int, outputs: int, *, inner: int, stride: int, excited: bool) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv3d(inputs, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv3d(inner, inner, 3, stride=(1, stride, stride), padding=1, groups=inner, bias=False),
            nn.BatchNorm3d(inner),
        )
        self.excite = _Excitation(inner) if excited else nn.Identity()
        self.project = nn.Sequential(nn.Conv3d(inner, outputs, 1, bias=False), nn.BatchNorm3d(outputs))
        self.drop = StochasticDepth(0.0, "row")
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride=(1, stride, stride), bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, video: Tensor) -> Tensor:
        """(B, inputs, T, H, W) -> (B, outputs, T, H', W')."""
        branch = self.project(F.silu(self.excite(self.depthwise(self.expand(video)))))
        return F.relu(self.drop(branch) + self.shortcut(video), inplace=True)


class _Excitation(nn.Module):
    """Squeeze-and-excitation over space and time [Hu et al. 2018], to a sixteenth of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = _divisible(width / 16)
        self.squeeze = nn.Conv3d(width, hidden, 1)
        self.excite = nn.Conv3d(hidden, width, 1)

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        scales: Tensor = self.excite(F.relu(self.squeeze(video.mean(dim=(2, 3, 4), keepdim=True)))).sigmoid()
        return video * scales


def _divisible(width: float) -> int:
    """The nearest multiple of 8, at least 8, and not less than nine tenths of the width."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest
