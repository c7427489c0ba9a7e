import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from videokd.contracts import UNLABELLED
from videokd.fidelity import against_teacher, flips
from videokd.predictions import Predictions, find_video, read_predictions, write_predictions


def said(predicted: list[int], label: list[int], classes: tuple[str, ...] = ("a", "b", "c")) -> Predictions:
    ids = tuple(f"v{row}" for row in range(len(label)))
    logits = 3 * torch.eye(len(classes))[torch.tensor(predicted)]
    return Predictions(
        ids=ids,
        groups=ids,
        paths=ids,
        label=torch.tensor(label),
        logits=logits,
        classes=classes,
        skipped=("x: broken",),
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    before = said([0, 1, 2], [0, UNLABELLED, 1])
    table = pq.read_table(write_predictions(tmp_path, before))
    assert table["label"].to_pylist() == ["a", None, "b"]
    assert table["predicted"].to_pylist() == ["a", "b", "c"]
    assert table["confidence"].to_pylist() == pytest.approx(before.probabilities.max(dim=1).values.tolist())
    after = read_predictions(tmp_path)
    assert (after.ids, after.groups, after.paths, after.classes, after.skipped) == (
        *(before.ids, before.groups, tuple(map(os.path.abspath, before.paths)), before.classes, before.skipped),
    )
    assert after.folder == str(tmp_path.resolve())
    assert torch.equal(after.label, before.label)
    assert torch.equal(after.logits, before.logits)


def test_several_labels_are_written_as_names(tmp_path: Path) -> None:
    label = torch.tensor([[1.0, 0, 1], [-1, -1, -1], [0, 0, 0]])
    ids = ("v", "w", "x")
    before = Predictions(ids=ids, groups=ids, paths=ids, label=label, logits=torch.randn(3, 3), classes=("a", "b", "c"))
    assert pq.read_table(write_predictions(tmp_path, before))["label"].to_pylist() == [["a", "c"], None, []]
    after = read_predictions(tmp_path)
    assert torch.equal(after.label, label)
    assert after.is_labelled.tolist() == [True, False, True]


def test_a_folder_without_predictions_or_with_another_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no predictions\.parquet; make it with: videokd evaluate"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is not a file of predictions"):
        read_predictions(tmp_path)


