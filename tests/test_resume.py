"""A run that is killed, interrupted, or runs out of disk goes on to the very weights of an uninterrupted one."""

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import videokd.train as train_module
from videokd.assembly import Assembly
from videokd.checkpoint import State, read_step
from videokd.contracts import Batch
from videokd.disk import held
from videokd.distill import Term
from videokd.interruption import Handled, StopSignal
from videokd.losses import CRD, CrossEntropy, FrameFeatures, SoftTargets, TemporalAffinity
from videokd.models import CompactShift, load_model, save_model
from videokd.recipe import Recipe, TrainedTeacher, load
from videokd.run_folder import RunFolder, read_metrics
from videokd.stopping import Validations
from videokd.train import Interrupted, train
from videokd.weighting import Uncertainty

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def eventful(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """All that has a state: a queue, learned weights of terms, a running mean of the weights, remembered teacher
    outputs, best weights, parts of batches."""
    recipe = load("quickstart/distilled.py")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    teacher = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    save_model(teacher.build(load_classes(drawn_set)), folder)
    return replace(
        recipe,
        data=replace(recipe.data, path=str(drawn_set), batch_size=6, val_split="val", views=3),
        student=CompactShift(width=4, input=recipe.student.input),  # type: ignore[arg-type]
        objective={
            "hard": Term(loss=CrossEntropy()),
            "soft": Term(loss=SoftTargets(), warmup=0.5),
            "frames": Term(loss=FrameFeatures()),
            "affinity": Term(loss=TemporalAffinity()),
            "crd": Term(loss=CRD(queue=16)),
        },
        weighting=Uncertainty(),
        teachers={"teacher": TrainedTeacher(checkpoint=str(folder), remember=True)},
        optim=replace(recipe.optim, steps=36, ema=0.9, accumulate=2),
        keep="best",
        validate_every=5,
        checkpoint_every=2,
    )


def load_classes(drawn_set: Path) -> tuple[str, ...]:
    from videokd.clips.lists import read_manifest

    return read_manifest(drawn_set).classes


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def run_in_child(recipe: Recipe, folder: Path, *, resume: bool) -> Any:
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(recipe, folder), kwargs={"resume": resume, "console": QUIET}
    )
    process.start()
    return process


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_weights(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videokd.train.LOG_EVERY", 1)
    eventful = replace(eventful, keep="last")
    train(eventful, tmp_path / "whole", console=QUIET)
    moments, kills, steps = random.Random(0), 0, []
    while kills < 10:
        resume = (tmp_path / "parts" / "recipe.json").is_file()
        process = run_in_child(eventful, tmp_path / "parts", resume=resume)
        before = last_step(tmp_path / "parts")
        target = before + moments.randint(0, 4)
        while process.is_alive() and last_step(tmp_path / "parts") < min(target, 35):
            time.sleep(0.002)
        time.sleep(moments.random() * 0.03)  # within a step, a checkpoint, a validation
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        steps.append(last_step(tmp_path / "parts"))
    train(eventful, tmp_path / "parts", resume=True, console=QUIET)
    assert kills == 10, steps
    assert same(tmp_path / "whole", tmp_path / "parts")
    for one, other in zip(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts"), strict=True):
        assert one == other


def last_step(run: Path) -> int:
    rows = read_metrics(run)
    return rows[-1]["step"] if rows else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_the_step_that_was_running(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=12))
    train(recipe, tmp_path / "whole", console=QUIET)
    seen = []

    def step(seed: int, step: int) -> None:
        seen.append(step)
        if step == 5:
            os.kill(os.getpid(), number)
        torch.manual_seed(seed * 1_000_003 + step)

    with monkeypatch.context() as patch:
        patch.setattr("videokd.train.seed_step", step)
        with pytest.raises(Interrupted, match=r"after step 5; resume with: videokd train --resume") as stop:
            train(recipe, tmp_path / "parts", console=QUIET)
    assert stop.value.number == number
    assert read_step(tmp_path / "parts" / "checkpoint.safetensors") == 5
    train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_full_disk_keeps_the_last_good_checkpoint(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=8))
    train(recipe, tmp_path / "whole", console=QUIET)
    fsync = os.fsync

    def full_at_last(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("checkpoint.safetensors.partial"):
            writes.append(handle)
            if len(writes) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    writes: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_last)
        message = r"checkpoint.safetensors can't be written: No space left on device; the last one, of step 2, is kept"
        with pytest.raises(OSError, match=message):
            train(recipe, tmp_path / "parts", console=QUIET)
    assert read_step(tmp_path / "parts" / "checkpoint.safetensors") == 2
    assert not list((tmp_path / "parts").glob("*.partial"))
    train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_folder_that_cannot_be_made_is_named(eventful: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run can't be made: .*file is a file; name another --out"):
        train(eventful, tmp_path / "file" / "run", console=QUIET)


def test_a_damaged_checkpoint_is_named_and_not_trained_from(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: RunFolder, state: State) -> None:
        state.save(self.checkpoint_path)
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", die)
        with pytest.raises(RuntimeError, match="the power went"):
            train(eventful, tmp_path / "run", console=QUIET)
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="is damaged"):
        train(eventful, tmp_path / "run", resume=True, console=QUIET)


