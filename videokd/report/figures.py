"""Pictures of numbers, for any number of arms: each function draws one, and knows nothing of runs or files."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from videokd.report.content import Look, shown
from videokd.report.svg import FAINT, HEAT, INK, LINE, PAPER, STYLE
from videokd.text import visible

Looks = Mapping[str, Look]
WIDE, SMALL = 4.8, 3.1
"""Inches: a picture that stands alone, and one of several side by side."""

_ROW = 0.36
_LABEL = 22
"""Letters of a name before it is cut."""


@rc_context(STYLE)
def scores(
    each: Mapping[str, Sequence[float]], looks: Looks, *, axis: str, line: tuple[float, str] | None = None
) -> Figure:
    """Every run of every arm as a mark, and the arm's mean as a bar: shares, shown in per cent.

    Args:
        each: arm -> scores of its runs.
        looks: of the arms.
        axis: what the scores are.
        line: a score to compare all with, such as chance, and its name.
    """
    figure, axes = row_canvas(len(each))
    for row, (arm, values) in enumerate(each.items()):
        look, percent = looks[arm], 100 * np.array(values)
        spread = 0.12 * (np.arange(len(percent)) - (len(percent) - 1) / 2) if len(percent) > 1 else np.zeros(1)
        alone = len(percent) == 1
        axes.plot(
            percent,
            row + spread,
            look.marker,
            color=look.light,
            alpha=1 if alone else 0.55,
            ms=7 if alone else 4.5,
            mew=0,
        )
        if not alone:
            axes.plot([percent.mean()] * 2, [row - 0.3, row + 0.3], color=look.light, lw=2.6, solid_capstyle="round")
        axes.annotate(
            f"{percent.mean():.1f}",
            (percent.max(), row),
            (7, 0),
            textcoords="offset points",
            va="center",
            weight="bold",
        )
    low, top = (pick(100 * value for values in each.values() for value in values) for pick in (min, max))
    left = max(0.0, low - 0.25 * (top - low) - 2)
    if line is not None:
        value, name = line
        # A line that is far off would leave the arms no room.
        left = min(left, max(0.0, 100 * value - 4)) if low - 100 * value < 2 * (top - low) + 25 else left
        if 100 * value >= left:
            axes.axvline(100 * value, color=FAINT, lw=1, ls=(0, (2, 2)))
            axes.annotate(name, (100 * value, -0.6), (4, 0), textcoords="offset points", color=FAINT, fontsize=8.5)
    axes.set_xlim(left, top + 0.16 * (top - left) + 1)
    row_names(axes, [looks[arm].title for arm in each])
    axes.set_xlabel(axis)
    return figure


@rc_context(STYLE)
def differences(found: Mapping[str, Mapping[str, Any]], looks: Looks, *, axis: str) -> Figure:
    """Differences to another arm with their intervals, and every pair as a dot: shares, shown in points.

    Args:
        found: arm -> "mean", "low", "high", "each".
        looks: of the arms.
        axis: what the differences are.
    """
    figure, axes = row_canvas(len(found))
    axes.axvline(0, color=FAINT, lw=1)
    for row, (arm, one) in enumerate(found.items()):
        look = looks[arm]
        mean, each = 100 * one["mean"], 100 * np.array(one.get("each", ()))
        axes.plot(each, np.full(len(each), row + 0.24), look.marker, color=look.light, ms=3.6, alpha=0.5, mew=0)
        if one.get("low") is not None and one.get("high") is not None:
            ends = [100 * one["low"], 100 * one["high"]]
            axes.plot(ends, [row, row], color=look.light, lw=2.4, solid_capstyle="round")
        axes.plot([mean], [row], look.marker, color=look.light, ms=7.5, markeredgecolor=PAPER, mew=1)
    row_names(axes, [looks[arm].title for arm in found])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−").replace("+0", "0")))
    axes.set_xlabel(axis)
    axes.margins(x=0.08)
    return figure


@rc_context(STYLE)
def over_cost(points: Mapping[str, tuple[float, float]], looks: Looks, *, axis: str, score: str) -> Figure:
    """Score over cost: arm -> (cost of one clip, share), with the line that no arm lies above."""
    figure, axes = canvas(WIDE, 3.5)
    best, front = -math.inf, []
    for cost, value in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if value > best:
            front.append((cost, 100 * value))
            best = value
    costs = [cost for cost, _ in points.values()]
    right = max(costs) * (max(costs) / min(costs)) ** 0.7 if max(costs) > min(costs) else max(costs) * 10
    axes.plot(
        *zip(*[*front, (right, front[-1][1])], strict=True), color=FAINT, lw=1, ls=(0, (3, 3)), drawstyle="steps-post"
    )
    axes.set_xscale("log")
    axes.set_xlim(min(costs) * (min(costs) / right) ** 0.08, right)
    axes.margins(y=0.15)
    for arm, (cost, value) in points.items():
        look = looks[arm]
        axes.plot([cost], [100 * value], look.marker, color=look.light, ms=8.5, markeredgecolor=PAPER, mew=1)
    low, high = axes.get_ylim()
    for cost in sorted(set(costs)):
        column = [arm for arm, point in points.items() if point[0] == cost]
        places = apart([100 * points[arm][1] for arm in column], gap=(high - low) / 15, low=low, high=high)
        for arm, place in zip(column, places, strict=True):
            axes.annotate(
                looks[arm].title,
                (cost, 100 * points[arm][1]),
                xytext=(14, place),
                textcoords=("offset points", "data"),
                va="center",
                fontsize=9,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
                arrowprops={"arrowstyle": "-", "color": LINE, "lw": 0.7, "shrinkA": 1, "shrinkB": 4},
            )
    axes.grid(axis="both")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, "size")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(axis)
    axes.set_ylabel(score)
    return figure


@rc_context(STYLE)
def curves(
    lines: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
    looks: Looks,
    *,
    title: str = "",
    axis: str = "step",
    height: float = 2.2,
    width: float = SMALL,
    percent: bool = False,
    log: Literal["", "x", "y"] = "",
    single: bool = True,
    names: bool = False,
) -> Figure:
    """One line a run, faint, and the mean of the arm.

    Args:
        lines: arm -> (x, y) of each run.
        looks: of the arms.
        title: of the picture.
        axis: what x is.
        height: of the picture, in inches.
        width: of the picture, in inches.
        percent: whether y is a share.
        log: which axis is shown in powers.
        single: whether the runs are drawn at all.
        names: whether a legend is drawn.
    """
    figure, axes = canvas(width, height)
    for arm, runs in lines.items():
        look = looks[arm]
        arrays = [(np.asarray(x, float), (100 if percent else 1) * np.asarray(y, float)) for x, y in runs]
        arrays = [(x, y) for x, y in arrays if len(x)]
        if not arrays:
            continue
        if single and len(arrays) > 1:
            for x, y in arrays:
                axes.plot(x, y, color=look.light, alpha=0.22, lw=0.9)
        x = max((x for x, _ in arrays), key=len)
        # Of the runs that came so far: one may have stopped early.
        mean = np.nanmean([np.interp(x, *one, left=np.nan, right=np.nan) for one in arrays], axis=0)
        style = (0, (3, 1.5)) if look.dashed else "-"
        marker = look.marker if len(x) == 1 else ""
        axes.plot(x, mean, marker=marker, color=look.light, lw=1.9, ls=style, label=look.title)
    axes.set_title(visible(title))
    axes.set_xlabel(axis)
    if log == "x":
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    if log == "y":
        axes.set_yscale("log")
        # Not as mathematics, which a page has no fonts for.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for one in (axes.xaxis, axes.yaxis):
        one.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: shown(value, "size").replace(" ", "") if value else "0")
    )
    if percent:
        axes.set_ylim(0, 104)
    if names:
        axes.legend(loc="best", fontsize=9)
    return figure


@rc_context(STYLE)
def dumbbells(
    classes: Sequence[str], values: Mapping[str, Sequence[float | None]], looks: Looks, *, before: str, after: str
) -> Figure:
    """Classes as rows: a line from one arm's accuracy to another's, and the marks of further arms."""
    figure, axes = row_canvas(len(classes), step=0.27)
    for row, (low, high) in enumerate(zip(values[before], values[after], strict=True)):
        if low is not None and high is not None:
            colour = looks[after if high >= low else before].light
            axes.plot([100 * low, 100 * high], [row, row], color=colour, lw=3, alpha=0.35, solid_capstyle="round")
    for arm, each in values.items():
        look, rows = looks[arm], [row for row, value in enumerate(each) if value is not None]
        percent = [100 * value for value in each if value is not None]
        big = arm in (before, after)
        axes.plot(percent, rows, look.marker, color=look.light, ms=6.5 if big else 4, mew=0, label=look.title)
    row_names(axes, classes)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("accuracy of the class (%)")
    return figure


@rc_context(STYLE)
def heat(
    matrices: Mapping[str, ArrayLike],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_axis: str,
    column_axis: str,
    percent: bool = False,
    top: float = 1.0,
    width: float = SMALL,
) -> Figure:
    """Matrices (rows, columns) in [0, top] side by side, the stronger the more, with their numbers where there is room.

    Args:
        matrices: by their titles.
        rows: their names.
        columns: their names.
        row_axis: what rows are.
        column_axis: what columns are.
        percent: whether the numbers are shares.
        top: the strongest value.
        width: of one matrix, in inches.
    """
    side = width / max(len(columns) + 3, 7)
    height = max(side, 0.27 if len(rows) <= 12 else 0) * len(rows) + 1.25
    figure = Figure(figsize=(width * len(matrices), height), layout="constrained")
    panels = figure.subplots(1, len(matrices), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(panels, matrices.items(), strict=True):
        axes.spines[:].set_visible(False)
        _cells(axes, np.asarray(values, dtype=float), percent=percent, top=top)
        size = 9 if max(len(rows), len(columns)) <= 12 else 6.5
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [cut(name, 14) for name in columns], rotation=90, fontsize=size)
        axes.set_yticks(range(len(rows)), [cut(name, 14) for name in rows], fontsize=size)
        axes.set_xlabel(column_axis)
        axes.set_title(visible(title))
    panels[0].set_ylabel(row_axis)
    return figure


@rc_context(STYLE)
def reliability(bins: Mapping[str, Sequence[tuple[float, float, float]]], looks: Looks, *, title: str) -> Figure:
    """How often an arm is right, over how sure it is: arm -> (confidence, accuracy, share of clips) of each bin."""
    figure, axes = canvas(SMALL, 3.0)
    axes.plot([0, 100], [0, 100], color=FAINT, lw=1, ls=(0, (2, 2)))
    for arm, points in bins.items():
        look = looks[arm]
        if points:
            sure, right, share = (np.array(one) for one in zip(*points, strict=True))
            axes.plot(100 * sure, 100 * right, color=look.light, lw=1.1, alpha=0.55)
            axes.scatter(
                100 * sure, 100 * right, s=8 + 160 * share, color=look.light, marker=look.marker, alpha=0.75, lw=0
            )
    axes.set_title(title)
    axes.set_xlim(-2, 104)
    axes.set_ylim(-2, 104)
    axes.set_aspect("equal")
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("accuracy (%)")
    return figure


@rc_context(STYLE)
def bars(
    groups: Mapping[str, Mapping[str, float | None]],
    looks: Looks,
    *,
    axis: str,
    percent: bool = True,
    height: float = 2.7,
    names: bool = False,
) -> Figure:
    """Bars side by side: group -> arm -> value.

    Args:
        groups: by their titles.
        looks: of the arms.
        axis: what the values are.
        percent: whether they are shares.
        height: of the picture, in inches.
        names: whether a legend is drawn.
    """
    figure, axes = canvas(WIDE, height)
    scale = 100 if percent else 1
    arms = list(dict.fromkeys(arm for values in groups.values() for arm in values))
    step = 0.82 / max(len(arms), 1)
    for number, arm in enumerate(arms):
        look = looks[arm]
        for group, values in enumerate(groups.values()):
            value = values.get(arm)
            if value is None:
                continue
            place = group + (number - (len(arms) - 1) / 2) * step
            label = look.title if group == 0 else None
            alpha = 0.5 if look.dashed else 0.9
            axes.bar(place, scale * value, width=0.9 * step, color=look.light, alpha=alpha, label=label)
            if len(arms) * len(groups) <= 20:
                text = f"{scale * value:.0f}" if percent else f"{value:.2f}"
                axes.annotate(
                    text.replace("-", "−"),
                    (place, max(scale * value, 0)),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
    axes.set_xticks(range(len(groups)), [cut(name) for name in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.margins(y=0.12)
    axes.set_ylabel(axis)
    if names:
        figure.legend(loc="outside lower center", ncols=len(arms), fontsize=9)
    return figure


@rc_context(STYLE)
def timeline(answers: Mapping[str, tuple[Sequence[float], Sequence[float]]], looks: Looks, *, chance: float) -> Figure:
    """Confidence in the true class over the seconds of a video: arm -> (seconds, probability)."""
    figure, axes = canvas(SMALL, 1.7)
    axes.axhline(100 * chance, color=FAINT, lw=0.8, ls=(0, (2, 2)))
    for arm, (seconds, probability) in answers.items():
        look = looks[arm]
        axes.plot(seconds, 100 * np.array(probability), look.marker, ls="-", color=look.light, lw=1.7, ms=4, mew=0)
    axes.set_ylim(-4, 104)
    axes.set_yticks([0, 50, 100])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("seconds shown")
    axes.set_ylabel("true class (%)")
    return figure


def apart(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places for labels as near to `values` as can be, in their order, none nearer to another than `gap`."""
    order = sorted(range(len(values)), key=lambda number: values[number])
    places = [values[number] for number in order]
    for _ in range(200):
        moved = False
        for one, (below, above) in enumerate(pairwise(places)):
            if (lacking := gap - (above - below)) > 1e-9:
                places[one] -= lacking / 2
                places[one + 1] += lacking / 2
                moved = True
        if not moved:
            break
    if places:
        # The whole pile moves back in, if it can.
        shift = max(low - places[0], 0) - max(places[-1] - high, 0)
        places = [place + shift for place in places]
    found = [0.0] * len(values)
    for place, number in zip(places, order, strict=True):
        found[number] = place
    return found


