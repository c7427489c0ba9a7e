"""Typed configurations as plain JSON and back, exactly.

A configuration is a frozen dataclass of plain values: numbers, text, tuples, string-keyed dicts, other configurations.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, get_type_hints, runtime_checkable

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from videokd.config_types import CONFIG_TYPES
from videokd.json_files import MAX_DEPTH

_PACKAGE = "videokd"
_FILE_MODULE = "videokd_recipe_file:"
_FILES = (".py", ".pt2")


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


@runtime_checkable
class NamesCode(Protocol):
    """A configuration that leads to code outside this package by its name, in a field of plain text."""

    @property
    def named_code(self) -> tuple[str, ...]:
        """Modules, packages and Python files."""


def from_plain(plain: Any, *, trust: Collection[str]) -> Any:
    """Return what `to_plain` was given.

    JSON may come from others. It can name the classes of `CONFIG_TYPES`, classes of what is trusted, and classes of
    recipe files that this process ran already; to name anything else is an error, and imports nothing.

    Args:
        plain: JSON data.
        trust: modules, packages, and paths of Python files that may be imported, which runs their code: what the user
            named, and nothing that the data say.

    Raises:
        ValueError: for a class that is not there or not trusted, a field that it lacks or does not have (with the
            nearest name), or a value of another type.
    """
    return _from_plain(plain, trust, depth=0)


def code_of(value: object) -> frozenset[str]:
    """Return the modules and Python files outside this package that a configuration made in Python uses: where its
    classes are defined, and what `NamesCode` says. Data that were written from it need these to be trusted."""
    if isinstance(value, Mapping):
        return frozenset().union(*(code_of(item) for item in value.values()))
    if isinstance(value, tuple):
        return frozenset().union(*(code_of(item) for item in value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return frozenset()
    module = type(value).__module__.removeprefix(_FILE_MODULE)
    own = frozenset() if is_within(module, (_PACKAGE,)) else frozenset({module})
    named = value.named_code if isinstance(value, NamesCode) else ()
    return own.union(named, *(code_of(getattr(value, f.name)) for f in dataclasses.fields(value)))


def is_trusted(name: str, trust: Collection[str]) -> bool:
    """Return whether `trust` covers a module, or the file at a path that ends in .py or .pt2."""
    if not name.endswith(_FILES):
        return is_within(name, trust)
    return any(one.endswith(_FILES) and Path(one).resolve() == Path(name).resolve() for one in trust)


def require_trust(name: str, trust: Collection[str], *, why: str) -> None:
    """Raises a `ValueError` that says what to pass, unless `trust` covers a module or file.

    Args:
        name: of the module, or path of the file: see `is_trusted`.
        trust: what the user named.
        why: what needs it, the beginning of the sentence.
    """
    if is_trusted(name, trust):
        return
    if not name.isprintable() or not name:
        raise ValueError(f"{why}, and {name!r} is no module and no file")
    name = str(Path(name).resolve()) if name.endswith(_FILES) else name
    raise ValueError(
        f"{why}, and to open it would run that code: if you trust it, add --trust {shlex.quote(name)} (in Python, "
        f"trust=[{name!r}])"
    )


def check_types(config: Any, path: str = "") -> None:
    """Raises a `ValueError` that names field, value and type, for a value of another type in a configuration or in one
    inside it."""
    _check_fields(config, path)
    for one in dataclasses.fields(config):
        value, name = getattr(config, one.name), f"{path}{one.name}"
        inner = value if isinstance(value, Mapping) else {"": value}
        for key, part in inner.items():
            if dataclasses.is_dataclass(part) and not isinstance(part, type):
                check_types(part, f"{name}.{key}." if key else f"{name}.")


def _check_fields(config: Any, path: str = "") -> None:
    """`check_types` of a configuration alone, without those inside it."""
    hints = get_type_hints(type(config))
    for one in dataclasses.fields(config):
        value, name = getattr(config, one.name), f"{path}{one.name}"
        try:
            check_type(value, hints[one.name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{name} = {value!r} of {type(config).__name__} is wrong: {why}") from error


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


def _from_plain(plain: Any, trust: Collection[str], *, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"a configuration has at most {MAX_DEPTH} levels")
    if isinstance(plain, list):
        return tuple(_from_plain(item, trust, depth=depth + 1) for item in plain)
    if isinstance(plain, int) and abs(plain) >= 2**63:
        raise ValueError("a configuration holds a whole number of more than 64 bits")
    if not isinstance(plain, Mapping):
        return plain
    given = {key: _from_plain(item, trust, depth=depth + 1) for key, item in plain.items() if key != "type"}
    if "type" not in plain:
        return given
    cls = _class_at(plain["type"], trust)
    known = [f.name for f in dataclasses.fields(cls)]
    for name in given:
        if name not in known:
            raise ValueError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
    try:
        made = cls(**given)
    except ValueError:
        raise
    except Exception as error:  # of the wrong types: a class checks them last
        raise ValueError(f"{cls.__name__} can't be made of what is written: {error}") from error
    _check_fields(made)
    for name in made.named_code if isinstance(made, NamesCode) else ():
        require_trust(name, trust, why=f"{cls.__name__} uses {name!r}, which is not part of videokd")
    return made


def _class_at(address: Any, trust: Collection[str]) -> Any:
    """The configuration class at "module:Class", or "/path/file.py:Class"."""
    where, _, name = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    is_file = where.endswith(".py")
    if not name.isidentifier() or not (is_file or all(part.isidentifier() for part in where.split("."))):
        raise ValueError(f"a type is written as 'module:Class' or '/path/recipe.py:Class', not {address!r}")
    if name in CONFIG_TYPES.get(where, ()):
        return getattr(importlib.import_module(where), name)
    if is_within(where, (_PACKAGE,)):
        raise ValueError(f"{address!r} is not a configuration class of videokd")
    # A recipe file that ran already is the user's: only the command line and `trust` run one.
    if not (is_file and f"{_FILE_MODULE}{Path(where).resolve()}" in sys.modules):
        require_trust(where, trust, why=f"the type {address!r} is not part of videokd")
    try:
        module = import_file(Path(where)) if is_file else _trusted_module(where, trust)
        cls = getattr(module, name)
    except Exception as error:  # whatever that code raises
        raise ValueError(f"no configuration class at {address!r}: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__):
        raise ValueError(f"{address!r} is not a configuration dataclass")
    return cls


def _trusted_module(name: str, trust: Collection[str]) -> ModuleType:
    """A trusted module, which is installed or lies beside a trusted recipe file or in the current folder."""
    for folder in (*(Path(one).resolve().parent for one in trust if one.endswith(".py")), Path.cwd()):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(name)