def rewritten(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = write_predictions(folder, said([0, 1, 2], [0, UNLABELLED, 1]))
    pq.write_table(change(pq.read_table(path)), path)


def column(name: str, values: list[Any], kind: Any = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.names.index(name), name, pa.array(values, kind))

    return change


def metadata(**changes: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        new = {name: json.dumps(value).encode() for name, value in changes.items()}
        return table.replace_schema_metadata({**table.schema.metadata, **{k.encode(): v for k, v in new.items()}})

    return change


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (column("label", ["a", None, "zebra"]), "1 of its labels are not among its 3 classes .*'zebra', of v2"),
        (column("label", [["a"], None, ["zebra"]]), "'zebra', of v2"),
        (column("label", [0, 1, 2]), "column label is int64, and should be text"),
        (column("id", [0, 1, 2]), "column id is int64, and should be text"),
        (column("id", ["v0", "v0", "v2"]), "an id is there twice"),
        (column("group", ["v0", None, "v2"]), "column group has no value in row 1"),
        (column("path", ["v0", "x" * 70000, "v2"]), "a text in column path has 70,000 bytes"),
        (column("logits", [1.0, 2.0, 3.0]), "column logits is double, and should be lists of numbers"),
        (column("logits", [["a"] * 3] * 3), "should be lists of numbers"),
        (column("logits", [[0.0, 1.0, 2.0], [0.0, 1.0], [0.0] * 4]), "not one logit for each of the 3 classes"),
        (column("logits", [[0.0] * 3, None, [0.0] * 3]), "not one logit for each of the 3 classes"),
        (column("logits", [[0.0] * 3, [0.0, None, 1.0], [0.0] * 3]), "a logit has no value"),
        (column("logits", [[0.0] * 3, [0.0, float("nan"), 1.0], [0.0] * 3]), "logits of 1 of 3 clips are NaN.*v1"),
        (column("logits", [[0.0] * 3, [0.0, float("inf"), 1.0], [0.0] * 3]), "NaN or infinite"),
        (metadata(classes=["a", "b"]), "not one logit for each of the 2 classes"),
        (metadata(classes=["a", "b", "b"]), "its classes name 'b' twice"),
        (metadata(classes=[1, 2, 3]), "should be a list of names"),
        (metadata(classes={"a": 1}), "should be a list of names"),
        (metadata(skipped=3), "should be a list of texts"),
        (metadata(format=99), "it has format 99, and this version reads up to 2"),
        (lambda table: table.drop_columns(["label", "path"]), "it has no column path, label; there are: id, group"),
        (lambda table: table.replace_schema_metadata(None), "its metadata do not name the classes"),
        (lambda table: table.slice(0, 0), "it has no row"),
    ],
)
def test_damaged_predictions_are_refused_with_the_file_and_the_way_to_make_it_again(
    change: Callable[[pa.Table], pa.Table], wrong: str, tmp_path: Path
) -> None:
    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=wrong) as caught:
        read_predictions(tmp_path)
    assert str(tmp_path / "predictions.parquet") in str(caught.value)
    assert f"make it again with: videokd evaluate {tmp_path}" in str(caught.value)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_truncated_predictions_are_refused(part: float, tmp_path: Path) -> None:
    path = write_predictions(tmp_path, said([0, 1, 2], [0, UNLABELLED, 1]))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ValueError, match="is not a file of predictions, or a damaged one"):
        read_predictions(tmp_path)


def test_flipped_bytes_never_raise_anything_but_a_value_error(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, said([0, 1, 2], [0, UNLABELLED, 1]))
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(ValueError):
            read_predictions(tmp_path)


def test_a_small_file_of_a_huge_table_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, said([0, 1, 2], [0, UNLABELLED, 1]))
    names = [f"class {number}" for number in range(20_000)]
    table = pq.read_table(path)
    rows = 200_000
    wide = pa.table({name: pa.array(["a"] * rows) for name in ("id", "group", "path", "label")})
    wide = wide.append_column("logits", pa.array([[0.0]] * rows, pa.list_(pa.float32())))
    pq.write_table(wide.replace_schema_metadata({**table.schema.metadata, b"classes": json.dumps(names)}), path)
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match="it says to have 200,000 rows of 20000 classes, 15 GiB, and at most 8 GiB"):
        read_predictions(tmp_path)


def test_predictions_of_a_first_format_are_read(tmp_path: Path) -> None:
    def first(table: pa.Table) -> pa.Table:
        kept = {name: value for name, value in table.schema.metadata.items() if name in (b"classes", b"skipped")}
        return table.replace_schema_metadata(kept)

    rewritten(tmp_path, first)
    assert read_predictions(tmp_path).folder is None


def test_outputs_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    broken = said([0, 1], [0, 1])
    broken.logits[1, 0] = float("nan")
    with pytest.raises(ValueError, match="the logits of 1 of 2 clips are NaN or infinite, such as of v1"):
        write_predictions(tmp_path, broken)
    assert not list(tmp_path.iterdir())


def test_a_run_moved_together_with_its_videos_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, videos = tmp_path / "old" / "runs" / "one", tmp_path / "old" / "videos"
    run.mkdir(parents=True)
    videos.mkdir()
    (videos / "v0").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "old")
    one = said([0, 1], [0, 1])
    write_predictions("runs/one", replace(one, paths=("videos/v0", "videos/v1")))
    monkeypatch.chdir(tmp_path)  # another folder than the one that it was written from
    kept = read_predictions(run)
    assert find_video(kept, 0, run) == videos / "v0"
    assert find_video(kept, 1, run) is None
    (tmp_path / "old").rename(tmp_path / "new")
    found = find_video(read_predictions("new/runs/one"), 0, "new/runs/one")
    assert found is not None
    assert found.resolve() == (tmp_path / "new" / "videos" / "v0").resolve()


