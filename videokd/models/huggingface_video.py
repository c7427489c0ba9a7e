"""Hugging Face's video transformers as teachers: their own forward pass, with every block as a tap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from einops import rearrange
from torch import Tensor, nn

from videokd.contracts import FeatureMap, InputSpec, Outputs
from videokd.models.huggingface import classifier, described, kept, loaded, preprocessing, square, transformers
from videokd.models.model import ModelConfig, VideoModel, clip_map, step_times, token_map


class _Family(NamedTuple):
    """How a kind of model takes its video and orders its tokens."""

    classifier: str
    """Class of the library with a head."""
    video: str
    """Name of its input."""
    prefix: int
    """Class tokens in front of the others."""
    time_last: bool
    """Whether tokens are ordered by place, then time."""
    any_size: bool
    """Whether positions are relative, so that other frames and sizes are right too."""


_FAMILIES = {
    "videomae": _Family("VideoMAEForVideoClassification", "pixel_values", 0, False, False),
    "vjepa2": _Family("VJEPA2ForVideoClassification", "pixel_values_videos", 0, False, True),
    "timesformer": _Family("TimesformerForVideoClassification", "pixel_values", 1, True, False),
    "vivit": _Family("VivitForVideoClassification", "pixel_values", 1, False, False),
}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceVideo(ModelConfig):
    """VideoMAE [Tong et al. 2022], V-JEPA 2 [Assran et al. 2025], TimeSformer [Bertasius et al. 2021] or ViViT [Arnab
    et al. 2021] from Hugging Face's transformers (extra `hf`)."""

    source: str
    """A name on the hub, such as "MCG-NJU/videomae-base-finetuned-kinetics", or a folder."""
    input: InputSpec | None = None
    """None takes frames and size from the architecture, geometry and normalisation from the published preprocessing
    (refused where it can't be reproduced), and every fourth frame."""
    architecture: str | None = None
    """The model's own configuration as JSON; kept with a saved model, so that it needs nothing else."""
    drop_path: float | None = None
    """Stochastic depth of its blocks, rising to this at the last, of V-JEPA 2 and TimeSformer; None is the model's own.
    """

    @property
    def is_published(self) -> bool:
        """Its source has weights."""
        return True

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "HuggingFaceVideoModel":
        """The model, its head new where the published one tells other classes apart. With `classes` None, weights
        without a head make a teacher of features, which tells none apart.

        Raises:
            ValueError: without transformers; for a model of another kind; for frames, a size or `drop_path` that it
                can't take.
        """
        config = described(self.source, self.architecture, list(_FAMILIES))
        family = _FAMILIES[config.model_type]
        own = _own_input(self.source, config)
        spec = self.input or preprocessing(
            self.source, frames=own.frames, size=own.size, any_size=family.any_size, kind=config.model_type
        )
        _check_input(self.source, spec, own, family)
        if self.drop_path is not None:
            if not hasattr(config, "drop_path_rate"):
                raise ValueError(f"{self.source} has no stochastic depth: drop_path must be None, got {self.drop_path}")
            config.drop_path_rate = self.drop_path
        if config.model_type == "vjepa2":
            # Its positions are counted on the grid that is written, whatever comes in.
            config.frames_per_clip, config.crop_size = spec.frames, spec.size
        network, names = classifier(
            getattr(transformers(), family.classifier),
            self.source,
            config,
            classes,
            pretrained=pretrained,
            head=("classifier", "pooler", "fc_norm"),
            unused=("vjepa2.predictor",),
        )
        if config.model_type == "vjepa2":
            del network.vjepa2.predictor  # type: ignore[union-attr]
        complete = replace(self, input=spec, architecture=kept(config))
        return HuggingFaceVideoModel(complete, names, network, spec)


class HuggingFaceVideoModel(VideoModel):
    """See `HuggingFaceVideo`. A step of time is a tubelet; class tokens are no part of the maps.

    "clip" is the class token, or the mean of the last tokens: of V-JEPA 2 too, whose pooler belongs to the head (its
    attentive probe).
    """

    def __init__(self, config: HuggingFaceVideo, classes: Sequence[str], network: nn.Module, input: InputSpec) -> None:
        self_config: Any = network.config
        blocks = tuple(f"block{number}" for number in range(1, self_config.num_hidden_layers + 1))
        super().__init__(config, classes, taps=blocks, input=input)
        self.network = network
        self.has_logits = bool(classes)
        self.blocks = blocks
        self.family = _FAMILIES[self_config.model_type]
        self.tubelet = _own_input(config.source, self_config).tubelet
        self._last: Tensor | None = None
        network.base_model.register_forward_hook(self._keep)  # type: ignore[union-attr]

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        return self.network.base_model  # type: ignore[return-value]

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        wants_maps = any(tap != "clip" for tap in taps)
        frames = rearrange(video, "b c t h w -> b t c h w").contiguous()
        found = self.network(**{self.family.video: frames}, output_hidden_states=wants_maps)
        last, self._last = self._last, None
        assert last is not None
        maps: dict[str, FeatureMap] = {}
        if wants_maps:
            centres = step_times(times, stride=self.tubelet, kernel=self.tubelet, padding=0)
            hidden = dict(zip(self.blocks, found.hidden_states[-len(self.blocks) :]))
            hidden["frames"] = found.hidden_states[-1]
            maps = {tap: self._map(hidden[tap], centres) for tap in taps if tap != "clip"}
        if "clip" in taps:
            maps["clip"] = clip_map(self._pooled(last), times)
        return Outputs(found.logits if self.has_logits else None, maps)

    def _pooled(self, tokens: Tensor) -> Tensor:
        if self.family.prefix:
            return tokens[:, 0]
        # VideoMAE's pretraining weights have none: there the library takes the first patch for a class token.
        norm = getattr(self.network, "fc_norm", None)
        mean = tokens.mean(dim=1)
        return mean if norm is None else norm(mean)

    def _map(self, tokens: Tensor, centres: Tensor) -> FeatureMap:
        if not self.family.time_last:
            return token_map(tokens, centres, prefix=self.family.prefix)
        steps = centres.shape[1]
        by_place = rearrange(tokens[:, self.family.prefix :], "b (n t) c -> b (t n) c", t=steps)
        return token_map(by_place, centres, prefix=0)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        self._last = outputs.last_hidden_state


