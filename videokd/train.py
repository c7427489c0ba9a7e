"""Runs a recipe: the loop, in the open, from clips to a trained student."""

import json
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from videokd import recipe as recipes
from videokd.assembly import assemble
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.config import from_plain, to_plain
from videokd.contracts import Sound, labelled
from videokd.evaluate import predict, scores
from videokd.machine import seed_step, terminal
from videokd.models import Model, save_model
from videokd.models.cost import cost
from videokd.recipe import Recipe
from videokd.run_folder import RunFolder, write_text
from videokd.teachers import Mixture, Teacher, all_targets
from videokd.weighting import FixedWeights

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
    run = RunFolder(folder, recipe=recipes.dump(recipe), resume=resume)
    begun = resume and run.fitted_path.is_file()
    terms = from_plain(json.loads(run.fitted_path.read_text(encoding="utf-8"))) if begun else None
    made = assemble(recipe, terms=terms, teachers=teachers, memory=memory, console=console)
    device, student, model, objective = made.device, made.student, made.student.model, made.student.objective
    for name, fields in made.taken.items() if not begun else ():
        for one, value in fields.items():
            console.print(f"{name}: {one} {value if not isinstance(value, list) else 'taken from the training set'}")
    optimizer = recipe.optim.build(student)
    # Everything that could be refused has been: from here on there is a run.
    run.begin()
    if not begun and any(made.taken.values()):
        write_text(run.fitted_path, json.dumps(to_plain(made.terms), indent=2) + "\n")
    start = run.restore(student, optimizer) if resume else 0
    datasets = [made.clips, *([made.val_clips] if made.val_clips else [])]
    if made.clips.memory is not None:
        _fill(made.clips.memory, datasets, console)

    skipped: dict[str, None] = {}
    for reason in made.missing:
        _name_once(reason, skipped, console)
    silent: Counter[str] = Counter()
    weights_change = not isinstance(recipe.weighting, FixedWeights) or any(
        term.warmup or term.decay for term in made.terms.values()
    )
    val_top1, done, seen_clips, clock = None, start, 0, _Clock()
    student.train()
    with _Stop() as stop, _progress(console) as progress, _saving_on_error(lambda: run.save(student, optimizer, done)):
        bar = progress.add_task(run.path.name, total=recipe.optim.steps, completed=start, detail="")
        for step, batch in enumerate(made.batches(range(start, recipe.optim.steps)), start=start + 1):
            for reason in batch.skipped:
                _name_once(reason, skipped, console)
            if not batch.id:
                raise ValueError(f"no clip of step {step}'s batch could be read; the first: {batch.skipped[0]}")
            silent.update({party: int((~s.heard).sum()) for party, s in batch.clips.items() if isinstance(s, Sound)})
            seed_step(recipe.seed, step)
            lr = recipe.optim.lr_at(step - 1)
            for group in optimizer.param_groups:
                group["lr"] = lr

            with recipe.machine.autocast(device):
                targets = all_targets(made.teachers, batch)
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
                if weights_change:
                    row |= {f"weight.{name}": weight.item() for name, weight in objective.weights.items()}
                known = labelled(batch.label)
                if known.any() and batch.label.ndim == 1:  # mixed clips are of no one class
                    row["train_top1"] = (outputs.logits.argmax(dim=1) == batch.label)[known].float().mean().item()
                run.log({"step": step, **row})
                progress.update(bar, detail=f"loss {row['total']:.3f}, {seen_clips / clock.seconds():.0f} clips/s")
            if made.val_clips is not None and (step % recipe.validate_every == 0 or last):
                with clock.stopped():
                    val_top1 = _validate(model, made.val_clips, recipe)
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

    if made.val_clips is not None and val_top1 is None:
        val_top1 = _validate(model, made.val_clips, recipe)
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
        "fitted": {f"{name}.{one}": value for name, fields in made.taken.items() for one, value in fields.items()},
    }
    if silent:
        summary["clips_without_sound"] = dict(silent)
    write_text(run.path / "summary.json", json.dumps(summary, indent=2) + "\n")
    save_model(model, run.path)
    run.checkpoint_path.unlink(missing_ok=True)
    return summary


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
