"""`videokd preflight`: looks at a run before it is started."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from videokd import recipe as recipes
from videokd.assembly import assemble
from videokd.cli.options import CONSOLE, take_trust, wants_usage
from videokd.preflight import Connection, Report, TermScore
from videokd.preflight import preflight as run_preflight
from videokd.recipe import Recipe
from videokd.report.tables import terminal_table

_USAGE = (
    "usage: videokd preflight RECIPE [--batches N] [--out DIR] [--trust NAME] [--FIELD VALUE ...]; "
    "videokd preflight RECIPE --help lists the recipe's fields"
)
_TEACHER_BATCHES = 4
"""So many times as many batches teachers may look at by themselves."""


@dataclass(frozen=True)
class _Command:
    out: Path
    """Folder that the run is to be written to: is there room?"""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    batches: int = 4
    """Batches to look at; teachers look at up to four times as many, until they saw 64 labelled clips."""


def preflight(arguments: Sequence[str]) -> None:
    """`videokd preflight RECIPE [--batches N] [--out DIR] [--FIELD VALUE ...]`: a verdict with reasons.

    Raises:
        ValueError: if the verdict is "don't".
    """
    if wants_usage(arguments, _USAGE):
        return
    trust, rest = take_trust(arguments[1:])
    path = Path(arguments[0])
    command = tyro.cli(
        _Command,
        default=_Command(out=Path("runs") / path.stem, recipe=recipes.load(path, trust=trust)),
        args=rest,
        prog=f"videokd preflight {path}",
        description="Checks a recipe on its first batches. Every field of the recipe can be overridden.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    made = assemble(command.recipe, console=CONSOLE)
    report = run_preflight(made, batches=command.batches, most=_TEACHER_BATCHES * command.batches, out=command.out)
    _print(report)
    if report.verdict == "don't":
        raise ValueError(f"verdict: don't, because of {', '.join(finding.what for finding in report.at('error'))}")
    CONSOLE.print(f"Verdict: {report.verdict}.")


def _print(report: Report) -> None:
    if report.terms:
        columns = ("term", "loss", "weight", "gradient %", "cosine to labels")
        CONSOLE.print(terminal_table(columns, [_term_row(one) for one in report.terms], title="terms"))
    if report.connections:
        shapes = ("terms", "student", "T, H, W, C", "teacher", "T, H, W, C", "compared", "connector", "params")
        rows = [_connection_row(one) for one in report.connections]
        CONSOLE.print(terminal_table(shapes, rows, title="taps", justify="left"))
    for level, title in (("error", "wrong"), ("warning", "look at these"), ("ok", "in order")):
        found = [finding for finding in report.findings if finding.level == level]
        if found:
            CONSOLE.print(f"{title}:")
        for finding in found:
            CONSOLE.print(f"  {finding.said}")


def _term_row(score: TermScore) -> tuple[str, ...]:
    share = "" if score.share is None else f"{100 * score.share:.1f}"
    cosine = "" if score.cosine is None else f"{score.cosine:+.2f}"
    return score.term, f"{score.value:.4g}", f"{score.weight:.3g}", share, cosine


def _connection_row(one: Connection) -> tuple[str, ...]:
    student, teacher = (", ".join(map(str, shape)) for shape in (one.student_shape, one.teacher_shape))
    learned = (one.connector or "none", f"{one.params:,}" if one.connector else "")
    taught = f"{one.teacher} {one.teacher_tap!r}"
    return ", ".join(one.terms), repr(one.student_tap), student, taught, teacher, one.grid, *learned