def cut(name: str, length: int = _LABEL) -> str:
    """A name that fits beside an axis: what nobody can see as escapes, and no longer than that."""
    name = visible(name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def row_canvas(number: int, *, step: float = _ROW) -> tuple[Figure, Axes]:
    """A canvas with a row for each name, the first on top."""
    figure, axes = canvas(WIDE, step * number + 0.75)
    axes.set_ylim(number - 0.45, -0.75 if step == _ROW else -0.6)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure, axes


def row_names(axes: Axes, names: Sequence[str]) -> None:
    """Writes the rows' names beside them."""
    axes.set_yticks(range(len(names)), [cut(name) for name in names])


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(colors=LINE, labelcolor=INK)
    return figure, axes


def _cells(axes: Axes, matrix: NDArray[np.float64], *, percent: bool, top: float) -> None:
    # Rectangles and no picture: they take their colour from the page.
    for (row, column), value in np.ndenumerate(matrix):
        # An unbiased estimate may fall below nothing, and is drawn as nothing.
        strength = 0.0 if math.isnan(value) else 0.8 * min(max(value / top, 0.0), 1.0)
        if strength > 0.004:
            corner = (column - 0.47, row - 0.47)
            axes.add_patch(Rectangle(corner, 0.94, 0.94, facecolor=HEAT, edgecolor="none", alpha=strength))
        text = "–" if math.isnan(value) else f"{100 * value:.0f}" if percent else f"{value:.2f}"
        if matrix.shape[1] <= 12 and not (percent and text == "0"):
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5 if matrix.shape[1] > 8 else 8.5)
