"""Steps of training: on labels alone, with the teacher running, and on what the teacher said before."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from videokd.acceleration import compile_in_place, to_channels_last
from videokd.assembly import Assembly, assemble, parties
from videokd.averaging import WeightAverage
from videokd.bench.contenders import Contender
from videokd.bench.subjects import without_published_weights
from videokd.clips.manifest import Manifest, write_manifest
from videokd.config import code_of
from videokd.contracts import Batch
from videokd.distill import Step, Term
from videokd.gradients import backward
from videokd.label import label
from videokd.losses import CrossEntropy
from videokd.models import save_model
from videokd.recipe import PublishedTeacher, Recipe, TeacherSource, TrainedTeacher
from videokd.teachers import all_targets

BATCHES = 4
"""That every step contender looks at, over and over: decoding has no part in a step's time."""


def step_contenders(recipe: Recipe, manifest: Manifest, *, folder: Path, clips: int) -> list[Contender]:
    """The steps that a recipe can make, over a few batches of `manifest`, as the training loop computes them: forward,
    losses, backward, optimiser and running mean of the weights, without its logging. The learning rate, and what
    `freeze` leaves to learn, are those of the first step.

    Args:
        recipe: without teachers, only its own step is timed.
        manifest: some of the recipe's training clips.
        folder: for a list of these clips, and for stored outputs.
        clips: of a batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "clips.jsonl"
    split = recipe.data.train_split or "train"
    labelled = [one for one in manifest.videos if one.names]
    kept = tuple(replace(one, split=split) for one in labelled)
    if not kept:
        raise ValueError(f"no clip of {manifest.source} has a label: no step can be made")
    write_manifest(replace(manifest, videos=kept), path)
    # All of them: a few clips may not be of every class.
    names = folder / "classes.txt"
    names.write_text("".join(f"{number} {name}\n" for number, name in enumerate(manifest.classes)), encoding="utf-8")
    data = replace(
        recipe.data,
        path=str(path),
        root=None,
        class_names=str(names),
        train_split=split,
        val_split=None,
        batch_size=clips,
        unlabelled_per_batch=0,
        views=1,
        workers=0,
        in_memory=False,
    )
    plain = replace(
        recipe,
        data=data,
        student=without_published_weights(recipe.student),
        optim=replace(recipe.optim, accumulate=1),
        stored=None,
        audit=0.0,
    )
    hard = {name: term for name, term in recipe.objective.items() if not term.loss.needs_teacher}
    alone = replace(plain, teachers={}, objective=hard or {"hard": Term(loss=CrossEntropy())})
    found = [_contender("training step", alone, clips, lambda: _assembled(alone))]
    if recipe.teachers:
        online = lambda: _assembled(_with_teachers(plain, folder))  # noqa: E731
        found.append(_contender("online step", plain, clips, online))
        found.append(_contender("stored step", plain, clips, lambda: _on_stored(plain, folder)))
    return found


def _contender(stage: Any, recipe: Recipe, clips: int, made: Callable[[], Assembly]) -> Contender:
    return Contender(party="student", stage=stage, variant=_variant(recipe), clips=clips, make=lambda: _steps(made()))


def _variant(recipe: Recipe) -> str:
    machine = recipe.machine
    parts = [machine.precision if machine.precision != "fp32" else "", "" if machine.compile == "no" else "compile"]
    return "-".join(part for part in reversed(parts) if part) or "eager"


def _assembled(recipe: Recipe) -> Assembly:
    return assemble(recipe, console=Console(quiet=True))


def _with_teachers(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with teachers that remember nothing. Published ones are built with random weights for the data's
    classes, and lie in `folder`: their arithmetic is the same, and nobody has to fetch them."""
    builders = parties(recipe)
    sources: dict[str, TeacherSource] = {}
    for name, source in recipe.teachers.items():
        if isinstance(source, TrainedTeacher):
            sources[name] = replace(source, remember=False)
        elif isinstance(source, PublishedTeacher):
            there = folder / "teachers" / name
            if not there.is_dir():
                save_model(builders[name](), there)
            sources[name] = TrainedTeacher(checkpoint=str(there), trust=(*sorted(code_of(source)),))
        else:
            sources[name] = source
    return replace(recipe, teachers=sources)


def _on_stored(recipe: Recipe, folder: Path) -> Assembly:
    """With the teachers' outputs in a real store, read at every step."""
    recipe, outputs = _with_teachers(recipe, folder), folder / "stored"
    label(recipe, outputs, batch_size=recipe.data.batch_size, console=Console(quiet=True))
    return _assembled(replace(recipe, stored=str(outputs)))


def _steps(made: Assembly) -> Callable[[], object]:
    """What makes a step at every call."""
    recipe, device, student = made.recipe, made.device, made.student
    for network in made.networks:
        if recipe.machine.channels_last:
            to_channels_last(network)
        if recipe.machine.compile != "no":
            compile_in_place(network, recipe.machine.compile)
    optimizer = recipe.optim.build(student)
    recipe.optim.set_lr(optimizer, 0)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.machine.precision == "fp16")
    average = None if recipe.optim.ema is None else WeightAverage(student.model, recipe.optim.ema)
    learn = Step(student.train())
    recipe.optim.set_frozen(student.model, recipe.optim.frozen_at(0))
    held: Sequence[Batch] = list(islice(made.batches(range(BATCHES)), BATCHES))
    coming = cycle(held)

    def step() -> None:
        if recipe.machine.compile == "cuda-graphs":
            torch.compiler.cudagraph_mark_step_begin()
        batch = next(coming)
        with recipe.machine.autocast(device):
            targets = all_targets(made.teachers, batch)
        backward(learn, batch, targets, recipe, scaler, progress=0.5)
        if recipe.optim.clip_norm is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.optim.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if average is not None:
            average.update(student.model)

    return step
