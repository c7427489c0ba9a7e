"""Published weights: by torchvision's name or from a file, checked against the network that they are loaded into."""

import argparse
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.models import get_model, get_weight, list_models
from torchvision.models import get_model_weights as weights_of
from torchvision.ops import StochasticDepth

from videokd.config import nearest
from videokd.contracts import InputSpec, Resize
from videokd.models.model import named, nameless, unavailable


@dataclass(frozen=True)
class Published:
    """Weights, and the classes of their head."""

    name: str
    state: dict[str, Tensor]
    head: str
    """Where the network's last layer is."""
    classes: tuple[str, ...] | None
    """None where they have no such head."""

    def load(self, network: nn.Module, classes: Sequence[str] | None = None) -> None:
        """Loads them; a head for other classes stays as it is, with a warning.

        Args:
            network: what they are for.
            classes: what its head is to tell apart; None keeps any head of the same size.

        Raises:
            ValueError: if they belong to another architecture, naming the keys that differ.
        """
        # A copy as it is: networks go by the versions that a state of theirs carries to convert older keys.
        state, own = copy(self.state), network.state_dict()
        others = self._names_others(classes)
        ends = (f"{self.head}.weight", f"{self.head}.bias")
        new = [key for key in ends if key in state and key in own and (others or state[key].shape != own[key].shape)]
        shapes = [key for key in own if key in state and key not in new and state[key].shape != own[key].shape]
        for key in (*new, *shapes):
            del state[key]
        try:
            found = network.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{self.name} is for another architecture: {error}") from error
        missing = [key for key in found.missing_keys if key not in (*new, *shapes)]
        strange = [key for key in found.unexpected_keys if not key.startswith(_AUXILIARY)]
        if missing or strange or shapes:
            said = [f"{key} ({list(self.state[key].shape)}, not {list(own[key].shape)})" for key in shapes]
            if not missing and not strange and all("pos" in key.rpartition(".")[2] for key in shapes):
                raise ValueError(
                    f"{self.name} was trained for another number of frames or another size of pictures than the "
                    f"input's: its position tables are of another size, {_some(said)}"
                )
            parts = {"it lacks": missing, "it has besides": strange, "of another shape are": said}
            named_keys = "; ".join(f"{what} {_some(keys)}" for what, keys in parts.items() if keys)
            raise ValueError(f"{self.name} is for another architecture: {named_keys}")
        if new:
            warnings.warn(
                f"{self.name} was trained for {len(self.state[new[0]])} other classes: the head for "
                f"{len(own[new[0]])} is new and has to be trained",
                stacklevel=4,
            )

    def _names_others(self, classes: Sequence[str] | None) -> bool:
        """Whether they name their classes, and those are others, or in another order."""
        if classes is None or self.classes is None or nameless(self.classes):
            return False
        return tuple(classes) != self.classes


def published(weights: str | None, *, head: str) -> Published | None:
    """Weights by torchvision's name ("R3D_18_Weights.KINETICS400_V1") or from a file.

    Raises:
        ValueError: for a name that torchvision does not have (with the nearest), or a file that can't be read.
    """
    if weights is None:
        return None
    if _is_file(weights):
        state = unwrapped(read_weights(weights))
        rows = state.get(f"{head}.weight")
        classes = None if rows is None else tuple(str(number) for number in range(len(rows)))
        return Published(weights, state, head, classes)
    try:
        found = get_weight(weights)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        known = [str(one) for model in list_models() for one in weights_of(model)]
        raise ValueError(f"torchvision has no weights {weights!r}{nearest(weights, known)}") from error
    name = next(name for name in list_models() if weights_of(name) is type(found))
    try:
        # Out of the network that torchvision makes of them: some of its files have keys that it renames, or heads that
        # it leaves out.
        state = get_model(name, weights=found).state_dict()
    except (OSError, RuntimeError) as error:  # RuntimeError: the file is not what its hash says
        raise unavailable(weights, error) from error
    categories = found.meta.get("categories")
    return Published(weights, state, head, tuple(categories) if categories else None)


def warn_of_preset(weights: str | None, input: InputSpec) -> None:
    """Warn where an input shows torchvision's weights another part of the picture than their preset does."""
    if weights is None or _is_file(weights):
        return
    preset = get_weight(weights).transforms()
    crop, short = preset.crop_size[0], preset.resize_size
    fraction = min(1.0, crop / min(short))
    if len(short) == 1:
        warn_of_geometry(input, resize="crop", fraction=fraction, of=weights)
    else:  # height and width, whatever the picture's shape
        warn_of_geometry(input, resize="squash", fraction=fraction, of=weights, aspect=short[1] / short[0])


