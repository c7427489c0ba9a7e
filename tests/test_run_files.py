"""Damaged result files are refused with their name, what is wrong, and how to make them again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.made_up import study as made_study
from videokd.cli import main
from videokd.json_files import Between, Count, Share, check, read_object
from videokd.predictions import read_predictions, write_predictions
from videokd.report.subject import subjects
from videokd.run_files import read_evaluation, read_inside, read_study


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study(tmp_path_factory.mktemp("damaged") / "study", arms=("alone", "distilled"), seeds=2, clips=48)


def changed(path: Path, **changes: Any) -> Callable[[], None]:
    """Write a JSON object with other values at dotted names ("a__b"), and return what puts it back."""
    before = path.read_text()
    found = json.loads(before)
    for name, value in changes.items():
        *outer, last = name.split("__")
        part = found
        for key in outer:
            part = part[key]
        if value is KeyError:
            del part[last]
        else:
            part[last] = value
    path.write_text(json.dumps(found))
    return lambda: path.write_text(before) and None


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"classes": KeyError}, "classes is missing"),
        ({"classes": "abc"}, "classes is 'abc', and should be a list"),
        ({"classes": ["a", "a"]}, "its classes name 'a' twice"),
        ({"top1": "high"}, "top1 is 'high', and should be a number"),
        ({"top1": 95.3}, "top1 is 95.3, and should be a number from 0 to 1"),
        ({"top1": True}, "top1 is True, and should be a number"),
        ({"top1": None}, "top1 is None, and should be a number"),
        ({"top1": KeyError}, "it has neither top1 nor map"),
        ({"top1": float("nan")}, "top1 is nan, and should be a number"),
        ({"macs": float("inf")}, "macs is inf, and should be a number"),
        ({"params": -3}, "params is -3, and should be a number from 0 to inf"),
        ({"params": 1.5}, "params is 1.5, and should be a whole number"),
        ({"skipped": 3}, "skipped is 3, and should be a list"),
        ({"temporal": [0.5]}, r"temporal is \[0.5\], and should be an object"),
        ({"temporal__shuffled": None}, "temporal.shuffled is None, and should be a number"),
        ({"per_class": {"zebra": {"clips": 1}}}, "per_class has 'zebra', which is not among its 12 classes"),
        ({"confusion": [[1, 2], [3, 4]]}, "confusion has not 12 rows and columns"),
        ({"intervals": {"top1": [0.9, 0.1]}}, "intervals.top1 is"),
        ({"views": {"temporal": 1}}, "views.spatial is missing"),
        ({"calibration": {"nll": 1.0}}, "calibration.brier is missing"),
        ({"curve": [{"temporal": 1}]}, r"curve\[0\].spatial is missing"),
        ({"protocol": {"name": "ucf101"}}, "protocol.said is missing"),
    ],
)
def test_a_damaged_evaluation_is_refused(whole: Path, changes: dict[str, Any], wrong: str) -> None:
    path = whole / "alone-seed1" / "evaluation.json"
    put_back = changed(path, **changes)
    try:
        with pytest.raises(ValueError, match=wrong) as caught:
            read_evaluation(path.parent)
    finally:
        put_back()
    assert str(path) in str(caught.value)
    assert f"make it again with: videokd evaluate {path.parent}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "3", "\x00", "[" * 100_000, '{"classes": 1e999}'])
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation\.json (is|has) .*make it again with: videokd evaluate"):
        read_evaluation(tmp_path)


def test_a_json_file_that_is_too_large_or_not_utf_8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.json is not JSON: .*utf-8"):
        read_object(path)
    monkeypatch.setattr("videokd.json_files.MAX_BYTES", 8)
    with pytest.raises(ValueError, match=r"a\.json has 0 MiB"):
        read_object(path)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"arms": KeyError}, "arms is missing"),
        ({"arms__alone__runs": ["../../secret"]}, "names a run of alone outside of its folder: '../../secret'"),
        ({"teacher__runs": ["/etc"]}, "names a run of teacher outside of its folder: '/etc'"),
        ({"arms__alone__pairs": [[1], [1, 1]]}, "a pair of alone is a fold and a seed"),
        ({"arms__alone__top1_each": ["0.5"]}, r"arms.alone.top1_each\[0\] is '0.5', and should be a number"),
        ({"differences__distilled": {"low": 1}}, "differences.distilled.mean is missing"),
        ({"gap_recovered": [1]}, r"gap_recovered is \[1\], and should be an object"),
        ({"verdict": 3}, "verdict is 3, and should be text"),
        ({"chance": 2}, "chance is 2, and should be a number from 0 to 1"),
    ],
)
def test_a_damaged_study_is_refused(whole: Path, changes: dict[str, Any], wrong: str) -> None:
    put_back = changed(whole / "study.json", **changes)
    try:
        with pytest.raises(ValueError, match=wrong) as caught:
            read_study(whole)
    finally:
        put_back()
    assert str(whole / "study.json") in str(caught.value)
    assert "make it again with: videokd study STUDY" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"clips": KeyError}, "clips is missing"),
        ({"notes": [3]}, r"notes\[0\] is 3, and should be text"),
        ({"cka": 3}, "cka is 3, and should be an object"),
        ({"cka__taps__student": ["one"]}, "has not 1 rows of"),
        ({"saliency__agreement": {"alone": 0.5}}, "saliency.agreement.alone is 0.5, and should be an object"),
    ],
)
def test_a_damaged_look_inside_is_refused(whole: Path, changes: dict[str, Any], wrong: str) -> None:
    put_back = changed(whole / "inside.json", **changes)
    try:
        with pytest.raises(ValueError, match=wrong) as caught:
            read_inside(whole)
    finally:
        put_back()
    assert str(whole / "inside.json") in str(caught.value)


def test_report_and_compare_name_the_bad_run_of_several(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = whole / "distilled-seed1"
    kept = (bad / "predictions.parquet").read_bytes()
    import pyarrow.parquet as pq

    table = pq.read_table(bad / "predictions.parquet")
    classes = json.dumps([f"other {number}" for number in range(12)])
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"classes": classes}), bad / "predictions.parquet"
    )
    runs = [str(whole / name) for name in ("alone-seed0", "alone-seed1", "distilled-seed0", "distilled-seed1")]
    try:
        assert main(["report", *runs, "--videos", "1", "--out", str(tmp_path / "r.html")]) == 1
        said = capsys.readouterr().err
        assert f"{bad / 'predictions.parquet'} is not a file of predictions" in said
        assert "are not among its 12 classes" in said
        assert main(["report", *runs, "--no-clips", "--out", str(tmp_path / "r.html")]) == 0
        assert str(bad / "predictions.parquet") in (tmp_path / "r.md").read_text().replace("\\", "")
        capsys.readouterr()
        assert main(["compare", *runs]) == 0
        assert "are not among its 12 classes" in " ".join(capsys.readouterr().out.split())
    finally:
        (bad / "predictions.parquet").write_bytes(kept)


def test_runs_and_what_was_found_inside_them_may_be_moved_together(whole: Path, tmp_path: Path) -> None:
    for name in ("teacher", "alone-seed0", "distilled-seed0"):
        (tmp_path / name).mkdir()
        for file in (whole / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    inside = json.loads((whole / "inside.json").read_text())
    runs = ["../teacher", "../alone-seed0", "."]
    (tmp_path / "distilled-seed0" / "inside.json").write_text(json.dumps(inside | {"runs": runs}))
    folders = [tmp_path / name for name in ("teacher", "alone-seed0", "distilled-seed0")]
    (subject,) = subjects(folders)
    assert subject.inside["clips"] == inside["clips"]
    (subject,) = subjects(folders[:1] + folders[2:])
    assert not subject.inside  # it compares a run that is not shown


def test_predictions_of_a_run_read_from_another_folder_have_absolute_paths(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_predictions(whole / "teacher")
    monkeypatch.chdir(tmp_path)
    write_predictions(tmp_path, found.rows(found.is_labelled))
    assert all(Path(path).is_absolute() for path in read_predictions(tmp_path).paths)


def test_types_of_json_are_checked() -> None:
    check({"a": [1, None]}, dict[str, list[int | None]])
    check(1, float)
    check(3, Count)
    assert Share.__metadata__ == (Between(0.0, 1.0),)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"a\[1\] is 'x', and should be a whole number"):
        check({"a": [1, "x"]}, dict[str, list[int | None]])
