"""How deep in a network each of its parameters is, for learning rates that differ by layer."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from timm.models import group_parameters
from torch import nn

from videokd.models.model import Model
from videokd.models.temporal import StageConv

_HEAD = "~head"  # a name that no layer has


def layer_depths(model: Model[Any]) -> dict[str, int]:
    """Name of a parameter -> the number of its layer: 0 for the stem, then block by block; the last for the head.

    Backbones of timm say themselves what their layers are. Of another trunk they are the elements of its lists of
    blocks; what is between them goes with the block before. All that comes after the last, and all that is outside
    the model's trunk, is the head.

    Raises:
        ValueError: for a model without blocks.
    """
    trunk: Any = model.trunk
    found = _timms_layers(trunk) if hasattr(trunk, "group_matcher") else _layers(trunk)
    if len(set(found.values())) < 2:
        raise ValueError(f"{type(model).__name__} has no list of blocks to tell its layers by")
    by_parameter = {id(trunk.get_parameter(name)): layer for name, layer in found.items()}
    numbers = {layer: number for number, layer in enumerate(sorted(set(found.values())))}
    return {
        name: numbers.get(by_parameter.get(id(parameter), -1), len(numbers))
        for name, parameter in model.named_parameters()
    }


def _timms_layers(backbone: Any) -> dict[str, int]:
    """Layers of a timm backbone, without its head."""
    names = {name: name for name, _ in backbone.named_parameters()}
    for path, module in backbone.named_modules():
        if isinstance(module, StageConv):  # timm does not know that there is something around its stage
            names = {name: known.replace(f"{path}.stage.", f"{path}.") for name, known in names.items()}
    asked: Any = SimpleNamespace(named_parameters=lambda: [(known, None) for known in (*names.values(), _HEAD)])
    found = group_parameters(asked, backbone.group_matcher(coarse=False), reverse=True)
    return {name: found[known] for name, known in names.items() if found[known] != found[_HEAD]}


def _layers(trunk: nn.Module) -> dict[str, int]:
    """Layers of any network, by the order in which its modules were made."""
    pieces = list(_pieces(trunk))
    last = max((number for number, (_, is_block) in enumerate(pieces) if is_block), default=-1)
    found: dict[str, int] = {}
    layer = 0
    for piece, is_block in pieces[: last + 1]:
        layer += is_block
        inside = [name for name, _ in trunk.named_parameters() if name == piece or name.startswith(f"{piece}.")]
        found |= dict.fromkeys(inside, layer)
    return found


def _pieces(module: nn.Module, path: str = "") -> Iterator[tuple[str, bool]]:
    """Names of the parts of a network, and whether each is a block."""
    yield from ((f"{path}{name}", False) for name, _ in module.named_parameters(recurse=False))
    children = dict(module.named_children())
    opened = [name for name, child in children.items() if _is_list_of_blocks(child)]
    if not opened and not _is_list_of_blocks(module):
        # Lists that are deeper are of its layers if all are in one place; else each child is one, as an Inception's.
        deeper = [name for name, child in children.items() if any(map(_is_list_of_blocks, child.modules()))]
        opened = deeper if len(deeper) == 1 else []
    is_layer = _is_list_of_blocks(module) or not opened
    for name, child in children.items():
        if name in opened:
            yield from _pieces(child, f"{path}{name}.")
        else:
            yield f"{path}{name}", is_layer and any(True for _ in child.children())


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether it only holds others in a row, of which one is more than a single operation. Their own classes, such as
    torchvision's convolution with its norm, are blocks."""
    return type(module) in (nn.Sequential, nn.ModuleList) and any(
        any(True for _ in child.children()) for child in module.children()
    )
