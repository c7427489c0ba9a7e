import json
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from videokd.clips.lists import read_manifest
from videokd.machine import seed_step
from videokd.quickstart import FAST, Scale, quickstart
from videokd.recipe import load
from videokd.train import Interrupted

QUIET = Console(quiet=True)
TINY = Scale(train=48, labelled=24, val=12, test=24, teacher_steps=3, student_steps=3, preflight=0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart of three steps, both regimes, two seeds."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    quickstart(out, seeds=2, regime="same-data", scale=TINY, console=QUIET)
    return out


def test_the_report_has_what_its_readers_look_for(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    for arm in ("teacher", "alone", "distilled"):
        assert {"top1_mean", "top1_sd", "shuffled_top1", "params", "macs"} <= set(report["arms"][arm])
    assert {"mean", "se"} <= set(report["paired_difference"])
    # Three steps leave no gap to speak of.
    assert report["gap_recovered"] is None
    assert report["seeds"] == 2
    assert set(report["seconds"]) == {"data", "teacher", "alone", "distilled", "evaluation", "report"}
    assert (report["labelled_clips"], report["unlabelled_clips"]) == (24, 24)
    assert (report["same_data"]["labelled_clips"], report["same_data"]["unlabelled_clips"]) == (48, 0)
    text = (done / "report.md").read_text()
    for line in (
        "## transfer-set regime",
        "## same-data regime",
        "| student alone |",
        "not given",
        "the gap was designed",
    ):
        assert line in text
    for name in ("accuracy", "learning_curves", "accuracy_over_macs", "confusion", "shuffled"):
        assert f"figures/{name}.png" in text
        assert (done / "figures" / f"{name}.png").is_file()
        assert (done / "figures" / "same-data" / f"{name}.png").is_file()


def test_the_arms_are_paired(done: Path) -> None:
    for regime in ("transfer-set", "same-data"):
        for seed in (0, 1):
            alone, distilled = (
                load(done / regime / f"{arm}-seed{seed}" / "recipe.json") for arm in ("alone", "distilled")
            )
            assert (alone.seed, alone.student, alone.optim) == (seed, distilled.student, distilled.optim)
            assert alone.data.path == distilled.data.path
            assert alone.data.view_seed == distilled.data.view_seed
            assert not alone.teachers


def test_the_student_is_shown_only_the_labels_that_the_report_says(done: Path) -> None:
    few = read_manifest(load(done / "transfer-set" / "alone-seed0" / "recipe.json").data.path)
    full = read_manifest(load(done / "teacher" / "recipe.json").data.path)
    labels = [video.label for video in few.split("train").videos]
    assert [label is not None for label in labels] == [True] * 24 + [False] * 24
    assert few.split("test").videos == full.split("test").videos
    assert few.classes == full.classes


def test_a_second_quickstart_in_the_same_folder_is_refused_or_goes_on(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already holds a quickstart; go on with it by --resume"):
        quickstart(done, seeds=2, regime="same-data", scale=TINY, console=QUIET)
    with pytest.raises(ValueError, match="a quickstart of other settings"):
        quickstart(done, seeds=1, scale=TINY, resume=True, console=QUIET)
    before = json.loads((done / "report.json").read_text())
    (done / "same-data" / "distilled-seed1" / "model.json").unlink()  # as if it had been cut off at its end
    again = quickstart(done, seeds=2, regime="same-data", scale=TINY, resume=True, console=QUIET)
    assert again["arms"] == before["arms"]
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="something that is not a quickstart"):
        quickstart(tmp_path, scale=TINY, console=QUIET)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        quickstart(tmp_path / "new", seeds=0, console=QUIET)


def test_an_interrupted_quickstart_says_how_to_go_on_and_does(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def ctrl_c_in_the_first_student(seed: int, step: int) -> None:
        calls.append(1)
        if len(calls) == 5:  # the teacher has three steps, so this is the student's second
            os.kill(os.getpid(), signal.SIGINT)
        seed_step(seed, step)

    with monkeypatch.context() as patch:
        patch.setattr("videokd.train.seed_step", ctrl_c_in_the_first_student)
        with pytest.raises(Interrupted, match="resume with: the same command and --resume"):
            quickstart(tmp_path / "out", seeds=2, scale=TINY, console=QUIET)
    report = quickstart(tmp_path / "out", seeds=2, scale=TINY, resume=True, console=QUIET)
    # As if nothing had happened, and as without the second regime.
    assert report["arms"] == json.loads((done / "report.json").read_text())["arms"]


@pytest.mark.slow
def test_the_fast_quickstart_recovers_most_of_the_gap(tmp_path: Path) -> None:
    torch.set_num_threads(2)  # the one test with real work to do
    report = quickstart(tmp_path / "out", seeds=1, scale=FAST, console=QUIET)
    torch.set_num_threads(1)
    top1 = {arm: report["arms"][arm]["top1_mean"] for arm in report["arms"]}
    assert top1["teacher"] > 0.75
    assert top1["distilled"] - top1["alone"] > 0.15
    assert report["gap_recovered"]["mean"] > 0.5
    # Unordered frames tell no twins apart: at most half, and three points of chance.
    assert max(report["arms"][arm]["shuffled_top1"] for arm in top1) < 0.53
