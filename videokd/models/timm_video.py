"""Any timm image backbone over frames, alone as a teacher of single frames, or with an operator that ties them."""

import contextlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import timm
import torch
from einops import rearrange
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from videokd.config import nearest
from videokd.contracts import Dense, FeatureMap, InputSpec, Outputs, Resize
from videokd.models.model import (
    ModelConfig,
    VideoModel,
    clip_map,
    folded_map,
    frame_map,
    named,
    token_map,
    unavailable,
)
from videokd.models.published import Published, read_weights, unwrapped, warn_of_geometry
from videokd.models.temporal import MeanOverTime, Recurrence, Shift, StageConv, TemporalAttention, TemporalConv

Temporal = Literal["average", "shift", "conv", "conv_stages", "gru", "attention"]
"""How frames are tied together: not at all, but averaged [TSN, Wang et al. 2016]; channels shifted between neighbours
inside the backbone's residual branches [TSM, Lin et al. 2019]; a depthwise convolution over the pooled frames, or
after each of the backbone's last three stages; a recurrent unit over the pooled frames; attention over them."""


@dataclass(frozen=True, kw_only=True)
class TimmVideo(ModelConfig):
    """Any timm image backbone over frames, with one temporal operator.

    With "average" it is an image model that looks at every frame by itself, which makes it an image teacher as well.
    To show it every k-th frame alone, give its `input` that many frames fewer at k times the stride.
    """

    backbone: str = "mobilenetv3_small_100"
    """A name of `timm.list_models()`."""
    temporal: Temporal = "shift"
    causal: bool = False
    """See only the frames before, so that it can run frame by frame; "average" and "gru" always do."""
    input: InputSpec = InputSpec(frames=8, size=112, sampling=Dense(stride=4))
    weights: str | None = None
    """None, "timm" for timm's published weights, or a local checkpoint file."""
    shift_share: float = 0.125
    """Share of the channels that comes from each neighbour, of "shift"."""
    heads: int = 4
    """Of "attention"."""
    dropout: float = 0.2
    drop_path: float | None = None
    """Stochastic depth of the backbone's residual blocks, rising to this at the last; None is the backbone's own."""

    @property
    def is_published(self) -> bool:
        """Whether it is what somebody trained: timm's classifiers know nothing of an operator over time."""
        return self.weights is not None and self.temporal == "average"

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "TimmVideoModel":
        """The model.

        Raises:
            ValueError: for an unknown backbone (with the nearest name), one in which "shift" has no known place, a
                size or `drop_path` that it does not take, weights that can't be had or do not fit, or `classes` None
                where the classifier is more than a linear layer.
        """
        if self.backbone.split(".")[0] not in timm.list_models():
            raise ValueError(f"timm has no backbone {self.backbone!r}{nearest(self.backbone, timm.list_models())}")
        loads = pretrained and self.weights is not None
        options: dict[str, Any] = {"img_size": self.input.size} if _fixed_size(self.backbone) else {}
        if self.drop_path is not None:
            options["drop_path_rate"] = self.drop_path
        try:
            backbone: Any = timm.create_model(self.backbone, pretrained=loads and self.weights == "timm", **options)
        except TypeError as error:
            raise ValueError(f"{self.backbone} can't be made with {options}: {error}") from error
        except OSError as error:
            assert self.weights is not None
            raise unavailable(self.weights, error) from error
        except RuntimeError as error:
            raise ValueError(f"{self.weights} does not fit {self.backbone}: {error}") from error
        if loads and self.weights is not None:
            if self.weights != "timm":
                load_file(backbone, self.weights, keep_head=classes is None)
            _check_normalisation(self, backbone.pretrained_cfg)
            if self.weights == "timm" and self.is_published:
                _check_geometry(self, backbone.pretrained_cfg)
        published = _labels(backbone) if classes is None and self.weights is not None else None
        names = named(classes, published, of=self.backbone)
        head = _published_head(self, backbone) if classes is None else None
        backbone.reset_classifier(0)
        return TimmVideoModel(self, names, backbone, published_head=head)


