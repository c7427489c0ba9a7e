"""Reading of JSON files that somebody else may have written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEEPEST = 64
"""Levels of nesting that a JSON file may have. A recipe has about ten."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: naming the file, if it is not JSON in UTF-8, is nested deeper than `DEEPEST`, or holds a number of
            more than 4300 digits.
        OSError: if it can't be read.
    """
    return parse_json(path.read_bytes(), source=path)


def read_object(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, which is an object.

    Raises:
        ValueError: as `read_json`, or if the file holds another kind of value.
        OSError: if it can't be read.
    """
    return as_object(read_json(path), source=path)


def parse_json(text: bytes | str, *, source: object) -> Any:
    """Return what JSON text holds.

    Args:
        text: UTF-8 if it is bytes.
        source: where it is from, for errors.

    Raises:
        ValueError: see `read_json`.
    """
    try:
        found = json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply: at most {DEEPEST} levels are read") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are two of them
        raise ValueError(f"{source} is not JSON: {error}") from error
    if _is_deeper(found, DEEPEST):
        raise ValueError(f"{source} is nested too deeply: at most {DEEPEST} levels are read")
    return found


def as_object(value: Any, *, source: object) -> dict[str, Any]:
    """Return `value`, a dict; raises a `ValueError` if it is something else."""
    if not isinstance(value, dict):
        raise ValueError(f"{source} has to hold a JSON object, and holds {_kind(value)}")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    while level and levels >= 0:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = [one for one in inner if isinstance(one, Mapping | list)]
        levels -= 1
    return bool(level)


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
