"""Pictures of numbers, for any number of arms: each function draws one, and knows nothing of runs or files."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from videokd.report.content import Look, shown
from videokd.report.svg import FAINT, HEAT, INK, LINE, PAPER, STYLE

Looks = Mapping[str, Look]
WIDE, SMALL = 5.4, 3.1
"""Inches: a picture that stands alone, and one of several side by side."""

_ROW = 0.36
_LABEL = 22
"""Letters of a name before it is cut."""


@rc_context(STYLE)
def scores(each: Mapping[str, Sequence[float]], looks: Looks, *, axis: str, chance: float | None = None) -> Figure:
    """Every run of every arm as a dot, and the arm's mean: shares, shown in per cent.

    Args:
        each: arm -> scores of its runs.
        looks: of the arms.
        axis: what the scores are.
        chance: what guessing would score.
    """
    figure, axes = _rows(len(each))
    for row, (arm, values) in enumerate(each.items()):
        look, percent = looks[arm], 100 * np.array(values)
        spread = 0.12 * (np.arange(len(percent)) - (len(percent) - 1) / 2) if len(percent) > 1 else np.zeros(1)
        axes.plot(percent, row + spread, look.marker, color=look.light, alpha=0.55, ms=4.5, markeredgewidth=0)
        axes.plot([percent.mean()] * 2, [row - 0.3, row + 0.3], color=look.light, lw=2.6, solid_capstyle="round")
        axes.annotate(
            f"{percent.mean():.1f}",
            (max(percent.max(), percent.mean()), row),
            (7, 0),
            textcoords="offset points",
            va="center",
            weight="bold",
        )
    if chance is not None:
        axes.axvline(100 * chance, color=FAINT, lw=1, ls=(0, (2, 2)))
        axes.annotate("chance", (100 * chance, -0.62), (3, 0), textcoords="offset points", color=FAINT, fontsize=8.5)
    low = min([100 * value for values in each.values() for value in values], default=0)
    top = max([100 * value for values in each.values() for value in values], default=100)
    left = 0 if chance is not None and low - 100 * chance < 40 else max(0.0, low - 0.25 * (top - low) - 2)
    if chance is not None and left > 100 * chance:
        left = 0
    axes.set_xlim(left, min(top + 0.14 * (top - left) + 1, 112))
    _names(axes, [looks[arm].title for arm in each])
    axes.set_xlabel(axis)
    return figure


@rc_context(STYLE)
def differences(found: Mapping[str, Mapping[str, object]], looks: Looks, *, axis: str) -> Figure:
    """Differences to another arm with their intervals, and every pair as a dot: shares, shown in points.

    Args:
        found: arm -> "mean", "low", "high", "each".
        looks: of the arms.
        axis: what the differences are.
    """
    figure, axes = _rows(len(found))
    axes.axvline(0, color=FAINT, lw=1)
    for row, (arm, one) in enumerate(found.items()):
        look = looks[arm]
        mean, each = 100 * float(one["mean"]), 100 * np.array(one.get("each", ()))  # type: ignore[arg-type,call-overload]
        axes.plot(each, np.full(len(each), row + 0.24), look.marker, color=look.light, ms=3.6, alpha=0.5, mew=0)
        if one.get("low") is not None and one.get("high") is not None:
            ends = [100 * float(one["low"]), 100 * float(one["high"])]  # type: ignore[arg-type]
            axes.plot(ends, [row, row], color=look.light, lw=2.4, solid_capstyle="round")
        axes.plot([mean], [row], look.marker, color=look.light, ms=7.5, markeredgecolor=PAPER, mew=1)
    _names(axes, [looks[arm].title for arm in found])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−").replace("+0", "0")))
    axes.set_xlabel(axis)
    axes.margins(x=0.08)
    return figure


@rc_context(STYLE)
def over_cost(points: Mapping[str, tuple[float, float]], looks: Looks, *, axis: str, score: str) -> Figure:
    """Score over cost: arm -> (cost of one clip, share), with the line that no arm lies above."""
    figure, axes = _canvas(WIDE, 3.5)
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
                textcoords=("offset points", "data"),  # type: ignore[arg-type]
                va="center",
                fontsize=9,
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
    log: bool = False,
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
        log: whether y is shown in powers.
        single: whether the runs are drawn at all.
        names: whether a legend is drawn.
    """
    figure, axes = _canvas(width, height)
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
        mean = np.mean([np.interp(x, *one, left=np.nan, right=np.nan) for one in arrays], axis=0)
        marks = {"marker": look.marker, "ms": 5} if len(x) == 1 else {}
        axes.plot(
            x, mean, color=look.light, lw=1.9, ls=(0, (3, 1.5)) if look.dashed else "-", label=look.title, **marks
        )
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title)
    axes.set_xlabel(axis)
    axes.xaxis.set_major_locator(MaxNLocator(4))
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
    figure, axes = _rows(len(classes), step=0.27)
    for row, (low, high) in enumerate(zip(values[before], values[after], strict=True)):
        if low is not None and high is not None:
            colour = looks[after if high >= low else before].light
            axes.plot([100 * low, 100 * high], [row, row], color=colour, lw=3, alpha=0.35, solid_capstyle="round")
    for arm, each in values.items():
        look, rows = looks[arm], [row for row, value in enumerate(each) if value is not None]
        percent = [100 * value for value in each if value is not None]
        big = arm in (before, after)
        axes.plot(percent, rows, look.marker, color=look.light, ms=6.5 if big else 4, mew=0, label=look.title)
    _names(axes, classes)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("accuracy of the class (%)")
    return figure


