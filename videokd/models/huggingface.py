"""What every adapter of a Hugging Face model needs: the library, a model from the hub or a folder, its preprocessing.

Code that comes with a model is never run (`trust_remote_code` is never on).
"""

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from videokd.config import nearest
from videokd.contracts import Dense, InputSpec
from videokd.models.model import unavailable


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


def described(source: str, architecture: str | None, known: Sequence[str]) -> Any:
    """The model's own configuration: from the JSON that was kept with a saved model, the hub, or a folder.

    Raises:
        ValueError: if it can't be had, or is of a kind that is not `known` here.
    """
    library = transformers()
    if architecture is not None:
        plain = json.loads(architecture)
        found = library.AutoConfig.for_model(**plain)
    else:
        try:
            found = library.AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_had(source, error) from error
    if found.model_type not in known:
        hint = nearest(found.model_type, known)
        raise ValueError(f"{source} is a model of the kind {found.model_type!r}, which has no adapter here{hint}")
    return found


def kept(config: Any) -> str:
    """A configuration as the JSON that `described` reads."""
    plain = config.to_dict()
    plain.pop("transformers_version", None)
    return json.dumps(plain, sort_keys=True)


def loaded(cls: Any, source: str, config: Any, *, head: Sequence[str] = ()) -> nn.Module:
    """The model with its weights; a head that they lack or that is of another size is new, with a warning.

    Args:
        cls: class of the library.
        source: hub name or folder.
        config: as `described` returned it, with the number of labels wanted.
        head: beginnings of the names of the parameters of the head.

    Raises:
        ValueError: if weights can't be had, or lack other parameters than the head's.
    """
    try:
        network, info = cls.from_pretrained(
            source, config=config, trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_had(source, error) from error
    lacking = [key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])]
    wrong = sorted(key for key in lacking if not key.startswith(tuple(head)))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{source} is for another architecture than {cls.__name__}: it lacks, or has in another shape, "
            f"{', '.join(wrong[:5])}{more}"
        )
    if lacking:
        warnings.warn(f"{source} has no head for these classes: the head is new and has to be trained", stacklevel=4)
    network.eval()
    return network  # type: ignore[no-any-return]


def preprocessing(source: str, *, frames: int, size: int) -> InputSpec:
    """What the published model was trained to see: normalisation and crop from its preprocessor files.

    Frames and size are those of its architecture; frames are taken at a stride of 4, as most such models are tested.
    """
    found: Mapping[str, Any] = {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if path := _file(source, name):
            found = json.loads(path.read_text(encoding="utf-8"))
            break
    spec = InputSpec(frames=frames, size=size)
    if "image_mean" not in found or "image_std" not in found:
        warnings.warn(
            f"{source} does not say how its input is normalised: ImageNet's mean and deviation are taken; "
            "give the model an `input` to say otherwise",
            stacklevel=5,
        )
        mean, std = spec.mean, spec.std
    else:
        mean, std = tuple(found["image_mean"]), tuple(found["image_std"])
    short = found.get("size", {}).get("shortest_edge") if isinstance(found.get("size"), Mapping) else None
    fraction = min(1.0, size / short) if short else spec.crop_fraction
    return InputSpec(frames=frames, size=size, sampling=Dense(stride=4), crop_fraction=fraction, mean=mean, std=std)


def labels(config: Any) -> tuple[str, ...]:
    """The class names of a published head, in order."""
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def _file(source: str, name: str) -> Path | None:
    library = importlib.import_module("transformers.utils")
    try:
        found = library.cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return Path(found) if found else None


def _not_had(source: str, error: Exception) -> ValueError:
    return unavailable(source, ValueError(str(error).strip().splitlines()[0]))
