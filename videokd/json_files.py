"""JSON files, read and checked: they may be damaged, or written by somebody else."""

import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

MAX_BYTES = 256 * 2**20
"""Size of the largest JSON file that is read."""
MAX_DEPTH = 64
"""Levels of nesting that a JSON file may have. A recipe has about ten."""


class Between(NamedTuple):
    """The range of a number, for `Annotated`."""

    low: float
    high: float


Share = Annotated[float, Between(0.0, 1.0)]
"""A share of clips."""
Count = Annotated[int, Between(0, math.inf)]
"""How many there are."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: naming the file, if it is larger than `MAX_BYTES`, is not JSON in UTF-8, is nested deeper than
            `MAX_DEPTH`, or holds a number of more than 4300 digits.
        OSError: if it can't be read.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size / 2**20:.0f} MiB, and at most {MAX_BYTES // 2**20} are read")
    return parse_json(path.read_bytes(), source=path)


def read_object(path: Path, form: Any = dict[str, Any], *, remedy: str = "") -> dict[str, Any]:
    """Return the JSON object of a file, checked against a type.

    Args:
        path: of the file.
        form: a TypedDict, or any type of JSON data; see `check`.
        remedy: how to make the file again; part of every error.

    Raises:
        ValueError: if the file can't be read, is no JSON, or is not of this form. Names the file and the field.
    """
    ending = f"; {remedy}" if remedy else ""
    try:
        found = as_object(read_json(path), source=path)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}{ending}") from error
    except ValueError as error:
        raise ValueError(f"{error}{ending}") from error
    try:
        check(found, form)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or of another version: {error}{ending}") from error
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file with one in each line.

    Raises:
        ValueError: naming file and line, for a line that is no JSON object.
        OSError: if the file can't be read.
    """
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    places = ((f"{path}:{number}", line) for number, line in lines)
    return [as_object(parse_json(line, source=where), source=where) for where, line in places]


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
        raise ValueError(f"{source} is nested too deeply: at most {MAX_DEPTH} levels are read") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are two of them
        raise ValueError(f"{source} is not JSON: {error}") from error
    if _is_deeper(found, MAX_DEPTH):
        raise ValueError(f"{source} is nested too deeply: at most {MAX_DEPTH} levels are read")
    return found


def as_object(value: Any, *, source: object) -> dict[str, Any]:
    """Return `value`, a dict; raises a `ValueError` if it is something else."""
    if not isinstance(value, dict):
        raise ValueError(f"{source} has to hold a JSON object, and holds {_kind(value)}")
    return value


def check(value: Any, form: Any, where: str = "") -> None:
    """Check JSON data against a type: int, float, str, bool, None, Any, list, dict, Literal, unions, TypedDict.

    A float is finite, and may be written as an int. Fields that a TypedDict does not name are not looked at.

    Raises:
        ValueError: naming the field, its value and what it should be.
    """
    origin, parts = get_origin(form), get_args(form)
    if form is Any:
        return
    if is_typeddict(form):
        _check_fields(value, form, where)
    elif origin is Annotated:
        check(value, parts[0], where)
        for low, high in (part for part in parts[1:] if isinstance(part, Between)):
            if not low <= value <= high:
                _refuse(value, f"a number from {low:g} to {high:g}", where)
    elif origin in (Union, types.UnionType):
        _check_union(value, parts, where)
    elif origin is Literal:
        if value not in parts:
            _refuse(value, " or ".join(map(repr, parts)), where)
    elif origin is list:
        if not isinstance(value, list):
            _refuse(value, "a list", where)
        for number, item in enumerate(value):
            check(item, parts[0], f"{where}[{number}]")
    elif origin is dict:
        if not isinstance(value, Mapping):
            _refuse(value, "an object", where)
        for key, item in value.items():
            check(item, parts[1], f"{where}.{key}" if where else str(key))
    elif form is None or form is type(None):
        if value is not None:
            _refuse(value, "null", where)
    elif form is float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            _refuse(value, "a number", where)
    elif form is int:
        if not isinstance(value, int) or isinstance(value, bool):
            _refuse(value, "a whole number", where)
    elif not isinstance(value, form):
        _refuse(value, {str: "text", bool: "true or false"}.get(form, str(form)), where)


def finite(value: Any) -> Any:
    """The same data with None for every number that is NaN or infinite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_fields(value: Any, form: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        _refuse(value, "an object", where)
    for name, hint in get_type_hints(form, include_extras=True).items():
        inside = f"{where}.{name}" if where else name
        if name in value:
            check(value[name], get_args(hint)[0] if get_origin(hint) is NotRequired else hint, inside)
        elif name in form.__required_keys__:
            raise ValueError(f"{inside} is missing")


def _check_union(value: Any, parts: tuple[Any, ...], where: str) -> None:
    for part in parts:
        try:
            return check(value, part, where)
        except ValueError as error:
            last = error
    others = [part for part in parts if part is not type(None)]
    if len(others) == 1 and value is not None:
        return check(value, others[0], where)  # raises, and names the field inside
    raise last


def _refuse(value: Any, wanted: str, where: str) -> NoReturn:
    text = repr(value)
    short = text if len(text) <= 60 else f"{text[:57]}..."
    raise ValueError(f"{where or 'the whole'} is {short}, and should be {wanted}")


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
