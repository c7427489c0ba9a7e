"""Compact students: a 2D network over frames, and a temporal operator that ties the frames together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.temporal import ShiftedConv, TemporalConv, temporal_shift
from videokd.models.video_model import ModelConfig, VideoModel, clip_map, unavailable


@dataclass(frozen=True, kw_only=True)
class CompactShift(ModelConfig):
    """Four 2D convolutions with temporal shift and a convolution over time: 41 k parameters at width 16."""

    input: InputSpec = InputSpec(frames=8, size=32, sampling=Dense(stride=2))
    width: int = 16
    """Channels of the stem; the stages have two, three and three times as many."""
    shift_share: float = 0.25
    """Share of the channels that comes from the next frame, and from the last one."""

    def build(self, classes: Sequence[str], *, pretrained: bool = True) -> "CompactShiftNetwork":
        """The network; there are no published weights."""
        return CompactShiftNetwork(self, classes)


class CompactShiftNetwork(VideoModel):
    """See `CompactShift`."""

    def __init__(self, config: CompactShift, classes: Sequence[str]) -> None:
        super().__init__(config, classes, taps=("stage1", "stage2", "stage3"))
        width = config.width
        self.shift_share = config.shift_share
        self.stem = _conv_norm_relu(3, width, kernel=5, stride=4)
        self.stages = nn.ModuleList(
            [
                _conv_norm_relu(width, 2 * width, kernel=3, stride=1),
                _conv_norm_relu(2 * width, 3 * width, kernel=3, stride=2),
                _conv_norm_relu(3 * width, 3 * width, kernel=3, stride=1),
            ]
        )
        self.over_time = TemporalConv(3 * width)
        self.head = nn.Linear(3 * width, len(self.classes))

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        num_frames = video.shape[2]
        maps: dict[str, FeatureMap] = {}
        values = self.stem(rearrange(video, "b c t h w -> (b t) c h w"))
        for number, stage in enumerate(self.stages, start=1):
            after = stage(temporal_shift(values, num_frames=num_frames, share=self.shift_share))
            values = after + values if after.shape == values.shape else after
            maps[f"stage{number}"] = _folded_map(values, times)
        frames = rearrange(values.mean(dim=(2, 3)), "(b t) c -> b t c", t=num_frames)
        return _frame_outputs(F.relu(self.over_time(frames)), times, self.head, maps, taps)


@dataclass(frozen=True, kw_only=True)
class TimmStudent(ModelConfig):
    """Any timm image backbone over frames, with one temporal operator."""

    backbone: str = "mobilenetv3_small_100"
    """A name of `timm.list_models()`."""
    temporal: Literal["shift", "conv", "average"] = "shift"
    """Shift inside the residual branches [TSM], a convolution over the pooled frames, or none [TSN]."""
    input: InputSpec = InputSpec(frames=8, size=112, sampling=Dense(stride=4))
    weights: str | None = None
    """None, "timm" for timm's published weights, or a local checkpoint file."""
    shift_share: float = 0.125
    dropout: float = 0.2

    def build(self, classes: Sequence[str], *, pretrained: bool = True) -> "TimmStudentModel":
        """The model.

        Raises:
            ValueError: for an unknown backbone (with the nearest name), or one in which shift has no known place.
        """
        if self.backbone.split(".")[0] not in timm.list_models():
            raise ValueError(f"timm has no backbone {self.backbone!r}{nearest(self.backbone, timm.list_models())}")
        local = self.weights if pretrained and self.weights not in (None, "timm") else None
        try:
            backbone = timm.create_model(
                self.backbone,
                pretrained=pretrained and self.weights is not None,
                pretrained_cfg_overlay={"file": local} if local else None,
                num_classes=0,
            )
        except OSError as error:
            assert self.weights is not None
            raise unavailable(self.weights, error) from error
        return TimmStudentModel(self, classes, backbone)


