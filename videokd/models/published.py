"""Published weights: by torchvision's name or from a file, checked against the network that they are loaded into."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights as weights_of
from torchvision.models import get_weight, list_models

from videokd.config import nearest
from videokd.models.model import unavailable


@dataclass(frozen=True)
class Published:
    """Weights, and the classes of their head."""

    name: str
    state: Mapping[str, Tensor]
    head: str
    """Where the network's last layer is."""
    classes: tuple[str, ...] | None
    """None where they have no such head."""

    def load(self, network: nn.Module) -> None:
        """Loads them; a head for other classes stays as it is, with a warning.

        Raises:
            ValueError: if they belong to another architecture, naming the keys that differ.
        """
        state, own = dict(self.state), network.state_dict()
        ends = (f"{self.head}.weight", f"{self.head}.bias")
        resized = [key for key in ends if key in state and key in own and state[key].shape != own[key].shape]
        missing = [key for key in own if key not in state]
        strange = [key for key in state if key not in own]
        shapes = [
            f"{key} ({list(state[key].shape)}, not {list(own[key].shape)})"
            for key in own
            if key in state and key not in resized and own[key].shape != state[key].shape
        ]
        if missing or strange or shapes:
            parts = {"it lacks": missing, "it has besides": strange, "of another shape are": shapes}
            said = "; ".join(f"{what} {_some(keys)}" for what, keys in parts.items() if keys)
            raise ValueError(f"{self.name} is for another architecture: {said}")
        if resized:
            warnings.warn(
                f"{self.name} was trained for {len(state[resized[0]])} other classes: the head for "
                f"{len(own[resized[0]])} is new and has to be trained",
                stacklevel=4,
            )
        for key in resized:
            state[key] = own[key]
        network.load_state_dict(state)


def published(weights: str | None, *, head: str) -> Published | None:
    """Weights by torchvision's name ("R3D_18_Weights.KINETICS400_V1") or from a .pth, .pt or .safetensors file.

    Raises:
        ValueError: for a name that torchvision does not have (with the nearest), or a file that can't be read.
    """
    if weights is None:
        return None
    if Path(weights).suffix in (".pth", ".pt", ".safetensors"):
        state = read_weights(weights)
        rows = state.get(f"{head}.weight")
        classes = None if rows is None else tuple(str(number) for number in range(len(rows)))
        return Published(weights, state, head, classes)
    try:
        found = get_weight(weights)
    except (ValueError, AttributeError, KeyError) as error:
        known = [str(one) for model in list_models() for one in weights_of(model)]
        raise ValueError(f"torchvision has no weights {weights!r}{nearest(weights, known)}") from error
    try:
        state = found.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise unavailable(weights, error) from error
    return Published(weights, state, head, tuple(found.meta["categories"]))


def read_weights(file: str) -> dict[str, Tensor]:
    """The tensors in a file; of a training checkpoint, those of its model.

    Raises:
        ValueError: if it can't be read, or holds something else.
    """
    try:
        if Path(file).suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise unavailable(file, error) from error
    for key in ("state_dict", "model", "model_state", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} holds no weights (tensors by name)")
    # DistributedDataParallel saves its own name in front of every other.
    return {key.removeprefix("module."): value for key, value in found.items()}


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
