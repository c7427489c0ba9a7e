"""What a study compares: its arms, each as a recipe, over seeds and lists."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from videokd import recipe as recipes
from videokd.clips.manifest import is_url
from videokd.config import check_types, code_of, differing_fields, nearest, to_plain
from videokd.distill import Term
from videokd.losses import CrossEntropy
from videokd.models import SimKD, load_model
from videokd.models.cost import cost
from videokd.recipe import Recipe, TrainedTeacher

TITLES = {
    "alone": "student alone",
    "label_smoothing": "label smoothing",
    "equal_compute": "alone at equal compute",
    "distilled": "student distilled",
    "self_distilled": "taught by itself",
    "untrained_teacher": "untrained teacher",
    "shuffled_teacher": "shuffled teacher",
}
"""The built-in arms of a study, in order."""
WITHOUT_TEACHER = ("alone", "label_smoothing", "equal_compute")
"""The arms that learn from no teacher."""
TEACHER = "teacher"
"""The study's teacher, in its recipes and as a folder."""
SMOOTHING = 0.1


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which arms are compared, and on what. In every pair (a seed on a list) all arms have the same initial weights,
    order of clips, views and steps, so far as their recipes agree; `distilled` must agree with `alone`."""

    alone: Recipe
    """The student without a teacher."""
    distilled: Recipe
    """The student with its teacher, which the recipe calls "teacher": whatever folder it names, it is the study's."""
    teacher: Recipe | None = None
    """The teacher's own training, once for each list; None needs a `trained_teacher`."""
    trained_teacher: str | None = None
    """Folder of a trained teacher, of which a copy takes the place of training `teacher`."""
    others: dict[str, Recipe] = field(default_factory=dict)
    """Further arms by name. A `TrainedTeacher` that they call "teacher" is this study's."""
    arms: tuple[str, ...] = ()
    """Which arms to run besides alone and distilled; none named runs all there are: label_smoothing, equal_compute,
    self_distilled, untrained_teacher, shuffled_teacher, and the `others`."""
    seeds: int = 5
    """How many seeds on each list: each makes a pair of every arm."""
    first_seed: int = 0
    """The seeds count from here; they replace the recipes'."""
    lists: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--list"])] = ()
    """Lists (folds) on each of which everything is run and scored, with the splits that the recipes name; none leaves
    each recipe its own."""
    official_folds: tuple[int, ...] = ()
    """Official splits of each list, of a set that has several (UCF101, HMDB51); none leaves the recipes' own."""
    split: str = "test"
    """What is scored: a split on which no arm trains or selects."""
    weak_teacher: Literal["stop", "warn"] = "stop"
    """What to do about a teacher that is not better than chance on held-out clips, or worse than the student alone:
    stop before the arms that need it, or go on with a warning."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.teacher is None and self.trained_teacher is None:
            raise ValueError("a study names a teacher to train, or the folder of a trained_teacher")
        source = self.distilled.teachers.get(TEACHER)
        if not isinstance(source, TrainedTeacher):
            raise ValueError(
                f"the distilled arm's teacher is a TrainedTeacher called {TEACHER!r}, and its recipe has "
                f"{', '.join(self.distilled.teachers) or 'none'}"
            )
        if self.alone.teachers:
            raise ValueError(f"the student alone has no teacher, and its recipe names {', '.join(self.alone.teachers)}")
        if unequal := _unequal(self.alone, self.distilled):
            named = ", ".join(f"{name} ({one!r} and {other!r})" for name, (one, other) in unequal.items())
            raise ValueError(f"the arms alone and distilled must differ by the teacher alone, and differ in {named}")
        if self.seeds < 1 or self.first_seed < 0:
            raise ValueError(f"seeds counts pairs, at least 1, from 0 on: got {self.seeds} from {self.first_seed}")
        for name in self.others:
            if name in (*TITLES, TEACHER) or not name.replace("_", "").isalnum():
                raise ValueError(f"an arm can't be called {name!r}: take other letters, digits and _")
        for name in self.arms:
            if name not in (*TITLES, *self.others):
                raise ValueError(f"no arm {name!r}{nearest(name, [*TITLES, *self.others])}")
        for name, recipe in self.recipes.items():
            if self.split in (recipe.data.train_split, recipe.data.val_split):
                what = "trained on" if self.split == recipe.data.train_split else "selected by"
                raise ValueError(f"split {self.split!r} is to be scored, and {name} is {what} it")
        if "label_smoothing" in self.chosen and not any(_is_plain(term) for term in self.alone.objective.values()):
            raise ValueError(
                "label_smoothing smooths CrossEntropy, and the student alone has none: leave it out (arms)"
            )

    @property
    def recipes(self) -> dict[str, Recipe]:
        """All recipes that are named, by arm; the teacher's too."""
        named = {"alone": self.alone, "distilled": self.distilled, **self.others}
        return named if self.teacher is None or self.trained_teacher is not None else {TEACHER: self.teacher, **named}

    @property
    def seed_range(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The arms that are run, in order."""
        wanted = ("alone", "distilled", *self.arms) if self.arms else (*TITLES, *self.others)
        return tuple(arm for arm in (*TITLES, *self.others) if arm in wanted)


@dataclass(frozen=True)
class Fold:
    """One list, and where its runs are."""

    number: int
    """From 1 on."""
    folder: Path
    path: str | None
    """Of the list; None for the recipes' own."""
    official: int | None

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe on this list."""
        data = recipe.data
        data = data if self.path is None else replace(data, path=self.path)
        return replace(recipe, data=data if self.official is None else replace(data, fold=self.official))

    def run(self, arm: str, seed: int) -> Path:
        """Folder of an arm's run."""
        return self.folder / f"{arm}-seed{seed}"


def load(path: str | Path, *, trust: Collection[str] = ()) -> Study:
    """Return the `study` of a Python file, which runs it, or of a JSON file, which runs nothing.

    Args:
        path: of the file.
        trust: modules, packages and recipe files whose code JSON may name.

    Raises:
        ValueError: if there is none, a field of it is wrong, or JSON names code that is not trusted.
    """
    found = recipes.load_as(path, "study", Study, trust=trust)
    return replace(
        found,
        alone=recipes.with_trust(found.alone, trust),
        distilled=recipes.with_trust(found.distilled, trust),
        teacher=None if found.teacher is None else recipes.with_trust(found.teacher, trust),
        others={name: recipes.with_trust(recipe, trust) for name, recipe in found.others.items()},
    )


def equal_compute_steps(
    *, steps: int, student_macs: int, teacher_macs: int, distilled_clips: int, alone_clips: int, shuffled: bool = False
) -> int:
    """Steps that cost the student alone as much as distillation costs: so many multiply-accumulates.

    Of a clip, labelled or not, a student costs three forward passes (the backward pass costs two) and a teacher one:

        distilled  steps * distilled_clips * (3 student_macs + teacher_macs) * (2 if shuffled else 1)
        alone      steps * alone_clips * 3 student_macs

    Rounded up. Nothing is taken off for a teacher that remembers, or whose outputs are stored; projections, losses and
    the teacher's own training are not counted.

    Args:
        steps: of the distilled student.
        student_macs: of one forward pass over one clip.
        teacher_macs: likewise.
        distilled_clips: clips of a batch, the unlabelled ones included.
        alone_clips: likewise, of the student alone.
        shuffled: whether a loss has every clip looked at a second time, shuffled.
    """
    distilled = steps * distilled_clips * (3 * student_macs + teacher_macs) * (2 if shuffled else 1)
    return math.ceil(distilled / (alone_clips * 3 * student_macs))


def arm_recipe(plan: Study, arm: str, fold: Fold, seed: int, *, classes: Sequence[str]) -> Recipe:
    """The recipe of an arm's run; the fold's teachers must be there."""
    alone, distilled = fold.of(plan.alone), fold.of(plan.distilled)
    # Teachers that may be at chance by design are not held to be untrained by mistake.
    control = replace(distilled, preflight=0)
    folder = fold.folder / TEACHER
    match arm:
        case "alone":
            found = alone
        case "label_smoothing":
            found = replace(alone, objective={name: _smoothed(term) for name, term in alone.objective.items()})
        case "equal_compute":
            steps = equal_compute_steps(
                steps=distilled.optim.steps,
                student_macs=cost(alone.student.build(classes, pretrained=False)).macs,
                teacher_macs=cost(load_model(folder, trust=code_of(plan))).macs,
                distilled_clips=distilled.data.batch_size,
                alone_clips=alone.data.batch_size,
                shuffled=any(term.loss.pieces for term in distilled.objective.values()),
            )
            found = replace(alone, optim=replace(alone.optim, steps=steps))
        case "distilled":
            found = _taught(distilled, folder)
        case "self_distilled":
            found = _taught(control, fold.run("alone", seed))
        case "untrained_teacher":
            found = _taught(control, fold.folder / arm)
        case "shuffled_teacher":
            found = _taught(control, folder, shuffled=True)
        case _:
            found = _taught(fold.of(plan.others[arm]), folder)
    if plan.weak_teacher == "warn":
        found = replace(found, weak_teacher="warn")
    return replace(found, seed=seed)


def anchored(plan: Study) -> Study:
    """The same study with absolute paths."""
    teacher = None if plan.trained_teacher is None else str(Path(plan.trained_teacher).resolve())
    return replace(
        plan,
        alone=recipes.anchored(plan.alone),
        # Of the folder that it names nothing is taken.
        distilled=recipes.anchored(_taught(plan.distilled, Path("teacher"))),
        teacher=None if plan.teacher is None else recipes.anchored(plan.teacher),
        trained_teacher=teacher,
        others={name: recipes.anchored(recipe) for name, recipe in plan.others.items()},
        lists=tuple(path if is_url(path) else str(Path(path).resolve()) for path in plan.lists),
    )


def folds_of(plan: Study, out: Path) -> list[Fold]:
    """The lists of a study in `out`; each has a folder of its own, unless it is the only one."""
    lists: Sequence[str | None] = plan.lists or (None,)
    official: Sequence[int | None] = plan.official_folds or (None,)
    places = [(path, one) for path in lists for one in official]
    if len(places) == 1:
        return [Fold(1, out, *places[0])]
    return [Fold(number, out / f"fold{number}", *place) for number, place in enumerate(places, start=1)]


def _taught(recipe: Recipe, checkpoint: Path, *, shuffled: bool = False) -> Recipe:
    """The recipe with another folder for the study's teacher, if it has that."""
    source = recipe.teachers.get(TEACHER)
    if not isinstance(source, TrainedTeacher):
        return recipe
    source = replace(source, checkpoint=str(checkpoint), shuffled=shuffled or source.shuffled)
    return replace(recipe, teachers={**recipe.teachers, TEACHER: source})


def _is_plain(term: Term) -> bool:
    return isinstance(term.loss, CrossEntropy)


def _smoothed(term: Term) -> Term:
    loss = term.loss
    return replace(term, loss=replace(loss, label_smoothing=SMOOTHING)) if isinstance(loss, CrossEntropy) else term


def _unequal(alone: Recipe, distilled: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields by which the two arms would differ in more than the teacher."""
    found: list[Any] = []
    for recipe in (alone, distilled):
        student = recipe.student.student if isinstance(recipe.student, SimKD) else recipe.student
        data = replace(recipe.data, unlabelled_per_batch=0)
        same = {
            name: getattr(recipe, name) for name in ("keep", "metric", "patience", "validate_every", "machine", "optim")
        }
        found.append({name: to_plain(part) for name, part in {**same, "student": student, "data": data}.items()})
    return differing_fields(*found)
