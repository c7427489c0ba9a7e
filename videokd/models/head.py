"""The linear layer by which a model tells classes apart, found by trying it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videokd.contracts import Clip, Outputs, Sound
from videokd.models.model import Model


@torch.no_grad()
def linear_head(model: Model[Any]) -> tuple[Tensor, Tensor]:
    """Weight (K, C) and bias (K,) that make the model's logits of its tap "clip".

    Raises:
        ValueError: if none of its layers does: its logits are something else than a linear layer over that tap.
    """
    outputs = _quietly(model, _noise(model), ("clip",))
    clip = outputs.features["clip"].values[:, 0, 0, 0].float()
    logits = outputs.logits
    for layer in model.modules() if logits is not None else ():
        if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        weight = layer.weight.detach().flatten(1).float()
        if weight.shape != (len(model.classes), clip.shape[1]):
            continue
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        assert logits is not None
        scale = logits.float().abs().max().clamp(min=1e-3)
        if (F.linear(clip, weight, bias) - logits.float()).abs().max() < 1e-3 * scale:
            return weight.clone(), bias.clone()
    raise ValueError(
        f"{type(model).__name__} has no last layer that makes its logits of its tap 'clip' ({clip.shape[1]} channels)"
    )


def class_vectors(model: Model[Any]) -> Tensor:
    """The vectors (K, C) by which a model tells classes apart: embeddings of their names, or its last layer's rows.

    Raises:
        ValueError: if it has neither.
    """
    words = getattr(model, "words", None)
    return words.detach().float() if isinstance(words, Tensor) else linear_head(model)[0]


@torch.no_grad()
def clip_by_frames(model: Model[Any]) -> tuple[Tensor, Tensor]:
    """A model's tap "clip" and the mean of its tap "frames", of two clips of noise: (2, C) and (2, C')."""
    features = _quietly(model, _noise(model), ("clip", "frames")).features
    return features["clip"].values[:, 0, 0, 0].float(), features["frames"].pooled("clip").values[:, 0, 0, 0].float()


@torch.no_grad()
def looks_at_order(model: Model[Any], tap: str) -> bool:
    """Whether a tap's mean over the clip changes if the frames come the other way round."""
    view = _noise(model)
    if not isinstance(view, Clip | Sound):
        return False
    pieces = view.frames.shape[1] if isinstance(view, Clip) else 16
    backwards = torch.arange(pieces - 1, -1, -1, device=model.device).expand(2, pieces)
    seen = [_quietly(model, one, (tap,)).features[tap].pooled("clip").values for one in (view, view.at(backwards))]
    return bool((seen[0] - seen[1]).abs().max() > 1e-4 * seen[0].abs().max())


def _quietly(model: Model[Any], view: Any, taps: tuple[str, ...]) -> Outputs:
    """In eval mode, and left as it was."""
    training = model.training
    outputs: Outputs = model.eval()(view, taps)
    model.train(training)
    return outputs


def _noise(model: Model[Any]) -> Any:
    """Two views of noise: what is told apart by chance is told apart."""
    view = model.blank(2)
    generator = torch.Generator().manual_seed(0)
    if isinstance(view, Clip):
        frames = torch.randint(0, 256, view.frames.shape, generator=generator, dtype=torch.uint8)
        return Clip(frames.to(view.frames.device), view.times)
    if isinstance(view, Sound):
        samples = torch.rand(view.samples.shape, generator=generator) * 2 - 1
        return Sound(samples.to(view.samples.device), view.start, view.heard)
    return view
