"""Figures as SVG: for a page of either colour scheme, and as files that stand alone.

A figure is drawn once, in colours that stand for something: ink, paper, lines, arms. In the page each becomes a CSS
variable of the colour scheme, and ink becomes `currentColor`; in a file they stay what they are.
"""

import io
import re
import warnings
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from videokd.report.content import Look
from videokd.text import for_terminal, visible

INK, FAINT, LINE, PAPER, HEAT = "#1b1f24", "#5c6570", "#d5dae1", "#fffffe", "#2a6fbb"
"""Text; text beside it; axes and grids; behind all; heat maps, whose strength is their opacity."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "videokd",
    # Class names may have dollars.
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "figure.facecolor": PAPER,
    "font.size": 9.2,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}"
_SCHEME = {INK: "currentColor", FAINT: "var(--faint)", LINE: "var(--line)", PAPER: "var(--paper)", HEAT: "var(--heat)"}


def drawn(figure: Figure) -> str:
    """The figure as an SVG file."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The reader's machine has its own fonts; only the measuring here lacks the letter.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # XML may not hold most control characters.
    return visible(file.getvalue(), keep="\n")


def inlined(text: str, *, name: str, said: str, looks: Mapping[str, Look]) -> str:
    """An SVG for the inside of a page: its colours those of the scheme, its ids its own.

    Args:
        text: what `drawn` returned.
        name: unique in the page; its ids begin with it.
        said: what the picture shows, for who can't see it.
        looks: of the arms, whose colours are in it.
    """
    root = ElementTree.fromstring(text)
    scheme = _SCHEME | {look.light: f"var(--arm-{css_name(arm)})" for arm, look in looks.items()}
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):
        if element.tag.endswith("}metadata"):
            parents[element].remove(element)
    elements = list(root.iter())
    used = {name for element in elements for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    new = {old: f"{name}-{number}" for number, old in enumerate(sorted(used))}
    for element in elements:
        if (identity := element.attrib.pop("id", None)) in new:
            element.set("id", new[str(identity)])
        if (reference := element.attrib.pop(f"{_XLINK}href", None)) is not None:
            element.set("href", reference)
        for key, value in element.attrib.items():
            value = _REFERENCE.sub(lambda found: found[0].replace(found[1], new[found[1]]), value)
            if key in ("style", "fill", "stroke"):
                value = _COLOUR.sub(lambda found: scheme.get(found[0].lower(), found[0]), value)
            element.set(key, value)
    width = float(root.get("width", "0").removesuffix("pt"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update(
        {"role": "img", "aria-label": for_terminal(said), "style": f"--natural: {width / 72 * 96:.0f}px"}
    )
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def css_name(arm: str) -> str:
    """An arm's name as a part of a CSS variable's: letters, digits and hyphens, one name for one arm."""
    return "".join(sign if sign.isascii() and sign.isalnum() else f"-{ord(sign):x}-" for sign in arm)


_REFERENCE = re.compile(r"(?:^|url\()#([^)\s]+)")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