@rc_context(STYLE)
def heat(
    values: ArrayLike,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_axis: str,
    column_axis: str,
    title: str = "",
    percent: bool = False,
    top: float = 1.0,
    width: float = SMALL,
) -> Figure:
    """A matrix (rows, columns) in [0, top], the stronger the more; with its numbers where there is room."""
    matrix = np.asarray(values, dtype=float)
    side = width / max(len(columns) + 3, 7)
    height = max(side * len(rows), 0.34 * len(rows) if len(rows) < 12 else 0) + 1.25
    with rc_context({"axes.edgecolor": "none"}):
        figure, axes = _canvas(width, height, grid=False)
    colour = np.array([int(HEAT[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    picture = np.zeros((*matrix.shape, 4))
    picture[..., :3] = colour
    # A negative one, an unbiased estimate below nothing, is drawn as nothing.
    picture[..., 3] = 0.8 * np.clip(np.nan_to_num(matrix) / top, 0, 1)
    edges_x, edges_y = np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5
    for (row, column), strength in np.ndenumerate(picture[..., 3]):
        if strength > 0.004:
            corner = (edges_x[column] + 0.03, edges_y[row] + 0.03)
            axes.add_patch(_cell(corner, alpha=float(strength)))
    if len(columns) <= 12:
        for (row, column), value in np.ndenumerate(matrix):
            text = "–" if math.isnan(value) else f"{100 * value:.0f}" if percent else f"{value:.2f}"
            if not (percent and text == "0"):
                axes.text(column, row, text, ha="center", va="center", fontsize=7.5 if len(columns) > 8 else 8.5)
    axes.set_xlim(edges_x[0], edges_x[-1])
    axes.set_ylim(edges_y[-1], edges_y[0])
    size = 9 if max(len(rows), len(columns)) <= 12 else 6.5
    axes.set_xticks(range(len(columns)), [cut(name, 14) for name in columns], rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), [cut(name, 14) for name in rows], fontsize=size)
    axes.set_xlabel(column_axis)
    axes.set_ylabel(row_axis)
    axes.set_title(title)
    return figure


@rc_context(STYLE)
def reliability(bins: Mapping[str, Sequence[tuple[float, float, float]]], looks: Looks, *, title: str) -> Figure:
    """How often an arm is right, over how sure it is: arm -> (confidence, accuracy, share of clips) of each bin."""
    figure, axes = _canvas(SMALL, 3.0)
    axes.plot([0, 100], [0, 100], color=FAINT, lw=1, ls=(0, (2, 2)))
    for arm, points in bins.items():
        look = looks[arm]
        if points:
            sure, right, share = (np.array(one) for one in zip(*points, strict=True))
            axes.plot(100 * sure, 100 * right, color=look.light, lw=1.4, ls=(0, (3, 1.5)) if look.dashed else "-")
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
    line: tuple[float, str] | None = None,
    height: float = 2.9,
) -> Figure:
    """Bars side by side: group -> arm -> value.

    Args:
        groups: by their titles.
        looks: of the arms.
        axis: what the values are.
        percent: whether they are shares.
        line: a value to compare all with, and its name.
        height: of the picture, in inches.
    """
    figure, axes = _canvas(WIDE, height)
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
            axes.bar(place, scale * value, width=0.9 * step, color=look.light, alpha=0.5 if look.dashed else 0.9)
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
    if line is not None:
        axes.axhline(scale * line[0], color=FAINT, lw=1, ls=(0, (2, 2)))
        axes.annotate(
            line[1],
            (len(groups) - 0.5, scale * line[0]),
            (0, 3),
            textcoords="offset points",
            ha="right",
            color=FAINT,
            fontsize=8.5,
        )
    axes.set_xticks(range(len(groups)), [cut(name) for name in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.margins(y=0.12)
    axes.set_ylabel(axis)
    return figure


@rc_context(STYLE)
def timeline(answers: Mapping[str, tuple[Sequence[float], Sequence[float]]], looks: Looks, *, chance: float) -> Figure:
    """Confidence in the true class over the seconds of a video: arm -> (seconds, probability)."""
    figure, axes = _canvas(SMALL, 1.7)
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
    """A name that fits beside an axis: printable, and no longer than that."""
    name = "".join(sign if sign.isprintable() else " " for sign in name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _cell(corner: tuple[float, float], *, alpha: float) -> Rectangle:
    return Rectangle(corner, 0.94, 0.94, facecolor=HEAT, edgecolor="none", alpha=alpha)


def _rows(number: int, *, step: float = _ROW) -> tuple[Figure, Axes]:
    """A canvas with a row for each name, the first on top."""
    figure, axes = _canvas(WIDE, step * number + 0.75)
    axes.set_ylim(number - 0.45, -0.75 if step == _ROW else -0.6)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure, axes


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [cut(name) for name in names])


def _canvas(width: float, height: float, *, grid: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(colors=LINE, labelcolor=INK)
    return figure, axes
