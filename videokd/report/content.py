"""What a report is made of, before anything is drawn: sections of text, tables, plots and films of plain values.

The page, its Markdown and its JSON are three renderings of this, so that none says what the others don't.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

Kind = Literal["text", "name", "arm", "share", "points", "ratio", "count", "number", "size", "seconds"]
"""How a column's values are shown. Values are plain: a share of 0.82 is shown as 82.0 under a title that says %, points
are differences of shares, a ratio is a share without decimals, a size is shown with its metric prefix. A name is a
text that is not broken into lines."""


@dataclass(frozen=True)
class Spread:
    """A mean over runs and its standard deviation; None for a single run."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Span:
    """A value with the ends of its 95 % interval; None where there is none."""

    mean: float
    low: float | None
    high: float | None


Cell = str | int | float | Spread | Span | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """Title of a column, and how its values are shown."""

    title: str
    kind: Kind = "number"
    note: str = ""
    """What it means, for the reader who points at the title."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of plain values under their columns."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    folded: bool = False
    """Whether it is shown only when its title is opened: the numbers behind a plot."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a plot."""

    figure: Figure
    said: str
    """What it shows, for who can't see it."""
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Pictures that share a caption, with the numbers that they show."""

    name: str
    """Unique in its chapter; names its files."""
    caption: str
    """How to read it, and what is good."""
    panels: Sequence[Panel]
    arms: Sequence[str] = ()
    """Which colours the legend explains; none where the axes do."""
    numbers: Table | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A few numbers that are shown large."""

    items: Sequence[tuple[str, str, str]]
    """Value, what it is, what is good or how sure it is."""


@dataclass(frozen=True, kw_only=True)
class Prose:
    """A paragraph, or a list of sentences."""

    text: str = ""
    items: Sequence[str] = ()
    warns: bool = False
    """Whether it says what speaks against the numbers."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text to be copied, such as a recipe."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a net said of one video."""

    arm: str
    top: Sequence[tuple[str, float]]
    """Classes and probabilities, the most likely first."""
    seconds: Sequence[float]
    """Moments at which the video was cut off."""
    confidence: Sequence[float]
    """Probability of the true class, had the video ended there."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a file's content."""

    data: bytes
    media: str
    said: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Film:
    """One video, with what two nets made of it."""

    id: str
    path: str
    label: str
    said: str
    """Why it was chosen."""
    fault: str = ""
    """Why it can't be shown, where it can't."""
    clip: bytes = b""
    """H.264 in MP4; empty where it can't be shown."""
    clip_size: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    strips: Sequence[tuple[str, Picture]] = ()
    """Title and picture: frames side by side, plain or under a net's saliency."""
    answers: Sequence[Answer] = ()
    plot: Plot | None = None


@dataclass(frozen=True, kw_only=True)
class Films:
    """Videos under a title: those that were won, those that were lost."""

    title: str
    note: str
    films: Sequence[Film]


Block = Table | Plot | Figures | Prose | Code | Films


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report under its title."""

    name: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""
    """What is asked here, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A part that the data at hand does not give."""

    title: str
    why: str
    command: str = ""
    """What would make it."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an arm is named and drawn, everywhere the same."""

    title: str
    light: str
    """Colour on white, #rrggbb."""
    dark: str
    """Colour on black."""
    marker: str
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """All that is said of one study, or of a few runs."""

    title: str
    verdict: str
    """Its first sentence is the headline."""
    facts: Sequence[tuple[str, str]]
    """Name and value, one line each."""
    looks: Mapping[str, Look]
    sections: Sequence[Section]
    missing: Sequence[Missing]


def shown(cell: Cell, kind: Kind) -> str:
    """A value as it is read."""
    if cell is None:
        return "–"
    if isinstance(cell, Spread):
        spread = "" if cell.sd is None else f" ± {_magnitude(cell.sd, kind)}"
        return f"{shown(cell.mean, kind)}{spread}"
    if isinstance(cell, Span):
        known = cell.low is not None and cell.high is not None
        ends = f" [{shown(cell.low, kind)}, {shown(cell.high, kind)}]" if known else ""
        return f"{shown(cell.mean, kind)}{ends}"
    if isinstance(cell, str):
        return cell
    if kind == "size":
        return _metric(cell)
    if kind == "count":
        return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.1f}"
    signs = {"points": f"{100 * cell:+.1f}", "share": f"{100 * cell:.1f}", "ratio": f"{100 * cell:.0f} %"}
    text = signs.get(kind) or (f"{cell:,.0f} s" if kind == "seconds" else _significant(cell))
    # A difference of nothing has no sign, and a minus is as wide as a plus.
    return text.replace("-", "−") if text.strip("+-0. %") else text.strip("+-")


def plain(cell: Cell) -> Any:
    """A value, ready for JSON."""
    return asdict(cell) if isinstance(cell, Spread | Span) else cell


def order_of(cell: Cell) -> float | str | None:
    """What a value is sorted by."""
    return cell.mean if isinstance(cell, Spread | Span) else cell


def _significant(value: float) -> str:
    """Three figures, with the zeros that keep a column in line."""
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:#.3g}".rstrip(".")
        if abs(value) < 1000
        else f"{value:,.0f}"
    )


def _magnitude(value: float, kind: Kind) -> str:
    return shown(value, kind).lstrip("+")


def _metric(value: float) -> str:
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {prefix}" if abs(value) < 999.5 * unit else f"{value / unit:,.0f} {prefix}"
    return f"{value:.3g}"
