"""Runs a recipe: the loop, in the open, from clips to a trained student."""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videokd import recipe as recipes
from videokd.acceleration import compile_in_place, to_channels_last
from videokd.assembly import Assembly, assemble
from videokd.averaging import WeightAverage
from videokd.checkpoint import State, read_step
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.config import code_of, from_plain, to_plain
from videokd.contracts import Batch
from videokd.disk import held, write_text
from videokd.distill import Step, Term
from videokd.environment import environment
from videokd.evaluate import predict
from videokd.gradients import backward
from videokd.interruption import Interruption, StopSignal, at_once, deferred, stop_requested
from videokd.json_files import read_json
from videokd.label import audit
from videokd.machine import seed_step, terminal
from videokd.metrics import scores
from videokd.models import Model, save_model
from videokd.models.cost import cost
from videokd.norms import synchronise_norms
from videokd.preflight import Report, check
from videokd.processes import (
    is_distributed,
    is_first,
    joined,
    largest_of_all,
    mean_over_processes,
    of_all,
    rank,
    wait_for_all,
    world_size,
)
from videokd.progress import Display, bar
from videokd.recipe import Recipe
from videokd.run_files import read_run_file
from videokd.run_folder import RunFolder, read_metrics, resume_command
from videokd.stopping import Finite, NotFiniteError, Validations
from videokd.tally import Tally
from videokd.teachers import Mixture, Teacher, all_targets
from videokd.timing import Stopwatch, bound_by
from videokd.tracking import Tracked, require, trackers
from videokd.weighting import FixedWeights

LOG_EVERY = 10  # steps
_WORTH_TELLING = 60.0
"""Seconds that a run must still take for a word about what bounds it."""


