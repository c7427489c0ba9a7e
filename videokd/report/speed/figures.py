"""Pictures of timings: each function draws one, and knows nothing of benchmarks or files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from videokd.report.content import Look, shown
from videokd.report.figures import Looks, apart, canvas, cut, row_canvas, row_names
from videokd.report.svg import FAINT, INK, LINE, PAPER, STYLE

TALL, BROAD = 3.3, 4.8
DRAWN_CALLS = 240
"""Of more, so many are drawn, evenly spread over their order: the fastest and the slowest are among them."""

_MARKERS = "osv^PXdD"
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1, 1.5)))
_PARTY, _VARIANT = 14, 16
"""Letters of a name before it is cut."""
_FROM_ZERO = 12.0
"""Values that differ by a larger factor are drawn on a logarithmic scale."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Numbers of one party and variant."""

    arm: str
    """Its colour; one that has no look is grey."""
    variant: str
    x: Sequence[float]
    y: Sequence[float]


@rc_context(STYLE)
def over_clips(each: Sequence[Series], looks: Looks, *, title: str) -> Figure:
    """Clips per second over clips a call: one line for each party and variant, with its name at its end."""
    figure, axes = canvas(BROAD, TALL)
    variants = list(dict.fromkeys(one.variant for one in each))
    for one in each:
        place = variants.index(one.variant)
        axes.plot(
            one.x,
            one.y,
            marker=_MARKERS[place % len(_MARKERS)],
            ls=_DASHES[place % len(_DASHES)],
            color=_colour(one.arm, looks),
            lw=1.6,
            ms=5.5,
            markeredgecolor=PAPER,
            mew=0.7,
        )
    ticks = sorted({x for one in each for x in one.x})
    reach = math.log2(max(ticks) / min(ticks)) or 1.0
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ticks) * 2 ** (-0.06 * reach), max(ticks) * 2 ** (0.62 * reach))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    _rates(axes, [y for one in each for y in one.y])
    names = [_name(one.arm, one.variant, looks) for one in each]
    _at_the_end(axes, [(one.x[-1], one.y[-1]) for one in each], names, place=max(ticks) * 2 ** (0.06 * reach))
    axes.set_title(title)
    axes.set_xlabel("clips a call")
    axes.set_ylabel("clips/s (wall)")
    return figure


@rc_context(STYLE)
def waterfall(parts: Mapping[str, float], whole: float, look: Look, *, title: str) -> Figure:
    """What each part of a way takes, one after the other, and below what the whole takes: milliseconds."""
    figure, axes = row_canvas(len(parts) + 1)
    begun = 0.0
    for row, took in enumerate(parts.values()):
        axes.barh(row, took, left=begun, height=0.6, color=look.light, alpha=0.5)
        if row:
            axes.plot([begun] * 2, [row - 1.3, row + 0.3], color=FAINT, lw=0.8)
        begun += took
        _beside(axes, begun, row, shown(took, "number"))
    axes.plot([begun] * 2, [len(parts) - 1.3, len(parts) + 0.3], color=FAINT, lw=0.8, ls=(0, (2, 2)))
    axes.barh(len(parts), whole, height=0.6, color=look.light)
    _beside(axes, max(whole, begun if begun < 1.15 * whole else 0), len(parts), shown(whole, "number"))
    axes.set_xlim(0, 1.14 * max(begun, whole))
    row_names(axes, [*parts, "end to end"])
    axes.set_title(cut(title, _PARTY + _VARIANT + 2))
    axes.set_xlabel("ms a clip (wall)")
    return figure


@rc_context(STYLE)
def calls(each: Sequence[tuple[str, str, Sequence[float]]], looks: Looks, *, title: str) -> Figure:
    """Every call as a dot, in rows: (party, variant, milliseconds). Tall marks are the median, 95 and 99 %."""
    figure, axes = row_canvas(len(each))
    rng = np.random.default_rng(0)
    for row, (arm, _, values) in enumerate(each):
        colour, found = _colour(arm, looks), _thinned(values)
        axes.plot(found, row + rng.uniform(-0.2, 0.2, len(found)), "o", color=colour, ms=2.6, alpha=0.35, mew=0)
        for share, width in ((50, 2.6), (95, 1.6), (99, 1.6)):
            place = float(np.percentile(values, share))
            axes.plot([place] * 2, [row - 0.36, row + 0.36], color=colour, lw=width, solid_capstyle="butt")
    every = [value for _, _, values in each for value in values]
    if max(every) > _FROM_ZERO * min(every):
        axes.set_xscale("log")
        _plain_log(axes, "x")
    else:
        axes.set_xlim(0, 1.04 * max(every))
    axes.set_yticks(range(len(each)), [_name(arm, variant, looks) for arm, variant, _ in each])
    axes.set_title(title)
    axes.set_xlabel("ms a call (wall)")
    return figure


