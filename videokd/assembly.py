"""What a recipe is made into before the first step: clips, teachers, student, and all that can be refused early."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from videokd import recipe as recipes
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.loader import batches, leave_out_bad, on_device
from videokd.clips.manifest import Manifest, is_test, is_url
from videokd.clips.mixing import mixed
from videokd.clips.order import BatchOrder
from videokd.clips.shuffling import check_pieces, with_shuffled
from videokd.config import differing_fields, to_plain
from videokd.contracts import UNLABELLED, Batch, FeatureMap, Outputs, ViewSpec
from videokd.distill import Student, Term, check_clips, check_terms, wanted_taps
from videokd.leaks import trained_on
from videokd.losses import Facts
from videokd.models import Model, ModelConfig, check_classes, load_model
from videokd.models.model import nameless
from videokd.processes import agreed, is_distributed, rank, world_size
from videokd.recipe import PublishedTeacher, Recipe, TrainedTeacher
from videokd.store import StoredOutputs, fingerprint
from videokd.teachers import Mixture, Teacher, all_targets

CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Assembly:
    """The parties of a run and what they look at."""

    recipe: Recipe
    """With absolute paths."""
    device: torch.device
    clips: ClipDataset
    """What is trained on: a view for every party."""
    val_clips: ClipDataset | None
    order: BatchOrder
    """Which clips make up each batch."""
    teachers: Mapping[str, Teacher | Mixture]
    student: Student
    terms: Mapping[str, Term]
    """The recipe's, fitted to the data."""
    missing: tuple[str, ...]
    """Why videos of the list are left out, a sentence each."""

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The student, with its connectors, and the models of the teachers."""
        return self.student, *(one.model for one in self.teachers.values() if isinstance(one, Teacher))

    @property
    def taken(self) -> dict[str, dict[str, Any]]:
        """What each term took from the data: field -> value, as plain data."""
        found = {}
        for name, term in self.terms.items():
            fields = differing_fields(to_plain(self.recipe.objective[name].loss), to_plain(term.loss))
            found[name] = {one: value for one, (_, value) in fields.items()}
        return found

    def batches(self, steps: range) -> Iterator[Batch]:
        """The batches of some steps, counted from 0, as the loss is to see them; see `_served`."""
        pieces, shuffling = self.student.objective.pieces, shuffling_parties(self.terms)
        for batch in agreed(_not_empty(_served(self.recipe, self.clips, self.order.over(steps), self.device))):
            yield with_shuffled(batch, pieces, shuffling) if pieces and batch.id else batch


def assemble(
    recipe: Recipe,
    *,
    terms: Mapping[str, Term] | None = None,
    teachers: Mapping[str, Teacher | Mixture] | None = None,
    memory: FrameMemory | None = None,
    console: Console | None = None,
) -> Assembly:
    """Makes a recipe's clips, teachers and student.

    Args:
        recipe: what to run.
        terms: the recipe's, where they were fitted to the data before; None fits them.
        teachers: loaded teachers to use again; None loads those that the recipe names.
        memory: decoded videos to use again, for recipes with `data.in_memory`.
        console: where to say what is left out; None says nothing.

    Raises:
        ValueError: for anything in the recipe that can't work.
        VideoError: for a broken video, unless `data.on_bad_video` is "skip".
    """
    console = console or Console(quiet=True)
    recipe = recipes.anchored(recipe)
    device = recipe.machine.find()
    manifest = recipe.data.manifest()
    if recipe.data.val_split and manifest.multi_label != (recipe.metric == "map"):
        several = "several labels a video: set metric to map" if manifest.multi_label else "one label a video: not map"
        raise ValueError(f"{manifest.source} has {several} (metric is {recipe.metric}), or set data.val_split to None")
    mixtures = {name: source for name, source in recipe.teachers.items() if isinstance(source, Mixture)}
    check_terms(recipe.objective, list(recipe.teachers), mixtures)
    recipe.weighting.build(list(recipe.objective))
    policy = recipe.data.on_bad_video
    train_set, missing = leave_out_bad(training_videos(manifest, recipe), on_bad_video=policy)
    val_set = None
    if recipe.data.val_split:
        # A substitute would make it another test: validation leaves out.
        val_set, missing_val = leave_out_bad(manifest.split(recipe.data.val_split), on_bad_video=policy)
        missing += missing_val
    if not manifest.has_splits:
        console.print(f"{manifest.source} names no splits: a fifth of it, by a hash of its names, is kept for testing")
    check_clips(
        recipe.objective,
        batch_size=recipe.data.batch_size,
        unlabelled=recipe.data.unlabelled_per_batch,
        mixes=recipe.data.mix is not None,
        several_labels=manifest.multi_label,
    )
    _check_parts(recipe)
    _warn_of_leaks(recipe, manifest, console)
    if teachers is None:
        teachers = load_teachers(recipe, manifest.classes)

    torch.manual_seed(recipe.seed)
    model = recipe.student.build(manifest.classes)
    if model.input is None or not model.has_logits:
        raise ValueError(f"a student tells classes apart by what it sees or hears, and {type(model).__name__} does not")
    check_classes(model.classes, manifest.classes, model="the student", data=recipe.data.path)
    specs = view_specs(model, teachers)
    memory = (memory or FrameMemory()) if recipe.data.in_memory else None
    clips = clip_dataset(train_set, recipe, specs, memory, train=True, unseen=stored_teachers(teachers))
    val_clips = clip_dataset(val_set, recipe, {"student": specs["student"]}, memory, train=False) if val_set else None
    _check_stored(recipe, clips, teachers, console)
    order = _order(clips, recipe, console)
    if terms is None:
        terms = fitted(recipe, clips, order, teachers)
    student = Student(model, terms, teachers, recipe.weighting).to(device)
    if student.objective.pieces:
        check_pieces(student.objective.pieces, shuffling_parties(terms), specs)
    return Assembly(recipe, device, clips, val_clips, order, teachers, student, terms, missing)


def stored_teachers(teachers: Mapping[str, Teacher | Mixture]) -> dict[str, Teacher]:
    """Those whose outputs are stored: they never run, and nobody makes their views."""
    return {name: one for name, one in teachers.items() if isinstance(one, Teacher) and one.stored is not None}


def shuffling_parties(terms: Mapping[str, Term]) -> set[str]:
    """Whose views are wanted shuffled too."""
    return {"student", *(term.teacher for term in terms.values() if term.loss.pieces)}


@torch.no_grad()
def fitted(
    recipe: Recipe, clips: ClipDataset, order: BatchOrder, teachers: Mapping[str, Teacher | Mixture]
) -> dict[str, Term]:
    """The recipe's terms, with what they take from the data: how many clips a class has; a temperature, or the moments
    of features, from what the teachers say of the run's first batches."""
    found = Counter(name for video in clips.videos for name in video.names)
    counts = tuple(found[name] for name in clips.classes)
    wanting = {term.teacher for term in recipe.objective.values() if term.loss.needs_calibration}
    said: dict[str, list[Outputs]] = {name: [] for name in wanting}
    if wanting:
        # Every process looks at the clips of all, and finds the same.
        first = order.over(range(min(CALIBRATION_BATCHES, recipe.optim.steps)), whole=True)
        device = recipe.machine.find()
        for batch in _served(recipe, clips, first, device):
            if not batch.id:
                continue  # the loop says of which videos
            with recipe.machine.autocast(device):
                targets = all_targets(teachers, batch)
            for name in wanting:
                one = targets[name]
                said[name].append(one if one.known is None else one.at(one.known))
    facts = {name: Facts(counts, _joined(said[name])) for name in wanting}
    return {
        name: replace(term, loss=term.loss.fitted(facts.get(term.teacher, Facts(counts))))
        for name, term in recipe.objective.items()
    }


