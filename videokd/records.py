"""What a stored record holds of each teacher: its layout, what is put in, and what is read of the likeliest classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videokd.contracts import Grid, Outputs

StoredType = Literal["float16", "float32"]
VALID = "valid"
"""The field that is 0 in records of videos that couldn't be read."""
LEAST_LOG = float(np.log(1e-12))
"""Log of the least mass that the classes outside of the top ones have together."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a record holds of one teacher."""

    classes: int | None
    """K; None for a teacher that has no logits."""
    may_be_silent: bool
    """Whether it says nothing of some clips."""
    taps: Mapping[str, Grid]
    """How finely each is kept; "shuffled TAP" is that of the clip with its pieces of time in another order."""
    shapes: Mapping[str, tuple[int, ...]]
    """(T', H', W', C) of each, as it is kept."""

    @staticmethod
    def of(said: Outputs, taps: Mapping[str, Grid]) -> "Contents":
        """Of what a teacher said of some clip, in which `taps` are as fine as they are to be kept."""
        shapes = {tap: tuple(feature_map.values.shape[1:]) for tap, feature_map in said.features.items()}
        return Contents(
            classes=None if said.logits is None else said.logits.shape[1],
            may_be_silent=said.known is not None,
            taps={tap: taps[tap.removeprefix("shuffled ")] for tap in shapes},
            shapes=shapes,
        )


def record(contents: Mapping[str, Contents], *, dtype: StoredType, top_k: int | None) -> np.dtype[np.void]:
    """How a record lies on disk, little-endian: the widest numbers first, so that all are aligned.

    Raises:
        ValueError: for a `top_k` that is not below a teacher's number of classes.
    """
    kept = {"float16": "<f2", "float32": "<f4"}[dtype]
    fields: list[tuple[str, str, tuple[int, ...]]] = [(VALID, "|u1", ())]
    for name, one in contents.items():
        if one.classes is not None and top_k is None:
            fields.append((f"{name}/logits", kept, (one.classes,)))
        elif one.classes is not None and top_k is not None:
            if not 1 <= top_k < one.classes:
                raise ValueError(f"teacher {name!r} has {one.classes} classes: the top ones are 1 to {one.classes - 1}")
            fields += [(f"{name}/top", kept, (top_k,)), (f"{name}/top classes", "<i4", (top_k,))]
            fields.append((f"{name}/rest", kept, ()))
        for tap, shape in one.shapes.items():
            fields += [(f"{name}/features/{tap}", kept, shape), (f"{name}/times/{tap}", "<f4", shape[:1])]
        if one.may_be_silent:
            fields.append((f"{name}/known", "|u1", ()))
    fields.sort(key=lambda field: -np.dtype(field[1]).itemsize)
    return np.dtype(fields, align=True)


def encoded(
    said: Mapping[str, Outputs], ids: Sequence[str], layout: np.dtype[np.void], *, top_k: int | None
) -> NDArray[np.void]:
    """Records (B,) of what the teachers said of the clips `ids`.

    Raises:
        ValueError: for what is not a number, or too large for the records.
    """
    found = np.zeros(len(ids), dtype=layout)
    found[VALID] = 1
    for teacher, outputs in said.items():
        for part, values in _parts(outputs, top_k).items():
            name = f"{teacher}/{part}"
            given = values.cpu().numpy()
            with np.errstate(over="ignore"):
                found[name] = given
            wrong = ~np.isfinite(found[name]).reshape(len(ids), -1).all(axis=1)
            if wrong.any():
                place = int(wrong.argmax())
                where = f"teacher {teacher!r} says of clip {ids[place]}, in {part},"
                if np.isfinite(given[place]).all():
                    raise ValueError(
                        f"{where} {np.abs(given[place]).max():g}, and float16 ends at 65504: store with --dtype float32"
                    )
                raise ValueError(f"{where} what is not a number")
    return found


def _parts(outputs: Outputs, top_k: int | None) -> dict[str, Tensor]:
    """What is kept of a teacher, by the name of its field; 0 where it says nothing, whatever it said."""
    parts: dict[str, Tensor] = {}
    if outputs.logits is not None and top_k is None:
        parts["logits"] = outputs.logits.float()
    elif outputs.logits is not None and top_k is not None:
        parts |= top_classes(outputs.logits, top_k)
    for tap, feature_map in outputs.features.items():
        parts |= {f"features/{tap}": feature_map.values.float(), f"times/{tap}": feature_map.times.float()}
    if outputs.known is not None:
        silent = ~outputs.known
        for name, part in parts.items():
            parts[name] = part.masked_fill(silent.view(-1, *[1] * (part.ndim - 1)), 0)
        parts["known"] = outputs.known
    return parts


def top_classes(logits: Tensor, k: int, classes: Tensor | None = None) -> dict[str, Tensor]:
    """Log-probabilities "top" (B, k) of the likeliest classes, or of the given ones (B, k); "top classes" (B, k); and
    the log of the mass of all others together, "rest" (B,)."""
    log_probs = logits.float().log_softmax(dim=1)
    if classes is None:
        classes = log_probs.topk(k, dim=1).indices
    rest = log_probs.scatter(1, classes, -torch.inf).logsumexp(dim=1).clamp(min=LEAST_LOG)
    return {"top": log_probs.gather(1, classes), "top classes": classes, "rest": rest}


def spread(top: Tensor, classes: Tensor, rest: Tensor, *, num_classes: int) -> Tensor:
    """Log-probabilities (B, K) of what `top_classes` gave: the rest is spread evenly over the other classes."""
    even = rest - float(np.log(num_classes - top.shape[1]))
    return even[:, None].repeat(1, num_classes).scatter(1, classes.long(), top)
