import html
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import made_up
import pytest

from videokd.cli import main
from videokd.report.page import write_report
from videokd.report.subject import of_study

EVIL = "<script>alert(1)</script>"
CLASSES = (EVIL, "a | b`", "$x$", "日本", "{{ 7 * 7 }}", 'say "x" & go')


class Elements(HTMLParser):
    """What is in a page: elements, their attributes, its text."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unclosed: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def report(folders: list[Path], out: Path) -> tuple[str, str, dict[str, Any]]:
    written = write_report(folders, out, videos=0)
    return written.page.read_text(), written.markdown.read_text(), json.loads(written.json.read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "a study & more"
    return made_up.study(folder, seeds=2, clips=36, classes=CLASSES)


@pytest.fixture(scope="module")
def three(study: Path) -> tuple[str, str, dict[str, Any]]:
    return report([study], study / "report.html")


def test_all_sections_are_there_and_what_is_not_is_named(three: tuple[str, str, dict[str, Any]]) -> None:
    page, text, numbers = three
    (chapter,) = numbers["chapters"]
    assert list(chapter["sections"]) == [
        "headline",
        "cost",
        "learning",
        "classes",
        "confusion",
        "calibration",
        "views",
        "time",
        "teacher",
        "representations",
        "probes",
        "saliency",
        "debt",
        "card",
        "differences",
    ]
    assert [one["title"] for one in chapter["missing"]] == ["Videos won and lost"]
    for section in chapter["sections"].values():
        assert f"## {section['title']}\n" in text
        assert f"<h2>{section['title']}</h2>" in page
    assert "## Not in this report" in text


def test_what_comes_from_outside_is_text(three: tuple[str, str, dict[str, Any]]) -> None:
    page, text, _ = three
    found = Elements(page)
    assert sum(tag == "script" for tag, _ in found.found) == 1  # ours
    assert any(EVIL in words for words in found.words)
    assert EVIL not in text
    assert "49" not in {words.strip() for words in found.words}  # a template in a name is not run
    assert {name for name in CLASSES if not any(name in words for words in found.words)} == set()


def test_the_page_is_well_formed_and_asks_for_nothing(three: tuple[str, str, dict[str, Any]]) -> None:
    page, _, _ = three
    found = Elements(page)
    assert (found.unclosed, found.open) == ([], [])
    ids = Counter(attributes["id"] for _, attributes in found.found if "id" in attributes)
    assert {name: count for name, count in ids.items() if count > 1} == {}
    for _, attributes in found.found:
        for key in ("src", "href", "srcset", "poster"):
            value = attributes.get(key) or ""
            assert value.startswith(("#", "data:")) or not value
            if value.startswith("#"):
                assert value[1:] in ids
    assert not re.search(r"@import|url\((?!#|data:)", page)
    for tag, attributes in found.found:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


def test_the_json_says_what_study_json_says(three: tuple[str, str, dict[str, Any]], study: Path) -> None:
    _, _, numbers = three
    said = json.loads((study / "study.json").read_text())
    sections = numbers["chapters"][0]["sections"]
    rows = {row["arm"]: row for row in sections["headline"]["tables"][0]["rows"]}
    assert rows["distilled"]["top-1 %"]["mean"] == pytest.approx(said["arms"]["distilled"]["top1_mean"])
    assert rows["distilled"]["against alone, points"] == {
        key: pytest.approx(said["differences"]["distilled"][key]) for key in ("mean", "low", "high")
    }
    assert rows["distilled"]["G"]["mean"] == pytest.approx(said["gap_recovered"]["distilled"]["mean"])
    assert rows["alone"]["G"] is None
    above = rows["shuffled_teacher"]["distilled above it, points"]
    assert above == pytest.approx(said["beyond"]["shuffled_teacher"])
    against = {row["arm"]: row for row in sections["teacher"]["tables"][0]["rows"]}
    assert against["distilled"]["negative flips %"] == pytest.approx(said["against"]["distilled"]["negative_flips"])
    debt = {row["arm"]: row for row in sections["debt"]["tables"][0]["rows"]}
    assert (debt["alone"]["clips scored"], debt["alone"]["skipped"], debt["alone"]["skipped in training"]) == (72, 2, 4)
    assert sections["card"]["recipes"]["Recipe: student distilled, first run"]["seed"] == 0


def test_time_is_worked_out_by_hand(three: tuple[str, str, dict[str, Any]], study: Path) -> None:
    arms = of_study(study).arms
    top1 = {name: arm.scores[0] if name == "teacher" else sum(arm.scores) / 2 for name, arm in arms.items()}
    rows = {row["arm"]: row for row in three[2]["chapters"][0]["sections"]["time"]["tables"][0]["rows"]}
    # Made so: shuffled is chance + .45 (top1 - chance), so .55 (top1 - chance) comes from the order.
    chance = 1 / len(CLASSES)
    for name, score in top1.items():
        assert rows[name]["from order"] == pytest.approx(0.55 * (score - chance))
        assert rows[name]["from motion"] == pytest.approx(0.75 * (score - chance))
    passed = (top1["distilled"] - top1["alone"]) / (top1["teacher"] - top1["alone"])
    assert rows["distilled"]["order passed on"] == pytest.approx(passed)


def test_the_markdown_s_pictures_are_there_and_no_others(three: tuple[str, str, dict[str, Any]], study: Path) -> None:
    links = [unquote(link) for link in re.findall(r"\]\(([^)]+)\)", three[1])]
    assert links
    assert {(study / link).resolve() for link in links} == set((study / "report_pictures").resolve().iterdir())
    # Tables are whole: as many cells in each row as in its head.
    for block in re.findall(r"(?:^\|.*\n)+", three[1], flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_a_run_alone_shows_what_there_is(study: Path, tmp_path: Path) -> None:
    _, _, numbers = report([study / "alone-seed0"], tmp_path / "one.html")
    (chapter,) = numbers["chapters"]
    assert list(chapter["sections"]) == [
        "headline",
        "learning",
        "classes",
        "confusion",
        "calibration",
        "views",
        "time",
        "teacher",
        "debt",
        "card",
    ]
    scores = {row["score"]: row["%"] for row in chapter["sections"]["headline"]["tables"][1]["rows"]}
    assert set(scores) == {"top-1", "top-5", "mean over classes"}
    assert scores["top-1"]["low"] < scores["top-1"]["mean"] < scores["top-1"]["high"]
    assert {one["title"] for one in chapter["missing"]} == {
        "Representations",
        "Probes",
        "Where the nets look",
        "Videos won and lost",
    }


def test_a_run_that_never_finished_names_what_is_missing(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    (run / "recipe.json").write_text((study / "alone-seed0" / "recipe.json").read_text())
    page, _, numbers = report([run], tmp_path / "r.html")
    (chapter,) = numbers["chapters"]
    assert list(chapter["sections"]) == ["card"]
    assert "No scores yet." in page
    commands = {one["title"]: one["command"] for one in chapter["missing"]}
    assert commands["Scores"] == f"videokd evaluate {run}"


def test_a_leak_is_shown_where_nobody_can_miss_it(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "leaky"
    said = made_up.predictions("alone", 0, clips=24)
    taught, *_ = made_up.recipes(study / "teacher")
    made_up.run(run, taught, said)
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"trained_on": 24}))
    page, text, _ = report([run], tmp_path / "r.html")
    assert "24 scored though trained on" in page
    assert "**24 scored clips were trained on" in text


def test_many_classes_are_a_list_and_no_matrix(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(40)]
    folder = made_up.study(tmp_path / "s", arms=("alone", "distilled"), seeds=1, clips=120, classes=names, inside=False)
    _, text, numbers = report([folder], tmp_path / "r.html")
    (table,) = numbers["chapters"][0]["sections"]["confusion"]["tables"]
    assert len(table["rows"]) == 60
    assert "confusion-0.svg" not in text
    assert len(numbers["chapters"][0]["sections"]["classes"]["tables"][0]["rows"]) == 40
    assert "the 24 that changed most are drawn" in text


def test_several_label_sets_are_scored_by_map(tmp_path: Path, study: Path) -> None:
    run = tmp_path / "several"
    taught, *_ = made_up.recipes(study / "teacher")
    made_up.run(run, taught, made_up.predictions("alone", 0, clips=24))
    evaluation = json.loads((run / "evaluation.json").read_text())
    for key in ("top1", "top5", "mean_class_accuracy", "per_class", "confusion", "calibration", "curve"):
        evaluation.pop(key)
    evaluation |= {"map": 0.4, "average_precision": {"grow": 0.3, "split": 0.5}, "intervals": {"map": [0.35, 0.45]}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "predictions.parquet").unlink()
    page, _, numbers = report([run], tmp_path / "r.html")
    assert "Mean average precision 40.0 % on 24 clips of split 'test'" in html.unescape(page).replace(
        "\N{NO-BREAK SPACE}", " "
    )
    (classes,) = numbers["chapters"][0]["sections"]["classes"]["tables"]
    assert [row["class"] for row in classes["rows"]] == ["grow", "split"]


def test_what_an_interval_rests_on_stands_beside_it(tmp_path: Path) -> None:
    folder = made_up.study(tmp_path / "folds", arms=("alone", "distilled"), seeds=2, clips=36, inside=False)
    said = json.loads((folder / "study.json").read_text())
    said["not_compared"] = [3, 5]
    for arm in said["arms"].values():
        arm["pairs"] = [[1, 0], [2, 0]]
    said["arms"]["distilled"]["differs"] = ["data.unlabelled_per_batch"]
    (folder / "study.json").write_text(json.dumps(said))
    page, markdown, numbers = report([folder], tmp_path / "r.html")
    sources = len({f"source {number // 3}" for number in range(36)})
    for text in (html.unescape(page), markdown.replace("\\", "")):
        assert f"72 of {2 * sources} source videos, in 2 folds" in text
        assert "Not as for the student alone: data.unlabelled_per_batch of student distilled." in text
        assert "In a pair up to 5 clips are not compared, since not all of its models could read them." in text
    rows = numbers["chapters"][0]["sections"]["classes"]["tables"][0]["rows"]
    assert {row["clips"] for row in rows} == {6}


def test_two_studies_are_two_chapters_with_ids_of_their_own(study: Path, tmp_path: Path) -> None:
    page, _, numbers = report([study, study], tmp_path / "r.html")
    assert len(numbers["chapters"]) == 2
    ids = Counter(attributes["id"] for _, attributes in Elements(page).found if "id" in attributes)
    assert max(ids.values()) == 1


def test_the_command_writes_three_files_and_says_what_is_missing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study), "--no-clips", "--out", str(tmp_path / "deep" / "r.html")]) == 0
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["r.html", "r.json", "r.md", "r_pictures"]
    assert "left out: Videos won and lost" in capsys.readouterr().out
    assert main(["report", str(study), "--out", str(tmp_path / "r.txt")]) == 1
    assert "its name ends with .html" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1
    assert "holds neither a run" in capsys.readouterr().err
    assert main(["report", str(study), "--videos", "0"]) == 1
    assert main(["report"]) == 1