class Interrupted(Interruption):
    """Ctrl-C or SIGTERM: the run wrote a checkpoint, or is finished.

    Args:
        step: the last one that is kept.
        resume_with: a command; None where the run is finished.
        number: of the signal.
    """

    def __init__(self, step: int, resume_with: str | None, *, number: int | None = None) -> None:
        how = "the last one: the run is finished" if resume_with is None else f"resume with: {resume_with}"
        super().__init__(f"stopped after step {step}{',' if resume_with is None else ';'} {how}", number=number)
        self.step = step


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    or_resume: bool = False,
    teachers: Mapping[str, Teacher | Mixture] | None = None,
    memory: FrameMemory | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains the recipe's student and leaves it, with its log, in `folder`; returns what summary.json says.

    Started by torchrun, all its processes train one student, each on its part of every batch.

    Args:
        recipe: what to run.
        folder: of the run; must not hold one yet, unless `resume`. All processes must see it.
        resume: go on from the folder's last checkpoint, to the same weights as an uninterrupted run.
        or_resume: the same, if the folder holds this very run; begin it if it does not; return its summary if it is
            finished. For jobs that are started again, by torchrun too.
        teachers: loaded teachers to use again; None loads those that the recipe names.
        memory: decoded videos to use again, for recipes with `data.in_memory`.
        console: where to report; None for the terminal.

    Raises:
        ValueError: before the first step, for anything in the recipe that can't work; or at a loss that is not finite.
        VideoError: for a broken video, unless `data.on_bad_video` is "skip".
        OSError: if the folder can't be written; the last checkpoint that could be stays.
        Interrupted: after Ctrl-C or SIGTERM, once the run has begun.
        KeyboardInterrupt: after Ctrl-C before that, or a second one.
    """
    for one in recipe.track:
        require(one)
    with joined(recipe.machine.find()):
        console = (console or terminal()) if is_first() else Console(quiet=True)
        path = Path(folder)
        resume = resume or (or_resume and (path / "recipe.json").is_file())
        written = recipes.dump(recipes.anchored(recipe))
        run = RunFolder(path, recipe=written, trust=code_of(recipe), resume=resume, finished=or_resume)
        if or_resume and run.is_finished:
            console.print(f"{path} is finished")
            return read_run_file(path / "summary.json")
        wait_for_all()  # all have looked at the folder before the first of them writes
        try:
            with ExitStack() as until_the_end:
                return _train(
                    recipe,
                    run,
                    until_the_end,
                    resume=resume,
                    teachers=teachers,
                    memory=memory,
                    console=console,
                )
        except StopSignal as stop:
            if not (path / "recipe.json").is_file():
                raise  # there is no run yet
            if run.is_finished:
                summary = read_run_file(path / "summary.json")
                raise Interrupted(summary["steps"], None, number=stop.number) from None
            step = read_step(run.checkpoint_path) if run.checkpoint_path.is_file() else 0
            raise Interrupted(step, _go_on(path, recipe), number=stop.number) from None


def _train(
    recipe: Recipe,
    run: RunFolder,
    until_the_end: ExitStack,
    *,
    resume: bool,
    teachers: Mapping[str, Teacher | Mixture] | None,
    memory: FrameMemory | None,
    console: Console,
) -> dict[str, Any]:
    started = time.monotonic()
    begun = resume and run.fitted_path.is_file()
    terms = _fitted_terms(run.fitted_path, recipe) if begun else None
    made = assemble(recipe, terms=terms, teachers=teachers, memory=memory, console=console)
    recipe, device, student, model = made.recipe, made.device, made.student, made.student.model
    for name, fields in made.taken.items() if not begun else ():
        for one, value in fields.items():
            console.print(f"{name}: {one} {value if not isinstance(value, list) else 'taken from the training set'}")
    if is_distributed() and recipe.machine.synchronise_norms:
        synchronise_norms(student, device)
    if recipe.audit:
        audit(made, share=recipe.audit, console=console)
    if recipe.machine.channels_last:
        for network in made.networks:
            to_channels_last(network)
    optimizer = recipe.optim.build(student)
    recipe.optim.set_frozen(model, recipe.optim.frozen_at(0))  # refuses what is not there
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.machine.precision == "fp16")
    average = None if recipe.optim.ema is None else WeightAverage(model, recipe.optim.ema)
    state = State(student, optimizer, scaler, average)
    report = None if resume or not recipe.preflight else _preflight(made, run.path, console)
    # Everything that could be refused has been: from here on there is a run.
    if is_first():
        run.path.mkdir(parents=True, exist_ok=True)
        until_the_end.enter_context(held(run.path))
        noted = environment()
        with deferred():
            run.begin()
            run.note_environment(noted)
            if report is not None:
                write_text(run.path / "preflight.json", json.dumps(report.as_plain(), indent=2) + "\n")
            if not begun and any(made.taken.values()):
                write_text(run.fitted_path, json.dumps(to_plain(made.terms), indent=2) + "\n")
    if recipe.machine.compile != "no":
        for network in made.networks:
            compile_in_place(network, recipe.machine.compile)
    wait_for_all()
    if not _seen(run.path / "recipe.json"):
        raise ValueError(f"process {rank()} does not see {run.path}: it must be on a disk that all machines share")
    if resume:
        run.restore(state)
        if len(set(at := of_all(state.step))) > 1:
            raise ValueError(f"processes found different checkpoints in {run.path}, of steps {at}: try again")
        if is_first():
            run.cut_log(state.step)
        wait_for_all()
        how = f"goes on after step {state.step}" if state.step else "has no checkpoint yet, and begins anew"
        console.print(f"{run.path.name}: {how}")
    if made.clips.memory is not None:
        _fill(made.clips.memory, [made.clips, *([made.val_clips] if made.val_clips else [])], console)

    steps, tally = recipe.optim.steps, Tally(state.notes, made.missing, console)
    validated = Validations(recipe, read_metrics(run.path))
    finite, watch = Finite(device), Stopwatch(device)
    weights_change = not isinstance(recipe.weighting, FixedWeights) or any(
        term.warmup or term.decay for term in made.terms.values()
    )
    learn: nn.Module | None = None
    told, frozen = False, False
    row: dict[str, Any] = next((row for row in reversed(read_metrics(run.path)) if "total" in row), {})
    student.train()
    # A step is never cut in two, nor is what the run leaves: a signal is acted on between steps, in validation, or at
    # the end. No process of several stops by itself: the others would wait for it.
    until_the_end.enter_context(deferred(is_patient=is_distributed()))
    with (
        trackers(
            recipe.track if is_first() else (),
            run.path,
            name=run.path.name,
            config=to_plain(recipe),
            resume_step=state.step if resume else None,
        ) as tracked,
        Display(console, run.path.name, steps, state.step) as display,
    ):

        def save() -> None:
            state.notes = tally.notes(display.seconds)
            if is_first():
                run.save(state)

        def validate(clips: ClipDataset) -> None:
            step = state.step
            with display.stopped(), average.in_place_of(model) if average else nullcontext():
                with at_once():
                    found = _validate(model, clips, recipe)
                if validated.add(step, found) and recipe.keep == "best":
                    state.best = {name: one.detach().clone() for name, one in model.state_dict().items()}
            _log(run, tracked, step, found)
            if "val_map" in found:
                display.validated(found["val_map"], "mAP")
            else:
                display.validated(found["val_top1"])

        def is_due(step: int) -> bool:
            """Whether there is a validation after this step."""
            return made.val_clips is not None and (step % recipe.validate_every == 0 or step == steps)

        first = state.step
        until_the_end.enter_context(_saved_when_stopped(run, recipe, state, save))
        if first and is_due(first) and not validated.has(first) and made.val_clips is not None:
            validate(made.val_clips)  # the run was stopped in it
        # A run that was ended before its time, and then killed before it could say so, has no steps left.
        coming = made.batches(range(first, first if validated.enough else steps))
        for step, batch in enumerate(watch.waited(_or_save(_stoppable(coming), save)), start=first + 1):
            if recipe.machine.compile == "cuda-graphs":
                torch.compiler.cudagraph_mark_step_begin()
            tally.add(batch, step)
            seed_step(recipe.seed, step)
            lr = recipe.optim.set_lr(optimizer, step - 1)
            if learn is None or frozen != recipe.optim.frozen_at(step - 1):
                frozen = recipe.optim.frozen_at(step - 1)
                recipe.optim.set_frozen(model, frozen)
                learn = _distributed(Step(student))

            with watch.part("teacher"), recipe.machine.autocast(device):
                targets = all_targets(made.teachers, batch)
            with watch.part("student"):
                losses, right = backward(learn, batch, targets, recipe, scaler, progress=step / steps)
                wrong = finite.wrong(losses, step)
                # No process stops by itself: the others would wait for it.
                said = largest_of_all(2 if wrong else int(stop_requested() is not None))
                if said == 2:
                    raise NotFiniteError(wrong or f"at step {step} losses of another process are not finite")
                scaler.unscale_(optimizer)
                logs = step % LOG_EVERY == 0 or step == steps
                if recipe.optim.clip_norm is not None:
                    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.optim.clip_norm)
                elif logs:
                    norm = torch.nn.utils.get_total_norm(
                        [one.grad for one in student.parameters() if one.grad is not None]
                    )
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                if average is not None:
                    average.update(model)

            state.step, last = step, step == steps
            if logs:
                tally.check_sound()
                row = _row(losses, right) | {"lr": lr, "grad_norm": norm.item()}
                if weights_change:
                    row |= {f"weight.{name}": one.item() for name, one in student.objective.weights.items()}
                _log(run, tracked, step, row)
            display.step(step, clips=len(batch.id) * world_size(), loss=row.get("total"))
            if not told and (shares := watch.per_step()) is not None:
                told = True
                # Preflight said so already, of a new run.
                if report is None and sum(shares.values()) * (steps - step) > _WORTH_TELLING:
                    console.print(f"{run.path.name}: {bound_by(**shares)}")
            due = is_due(step)
            keep = step % recipe.checkpoint_every == 0 and not last
            if (due or keep or said or last) and largest_of_all(int((wrong := finite.of_last_step()) is not None)):
                raise NotFiniteError(wrong or f"at step {step} losses of another process are not finite")
            if due and made.val_clips is not None:
                validate(made.val_clips)
                if validated.enough and not last:
                    last = True
                    console.print(f"stopped at step {step}: {recipe.patience} validations without a new best")
                said = largest_of_all(int(stop_requested() is not None))  # it may have taken long
            if said or keep:
                save()
            if said and not last:
                raise Interrupted(step, _go_on(run.path, recipe))
            if last:
                break

        if recipe.keep == "best" and state.best is not None:
            model.load_state_dict(state.best)
        elif average is not None:
            model.load_state_dict(average.values)
        notes = tally.notes(display.seconds)
        chosen = validated.best if recipe.keep == "best" else validated.last
        summary: dict[str, Any] = {
            "steps": state.step,
            "seconds": notes["seconds"] + time.monotonic() - started - display.seconds,
            "clips_per_second": notes["clips"] / notes["seconds"],
            **_price(model),
            "val_top1": None if chosen is None else chosen.get("val_top1"),
            **({"val_map": chosen["val_map"]} if chosen and "val_map" in chosen else {}),
            "weights_of_step": chosen["step"] if recipe.keep == "best" and chosen else state.step,
            "losses": {name: row[name] for name in ("total", *recipe.objective) if name in row},
            "seconds_per_step": watch.per_step(),
            "skipped": notes["skipped"],
            "device": device.type,
            "processes": world_size(),
            "fitted": {f"{name}.{one}": value for name, fields in made.taken.items() for one, value in fields.items()},
        }
        if notes["silent"]:
            summary["clips_without_sound"] = notes["silent"]
        tracked.finish(summary)
    if is_first():
        write_text(run.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        save_model(model, run.path)
        run.checkpoint_path.unlink(missing_ok=True)
    wait_for_all()
    return summary


def _stoppable(source: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; a signal is acted on where one is waited for, between two steps."""
    while True:
        with at_once():
            batch = next(source, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _saved_when_stopped(run: RunFolder, recipe: Recipe, state: State, save: Callable[[], None]) -> Iterator[None]:
    """Saves what was learned within it, if a signal ends it between two steps."""
    first = state.step
    try:
        yield
    except StopSignal as stop:
        if state.step > first:
            save()
        raise Interrupted(state.step, _go_on(run.path, recipe), number=stop.number) from None


def _or_save(source: Iterator[Batch], save: Callable[[], None]) -> Iterator[Batch]:
    """The batches; what was learned before one that can't be read is saved."""
    try:
        yield from source
    except ValueError:
        save()
        raise


def _fitted_terms(path: Path, recipe: Recipe) -> dict[str, Term]:
    """The terms that a run was begun with, out of its fitted.json.

    Raises:
        ValueError: if they are not terms of the recipe.
    """
    try:
        found = from_plain(read_json(path), trust=code_of(recipe))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if not isinstance(found, dict) or found.keys() != recipe.objective.keys():
        raise ValueError(f"{path} has to hold the terms {', '.join(recipe.objective)} of the recipe")
    for name, term in found.items():
        if not isinstance(term, Term) or type(term.loss) is not type(recipe.objective[name].loss):
            raise ValueError(f"{name!r} of {path} is not the recipe's term of that name")
    return found


def _go_on(run: Path, recipe: Recipe) -> str:
    if is_distributed():
        return "the same command, with --or-resume"
    return resume_command(run, code_of(recipe))


def _seen(path: Path) -> bool:
    """Whether a file that another machine wrote is there: disks that are shared may show it late."""
    for _ in range(60):
        if path.is_file():
            return True
        time.sleep(0.5)
    return False


def _log(run: RunFolder, tracked: Tracked, step: int, row: Mapping[str, float]) -> None:
    if is_first():
        run.log({"step": step, **row})
        tracked.log(step, row)


def _price(model: Model[Any]) -> dict[str, int]:
    found = cost(model.eval())
    return {"params": found.params, "macs": found.macs}


def _preflight(made: Assembly, out: Path, console: Console) -> Report:
    """What preflight found; if it is an error in any process, an error in all."""
    wrong: ValueError | None = None
    try:
        report = check(made, batches=made.recipe.preflight, out=out, console=console)
    except ValueError as error:
        wrong = error
    if largest_of_all(int(wrong is not None)):
        raise wrong or ValueError("preflight found an error in another process")
    return report


def _distributed(step: Step) -> nn.Module:
    """The step, with gradients averaged over all processes; as it is, where there is but one."""
    if not is_distributed():
        return step
    # Static: some models have parameters that a recipe's losses do not reach, and these are always the same. Teachers
    # are not part of it, running statistics are the same everywhere (or each process's own, as told), and queues are
    # filled with the clips of all. (`no_sync` fails on a static graph: each part of a batch is averaged by itself.)
    with warnings.catch_warnings():
        # Its new name is not in the oldest torch that will do.
        warnings.filterwarnings("ignore", message=r"`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(step, broadcast_buffers=False, static_graph=True)


def _row(losses: Mapping[str, Tensor], right: Tensor) -> dict[str, float]:
    """What is logged of a step, over all processes."""
    means = mean_over_processes(torch.cat([torch.stack(list(losses.values())), right])).tolist()
    row = dict(zip(losses, means))
    known, hits = means[-2:]
    return row | ({"train_top1": hits / known} if known else {})


def _fill(memory: FrameMemory, datasets: Sequence[ClipDataset], console: Console) -> None:
    with bar(console) as progress:
        task = progress.add_task("decoding", total=sum(map(len, datasets)), detail="")
        for dataset in datasets:
            for _ in memory.fill(dataset):
                progress.advance(task)


def _validate(model: Model[Any], clips: ClipDataset, recipe: Recipe) -> dict[str, float]:
    found = scores(
        predict(
            model,
            clips,
            machine=recipe.machine,
            workers=recipe.data.workers,
            on_bad_video="error" if recipe.data.on_bad_video == "error" else "skip",
            time_limit=recipe.data.time_limit,
        )
    )
    # A set of several labels a video has a mean average precision alone.
    return {f"val_{name}": found[name] for name in ("top1", "mean_class_accuracy", "map") if name in found}
