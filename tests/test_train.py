"""The loop on real files: it learns, it resumes exactly, and it refuses what can't work."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_clip
from rich.console import Console
from safetensors.torch import load_file

from videokd import recipe as recipes
from videokd.assembly import training_videos
from videokd.checkpoint import State
from videokd.clips.lists import read_manifest
from videokd.clips.loader import ClipDataset
from videokd.clips.manifest import write_manifest
from videokd.clips.mixing import Mix
from videokd.clips.views import Augment, ColourJitter, RandomErasing
from videokd.contracts import InputSpec, Outputs
from videokd.distill import Term
from videokd.evaluate import evaluate
from videokd.losses import (
    BKD,
    CRD,
    DIST,
    DKD,
    MGD,
    NKD,
    SRRL,
    BalancedSoftmax,
    BinaryCrossEntropy,
    BinarySoftTargets,
    ClipFeatures,
    CrossEntropy,
    CurriculumSoftTargets,
    FrameFeatures,
    RKDAngle,
    ShuffleRelation,
    SoftTargets,
    SpatialAttention,
    StandardisedSoftTargets,
)
from videokd.losses.loss import Loss
from videokd.models import CompactShift, Conv3d, load_model, save_model
from videokd.recipe import Recipe, TrainedTeacher, load
from videokd.run_folder import RunFolder, read_metrics
from videokd.train import Interrupted, train
from videokd.weighting import (
    DWA,
    FixedWeights,
    GradientRatio,
    RandomWeights,
    ScaleNormalised,
    Uncertainty,
    Weighting,
)

QUIET = Console(quiet=True)


@pytest.fixture
def alone(drawn_set: Path) -> Recipe:
    """A run of eight steps."""
    recipe = load("quickstart/alone.py")
    data = replace(recipe.data, path=str(drawn_set), batch_size=6, val_split=None)
    student = CompactShift(width=4, input=recipe.student.input)
    optim = replace(recipe.optim, steps=8)
    return replace(recipe, data=data, student=student, optim=optim, checkpoint_every=3, preflight=0)


@pytest.fixture(scope="session")
def teacher_folder(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    folder = tmp_path_factory.mktemp("teacher")
    save_model(config.build(read_manifest(drawn_set).classes), folder)
    return folder


@pytest.fixture
def distilled(alone: Recipe, teacher_folder: Path) -> Recipe:
    objective = load("quickstart/distilled.py").objective
    return replace(alone, objective=objective, teachers={"teacher": TrainedTeacher(checkpoint=str(teacher_folder))})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_distilled_run_leaves_a_plain_student_its_recipe_and_its_log(distilled: Recipe, tmp_path: Path) -> None:
    recipe = replace(distilled, data=replace(distilled.data, val_split="val"), validate_every=4, preflight=1)
    summary = train(recipe, tmp_path / "run", console=QUIET)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "recipe.json",
        "preflight.json",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "model.json",
        "model.safetensors",
    }
    assert load(run / "recipe.json") == recipe
    # Nothing of the projections is shipped.
    plain = recipe.student.build(read_manifest(recipe.data.path).classes)
    assert weights(run).keys() == plain.state_dict().keys()
    assert summary["params"] == sum(parameter.numel() for parameter in plain.parameters())
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [4, 8, 8]
    assert {"hard", "soft", "frames", "difference", "affinity", "total", "lr", "grad_norm"} <= set(rows[1])
    assert rows[2]["val_top1"] == summary["val_top1"] == json.loads((run / "summary.json").read_text())["val_top1"]
    assert load_model(run)(random_clip(frames=8)).logits.shape == (2, 12)  # type: ignore[union-attr]


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(distilled: Recipe, tmp_path: Path) -> None:
    for name, recipe in (("a", distilled), ("b", distilled), ("c", replace(distilled, seed=1))):
        train(recipe, tmp_path / name, console=QUIET)
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_a_remembering_teacher_changes_nothing(distilled: Recipe, tmp_path: Path) -> None:
    (source,) = distilled.teachers.values()
    online = replace(
        distilled,
        teachers={"teacher": replace(source, remember=False)},
        data=replace(distilled.data, views=2),
        optim=replace(distilled.optim, steps=12),
    )
    stored = replace(online, teachers={"teacher": replace(source, remember=True)})
    train(online, tmp_path / "online", console=QUIET)
    train(stored, tmp_path / "stored", console=QUIET)
    one, other = weights(tmp_path / "online"), weights(tmp_path / "stored")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C while the given step's losses are computed."""
    from videokd.distill import Objective

    compute, calls = Objective.__call__, []

    def counted(self: Objective, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(Objective, "__call__", counted)


@dataclass(frozen=True, kw_only=True)
class Noisy(Loss):
    """Draws from the global generator, as dropout does."""

    def __call__(self, student: Outputs, teacher: Outputs | None, label: torch.Tensor) -> torch.Tensor:
        assert student.logits is not None
        return (student.logits * torch.rand_like(student.logits)).square().mean()


@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    distilled = replace(distilled, objective={**distilled.objective, "noisy": Term(loss=Noisy())})
    train(distilled, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patch:
        interrupt_after(step, patch)
        with pytest.raises(Interrupted, match=f"after step {step}; resume with: videokd train --resume"):
            train(distilled, tmp_path / "parts", console=QUIET)
    assert not (tmp_path / "parts" / "model.json").exists()
    train(distilled, tmp_path / "parts", resume=True, console=QUIET)
    assert equal(tmp_path / "whole", tmp_path / "parts")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_a_run_that_died_goes_on_from_its_last_checkpoint(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(distilled, tmp_path / "whole", console=QUIET)
    saves: list[int] = []
    save = RunFolder.save

    def save_then_die(self: RunFolder, state: State) -> None:
        save(self, state)
        saves.append(state.step)
        if state.step == 6:
            raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_then_die)
        with pytest.raises(RuntimeError, match="the power went"):
            train(distilled, tmp_path / "parts", console=QUIET)
    assert saves == [3, 6]
    train(distilled, tmp_path / "parts", resume=True, console=QUIET)
    assert equal(tmp_path / "whole", tmp_path / "parts")


def test_a_log_cut_short_by_a_crash_is_read_up_to_the_cut(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "total": 1.0}\n{"step": 20, "tot')
    assert read_metrics(tmp_path) == [{"step": 10, "total": 1.0}]
    assert read_metrics(tmp_path / "nowhere") == []


@pytest.mark.slow
def test_the_smoke_recipe_learns(drawn_set: Path, tmp_path: Path) -> None:
    recipe = load("quickstart/alone.py")
    data = replace(recipe.data, path=str(drawn_set), batch_size=24, val_split=None, views=1)
    recipe = replace(recipe, data=data, optim=replace(recipe.optim, steps=120, lr=4e-3))
    train(recipe, tmp_path / "run", console=QUIET)
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["total"] < 0.2 * rows[0]["total"]
    assert rows[-1]["train_top1"] > 0.95


def test_unlabelled_clips_are_learned_from_the_teacher_alone(distilled: Recipe, tmp_path: Path) -> None:
    manifest = read_manifest(distilled.data.path)
    videos = tuple(
        replace(video, label=None) if number % 2 and video.split == "train" else video
        for number, video in enumerate(manifest.videos)
    )
    write_manifest(replace(manifest, videos=videos), tmp_path / "half.jsonl")
    data = replace(distilled.data, path=str(tmp_path / "half.jsonl"), unlabelled_per_batch=4)
    train(replace(distilled, data=data), tmp_path / "run", console=QUIET)
    only_hard = replace(distilled, data=data, objective={"hard": Term(loss=CrossEntropy())}, teachers={})
    with pytest.raises(ValueError, match="every term of the objective needs labels"):
        train(only_hard, tmp_path / "refused", console=QUIET)
    said = io.StringIO()
    unused = replace(only_hard, data=replace(data, unlabelled_per_batch=0))
    train(unused, tmp_path / "left", console=Console(file=said, width=200))
    assert "12 of 24 clips have no label and are left out" in said.getvalue()


def test_a_folder_that_holds_a_run_is_not_overwritten(alone: Recipe, tmp_path: Path) -> None:
    train(alone, tmp_path / "run", console=QUIET)
    before = weights(tmp_path / "run")
    with pytest.raises(ValueError, match=r"already holds a finished run"):
        train(alone, tmp_path / "run", console=QUIET)
    (tmp_path / "run" / "model.json").rename(tmp_path / "model.json")
    with pytest.raises(ValueError, match=r"already holds a run; go on with videokd train --resume"):
        train(alone, tmp_path / "run", console=QUIET)
    with pytest.raises(ValueError, match="is another recipe"):
        train(replace(alone, seed=9), tmp_path / "run", resume=True, console=QUIET)
    (tmp_path / "model.json").rename(tmp_path / "run" / "model.json")
    (tmp_path / "note.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"already holds something else"):
        train(alone, tmp_path, console=QUIET)
    with pytest.raises(ValueError, match="is finished: nothing to resume"):
        train(alone, tmp_path / "run", resume=True, console=QUIET)
    with pytest.raises(ValueError, match="no run to resume"):
        train(alone, tmp_path / "other", resume=True, console=QUIET)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "run").items())


def test_a_teacher_of_other_classes_is_refused_only_where_its_logits_count(distilled: Recipe, tmp_path: Path) -> None:
    save_model(Conv3d(width=4).build(["jump", "run"]), tmp_path / "teacher")
    recipe = replace(distilled, teachers={"teacher": TrainedTeacher(checkpoint=str(tmp_path / "teacher"))})
    with pytest.raises(ValueError, match=r"class lists .* differ: only in the first \['jump', 'run'\]"):
        train(recipe, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
    features = {"hard": Term(loss=CrossEntropy()), "frames": Term(loss=FrameFeatures())}
    train(replace(recipe, objective=features), tmp_path / "run", console=QUIET)


def test_an_unknown_tap_is_refused(distilled: Recipe, tmp_path: Path) -> None:
    recipe = replace(distilled, objective={"clip": Term(loss=ClipFeatures(teacher_tap="clips"))})
    with pytest.raises(ValueError, match=r"no tap 'clips'; did you mean 'clip'\?"):
        train(recipe, tmp_path / "run", console=QUIET)


def test_a_teacher_to_whom_nobody_listens_is_refused(distilled: Recipe, tmp_path: Path) -> None:
    recipe = replace(distilled, objective={"hard": Term(loss=CrossEntropy())})
    with pytest.raises(ValueError, match="no term of the objective listens to teacher 'teacher'"):
        train(recipe, tmp_path / "run", console=QUIET)


def test_a_teacher_that_is_not_there_is_refused(distilled: Recipe, tmp_path: Path) -> None:
    recipe = replace(distilled, teachers={"teacher": TrainedTeacher(checkpoint=str(tmp_path / "nowhere"))})
    with pytest.raises(ValueError, match="holds no trained model"):
        train(recipe, tmp_path / "run", console=QUIET)


@dataclass(frozen=True, kw_only=True)
class Exploding(Loss):
    """Not a number."""

    def __call__(self, student: Outputs, teacher: Outputs | None, label: torch.Tensor) -> torch.Tensor:
        assert student.logits is not None
        return student.logits.sum() * float("nan")


def test_a_loss_that_is_not_a_number_is_named(distilled: Recipe, tmp_path: Path) -> None:
    recipe = replace(distilled, objective={"soft": Term(loss=SoftTargets()), "bad": Term(loss=Exploding())})
    with pytest.raises(ValueError, match="at step 1 these losses are not finite: bad, total"):
        train(recipe, tmp_path / "run", console=QUIET)


def test_a_run_that_meets_a_broken_video_goes_on_without_it(alone: Recipe, tmp_path: Path) -> None:
    manifest = read_manifest(alone.data.path).split("train")
    good = manifest.videos[-1].path
    swapped = tmp_path / "swapped.mp4"
    swapped.write_bytes(good.read_bytes())
    videos = (*manifest.videos[:-1], replace(manifest.videos[-1], path=swapped))
    write_manifest(replace(manifest, videos=videos), tmp_path / "list.jsonl")
    data = replace(alone.data, path=str(tmp_path / "list.jsonl"), in_memory=False)
    # Two workers, which read ahead: the file is broken from the start, and its clip comes at some later step.
    swapped.write_bytes(b"broken")
    recipe = replace(alone, data=replace(data, workers=2))
    with pytest.raises(ValueError, match=r"swapped\.mp4.*--on-bad-video skip"):
        train(recipe, tmp_path / "run", console=QUIET)
    skipping = replace(recipe, data=replace(data, on_bad_video="skip", workers=0))
    summary = train(skipping, tmp_path / "run", resume=True, console=QUIET)
    assert len(summary["skipped"]) == 1
    train(skipping, tmp_path / "whole", console=QUIET)
    assert equal(tmp_path / "run", tmp_path / "whole")


def test_a_refused_recipe_leaves_no_folder(alone: Recipe, tmp_path: Path) -> None:
    impossible = replace(alone, data=replace(alone.data, unlabelled_per_batch=3))
    with pytest.raises(ValueError, match="needs labels"):
        train(impossible, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_every_video_is_taken_only_of_a_list_without_splits(alone: Recipe, drawn_set: Path, tmp_path: Path) -> None:
    every = replace(alone, data=replace(alone.data, train_split=None))
    with pytest.raises(ValueError, match="has the splits test, train, val: name the one to train on"):
        train(every, tmp_path / "run", console=QUIET)
    manifest = read_manifest(drawn_set)
    for number, video in enumerate(manifest.videos[:24]):
        folder = tmp_path / "plain" / str(video.label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.mp4").write_bytes(video.path.read_bytes())
    said = io.StringIO()
    plain = replace(alone.data, path=str(tmp_path / "plain"))
    train(replace(alone, data=plain), tmp_path / "hashed", console=Console(file=said, width=200))
    assert "names no splits: a fifth of it" in said.getvalue()
    train(replace(alone, data=replace(plain, train_split=None)), tmp_path / "all", console=QUIET)


def test_the_split_unlabelled_joins_in_without_its_labels(distilled: Recipe) -> None:
    manifest = read_manifest(distilled.data.path)
    videos = tuple(replace(v, split="unlabelled") if v.split == "val" else v for v in manifest.videos)
    moved = replace(manifest, videos=videos)
    plain = training_videos(moved, distilled)
    mixed = training_videos(moved, replace(distilled, data=replace(distilled.data, unlabelled_per_batch=2)))
    assert len(plain.videos) == 24
    assert [video.label for video in mixed.videos[24:]] == [None] * 12


def test_clips_are_mixed_changed_in_looks_and_repeated(alone: Recipe, tmp_path: Path) -> None:
    augment = Augment(flip=0.5, colour=ColourJitter(brightness=0.4), erase=RandomErasing(probability=1.0))
    data = replace(
        alone.data, augment=augment, mix=Mix(mixup=0.8, cutmix=1.0), repeats=2, spread=2, in_memory=False, workers=1
    )
    recipe = replace(alone, data=data, optim=replace(alone.optim, steps=12))
    train(recipe, tmp_path / "run", console=QUIET)
    (row,) = [row for row in read_metrics(tmp_path / "run") if row["step"] == 12 and "total" in row]
    assert "train_top1" not in row  # a mixed clip is of no one class
    assert 0 < row["hard"] < 10
    stopped = replace(recipe, data=replace(data, workers=0))
    train(stopped, tmp_path / "other", console=QUIET)
    assert equal(tmp_path / "run", tmp_path / "other")


def test_a_substitute_keeps_a_run_going_and_is_counted(alone: Recipe, tmp_path: Path) -> None:
    manifest = read_manifest(alone.data.path)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    first = next(place for place, video in enumerate(manifest.videos) if video.split == "train")
    videos = list(manifest.videos)
    videos[first] = replace(videos[first], path=tmp_path / "bad.mp4")
    write_manifest(replace(manifest, videos=tuple(videos)), tmp_path / "list.jsonl")
    data = replace(alone.data, path=str(tmp_path / "list.jsonl"), on_bad_video="substitute", in_memory=False)
    summary = train(replace(alone, data=data), tmp_path / "run", console=QUIET)
    assert all("bad.mp4" in reason and "stood in" in reason for reason in summary["skipped"])
    assert summary["skipped"]
    found = evaluate(tmp_path / "run", read_manifest(alone.data.path).split("test"), machine=alone.machine).numbers
    assert found["skipped_in_training"] == len(summary["skipped"])


def test_a_broken_video_stops_the_run_or_is_named_and_counted(alone: Recipe, tmp_path: Path) -> None:
    manifest = read_manifest(alone.data.path).split("train")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    gone = replace(manifest.videos[1], path=tmp_path / "gone.mp4")
    videos = (replace(manifest.videos[0], path=bad), gone, *manifest.videos[2:])
    write_manifest(replace(manifest, videos=videos), tmp_path / "list.jsonl")
    data = replace(alone.data, path=str(tmp_path / "list.jsonl"))
    with pytest.raises(ValueError, match=r"1 of 24 videos are missing or broken: .*gone\.mp4"):
        train(replace(alone, data=data), tmp_path / "refused", console=QUIET)
    summary = train(replace(alone, data=replace(data, on_bad_video="skip")), tmp_path / "run", console=QUIET)
    assert len(summary["skipped"]) == 2
    assert any("bad.mp4" in reason for reason in summary["skipped"])
    assert any("gone.mp4" in reason for reason in summary["skipped"])


@pytest.mark.gpu
def test_a_run_on_a_gpu_starts_with_the_losses_of_the_cpu(distilled: Recipe, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        machine = replace(distilled.machine, device=device)
        train(replace(distilled, machine=machine, optim=replace(distilled.optim, steps=1)), tmp_path / device)
    one, other = (read_metrics(tmp_path / device)[0] for device in ("cpu", "cuda"))
    for name in distilled.objective:
        assert one[name] == pytest.approx(other[name], rel=1e-2, abs=1e-3)


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_leaves_a_checkpoint_and_says_how_to_go_on(alone: Recipe, tmp_path: Path) -> None:
    recipe = replace(alone, optim=replace(alone.optim, steps=100_000))
    (tmp_path / "recipe.json").write_text(recipes.dump(recipe))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "videokd.cli", "train", str(tmp_path / "recipe.json"), "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"videokd train --resume {run}" in said
    assert (run / "checkpoint.safetensors").is_file()


def test_a_run_reads_real_files_by_default(alone: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    clips = ClipDataset.clips
    monkeypatch.setattr(ClipDataset, "clips", lambda self, i, views: seen.append(i) or clips(self, i, views))
    recipe = replace(alone, data=replace(alone.data, in_memory=False), optim=replace(alone.optim, steps=2))
    train(recipe, tmp_path / "run", console=QUIET)
    assert len(seen) == 12


def several_labels(drawn_set: Path, folder: Path) -> Path:
    """The training videos of the set, every second one of two classes."""
    videos = [video for video in read_manifest(drawn_set).videos if video.split == "train"]
    classes = [
        f"{number % 12} {(number + 5) % 12}" if number % 2 else f"{number % 12}" for number in range(len(videos))
    ]
    lines = [f"{video.path} {numbers}" for video, numbers in zip(videos, classes, strict=True)]
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_clips_of_several_labels_are_learned_by_binary_losses(
    alone: Recipe, distilled: Recipe, drawn_set: Path, tmp_path: Path
) -> None:
    data = replace(alone.data, path=str(several_labels(drawn_set, tmp_path)), train_split=None)
    hard = {"hard": Term(loss=BinaryCrossEntropy())}
    teacher = replace(alone, data=data, objective=hard, student=Conv3d(width=4, input=InputSpec(frames=8, size=32)))
    train(teacher, tmp_path / "teacher", console=QUIET)
    taught = {**hard, "soft": Term(loss=BinarySoftTargets(), weight=10.0)}
    source = {"teacher": TrainedTeacher(checkpoint=str(tmp_path / "teacher"))}
    train(replace(alone, data=data, objective=taught, teachers=source), tmp_path / "run", console=QUIET)
    *_, last = read_metrics(tmp_path / "run")
    assert 0 < last["soft"] < 10
    assert 0 < last["hard"] < 20
    with pytest.raises(ValueError, match=r"no one class to balance: data\.class_balance must be 0"):
        train(replace(teacher, data=replace(data, class_balance=1.0)), tmp_path / "balanced", console=QUIET)
    with pytest.raises(ValueError, match=r"these have several labels: take BinaryCrossEntropy"):
        train(replace(alone, data=data), tmp_path / "other", console=QUIET)
    with pytest.raises(ValueError, match=r"several labels a video: set metric to map \(metric is top1\)"):
        train(replace(alone, data=replace(data, val_split="val")), tmp_path / "other", console=QUIET)
    assert not (tmp_path / "other").exists()
    manifest = read_manifest(data.path)
    splits = ["val" if number < 6 else "train" for number in range(len(manifest.videos))]
    videos = tuple(replace(video, split=split) for video, split in zip(manifest.videos, splits, strict=True))
    write_manifest(replace(manifest, videos=videos), tmp_path / "splits.jsonl")
    data = replace(data, path=str(tmp_path / "splits.jsonl"), train_split="train", val_split="val")
    scored = replace(teacher, data=data, metric="map", keep="best")
    summary = train(scored, tmp_path / "scored", console=QUIET)
    assert summary["val_top1"] is None
    assert 0 < summary["val_map"] <= 1
    assert summary["val_map"] == max(row["val_map"] for row in read_metrics(tmp_path / "scored") if "val_map" in row)


KEEPING: dict[str, tuple[dict[str, Term], Weighting]] = {
    "queue": ({"hard": Term(loss=CrossEntropy()), "crd": Term(loss=CRD(queue=12))}, ScaleNormalised()),
    "learned": ({"hard": Term(loss=CrossEntropy()), "soft": Term(loss=CurriculumSoftTargets(ramp=0.5))}, Uncertainty()),
    "intervals": ({"hard": Term(loss=CrossEntropy()), "order": Term(loss=ShuffleRelation())}, DWA(interval=2)),
    "gradients": ({"hard": Term(loss=CrossEntropy()), "frames": Term(loss=FrameFeatures())}, GradientRatio(interval=4)),
    "random": ({"hard": Term(loss=CrossEntropy()), "features": Term(loss=MGD())}, RandomWeights()),
    "fitted": (
        {
            "soft": Term(loss=SoftTargets(temperature="auto"), decay=0.5),
            "frames": Term(loss=FrameFeatures(targets="whitened"), warmup=0.5),
            "hard": Term(loss=BalancedSoftmax()),
        },
        FixedWeights(),
    ),
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_losses_and_weights_keep_is_resumed_exactly(
    name: str, distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, weighting = KEEPING[name]
    recipe = replace(distilled, objective=objective, weighting=weighting)
    train(recipe, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "parts", console=QUIET)
    train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    assert equal(tmp_path / "whole", tmp_path / "parts")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_what_is_found_on_the_data_is_written_down(distilled: Recipe, tmp_path: Path) -> None:
    objective, _ = KEEPING["fitted"]
    said = io.StringIO()
    summary = train(replace(distilled, objective=objective), tmp_path / "run", console=Console(file=said, width=200))
    assert summary["fitted"]["soft.temperature"] in [one / 2 for one in range(2, 21)]
    assert summary["fitted"]["hard.class_counts"] == [2] * 12
    mean, deviation = summary["fitted"]["frames.moments"]
    assert len(mean) == len(deviation) == 16
    assert f"soft: temperature {summary['fitted']['soft.temperature']}" in said.getvalue()
    assert "hard: class_counts taken from the training set" in said.getvalue()
    # The recipe stays as it was given.
    assert recipes.load(tmp_path / "run" / "recipe.json").objective == objective


def test_what_is_found_is_taken_from_the_mixed_clips_that_are_trained_on(distilled: Recipe, tmp_path: Path) -> None:
    objective = {"clip": Term(loss=ClipFeatures(targets="whitened"))}
    plain = replace(distilled, objective=objective)
    mixed = replace(plain, data=replace(plain.data, mix=Mix(mixup=1.0)))
    found = []
    for number, one in enumerate((plain, mixed)):
        summary = train(one, tmp_path / str(number), console=QUIET)
        found.append(summary["fitted"]["clip.moments"])
    assert found[0] != found[1]


def test_what_was_found_is_kept_over_a_resume(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(distilled, objective=KEEPING["fitted"][0])
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "run", console=QUIET)
    path = tmp_path / "run" / "fitted.json"
    path.write_text(re.sub(r'"temperature": [0-9.]+', '"temperature": 7.25', path.read_text()))
    assert train(recipe, tmp_path / "run", resume=True, console=QUIET)["fitted"]["soft.temperature"] == 7.25


def test_a_folder_that_is_taken_is_refused_before_anything_is_measured(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(distilled, tmp_path / "run", console=QUIET)
    monkeypatch.setattr("videokd.assembly.load_teachers", lambda *_: pytest.fail("a teacher was loaded"))
    with pytest.raises(ValueError, match="already holds a finished run"):
        train(distilled, tmp_path / "run", console=QUIET)


def test_weights_that_change_are_logged(distilled: Recipe, tmp_path: Path) -> None:
    train(replace(distilled, weighting=RandomWeights()), tmp_path / "run", console=QUIET)
    (row,) = [row for row in read_metrics(tmp_path / "run") if "total" in row]
    names = list(distilled.objective)
    assert sum(row[f"weight.{name}"] * row[name] for name in names) == pytest.approx(row["total"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": {"soft": Term(loss=DKD())}, "unlabelled": 2},
            "needs labels, and 2 clips of every batch have",
        ),
        ({"objective": {"soft": Term(loss=DKD())}, "mix": Mix(mixup=0.5)}, "needs clips of one class, and data.mix"),
        (
            {"objective": {"angle": Term(loss=RKDAngle())}, "batch_size": 2},
            "at least 3: set data.batch_size to more",
        ),
        ({"objective": {"crd": Term(loss=CRD(queue=4))}}, "keeps 4 past clips, which is less than a batch"),
        (
            {"weighting": GradientRatio(reference="hadr")},
            r"'hadr', which the objective does not have; did you mean",
        ),
        ({"objective": {"order": Term(loss=ShuffleRelation(number_of_pieces=3))}}, "can't be cut into 3 equal pieces"),
        ({"objective": {"where": Term(loss=SpatialAttention())}}, "at least 2 places in space"),
    ],
)
def test_losses_that_can_not_learn_are_refused_before_there_is_a_run(
    changes: dict[str, Any], message: str, distilled: Recipe, tmp_path: Path
) -> None:
    changes = dict(changes)
    fields = {"unlabelled": "unlabelled_per_batch", "mix": "mix", "batch_size": "batch_size"}
    data = replace(distilled.data, **{fields[name]: changes.pop(name) for name in list(changes) if name in fields})
    with pytest.raises(ValueError, match=message):
        train(replace(distilled, data=data, **changes), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_refused_for_every_loss_that_asks_it_for_them(
    distilled: Recipe, tmp_path: Path
) -> None:
    save_model(Conv3d(width=4, input=InputSpec(frames=8, size=32)).build(["one", "other"]), tmp_path / "teacher")
    source = {"teacher": TrainedTeacher(checkpoint=str(tmp_path / "teacher"))}
    asking = [SoftTargets(), StandardisedSoftTargets(), DKD(), NKD(), DIST(), BKD(), SRRL(), CurriculumSoftTargets()]
    for loss in asking:
        recipe = replace(distilled, teachers=source, objective={"soft": Term(loss=loss)})
        with pytest.raises(ValueError, match=r"the class lists of teacher 'teacher' \(2\) and"):
            train(recipe, tmp_path / "run", console=QUIET)


def test_a_batch_that_can_not_be_read_is_left_out_of_what_is_measured_first(
    distilled: Recipe, drawn_set: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(drawn_set)
    videos = list(manifest.videos)
    for number in range(0, len(videos), 2):
        broken = tmp_path / f"broken{number}.mp4"
        broken.write_bytes(b"not a video")
        videos[number] = replace(videos[number], path=broken)
    write_manifest(replace(manifest, videos=tuple(videos)), tmp_path / "list.jsonl")
    data = replace(distilled.data, path=str(tmp_path / "list.jsonl"), batch_size=1, on_bad_video="skip")
    recipe = replace(distilled, data=data, objective={"soft": Term(loss=SoftTargets(temperature="auto"))})
    # What was measured is measured without them; it is the loop that says which videos it can't do without.
    with pytest.raises(ValueError, match=r"no clip of step \d's batch could be read; the first: .*broken"):
        train(recipe, tmp_path / "run", console=QUIET)
    assert json.loads((tmp_path / "run" / "fitted.json").read_text())["soft"]["loss"]["temperature"] >= 1


@pytest.mark.slow
def test_compiled_networks_learn_what_others_do(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced and differentiated as ever, but without a C++ compiler, which takes most of a minute.
    monkeypatch.setattr("videokd.train.compile_in_place", lambda network, _: network.compile(backend="aot_eager"))
    machine = replace(distilled.machine, compile="default", channels_last=True)
    data = replace(distilled.data, val_split="val")
    recipe = replace(distilled, data=data, optim=replace(distilled.optim, steps=4), validate_every=2)
    plain, compiled = (tmp_path / name for name in ("plain", "compiled"))
    train(recipe, plain, console=QUIET)
    train(replace(recipe, machine=machine), compiled, console=QUIET)
    (one,), (other,) = ([row for row in read_metrics(run) if "total" in row] for run in (plain, compiled))
    for name in recipe.objective:
        assert other[name] == pytest.approx(one[name], rel=1e-2, abs=1e-3)
    assert weights(plain).keys() == weights(compiled).keys()
