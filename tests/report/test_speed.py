import html
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import made_up_speed
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from videokd.bench.results import Measurement, Results, Round, read_results, write_results
from videokd.report.content import Chapter, Plot, Table
from videokd.report.page import plots_of
from videokd.report.speed import figures as speed_figures
from videokd.report.speed.page import speed_chapter, speed_looks, together, write_speed_page

CHROMIUM = shutil.which("chromium")
EVIL = "<script>alert(1)</script>"


def table(chapter: Chapter, section: str, number: int = 0) -> list[dict[str, Any]]:
    """Rows of a table, by the titles of its columns."""
    (found,) = [one for one in chapter.sections if one.name == section]
    tables = [block for block in found.blocks if isinstance(block, Table)]
    titles = [column.title for column in tables[number].columns]
    return [dict(zip(titles, row, strict=True)) for row in tables[number].rows]


def plot(chapter: Chapter, name: str) -> Plot:
    (found,) = [one for one in plots_of(chapter) if one.name == name]
    return found


def words(figure: Figure) -> str:
    axes = figure.axes[0]
    texts = [*axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels(), axes.title]
    return " ".join(text.get_text() for text in texts)


def by_hand(
    party: str, stage: Any, walls: Sequence[float], *, clips: int = 4, variant: str = "eager", **more: Any
) -> Measurement:
    """Rounds of two calls."""
    rounds = [Round(calls=2, wall=wall, cpu=wall, device=None, yardstick=0.1) for wall in walls]
    return Measurement(party=party, stage=stage, variant=variant, clips=clips, rounds=rounds, **more)


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up_speed.results()