@rc_context(STYLE)
def roofline(
    points: Sequence[tuple[str, str, float, float]], looks: Looks, *, roofs: Mapping[str, float], slope: float
) -> Figure:
    """Multiply-accumulates a second over those a byte: (party, name, intensity, pace), under what the machine can do.

    Args:
        points: the same name has the same mark.
        looks: of the parties.
        roofs: name -> multiply-accumulates a second of large products.
        slope: bytes a second of a copy.
    """
    figure, axes = canvas(BROAD, 3.6)
    intensities = [x for _, _, x, _ in points]
    knees = [roof / slope for roof in roofs.values()]
    left, right = min(*intensities, *knees) / 3, max(*intensities, *knees) * 3
    across = np.geomspace(left, right, 200)
    for name, roof in roofs.items():
        axes.plot(across, np.minimum(roof, slope * across), color=FAINT, lw=1.2)
        # Outside, where no point lies.
        axes.annotate(cut(name), (right, roof), (5, 0), textcoords="offset points", va="center", color=FAINT)
    variants = list(dict.fromkeys(name for _, name, _, _ in points))
    for arm, name, intensity, pace in points:
        marker = _MARKERS[variants.index(name) % len(_MARKERS)]
        axes.plot(
            [intensity], [pace], marker, color=_colour(arm, looks), ms=7, markeredgecolor=PAPER, mew=0.8, zorder=3
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(y for *_, y in points) / 3, 2.2 * max(roofs.values()))
    for place, name in enumerate(variants):
        axes.plot([], [], _MARKERS[place % len(_MARKERS)], color=FAINT, ms=6, mew=0, label=cut(name, _VARIANT))
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, handletextpad=0.2)
    _plain_log(axes, "xy")
    axes.grid(axis="both")
    axes.set_xlabel("multiply-accumulates a byte")
    axes.set_ylabel("multiply-accumulates a second")
    return figure


@rc_context(STYLE)
def accuracy(
    points: Mapping[str, tuple[float, float]], looks: Looks, *, front: Sequence[str], axis: str, log: bool | None = None
) -> Figure:
    """Accuracy over pace: name -> (a second, share), with the line that no other one lies beyond."""
    figure, axes = canvas(BROAD, 3.6)
    paces = [pace for pace, _ in points.values()]
    low, high = min(paces), max(paces)
    reach = max(math.log(high / low), 0.5)
    left, right = low * math.exp(-0.12 * reach), high * math.exp(0.5 * reach)
    line = [(points[name][0], 100 * points[name][1]) for name in front]
    # To its left nothing is lost: a pace below the slowest of the front is reached by that one.
    xs, ys = [left, *(x for x, _ in line)], [line[0][1], *(y for _, y in line)]
    axes.plot([*xs, xs[-1]], [*ys, 0], color=FAINT, lw=1, ls=(0, (3, 3)), drawstyle="steps-pre", zorder=1)
    for name, (pace, share) in points.items():
        look = looks[name]
        axes.plot([pace], [100 * share], look.marker, color=look.light, ms=8.5, markeredgecolor=PAPER, mew=1, zorder=5)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    shares = [100 * share for _, share in points.values()]
    room = max(0.25 * (max(shares) - min(shares)), 2.0)
    axes.set_ylim(max(0.0, min(shares) - room), min(100.0, max(shares) + room))
    _near(axes, [(pace, 100 * share) for pace, share in points.values()], [looks[name].title for name in points])
    _plain_log(axes, "x")
    axes.grid(axis="both")
    axes.set_xlabel(axis)
    axes.set_ylabel("top-1 (%)")
    return figure


