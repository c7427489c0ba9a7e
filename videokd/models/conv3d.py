"""Small residual 3D networks: the quickstart's teacher, and others of its family."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from videokd.contracts import FeatureMap, InputSpec, Outputs
from videokd.models.model import ModelConfig, VideoModel, clip_map, conv_map, named, step_times


@dataclass(frozen=True, kw_only=True)
class Conv3d(ModelConfig):
    """A 3x5x5 stem and one residual block per stage; space shrinks by 8, time by 2 (in stage 2)."""

    input: InputSpec = InputSpec(frames=16, size=32)
    width: int = 16
    """Channels of the stem and of stage 1; stages 2 and 3 have two and four times as many."""

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "Conv3dNetwork":
        """The network; there are no published weights."""
        return Conv3dNetwork(self, named(classes, None, of="Conv3d"))


class Conv3dNetwork(VideoModel):
    """See `Conv3d`."""

    def __init__(self, config: Conv3d, classes: Sequence[str]) -> None:
        super().__init__(config, classes, taps=("stage1", "stage2", "stage3"), input=config.input)
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(
            [
                ResidualBlock(width, width, stride=(1, 2, 2)),
                ResidualBlock(width, 2 * width, stride=(2, 1, 1)),
                ResidualBlock(2 * width, 4 * width, stride=(1, 2, 2)),
            ]
        )
        self.head = nn.Linear(4 * width, len(self.classes))

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        maps: dict[str, FeatureMap] = {}
        values = self.stem(video)
        step_centres = times
        for number, stage in enumerate(self.stages, start=1):
            values = stage(values)
            if number == 2:
                step_centres = step_times(times, stride=2)
            if f"stage{number}" in taps:
                maps[f"stage{number}"] = conv_map(values, step_centres)
        maps["frames"] = conv_map(values, step_centres)
        pooled = values.mean(dim=(2, 3, 4))
        maps["clip"] = clip_map(pooled, times)
        return Outputs(self.head(pooled), {tap: maps[tap] for tap in taps})


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut [He et al. 2016, over time too]."""

    def __init__(self, inputs: int, outputs: int, *, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(outputs)
        self.shortcut = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, video: Tensor) -> Tensor:
        """(B, inputs, T, H, W) -> (B, outputs, T', H', W')."""
        values = F.relu(self.norm1(self.conv1(video)), inplace=True)
        return F.relu(self.norm2(self.conv2(values)) + self.shortcut(video), inplace=True)
