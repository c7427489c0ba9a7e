"""What a benchmark is about: networks by name, of a recipe, of a run, or as they were exported."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from videokd import recipe as recipes
from videokd.assembly import parties
from videokd.config import nearest
from videokd.models import Model, ModelConfig, catalogue, load_model
from videokd.models.huggingface_video import HuggingFaceVideo
from videokd.models.named import TORCHVISION
from videokd.recipe import Recipe, TrainedTeacher

EXPORTED = (".onnx", ".pt2")
_CLASSES = tuple(f"class {number}" for number in range(400))


@dataclass(frozen=True, kw_only=True)
class Party:
    """A network that is to be timed."""

    name: str
    """"student", a teacher's name, or what it was called by."""
    build: Callable[[], Model[Any]] | None = None
    """Makes it, in eval mode, on the CPU; None for an exported file."""
    exported: Path | None = None
    trust: tuple[str, ...] = ()
    """Files that may run code, such as the exported one."""
    folder: Path | None = None
    """Of its run, with what it scored."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Networks, and the recipe that they are of, if there is one."""

    named: str
    parties: Sequence[Party]
    recipe: Recipe | None = None


def subject(names: Sequence[str], *, classes: Sequence[str] | None = None, trust: Collection[str] = ()) -> Subject:
    """What `names` stand for; networks get random weights where nobody trained them: that changes no time.

    Args:
        names: of architectures (`videokd models` lists them; torchvision/NAME, hf/SOURCE), files (.onnx, .pt2), folders
            of runs and saved models, or one recipe. A recipe, or a run beside its recipe, brings its teachers.
        classes: that networks of published architectures tell apart; None for 400.
        trust: modules, packages and files of your own whose code may run.

    Raises:
        ValueError: for a name that stands for nothing.
    """
    if not names:
        raise ValueError("name a model, a recipe, a run's folder or an exported file; `videokd models` lists models")
    found: list[Party] = []
    of: Recipe | None = None
    for name in names:
        some, recipe = _parties(name, tuple(classes or _CLASSES), trust)
        if recipe is not None and of is not None:
            raise ValueError(f"one recipe or run at a time: {name} is a second one")
        of = of or recipe
        taken = {one.name for one in found}
        found += [replace(one, name=name if one.name in taken else one.name) for one in some]
    if len({one.name for one in found}) < len(found):
        raise ValueError(f"the same network twice: {', '.join(names)}")
    return Subject(named=" ".join(names), parties=found, recipe=of)


def without_published_weights(config: ModelConfig) -> ModelConfig:
    """The same architecture, whose weights nobody has to fetch."""
    has = any(one.name == "weights" for one in fields(config))
    return replace(config, weights=None) if has else config  # type: ignore[call-arg]


def _parties(name: str, classes: tuple[str, ...], trust: Collection[str]) -> tuple[list[Party], Recipe | None]:
    path = Path(name)
    if path.suffix in EXPORTED:
        if not path.is_file():
            raise ValueError(f"no file {name}")
        return [Party(name=path.name, exported=path, trust=tuple(trust))], None
    if path.suffix == ".py":
        recipe = recipes.load(name, trust=trust)
        return _of_recipe(recipe, parties(recipe)), recipe
    if path.is_dir():
        if (path / "config.json").is_file() and not (path / "model.json").is_file():
            raise ValueError(f"{name} looks like a model of Hugging Face transformers: call it hf/{name}")
        if not (path / "recipe.json").is_file():
            return [Party(name=path.name, build=partial(load_model, path, trust=trust), folder=path)], None
        recipe = recipes.load(path / "recipe.json", trust=trust)
        builders: dict[str, Callable[[], Model[Any]]] = parties(recipe)
        builders["student"] = partial(load_model, path, trust=trust)
        found = _of_recipe(recipe, builders)
        return [replace(one, folder=path) if one.name == "student" else one for one in found], recipe
    return [Party(name=name, build=partial(_built, _config(name), classes))], None


def _of_recipe(recipe: Recipe, builders: Mapping[str, Callable[[], Model[Any]]]) -> list[Party]:
    sources = recipe.teachers
    found = []
    for name, build in builders.items():
        source = sources.get(name)
        folder = Path(source.checkpoint) if isinstance(source, TrainedTeacher) else None
        found.append(Party(name=name, build=build, folder=folder))
    return found


def _built(config: ModelConfig, classes: tuple[str, ...]) -> Model[Any]:
    return config.build(classes, pretrained=False).eval()


def _config(name: str) -> ModelConfig:
    library, _, rest = name.partition("/")
    if library == "torchvision" and rest:
        if rest not in TORCHVISION:
            raise ValueError(f"torchvision has no video model {rest!r}{nearest(rest, list(TORCHVISION))}")
        return without_published_weights(TORCHVISION[rest])
    if library == "hf" and rest:
        return HuggingFaceVideo(source=rest)
    known = catalogue.STUDENTS | catalogue.TEACHERS
    with suppress(ValueError):  # without the extra its names are not known
        known = known | catalogue.huggingface()
    if name not in known:
        raise ValueError(
            f"no recipe, run, exported file or model {name!r}{nearest(name, known)}; `videokd models` lists models"
        )
    return known[name]