def test_clips_and_classes_are_matched_by_name() -> None:
    one = said([0, 1, 2], [0, 1, UNLABELLED])
    other = one.of(("v2", "v0", "v1"), ("c", "a", "b"))
    assert [other.classes[k] for k in other.predicted.tolist()] == ["c", "a", "b"]
    assert other.label.tolist() == [UNLABELLED, 1, 2]
    with pytest.raises(ValueError, match="1 clips were known to one of two models alone, such as 'v2'"):
        one.of(("v0", "v1"), one.classes)
    with pytest.raises(ValueError, match="2 classes were known to one of two models alone, such as 'c'"):
        one.of(one.ids, ("a", "b", "d"))


def test_fidelity_matches_a_count_by_hand() -> None:
    label = [0, 0, 0, 0, 1, 1, UNLABELLED]
    teacher = said([0, 0, 0, 1, 1, 0, 2], label)  # right on 0 1 2 4
    student = said([0, 0, 1, 1, 1, 1, 2], label)  # right on 0 1 4 5
    alone = said([0, 1, 0, 0, 1, 1, 0], label)  # right on 0 2 3 4 5
    found = against_teacher(student, teacher, alone)
    assert found["agreement"] == pytest.approx(5 / 7)  # all but clips 2 and 5
    assert found["agreement_where_teacher_wrong"] == pytest.approx(1 / 2)  # clip 3 of 3 and 5
    assert found["retention"] == pytest.approx(3 / 4)
    assert found["negative_flips"] == pytest.approx(2 / 5)  # clips 2 and 3
    assert found["transferred"] == pytest.approx(1 / 4)  # clip 1
    p = torch.eye(3).mul(3).softmax(dim=1)[0]
    # KL between two of them that differ: (p0 - p1) x 3 nats.
    assert found["kl"] == pytest.approx(2 / 7 * 3 * (p[0] - p[1]).item(), rel=1e-5)
    assert flips(alone, student) == {"won": ["v1"], "lost": ["v2", "v3"]}


def test_fidelity_with_oneself_is_whole() -> None:
    one = said([0, 1, 2], [0, 1, 2])
    assert against_teacher(one, one, one) == {
        "agreement": 1.0,
        "kl": pytest.approx(0, abs=1e-9),
        "agreement_where_teacher_wrong": None,
        "retention": 1.0,
        "negative_flips": 0.0,
        "transferred": 0.0,
    }


def test_fidelity_of_several_labels_is_class_by_class() -> None:
    label = torch.tensor([[1.0, 0, 1], [0, 0, 1], [-1, -1, -1]])
    ids = ("v", "w", "x")

    def saying(answers: list[list[int]]) -> Predictions:
        logits = 2.0 * torch.tensor(answers) - 1
        return Predictions(ids=ids, groups=ids, paths=ids, label=label, logits=logits, classes=("a", "b", "c"))

    teacher = saying([[1, 0, 0], [0, 1, 1], [1, 1, 1]])  # wrong: v c, w b
    student = saying([[1, 1, 0], [0, 1, 0], [1, 1, 0]])
    found = against_teacher(student, teacher)
    assert found["agreement"] == pytest.approx(6 / 9)
    assert found["agreement_where_teacher_wrong"] == 1.0
    assert found["retention"] == pytest.approx(2 / 4)  # of v a, v b, w a, w c
    p = torch.tensor([1.0, -1.0]).sigmoid()
    # Three answers of three clips differ: p x log(p / q) + q x log(q / p) = (p - q) x 1, the logit.
    assert found["kl"] == pytest.approx(3 / 3 * (p[0] - p[1]).item(), rel=1e-5)
