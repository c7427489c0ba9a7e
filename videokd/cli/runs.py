"""Commands that make runs, score them and compare them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.progress import Progress

from videokd import quickstart as quickstarts
from videokd import recipe as recipes
from videokd.cli.options import CONSOLE, HowToRead, ListOptions, wants_usage
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest
from videokd.evaluate import evaluate as evaluate_model
from videokd.machine import Machine
from videokd.processes import is_first
from videokd.recipe import Recipe
from videokd.report.comparison import EVALUATION, arms, read_evaluation, trios, write_evaluation
from videokd.report.differences import difference_rows, read_run
from videokd.report.tables import COLUMNS, arm_rows, gain_lines, sectioned_table, terminal_table
from videokd.train import train as train_recipe


def quickstart(
    out: Path = Path("runs/quickstart"),
    seeds: int = 3,
    fast: bool = False,
    regime: quickstarts.Regime = "transfer-set",
    resume: bool = False,
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Draws videos, trains a teacher, a student alone and a student distilled, and compares them.

    Args:
        out: Folder for everything that it makes.
        seeds: Pairs of students.
        fast: Half the clips and two thirds of the steps.
        regime: "same-data" also runs the students with all the labels that the teacher has.
        resume: Go on with an interrupted quickstart in the same folder.
        machine: Device and precision.
    """
    scale = quickstarts.FAST if fast else quickstarts.Scale()
    quickstarts.quickstart(
        out, seeds=seeds, regime=regime, scale=scale, resume=resume, machine=machine, console=CONSOLE
    )


@dataclass(frozen=True)
class _TrainCommand:
    out: Path
    """Folder of the run; must hold none yet, but with --or-resume."""
    or_resume: bool
    """Go on if the folder holds this very run: for jobs that are started again."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


_TRAIN_USAGE = (
    "usage: videokd train RECIPE [--out DIR] [--FIELD VALUE ...], or videokd train --resume RUN; "
    "videokd train RECIPE --help lists the recipe's fields"
)


def train(arguments: Sequence[str]) -> None:
    """`videokd train RECIPE [--out DIR] [--FIELD VALUE ...]`, or `videokd train --resume RUN [--FIELD VALUE ...]`."""
    resume = arguments[:1] == ["--resume"]
    source, fields = (arguments[1:2], arguments[2:]) if resume else (arguments[:1], arguments[1:])
    if wants_usage(source, _TRAIN_USAGE):
        return
    path = Path(source[0])
    if resume and not (path / "recipe.json").is_file():
        raise ValueError(f"{path} holds no run to resume (no recipe.json)")
    command = tyro.cli(
        _TrainCommand,
        default=_TrainCommand(
            out=path if resume else Path("runs") / path.stem,
            or_resume=False,
            recipe=recipes.load(path / "recipe.json" if resume else path),
        ),
        args=list(fields),
        prog=f"videokd train {'--resume ' if resume else ''}{path}",
        description="Trains the recipe's student. Every field of the recipe can be overridden.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    run = path if resume else command.out
    summary = train_recipe(command.recipe, run, resume=resume, or_resume=command.or_resume, console=CONSOLE)
    if not is_first():
        return
    score = "" if summary["val_top1"] is None else f", validation top-1 {summary['val_top1']:.1%}"
    skipped = f", {len(summary['skipped'])} videos skipped" if summary["skipped"] else ""
    for party, clips in summary.get("clips_without_sound", {}).items():
        skipped += f", {clips} clips without sound for {party}"
    CONSOLE.print(
        f"{run}: {summary['steps']} steps in {summary['seconds']:.0f} s, "
        f"{summary['clips_per_second']:.0f} clips/s{score}{skipped}",
    )


def evaluate(
    run: tyro.conf.Positional[Path],
    videos: Annotated[str | None, tyro.conf.arg(name="list")] = None,
    how: HowToRead = ListOptions(),  # frozen
    split: str | None = "test",
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
    time_limit: float = 60.0,
    trust: tuple[str, ...] = (),
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Scores a trained model on a list of videos and leaves evaluation.json in its folder.

    Args:
        run: Folder of a finished run, or of a model that was saved.
        videos: Folder or list of videos, in any form of data/README.md; the run's own list if not given.
        how: How the list is read.
        split: Which split of the list; None takes every video.
        batch_size: Clips at once.
        workers: Processes that decode.
        on_bad_video: Stop at a missing or broken video, or leave it out, named and counted.
        time_limit: Seconds that a worker may spend on a video.
        trust: Packages and modules of your own that the network is made by.
        machine: Device and precision.
    """
    if not run.is_dir():
        raise ValueError(f"no folder {run}: name that of a run")
    if videos is None:
        if not (run / "recipe.json").is_file():
            raise ValueError(f"{run} has no recipe.json to take the list from: name one with --list")
        videos = _plain_recipe(run)["data"]["path"]
        manifest = _own_list(run).split(split)
    else:
        manifest = how.read(videos).split(split)
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
        bar = progress.add_task("evaluating", total=2 * len(manifest.videos))
        found = evaluate_model(
            run,
            manifest,
            machine=machine,
            batch_size=batch_size,
            workers=workers,
            on_bad_video=on_bad_video,
            time_limit=time_limit,
            trust=trust,
            advance=lambda clips: progress.advance(bar, clips),
        )
    found |= {"split": split, "trained_on": _trained_on(run, manifest)}
    path = write_evaluation(run, found)
    CONSOLE.print(
        f"top-1 {found['top1']:.1%} on {found['clips']} clips of {videos} ({split or 'all splits'}); "
        f"mean over classes {found['mean_class_accuracy']:.1%}; frames shuffled {found['shuffled_top1']:.1%}",
    )
    rows = [(name, f"{100 * value:.1f}") for name, value in found["per_class"].items()]
    CONSOLE.print(terminal_table(("class", "top-1 %"), rows))
    if found["trained_on"]:
        CONSOLE.print(f"Careful: the run was trained on {found['trained_on']} of these {len(manifest.videos)} clips.")
    for reason in found["skipped"]:
        CONSOLE.print(f"skipped: {reason}")
    before = found["skipped_in_training"]
    trained = f"; {before} videos were left out of its training" if before else ""
    CONSOLE.print(f"{len(found['skipped'])} videos skipped{trained}. Confusion and predictions: {path}")