@rc_context(STYLE)
def noise(ratios: Sequence[float]) -> Figure:
    """How far one contender is from itself, round by round, in per cent; the band holds the middle 95 %."""
    figure, axes = canvas(BROAD, 2.1)
    percent = 100 * (np.asarray(ratios) - 1)
    low, high = np.percentile(percent, [2.5, 97.5])
    axes.axhspan(low, high, color=LINE, alpha=0.45, lw=0)
    axes.axhline(0, color=FAINT, lw=1)
    axes.plot(np.arange(1, len(percent) + 1), percent, "o", color=INK, ms=4.5, mew=0)
    axes.set_xlim(0.3, len(percent) + 0.7)
    most = 1.25 * max(float(np.abs(percent).max()), 0.1)
    axes.set_ylim(-most, most)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−").replace("+0", "0")))
    axes.set_xlabel("round")
    axes.set_ylabel("off itself (%)")
    return figure


def _colour(arm: str, looks: Looks) -> str:
    return looks[arm].light if arm in looks else FAINT


def _name(arm: str, variant: str, looks: Looks) -> str:
    """Both, none of them cut away by the other."""
    title = looks[arm].title if arm in looks else arm
    return " ".join(part for part in (cut(title, _PARTY), cut(variant, _VARIANT)) if part)


def _beside(axes: Axes, x: float, row: float, text: str) -> None:
    axes.annotate(text, (x, row), (5, 0), textcoords="offset points", va="center", weight="bold")


def _rates(axes: Axes, values: Sequence[float]) -> None:
    """A scale from zero, or a logarithmic one where most would lie on the floor."""
    if max(values) > _FROM_ZERO * min(values):
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        _plain_log(axes, "y")
    else:
        axes.set_ylim(0, 1.08 * max(values))


def _plain_log(axes: Axes, which: str) -> None:
    # Not as mathematics, which a page has no fonts for.
    for one in which:
        axis = axes.xaxis if one == "x" else axes.yaxis
        (low, high) = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value), "size").replace(" ", "")))
        axis.set_minor_formatter(NullFormatter())


def _at_the_end(axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str], *, place: float) -> None:
    """Names of lines, in a column to the right of their ends."""
    (low, high), is_log = axes.get_ylim(), axes.get_yscale() == "log"
    scale = (lambda y: math.log(y)) if is_log else (lambda y: y)
    back = (lambda y: math.exp(y)) if is_log else (lambda y: y)
    gap = (scale(high) - scale(low)) / 15
    places = apart([scale(y) for _, y in ends], gap=gap, low=scale(low), high=scale(high))
    for (x, y), at, name in zip(ends, places, names, strict=True):
        axes.annotate(
            name,
            (x, y),
            (place, back(at)),
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": LINE, "lw": 0.7, "shrinkA": 1, "shrinkB": 4},
        )


def _near(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Names of points, to their right; those that would lie over each other are moved apart."""
    box = axes.transScale.transform(np.array([(x, y) for x, y in points]))
    ((left, low), (right, high)) = axes.transScale.transform(
        np.array([(axes.get_xlim()[0], axes.get_ylim()[0]), (axes.get_xlim()[1], axes.get_ylim()[1])])
    )
    order = sorted(range(len(points)), key=lambda number: box[number][0])
    groups: list[list[int]] = []
    for number in order:
        # A name is about a third of the picture wide.
        if groups and box[number][0] - box[groups[-1][0]][0] < 0.3 * (right - left):
            groups[-1].append(number)
        else:
            groups.append([number])
    for group in groups:
        places = apart([box[number][1] for number in group], gap=(high - low) / 15, low=low, high=high)
        for number, at in zip(group, places, strict=True):
            x, y = points[number]
            _, moved = axes.transScale.inverted().transform((box[number][0], at))
            axes.annotate(
                cut(names[number]),
                (x, y),
                xytext=(13, moved),
                textcoords=("offset points", "data"),
                va="center",
                fontsize=8.5,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
                arrowprops={"arrowstyle": "-", "color": LINE, "lw": 0.7, "shrinkA": 1, "shrinkB": 4},
            )


def _thinned(values: Sequence[float]) -> NDArray[np.float64]:
    ordered: NDArray[np.float64] = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) <= DRAWN_CALLS:
        return ordered
    return np.take(ordered, np.linspace(0, len(ordered) - 1, DRAWN_CALLS).round().astype(int))
