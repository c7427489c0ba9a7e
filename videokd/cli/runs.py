"""Commands that make runs, score them and compare them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from videokd import quickstart as quickstarts
from videokd import recipe as recipes
from videokd.cli.options import CONSOLE, TrustOption, take_trust, wants_usage
from videokd.machine import Machine
from videokd.processes import is_first
from videokd.protocols import mean_over_folds
from videokd.recipe import Recipe
from videokd.report.comparison import arms, check_same_test, score_of, trios
from videokd.report.differences import difference_rows, read_run
from videokd.report.tables import COLUMNS, arm_rows, gain_lines, sectioned_table, terminal_table
from videokd.run_files import EVALUATION, read_evaluation
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
    "usage: videokd train RECIPE [--out DIR] [--trust NAME] [--FIELD VALUE ...], or videokd train --resume RUN; "
    "videokd train RECIPE --help lists the recipe's fields"
)


def train(arguments: Sequence[str]) -> None:
    """`videokd train RECIPE [--out DIR] [--FIELD VALUE ...]`, or `videokd train --resume RUN [--FIELD VALUE ...]`."""
    trust, arguments = take_trust(arguments)
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
            recipe=recipes.load(path / "recipe.json" if resume else path, trust=trust),
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
    scores = {"val_top1": "top-1", "val_map": "mAP"}
    score = "".join(f", validation {name} {summary[key]:.1%}" for key, name in scores.items() if summary.get(key))
    skipped = f", {len(summary['skipped'])} videos skipped" if summary["skipped"] else ""
    for party, clips in summary.get("clips_without_sound", {}).items():
        skipped += f", {clips} clips without sound for {party}"
    CONSOLE.print(
        f"{run}: {summary['steps']} steps in {summary['seconds']:.0f} s, "
        f"{summary['clips_per_second']:.0f} clips/s{score}{skipped}",
    )


def compare(runs: tyro.conf.Positional[tuple[Path, ...]], trust: TrustOption = ()) -> None:
    """Prints runs beside each other: test scores, what distillation gained, and what differs in recipe, environment,
    losses, validation and speed.

    Args:
        runs: Folders of runs, finished or not. `videokd evaluate` adds test scores.
        trust: Module, package or recipe file of your own that recipes name. Without it their own classes are compared
            as they are written: nothing is imported to compare runs.
    """
    if not runs:
        raise ValueError("name at least one run folder")
    records = [read_run(run) for run in runs]
    _print_scores([run for run in runs if (run / EVALUATION).is_file()], trust)
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


def _print_scores(runs: Sequence[Path], trust: Sequence[str]) -> None:
    """Scores on the test clips, and what distillation gained, of runs that are evaluated."""
    found = {str(run): read_evaluation(run) for run in runs}
    if mean := mean_over_folds(list(found.values())):
        CONSOLE.print(f"{mean['protocol']}: top-1 {mean['top1']:.1%}, {mean['mean_class_accuracy']:.1%} over classes")
        return
    try:
        check_same_test(list(found.values()))
    except ValueError as error:
        CONSOLE.print(f"The runs are not compared, no scores shown: {error}")
        return
    rows = [
        (
            name,
            f"{100 * (score_of(one) or 0.0):.1f}",
            f"{100 * one['temporal']['shuffled']:.1f}" if "shuffled" in one["temporal"] else "-",
            f"{one['params']:,}",
            f"{one['macs'] / 1e6:.2f}",
        )
        for name, one in found.items()
    ]
    if rows:
        metric = "mAP %" if any("map" in one for one in found.values()) else "top-1 %"
        CONSOLE.print(terminal_table(("run", metric, "shuffled %", "params", "MMAC/clip"), rows))
    for name, one in found.items():
        debt = {"scored": len(one["skipped"]), "trained on": one.get("skipped_in_training") or 0}
        if any(debt.values()):
            CONSOLE.print(f"{name}: not {' and not '.join(f'{how}: {n} videos' for how, n in debt.items() if n)}")
    try:
        for teacher, alone, distilled in trios(runs, trust=trust):
            report = arms(teacher, alone, distilled)
            CONSOLE.print(terminal_table(COLUMNS, arm_rows(report), title=f"{len(alone)} paired seeds"))
            for line in gain_lines(report):
                CONSOLE.print(line)
    except ValueError as error:
        CONSOLE.print(f"What distillation gained is not shown: {error}")
