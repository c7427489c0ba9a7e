"""torchvision's video networks as teachers: their own layers and weights, with every stage as a tap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.video import S3D as TorchvisionS3D
from torchvision.models.video import MViT as TorchvisionMViT
from torchvision.models.video import SwinTransformer3d as TorchvisionSwin
from torchvision.models.video import VideoResNet as TorchvisionVideoResNet
from torchvision.models.video.mvit import MSBlockConfig

from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.model import (
    ModelConfig,
    VideoModel,
    clip_map,
    conv_map,
    named,
    step_times,
    token_map,
)
from videokd.models.published import published, set_drop_path, warn_of_preset

RESNET_INPUT = InputSpec(
    frames=16,
    size=112,
    sampling=Dense(stride=2),
    crop_fraction=0.875,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)
S3D_INPUT = InputSpec(
    frames=64,
    size=224,
    sampling=Dense(stride=2),
    crop_fraction=0.875,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)
MVIT_INPUT = InputSpec(
    frames=16,
    size=224,
    sampling=Dense(stride=4),
    crop_fraction=0.875,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
)
PUBLISHED_RESNET_INPUT = replace(RESNET_INPUT, resize="squash", aspect=171 / 128)
"""What torchvision's weights were scored on: it resizes to 128 x 171 whatever the shape of the video."""
PUBLISHED_S3D_INPUT = replace(S3D_INPUT, resize="squash")
"""Likewise: to 256 x 256."""
SWIN_INPUT = InputSpec(frames=32, size=224, sampling=Dense(stride=2), crop_fraction=0.875)


@dataclass(frozen=True, kw_only=True)
class VideoResNet(ModelConfig):
    """torchvision's 3D ResNets [Tran et al. 2018]: R3D-18, MC3-18, R(2+1)D-18. Any number of frames, any size."""

    name: Literal["r3d_18", "mc3_18", "r2plus1d_18"] = "r2plus1d_18"
    input: InputSpec = RESNET_INPUT
    weights: str | None = None
    """None, a torchvision name such as "R2Plus1D_18_Weights.KINETICS400_V1", or a local .pth file."""

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "VideoResNetModel":
        """The network, its head resized to `classes` where the weights have others."""
        found = published(self.weights if pretrained else None, head="fc")
        names = named(classes, found.classes if found else None, of=self.name)
        network = get_model(self.name, weights=None, num_classes=len(names))
        if found:
            found.load(network, names)
        if found and classes is None:
            warn_of_preset(self.weights, self.input)
        return VideoResNetModel(self, names, network)


class VideoResNetModel(VideoModel):
    """See `VideoResNet`."""

    def __init__(self, config: VideoResNet, classes: Sequence[str], network: TorchvisionVideoResNet) -> None:
        super().__init__(config, classes, taps=("stage1", "stage2", "stage3", "stage4"), input=config.input)
        self.network = network

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        network = self.network
        maps: dict[str, FeatureMap] = {}
        values, step_centres = network.stem(video), times
        for number, stage in enumerate((network.layer1, network.layer2, network.layer3, network.layer4), start=1):
            steps_before = values.shape[2]
            values = stage(values)
            if values.shape[2] != steps_before:
                step_centres = step_times(step_centres, stride=2)
            if f"stage{number}" in taps:
                maps[f"stage{number}"] = conv_map(values, step_centres)
        if "frames" in taps:
            maps["frames"] = conv_map(values, step_centres)
        pooled = network.avgpool(values).flatten(1)
        if "clip" in taps:
            maps["clip"] = clip_map(pooled, times)
        return Outputs(network.fc(pooled), maps)


@dataclass(frozen=True, kw_only=True)
class S3D(ModelConfig):
    """torchvision's S3D [Xie et al. 2018]: separable Inception blocks. At least 8 frames of 32 px."""

    input: InputSpec = S3D_INPUT
    """Published for 128 frames at 15 a second; half of them are much cheaper."""
    weights: str | None = None
    """None, "S3D_Weights.KINETICS400_V1", or a local .pth file."""
    dropout: float = 0.2

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "S3DModel":
        """The network, its head resized to `classes` where the weights have others.

        Raises:
            ValueError: for fewer frames or pixels than its poolings take.
        """
        if self.input.frames < 8 or self.input.size < 32:
            raise ValueError(
                f"S3D takes at least 8 frames of 32 px, got frames={self.input.frames}, size={self.input.size}"
            )
        found = published(self.weights if pretrained else None, head="classifier.1")
        names = named(classes, found.classes if found else None, of="S3D")
        network = TorchvisionS3D(num_classes=len(names), dropout=self.dropout)
        if found:
            found.load(network, names)
        if found and classes is None:
            warn_of_preset(self.weights, self.input)
        return S3DModel(self, names, network)