def load_file(backbone: Any, file: str, *, keep_head: bool) -> None:
    """Loads a local file into a timm backbone, whose head is made for the file's classes, or taken away.

    Older keys and position tables of another size are converted as timm does with its own.

    Raises:
        ValueError: if it can't be read, belongs to another architecture, or lacks the head to keep.
    """
    state = unwrapped(read_weights(file))
    entrypoint = timm.models.model_entrypoint(backbone.pretrained_cfg["architecture"])
    convert = getattr(sys.modules[entrypoint.__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        # It stumbles over other architectures, whose keys are named below.
        with contextlib.suppress(AssertionError, AttributeError, IndexError, KeyError, RuntimeError):
            state = convert(state, backbone)
    if keep_head:
        places = backbone.pretrained_cfg["classifier"]
        place = places if isinstance(places, str) else places[0]
        if f"{place}.weight" not in state:
            raise ValueError(f"{file} has no classes of its own to keep ({place}.weight): name some")
        if (rows := len(state[f"{place}.weight"])) != backbone.num_classes:
            backbone.reset_classifier(rows)
    else:
        whole = backbone.state_dict().keys()
        backbone.reset_classifier(0)
        head = whole - backbone.state_dict().keys()
        state = {key: value for key, value in state.items() if key not in head}
    Published(file, state, "", None).load(backbone)


class TimmVideoModel(VideoModel):
    """See `TimmVideo`. Taps: the backbone's stages (or blocks), "spatial", its last map, if it has one; "frames" and
    "clip"."""

    def __init__(
        self, config: TimmVideo, classes: Sequence[str], backbone: Any, *, published_head: nn.Module | None = None
    ) -> None:
        look = _look(config, backbone)
        spatial = ("spatial",) if _has_places(look, backbone) else ()
        super().__init__(config, classes, taps=(*_stages(backbone), *spatial), input=config.input)
        self.backbone: Any = backbone
        subsample_first(backbone)
        self.stages = _stages(backbone)
        self.causal = config.causal or config.temporal in ("average", "gru")
        if config.temporal == "shift":
            shift_residual_branches(backbone, share=config.shift_share, causal=config.causal)
        width = look.pooled.shape[-1]
        if config.temporal == "conv_stages":
            _insert_stage_convs(backbone, config)
        self.over_time = _over_time(config, width)
        self.mean_over_time = MeanOverTime(config.input.frames)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, len(self.classes)))
        if published_head is not None:
            self.head[1] = published_head

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        trunk: nn.Module = self.backbone
        return trunk

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        clips = video.shape[0]
        for layer in self.modules():
            if isinstance(layer, Shift | StageConv):
                layer.clips = clips
        pictures = rearrange(video, "b c t h w -> (b t) c h w")
        asked = [stage for stage in self.stages if stage in taps]
        maps: dict[str, FeatureMap] = {}
        if asked:
            numbers = [self.stages.index(stage) for stage in asked]
            spatial, found = self.backbone.forward_intermediates(pictures, indices=numbers, output_fmt="NCHW")
            maps = {stage: folded_map(values, times) for stage, values in zip(asked, found)}
        else:
            spatial = self.backbone.forward_features(pictures)
        if "spatial" in taps:
            maps["spatial"] = self._spatial(spatial, times)
        pooled = self.backbone.forward_head(spatial, pre_logits=True)
        frames = rearrange(pooled, "(b t) c -> b t c", b=clips)
        if not isinstance(self.over_time, nn.Identity):
            frames = self.over_time(frames, times)
        clip = self.mean_over_time(frames)
        maps |= {"frames": frame_map(frames, times), "clip": clip_map(clip, times)}
        return Outputs(self.head(clip), {tap: maps[tap] for tap in taps})

    def _spatial(self, values: Tensor, times: Tensor) -> FeatureMap:
        if values.ndim == 4:
            # Some backbones (Swin) keep their channels last.
            last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return folded_map(rearrange(values, "b h w c -> b c h w") if last else values, times)
        folded = token_map(values, times.reshape(-1, 1), prefix=getattr(self.backbone, "num_prefix_tokens", 0))
        return FeatureMap(rearrange(folded.values, "(b t) 1 h w c -> b t h w c", t=times.shape[1]), times)


def subsample_first(backbone: nn.Module) -> None:
    """Has strided 1x1 convolutions of few channels drop the pixels that they skip before they convolve, in place.

    The numbers are the same. On a CPU with AVX-512 the gradient of such a convolution's weights, channels last, is
    written beyond its memory: https://github.com/uxlfoundation/oneDNN/issues/6035 (FastViT's and MobileOne's stems).
    """
    for module in backbone.modules():
        if (
            type(module) is nn.Conv2d
            and (module.kernel_size, module.padding, module.groups) == ((1, 1), (0, 0), 1)
            and module.stride != (1, 1)
            and module.in_channels < 16
        ):
            module.__class__ = SubsamplingConv


