from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from videokd.contracts import UNLABELLED
from videokd.fidelity import against_teacher, flips
from videokd.predictions import Predictions, read_predictions, write_predictions


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
        *(before.ids, before.groups, before.paths, before.classes, before.skipped),
    )
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
