"""Typed configurations as plain JSON and back, exactly.

A configuration is a frozen dataclass of plain values: numbers, text, tuples, string-keyed dicts, other configurations.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

_FILE_MODULE = "videokd_recipe_file:"


def to_plain(value: object) -> Any:
    """`value` as JSON-ready data; a dataclass becomes a dict that names its class under "type"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": _address(type(value)), **fields}
    if isinstance(value, Mapping):
        if "type" in value or not all(isinstance(key, str) for key in value):
            raise ValueError(f"a dict in a configuration has text keys, none of them 'type', got {list(value)}")
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a configuration holds plain values, got {value!r} of type {type(value).__name__}")


Trust = Collection[str] | Literal["any"]


def from_plain(plain: Any, *, trust: Trust = "any") -> Any:
    """What `to_plain` was given.

    Args:
        plain: JSON data.
        trust: "any" imports whatever module or recipe file the data name, which runs code; else packages and modules
            that may be imported, for data that come from others. Classes of this package, and of modules that are
            imported already, are taken too.

    Raises:
        ValueError: for a class that is not there, or a field that it lacks or does not have (with the nearest name).
    """
    if isinstance(plain, list):
        return tuple(from_plain(item, trust=trust) for item in plain)
    if not isinstance(plain, Mapping):
        return plain
    if "type" not in plain:
        return {key: from_plain(item, trust=trust) for key, item in plain.items()}
    cls = _class_at(str(plain["type"]), trust=trust)
    known = [f.name for f in dataclasses.fields(cls)]
    given = {key: from_plain(item, trust=trust) for key, item in plain.items() if key != "type"}
    for name in given:
        if name not in known:
            raise ValueError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} can't be made of what is written: {error}") from error


def check_types(config: Any, path: str = "") -> None:
    """Raises a `ValueError` that names field, value and type, for a value of another type in a configuration or in one
    inside it."""
    hints = get_type_hints(type(config))
    for one in dataclasses.fields(config):
        value, name = getattr(config, one.name), f"{path}{one.name}"
        try:
            check_type(value, hints[one.name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise ValueError(f"{name} = {value!r} of {type(config).__name__} is wrong: {error}") from error
        inner = value if isinstance(value, Mapping) else {"": value}
        for key, part in inner.items():
            if dataclasses.is_dataclass(part) and not isinstance(part, type):
                check_types(part, f"{name}.{key}." if key else f"{name}.")


def is_within(module: str, packages: Collection[str]) -> bool:
    """Whether a module is one of these, or in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def import_file(path: Path) -> ModuleType:
    """The Python file at `path` as a module, run once a process. What lies beside it can be imported from then on."""
    path = path.resolve()
    name = f"{_FILE_MODULE}{path}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"no Python file at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known) or 'none'}"


def differing_fields(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> the two values, for every leaf in which two plain configurations differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*one, *other]):
            found |= differing_fields(one.get(key), other.get(key), f"{path}.{key}" if path else key)
        return found
    return {} if one == other else {path: (one, other)}


def _address(cls: type) -> str:
    if cls.__module__.startswith(_FILE_MODULE):
        return f"{cls.__module__.removeprefix(_FILE_MODULE)}:{cls.__qualname__}"
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_at(address: str, *, trust: Trust) -> Any:
    where, _, name = address.rpartition(":")
    known = where in sys.modules or f"{_FILE_MODULE}{where}" in sys.modules
    if trust != "any" and not known and not is_within(where, ("videokd", *trust)):
        raise ValueError(f"{address!r} is not part of videokd: import its module first, or name it in trust, if you do")
    try:
        module = import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        cls = getattr(module, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no configuration class at {address!r}: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"{address!r} is not a configuration dataclass")
    return cls
