"""torchvision's video networks as teachers: their own layers and weights, with every stage as a tap."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import get_model, get_weight
from torchvision.models.video import MViT as TorchvisionMViT
from torchvision.models.video import VideoResNet as TorchvisionVideoResNet
from torchvision.models.video.mvit import MSBlockConfig

from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs
from videokd.models.video_model import ModelConfig, VideoModel, clip_map, conv_map, step_times, unavailable

RESNET_INPUT = InputSpec(
    frames=16,
    size=112,
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


@dataclass(frozen=True, kw_only=True)
class VideoResNet(ModelConfig):
    """torchvision's 3D ResNets [Tran et al. 2018]: R3D-18, MC3-18, R(2+1)D-18. Any number of frames, any size."""

    name: Literal["r3d_18", "mc3_18", "r2plus1d_18"] = "r2plus1d_18"
    input: InputSpec = RESNET_INPUT
    weights: str | None = None
    """None, a torchvision name such as "R2Plus1D_18_Weights.KINETICS400_V1", or a local .pth file."""

    def build(self, classes: Sequence[str], *, pretrained: bool = True) -> "VideoResNetModel":
        """The network, its head resized to `classes` where the weights have others."""
        network = get_model(self.name, weights=None, num_classes=len(classes))
        if pretrained and self.weights is not None:
            load_published(network, self.weights, head="fc")
        return VideoResNetModel(self, classes, network)


class VideoResNetModel(VideoModel):
    """See `VideoResNet`."""

    def __init__(self, config: VideoResNet, classes: Sequence[str], network: TorchvisionVideoResNet) -> None:
        super().__init__(config, classes, taps=("stage1", "stage2", "stage3", "stage4"))
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
            maps[f"stage{number}"] = conv_map(values, step_centres)
        maps["frames"] = maps["stage4"]
        pooled = network.avgpool(values).flatten(1)
        maps["clip"] = clip_map(pooled, times)
        return Outputs(network.fc(pooled), {tap: maps[tap] for tap in taps})


@dataclass(frozen=True, kw_only=True)
class MViT(ModelConfig):
    """torchvision's MViTv2-S [Li et al. 2022]; its position tables are made for `input`'s frames and size."""

    name: Literal["mvit_v2_s"] = "mvit_v2_s"
    input: InputSpec = MVIT_INPUT
    weights: str | None = None
    """None, "MViT_V2_S_Weights.KINETICS400_V1", or a local .pth file; made for 16 frames of 224 px."""
    drop_path: float = 0.2

    def build(self, classes: Sequence[str], *, pretrained: bool = True) -> "MViTModel":
        """The network, its head resized to `classes` where the weights have others.

        Raises:
            ValueError: for an input that its strides do not divide.
        """
        spec = self.input
        if spec.frames % 2 or spec.size % 32:
            raise ValueError(
                f"MViTv2-S takes an even number of frames and a size that 32 divides, "
                f"got frames={spec.frames}, size={spec.size}"
            )
        network = TorchvisionMViT(
            spatial_size=(spec.size, spec.size),
            temporal_size=spec.frames,
            block_setting=_mvit_v2_s_blocks(),
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
            stochastic_depth_prob=self.drop_path,
            num_classes=len(classes),
        )
        if pretrained and self.weights is not None:
            load_published(network, self.weights, head="head.1")
        return MViTModel(self, classes, network)


class MViTModel(VideoModel):
    """See `MViT`. The class token is apart: it makes the logits and the "clip" tap, the maps hold the others."""

    def __init__(self, config: MViT, classes: Sequence[str], network: TorchvisionMViT) -> None:
        ends = [sum(_MVIT_DEPTHS[:number]) - 1 for number in range(1, 5)]
        stages = {end: f"stage{number}" for number, end in enumerate(ends, start=1)}
        super().__init__(config, classes, taps=tuple(stages.values()))
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
            if number in self.stage_ends:
                maps[self.stage_ends[number]] = _token_map(tokens, grid, step_centres)
        tokens = network.norm(tokens)
        maps["frames"] = _token_map(tokens, grid, step_centres)
        maps["clip"] = clip_map(tokens[:, 0], times)
        return Outputs(network.head(tokens[:, 0]), {tap: maps[tap] for tap in taps})


_MVIT_DEPTHS = (1, 2, 11, 2)


def _mvit_v2_s_blocks() -> list[MSBlockConfig]:
    """MViTv2-S [Li et al. 2022, table 2]; torchvision's own builder has it for 16 frames of 224 px alone."""
    blocks = []
    inputs = 96
    for stage, depth in enumerate(_MVIT_DEPTHS):
        outputs = 96 * 2**stage
        for number in range(depth):
            pooled = 2 if stage > 0 and number == 0 else 1
            kept = 8 // 2**stage
            blocks.append(
                MSBlockConfig(
                    num_heads=2**stage,
                    input_channels=inputs,
                    output_channels=outputs,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, pooled, pooled],
                    stride_kv=[1, kept, kept],
                )
            )
            inputs = outputs
    return blocks


def load_published(network: nn.Module, weights: str, *, head: str) -> None:
    """Loads weights by torchvision's name or from a file; a head for other classes is left as it is, with a warning.

    Raises:
        ValueError: if they can't be had, or belong to another architecture, naming the keys that differ.
    """
    try:
        if Path(weights).suffix in (".pth", ".pt"):
            state = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            state = get_weight(weights).get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise unavailable(weights, error) from error
    own = network.state_dict()
    resized = [key for key in (f"{head}.weight", f"{head}.bias") if key in state and state[key].shape != own[key].shape]
    wrong = [key for key in own if key not in state] + [key for key in state if key not in own]
    wrong += [key for key in own if key in state and key not in resized and own[key].shape != state[key].shape]
    if wrong:
        raise ValueError(f"{weights} is for another architecture; these keys differ: {', '.join(wrong[:8])}")
    if resized:
        warnings.warn(f"{weights} was trained for other classes: the head is new and has to be trained", stacklevel=2)
    for key in resized:
        state[key] = own[key]
    network.load_state_dict(state)


def _token_map(tokens: Tensor, grid: tuple[int, int, int], times: Tensor) -> FeatureMap:
    """The map of tokens (B, 1 + T'*H'*W', C), the class token left out."""
    steps, height, width = grid
    return FeatureMap(rearrange(tokens[:, 1:], "b (t h w) c -> b t h w c", t=steps, h=height, w=width), times)
