"""Labels as lists write them: which of them mean that there is none, and which two mean one class."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from videokd.clips.rows import Notes, Row, is_number

_MISSING = frozenset(
    ["#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)
"""What pandas reads as no value, exactly: `none` is not among them, and may be a class."""


def label_of(written: object) -> str | None:
    """Return a class name, or None for what marks an unlabelled clip in every form: nothing, -1, or a NaN in JSON."""
    if isinstance(written, float):
        if math.isnan(written):
            return None
        written = int(written) if written.is_integer() else written
    text = "" if written is None else str(written).strip()
    return None if text in ("", "-1") else text


def labels_of(written: Iterable[object]) -> tuple[str, ...]:
    """Return the class names of a clip that may have several."""
    return tuple(name for name in map(label_of, written) if name is not None)


def is_missing(label: str | None, others: Iterable[str] = ("a name",)) -> bool:
    """Return whether a field of a text list says that there is no label.

    Words such as `nan` and `None`, which software writes for a missing value, do. Where all `others` are numbers, so
    do these words in any case.
    """
    if label is None or label in _MISSING or label.lower() in ("nan", "<na>", "#n/a"):
        return True
    return label.lower() in ("none", "null", "na", "n/a") and all(map(_is_numeric, others))


def with_missing(rows: Sequence[Row], known: Collection[str], notes: Notes) -> list[Row]:
    """Return a text list's rows with no label where its label means that there is none, and `1.0` as `1`.

    Args:
        rows: of one list.
        known: names that are certain to be classes, from a file of class names.
        notes: of what was taken for missing, with numbers.
    """
    others = {label for _, video in rows for label in video.names if not (is_missing(label) or label.lower() == "none")}
    is_float = bool(others) and all(map(_is_numeric, others)) and any("." in label for label in others)
    if is_float:
        notes.add("labels such as 1.0 are whole numbers")
    missing: Counter[str] = Counter()

    def read(label: str | None) -> str | None:
        if label is not None and label not in known and is_missing(label, others):
            missing[label] += 1
            return None
        return label_of(float(label)) if label is not None and is_float and label in others else label

    found = []
    for where, video in rows:
        several = tuple(name for name in map(read, video.labels) if name is not None)
        found.append((where, replace(video, label=read(video.label), labels=several)))
    if missing:
        words = ", ".join(f"{label!r} ({number})" for label, number in missing.items())
        notes.add(f"no label where it says {words}; a class of such a name goes into --class-names")
    return found


def check_names(rows: Sequence[Row]) -> None:
    """Check that no two class names mean one class.

    Raises:
        ValueError: naming both, if they are the same number or differ only in case, spaces or the encoding of letters.
    """
    first: dict[str, str] = {}
    for where, video in rows:
        for name in video.names:
            first.setdefault(name, where)
    seen: dict[object, str] = {}
    for name, where in first.items():
        other = seen.setdefault(_meaning(name), name)
        if other != name:
            how = "differ only in case, in spaces or in how letters are encoded"
            other_way = "; if they are two, name both in a file and pass it as --class-names"
            if name.isdecimal() and other.isdecimal():
                how, other_way = "are one number", ""
            raise ValueError(
                f"the classes {other!r} ({first[other]}) and {name!r} ({where}) {how}: write one class alike "
                f"everywhere{other_way}"
            )


def _meaning(name: str) -> object:
    if name.isdecimal():
        return int(name)
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFKC", " ".join(visible.casefold().split()))


def _is_numeric(label: str) -> bool:
    return is_number(label) or re.fullmatch(r"-?\d+\.0+", label) is not None