class ImageNetwork(NamedTuple):
    """One of torchvision's image classifiers, with its weights."""

    network: nn.Module
    head: str
    """Where its last layer is."""
    classes: tuple[str, ...]


def image_network(
    name: str, classes: Sequence[str] | None, *, size: int, weights: str | None, pretrained: bool
) -> ImageNetwork:
    """torchvision's image classifier, as torchvision makes it with these weights, but without auxiliary heads.

    Args:
        name: one of `list_models(module=torchvision.models)`.
        classes: what its head tells apart; None keeps the classes of the weights.
        size: of its pictures, in pixels.
        weights: None, a name of torchvision's, or a local file.
        pretrained: whether they are loaded.

    Raises:
        ValueError: for a size that it does not take, no classes, or weights that can't be had or do not fit.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": size}
    elif name in ("googlenet", "inception_v3"):
        # Their published weights, ported from TensorFlow, normalise pictures once more.
        ported = weights is not None and not _is_file(weights)
        options = {"transform_input": ported, "aux_logits": False, "init_weights": True}

    def made(num_classes: int) -> nn.Module:
        try:
            network: nn.Module = get_model(name, weights=None, num_classes=num_classes, **options)
        except AssertionError as error:
            raise ValueError(f"{name} does not take pictures of {size} px: {error}") from error
        return network

    network = made(len(classes) if classes is not None else 1000)
    head = _last_linear(network)
    found = published(weights if pretrained else None, head=head)
    names = named(classes, found.classes if found else None, of=name)
    if classes is None and len(names) != 1000:
        network = made(len(names))
    if found:
        found.load(network, names)
    return ImageNetwork(network, head, names)


def warn_of_geometry(input: InputSpec, *, resize: Resize, fraction: float, of: str, aspect: float = 1.0) -> None:
    """Warn where published weights were trained on another part of the picture than an input shows.

    Args:
        input: of the model.
        resize: how pictures became squares in training.
        fraction: see `InputSpec.crop_fraction`.
        of: the weights, by name.
        aspect: see `InputSpec.aspect`.
    """
    differs = max(abs(input.crop_fraction - fraction), abs(input.aspect - aspect)) > 0.01
    if input.resize != resize or differs:
        warnings.warn(
            f"{of} saw pictures by resize={resize!r} with crop_fraction={fraction:.3g} and aspect={aspect:.3g}; its "
            f"input says {input.resize!r}, {input.crop_fraction:.3g} and {input.aspect:.3g}: set them in `input`",
            stacklevel=4,
        )


def set_drop_path(network: nn.Module, rate: float, *, of: str) -> None:
    """Sets the stochastic depth of a torchvision network's blocks: none at the first, `rate` at the last, evenly in
    between [Huang et al. 2016].

    Raises:
        ValueError: for a network without stochastic depth.
    """
    blocks = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    if not blocks and rate:
        raise ValueError(f"{of} has no stochastic depth, and drop_path={rate} asks for it")
    for number, block in enumerate(blocks):
        block.p = rate * number / max(1, len(blocks) - 1)


def read_weights(file: str) -> dict[str, Tensor]:
    """The tensors in a file; of a training checkpoint, those of its model, averaged ones first.

    Raises:
        ValueError: if it can't be read, or holds something else.
    """
    try:
        if Path(file).suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            # timm's checkpoints have their command line beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything
        raise unavailable(file, error) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} holds no weights (tensors by name)")
    # What torch.compile and DistributedDataParallel put in front of every name, in either order.
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        consume_prefix_in_state_dict_if_present(found, prefix)
    weights: dict[str, Tensor] = found
    return weights


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the name that a training framework gave to the whole network, if every key has it."""
    for prefix in ("model.", "backbone."):
        if all(key.startswith(prefix) for key in state):
            consume_prefix_in_state_dict_if_present(state, prefix)
    return state


_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of GoogLeNet and Inception that help to train them; nobody listens to them here."""


def _is_file(weights: str) -> bool:
    """Whether it is a file, or looks like one that is not there."""
    path = Path(weights)
    suffixes = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar")
    return path.exists() or len(path.parts) > 1 or path.suffix in suffixes


def _last_linear(network: nn.Module) -> str:
    """Where an image classifier's last layer is."""
    layers: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no linear layer at its end")
    return layers[-1]


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