class S3DModel(VideoModel):
    """See `S3D`. A stage ends where the next pooling begins."""

    # Layers of `features` after which a stage ends, and those that have a stride in time: (stride, kernel, padding).
    _ENDS: ClassVar = {1: "stage1", 4: "stage2", 7: "stage3", 13: "stage4", 16: "stage5"}
    _STRIDES: ClassVar = {0: (2, 7, 3), 7: (2, 3, 1), 13: (2, 2, 0)}

    def __init__(self, config: S3D, classes: Sequence[str], network: TorchvisionS3D) -> None:
        super().__init__(config, classes, taps=tuple(self._ENDS.values()), input=config.input)
        self.network = network

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        maps: dict[str, FeatureMap] = {}
        values, step_centres = video, times
        for number, layer in enumerate(self.network.features):
            if self._ENDS.get(number) in taps:  # its layer is the next stage's
                maps[self._ENDS[number]] = conv_map(values, step_centres)
            values = layer(values)
            if number in self._STRIDES:
                stride, kernel, padding = self._STRIDES[number]
                step_centres = step_times(step_centres, stride=stride, kernel=kernel, padding=padding)
        for tap in ("stage5", "frames"):
            if tap in taps:
                maps[tap] = conv_map(values, step_centres)
        # torchvision's own pooling, where the map is as large as it is made for; the whole of a smaller one.
        steps, height, width = values.shape[2:]
        pooled = F.avg_pool3d(values, (min(2, steps), min(7, height), min(7, width)), stride=1)
        logits = self.network.classifier(pooled).mean(dim=(2, 3, 4))
        if "clip" in taps:
            maps["clip"] = clip_map(pooled.mean(dim=(2, 3, 4)), times)
        return Outputs(logits, maps)


@dataclass(frozen=True, kw_only=True)
class Swin3d(ModelConfig):
    """torchvision's Video Swin Transformers [Liu et al. 2022]. Any number of frames; sizes from 32 px."""

    name: Literal["swin3d_t", "swin3d_s", "swin3d_b"] = "swin3d_t"
    input: InputSpec = SWIN_INPUT
    weights: str | None = None
    """None, a torchvision name such as "Swin3D_T_Weights.KINETICS400_V1", or a local .pth file."""
    drop_path: float = 0.1
    """Stochastic depth of its blocks, rising to this at the last."""

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "Swin3dModel":
        """The network, its head resized to `classes` where the weights have others."""
        if self.input.size < 32:
            raise ValueError(f"Video Swin takes sizes from 32 px, got size={self.input.size}")
        found = published(self.weights if pretrained else None, head="head")
        names = named(classes, found.classes if found else None, of=self.name)
        network = get_model(self.name, weights=None, num_classes=len(names))
        set_drop_path(network, self.drop_path, of=self.name)
        if found:
            found.load(network, names)
        return Swin3dModel(self, names, network)


class Swin3dModel(VideoModel):
    """See `Swin3d`. A step of time is a tubelet of two frames."""

    def __init__(self, config: Swin3d, classes: Sequence[str], network: TorchvisionSwin) -> None:
        super().__init__(config, classes, taps=("stage1", "stage2", "stage3", "stage4"), input=config.input)
        self.network = network

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        network = self.network
        maps: dict[str, FeatureMap] = {}
        # An odd last frame has a tubelet of its own, filled up with zeros.
        even = torch.cat([times, times[:, -1:]], dim=1) if times.shape[1] % 2 else times
        step_centres = step_times(even, stride=2, kernel=2, padding=0)
        values = network.pos_drop(network.patch_embed(video))
        for number, stage in enumerate(network.features):
            values = stage(values)
            # Between the stages, at odd numbers, patches are merged.
            if number % 2 == 0 and f"stage{number // 2 + 1}" in taps:
                maps[f"stage{number // 2 + 1}"] = FeatureMap(values, step_centres)
        values = network.norm(values)
        if "frames" in taps:
            maps["frames"] = FeatureMap(values, step_centres)
        pooled = network.avgpool(values.permute(0, 4, 1, 2, 3)).flatten(1)
        if "clip" in taps:
            maps["clip"] = clip_map(pooled, times)
        return Outputs(network.head(pooled), maps)