class SubsamplingConv(nn.Conv2d):
    """A strided 1x1 convolution, see `subsample_first`."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        down, right = self.stride
        return nn.functional.conv2d(input[:, :, ::down, ::right], self.weight, self.bias)


def shift_residual_branches(backbone: nn.Module, *, share: float, causal: bool = False) -> None:
    """Puts a temporal shift at the beginning of every residual branch, in place.

    The shortcut stays as it was, so that a frame keeps its own features [TSM, section 3.2].

    Raises:
        ValueError: if the backbone has no residual block of a kind that is known here.
    """
    placed = 0
    for block in list(backbone.modules()):
        for path, channels in _BRANCHES.get(type(block).__name__, ()):
            if getattr(block, "has_skip", True):
                owner, _, name = path.rpartition(".")
                parent = block.get_submodule(owner)
                first = getattr(parent, name)
                setattr(parent, name, Shift(first, share=share, causal=causal, channels=channels))
                placed += 1
    if not placed:
        known = sorted(_BRANCHES)
        raise ValueError(
            f"temporal shift has no known place in this backbone (it is known for blocks of the kinds "
            f'{", ".join(known)}); use temporal="conv", which works with any'
        )


# Kind of block -> the first layers of its residual branches, and where these have their channels.
_BRANCHES: dict[str, tuple[tuple[str, int], ...]] = {
    "BasicBlock": (("conv1", 1),),  # ResNet
    "Bottleneck": (("conv1", 1),),
    "InvertedResidual": (("conv_pw", 1),),  # MobileNetV2 and V3, EfficientNet
    "EdgeResidual": (("conv_exp", 1),),  # EfficientNetV2, MobileNetV4
    "UniversalInvertedResidual": (("pw_exp.conv", 1),),  # MobileNetV4
    "RepViTBlock": (("channel_mixer.conv1", 1),),
    "RepMixerBlock": (("mlp.conv", 1),),  # FastViT
    "AttentionBlock": (("mlp.conv", 1),),
    "MBConv": (("conv1", 1),),  # TinyViT
    "TinyVitBlock": (("mlp.norm", -1),),
    "ConvNeXtBlock": (("conv_dw", 1),),
}


def _over_time(config: TimmVideo, width: int) -> nn.Module:
    if config.temporal == "conv":
        return TemporalConv(width, causal=config.causal, activation=nn.ReLU())
    if config.temporal == "gru":
        return Recurrence(width)
    if config.temporal == "attention":
        return TemporalAttention(width, heads=config.heads, window=config.input.frames, causal=config.causal)
    return nn.Identity()


def _stages(backbone: Any) -> tuple[str, ...]:
    """Names of the maps that timm hands out on the way: stages where they shrink, blocks where they do not."""
    if not hasattr(backbone, "forward_intermediates"):
        return ()
    reductions = [info["reduction"] for info in backbone.feature_info]
    kind = "stage" if len(set(reductions)) == len(reductions) else "block"
    return tuple(f"{kind}{number}" for number in range(1, len(reductions) + 1))


def _insert_stage_convs(backbone: Any, config: TimmVideo) -> None:
    """Puts a temporal convolution after each of the last three stages, in place."""
    names = [info["module"] for info in backbone.feature_info][-3:] if _stages(backbone) else []
    widths: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") == "NCHW":
                widths[name] = output.shape[1]

        return hook

    handles = [backbone.get_submodule(name).register_forward_hook(note(name)) for name in names]
    _look(config, backbone)
    for handle in handles:
        handle.remove()
    if len(widths) < len(names) or not names:
        raise ValueError(f'{config.backbone} has no stages with maps (C, H, W): use temporal="conv"')
    for name, width in widths.items():
        owner, _, last = name.rpartition(".")
        stage = backbone.get_submodule(name)
        setattr(backbone.get_submodule(owner), last, StageConv(stage, width, causal=config.causal))


class _Look(NamedTuple):
    """What a backbone makes of one frame."""

    stages: Sequence[Tensor]
    spatial: Any
    pooled: Tensor
    logits: Tensor


@torch.no_grad()
def _look(config: TimmVideo, backbone: Any) -> _Look:
    """What it makes of a frame of noise.

    Raises:
        ValueError: for a size that the backbone can't take.
    """
    training = backbone.training
    backbone.eval()
    noise = torch.randn(1, 3, config.input.size, config.input.size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(next(backbone.parameters()).device)
    try:
        if _stages(backbone):
            spatial, stages = backbone.forward_intermediates(noise, output_fmt="NCHW")
        else:
            spatial, stages = backbone.forward_features(noise), []
        pooled = backbone.forward_head(spatial, pre_logits=True)
        logits = backbone.forward_head(spatial)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"{config.backbone} does not take pictures of {config.input.size} px: {error}") from error
    backbone.train(training)
    return _Look(stages, spatial, pooled, logits)


def _has_places(look: _Look, backbone: Any) -> bool:
    """Whether its last map is one, and not several (CoaT, CrossViT) or a class token alone (PiT)."""
    if not isinstance(look.spatial, Tensor):
        return False
    if look.spatial.ndim == 4:
        return True
    places = look.spatial.shape[1] - getattr(backbone, "num_prefix_tokens", 0)
    return round(places**0.5) ** 2 == places and (not look.stages or places == look.stages[-1][0, 0].numel())


@torch.no_grad()
def _published_head(config: TimmVideo, backbone: Any) -> nn.Linear:
    """Its classifier as one linear layer over the pooled features.

    Raises:
        ValueError: if it is more than that, such as a distilled DeiT's two heads over two tokens.
    """
    head, look = backbone.get_classifier(), _look(config, backbone)
    width = look.pooled.shape[-1]
    # BiT's is a convolution of 1x1; RepViT and LeViT normalise first, and have two heads, as EfficientFormer has, whose
    # mean is what they say.
    parts = [part.fuse() if hasattr(part, "fuse") else part for part in (head if isinstance(head, tuple) else (head,))]
    if all(isinstance(part, nn.Linear | nn.Conv2d) and part.weight[0].numel() == width for part in parts):
        kept = nn.Linear(width, backbone.num_classes)
        kept.weight.copy_(torch.stack([part.weight.flatten(1) for part in parts]).mean(dim=0))
        kept.bias.copy_(torch.stack([part.bias for part in parts]).mean(dim=0))
        if torch.allclose(kept(look.pooled), look.logits, rtol=1e-3, atol=1e-3):
            return kept
    raise ValueError(
        f"the classifier of {config.backbone} is more than a linear layer over its pooled features and can't be kept: "
        "take another backbone as a teacher; a student of your classes has a new head"
    )


def _fixed_size(backbone: str) -> bool:
    """Whether an architecture is made for one size of pictures, which can be chosen: vision transformers."""
    return bool(getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False))


def _labels(backbone: Any) -> Sequence[str]:
    names = backbone.pretrained_cfg.get("label_names")
    if names and len(names) == backbone.num_classes:
        return tuple(names)
    if backbone.num_classes == 1000:
        info = ImageNetInfo()
        return tuple(info.index_to_description(number) for number in range(1000))
    return tuple(str(number) for number in range(backbone.num_classes))


def _check_normalisation(config: TimmVideo, published: Any) -> None:
    mean, std = tuple(published["mean"]), tuple(published["std"])
    if mean != tuple(config.input.mean) or std != tuple(config.input.std):
        warnings.warn(
            f"the weights of {config.backbone} were trained with mean={mean} and std={std}, and its input says "
            f"{config.input.mean} and {config.input.std}: set input.mean and input.std",
            stacklevel=3,
        )


def _check_geometry(config: TimmVideo, published: Any) -> None:
    """Warns where a teacher of single frames is shown another part of them than it was trained on."""
    mode, fraction = published["crop_mode"], float(published["crop_pct"])
    if mode == "border":
        warnings.warn(
            f"the weights of {config.backbone} were trained on pictures with borders (crop_mode='border'), which "
            "can't be reproduced: take another backbone as a teacher",
            stacklevel=3,
        )
        return
    resize: Resize = "squash" if mode == "squash" else "crop"
    warn_of_geometry(config.input, resize=resize, fraction=fraction, of=f"timm's {config.backbone}")