class _OwnInput(NamedTuple):
    frames: int
    size: int
    tubelet: int
    patch: int


def _own_input(source: str, config: Any) -> _OwnInput:
    """What an architecture is made for.

    Raises:
        ValueError: if that is not square, or every frame goes by itself.
    """
    if config.model_type == "vjepa2":
        patch = square(config, "patch_size", source=source)
        return _OwnInput(config.frames_per_clip, config.crop_size, config.tubelet_size, patch)
    size = square(config, "image_size", source=source)
    if config.model_type == "vivit":
        tubelet, patch, width = config.tubelet_size
        if patch != width:
            raise ValueError(f"{source} has tubelets of {patch} x {width} px: patches have to be square here")
        return _OwnInput(config.num_frames, size, tubelet, patch)
    if getattr(config, "attention_type", None) == "space_only":
        raise ValueError(f"{source} attends in space only, which has no adapter here: take it with divided_space_time")
    tubelet = getattr(config, "tubelet_size", 1)
    return _OwnInput(config.num_frames, size, tubelet, square(config, "patch_size", source=source))


def _check_input(source: str, spec: InputSpec, own: _OwnInput, family: _Family) -> None:
    if family.any_size:
        if spec.frames % own.tubelet or spec.size % own.patch:
            raise ValueError(
                f"{source} takes frames that {own.tubelet} divides and a size that {own.patch} divides, "
                f"got frames={spec.frames}, size={spec.size}"
            )
    elif (spec.frames, spec.size) != (own.frames, own.size):
        raise ValueError(
            f"{source} takes {own.frames} frames of {own.size} px and no others: its positions are learned; "
            f"got frames={spec.frames}, size={spec.size}"
        )


@dataclass(frozen=True, kw_only=True)
class XClipVision(ModelConfig):
    """The vision tower of X-CLIP [Ni et al. 2022] from Hugging Face's transformers (extra `hf`).

    Its "clip" tap is the video's embedding in the space that it shares with text; it has no classes.
    """

    source: str
    """A name on the hub, such as "microsoft/xclip-base-patch32", or a folder."""
    input: InputSpec | None = None
    """None takes frames and size from the architecture, geometry and normalisation from the published preprocessing."""
    architecture: str | None = None
    """The model's own configuration as JSON; kept with a saved model."""

    @property
    def is_published(self) -> bool:
        """Its source has weights."""
        return True

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "XClipVisionModel":
        """The tower.

        Raises:
            ValueError: without transformers; for a model of another kind; for frames or a size that it can't take.
        """
        config = described(self.source, self.architecture, ["xclip"])
        vision = config.vision_config
        frames, size = vision.num_frames, square(vision, "image_size", source=self.source)
        spec = self.input or preprocessing(self.source, frames=frames, size=size, kind="xclip")
        if (spec.frames, spec.size) != (frames, size):
            raise ValueError(
                f"{self.source} takes {frames} frames of {size} px and no others: its positions are learned; "
                f"got frames={spec.frames}, size={spec.size}"
            )
        cls = transformers().XCLIPModel
        network = loaded(cls, self.source, config).network if pretrained else cls(config)
        complete = replace(self, input=spec, architecture=kept(config))
        return XClipVisionModel(complete, tuple(classes or ()), network, spec)


class XClipVisionModel(VideoModel):
    """See `XClipVision`. Every frame has its own patches; messages between frames pass inside the tower."""

    has_logits = False

    def __init__(self, config: XClipVision, classes: Sequence[str], network: Any, input: InputSpec) -> None:
        vision = network.config.vision_config
        blocks = tuple(f"block{number}" for number in range(1, vision.num_hidden_layers + 1))
        super().__init__(config, classes, taps=blocks, input=input)
        self.blocks = blocks
        # The text side is no part of the teacher.
        self.vision = network.vision_model
        self.projection = network.visual_projection
        self.over_time = network.mit

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        batch = video.shape[0]
        pictures = rearrange(video, "b c t h w -> (b t) c h w").contiguous()
        seen = self.vision(pixel_values=pictures, output_hidden_states=any(tap in self.blocks for tap in taps))
        maps: dict[str, FeatureMap] = {}
        for tap in taps:
            if tap in self.blocks:
                tokens = seen.hidden_states[self.blocks.index(tap) - len(self.blocks)]
                maps[tap] = self._map(tokens, times)
        if "frames" in taps:
            maps["frames"] = self._map(seen.last_hidden_state, times)
        if "clip" in taps:
            frames = self.projection(seen.pooler_output).view(batch, video.shape[2], -1)
            maps["clip"] = clip_map(self.over_time(frames).pooler_output, times)
        return Outputs(None, maps)

    def _map(self, tokens: Tensor, times: Tensor) -> FeatureMap:
        folded = rearrange(tokens[:, 1:], "(b t) n c -> b (t n) c", t=times.shape[1])
        return token_map(folded, times, prefix=0)