def test_what_was_left_out_before_a_break_is_still_counted(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    state = State(module, optimizer, torch.amp.GradScaler("cpu", enabled=False), step=3, notes={"skipped": ["a.mp4"]})
    state.save(tmp_path / "it.safetensors")
    again = State(module, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    again.load(tmp_path / "it.safetensors")
    assert (again.step, again.notes) == (3, {"skipped": ["a.mp4"]})


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_weights_with_the_channels_last_go_on_as_they_were(tmp_path: Path, kind: str) -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        if kind == "sgd":
            return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, fused=True)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        module(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, parts = made(), made()
    step(*whole, 1)
    step(*parts, 1)
    State(*parts, torch.amp.GradScaler("cpu", enabled=False)).save(tmp_path / "it.safetensors")
    again = made()
    State(*again, torch.amp.GradScaler("cpu", enabled=False)).load(tmp_path / "it.safetensors")
    for number in (2, 3):
        step(*whole, number)
        step(*again, number)
    assert torch.equal(whole[0].weight, again[0].weight)


def test_the_best_weights_are_those_of_the_best_validation(eventful: Recipe, tmp_path: Path) -> None:
    summary = train(eventful, tmp_path / "run", console=QUIET)
    rows = [row for row in read_metrics(tmp_path / "run") if "val_top1" in row]
    best = max(rows, key=lambda row: row["val_top1"])
    assert summary["val_top1"] == best["val_top1"]
    assert summary["weights_of_step"] == best["step"]
    model = load_model(tmp_path / "run")
    last = train(replace(eventful, keep="last"), tmp_path / "last", console=QUIET)
    assert last["weights_of_step"] == 36
    changed = any(
        not torch.equal(one, other)
        for one, other in zip(model.state_dict().values(), load_model(tmp_path / "last").state_dict().values())
    )
    assert changed == (best["step"] != 36)


def test_training_stops_when_validation_gets_no_better(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.5, 0.5, 0.4, 0.9])
    monkeypatch.setattr("videokd.train._validate", lambda *_: {"val_top1": next(scores), "val_mean_class_accuracy": 0})
    summary = train(replace(eventful, patience=2, validate_every=2), tmp_path / "run", console=QUIET)
    assert (summary["steps"], summary["weights_of_step"], summary["val_top1"]) == (8, 4, 0.5)


def test_a_job_that_is_started_again_goes_on_or_is_done(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=6))
    train(recipe, tmp_path / "whole", console=QUIET)

    def stop(seed: int, step: int) -> None:
        torch.manual_seed(seed * 1_000_003 + step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("videokd.train.seed_step", stop)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "job", or_resume=True, console=QUIET)
    done = train(recipe, tmp_path / "job", or_resume=True, console=QUIET)
    assert same(tmp_path / "whole", tmp_path / "job")
    assert train(recipe, tmp_path / "job", or_resume=True, console=QUIET) == done
    (tmp_path / "job" / "model.json").unlink()
    with pytest.raises(ValueError, match=r"is another recipe \(seed was 0 and is 4\)"):
        train(replace(recipe, seed=4), tmp_path / "job", or_resume=True, console=QUIET)


def test_frozen_modules_stay_until_they_are_set_free_and_a_break_changes_nothing(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = replace(eventful.optim, steps=8, freeze=("stages.0",), freeze_until=0.5, ema=None)
    recipe = replace(eventful, optim=optim, keep="last", checkpoint_every=3)
    torch.manual_seed(recipe.seed)
    seen: dict[int, torch.Tensor] = {}

    def look(self: RunFolder, state: State) -> None:
        name = next(name for name in state.student.state_dict() if "stages.0" in name and name.endswith("weight"))
        seen[state.step] = state.student.state_dict()[name].clone()
        state.save(self.checkpoint_path)
        if state.step == 3 and not (tmp_path / "whole").exists():
            raise RuntimeError("the power went")

    monkeypatch.setattr(RunFolder, "save", look)
    with pytest.raises(RuntimeError, match="the power went"):
        train(recipe, tmp_path / "parts", console=QUIET)
    train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    train(recipe, tmp_path / "whole", console=QUIET)
    assert same(tmp_path / "whole", tmp_path / "parts")
    shorter = replace(recipe, checkpoint_every=1)
    train(shorter, tmp_path / "each", console=QUIET)
    assert torch.equal(seen[1], seen[4])
    assert not torch.equal(seen[4], seen[5])
    wrong = replace(recipe, optim=replace(optim, freeze=("stage.0",)))
    with pytest.raises(ValueError, match=r"stage\.0"):
        train(wrong, tmp_path / "refused", console=QUIET)
    assert not (tmp_path / "refused").exists()


def test_no_room_for_the_log_or_the_model_is_said_with_the_path(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=2))
    fsync = os.fsync

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("model.safetensors.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"run/model.safetensors can't be written: No space left on device"):
            train(recipe, tmp_path / "run", console=QUIET)
    train(recipe, tmp_path / "run", resume=True, console=QUIET)
    assert (tmp_path / "run" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(eventful: Recipe, tmp_path: Path) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=2))
    train(recipe, tmp_path / "run", console=QUIET)
    with pytest.raises(ValueError, match=r"is another recipe \(seed was 0 and is 7\)"):
        train(replace(recipe, seed=7), tmp_path / "run", or_resume=True, console=QUIET)


