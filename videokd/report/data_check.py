"""What `videokd data check` prints: the problems of a set first, then what is in it."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from videokd.report.tables import terminal_table

_GROUPS = (
    "duplicates_across_splits",
    "near_duplicates_across_splits",
    "duplicates_with_different_labels",
    "duplicates",
)
SHOWN = 10
"""Rows of a table before it says how many more there are."""


def check_lines(found: Mapping[str, Any], problems: list[str]) -> list[str | Table]:
    """Lines and tables of a check's report."""
    lines: list[str | Table] = []
    verdict = "no problem found" if not problems else f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    splits = ", ".join(f"{split} {number}" for split, number in found["splits"].items())
    lines.append(f"{found['readable']} of {found['videos']} videos are readable ({splits}); {verdict}")
    lines += [f"  - {problem}" for problem in problems]
    if found["broken"]:
        rows = [(row["path"], row["kind"], str(row["frames"]), row["reason"]) for row in found["broken"][:SHOWN]]
        lines.append(_left(terminal_table(("broken video", "fault", "frames", "reason"), rows)))
        lines += _more(found["broken"])
    for title in (
        "duplicates_across_splits",
        "near_duplicates_across_splits",
        "duplicates_with_different_labels",
        "duplicates",
    ):
        groups = found[title]
        if groups:
            lines.append(f"{title.replace('_', ' ')}:")
            lines += ["  " + " = ".join(group) for group in groups[:SHOWN]]
            lines += _more(groups)
    if found["groups_across_splits"]:
        lines.append("groups across splits:")
        groups = list(found["groups_across_splits"].items())
        lines += [f"  {group}: {', '.join(splits)}" for group, splits in groups[:SHOWN]]
        lines += _more(groups)
    if any(found["spread"].values()):
        rows = [
            (fact, *(f"{spread[which]:g}" for which in ("min", "median", "max")))
            for fact, spread in found["spread"].items()
        ]
        lines.append(terminal_table(("of a video", "min", "median", "max"), rows))
    classes = list(found["classes"].items())
    if classes:
        (largest, most), (smallest, fewest) = classes[0], classes[-1]
        lines.append(
            f"{len(classes)} classes: {fewest} videos ({smallest}) to {most} ({largest}), "
            f"imbalance {found['imbalance']:.1f}; {found['unlabelled']} videos without a label"
        )
    if found["flip_sensitive"]:
        named = ", ".join(found["flip_sensitive"][:5]) + (", ..." if len(found["flip_sensitive"]) > 5 else "")
        lines.append(
            f"{len(found['flip_sensitive'])} classes know left from right ({named}): with --data.augment.flip a clip "
            "gets the label of its mirror class, and is not flipped where there is none"
        )
    return lines


def _more(rows: Any) -> list[str | Table]:
    return [f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []


def _left(table: Table) -> Table:
    for column in table.columns:
        column.justify = "left"
    return table
