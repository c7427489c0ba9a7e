"""The losses and the weightings as tables: what each is, where it comes from, its defaults, a recipe that has it."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from videokd import losses, weighting
from videokd.config import nearest
from videokd.losses import Loss
from videokd.models import SimKD
from videokd.recipe import Recipe, configs_folder, load
from videokd.weighting import ClipWeights, Weighting

COLUMNS = ("name", "paper", "defaults", "recipe")

_MODULES = {
    "logits": "logits",
    "imbalance": "class imbalance",
    "features": "features",
    "temporal": "time",
    "relations": "relations between clips",
}
_WEIGHTINGS = {Weighting: "weights between terms (Recipe.weighting)", ClipWeights: "weights of clips (Term.clips)"}


def groups() -> dict[str, list[type[Any]]]:
    """Title -> the losses, or weightings, under it."""
    found: dict[str, list[type[Any]]] = {}
    for cls in _public(losses, Loss):
        found.setdefault(f"losses on {_MODULES[cls.__module__.rpartition('.')[2]]}", []).append(cls)
    found = {title: found[title] for title in (f"losses on {kind}" for kind in _MODULES.values())}
    for base, title in _WEIGHTINGS.items():
        found[title] = list(_public(weighting, base))
    return found


def rows(classes: list[type[Any]], recipes: dict[str, Recipe]) -> list[tuple[str, ...]]:
    """One row a class: its name, its paper, its defaults, the shipped recipe that shows it."""
    return [
        (
            cls.__name__,
            cls.paper,
            ", ".join(f"{name}={value}" for name, value in defaults(cls).items()),
            _used(cls, recipes),
        )
        for cls in classes
    ]


def defaults(cls: type[Any]) -> dict[str, str]:
    """Field -> its default, as it is written in a recipe."""
    return {one.name: _written(_default(one)) for one in fields(cls) if one.name not in _UNINTERESTING}


def method_recipes() -> dict[str, Recipe]:
    """Shipped recipes that show a method, by the name that `videokd train` takes."""
    folders = ("methods", "own_videos")
    found = [path for folder in folders for path in sorted((configs_folder() / folder).glob("*.py"))]
    # Plain KD first: what all have in common is shown there.
    found.sort(key=lambda path: path.stem != "kd")
    return {path.relative_to(configs_folder()).as_posix(): load(path) for path in found}


def described(name: str) -> list[str]:
    """All that there is to say of one loss or weighting, in lines.

    Raises:
        ValueError: if there is none of that name.
    """
    every = {cls.__name__: cls for classes in groups().values() for cls in classes}
    if name == SimKD.__name__:
        raise ValueError("SimKD is a model that wraps the student, not a loss: see methods/simkd.py and docs/losses.md")
    cls = every.get(name) or next((one for known, one in every.items() if known.lower() == name.lower()), None)
    if cls is None:
        raise ValueError(f"no loss or weighting is called {name!r}{nearest(name, every)}")
    package = "losses" if issubclass(cls, Loss) else "weighting"
    lines = [cls.__name__, "", *inspect.cleandoc(cls.__doc__ or "").splitlines(), ""]
    lines += [f"paper: {cls.paper}"] if cls.paper else []
    lines += [f"recipe: {recipe}"] if (recipe := _used(cls, method_recipes())) else []
    lines += [f"import: from videokd.{package} import {cls.__name__}"]
    said = _said_of_fields(cls)
    lines += ["", "fields:"] if fields(cls) else []
    for one in fields(cls):
        lines += [f"  {one.name}={_written(_default(one))}", *(f"      {part}" for part in said.get(one.name, []))]
    return lines


def _said_of_fields(cls: type[Any]) -> dict[str, list[str]]:
    """What the source says under each field, of the class and of those that it is made of."""
    found: dict[str, list[str]] = {}
    for one in reversed([part for part in cls.__mro__ if part.__module__.startswith("videokd.")]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for line, after in itertools.pairwise(body.body):
            if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(line.target)] = inspect.cleandoc(str(ast.literal_eval(after.value))).splitlines()
    return found


_UNINTERESTING = ("student_tap", "teacher_tap", "class_counts", "moments")


def _public(module: Any, base: type[Any]) -> Iterator[type[Any]]:
    """Concrete classes, in the order of their file."""
    for cls in sorted(vars(module).values(), key=_line):
        if isinstance(cls, type) and issubclass(cls, base) and not inspect.isabstract(cls) and cls is not base:
            yield cls


def _line(value: Any) -> int:
    return inspect.getsourcelines(value)[1] if inspect.isclass(value) and hasattr(value, "__dataclass_fields__") else 0


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _used(cls: type[Any], recipes: dict[str, Recipe]) -> str:
    for name, recipe in recipes.items():
        parts = [recipe.weighting, *(one for term in recipe.objective.values() for one in (term.loss, term.clips))]
        if any(type(one) is cls for one in parts):
            return name
    return ""
