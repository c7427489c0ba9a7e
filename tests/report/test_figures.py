import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from videokd.report import figures
from videokd.report.content import Span, Spread, shown
from videokd.report.looks import LOOKS, looks_of
from videokd.report.svg import css_name, drawn, inlined

TWO = {"alone": [0.5, 0.6], "distilled": [0.7, 0.8]}


def test_values_are_shown_as_they_are_read() -> None:
    cases = [
        (0.8234, "share", "82.3"),
        (-0.051, "points", "−5.1"),
        (-0.00001, "points", "0.0"),
        (0.0, "points", "0.0"),
        (0.624, "ratio", "62 %"),
        (27_000, "size", "27 k"),
        (2_100_000, "size", "2.1 M"),
        (290_000_000, "size", "290 M"),
        (1234, "count", "1,234"),
        (0.0074, "number", "0.00740"),
        (1.736, "number", "1.74"),
        (None, "share", "–"),
        (Spread(0.8, 0.028), "share", "80.0 ± 2.8"),
        (Spread(0.8, None), "share", "80.0"),
        (Span(0.1, -0.02, 0.22), "points", "+10.0 [−2.0, +22.0]"),
        (Span(0.1, None, None), "points", "+10.0"),
        ("a-b", "text", "a-b"),
    ]
    assert [shown(value, kind) for value, kind, _ in cases] == [text for _, _, text in cases]  # type: ignore[arg-type]


def test_labels_are_moved_apart_and_no_further() -> None:
    places = figures.apart([50.0, 51.0, 80.0], gap=4, low=0, high=100)
    assert places == pytest.approx([48.5, 52.5, 80.0])
    # At the edge the pile moves back in.
    assert figures.apart([1.0, 0.0], gap=4, low=0, high=100) == pytest.approx([4.0, 0.0])


def test_a_picture_takes_its_colours_from_the_page() -> None:
    looks = looks_of(TWO)
    text = inlined(drawn(figures.scores(TWO, looks, axis="top-1")), name="one", said="two arms", looks=looks)
    root = ElementTree.fromstring(text)
    assert (root.get("role"), root.get("aria-label")) == ("img", "two arms")
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert "currentColor" in styles
    assert "var(--arm-alone)" in styles
    assert "var(--arm-distilled)" in styles
    assert not re.findall("#[0-9a-f]{6}", styles)  # nothing is left that one of the schemes would hide
    words = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert "student alone" in words  # text is text, for search and for readers


def test_ids_of_two_pictures_differ_and_references_are_kept() -> None:
    looks = looks_of(TWO)
    ids = []
    for name in ("one", "two"):
        text = inlined(drawn(figures.scores(TWO, looks, axis="top-1")), name=name, said="", looks=looks)
        found = re.findall(r' id="([^"]+)"', text)
        used = re.findall(r'(?:href="|url\()#([^")]+)', text)
        assert used
        assert set(used) == set(found)
        ids += found
    assert len(set(ids)) == len(ids)


def test_class_names_are_text_whatever_they_hold() -> None:
    names = ["<b>bold</b>", "$x_1$", "日本", "#1b1f24", 'url(#p1)" id="x']
    looks = looks_of(TWO)
    figure = figures.dumbbells(names, {arm: [0.1] * 5 for arm in TWO}, looks, before="alone", after="distilled")
    root = ElementTree.fromstring(inlined(drawn(figure), name="one", said="<&>", looks=looks))
    words = {element.text for element in root.iter() if element.tag.endswith("}text")}
    assert set(names) <= words


def test_a_line_that_stopped_early_still_counts_while_it_lasted() -> None:
    looks = looks_of(["alone"])
    figure = figures.curves({"alone": [([1, 2, 3], [1.0, 2.0, 3.0]), ([1, 2], [3.0, 4.0])]}, looks, single=False)
    (line,) = figure.axes[0].lines
    assert line.get_ydata() == pytest.approx([2.0, 3.0, 3.0])


def test_every_arm_has_a_name_for_css_of_its_own() -> None:
    names = ["my way", "my_way", "my-way", "x;}</style>"]
    found = [css_name(name) for name in names]
    assert len(set(found)) == 4
    assert all(re.fullmatch("[A-Za-z0-9-]+", name) for name in found)


@pytest.mark.parametrize(("scheme", "paper"), [("light", "#ffffff"), ("dark", "#14171b")])
def test_arms_are_told_apart_by_eyes_that_lack_a_cone_and_stand_out_from_the_paper(scheme: str, paper: str) -> None:
    colours = [getattr(look, scheme) for look in LOOKS.values()]
    for sight in (np.eye(3), DEUTERANOPIA, PROTANOPIA):
        seen = [_lab(np.clip(sight @ _linear(colour), 0, 1)) for colour in colours]
        distances = [float(np.linalg.norm(one - other)) for one, other in itertools.combinations(seen, 2)]
        assert min(distances) > 15  # CIE76; 2.3 is just noticeable
    for colour in colours:
        dark, light = sorted(float(_linear(one) @ LUMINANCE) for one in (colour, paper))
        assert (light + 0.05) / (dark + 0.05) > 3  # WCAG 2, 1.4.11


# Machado et al. 2009, severity 1, of linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def _linear(colour: str) -> NDArray[np.float64]:
    values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
