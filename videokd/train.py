"""Runs a recipe: the loop, in the open, from clips to a trained student."""

import json
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from videokd import recipe as recipes
from videokd.clips.loader import BatchOrder, ClipDataset, FrameMemory, batches, leave_out_missing
from videokd.clips.manifest import Manifest, read_manifest
from videokd.contracts import UNLABELLED
from videokd.distill import Objective, Student, Teacher, all_targets, check_terms, wanted_taps
from videokd.evaluate import predict, scores
from videokd.machine import seed_step
from videokd.models import check_classes, load_model, save_model
from videokd.models.cost import cost
from videokd.recipe import Recipe
from videokd.run_folder import RunFolder, write_text

LOG_EVERY = 10  # steps


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
    teachers: Mapping[str, Teacher] | None = None,
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
    console = console or Console()
    started = time.monotonic()
    device = recipe.machine.find()
    manifest = read_manifest(recipe.data.path)
    check_terms(recipe.objective, list(recipe.teachers))
    policy = recipe.data.on_bad_video
    train_set, missing = leave_out_missing(manifest.split(recipe.data.train_split), on_bad_video=policy)
    val_set = None
    if recipe.data.val_split:
        val_set, missing_val = leave_out_missing(manifest.split(recipe.data.val_split), on_bad_video=policy)
        missing += missing_val
    if teachers is None:
        teachers = load_teachers(recipe, manifest.classes)

    torch.manual_seed(recipe.seed)
    model = recipe.student.build(manifest.classes)
    student = Student(model, recipe.objective, teachers).to(device)
    objective = Objective(recipe.objective)
    optimizer = recipe.optim.build(student)
    run = RunFolder(folder, recipe=recipes.dump(recipe), resume=resume)
    if resume and run.is_finished:
        raise ValueError(f"{run.path} is finished: nothing to resume")
    start = run.restore(student, optimizer) if resume else 0

    specs = {"student": model.config.input} | {name: teacher.model.config.input for name, teacher in teachers.items()}
    memory = (memory or FrameMemory()) if recipe.data.in_memory else None
    clips = _dataset(train_set, recipe, specs, memory, train=True)
    val_clips = _dataset(val_set, recipe, {"student": model.config.input}, memory, train=False) if val_set else None
    order = _order(clips, recipe, range(start, recipe.optim.steps), console)
    if memory is not None:
        _fill(memory, [clips, *([val_clips] if val_clips else [])], console)

    skipped: dict[str, None] = {}
    for reason in missing:
        _name_once(reason, skipped, console)
    seen_clips, loop_started, val_top1 = 0, time.monotonic(), None
    student.train()
    with _Stop() as stop, _progress(console) as progress:
        bar = progress.add_task(run.path.name, total=recipe.optim.steps, completed=start, detail="")
        for step, batch in enumerate(batches(clips, order, workers=recipe.data.workers), start=start + 1):
            for reason in batch.skipped:
                _name_once(reason, skipped, console)
            if not batch.id:
                raise ValueError(f"no clip of step {step}'s batch could be read; the first: {batch.skipped[0]}")
            batch = batch.to(device)
            seed_step(recipe.seed, step)
            for group in optimizer.param_groups:
                group["lr"] = recipe.optim.lr_at(step - 1)

            with recipe.machine.autocast(device):
                targets = all_targets(teachers, batch)
                outputs = student(batch.clips["student"])
            losses = objective(outputs, targets, batch.label, progress=step / recipe.optim.steps)
            _check_finite(losses, step)
            losses["total"].backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.optim.clip_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()

            seen_clips += len(batch.id)
            last = step == recipe.optim.steps
            if step % LOG_EVERY == 0 or last:
                row = {name: loss.item() for name, loss in losses.items()}
                known = batch.label != UNLABELLED
                right = (outputs.logits.argmax(dim=1) == batch.label)[known].float().mean().item()
                run.log(
                    {"step": step, "lr": recipe.optim.lr_at(step - 1), **row, "grad_norm": norm.item()}
                    | ({"train_top1": right} if known.any() else {})
                )
                rate = seen_clips / (time.monotonic() - loop_started)
                progress.update(bar, detail=f"loss {row['total']:.3f}, {rate:.0f} clips/s")
            if val_clips is not None and (step % recipe.validate_every == 0 or last):
                val_top1 = scores(predict(model, val_clips, workers=recipe.data.workers))["top1"]
                run.log({"step": step, "val_top1": val_top1})
                if not console.is_terminal:
                    console.print(
                        f"{run.path.name}: step {step}, loss {losses['total'].item():.3f}, "
                        f"validation top-1 {val_top1:.1%}",
                        highlight=False,
                        soft_wrap=True,
                    )
            progress.update(bar, completed=step)
            if stop.requested or (step % recipe.checkpoint_every == 0 and not last):
                run.save(student, optimizer, step=step)
            if stop.requested and not last:
                raise Interrupted(step, f"videokd train --resume {run.path}")

    model.eval()
    price = cost(model)
    summary = {
        "steps": recipe.optim.steps,
        "seconds": time.monotonic() - started,
        "clips_per_second": seen_clips / (time.monotonic() - loop_started),
        "params": price.params,
        "macs": price.macs,
        "val_top1": val_top1,
        "skipped": list(skipped),
        "device": device.type,
    }
    write_text(run.path / "summary.json", json.dumps(summary, indent=2) + "\n")
    save_model(model, run.path)
    run.checkpoint_path.unlink(missing_ok=True)
    return summary