@dataclass(frozen=True, kw_only=True)
class MViT(ModelConfig):
    """torchvision's MViTv1-B [Fan et al. 2021] and MViTv2-S [Li et al. 2022].

    Their position tables are made for `input`'s frames and size; published ones are for 16 frames of 224 px.
    """

    name: Literal["mvit_v1_b", "mvit_v2_s"] = "mvit_v2_s"
    input: InputSpec = MVIT_INPUT
    weights: str | None = None
    """None, a torchvision name such as "MViT_V2_S_Weights.KINETICS400_V1", or a local .pth file."""
    drop_path: float = 0.2

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "MViTModel":
        """The network, its head resized to `classes` where the weights have others.

        Raises:
            ValueError: for an input that its strides do not divide.
        """
        spec, second = self.input, self.name == "mvit_v2_s"
        if spec.frames % 2 or spec.size % 32:
            raise ValueError(
                f"{self.name} takes an even number of frames and a size that 32 divides, "
                f"got frames={spec.frames}, size={spec.size}"
            )
        found = published(self.weights if pretrained else None, head="head.1")
        names = named(classes, found.classes if found else None, of=self.name)
        network = TorchvisionMViT(
            spatial_size=(spec.size, spec.size),
            temporal_size=spec.frames,
            block_setting=_mvit_blocks(second),
            residual_pool=second,
            residual_with_cls_embed=False,
            rel_pos_embed=second,
            proj_after_attn=second,
            stochastic_depth_prob=self.drop_path,
            num_classes=len(names),
        )
        if found:
            found.load(network, names)
        return MViTModel(self, names, network)


class MViTModel(VideoModel):
    """See `MViT`. The class token is apart: it makes the logits and the "clip" tap, the maps hold the others."""

    def __init__(self, config: MViT, classes: Sequence[str], network: TorchvisionMViT) -> None:
        ends = [sum(_MVIT_DEPTHS[:number]) - 1 for number in range(1, 5)]
        stages = {end: f"stage{number}" for number, end in enumerate(ends, start=1)}
        super().__init__(config, classes, taps=tuple(stages.values()), input=config.input)
        self.network = network
        self.stage_ends = stages

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        network = self.network
        patches = network.conv_proj
        step_centres = step_times(
            times, stride=patches.stride[0], kernel=patches.kernel_size[0], padding=patches.padding[0]
        )
        maps: dict[str, FeatureMap] = {}
        tokens = network.pos_encoding(patches(video).flatten(2).transpose(1, 2))
        grid = (network.pos_encoding.temporal_size, *network.pos_encoding.spatial_size)
        for number, block in enumerate(network.blocks):
            tokens, grid = block(tokens, grid)
            if self.stage_ends.get(number) in taps:
                maps[self.stage_ends[number]] = token_map(tokens, step_centres, prefix=1)
        tokens = network.norm(tokens)
        if "frames" in taps:
            maps["frames"] = token_map(tokens, step_centres, prefix=1)
        if "clip" in taps:
            maps["clip"] = clip_map(tokens[:, 0], times)
        return Outputs(network.head(tokens[:, 0]), maps)


_MVIT_DEPTHS = (1, 2, 11, 2)


def _mvit_blocks(second: bool) -> list[MSBlockConfig]:
    """MViTv1-B [Fan et al. 2021, table 3] or MViTv2-S [Li et al. 2022, table 2].

    torchvision's own builders have them for 16 frames of 224 px alone.
    """
    blocks = []
    inputs = 96
    for stage, depth in enumerate(_MVIT_DEPTHS):
        for number in range(depth):
            first, last = stage > 0 and number == 0, number == depth - 1
            # Channels double in the second version where space shrinks, in the first one a block earlier.
            outputs = 96 * 2**stage if second or not last else 96 * 2 ** min(stage + 1, 3)
            pooled, kept = 2 if first else 1, 8 // 2**stage
            blocks.append(
                MSBlockConfig(
                    num_heads=2**stage,
                    input_channels=inputs,
                    output_channels=outputs,
                    kernel_q=[3, 3, 3] if second or first else [],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, pooled, pooled] if second or first else [],
                    stride_kv=[1, kept, kept],
                )
            )
            inputs = outputs
    return blocks