def training_videos(manifest: Manifest, recipe: Recipe) -> Manifest:
    """What a recipe trains on: its training split, and the split "unlabelled" where it uses clips without labels.

    Raises:
        ValueError: if the recipe takes every video of a list that keeps some for validation or test.
    """
    if recipe.data.train_split is None and manifest.has_splits:
        splits = sorted({video.split for video in manifest.videos if video.split is not None})
        raise ValueError(
            f"{manifest.source} has the splits {', '.join(splits)}: name the one to train on with --data.train-split"
        )
    chosen = manifest.split(recipe.data.train_split)
    if not recipe.data.unlabelled_per_batch:
        return chosen
    more = (replace(video, label=None) for video in manifest.videos if video.split == "unlabelled")
    return replace(chosen, videos=(*chosen.videos, *more))


def load_teachers(recipe: Recipe, classes: Sequence[str]) -> dict[str, Teacher | Mixture]:
    """The recipe's teachers, on its device; on the CPU those whose outputs are stored.

    Raises:
        ValueError: if one is not there, what is wanted of it is not stored, or its classes are not the data's and a
            term needs them to be.
    """
    device = recipe.machine.find()
    store = None if recipe.stored is None else StoredOutputs(recipe.stored)
    teachers: dict[str, Teacher | Mixture] = {}
    for name, source in recipe.teachers.items():
        # Whoever listens to a mixture listens to its parts.
        heard_as = {name} | {mix for mix, one in recipe.teachers.items() if isinstance(one, Mixture) and name in one.of}
        listening = [term for term in recipe.objective.values() if term.loss.needs_teacher and term.teacher in heard_as]
        if not listening:
            raise ValueError(f"no term of the objective listens to teacher {name!r}: leave it out, or add one")
        if isinstance(source, Mixture):
            teachers[name] = source
            continue
        needs_logits = any(term.needs_teacher_logits for term in listening)
        if isinstance(source, PublishedTeacher):
            model = _published(source.model, classes, name=name, needs_logits=needs_logits)
        else:
            model = load_model(source.checkpoint, trust=source.trust)
        if needs_logits:
            wanting = [term for term, one in recipe.objective.items() if one in listening and one.needs_teacher_logits]
            _check_logits(model, classes, wanting, name=name, data=recipe.data.path)
        taps = wanted_taps(recipe.objective, name)
        if store is None or model.input is None:
            teacher = Teacher(model.to(device), taps, remember=source.remember)
        else:
            shuffled = any(term.loss.pieces for term in listening)
            raw = any(term.loss.needs_raw_logits for term in listening)
            stored = store.teacher(name, taps, shuffled=shuffled, needs_raw_logits=raw)
            teacher = Teacher(model, taps, stored=stored)
        is_control = isinstance(source, TrainedTeacher) and source.shuffled
        teachers[name] = teacher.shuffled() if is_control else teacher
    return teachers


