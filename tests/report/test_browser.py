"""The report as people see it: in a browser."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up
import pytest

from videokd.report.page import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, drawn_set: Path) -> Path:
    """A whole report, films and all, of a study whose classes and arms have hostile names."""
    folder = tmp_path_factory.mktemp("browser")
    study = made_up.study(folder / "a #study", arms=("alone", "distilled", EVIL), seeds=2, videos=drawn_set)
    many = made_up.study(
        folder / "evil", arms=("alone", "distilled"), seeds=1, clips=24, classes=(EVIL, "b", "c"), inside=False
    )
    written = write_report([study, many], folder / "report.html", videos=1)
    assert [fault for fault in written.faults if "not found from here" not in fault] == []
    return written.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        found = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, file: Path, *, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str], list[str]]:
    """The page, what its console said, and what it asked for."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url[:100]}"))
    page.route("**/*", lambda route: (asked.append(route.request.url[:100]), route.continue_()))
    page.goto(file.as_uri())
    return page, said, asked


def test_nothing_is_said_asked_for_or_broken(browser: Any, page_file: Path) -> None:
    page, said, asked = opened(browser, page_file)
    videos = page.locator("video")
    assert videos.count() == 2
    for number in range(videos.count()):
        videos.nth(number).scroll_into_view_if_needed()
        page.wait_for_function(
            "video => video.readyState >= 2 && !video.error", arg=videos.nth(number).element_handle()
        )
    broken = page.evaluate("[...document.images].filter(one => !one.complete || one.naturalWidth === 0).length")
    assert page.evaluate("document.images.length") == 6
    assert broken == 0
    # Every picture is drawn, and its texts are there.
    empty = page.evaluate("[...document.querySelectorAll('svg')].filter(one => one.getBBox().width < 50).length")
    assert empty == 0
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]


def test_names_from_outside_are_shown_and_not_run(browser: Any, page_file: Path) -> None:
    page, said, _ = opened(browser, page_file)
    assert page.locator("table").get_by_text(EVIL, exact=True).count() > 0
    assert said == []


def test_clips_move_unless_less_motion_is_wanted(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file)
    video = page.locator("video").first
    video.scroll_into_view_if_needed()
    page.wait_for_function("video => video.currentTime > 0 && !video.paused", arg=video.element_handle())
    context = browser.new_context(reduced_motion="reduce")
    still = context.new_page()
    still.goto(page_file.as_uri())
    video = still.locator("video").first
    video.scroll_into_view_if_needed()
    still.wait_for_timeout(500)
    assert still.evaluate("video => video.paused && video.controls", arg=video.element_handle())


def test_a_click_or_a_key_sorts_a_table(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file)
    table = page.locator("#c0-s-confusion table")
    head = table.locator("thead th").nth(4)
    button = head.locator("button")

    def column(place: int) -> list[str]:
        return [text.strip() for text in table.locator(f"tbody tr > :nth-child({place + 1})").all_inner_texts()]

    def numbers() -> list[float]:
        return [float(text.replace("−", "-")) for text in column(4)]

    before = sorted(zip(column(0), column(1), column(4), strict=True))
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    assert len(set(numbers())) > 1
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    # Rows stay whole.
    assert sorted(zip(column(0), column(1), column(4), strict=True)) == before
    table.locator("thead button").first.click()
    assert column(0) == sorted(column(0))
    assert head.get_attribute("aria-sort") == "none"


def test_what_is_unknown_stays_at_the_end(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file)
    table = page.locator("#c0-s-headline table").first
    button = table.get_by_role("button", name="against alone")
    for _ in range(2):
        button.click()
        cells = table.locator("tbody tr > :nth-child(4)").all_inner_texts()
        assert cells[-2:] == ["–", "–"]
        assert "–" not in cells[:-2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser: Any, page_file: Path, scheme: str) -> None:
    page, _, _ = opened(browser, page_file, scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    colours = page.evaluate(_COLOURS)
    assert len(colours) > 3
    for colour, behind, text in colours:
        assert contrast(colour, behind) >= 4.5, (text, colour, behind)  # WCAG 2, 1.4.3


@pytest.mark.parametrize("width", [390, 320, 820])
def test_a_phone_never_scrolls_sideways(browser: Any, page_file: Path, width: int) -> None:
    page, _, _ = opened(browser, page_file, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wide scrolls in a box of its own.
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some(one => one.scrollWidth > one.clientWidth)")
    small = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.panel svg')].map(svg => svg.getBoundingClientRect().width"
        " / svg.viewBox.baseVal.width * 8))"
    )
    assert small > 5 or width < 390  # pixels of the smallest letters


def test_links_of_the_contents_lead_somewhere(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file)
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")
        assert page.locator(f'[id="{target[1:]}"]').count() == 1


def luminance(colour: str) -> float:
    values = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


_COLOURS = """
() => {
  const seen = new Map();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    let behind = "rgba(0, 0, 0, 0)";
    for (let one = element; one && behind === "rgba(0, 0, 0, 0)"; one = one.parentElement)
      behind = getComputedStyle(one).backgroundColor;
    const colour = element.closest("svg") ? style.fill : style.color;
    seen.set(colour + behind, [colour, behind, element.textContent.trim().slice(0, 30)]);
  }
  return [...seen.values()];
}
"""