class TimmStudentModel(VideoModel):
    """See `TimmStudent`. The tap "spatial" is the backbone's last map, before frames are pooled to vectors."""

    def __init__(self, config: TimmStudent, classes: Sequence[str], backbone: Any) -> None:
        super().__init__(config, classes, taps=("spatial",))
        self.backbone: Any = backbone
        if config.temporal == "shift":
            shift_residual_branches(backbone, num_frames=config.input.frames, share=config.shift_share)
        width = _pooled_width(backbone, config.input.size)
        self.over_time = TemporalConv(width) if config.temporal == "conv" else nn.Identity()
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, len(self.classes)))

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        spatial = self.backbone.forward_features(rearrange(video, "b c t h w -> (b t) c h w"))
        pooled = self.backbone.forward_head(spatial, pre_logits=True)
        maps = {}
        if "spatial" in taps:
            if spatial.ndim != 4:
                raise ValueError(f"{self.backbone_name} keeps no spatial map (its features are {spatial.ndim - 1}-D)")
            # Some backbones (Swin) keep their channels last.
            if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
                spatial = rearrange(spatial, "bt h w c -> bt c h w")
            maps["spatial"] = _folded_map(spatial, times)
        frames = self.over_time(rearrange(pooled, "(b t) c -> b t c", t=video.shape[2]))
        return _frame_outputs(frames, times, self.head, maps, taps)

    @property
    def backbone_name(self) -> str:
        """timm's name of the backbone."""
        assert isinstance(self.config, TimmStudent)
        return self.config.backbone


def shift_residual_branches(backbone: nn.Module, *, num_frames: int, share: float) -> None:
    """Puts a temporal shift before the first convolution of every residual branch, in place.

    The shortcut stays as it was, so that a frame keeps its own features [TSM, section 3.2].

    Raises:
        ValueError: if the backbone has no residual block of a kind that is known here.
    """
    placed = 0
    for block in list(backbone.modules()):
        # ResNet blocks always have a shortcut; inverted residuals say whether they do.
        first = "conv1" if hasattr(block, "shortcut") or hasattr(block, "downsample") else "conv_pw"
        has_shortcut = first == "conv1" or getattr(block, "has_skip", False)
        if has_shortcut and isinstance(getattr(block, first, None), nn.Conv2d):
            setattr(block, first, ShiftedConv(getattr(block, first), num_frames=num_frames, share=share))
            placed += 1
    if not placed:
        raise ValueError(
            "temporal shift has no known place in this backbone (it is known for ResNets and for the inverted "
            'residuals of MobileNetV2, MobileNetV3 and EfficientNet); use temporal="conv"'
        )


def _conv_norm_relu(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _folded_map(values: Tensor, times: Tensor) -> FeatureMap:
    """The map of frames folded into the batch (B*T, C, H', W')."""
    return FeatureMap(rearrange(values, "(b t) c h w -> b t h w c", t=times.shape[1]), times)


def _frame_outputs(
    frames: Tensor, times: Tensor, head: nn.Module, maps: dict[str, FeatureMap], taps: Sequence[str]
) -> Outputs:
    """Logits of frame features (B, T, C), averaged over time, and the maps asked for."""
    pooled = frames.mean(dim=1)
    maps = {**maps, "frames": FeatureMap(frames[:, :, None, None, :], times), "clip": clip_map(pooled, times)}
    return Outputs(head(pooled), {tap: maps[tap] for tap in taps})


@torch.no_grad()
def _pooled_width(backbone: Any, size: int) -> int:
    """Channels of one frame's pooled features, found by a forward pass."""
    training = backbone.training
    backbone.eval()
    shifts = [module for module in backbone.modules() if isinstance(module, ShiftedConv)]
    num_frames = shifts[0].num_frames if shifts else 1
    pooled = backbone.forward_head(backbone.forward_features(torch.zeros(num_frames, 3, size, size)), pre_logits=True)
    backbone.train(training)
    return int(pooled.shape[-1])
