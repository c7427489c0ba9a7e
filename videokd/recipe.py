"""One run as typed values: read from a Python file, overridden from the command line, saved, reloaded exactly."""

import json
import re
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import videokd
from videokd.clips.backends import Backend
from videokd.clips.lists import read_manifest
from videokd.clips.loader import OnBadVideo
from videokd.clips.manifest import Manifest, is_test, is_url
from videokd.clips.mixing import Mix
from videokd.clips.pictures import MAX_PIXELS
from videokd.clips.views import Augment
from videokd.config import check_types, from_plain, import_file, nearest, to_plain
from videokd.distill import Term
from videokd.json_files import read_json
from videokd.losses import Loss
from videokd.machine import Machine
from videokd.models import ModelConfig
from videokd.optim import Optimizer
from videokd.teachers import Mixture
from videokd.tracking import Track
from videokd.weighting import FixedWeights, Weighting

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which clips, and in what batches."""

    path: str
    """A folder with one folder per class, a list in any form of data/README.md, or the index of a packed set (which
    may be a URL)."""
    root: str | None = None
    """Folder that the list's paths start from; None is the list's own."""
    fold: int = 1
    """Which of its official splits, of a set that has several (UCF101, HMDB51)."""
    class_names: str | None = None
    """File with a class name a line, for lists whose labels are numbers."""
    train_split: str | None = "train"
    """None takes every video, of a list that names no splits. A list without splits gets "train" and "test" by hash."""
    val_split: str | None = None
    """Scored during the run; None scores nothing. Never the test split."""
    batch_size: int = 32
    unlabelled_per_batch: int = 0
    """How many clips of a batch are unlabelled ones: they carry the distillation terms alone. They are those of the
    training split without a label, and all of the split "unlabelled"."""
    class_balance: float = 0.0
    """How evenly labelled clips are drawn over their classes: 0 takes every clip once a pass; above, each pass draws
    with replacement, a clip by the size of its class to the power of minus this. 1 gives every class the same chance,
    0.5 is square-root sampling [Kang et al. 2020]."""
    augment: Augment = field(default_factory=Augment)
    views: int | None = None
    """Different views of a clip; None for no end of them."""
    view_seed: int = 0
    """Seed of the views, apart from the run's own: so runs of several seeds can share a teacher's outputs."""
    mix: Mix | None = None
    """Mixup and cutmix of the clips of a batch; None for neither."""
    repeats: int = 1
    """Views of a video that are decoded together, from one opened file."""
    spread: int = 4
    """Batches over which the views of a video are shuffled, with `repeats`."""
    workers: int = 0
    """Processes that decode; 0 decodes in the main one, where a decoder that hangs can't be ended."""
    backend: Backend = "pyav"
    """Who decodes video files: the exact reader of this package, or "decord" or "torchcodec"."""
    time_limit: float = 60.0
    """Seconds that a worker may spend on a video."""
    max_pixels: int = MAX_PIXELS
    """Pixels of a frame above which a video or picture is bad, before it is decoded."""
    in_memory: bool = False
    """Keep all decoded frames in memory: for sets of short clips."""
    on_bad_video: OnBadVideo = "error"
    """What to do with a video that is missing, broken, damaged, too large, too slow, or kills its worker: stop; leave
    it out; or train on another clip of its class instead. It is named and counted, and validation never substitutes."""

    def __post_init__(self) -> None:
        if self.train_split is not None and self.train_split == self.val_split:
            raise ValueError(f"train_split and val_split are both {self.train_split!r}: validation would be training")
        for split in (self.train_split, self.val_split):
            if is_test(split):
                raise ValueError(f"split {split!r} is for `videokd evaluate`: a run neither trains nor selects on it")
        if self.batch_size < 1 or self.repeats < 1 or self.spread < 1 or self.time_limit <= 0:
            raise ValueError(
                "batch_size, repeats and spread are at least 1 and time_limit is above 0, "
                f"got {self.batch_size}, {self.repeats}, {self.spread} and {self.time_limit}"
            )
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is at least 1, got {self.max_pixels}")
        if not 0 <= self.class_balance <= 1:
            raise ValueError(f"class_balance lies in [0, 1], got {self.class_balance}")
        if self.in_memory and self.workers:
            raise ValueError(f"in_memory decodes once, in the main process: set workers to 0, not {self.workers}")

    def manifest(self) -> Manifest:
        """The list, read."""
        found = read_manifest(self.path, root=self.root, fold=self.fold, class_names=self.class_names)
        return replace(found, max_pixels=self.max_pixels)