def load_teachers(recipe: Recipe, classes: Sequence[str]) -> dict[str, Teacher]:
    """The recipe's teachers, on its device.

    Raises:
        ValueError: if one is not there, or its classes are not the data's and a term needs them to be.
    """
    device = recipe.machine.find()
    teachers = {}
    for name, source in recipe.teachers.items():
        model = load_model(source.checkpoint)
        listening = [term for term in recipe.objective.values() if term.loss.needs_teacher and term.teacher == name]
        if not listening:
            raise ValueError(f"no term of the objective listens to teacher {name!r}: leave it out, or add one")
        if any(term.loss.needs_teacher_logits for term in listening):
            check_classes(model.classes, classes, model=f"teacher {source.checkpoint}", data=recipe.data.path)
        taps = wanted_taps(recipe.objective, name)
        teachers[name] = Teacher(model.to(device), taps, remember=source.remember)
    return teachers


def _dataset(
    manifest: Manifest, recipe: Recipe, specs: Mapping[str, Any], memory: FrameMemory | None, *, train: bool
) -> ClipDataset:
    return ClipDataset(
        manifest,
        specs,
        augment=recipe.data.augment if train else None,
        seed=recipe.data.view_seed,
        on_bad_video=recipe.data.on_bad_video,
        memory=memory,
    )


def _order(clips: ClipDataset, recipe: Recipe, steps: range, console: Console) -> BatchOrder:
    labels = [clips.label(index) for index in range(len(clips))]
    unlabelled = labels.count(UNLABELLED)
    if unlabelled and not recipe.data.unlabelled_per_batch:
        console.print(
            f"{unlabelled} of {len(labels)} clips have no label and are left out (data.unlabelled_per_batch is 0)",
            highlight=False,
            soft_wrap=True,
        )
    if recipe.data.unlabelled_per_batch and all(term.loss.needs_labels for term in recipe.objective.values()):
        raise ValueError("every term of the objective needs labels: data.unlabelled_per_batch must be 0")
    return BatchOrder(
        labels,
        batch_size=recipe.data.batch_size,
        unlabelled_per_batch=recipe.data.unlabelled_per_batch,
        seed=recipe.seed,
        steps=steps,
        views=recipe.data.views,
    )


def _fill(memory: FrameMemory, datasets: Sequence[ClipDataset], console: Console) -> None:
    with _progress(console) as progress:
        bar = progress.add_task("decoding", total=sum(map(len, datasets)), detail="")
        for dataset in datasets:
            for _ in memory.fill(dataset):
                progress.advance(bar)


def _check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    if not losses["total"].isfinite():
        wrong = [name for name, loss in losses.items() if not loss.isfinite()]
        raise ValueError(f"at step {step} these losses are not finite: {', '.join(wrong)}; try a lower optim.lr")


def _name_once(reason: str, named: dict[str, None], console: Console) -> None:
    if reason not in named:
        named[reason] = None
        console.print(f"skipped: {reason}", highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


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