def parties(recipe: Recipe) -> dict[str, Callable[[], Model[Any]]]:
    """What builds the recipe's student and teachers, without published weights: for a look at them.

    A list that is not there yet is taken to have two classes.
    """
    there = is_url(recipe.data.path) or Path(recipe.data.path).exists()
    classes = recipe.data.manifest().classes if there else ("one class", "another")

    def build(config: ModelConfig) -> Model[Any]:
        return config.build(classes, pretrained=False).eval()

    found: dict[str, Callable[[], Model[Any]]] = {"student": partial(build, recipe.student)}
    for name, source in recipe.teachers.items():
        if isinstance(source, PublishedTeacher):
            found[name] = partial(build, source.model)
        elif isinstance(source, TrainedTeacher):
            found[name] = partial(load_model, source.checkpoint, trust=source.trust)
    return found


def view_specs(student: Model[Any], teachers: Mapping[str, Teacher | Mixture]) -> dict[str, ViewSpec]:
    """What the loader is to make for every party that takes a view."""
    models = {"student": student} | {name: one.model for name, one in teachers.items() if isinstance(one, Teacher)}
    return {party: model.input for party, model in models.items() if model.input is not None}


def _served(recipe: Recipe, clips: ClipDataset, order: BatchOrder, device: torch.device) -> Iterator[Batch]:
    """The batches of `order`, on the device, mixed if the recipe mixes; an empty one where no clip could be read."""
    served = batches(
        clips,
        order,
        workers=recipe.data.workers,
        on_bad_video=recipe.data.on_bad_video,
        time_limit=recipe.data.time_limit,
    )
    for step, batch in enumerate(on_device(served, device), start=order.steps.start + 1):
        if batch.id and recipe.data.mix is not None:
            batch = mixed(batch, recipe.data.mix, num_classes=len(clips.classes), seed=recipe.seed, step=step)
        yield batch


def _check_parts(recipe: Recipe) -> None:
    """Raises a `ValueError` where parts of a batch would not be alike in all processes: batch normalisation, and losses
    between clips, would see others than on one."""
    unlabelled = recipe.data.unlabelled_per_batch
    for kind, clips in (("labelled", recipe.data.batch_size - unlabelled), ("unlabelled", unlabelled)):
        if clips % (recipe.optim.accumulate * world_size()):
            raise ValueError(
                f"{clips} {kind} clips a batch can't be cut into {recipe.optim.accumulate} equal parts in each of "
                f"{world_size()} processes: change data.batch_size, data.unlabelled_per_batch or optim.accumulate"
            )


def _not_empty(source: Iterator[Batch]) -> Iterator[Batch]:
    """Raises a `ValueError` where a process has no clip: losses between clips, and norms, need some of each."""
    for batch in source:
        if not batch.id and is_distributed():
            raise ValueError(
                f"no clip of process {rank()}'s part of a batch could be read; the first: {batch.skipped[0]} Take "
                "larger batches or fewer processes, or --on-bad-video substitute"
            )
        yield batch


def _warn_of_leaks(recipe: Recipe, manifest: Manifest, console: Console) -> None:
    """Says of which validation and test clips of the list a teacher knows the labels."""
    kept = tuple(
        video
        for video in manifest.videos
        if is_test(video.split) or (recipe.data.val_split is not None and video.split == recipe.data.val_split)
    )
    for name, source in recipe.teachers.items() if recipe.data.train_split is not None else ():
        seen = isinstance(source, TrainedTeacher) and trained_on(source.checkpoint, replace(manifest, videos=kept))
        if seen:
            console.print(
                f"careful: teacher {name!r} was trained on {len(seen)} of the {len(kept)} clips that are kept for "
                f"validation and testing, or on others of the same source, such as {seen[0]}: what it passes on of "
                "them makes scores too good"
            )


def _published(config: ModelConfig, classes: Sequence[str], *, name: str, needs_logits: bool) -> Model[Any]:
    """A teacher as it was published: with its own head, unless it fits any classes or its logits are not wanted."""
    if config.fits_any_classes:
        return config.build(classes)
    if not config.is_published:
        raise ValueError(
            f"teacher {name!r} is not trained: name the `weights` of its {type(config).__name__} (of a backbone over "
            'frames those are for temporal="average"), or a checkpoint as a TrainedTeacher'
        )
    model = config.build(None)
    if needs_logits and nameless(model.classes) and len(model.classes) == len(classes):
        warnings.warn(
            f"teacher {name!r} numbers its {len(classes)} classes and does not name them: they are taken to be the "
            f"data's, in the data's order, {classes[0]!r} to {classes[-1]!r}",
            stacklevel=3,
        )
        model.classes = tuple(classes)
    return model


def _check_logits(model: Model[Any], classes: Sequence[str], terms: Sequence[str], *, name: str, data: str) -> None:
    what = f"leave out the term {' and '.join(terms)}, or fine-tune it on these classes"
    if not model.has_logits:
        raise ValueError(f"a term wants the class probabilities of teacher {name!r}, which has no classes: {what}")
    try:
        check_classes(model.classes, classes, model=f"teacher {name!r}", data=data)
    except ValueError as error:
        raise ValueError(f"{error}; class probabilities can't be compared then: {what}") from error


