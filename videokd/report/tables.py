"""Comparisons in words: a table for the terminal, and the same as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from videokd.text import for_terminal

NAMES = {"teacher": "teacher", "alone": "student alone", "distilled": "student distilled"}
COLUMNS = ("arm", "top-1 %", "shuffled %", "agree %", "params", "MMAC/clip")


def arm_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each arm, under `COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for arm, found in report["arms"].items():
        spread = "" if found["top1_sd"] is None else f" ± {100 * found['top1_sd']:.1f}"
        agreement = "" if arm == "teacher" else f"{100 * found['agreement_with_teacher']:.1f}"
        rows.append(
            (
                NAMES[arm],
                f"{100 * found['top1_mean']:.1f}{spread}",
                "-" if found["shuffled_top1"] is None else f"{100 * found['shuffled_top1']:.1f}",
                agreement,
                f"{found['params']:,}",
                f"{found['macs'] / 1e6:.2f}",
            )
        )
    return rows


def gain_lines(report: Mapping[str, Any]) -> list[str]:
    """The paired difference, the share of the gap recovered, the verdict: a sentence each."""
    difference = report["paired_difference"]
    error = "" if difference["se"] is None else f" (standard error {100 * difference['se']:.1f})"
    lines = [f"Distilled - alone, paired by seed: {100 * difference['mean']:+.1f} points{error}."]
    recovered = report["gap_recovered"]
    if recovered is None:
        lines.append("Gap recovered G: not given, since the teacher is less than 8 points above the student alone.")
    else:
        interval = (
            ""
            if recovered["low"] is None
            else f" (95 % interval {100 * recovered['low']:.0f} to {100 * recovered['high']:.0f})"
        )
        lines.append(
            f"Gap recovered G = (distilled - alone) / (teacher - alone): {100 * recovered['mean']:.0f} %{interval}."
        )
    return [*lines, report["verdict"]]


def terminal_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    justify: Literal["right", "left"] = "right",
) -> Table:
    """A table for a rich console; the first column is text, the others numbers (to the right) or text (to the left)."""
    table = Table(title=_text(title) if title else None, title_justify="left")
    # Names stay on a line; long paths don't push the numbers out.
    short = all(len(row[0]) <= 24 for row in rows)
    for number, column in enumerate(columns):
        table.add_column(_text(column), justify="left" if number == 0 else justify, no_wrap=number == 0 and short)
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def sectioned_table(columns: Sequence[str], sections: Mapping[str, Sequence[Sequence[str]]]) -> Table:
    """A table of text for a rich console, whose rows stand under the titles of their sections; empty ones are left
    out. What is too long for its column goes on below."""
    table = Table()
    short = all(len(row[0]) <= 32 for rows in sections.values() for row in rows)
    for number, column in enumerate(columns):
        table.add_column(_text(column), overflow="fold", no_wrap=number == 0 and short)
    for title, rows in sections.items():
        if rows:
            table.add_section()
            table.add_row(Text(for_terminal(title), style="bold"))
        for row in rows:
            table.add_row(*map(_text, (f"  {row[0]}", *row[1:])))
    return table


def _text(cell: str) -> Text:
    """A cell as it is read: a bracket is no markup, a name of an emoji no emoji."""
    return Text(for_terminal(cell))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
