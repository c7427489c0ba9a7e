"""The command that compares arms over paired seeds."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from videokd import arms
from videokd.arms import Study
from videokd.cli.options import CONSOLE, spelled_out, take_trust, wants_usage
from videokd.report.paired import STUDY_COLUMNS, besides, not_compared, study_rows
from videokd.report.tables import terminal_table
from videokd.study import study as run_study

_USAGE = (
    "usage: videokd study STUDY [--out DIR] [--seeds N] [--arms ARM ...] [--list LIST ...] [--trust NAME] "
    "[--FIELD VALUE ...]; videokd study STUDY --help lists all fields"
)


@dataclass(frozen=True)
class _StudyCommand:
    out: Path
    """Folder of the study; one that holds this very study goes on."""
    study: Annotated[Study, tyro.conf.arg(name="")]


def study(arguments: Sequence[str]) -> None:
    """`videokd study STUDY [--out DIR] [--FIELD VALUE ...]`."""
    if wants_usage(arguments, _USAGE):
        return
    trust, rest = take_trust(arguments[1:])
    path, given = Path(arguments[0]), arms.load(arguments[0], trust=trust)
    prefixes = [f"others.{name}." if name in given.others else f"{name}." for name in given.recipes]
    command = tyro.cli(
        _StudyCommand,
        default=_StudyCommand(out=Path("runs") / "studies" / path.stem, study=given),
        args=spelled_out(rest, prefixes),
        prog=f"videokd study {path}",
        description="Trains and scores a student alone, distilled and under controls, over paired seeds, and says "
        "whether distillation helped. Every field of the study and its recipes can be overridden.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    resume_with = f"videokd study {shlex.join(arguments)}"
    found = run_study(command.study, command.out, console=CONSOLE, go_on=resume_with)
    pairs = len(found["arms"]["alone"]["pairs"])
    CONSOLE.print(terminal_table(STUDY_COLUMNS, study_rows(found), title=f"{pairs} pairs on split {found['split']!r}"))
    for sentence in (*besides(found), not_compared(found)):
        if sentence:
            CONSOLE.print(sentence, highlight=False)
    for arm, one in found["differences"].items():
        if arm != "distilled":
            CONSOLE.print(f"{one['verdict']}", highlight=False)
    CONSOLE.print()
    CONSOLE.print(found["verdict"], highlight=False)
    CONSOLE.print()
    CONSOLE.print(f"All numbers: {command.out / 'study.json'}. Next: videokd report {command.out}", highlight=False)
