"""Image teachers over frames from Hugging Face: CLIP, SigLIP, DINOv2; and class names through their text towers."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videokd.contracts import UNLABELLED, FeatureMap, InputSpec, Outputs, labelled
from videokd.models.huggingface import described, kept, loaded, preprocessing, square, transformers
from videokd.models.model import Model, ModelConfig, VideoModel, clip_map, frame_map, nameless, token_map
from videokd.models.temporal import MeanOverTime

_WITH_TEXT = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_ALONE = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel", "vit": "ViTModel"}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceImages(ModelConfig):
    """CLIP [Radford et al. 2021], SigLIP [Zhai et al. 2023], DINOv2 [Oquab et al. 2024] or ViT over frames (extra
    `hf`): every frame by itself.

    CLIP and SigLIP need no training for your classes: their logits are the similarity of the clip to each class name,
    put into `prompt`. To show them every k-th frame alone, give `input` that many frames fewer at k times the stride.
    """

    source: str
    """A name on the hub, such as "openai/clip-vit-base-patch32", or a folder."""
    input: InputSpec | None = None
    """None takes 8 frames at stride 4, and size, geometry and normalisation from the published preprocessing."""
    prompt: str = "a video of {}"
    """What a class name is put into."""
    architecture: str | None = None
    """The model's own configuration as JSON; kept with a saved model."""

    @property
    def is_published(self) -> bool:
        """Its source has weights."""
        return True

    @property
    def fits_any_classes(self) -> bool:  # type: ignore[override]
        """Class names are words."""
        return True

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "HuggingFaceImagesModel":
        """The model.

        Raises:
            ValueError: without transformers; for a model of another kind; for a size that it can't take.
        """
        config = described(self.source, self.architecture, [*_WITH_TEXT, *_ALONE])
        vision = getattr(config, "vision_config", config)
        size, patch = (square(vision, name, source=self.source) for name in ("image_size", "patch_size"))
        any_size = config.model_type.startswith("dinov2")
        spec = self.input or preprocessing(self.source, frames=8, size=size, any_size=any_size, kind=config.model_type)
        if any_size and spec.size % patch:
            raise ValueError(f"{self.source} takes sizes that {patch} divides, got size={spec.size}")
        if not any_size and spec.size != size:
            raise ValueError(f"{self.source} takes pictures of {size} px, got size={spec.size}")
        kind = _WITH_TEXT.get(config.model_type) or _ALONE[config.model_type]
        cls = getattr(transformers(), kind)
        unused = ("pooler", "embeddings.mask_token") if config.model_type in _ALONE else ()
        network: Any = loaded(cls, self.source, config, unused=unused).network if pretrained else cls(config).eval()
        if config.model_type == "vit":
            network.pooler = None  # many weights have none
        elif config.model_type in _ALONE:
            network.embeddings.mask_token = None
        complete = replace(self, input=spec, architecture=kept(config))
        names = tuple(classes or ())
        words = None
        if config.model_type in _WITH_TEXT and names:
            words = torch.zeros(len(names), _joint_width(config))
            if pretrained:
                words = embedded(network, self.source, names, prompt=self.prompt)
        return HuggingFaceImagesModel(complete, names, network, spec, words)


class HuggingFaceImagesModel(VideoModel):
    """See `HuggingFaceImages`.

    Taps: the blocks' patches; "spatial", the last ones; "frames", the embedding of every frame: of CLIP and SigLIP in
    the space that they share with text, of the others the class token; "clip", the mean of the frames' unit embeddings.
    """

    causal = True

    def __init__(
        self, config: HuggingFaceImages, classes: Sequence[str], network: Any, input: InputSpec, words: Tensor | None
    ) -> None:
        description = getattr(network.config, "vision_config", network.config)
        blocks = tuple(f"block{number}" for number in range(1, description.num_hidden_layers + 1))
        super().__init__(config, classes, taps=(*blocks, "spatial"), input=input)
        self.blocks = blocks
        kind = network.config.model_type
        # The text side has done its part: its embeddings of the classes are kept.
        self.has_text = kind in _WITH_TEXT
        self.vision: Any = network.vision_model if self.has_text else network
        self.projection: Any = network.visual_projection if kind == "clip" else nn.Identity()
        self.mean_over_time = MeanOverTime(input.frames)
        self.prefix = 0 if kind == "siglip" else 1 + getattr(description, "num_register_tokens", 0)
        self.has_logits = words is not None
        self.register_buffer("words", words)
        self.register_buffer("scale", network.logit_scale.detach().exp() if words is not None else None)
        self.register_buffer(
            "bias", network.logit_bias.detach().clone() if words is not None and kind == "siglip" else None
        )

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        trunk: nn.Module = self.vision
        return trunk

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """See `VideoModel.run`."""
        pictures = rearrange(video, "b c t h w -> (b t) c h w").contiguous()
        options: dict[str, Any] = {"output_hidden_states": any(tap in self.blocks for tap in taps)}
        seen = self.vision(pixel_values=pictures, **options)
        maps: dict[str, FeatureMap] = {}
        for tap in taps:
            if tap in self.blocks:
                maps[tap] = self._map(seen.hidden_states[self.blocks.index(tap) - len(self.blocks)], times)
        if "spatial" in taps:
            maps["spatial"] = self._map(seen.last_hidden_state, times)
        pooled = seen.pooler_output if self.has_text else seen.last_hidden_state[:, 0]
        # In float32 under autocast too: in bfloat16 a cosine is off by 2^-9, and a logit of CLIP's by 100 times that.
        # What has shapes alone has no autocast.
        with torch.autocast("cpu" if video.is_meta else video.device.type, enabled=False):
            frames = self.projection(pooled.to(self.mean.dtype)).unflatten(0, times.shape)
            clip = self.mean_over_time(F.normalize(frames.float(), dim=-1))
            logits = self._similarity(clip)
        if "frames" in taps:
            maps["frames"] = frame_map(frames, times)
        if "clip" in taps:
            maps["clip"] = clip_map(clip, times)
        return Outputs(logits, maps)

    def _similarity(self, clip: Tensor) -> Tensor | None:
        """Logits (B, K) of clips (B, D)."""
        if not isinstance(self.words, Tensor):
            return None
        assert isinstance(self.scale, Tensor)
        logits = self.scale.float() * F.normalize(clip, dim=-1) @ self.words.T.float()
        return logits + self.bias.float() if isinstance(self.bias, Tensor) else logits

    def _map(self, tokens: Tensor, times: Tensor) -> FeatureMap:
        folded = rearrange(tokens[:, self.prefix :], "(b t) n c -> b (t n) c", t=times.shape[1])
        return token_map(folded, times, prefix=0)


