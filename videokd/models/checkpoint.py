"""A model on disk: weights as safetensors, and a JSON with all that is needed to build it again."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from videokd.config import from_plain, to_plain
from videokd.disk import write_bytes, write_text
from videokd.interruption import deferred
from videokd.json_files import read_object
from videokd.models.huggingface_images import ClassNames
from videokd.models.model import Model, ModelConfig

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_FORMAT = 1


@deferred()
def save_model(model: Model[Any], folder: str | Path) -> None:
    """Writes model.safetensors and model.json (config with input spec, class names) into `folder`.

    Raises:
        OSError: if they can't be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    description = {"format": _FORMAT, "model": to_plain(model.config), "classes": list(model.classes)}
    # Last and whole: a folder with a description has its weights.
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def load_model(folder: str | Path, *, trust: Collection[str] = ()) -> Model[Any]:
    """The model that was saved in `folder`, in eval mode, on the CPU; nothing else is needed.

    Args:
        folder: where it is.
        trust: modules, packages and recipe files whose code may run, for networks that your own code makes.

    Raises:
        ValueError: if the folder holds no finished model, or weights that do not belong to its description; or if its
            network is made by code that is not trusted.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no trained model ({DESCRIPTION} and {WEIGHTS}); train it, or finish its run")
    description = read_object(folder / DESCRIPTION)
    if description.get("format") != _FORMAT:
        raise ValueError(f"{folder / DESCRIPTION} has format {description.get('format')}, this version reads {_FORMAT}")
    try:
        config = from_plain(description.get("model"), trust=trust)
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION}: {error}") from error
    classes = description.get("classes")
    if (
        not isinstance(config, ModelConfig)
        or not isinstance(classes, list)
        or not all(isinstance(one, str) for one in classes)
    ):
        raise ValueError(f"{folder / DESCRIPTION} does not describe a model and its classes")
    for part in _parts(config):
        if (isinstance(part, ClassNames) and part.width is None) or getattr(part, "architecture", "") is None:
            raise ValueError(f"{folder / DESCRIPTION} lacks what its {type(part).__name__} is made of")
    try:
        model = config.build(classes, pretrained=False)
    except (ValueError, OSError):
        raise
    except Exception as error:  # sizes that nobody checked
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{folder / DESCRIPTION}: {type(config).__name__} can't be built: {said}") from error
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())  # torch's has lines
        raise ValueError(f"{folder / WEIGHTS} does not belong to {folder / DESCRIPTION}: {said}") from error
    return model.eval()


def _parts(config: object) -> Iterator[ModelConfig]:
    """A model's configuration and those of the models inside it."""
    if isinstance(config, ModelConfig):
        yield config
        for one in fields(config):
            yield from _parts(getattr(config, one.name))


def check_classes(model_classes: Sequence[str], data_classes: Sequence[str], *, model: str, data: str) -> None:
    """Raises a `ValueError` that names the difference unless the two class lists are the same, in order."""
    if tuple(model_classes) == tuple(data_classes):
        return
    only_model = [name for name in model_classes if name not in data_classes]
    only_data = [name for name in data_classes if name not in model_classes]
    raise ValueError(
        f"the class lists of {model} ({len(model_classes)}) and {data} ({len(data_classes)}) differ: "
        f"only in the first {only_model[:5] or 'none'}, only in the second {only_data[:5] or 'none'}"
        + ("" if only_model or only_data else ", the order differs")
    )