def compare(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Prints runs beside each other: test scores, what distillation gained, and what differs in recipe, environment,
    losses, validation and speed.

    Args:
        runs: Folders of runs, finished or not. `videokd evaluate` adds test scores.
    """
    if not runs:
        raise ValueError("name at least one run folder")
    records = [read_run(run) for run in runs]
    _print_scores([run for run in runs if (run / EVALUATION).is_file()])
    unscored = [str(one.path) for one in records if one.finished and not (one.path / EVALUATION).is_file()]
    if unscored:
        CONSOLE.print(f"No test scores (videokd evaluate RUN makes them): {', '.join(unscored)}")
    for one in records:
        if not one.finished:
            CONSOLE.print(f"{one.path} is not finished: {one.steps}")
        for name, plain in (("recipe", one.recipe), ("environment", one.environment)):
            if not plain:
                CONSOLE.print(f"{one.path} has no {name}.json to compare")
    sections = difference_rows(records)
    if any(sections.values()):
        names = [run.name for run in runs]
        heads = names if len(set(names)) == len(names) else [str(run) for run in runs]
        CONSOLE.print(sectioned_table(("what differs" if len(runs) > 1 else "run", *heads), sections))
    for section in ("recipe", "environment", "results"):
        known = [one for one in records if getattr(one, section)]
        if len(known) > 1 and not sections[section]:
            CONSOLE.print(f"No difference in {section}.")


def _print_scores(runs: Sequence[Path]) -> None:
    """Scores on the test clips, and what distillation gained, of runs that are evaluated."""
    found = {str(run): read_evaluation(run) for run in runs}
    if len({(one["list"], one["split"], *sorted(one["predicted"])) for one in found.values()}) > 1:
        CONSOLE.print("The runs were scored on different clips, no scores shown: evaluate them on one list and split")
        return
    rows = [
        (
            name,
            f"{100 * one['top1']:.1f}",
            f"{100 * one['shuffled_top1']:.1f}",
            f"{one['params']:,}",
            f"{one['macs'] / 1e6:.2f}",
        )
        for name, one in found.items()
    ]
    if rows:
        CONSOLE.print(terminal_table(("run", "top-1 %", "shuffled %", "params", "MMAC/clip"), rows))
    for name, one in found.items():
        debt = {"scored": len(one["skipped"]), "trained on": one.get("skipped_in_training") or 0}
        if any(debt.values()):
            CONSOLE.print(f"{name}: not {' and not '.join(f'{how}: {n} videos' for how, n in debt.items() if n)}")
    try:
        for teacher, alone, distilled in trios(runs):
            report = arms(teacher, alone, distilled)
            CONSOLE.print(terminal_table(COLUMNS, arm_rows(report), title=f"{len(alone)} paired seeds"))
            for line in gain_lines(report):
                CONSOLE.print(line)
    except ValueError as error:
        CONSOLE.print(f"What distillation gained is not shown: {error}")


def _plain_recipe(run: Path) -> Any:
    # As data alone: looking at somebody's run must not import their code.
    path = run / "recipe.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _own_list(run: Path) -> Manifest:
    """The list that a run was made with."""
    data = _plain_recipe(run)["data"]
    return read_manifest(
        data["path"], root=data.get("root"), fold=data.get("fold", 1), class_names=data.get("class_names")
    )


def _trained_on(run: Path, scored: Manifest) -> int:
    """How many of the scored clips the run was trained on."""
    if not (run / "recipe.json").is_file():
        return 0
    data = _plain_recipe(run)["data"]
    if not Path(data["path"]).exists():
        return 0
    trained = {video.path.resolve() for video in _own_list(run).split(data["train_split"]).videos}
    return sum(video.path.resolve() in trained for video in scored.videos)