@dataclass(frozen=True, kw_only=True)
class ClassNames(ModelConfig):
    """A teacher that looks at no frame: the embedding of the clip's class name, through the text tower of CLIP or
    SigLIP (extra `hf`). It pulls the student's clips into the space that words and pictures share [ActionCLIP, Wang et
    al. 2021], and says nothing of clips without a label."""

    source: str
    """A name on the hub, such as "openai/clip-vit-base-patch32", or a folder."""
    prompt: str = "a video of {}"
    """What a class name is put into."""
    width: int | None = None
    """Of the embeddings; kept with a saved model, so that it needs nothing else."""

    @property
    def is_published(self) -> bool:
        """Its source has weights."""
        return True

    @property
    def fits_any_classes(self) -> bool:  # type: ignore[override]
        """Class names are words."""
        return True

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "ClassNamesModel":
        """The embeddings of `classes`.

        Raises:
            ValueError: without transformers; for a model without a text tower; without classes.
        """
        names = tuple(classes or ())
        if not names:
            raise ValueError("a teacher of class names needs classes")
        if not pretrained and self.width is not None:
            return ClassNamesModel(self, names, torch.zeros(len(names), self.width))
        config = described(self.source, None, list(_WITH_TEXT))
        cls = getattr(transformers(), _WITH_TEXT[config.model_type])
        words = embedded(loaded(cls, self.source, config).network, self.source, names, prompt=self.prompt)
        return ClassNamesModel(replace(self, width=words.shape[1]), names, words)


class ClassNamesModel(Model[Tensor]):
    """See `ClassNames`. Both taps are the unit embedding of the clip's class; of mixed clips, of their shares."""

    has_logits = False

    def __init__(self, config: ClassNames, classes: Sequence[str], words: Tensor) -> None:
        super().__init__(config, classes, taps=(), input=None)
        self.register_buffer("words", words)

    def forward(self, view: Tensor, taps: Sequence[str] = ()) -> Outputs:
        """Embeddings for labels int64 (B,), or shares (B, K). See `Model.forward`."""
        self.check_taps(taps)
        assert isinstance(self.words, Tensor)
        shares = view if view.ndim == 2 else F.one_hot(view.clamp(min=0), len(self.classes))
        embedding = F.normalize(shares.clamp(min=0).to(self.words.dtype) @ self.words, dim=-1)
        here = FeatureMap(embedding[:, None, None, None, :], embedding.new_zeros(len(view), 1))
        return Outputs(None, dict.fromkeys(taps, here), labelled(view))

    def blank(self, batch: int = 1) -> Tensor:
        """Labels of clips of which nothing is known."""
        return torch.full((batch,), UNLABELLED, device=self.device)


@torch.no_grad()
def embedded(network: Any, source: str, classes: Sequence[str], *, prompt: str) -> Tensor:
    """Unit embeddings (K, D) of class names by a text tower.

    Raises:
        ValueError: for a prompt without a place for the name, or a source without a tokenizer.
    """
    if "{}" not in prompt:
        raise ValueError(f"the prompt has no {{}} for the class name: {prompt!r}")
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{source} has no tokenizer for class names: {error}") from error
    # Words as people write them: "jumping_jack" is two.
    texts = [prompt.format(name.replace("_", " ")) for name in classes]
    length = network.config.text_config.max_position_embeddings
    padding = "max_length" if network.config.model_type == "siglip" else True
    tokens = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
    if network.config.model_type == "siglip":
        inputs.pop("attention_mask", None)  # trained without one
    found = network.get_text_features(**inputs)
    vectors = F.normalize(found if isinstance(found, Tensor) else found.pooler_output, dim=-1)
    if nameless(classes):
        warnings.warn(
            f"the classes are numbers, and {source} is asked about {texts[0]!r}: name them (data.class_names)",
            stacklevel=4,
        )
    if len(classes) > 1 and torch.allclose(vectors, vectors[:1], atol=1e-4):
        raise ValueError(
            f"{source} gives every class name the same embedding: its tokenizer knows none of "
            f"{', '.join(classes[:3])}; are its tokenizer's files there?"
        )
    return vectors


def _joint_width(config: Any) -> int:
    return int(config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size)