def test_a_folder_in_which_another_process_trains_is_left_alone(eventful: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"), pytest.raises(ValueError, match="another process is at work in"):
        train(eventful, tmp_path / "run", or_resume=True, console=QUIET)


def test_the_best_weights_are_kept_over_a_break(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best validation is before the break."""
    seed_step, steps = train_module.seed_step, [0]
    recipe = replace(eventful, optim=replace(eventful.optim, steps=12), validate_every=3)
    scores = {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.5}

    def count(seed: int, step: int) -> None:
        steps[0] = step
        seed_step(seed, step)
        if step == 7 and not (tmp_path / "whole").exists():
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("videokd.train.seed_step", count)
    score = {"val_mean_class_accuracy": 0.0}
    monkeypatch.setattr("videokd.train._validate", lambda *_: {"val_top1": scores[steps[0]], **score})
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "parts", console=QUIET)
    summary = train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    assert train(recipe, tmp_path / "whole", console=QUIET)["weights_of_step"] == summary["weights_of_step"] == 6
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_is_killed_after_its_last_step_says_what_it_would_have_said(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=6), patience=1, validate_every=2)
    scores = iter([0.5, 0.4] * 2)
    score = {"val_mean_class_accuracy": 0.0}
    monkeypatch.setattr("videokd.train._validate", lambda *_: {"val_top1": next(scores), **score})
    whole = train(recipe, tmp_path / "whole", console=QUIET)
    add = Validations.add

    def stop_at_last(self: Validations, step: int, found: Mapping[str, float]) -> bool:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, step, found)

    with monkeypatch.context() as patch:
        patch.setattr(Validations, "add", stop_at_last)
        patch.setattr("videokd.train.save_model", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            train(recipe, tmp_path / "parts", console=QUIET)
    parts = train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    assert (whole["steps"], whole["weights_of_step"]) == (4, 2)
    for name in ("steps", "weights_of_step", "val_top1", "losses"):
        assert parts[name] == whole[name]
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_is_stopped_in_a_validation_repeats_it_when_it_is_resumed(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=6), validate_every=3)
    train(recipe, tmp_path / "whole", console=QUIET)
    validate, calls = train_module._validate, [0]

    def stopped(*args: Any) -> dict[str, float]:
        calls[0] += 1
        if calls[0] in (1, 3):  # in the first validation, and in the last one
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the validation went on")
        return validate(*args)

    monkeypatch.setattr("videokd.train._validate", stopped)
    with pytest.raises(Interrupted, match="stopped after step 3; resume with"):
        train(recipe, tmp_path / "parts", console=QUIET)
    with pytest.raises(Interrupted, match="stopped after step 6; resume with"):
        train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_a_signal_ends_the_wait_for_a_batch(eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=6))
    train(recipe, tmp_path / "whole", console=QUIET)
    batches = Assembly.batches

    def slow(self: Assembly, steps: range) -> Iterator[Batch]:
        for step, batch in zip(steps, batches(self, steps), strict=True):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("it waited for the batch of step 5")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Assembly, "batches", slow)
        with pytest.raises(Interrupted, match="stopped after step 4; resume with") as stop:
            train(recipe, tmp_path / "parts", console=QUIET)
    assert stop.value.number == signal.SIGTERM
    train(recipe, tmp_path / "parts", resume=True, console=QUIET)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_in_the_last_step_finishes_the_run_and_is_not_dropped(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=2))
    write = train_module.save_model

    def stopped(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(*args)

    monkeypatch.setattr("videokd.train.save_model", stopped)
    with pytest.raises(Interrupted, match=r"stopped after step 2, the last one: the run is finished"):
        train(recipe, tmp_path / "run", console=QUIET)
    assert train(recipe, tmp_path / "run", or_resume=True, console=QUIET)["steps"] == 2


@pytest.mark.parametrize(("where", "begun"), [("_preflight", False), ("_seen", True)])
def test_a_signal_before_the_first_step_is_not_dropped(
    eventful: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, begun: bool
) -> None:
    recipe = replace(eventful, optim=replace(eventful.optim, steps=2), preflight=1)

    def stopped(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")

    run = tmp_path / "run"
    with monkeypatch.context() as patch, Handled():
        patch.setattr(f"videokd.train.{where}", stopped)
        with pytest.raises(Interrupted if begun else StopSignal, match="resume with" if begun else "stopped by SIGINT"):
            train(recipe, run, console=QUIET)
    assert run.exists() == begun
    train(recipe, run, resume=begun, console=QUIET)
    train(recipe, tmp_path / "whole", console=QUIET)
    assert same(tmp_path / "whole", run)