@dataclass(frozen=True, kw_only=True)
class TrainedTeacher:
    """A teacher that `videokd train` (or `save_model`) left in a folder."""

    checkpoint: str
    """The folder: a finished run, or one that holds model.json and model.safetensors."""
    remember: bool = False
    """Keep its outputs for every (clip, view) in memory; pays when `data.views` is small."""
    shuffled: bool = False
    """Tell every clip what it says of another video of the batch: a control, which should not help a student."""
    trust: tuple[str, ...] = ()
    """Modules, packages and recipe files of your own that its network is made by."""

    @property
    def named_code(self) -> tuple[str, ...]:
        """What it trusts: in a recipe of somebody else that counts only where the user trusts it too."""
        return self.trust


@dataclass(frozen=True, kw_only=True)
class PublishedTeacher:
    """A teacher as somebody published it, or as your own function makes it, without training here.

    Its features are good whatever its classes are; its logits, where they are the data's classes.
    """

    model: ModelConfig
    remember: bool = False
    """Keep its outputs for every (clip, view) in memory; pays when `data.views` is small."""


Metric = Literal["top1", "mean_class_accuracy", "map"]
"""On the validation split: share of clips; mean of the classes' shares; mean average precision, of sets of several
labels a video, which have this one alone."""

TeacherSource = TrainedTeacher | PublishedTeacher | Mixture


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. Nothing in it is computed from another field, so an override leaves nothing stale behind."""

    data: Data
    student: ModelConfig
    """The model that learns; a teacher's own training is a recipe in which it is the student."""
    objective: dict[str, Term]
    optim: Optimizer
    """AdamW or SGD, its schedule, and what of the student learns."""
    teachers: dict[str, TeacherSource] = field(default_factory=dict)
    """By name: trained here, published, or a mixture of others of them."""
    weighting: Weighting = field(default_factory=FixedWeights)
    """Of the terms against each other, on top of their own weights."""
    stored: str | None = None
    """Folder that `videokd label` made: what is in there stands in for the teachers, which then never run. Needs
    data.views; None runs the teachers."""
    audit: float = 0.0
    """Share of the stored outputs that is computed again before the first step, and compared."""
    machine: Machine = field(default_factory=Machine)
    seed: int = 0
    """Of initial weights, order of the clips, dropout."""
    keep: Literal["last", "best"] = "last"
    """Which weights the run leaves: its last ones, or those of its best validation."""
    metric: Metric = "top1"
    """What "best" means, and what `patience` waits for."""
    patience: int | None = None
    """Stop after so many validations without a new best; None never does."""
    validate_every: int = 200
    """Steps between scores on the validation split."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    preflight: int = 2
    """Batches on which the run is checked before its first step; 0 checks nothing."""
    weak_teacher: Literal["stop", "warn"] = "stop"
    """What preflight does about a teacher that is not better than chance: refuse the run, or print a warning."""
    track: tuple[Track, ...] = ()
    """Where metrics go besides metrics.jsonl: "tensorboard", "wandb", "mlflow"."""

    def __post_init__(self) -> None:
        for name, term in self.objective.items():
            if isinstance(term, Loss):
                raise ValueError(f"objective[{name!r}] is a loss: write Term(loss={type(term).__name__}(...))")
        if isinstance(self.weighting, type):
            raise ValueError(f"weighting: write {self.weighting.__name__}(), with its parentheses")
        check_types(self)
        if self.data.val_split is None and (self.keep == "best" or self.patience is not None):
            raise ValueError("keep='best' and patience go by validation: set data.val_split")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience counts validations: at least 1, or None, got {self.patience}")
        if self.validate_every < 1 or self.checkpoint_every < 1:
            raise ValueError("validate_every and checkpoint_every count steps: at least 1")
        if self.preflight < 0:
            raise ValueError(f"preflight counts batches: 0 for none, not {self.preflight}")
        if len(set(self.track)) < len(self.track):
            raise ValueError(f"track names a tracker twice: {', '.join(self.track)}")
        if self.seed < 0 or self.data.view_seed < 0:
            raise ValueError(f"seeds are not negative, got {self.seed} and {self.data.view_seed}")
        if not 0 <= self.audit <= 1:
            raise ValueError(f"audit is a share of the stored outputs, in [0, 1], got {self.audit}")
        if self.stored is not None:
            check_stored(self)
        if "student" in self.teachers:
            raise ValueError("no teacher can be called 'student'")
        parts = self.optim.accumulate
        if self.data.batch_size % parts or self.data.unlabelled_per_batch % parts:
            raise ValueError(
                f"optim.accumulate={parts} has to divide data.batch_size={self.data.batch_size} and "
                f"data.unlabelled_per_batch={self.data.unlabelled_per_batch}"
            )
        for name, teacher in self.teachers.items():
            if not isinstance(teacher, Mixture) and teacher.remember and self.data.views is None:
                raise ValueError(f"teacher {name!r} would remember endless views: set data.views, or remember to False")
            if not isinstance(teacher, Mixture) and teacher.remember and self.data.mix is not None:
                raise ValueError(f"teacher {name!r} would remember clips that are mixed anew: set remember to False")


def check_stored(recipe: Recipe) -> None:
    """Raises a `ValueError` for a recipe whose teachers' outputs can't be stored."""
    if not recipe.teachers:
        raise ValueError("the recipe has no teacher whose outputs could be stored")
    if recipe.data.views is None:
        raise ValueError("outputs are stored of so many views of a clip, and data.views says no number: set it")
    if recipe.data.mix is not None:
        raise ValueError("outputs are stored of clips as they are, and data.mix mixes them anew: set it to None")


def load(path: str | Path, *, trust: Collection[str] = ()) -> Recipe:
    """Return the `recipe` of a Python file, which runs it, or of a run's recipe.json, which runs nothing.

    Args:
        path: of the file.
        trust: modules, packages and recipe files whose code recipe.json and the teachers' model.json may name.

    Raises:
        ValueError: if there is none, a field of it is wrong, or recipe.json names code that is not trusted.
    """
    return with_trust(load_as(path, "recipe", Recipe, trust=trust), trust)


def load_as(path: str | Path, name: str, kind: type[Config], *, trust: Collection[str]) -> Config:
    """Return what a Python file calls `name`, or a JSON file holds, which has to be of one kind.

    Raises:
        ValueError: if there is none, a field of it is wrong, or JSON names code that is not trusted.
    """
    path = Path(path)
    if not path.is_file() and not path.is_absolute() and (shipped := configs_folder() / path).is_file():
        path = shipped
    if not path.is_file():
        known = sorted(file.relative_to(configs_folder()).as_posix() for file in configs_folder().rglob("*.py"))
        raise ValueError(f"no {name} at {path}{nearest(path.as_posix(), known)}")
    if path.suffix == ".json":
        try:
            found = from_plain(read_json(path), trust=trust)
        except ValueError as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    else:
        try:
            found = getattr(import_file(path), name, None)
        except Exception as error:
            raise ValueError(f"{path}{_line_of(error, path)}: {_said(error)}{_nearest_field(error)}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path} does not define `{name} = {kind.__name__}(...)`, but {type(found).__name__}")
    return found


def with_trust(recipe: Recipe, trust: Collection[str]) -> Recipe:
    """Return the same recipe, whose teachers may also run the code that the user trusts."""
    teachers = {
        name: replace(teacher, trust=(*dict.fromkeys((*teacher.trust, *trust)),))
        if isinstance(teacher, TrainedTeacher)
        else teacher
        for name, teacher in recipe.teachers.items()
    }
    return replace(recipe, teachers=teachers)


def anchored(recipe: Recipe) -> Recipe:
    """The same recipe with absolute paths, good from any folder."""
    teachers = {
        name: replace(teacher, checkpoint=str(Path(teacher.checkpoint).resolve()))
        if isinstance(teacher, TrainedTeacher)
        else teacher
        for name, teacher in recipe.teachers.items()
    }
    places: dict[str, Any] = {
        name: str(Path(place).resolve())
        for name in ("path", "root", "class_names")
        if (place := getattr(recipe.data, name)) is not None and not is_url(place)
    }
    stored = None if recipe.stored is None else str(Path(recipe.stored).resolve())
    return replace(recipe, data=replace(recipe.data, **places), teachers=teachers, stored=stored)


def dump(recipe: Recipe) -> str:
    """JSON that `load` makes the same recipe of."""
    return json.dumps(to_plain(recipe), indent=2) + "\n"


def configs_folder() -> Path:
    """Where the recipes lie that come with videokd."""
    package = Path(videokd.__file__).parent
    checkout = package.parent
    return checkout / "configs" if (checkout / "pyproject.toml").is_file() else package / "configs"


def _line_of(error: Exception, path: Path) -> str:
    """The last line of the file that led to the error, as ":12"."""
    if isinstance(error, SyntaxError) and error.filename == str(path.resolve()):
        return f":{error.lineno}"
    lines = [
        entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == str(path.resolve())
    ]
    return f":{lines[-1]}" if lines else ""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"


def _nearest_field(error: Exception) -> str:
    """A hint for "Recipe.__init__() got an unexpected keyword argument 'optm'"."""
    said = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    for frame, _ in traceback.walk_tb(error.__traceback__) if said else ():
        cls = frame.f_globals.get(said[1]) if said else None
        if said and isinstance(cls, type) and is_dataclass(cls):
            return nearest(said[2], [f.name for f in fields(cls)])
    return ""
