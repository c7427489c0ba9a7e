from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from videokd.clips.lists import read_manifest
from videokd.clips.loader import ClipDataset
from videokd.contracts import UNLABELLED, Dense, InputSpec
from videokd.evaluate import (
    Interval,
    Predictions,
    agreement,
    evaluate,
    gap_recovered,
    interval,
    predict,
    scores,
    standard_error,
)
from videokd.machine import Machine
from videokd.models import CompactShift, save_model

SPEC = InputSpec(frames=8, size=32, sampling=Dense(stride=2), crop_fraction=32 / 36)


def predictions(label: list[int], predicted: list[int], classes: tuple[str, ...] = ("a", "b", "c")) -> Predictions:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(classes)).float()
    ids = tuple(str(number) for number in range(len(label)))
    return Predictions(ids, torch.tensor(label), logits, classes, skipped=("x.mp4: broken",))


def test_scores_match_a_count_by_hand() -> None:
    found = scores(predictions([0, 0, 0, 1, UNLABELLED], [0, 0, 1, 2, 0]))
    assert found["top1"] == pytest.approx(2 / 4)
    assert found["per_class"] == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert found["mean_class_accuracy"] == pytest.approx(1 / 3)
    assert found["confusion"] == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert (found["clips"], found["unlabelled"], found["skipped"]) == (4, 1, ["x.mp4: broken"])


def test_a_list_without_labels_has_no_score() -> None:
    with pytest.raises(ValueError, match="no clip of the list has a label"):
        scores(predictions([UNLABELLED], [0]))


def test_agreement_is_by_name() -> None:
    assert agreement({"x": "run", "y": "jump"}, {"y": "jump", "x": "walk"}) == 0.5
    with pytest.raises(ValueError, match="1 clips were scored by one model alone, such as z"):
        agreement({"x": "a"}, {"x": "a", "z": "b"})


def test_interval_is_students_t() -> None:
    values = [0.1, 0.3, 0.35, 0.2]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert interval([0.4]) == Interval(0.4, None, None)
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert np.isnan(standard_error([1.0]))


def test_gap_recovered_matches_a_hand_computed_ratio() -> None:
    # Gains .3 and .5 over gaps .5 and .5: G = .4 / .5. Leave-one-out ratios 1.0 and .6; pseudo-values 2 x .8 - these.
    found = gap_recovered(teacher=0.9, alone=[0.4, 0.4], distilled=[0.7, 0.9])
    assert found is not None
    expected = interval([0.6, 1.0])
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, expected.low, expected.high))
    one = gap_recovered(teacher=0.9, alone=[0.4], distilled=[0.8])
    assert one is not None
    assert (one.mean, one.low) == (pytest.approx(0.8), None)


def test_gap_recovered_is_not_given_where_there_is_no_gap() -> None:
    assert gap_recovered(teacher=0.9, alone=[0.83, 0.83], distilled=[0.9, 0.9]) is None
    assert gap_recovered(teacher=0.9, alone=[0.81, 0.81], distilled=[0.9, 0.9]) is not None
    # .88 - .80 is a hair under .08 in floating point.
    assert gap_recovered(teacher=0.88, alone=[0.8], distilled=[0.85]) is not None


def test_a_gap_that_one_seed_makes_alone_has_no_interval() -> None:
    found = gap_recovered(teacher=0.9, alone=[0.6, 0.9], distilled=[0.8, 0.9])
    assert found is not None
    assert (found.mean, found.low) == (pytest.approx(0.1 / 0.15), None)


def test_the_interval_of_the_gap_covers_the_truth() -> None:
    # Simulated seeds: gap .4 on average, gain .3, noise shared between alone and gain as in practice.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        noise = rng.normal(0, 0.05, 5)
        alone, distilled = 0.5 + noise, 0.8 + rng.normal(0, 0.01, 5)
        found = gap_recovered(teacher=0.9, alone=alone.tolist(), distilled=distilled.tolist())
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.75 <= found.high
    assert covered / 400 > 0.92


def test_predictions_do_not_depend_on_batch_size_or_workers(drawn_set: Path) -> None:
    model = CompactShift(width=4, input=SPEC).build(read_manifest(drawn_set).classes).train()
    clips = ClipDataset(read_manifest(drawn_set).split("test"), {"student": SPEC})
    done: list[int] = []
    one = predict(model, clips, batch_size=5, advance=done.append)
    assert sum(done) == 12
    other = predict(model, clips, batch_size=12, workers=2)
    assert one.ids == other.ids
    torch.testing.assert_close(one.logits, other.logits)
    assert model.training
    shuffled = predict(model, clips, batch_size=12, frame_order="shuffled")
    assert not torch.allclose(shuffled.logits, one.logits)
    again = predict(model, clips, batch_size=5, frame_order="shuffled")
    torch.testing.assert_close(shuffled.logits, again.logits)


def test_a_saved_model_is_scored_with_its_own_preprocessing_and_classes(drawn_set: Path, tmp_path: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    # Class numbers come from the model: here in another order than the list's.
    classes = tuple(reversed(manifest.classes))
    model = CompactShift(width=4, input=SPEC).build(classes)
    save_model(model, tmp_path)
    found = evaluate(tmp_path, manifest, machine=Machine(device="cpu"))
    clips = ClipDataset(replace(manifest, classes=classes), {"student": SPEC})
    assert found["top1"] == scores(predict(model, clips))["top1"]
    assert found["classes"] == list(classes)
    assert set(found["predicted"].values()) <= set(classes)
    half = evaluate(tmp_path, manifest, machine=Machine(device="cpu", precision="bf16"))
    assert half["clips"] == 12
    assert (found["clips"], len(found["predicted"]), found["params"] > 0) == (12, 12, True)


def test_a_list_with_other_classes_is_refused(drawn_set: Path, tmp_path: Path) -> None:
    save_model(CompactShift(width=4, input=SPEC).build(["jump", "run"]), tmp_path)
    with pytest.raises(ValueError, match="was not trained for: appear"):
        evaluate(tmp_path, read_manifest(drawn_set), machine=Machine())


def test_broken_videos_are_counted_and_a_list_of_them_is_refused(drawn_set: Path, tmp_path: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"x")
    videos = (replace(manifest.videos[0], path=bad), *manifest.videos[1:3])
    model = CompactShift(width=4, input=SPEC).build(manifest.classes)
    clips = ClipDataset(replace(manifest, videos=videos), {"student": SPEC})
    found = predict(model, clips, batch_size=1, on_bad_video="skip")
    assert (len(found.ids), len(found.skipped)) == (2, 1)
    only = ClipDataset(replace(manifest, videos=videos[:1]), {"student": SPEC})
    with pytest.raises(ValueError, match=r"none of the 1 clips could be read.*bad\.mp4"):
        predict(model, only, on_bad_video="skip")
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        predict(model, clips)
