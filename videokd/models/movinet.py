"""MoViNet-A0 [Kondratyuk et al. 2021]: a causal mobile video network with stream buffers, written from the paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.model import ModelConfig, VideoModel, clip_map, conv_map, named
from videokd.models.published import published
from videokd.models.temporal import OverTime


@dataclass(frozen=True, kw_only=True)
class MoViNet(ModelConfig):
    """MoViNet-A0 [Kondratyuk et al. 2021, table 8 and appendix A]: 3.1 M parameters with 600 classes.

    The stream model is causal, the base model looks both ways. Published input: 50 frames of 172 px at 5 a second.
    """

    causal: bool = True
    """No frame sees later ones: it runs frame by frame at a constant cost."""
    factorised: bool = False
    """A convolution over space, then one over time, instead of both at once, as its released mobile models have it."""
    input: InputSpec = InputSpec(frames=16, size=172, sampling=Dense(stride=5))
    weights: str | None = None
    """None, or a local file saved from this architecture."""
    dropout: float = 0.2
    drop_path: float = 0.2

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "MoViNetNetwork":
        """The network."""
        found = published(self.weights if pretrained else None, head="head.3")
        names = named(classes, found.classes if found else None, of="MoViNet")
        network = MoViNetNetwork(self, names)
        if found:
            found.load(network, names)
        return network


class _Block(NamedTuple):
    """An inverted bottleneck."""

    width: int
    expanded: int
    kernel: tuple[int, int]  # in time, in space
    stride: int  # in space


_STAGES: tuple[tuple[_Block, ...], ...] = (
    (_Block(8, 24, (1, 5), 2),),
    (_Block(32, 80, (3, 3), 2), _Block(32, 80, (3, 3), 1), _Block(32, 80, (3, 3), 1)),
    (_Block(56, 184, (5, 3), 2), _Block(56, 112, (3, 3), 1), _Block(56, 184, (3, 3), 1)),
    (
        _Block(56, 184, (5, 3), 1),
        _Block(56, 184, (3, 3), 1),
        _Block(56, 184, (3, 3), 1),
        _Block(56, 184, (3, 3), 1),
    ),
    (
        _Block(104, 384, (5, 3), 2),
        _Block(104, 280, (1, 5), 1),
        _Block(104, 280, (1, 5), 1),
        _Block(104, 344, (1, 5), 1),
    ),
)
_STEM, _LAST, _HIDDEN = 8, 480, 2048


class MoViNetNetwork(VideoModel):
    """See `MoViNet`. Time is never strided: every tap but "clip" has a step for every frame."""

    def __init__(self, config: MoViNet, classes: Sequence[str]) -> None:
        stages = tuple(f"stage{number}" for number in range(1, len(_STAGES) + 1))
        super().__init__(config, classes, taps=stages, input=config.input)
        self.causal = config.causal
        self.stem = _convolution(3, _STEM, kernel=(1, 3), stride=2, config=config)
        inputs, depth, placed = _STEM, sum(map(len, _STAGES)), 0
        self.stages = nn.ModuleList()
        for stage in _STAGES:
            blocks = nn.Sequential()
            for block in stage:
                blocks.append(_Bottleneck(inputs, block, config=config, drop=config.drop_path * placed / depth))
                inputs, placed = block.width, placed + 1
            self.stages.append(blocks)
        self.last = _convolution(inputs, _LAST, kernel=(1, 1), config=config)
        self.mean_over_time = CumulativeMean(causal=config.causal)
        self.head = nn.Sequential(
            nn.Linear(_LAST, _HIDDEN), nn.Hardswish(), nn.Dropout(config.dropout), nn.Linear(_HIDDEN, len(self.classes))
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
        # The mean up to the last frame is the mean of the clip.
        pooled = self.mean_over_time(values.mean(dim=(3, 4), keepdim=True))[:, :, -1, 0, 0]
        if "clip" in taps:
            maps["clip"] = clip_map(pooled, times)
        return Outputs(self.head(pooled), maps)


class BufferedConv(OverTime):
    """A convolution over time whose past is a stream buffer [Kondratyuk et al. 2021, section 3.2]."""

    def __init__(self, conv: nn.Conv3d, *, causal: bool) -> None:
        super().__init__()
        self.conv = conv
        self.causal = causal
        self.reach = conv.kernel_size[0] - 1

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same T."""
        if self.reach == 0:
            alone: Tensor = self.conv(video)
            return alone
        if not self.causal:
            padded = F.pad(video, (0, 0, 0, 0, self.reach // 2, self.reach // 2))
        else:
            before = self.past.get("frames") if self.streaming else None
            if before is None:
                before = video.new_zeros((*video.shape[:2], self.reach, *video.shape[3:]))
            padded = torch.cat([before, video], dim=2)
            if self.streaming:
                self.past = {"frames": padded[:, :, padded.shape[2] - self.reach :]}
        after: Tensor = self.conv(padded)
        return after


class CumulativeMean(OverTime):
    """The mean over time: of all frames, or of a causal network, at every frame of those up to it."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, T, 1, 1) -> (B, C, T, 1, 1), or (B, C, 1, 1, 1) if it is not causal."""
        if not self.causal:
            return values.mean(dim=2, keepdim=True)
        # Half precision can't count beyond 256: the mean of a long stream would stand still.
        total = values.cumsum(dim=2, dtype=torch.float32)
        count = torch.arange(1, values.shape[2] + 1, device=values.device, dtype=torch.float32)
        if self.streaming:
            if self.past:
                total, count = total + self.past["total"], count + self.past["count"]
            self.past = {"total": total[:, :, -1:], "count": count[-1:]}
        return (total / count.view(-1, 1, 1)).to(values.dtype)


class _Bottleneck(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection, beside a shortcut."""

    def __init__(self, inputs: int, block: _Block, *, config: MoViNet, drop: float) -> None:
        super().__init__()
        self.expand = _convolution(inputs, block.expanded, kernel=(1, 1), config=config)
        self.depthwise = _convolution(
            block.expanded,
            block.expanded,
            kernel=block.kernel,
            stride=block.stride,
            groups=block.expanded,
            config=config,
        )
        self.excite = _Excitation(block.expanded, causal=config.causal)
        self.project = _convolution(block.expanded, block.width, kernel=(1, 1), config=config, activation=False)
        shortcut: list[nn.Module] = []
        if block.stride > 1:
            shortcut.append(_HalfSize())
        if inputs != block.width:
            shortcut.append(_convolution(inputs, block.width, kernel=(1, 1), config=config, activation=False))
        self.shortcut = nn.Sequential(*shortcut)
        self.drop = StochasticDepth(drop, "row")
        # ReZero [Bachlechner et al. 2020]: the branch begins as nothing.
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, width, T, H', W')."""
        branch = self.project(self.excite(self.depthwise(self.expand(video))))
        after: Tensor = self.shortcut(video) + self.drop(self.scale * branch)
        return after


class _HalfSize(nn.Module):
    """Mean of 3x3 places at a stride of 2; unlike `AvgPool3d`, of maps of 2x2 too."""

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T, H', W')."""
        pooled = F.avg_pool2d(video.flatten(1, 2), 3, stride=2, padding=1, count_include_pad=False)
        unfolded: Tensor = pooled.unflatten(1, video.shape[1:3])
        return unfolded


class _Excitation(nn.Module):
    """Squeeze-and-excitation [Hu et al. 2018]; a causal one squeezes the frames up to each [section 3.2]."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        hidden = _divisible(width / 4)
        self.mean_over_time = CumulativeMean(causal=causal)
        self.squeeze = nn.Conv3d(width, hidden, 1)
        self.excite = nn.Conv3d(hidden, width, 1)

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        mean = self.mean_over_time(video.mean(dim=(3, 4), keepdim=True))
        scales: Tensor = F.hardsigmoid(self.excite(F.hardswish(self.squeeze(mean))))
        return video * scales


def _convolution(
    inputs: int,
    outputs: int,
    *,
    kernel: tuple[int, int],
    config: MoViNet,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution, normalisation, activation; factorised where it spans space and time."""
    over_time, over_space = kernel
    shapes = [(over_time, over_space)]
    if config.factorised and over_time > 1 and over_space > 1:
        shapes = [(1, over_space), (over_time, 1)]
    layers: list[nn.Module] = []
    for number, (frames, pixels) in enumerate(shapes):
        conv = nn.Conv3d(
            inputs if number == 0 else outputs,
            outputs,
            (frames, pixels, pixels),
            stride=(1, stride, stride) if number == 0 else 1,
            padding=(0, pixels // 2, pixels // 2),
            groups=groups,
            bias=False,
        )
        layers += [BufferedConv(conv, causal=config.causal), nn.BatchNorm3d(outputs)]
        if activation:
            layers.append(nn.Hardswish())
    return nn.Sequential(*layers)


def _divisible(width: float) -> int:
    """The nearest multiple of 8, at least 8, and not less than nine tenths of the width [MobileNetV3]."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest
