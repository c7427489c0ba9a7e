"""Runs a recipe: the loop, in the open, from clips to a trained student."""

import json
import shlex
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from videokd import recipe as recipes
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.loader import batches, leave_out_bad
from videokd.clips.manifest import Manifest, is_url
from videokd.clips.mixing import mixed
from videokd.clips.order import BatchOrder
from videokd.clips.shuffling import check_pieces, with_shuffled
from videokd.config import differing_fields, from_plain, to_plain
from videokd.contracts import UNLABELLED, FeatureMap, Outputs, Sound, ViewSpec, labelled
from videokd.distill import Student, Term, check_clips, check_terms, wanted_taps
from videokd.evaluate import predict, scores
from videokd.losses import Facts
from videokd.machine import seed_step, terminal
from videokd.models import Model, ModelConfig, check_classes, load_model, save_model
from videokd.models.cost import cost
from videokd.models.model import nameless
from videokd.recipe import PublishedTeacher, Recipe, TrainedTeacher
from videokd.run_folder import RunFolder, write_text
from videokd.teachers import Mixture, Teacher, all_targets
from videokd.weighting import FixedWeights

LOG_EVERY = 10  # steps
CALIBRATION_BATCHES = 8


class Interrupted(Exception):
    """Ctrl-C: the run wrote a checkpoint and stopped."""

    def __init__(self, step: int, go_on: str) -> None:
        super().__init__(f"stopped after step {step}; go on with: {go_on}")
        self.step = step


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    teachers: Mapping[str, Teacher | Mixture] | None = None,
    memory: FrameMemory | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains the recipe's student and leaves it, with its log, in `folder`; returns what summary.json says.

    Args:
        recipe: what to run.
        folder: of the run; must not hold one yet, unless `resume`.
        resume: go on from the folder's last checkpoint, to the same weights as an uninterrupted run.
        teachers: loaded teachers to use again; None loads those that the recipe names.
        memory: decoded videos to use again, for recipes with `data.in_memory`.
        console: where to report; None for the terminal.

    Raises:
        ValueError: before the first step, for anything in the recipe that can't work; or at a loss that is not finite.
        VideoError: for a broken video, unless `data.on_bad_video` is "skip".
        Interrupted: after Ctrl-C.
    """
    console = console or terminal()
    started = time.monotonic()
    recipe = recipes.anchored(recipe)
    device = recipe.machine.find()
    run = RunFolder(folder, recipe=recipes.dump(recipe), resume=resume)
    manifest = recipe.data.manifest()
    if manifest.multi_label and recipe.data.val_split:
        raise ValueError(
            f"{manifest.source} has several labels a video, and they can't be scored yet: set val_split to None"
        )
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
    if teachers is None:
        teachers = load_teachers(recipe, manifest.classes)

    torch.manual_seed(recipe.seed)
    model = recipe.student.build(manifest.classes)
    if model.input is None or not model.has_logits:
        raise ValueError(f"a student tells classes apart by what it sees or hears, and {type(model).__name__} does not")
    check_classes(model.classes, manifest.classes, model="the student", data=recipe.data.path)
    specs = view_specs(model, teachers)
    memory = (memory or FrameMemory()) if recipe.data.in_memory else None
    clips = _dataset(train_set, recipe, specs, memory, train=True)
    val_clips = _dataset(val_set, recipe, {"student": specs["student"]}, memory, train=False) if val_set else None
    order = _order(clips, recipe, console)
    begun = resume and run.fitted_path.is_file()
    terms = (
        from_plain(json.loads(run.fitted_path.read_text(encoding="utf-8")))
        if begun
        else fitted(recipe, clips, order, teachers)
    )
    found = {
        name: differing_fields(to_plain(recipe.objective[name].loss), to_plain(terms[name].loss)) for name in terms
    }
    for name, fields in found.items() if not begun else ():
        for one, (_, value) in fields.items():
            console.print(f"{name}: {one} {value if not isinstance(value, list) else 'taken from the training set'}")
    student = Student(model, terms, teachers, recipe.weighting).to(device)
    objective, pieces = student.objective, student.objective.pieces
    shuffling = {"student", *(term.teacher for term in terms.values() if term.loss.pieces)}
    if pieces:
        check_pieces(pieces, shuffling, specs)
    optimizer = recipe.optim.build(student)
    # Everything that could be refused has been: from here on there is a run.
    run.begin()
    if not begun and any(found.values()):
        write_text(run.fitted_path, json.dumps(to_plain(terms), indent=2) + "\n")
    start = run.restore(student, optimizer) if resume else 0
    order.steps = range(start, recipe.optim.steps)
    if memory is not None:
        _fill(memory, [clips, *([val_clips] if val_clips else [])], console)

    skipped: dict[str, None] = {}
    for reason in missing:
        _name_once(reason, skipped, console)
    silent: Counter[str] = Counter()
    val_top1, done, seen_clips, clock = None, start, 0, _Clock()
    student.train()
    with _Stop() as stop, _progress(console) as progress, _saving_on_error(lambda: run.save(student, optimizer, done)):
        bar = progress.add_task(run.path.name, total=recipe.optim.steps, completed=start, detail="")
        for step, batch in enumerate(
            batches(
                clips,
                order,
                workers=recipe.data.workers,
                on_bad_video=policy,
                time_limit=recipe.data.time_limit,
            ),
            start=start + 1,
        ):
            for reason in batch.skipped:
                _name_once(reason, skipped, console)
            if not batch.id:
                raise ValueError(f"no clip of step {step}'s batch could be read; the first: {batch.skipped[0]}")
            silent.update({party: int((~s.heard).sum()) for party, s in batch.clips.items() if isinstance(s, Sound)})
            batch = batch.to(device)
            if recipe.data.mix is not None:
                batch = mixed(batch, recipe.data.mix, num_classes=len(clips.classes), seed=recipe.seed, step=step)
            if pieces:
                batch = with_shuffled(batch, pieces, shuffling)
            seed_step(recipe.seed, step)
            lr = recipe.optim.lr_at(step - 1)
            for group in optimizer.param_groups:
                group["lr"] = lr

            with recipe.machine.autocast(device):
                targets = all_targets(teachers, batch)
                outputs = student(batch.clips["student"], batch.shuffled.get("student"))
            losses = objective(outputs, targets, batch.label, ids=batch.id, progress=step / recipe.optim.steps)
            _check_finite(losses, step)
            losses["total"].backward()
            limit = float("inf") if recipe.optim.clip_norm is None else recipe.optim.clip_norm
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad()

            done = step
            seen_clips += len(batch.id)
            last = step == recipe.optim.steps
            if step % LOG_EVERY == 0 or last:
                for party, clips_without in silent.items():
                    if clips_without == seen_clips:
                        raise ValueError(
                            f"none of the first {seen_clips} clips has sound, and {party} listens: leave it out, or "
                            "train on videos with sound"
                        )
                row = {name: loss.item() for name, loss in losses.items()}
                row |= {"lr": lr, "grad_norm": norm.item()}
                if not isinstance(recipe.weighting, FixedWeights) or any(t.warmup or t.decay for t in terms.values()):
                    row |= {f"weight.{name}": weight.item() for name, weight in objective.weights.items()}
                known = labelled(batch.label)
                if known.any() and batch.label.ndim == 1:  # mixed clips are of no one class
                    row["train_top1"] = (outputs.logits.argmax(dim=1) == batch.label)[known].float().mean().item()
                run.log({"step": step, **row})
                progress.update(bar, detail=f"loss {row['total']:.3f}, {seen_clips / clock.seconds():.0f} clips/s")
            if val_clips is not None and (step % recipe.validate_every == 0 or last):
                with clock.stopped():
                    val_top1 = _validate(model, val_clips, recipe)
                run.log({"step": step, "val_top1": val_top1})
            if not console.is_terminal and (step % recipe.validate_every == 0 or last):
                score = "" if val_top1 is None else f", validation top-1 {val_top1:.1%}"
                rate = f"{seen_clips / clock.seconds():.0f} clips/s"
                console.print(f"{run.path.name}: step {step}, loss {losses['total'].item():.3f}, {rate}{score}")
            progress.update(bar, completed=step)
            if stop.requested or (step % recipe.checkpoint_every == 0 and not last):
                run.save(student, optimizer, step)
            if stop.requested and not last:
                raise Interrupted(step, f"videokd train --resume {shlex.quote(str(run.path))}")

    if val_clips is not None and val_top1 is None:
        val_top1 = _validate(model, val_clips, recipe)
    model.eval()
    price = cost(model)
    summary: dict[str, Any] = {
        "steps": recipe.optim.steps,
        "seconds": time.monotonic() - started,
        "clips_per_second": seen_clips / clock.seconds(),
        "params": price.params,
        "macs": price.macs,
        "val_top1": val_top1,
        "skipped": list(skipped),
        "device": device.type,
        "fitted": {f"{name}.{one}": value for name, fields in found.items() for one, (_, value) in fields.items()},
    }
    if silent:
        summary["clips_without_sound"] = dict(silent)
    write_text(run.path / "summary.json", json.dumps(summary, indent=2) + "\n")
    save_model(model, run.path)
    run.checkpoint_path.unlink(missing_ok=True)
    return summary


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
        order.steps = range(min(CALIBRATION_BATCHES, recipe.optim.steps))
        device = recipe.machine.find()
        policy, limit = recipe.data.on_bad_video, recipe.data.time_limit
        for step, batch in enumerate(
            batches(clips, order, workers=recipe.data.workers, on_bad_video=policy, time_limit=limit), start=1
        ):
            if not batch.id:
                continue  # the loop says of which videos
            if recipe.data.mix is not None:
                batch = mixed(batch, recipe.data.mix, num_classes=len(clips.classes), seed=recipe.seed, step=step)
            with recipe.machine.autocast(device):
                targets = all_targets(teachers, batch.to(device))
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
    """The recipe's teachers, on its device.

    Raises:
        ValueError: if one is not there, or its classes are not the data's and a term needs them to be.
    """
    device = recipe.machine.find()
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
        teachers[name] = Teacher(model.to(device), taps, remember=source.remember)
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


def _dataset(
    manifest: Manifest, recipe: Recipe, specs: Mapping[str, Any], memory: FrameMemory | None, *, train: bool
) -> ClipDataset:
    return ClipDataset(
        manifest,
        specs,
        augment=recipe.data.augment if train else None,
        seed=recipe.data.view_seed,
        memory=memory,
        backend=recipe.data.backend,
    )


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """Clips of several batches in one."""
    if not parts or not sum(len(values) for one in parts for values in _values(one)):
        raise ValueError("a term is fitted to what its teacher says, and it says nothing of the first clips")
    logits = None if parts[0].logits is None else torch.cat([one.logits for one in parts if one.logits is not None])
    features = {
        tap: FeatureMap(
            *(torch.cat([getattr(one.features[tap], side) for one in parts]) for side in ("values", "times"))
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
    return BatchOrder(
        labels,
        batch_size=recipe.data.batch_size,
        unlabelled_per_batch=recipe.data.unlabelled_per_batch,
        seed=recipe.seed,
        steps=range(recipe.optim.steps),
        views=recipe.data.views,
        repeats=recipe.data.repeats,
        spread=recipe.data.spread,
    )


def _fill(memory: FrameMemory, datasets: Sequence[ClipDataset], console: Console) -> None:
    with _progress(console) as progress:
        bar = progress.add_task("decoding", total=sum(map(len, datasets)), detail="")
        for dataset in datasets:
            for _ in memory.fill(dataset):
                progress.advance(bar)


def _validate(model: Model[Any], clips: ClipDataset, recipe: Recipe) -> float:
    found = predict(
        model,
        clips,
        machine=recipe.machine,
        workers=recipe.data.workers,
        on_bad_video="error" if recipe.data.on_bad_video == "error" else "skip",
        time_limit=recipe.data.time_limit,
    )
    top1: float = scores(found)["top1"]
    return top1


@contextmanager
def _saving_on_error(save: Callable[[], None]) -> Iterator[None]:
    """Keeps what was learned before a bad video or a loss that is not finite: the weights are those before it."""
    try:
        yield
    except ValueError:
        save()
        raise


def _check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    if not losses["total"].isfinite():
        wrong = [name for name, loss in losses.items() if not loss.isfinite()]
        raise ValueError(f"at step {step} these losses are not finite: {', '.join(wrong)}; try a lower optim.lr")


def _name_once(reason: str, named: dict[str, None], console: Console) -> None:
    if reason not in named:
        named[reason] = None
        console.print(f"skipped: {reason}")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class _Clock:
    """Seconds since it was made, without those in `stopped`."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._start += time.monotonic() - before


class _Stop:
    """Turns the first Ctrl-C into a request to stop after the step; the second stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "_Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
