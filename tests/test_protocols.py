from dataclasses import replace
from pathlib import Path

import pytest

from videokd.clips.lists import read_manifest
from videokd.protocols import PROTOCOLS, mean_over_folds, protocol


def test_a_protocol_says_how_it_is_measured() -> None:
    assert str(protocol("kinetics-10x3")).startswith(
        "Kinetics, val split, 10 x 3 views (time x space), probabilities averaged; as in SlowFast"
    )
    assert len(protocol("ssv2-2x3").grid) == 6
    assert "mean over 3 official splits" in str(protocol("hmdb51"))


def test_an_unknown_protocol_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no protocol 'kinetics-10x4'; did you mean 'kinetics-10x3'"):
        protocol("kinetics-10x4")


def test_a_list_of_another_data_set_is_refused(drawn_set: Path) -> None:
    manifest = read_manifest(drawn_set)
    with pytest.raises(ValueError, match=r"UCF101 has 101 classes, and .* 12"):
        protocol("ucf101").check(manifest)
    protocol("ucf101").check(replace(manifest, classes=tuple(map(str, range(101)))))


def test_three_official_splits_are_averaged_and_no_other_set_of_runs() -> None:
    def scored(top1: float, fold: int, name: str | None = "ucf101") -> dict[str, object]:
        return {"top1": top1, "mean_class_accuracy": top1, "protocol": name and {"name": name, "fold": fold}}

    three = [scored(0.9, 1), scored(0.8, 3), scored(0.7, 2)]
    found = mean_over_folds(three)
    assert found == {
        "protocol": str(PROTOCOLS["ucf101"]),
        "top1": pytest.approx(0.8),
        "mean_class_accuracy": pytest.approx(0.8),
    }
    assert mean_over_folds(three[:2]) is None
    assert mean_over_folds([*three[:2], scored(0.7, 1)]) is None
    assert mean_over_folds([*three[:2], scored(0.7, 2, "hmdb51")]) is None
    assert mean_over_folds([*three[:2], scored(0.7, 2, None)]) is None
    assert mean_over_folds([scored(0.7, 1, "kinetics-10x3")]) is None