def _check_stored(
    recipe: Recipe, clips: ClipDataset, teachers: Mapping[str, Teacher | Mixture], console: Console
) -> None:
    """Raises a `ValueError` if what is stored is of other clips, views or teachers; names clips that lack outputs."""
    stored = stored_teachers(teachers)
    if recipe.stored is None:
        if recipe.audit:
            raise ValueError("audit compares stored outputs with new ones, and the recipe has none: set stored")
        return
    if not stored:
        raise ValueError(
            f"no teacher of the recipe looks or listens: {recipe.stored} stands in for none, set it to None"
        )
    store = StoredOutputs(recipe.stored)
    made_from = fingerprint(clips, {name: one.model for name, one in stored.items()})
    pieces = max(term.loss.pieces for term in recipe.objective.values())
    assert recipe.data.views is not None
    store.check(clips, made_from, views=recipe.data.views, pieces=pieces, notify=console.print)
    if bad := store.unreadable(clips):
        named = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        console.print(f"nothing is stored of views of {len(bad)} clips, which couldn't be read: {named}")


def clip_dataset(
    manifest: Manifest,
    recipe: Recipe,
    specs: Mapping[str, ViewSpec],
    memory: FrameMemory | None,
    *,
    train: bool,
    unseen: Collection[str] = (),
) -> ClipDataset:
    """The recipe's clips, in training views or in test views.

    Args:
        manifest: which.
        recipe: says how they are read and varied.
        specs: what every party wants of them, the student first.
        memory: where decoded videos are kept; None reads the files.
        train: whether views are varied.
        unseen: parties whose views are not made.
    """
    return ClipDataset(
        manifest,
        specs,
        augment=recipe.data.augment if train else None,
        seed=recipe.data.view_seed,
        memory=memory,
        backend=recipe.data.backend,
        unseen=unseen,
    )


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """Clips of several batches in one."""
    if not parts or not sum(len(values) for one in parts for values in _values(one)):
        raise ValueError("a term is fitted to what its teacher says, and it says nothing of the first clips")
    logits = None if parts[0].logits is None else torch.cat([one.logits for one in parts if one.logits is not None])
    features = {
        tap: FeatureMap(
            torch.cat([one.features[tap].values for one in parts]),
            torch.cat([one.features[tap].times for one in parts]),
        )
        for tap in parts[0].features
    }
    return Outputs(logits, features)


def _values(outputs: Outputs) -> list[Tensor]:
    found = [feature_map.values for feature_map in outputs.features.values()]
    return found if outputs.logits is None else [*found, outputs.logits]


def _order(clips: ClipDataset, recipe: Recipe, console: Console) -> BatchOrder:
    labels = [clips.label(index) for index in range(len(clips))]
    unlabelled = labels.count(UNLABELLED)
    if unlabelled and not recipe.data.unlabelled_per_batch:
        console.print(
            f"{unlabelled} of {len(labels)} clips have no label and are left out (data.unlabelled_per_batch is 0)",
        )
    if recipe.data.unlabelled_per_batch and all(term.loss.needs_labels for term in recipe.objective.values()):
        raise ValueError("every term of the objective needs labels: data.unlabelled_per_batch must be 0")
    if clips.multi_label and recipe.data.class_balance:
        raise ValueError("clips with several labels are of no one class to balance: data.class_balance must be 0")
    return BatchOrder(
        labels,
        batch_size=recipe.data.batch_size,
        unlabelled_per_batch=recipe.data.unlabelled_per_batch,
        seed=recipe.seed,
        steps=range(recipe.optim.steps),
        views=recipe.data.views,
        repeats=recipe.data.repeats,
        spread=recipe.data.spread,
        rank=rank(),
        world_size=world_size(),
        class_balance=recipe.data.class_balance,
    )
