"""A student small enough for the quickstart: four 2D convolutions over frames, tied together in time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.model import ModelConfig, VideoModel, clip_map, folded_map, frame_map, named
from videokd.models.temporal import MeanOverTime, Shift, TemporalConv


@dataclass(frozen=True, kw_only=True)
class CompactShift(ModelConfig):
    """Four 2D convolutions with temporal shift and a convolution over time: 41 k parameters at width 16."""

    input: InputSpec = InputSpec(frames=8, size=32, sampling=Dense(stride=2))
    width: int = 16
    """Channels of the stem; the stages have two, three and three times as many."""
    shift_share: float = 0.25
    """Share of the channels that comes from the next frame, and from the last one."""
    causal: bool = False
    """See only the frames before, so that it can run frame by frame."""

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "CompactShiftNetwork":
        """The network; there are no published weights."""
        return CompactShiftNetwork(self, named(classes, None, of="CompactShift"))


class CompactShiftNetwork(VideoModel):
    """See `CompactShift`."""

    def __init__(self, config: CompactShift, classes: Sequence[str]) -> None:
        super().__init__(config, classes, taps=("stage1", "stage2", "stage3"), input=config.input)
        width = config.width
        self.causal = config.causal
        self.stem = _conv_norm_relu(3, width, kernel=5, stride=4)
        stages = [
            _conv_norm_relu(width, 2 * width, kernel=3, stride=1),
            _conv_norm_relu(2 * width, 3 * width, kernel=3, stride=2),
            _conv_norm_relu(3 * width, 3 * width, kernel=3, stride=1),
        ]
        self.stages = nn.ModuleList([Shift(stage, share=config.shift_share, causal=config.causal) for stage in stages])
        self.over_time = TemporalConv(3 * width, causal=config.causal)
        self.mean_over_time = MeanOverTime(config.input.frames)
        self.head = nn.Linear(3 * width, len(self.classes))

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        clips = video.shape[0]
        maps: dict[str, FeatureMap] = {}
        values = self.stem(rearrange(video, "b c t h w -> (b t) c h w"))
        for number, stage in enumerate(self.stages, start=1):
            assert isinstance(stage, Shift)
            stage.clips = clips
            after = stage(values)
            values = after + values if after.shape == values.shape else after
            if f"stage{number}" in taps:
                maps[f"stage{number}"] = folded_map(values, times)
        frames = F.relu(self.over_time(rearrange(values.mean(dim=(2, 3)), "(b t) c -> b t c", b=clips)))
        pooled = self.mean_over_time(frames)
        maps |= {"frames": frame_map(frames, times), "clip": clip_map(pooled, times)}
        return Outputs(self.head(pooled), {tap: maps[tap] for tap in taps})


def _conv_norm_relu(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