@pytest.fixture(scope="module")
def chapter(results: Results) -> Chapter:
    return speed_chapter(results)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two results, one of which has hostile names."""
    evil = made_up_speed.renamed(made_up_speed.results(EVIL), made_up_speed.TEACHER, f"{EVIL}$x$")
    evil = replace(evil, notes=[f"bound by {EVIL}"], setting=evil.setting | {"format": EVIL, "{{ 7 * 7 }}": EVIL})
    other = made_up_speed.results("other", teacher="", on_gpu=False, slower=3.0, variants=("eager",))
    return write_speed_page([evil, other], tmp_path_factory.mktemp("speed") / "a page & more.html").page


def test_every_measurement_is_in_the_table(results: Results, chapter: Chapter) -> None:
    rows = table(chapter, "measurements")
    found = [(row["party"] or "", row["stage"], row["variant"], row["clips a call"]) for row in rows]
    assert found == [(one.party, one.stage, one.variant, one.clips) for one in results.measurements]
    assert len(set(found)) == len(found) > 30


def test_all_sections_are_there(chapter: Chapter) -> None:
    assert [one.name for one in chapter.sections] == [
        "answer",
        "throughput",
        "stages",
        "latency",
        "limits",
        "accuracy",
        "measurements",
        "noise",
        "caveats",
        "card",
    ]
    assert chapter.missing == []


def test_numbers_of_the_table_are_worked_out_by_hand() -> None:
    one = by_hand(
        "student",
        "inference",
        [1.0, 1.0, 2.0],
        latencies=[0.1] * 50 + [0.2] * 50,
        first_call=7.0,
        joules=8.0,
        peak_device_bytes=5000,
        warm_up=3,
    )
    chapter = speed_chapter(Results(subject="s", setting={"clock": "cpu"}, measurements=[one]))
    (row,) = table(chapter, "measurements")
    # 3 rounds of 2 calls of 4 clips, in 4 s: 6 clips/s. Half of the calls take 0.1 s, half 0.2 s: the median is 0.15.
    assert row["clips/s (wall)"] == pytest.approx(6.0)
    assert row["p50 ms (wall)"] == pytest.approx(150.0)
    assert row["p99 ms (wall)"] == pytest.approx(200.0)
    # Of 0.5, 0.5 and 1 s a call the deviations from the median are 0, 0 and 0.5.
    assert row["spread % (wall)"] == pytest.approx(0.0)
    assert (row["first call, s (wall)"], row["J/clip"], row["peak of GPU, bytes"], row["warm-up calls"]) == (
        7.0,
        2.0,
        5000,
        3,
    )
    # What nobody knows has no column.
    assert set(row) == {
        *("party", "stage", "variant", "clips a call", "clips/s (wall)", "p50 ms (wall)", "p95 ms (wall)"),
        *(
            "p99 ms (wall)",
            "spread % (wall)",
            "ms/call",
            "clock of it",
            "of the CPU %",
            "first call, s (wall)",
            "J/clip",
        ),
        *("peak of GPU, bytes", "warm-up calls"),
    }


def test_the_answer_sets_the_student_beside_its_teacher() -> None:
    student = by_hand("student", "inference", [1.0, 2.0, 1.0])
    teacher = by_hand("big", "inference", [3.0, 6.0, 3.0])
    chapter = speed_chapter(Results(subject="s", setting={"clock": "cpu"}, measurements=[teacher, student]))
    (row,) = table(chapter, "answer")
    # 24 clips in 4 s, and in 12 s; in every round the teacher takes three times as long.
    assert (row["student, clips/s (wall)"], row["big, clips/s (wall)"]) == (pytest.approx(6.0), pytest.approx(2.0))
    assert (row["student over big"].mean, row["student over big"].low) == (pytest.approx(3.0), pytest.approx(3.0))
    said = "The student does 6.00 clips/s (wall) inference (eager, 4 clips a call), 3.00 times as many as big."
    assert chapter.verdict == said


def test_the_headline_sets_the_fastest_beside_the_fastest() -> None:
    """The teacher is slower in ONNX Runtime than it need be."""
    timed = [
        by_hand("student", "inference", [1.0, 1.0, 1.0], variant="onnx"),
        by_hand("big", "inference", [10.0, 10.0, 10.0], variant="onnx"),
        by_hand("big", "inference", [4.0, 4.0, 4.0], variant="bf16"),
    ]
    chapter = speed_chapter(Results(subject="s", setting={"clock": "cpu"}, measurements=timed))
    assert chapter.verdict.endswith("(onnx, 4 clips a call), 4.00 times as many as big (bf16, 4 clips a call).")


def test_a_failure_is_said_and_drawn_nowhere(results: Results, chapter: Chapter) -> None:
    teacher = made_up_speed.TEACHER
    (row,) = [
        row
        for row in table(chapter, "measurements")
        if (row["party"], row["stage"], row["variant"], row["clips a call"]) == (teacher, "inference", "eager", 16)
    ]
    assert row["no figure, since"] == "out of memory"
    assert [row[title] for title in ("clips/s (wall)", "p50 ms (wall)", "spread % (wall)")] == [None, None, None]
    (answer,) = [
        row
        for row in table(chapter, "answer")
        if (row["stage"], row["variant"], row["clips a call"]) == ("inference", "eager", 16)
    ]
    assert answer[f"{teacher}, clips/s (wall)"] == "out of memory"
    assert answer[f"student over {teacher}"] is None
    rates = plot(chapter, "throughput")
    assert "vit_large · inference · eager · 16 clips (out of memory)" in rates.caption
    for panel in rates.panels:
        for line in panel.figure.axes[0].lines:
            assert min(line.get_ydata()) > 0
    # Of the teacher's eager line two of three points are left; nothing of onnx is drawn.
    assert Counter(len(line.get_xdata()) for line in rates.panels[0].figure.axes[0].lines) == {3: 5, 2: 1}
    assert "onnx" not in " ".join(words(panel.figure) for one in plots_of(chapter) for panel in one.panels)
    notes = json.dumps([vars(block) for one in chapter.sections if one.name == "caveats" for block in one.blocks])
    assert "vit_large \\u00b7 inference \\u00b7 eager \\u00b7 16 clips has no figure: out of memory." in notes
    assert "stored step \\u00b7 eager \\u00b7 16 clips still became faster" in notes


def test_parts_stand_beside_the_whole_way() -> None:
    # 8 clips in 2 calls: 0.8 s are 100 ms a clip.
    measurements = [
        by_hand("", "load", [0.48]),
        by_hand("student", "inference", [0.24]),
        by_hand("student", "end to end", [0.8]),
    ]
    chapter = speed_chapter(Results(subject="s", setting={}, measurements=measurements))
    (row,) = table(chapter, "stages")
    assert (row["load, ms (wall)"], row["inference, ms (wall)"], row["end to end, ms (wall)"]) == pytest.approx(
        (60.0, 30.0, 100.0)
    )
    assert (row["parts / whole %"], row["longest / whole %"]) == pytest.approx((0.9, 0.6))
    (panel,) = plot(chapter, "stages").panels
    bars = [(bar.get_x(), bar.get_width()) for bar in panel.figure.axes[0].patches]
    assert bars == [pytest.approx(one) for one in ((0, 60), (60, 30), (0, 100))]


def test_the_limit_and_real_time_are_those_of_the_network(results: Results, chapter: Chapter) -> None:
    (row,) = [
        row
        for row in table(chapter, "limits", 1)
        if (row["party"], row["variant"], row["clips a call"]) == ("student", "eager", 4)
    ]
    # 4.1 GMAC at 24 T a second are 0.171 ms; 9.2 MB / 4 + 180 MB at 1.2 T are 0.152.
    assert row["at least, ms/clip"] == pytest.approx(4.1e9 / 24e12 * 1000)
    assert (row["bytes/clip"], row["bound by"]) == (182_300_000, "arithmetic")
    (rate,) = [
        one["clips/s (wall)"] for one in table(chapter, "measurements") if _is(one, "student", "inference", "eager", 4)
    ]
    assert row["of the limit %"] == pytest.approx(4.1e9 / 24e12 * rate)
    assert row["× real time, inference"] == pytest.approx(1.28 * rate)
    (network, _) = table(chapter, "limits", 0)
    assert (network["GMAC/clip"], network["GMAC × views"]) == (pytest.approx(4.1), pytest.approx(12.3))


def test_accuracy_stands_over_the_videos_that_its_views_allow(results: Results, chapter: Chapter) -> None:
    (found,) = [one for one in chapter.sections if one.name == "accuracy"]
    numbers = found.blocks[0].numbers  # type: ignore[union-attr]
    for party, accuracy, videos, views, clips, _ in numbers.rows:  # type: ignore[union-attr]
        (network,) = [one for one in results.networks if one.party == party]
        assert (accuracy, views) == (network.accuracy, network.views)
        assert videos == pytest.approx(clips / network.views)  # type: ignore[operator]
    marks = [line for line in plot(chapter, "accuracy").panels[0].figure.axes[0].lines if len(line.get_xdata()) == 1]
    drawn = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marks]
    assert drawn == [pytest.approx((row[2], 100 * row[1])) for row in numbers.rows]  # type: ignore[union-attr, operator]
    # Scored by other views than it is to be priced for.
    scored = replace(results, networks=[replace(one, accuracy_views=7) for one in results.networks])
    (found,) = [one for one in speed_chapter(scored).sections if one.name == "accuracy"]
    for _, _, videos, views, clips, _ in found.blocks[0].numbers.rows:  # type: ignore[union-attr]
        assert (views, videos) == (7, pytest.approx(clips / 7))
    without = replace(results, networks=[replace(one, accuracy=None) for one in results.networks])
    assert [one.title for one in speed_chapter(without).missing] == ["Accuracy over rate"]


def test_networks_of_other_machines_are_not_compared_in_silence(results: Results) -> None:
    def warned(*each: Results) -> bool:
        return any(getattr(block, "warns", False) for block in together(each).sections[0].blocks)

    assert not warned(results, made_up_speed.results("b"))
    assert warned(results, made_up_speed.results("b", on_gpu=False))
    rows = table(together([results, made_up_speed.results("b", teacher="")]), "networks")
    assert [row["network"] for row in rows] == ["0 student", "0 vit_large", "1 student"]


def test_nothing_measured_is_said_and_not_drawn(tmp_path: Path) -> None:
    failed = Measurement(party="student", stage="inference", variant="eager", clips=1, error="out of memory")
    for measurements, said in (([], "Nothing was measured."), ([failed], "Nothing could be measured.")):
        chapter = speed_chapter(Results(subject="s", setting={}, measurements=measurements))
        assert chapter.verdict == said
        assert plots_of(chapter) == []
        assert "Rates" in {one.title for one in chapter.missing}
    page = write_speed_page([Results(subject="s", setting={}, measurements=[failed])], tmp_path / "p.html").page
    assert "out of memory" in page.read_text()


def test_the_page_has_its_name_and_results(tmp_path: Path, results: Results) -> None:
    with pytest.raises(ValueError, match=r"its name ends with \.html"):
        write_speed_page([results], tmp_path / "page.txt")
    with pytest.raises(ValueError, match="at least one result"):
        write_speed_page([], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_parties_are_told_apart_whatever_their_names() -> None:
    looks = speed_looks(["distilled", "student", "teacher", "alone", "student"])
    assert {name: look.title for name, look in looks.items()} == {name: name for name in looks}
    assert len({look.light for look in looks.values()}) == 4
    assert speed_looks(["student"])["student"] == looks["student"]


def test_every_picture_is_there_as_svg_and_as_png(written: Path) -> None:
    folder = written.with_name(f"{written.stem}_pictures")
    found = {path.name for path in folder.iterdir()}
    names = {name.removesuffix(".svg") for name in found if name.endswith(".svg")}
    assert found == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}
    assert {name.split("-")[1] for name in names} == {
        *("accuracy", "latency", "limits", "noise", "roofline", "stages", "throughput"),
    } - {"limits"}
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    text = written.with_suffix(".md").read_text()
    assert {unquote(link).split("/")[1] for link in re.findall(r"!\[.*?\]\(([^)]+)\)", text)} == {
        f"{name}.svg" for name in names
    }
    page = written.read_text()
    assert page.count("<svg") == len(names)


def test_names_from_outside_are_text(written: Path) -> None:
    page = written.read_text()
    assert page.count("<script>") == 1  # ours
    assert EVIL in html.unescape(page)
    assert "{{ 7 * 7 }}" in html.unescape(page)
    # In Markdown the one place for it as it is, is a block of code.
    assert EVIL not in re.sub(
        r"^```.*?^```$", "", written.with_suffix(".md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    for picture in written.with_name(f"{written.stem}_pictures").glob("*.svg"):
        assert "<script" not in picture.read_text()


def test_the_colours_of_pictures_are_the_page_s(written: Path) -> None:
    for svg in re.findall(r"<svg.*?</svg>", written.read_text(), flags=re.DOTALL):
        styles = " ".join(re.findall(r'(?:style|fill|stroke)="([^"]*)"', svg))
        assert not re.findall("#[0-9a-f]{6}", styles)


def test_results_of_the_page_s_name_are_left_alone(tmp_path: Path) -> None:
    found = made_up_speed.results(teacher="", variants=("eager",))
    write_results(tmp_path / "bench.json", found)
    write_speed_page([read_results(tmp_path / "bench.json")], tmp_path / "bench.html")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bench.html", "bench.json", "bench.md", "bench_pictures"]
    assert read_results(tmp_path / "bench.json").subject == found.subject


def test_the_slowest_of_many_calls_is_drawn() -> None:
    times = [1.0 + number / 1000 for number in range(2000)] + [9.0]
    figure = speed_figures.calls([("student", "eager", times)], speed_looks(["student"]), title="")
    dots = figure.axes[0].lines[0].get_xdata()
    assert len(dots) == speed_figures.DRAWN_CALLS
    assert (min(dots), max(dots)) == (1.0, 9.0)


def test_labels_of_near_points_do_not_lie_over_each_other() -> None:
    points = {f"n{number}": (100.0 + number, 0.7 + 0.001 * number) for number in range(6)}
    figure = speed_figures.accuracy(points, speed_looks(list(points)), front=["n5"], axis="videos/s")
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the line to the point
    heights = sorted(box.y0 for box in boxes)
    assert min(after - before for before, after in pairwise(heights)) > 0.7 * boxes[0].height


def _is(row: dict[str, Any], *values: Any) -> bool:
    return tuple(row[title] for title in ("party", "stage", "variant", "clips a call")) == values


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_all_and_sorts(written: Path, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme).new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(written.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        pictures = "[...document.querySelectorAll('svg')]"
        assert page.evaluate(f"{pictures}.length") > 12
        assert page.evaluate(f"{pictures}.filter(one => one.getBBox().width < 50).length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # Numbers from the largest down, and back; what failed stays at the end of both.
        rates = page.locator("#c1-s-answer table")
        button = rates.locator("thead th").nth(4).locator("button")
        for reverse in (True, False):
            button.click()
            cells = rates.locator("tbody tr > :nth-child(5)").all_inner_texts()
            numbers = [float(cell.replace(",", "")) for cell in cells if re.fullmatch(r"[\d.,]+", cell)]
            assert len(numbers) > 10
            assert numbers == sorted(numbers, reverse=reverse)
            assert {"out of memory", "–"} <= set(cells[len(numbers) :])
        # Its files load on their own, too.
        for picture in written.with_name(f"{written.stem}_pictures").glob("*.png"):
            page.goto(picture.as_uri())
            assert page.evaluate("document.images[0].naturalWidth") > 300
        browser.close()
        assert said == []
