from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from videokd.clips.lists import read_manifest
from videokd.clips.loader import ClipDataset
from videokd.clips.synthetic import draw, write_clip
from videokd.clips.views import ViewGrid
from videokd.contracts import Clip, Dense, InputSpec
from videokd.evaluate import (
    FRAME_ORDERS,
    FrameOrder,
    Interval,
    _in_order,
    evaluate,
    gap_recovered,
    interval,
    predict,
    standard_error,
)
from videokd.machine import Machine
from videokd.metrics import calibration, fit_temperature, scores
from videokd.models import CompactShift, save_model
from videokd.recipe import load
from videokd.train import train

CPU = Machine(device="cpu")
SPEC = InputSpec(frames=8, size=32, sampling=Dense(stride=2), crop_fraction=32 / 36)


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
    said = evaluate(tmp_path, manifest, machine=Machine(device="cpu"))
    found = said.numbers
    clips = ClipDataset(replace(manifest, classes=classes), {"student": SPEC})
    assert found["top1"] == scores(predict(model, clips))["top1"]
    assert found["classes"] == list(classes)
    half = evaluate(tmp_path, manifest, machine=Machine(device="cpu", precision="bf16"))
    assert half.numbers["clips"] == 12
    assert (found["clips"], len(said.predictions), found["params"] > 0) == (12, 12, True)
    assert list(found["temporal"]) == list(FRAME_ORDERS)
    assert found["groups"] == 12
    assert found["curve"] is None


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


def test_views_are_averaged_as_by_hand(drawn_set: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    torch.manual_seed(0)
    model = CompactShift(width=4, input=SPEC).build(manifest.classes).eval()
    for spatial in (1, 3):
        grid = ViewGrid(temporal=2, spatial=spatial)
        clips = ClipDataset(manifest, {"student": SPEC}, grid=grid)
        # Fewer at once than a clip has views: they go through the model in parts.
        for average, batch_size in (("probabilities", 4), ("logits", 32), ("logits", 4)):
            found = predict(model, clips, batch_size=batch_size, average=average)
            for row in (0, 7):
                shown = [clips[row, view]["clips"]["student"] for view in range(len(grid))]
                each = torch.cat([model(Clip(one["frames"][None], one["times"][None])).logits for one in shown])
                if average == "logits":
                    torch.testing.assert_close(found.logits[row], each.mean(0))
                else:
                    torch.testing.assert_close(found.logits[row].softmax(0), each.softmax(1).mean(0))


def test_the_curve_over_views_is_that_of_smaller_grids(drawn_set: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    torch.manual_seed(0)
    model = CompactShift(width=4, input=SPEC).build(manifest.classes)
    found = evaluate(model, manifest, machine=CPU, grid=ViewGrid(temporal=5, spatial=3), orders=()).numbers
    budgets = [(one["temporal"], one["spatial"]) for one in found["curve"]]
    assert budgets == [(t, s) for t in (1, 2, 3, 4, 5) for s in (1, 3)]
    by_budget = {(one["temporal"], one["spatial"]): one for one in found["curve"]}
    assert by_budget[5, 3]["top1"] == found["top1"]
    assert by_budget[5, 3]["macs"] == 15 * found["macs"]
    for temporal in (1, 2, 3):  # their places are among those of five views
        same = evaluate(model, manifest, machine=CPU, grid=ViewGrid(temporal=temporal, spatial=3), orders=()).numbers
        assert by_budget[temporal, 3]["top1"] == same["top1"]
    assert found["temporal"] == {"filmed": found["top1"]}


def test_frames_are_handed_out_in_the_order_that_is_named() -> None:
    frames = torch.arange(6, dtype=torch.uint8)[None, :, None, None, None].expand(2, 6, 3, 1, 1)
    clip = Clip(frames, torch.arange(6.0).expand(2, 6))

    def shown(order: FrameOrder) -> list[int]:
        found = _in_order(clip, order, ["a", "b"])
        assert isinstance(found, Clip)
        torch.testing.assert_close(found.times, clip.times)
        return found.frames[0, :, 0, 0, 0].tolist()

    assert shown("filmed") == [0, 1, 2, 3, 4, 5]
    assert shown("reversed") == [5, 4, 3, 2, 1, 0]
    assert shown("frozen") == [3] * 6
    assert shown("half") == [0, 0, 2, 2, 4, 4]
    assert sorted(shown("shuffled")) == [0, 1, 2, 3, 4, 5]
    assert shown("shuffled") != [0, 1, 2, 3, 4, 5]


def test_a_temperature_is_fitted_on_validation_videos_alone(drawn_set: Path) -> None:
    whole = read_manifest(drawn_set)
    torch.manual_seed(0)
    model = CompactShift(width=4, input=SPEC).build(whole.classes)
    test, validation = whole.split("test"), whole.split("val")
    found = evaluate(model, test, machine=CPU, calibrate_on=validation, orders=())
    fitted = fit_temperature(predict(model, ClipDataset(validation, {"student": SPEC})))
    assert found.numbers["calibration"]["temperature"] == pytest.approx(fitted)
    assert found.numbers["calibration"]["scaled"] == calibration(found.predictions, temperature=fitted)
    assert "12 validation clips" in found.numbers["calibration"]["fitted_on"]
    with pytest.raises(ValueError, match="fitted on 12 of the videos that are scored"):
        evaluate(model, test, machine=CPU, calibrate_on=whole, orders=())


def test_sets_of_several_labels_have_a_mean_average_precision(drawn_set: Path) -> None:
    manifest = read_manifest(drawn_set).split("test")
    both = [(video.label or "", manifest.classes[0]) for video in manifest.videos]
    videos = tuple(
        replace(video, label=None, labels=tuple(dict.fromkeys(names)))
        for video, names in zip(manifest.videos, both, strict=True)
    )
    torch.manual_seed(0)
    model = CompactShift(width=4, input=SPEC).build(manifest.classes)
    found = evaluate(model, replace(manifest, videos=videos), machine=CPU, orders=("shuffled",))
    assert found.numbers["map"] == pytest.approx(np.mean(list(found.numbers["average_precision"].values())))
    assert found.numbers["average_precision"][manifest.classes[0]] == pytest.approx(1)  # every video has it
    assert found.numbers["calibration"] is None
    assert set(found.numbers["temporal"]) == {"filmed", "shuffled"}


def test_the_order_of_frames_says_nothing_of_videos_that_stand_still(tmp_path: Path) -> None:
    # Three classes by colour, every frame like the first; `test_quickstart` has the set in which order is all.
    for split, clips in (("train", 18), ("test", 9)):
        for number in range(clips):
            colour = ("red", "green", "blue")[number % 3]
            drawing = draw(split, number)
            frames = np.repeat(drawing.frames[:1], len(drawing.frames), axis=0) // 2
            frames[..., number % 3] += 90
            (tmp_path / "set" / split / colour).mkdir(parents=True, exist_ok=True)
            write_clip(tmp_path / "set" / split / colour / f"{number}.mp4", replace(drawing, frames=frames))
    recipe = load("quickstart/alone.py")
    recipe = replace(
        recipe,
        data=replace(recipe.data, path=str(tmp_path / "set"), val_split=None, batch_size=9),
        student=replace(recipe.student, width=4),
        optim=replace(recipe.optim, steps=30),
    )
    train(recipe, tmp_path / "run", console=Console(quiet=True))
    found = evaluate(tmp_path / "run", read_manifest(tmp_path / "set").split("test"), machine=CPU).numbers
    assert found["top1"] > 0.8
    assert set(found["temporal"].values()) == {found["top1"]}
