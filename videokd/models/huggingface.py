"""What every adapter of a Hugging Face model needs: the library, a model from the hub or a folder, its preprocessing.

Code that comes with a model is never run (`trust_remote_code` is never on).
"""

import importlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from videokd.json_files import as_object, parse_json
from videokd.models.huggingface_input import preprocessing as preprocessing
from videokd.models.model import nameless, unavailable


def transformers() -> ModuleType:
    """The library.

    Raises:
        ValueError: if it is not installed, with the extra that has it.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(
            f"Hugging Face models need the transformers library ({error}): pip install 'videokd[hf]'"
        ) from error


_ADAPTERS = {
    **dict.fromkeys(("videomae", "vjepa2", "timesformer", "vivit"), "HuggingFaceVideo"),
    **dict.fromkeys(("clip", "siglip", "dinov2", "dinov2_with_registers", "vit"), "HuggingFaceImages"),
    "xclip": "XClipVision",
    "audio-spectrogram-transformer": "HuggingFaceSound",
}
"""Kind of model -> who takes it."""


def described(source: str, architecture: str | None, known: Sequence[str]) -> Any:
    """The model's own configuration: from the JSON that was kept with a saved model, the hub, or a folder.

    Raises:
        ValueError: if it can't be had, or is of a kind that is not `known` here.
    """
    library = transformers()
    if architecture is not None:
        plain = as_object(parse_json(architecture, source="the architecture of a saved model"), source="it")
        found = library.AutoConfig.for_model(**plain)
    else:
        try:
            found = library.AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_had(source, error) from error
    if found.model_type not in known:
        other = _ADAPTERS.get(found.model_type)
        hint = f"take {other}" if other else f"there are: {', '.join(known)}"
        raise ValueError(f"{source} is a model of the kind {found.model_type!r}, which has no adapter here; {hint}")
    # What is written there may name a kernel on the hub, which is code.
    found._attn_implementation = None
    return found


def kept(config: Any) -> str:
    """A configuration as the JSON that `described` reads."""
    plain = config.to_dict()
    plain.pop("transformers_version", None)
    return json.dumps(plain, sort_keys=True)


def square(config: Any, name: str, *, source: str) -> int:
    """The side of a square that a configuration may give as two numbers; it is made one there.

    Raises:
        ValueError: if the two differ.
    """
    side = getattr(config, name)
    if not isinstance(side, int):
        if len(set(side)) != 1:
            raise ValueError(f"{source} has {name} {list(side)}: pictures and patches have to be square here")
        side = int(side[0])
        setattr(config, name, side)
    return side


class Loaded(NamedTuple):
    """A network with its weights."""

    network: nn.Module
    lacks_head: bool
    """Whether its head is new: the weights have none, or one of another size."""


def loaded(cls: Any, source: str, config: Any, *, head: Sequence[str] = (), unused: Sequence[str] = ()) -> Loaded:
    """The model with its weights, in float32 whatever they were kept in.

    Args:
        cls: class of the library.
        source: hub name or folder.
        config: as `described` returned it, with the number of labels wanted.
        head: beginnings of the names of the parameters of the head.
        unused: likewise of those that are not used here, which the weights need not have.

    Raises:
        ValueError: if weights can't be had, lack other parameters than these, or have more in their layers.
    """
    try:
        with _quiet():
            network, info = cls.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_had(source, error) from error
    keys = [key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])]
    lacking = sorted(key for key in keys if not key.startswith(tuple(unused)))
    if wrong := [key for key in lacking if not key.startswith(tuple(head))]:
        raise ValueError(
            f"{source} is for another architecture than {cls.__name__}: "
            f"it lacks, or has in another shape, {_some(wrong)}"
        )
    # Parts of other tasks, as a decoder, are left out; a layer, or a part of one, is not.
    used = (key for key in network.state_dict() if not key.startswith(tuple(unused)))
    layers = {_layers(network, key) for key in used} - {None}
    if beyond := sorted(key for key in info["unexpected_keys"] if _layers(network, key) in layers):
        raise ValueError(
            f"{source} has weights that its configuration has no place for, {_some(beyond)}: they belong to others"
        )
    network.eval()
    return Loaded(network, bool(lacking))


def classifier(
    cls: Any,
    source: str,
    config: Any,
    classes: Sequence[str] | None,
    *,
    pretrained: bool,
    head: Sequence[str],
    unused: Sequence[str] = (),
) -> tuple[nn.Module, tuple[str, ...]]:
    """A network and the classes that it tells apart: those asked for, or the published ones, which are none where the
    weights have no head. A head that was not trained for them is new, with a warning; for no classes there is none.

    See `loaded` for the arguments.
    """
    published = labels(config)
    names = published if classes is None else tuple(classes)
    if names and len(names) != config.num_labels:
        config.num_labels = len(names)
    if pretrained:
        network, is_new = loaded(cls, source, config, head=head, unused=unused)
        if is_new and classes is None:
            names = ()
        if not is_new and names != published and not nameless(published):
            for part in network.classifier.modules():  # type: ignore[union-attr]
                if isinstance(part, nn.Linear):
                    part.reset_parameters()
            is_new = True
        if is_new and names:
            warnings.warn(
                f"{source} has no head for these classes: the head is new and has to be trained", stacklevel=4
            )
    else:
        network = cls(config).eval()
    if not names:
        for name in ("pooler", "classifier"):
            if hasattr(network, name):
                setattr(network, name, nn.Identity())
    return network, names


def labels(config: Any) -> tuple[str, ...]:
    """The class names of a published head, in order."""
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own report of the keys, which is given here, and its progress bar."""
    logs = importlib.import_module("transformers.utils.logging")
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _layers(network: nn.Module, key: str) -> str | None:
    """The list of layers that a parameter is in: "encoder.layer" of "vit.encoder.layer.3.output.bias"."""
    found = re.match(r"(.+?)\.\d+\.", key.removeprefix(f"{network.base_model_prefix}."))
    return found[1] if found else None


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _not_had(source: str, error: Exception) -> ValueError:
    if (Path(source).is_absolute() or source.count("/") > 1) and not Path(source).is_dir():
        return unavailable(source, ValueError("there is no such folder"))
    return unavailable(source, ValueError(str(error).strip().splitlines()[0]))
