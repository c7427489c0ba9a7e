"""Hugging Face's Audio Spectrogram Transformer as a teacher that listens."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from videokd.contracts import FeatureMap, Outputs, SoundSpec
from videokd.models.huggingface import classifier, described, kept, transformers
from videokd.models.model import ModelConfig, SoundModel

_PREFIX = 2
"""A class token and a distillation token."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceSound(ModelConfig):
    """The Audio Spectrogram Transformer [Gong et al. 2021] from Hugging Face's transformers (extra `hf`)."""

    source: str
    """A name on the hub, such as "MIT/ast-finetuned-audioset-10-10-0.4593", or a folder."""
    input: SoundSpec = SoundSpec(seconds=10.0, sample_rate=16000)
    architecture: str | None = None
    """The model's own configuration as JSON; kept with a saved model."""
    mean: float | None = None
    """Of the log spectrogram; None takes the published one."""
    std: float | None = None
    """Likewise its deviation."""

    @property
    def is_published(self) -> bool:
        """Its source has weights."""
        return True

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "HuggingFaceSoundModel":
        """The model, its head new where the published one tells other classes apart. With `classes` None, weights
        without a head make a teacher of features, which tells none apart.

        Raises:
            ValueError: without transformers; for a model of another kind; for a sample rate that it was not made for,
                or a sound that is longer than it takes.
        """
        config = described(self.source, self.architecture, ["audio-spectrogram-transformer"])
        library = transformers()
        with warnings.catch_warnings():
            # So AST was trained: the lowest of its 128 bands are narrower than a bin of its spectrum.
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
            extractor = library.ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
        complete = self
        if self.mean is None or self.std is None:
            published = _published_extractor(self.source) or extractor  # AudioSet's
            if published.sampling_rate != self.input.sample_rate:
                raise ValueError(
                    f"{self.source} takes {published.sampling_rate} samples a second, got {self.input.sample_rate}"
                )
            for name, own in (("num_mel_bins", config.num_mel_bins), ("max_length", config.max_length)):
                if getattr(published, name) != own:
                    raise ValueError(
                        f"the preprocessing of {self.source} has {name}={getattr(published, name)}, and its "
                        f"architecture takes {own}: give the model its mean and std"
                    )
            # The library takes (x - mean) / (2 std): so nothing is changed where it does not normalise.
            mean, std = (published.mean, published.std) if published.do_normalize else (0.0, 0.5)
            complete = replace(complete, mean=mean, std=std)
        extractor.mean, extractor.std = complete.mean, complete.std
        longest = config.max_length * 0.01
        if self.input.seconds > longest + 0.025:
            raise ValueError(f"{self.source} takes sounds of up to {longest:g} s, got {self.input.seconds:g} s")
        cls = library.ASTForAudioClassification
        network, names = classifier(cls, self.source, config, classes, pretrained=pretrained, head=("classifier",))
        return HuggingFaceSoundModel(replace(complete, architecture=kept(config)), names, network, extractor)


def _published_extractor(source: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        try:
            return transformers().ASTFeatureExtractor.from_pretrained(source)
        except OSError:
            return None


class HuggingFaceSoundModel(SoundModel):
    """See `HuggingFaceSound`. Maps are (B, T', bands, 1, C); what lies beyond the sound's end is no part of them."""

    def __init__(self, config: HuggingFaceSound, classes: Sequence[str], network: nn.Module, extractor: Any) -> None:
        description: Any = network.config
        blocks = tuple(f"block{number}" for number in range(1, description.num_hidden_layers + 1))
        super().__init__(config, classes, taps=blocks, input=config.input)
        self.network = network
        self.has_logits = bool(classes)
        self.extractor = extractor
        self.blocks = blocks
        patch = description.patch_size
        self.steps = (description.max_length - patch) // description.time_stride + 1
        # Spectra are 10 ms apart and 25 ms long; a patch is centred on the middle one of its own.
        centres = (torch.arange(self.steps) * description.time_stride + (patch - 1) / 2) * 0.01 + 0.0125
        self.register_buffer("centres", centres, persistent=False)
        self.kept = max(1, int((centres < config.input.seconds).sum()))
        self._pooled: Tensor | None = None
        classifier = network.classifier
        assert isinstance(classifier, nn.Module)
        classifier.register_forward_pre_hook(self._keep)

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        return self.network.base_model  # type: ignore[return-value]

    def run(self, samples: Tensor, start: Tensor, taps: Sequence[str]) -> Outputs:
        """See `SoundModel.run`."""
        wants_maps = any(tap != "clip" for tap in taps)
        found = self.network(self._spectra(samples), output_hidden_states=wants_maps)
        pooled, self._pooled = self._pooled, None
        assert pooled is not None
        maps = {}
        if wants_maps:
            hidden = dict(zip(self.blocks, found.hidden_states[-len(self.blocks) :]))
            hidden["frames"] = found.hidden_states[-1]
            maps = {tap: self._map(hidden[tap], start) for tap in taps if tap != "clip"}
        if "clip" in taps:
            maps["clip"] = FeatureMap(pooled[:, None, None, None], start[:, None] + self.input.seconds / 2)
        return Outputs(found.logits if self.has_logits else None, maps)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _spectra(self, samples: Tensor) -> Tensor:
        """The library's own spectrogram, on the CPU."""
        sounds = [one.numpy() for one in samples.detach().float().cpu()]
        features = self.extractor(sounds, sampling_rate=self.input.sample_rate, return_tensors="pt")
        spectra: Tensor = features["input_values"].to(samples.device)
        return spectra

    def _map(self, tokens: Tensor, start: Tensor) -> FeatureMap:
        assert isinstance(self.centres, Tensor)
        grid = rearrange(tokens[:, _PREFIX:], "b (f t) c -> b t f 1 c", t=self.steps)[:, : self.kept]
        return FeatureMap(grid, start[:, None] + self.centres[: self.kept])

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._pooled = inputs[0]
