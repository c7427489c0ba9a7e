"""A study of a few steps: its arms are paired, it goes on, and it refuses what would make it worthless."""

import io
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from videokd import recipe as recipes
from videokd.arms import Study, arm_recipe, equal_compute_steps, folds_of, load
from videokd.assembly import assemble
from videokd.cli import main
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import write_manifest
from videokd.config import from_plain, to_plain
from videokd.contracts import Batch, Clip
from videokd.evaluate import Evaluation
from videokd.fidelity import against_teacher
from videokd.label import label
from videokd.leaks import shared, trained_on
from videokd.losses import MultiScale
from videokd.machine import seed_step
from videokd.metrics import scores
from videokd.models import load_model
from videokd.models.cost import cost
from videokd.predictions import Predictions, read_predictions, write_predictions
from videokd.recipe import Data, Recipe, TrainedTeacher, configs_folder
from videokd.study import compare, results, study
from videokd.teachers import Teacher, all_targets
from videokd.train import Interrupted, train

QUIET = Console(quiet=True)
ARMS = (
    "alone",
    "label_smoothing",
    "equal_compute",
    "distilled",
    "self_distilled",
    "untrained_teacher",
    "shuffled_teacher",
)


def tiny(drawn_set: Path, **fields: Any) -> Study:
    """The quickstart's study in three steps, on 24 training clips that all have labels."""
    shipped = load("studies/quickstart.py")
    assert shipped.teacher is not None

    def small(recipe: Recipe) -> Recipe:
        data = replace(recipe.data, path=str(drawn_set), batch_size=6, unlabelled_per_batch=0, val_split=None)
        student = replace(recipe.student, width=4)  # type: ignore[call-arg]
        return replace(recipe, data=data, student=student, optim=replace(recipe.optim, steps=3), preflight=0)

    made = Study(
        teacher=small(shipped.teacher), alone=small(shipped.alone), distilled=small(shipped.distilled), seeds=2
    )
    return replace(made, **fields)


@pytest.fixture(scope="module")
def done(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all arms and two pairs. Not to be changed."""
    out = tmp_path_factory.mktemp("study") / "out"
    study(tiny(drawn_set), out, console=QUIET)
    return out


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """The same, to be changed: where its runs name each other, they name the originals."""
    shutil.copytree(done, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.mark.parametrize("path", sorted((configs_folder() / "studies").glob("*.py")), ids=lambda path: path.stem)
def test_every_shipped_study_loads_and_comes_back_from_plain_data(path: Path) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(load(path)))), trust=()) == load(path)


def test_study_json_has_what_its_readers_look_for(done: Path) -> None:
    found = json.loads((done / "study.json").read_text())
    assert tuple(found["arms"]) == ARMS
    assert (found["split"], found["chance"]) == ("test", pytest.approx(1 / 12))
    assert found["teacher"]["runs"] == ["teacher"]
    for arm, one in found["arms"].items():
        assert one["runs"] == [f"{arm}-seed0", f"{arm}-seed1"]
        assert one["pairs"] == [[1, 0], [1, 1]]
        assert one["top1_each"] == [
            json.loads((done / run / "evaluation.json").read_text())["top1"] for run in one["runs"]
        ]
        assert len(one["seconds_each"]) == 2
        assert one["seconds_per_step"] > 0
        assert one["clips"] == 12
        # What else differs from the student alone than teacher and objective.
        assert one["differs"] == (["optim.steps"] if arm == "equal_compute" else [])
    assert set(found["differences"]) == set(found["gap_recovered"]) == set(ARMS) - {"alone"}
    assert set(found["beyond"]) == set(ARMS) - {"alone", "distilled"}
    assert set(found["per_class"]["grow"]) == {"teacher", *ARMS}
    by_hand = [
        against_teacher(*(read_predictions(done / run) for run in (f"distilled-seed{n}", "teacher"))) for n in (0, 1)
    ]
    agreement = [one["agreement"] for one in by_hand]
    assert found["against"]["distilled"]["agreement"] == pytest.approx(sum(agreement) / 2)  # type: ignore[arg-type]
    assert found["against"]["alone"]["negative_flips"] == 0
    assert found["not_compared"] == [0, 0]
    assert found["verdict"].startswith("Distillation ")
    assert from_plain(found["study"], trust=()).seeds == 2


def first(run: Path) -> tuple[dict[str, torch.Tensor], Batch]:
    """The weights with which a run began, and its first batch."""
    made = assemble(recipes.load(run / "recipe.json"))
    return made.student.model.state_dict(), next(made.batches(range(1)))


def test_all_arms_of_a_pair_begin_alike(done: Path) -> None:
    weights, batch = first(done / "alone-seed1")
    for arm in ARMS[1:]:
        others, other = first(done / f"{arm}-seed1")
        assert other.id == batch.id, arm
        assert torch.equal(other.view, batch.view)
        assert torch.equal(other.clips["student"].frames, batch.clips["student"].frames), arm  # type: ignore[union-attr]
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights), arm
    another, other = first(done / "alone-seed0")
    assert other.id != batch.id
    assert not all(torch.equal(weights[name], another[name]) for name in weights)


@pytest.mark.slow
def test_with_unlabelled_clips_the_labelled_ones_are_those_of_the_student_alone(
    drawn_set: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(drawn_set)
    train_ids = [video.id for video in manifest.videos if video.split == "train"]
    few = tuple(replace(one, label=None) if one.id in train_ids[12:] else one for one in manifest.videos)
    write_manifest(replace(manifest, videos=few), tmp_path / "few.jsonl")
    plan = tiny(drawn_set)
    alone = replace(plan.alone, data=replace(plan.alone.data, path=str(tmp_path / "few.jsonl")))
    distilled = replace(plan.distilled, data=replace(alone.data, unlabelled_per_batch=4))
    plan = replace(plan, alone=alone, distilled=distilled, arms=("alone",), seeds=1)
    found = study(plan, tmp_path / "out", console=QUIET)
    assert found["arms"]["distilled"]["differs"] == ["data.unlabelled_per_batch"]
    (_, batch), (_, other) = first(tmp_path / "out/alone-seed0"), first(tmp_path / "out/distilled-seed0")
    assert other.id[:2] == batch.id[:2]
    assert len(other.id) == len(batch.id) == 6
    # The teacher saw all labels.
    assert json.loads((tmp_path / "out/teacher/recipe.json").read_text())["data"]["path"] == str(drawn_set.resolve())


def test_each_arm_differs_in_what_it_is(drawn_set: Path, done: Path) -> None:
    run = {arm: recipes.load(done / f"{arm}-seed1" / "recipe.json") for arm in ARMS}
    alone, distilled = run["alone"], run["distilled"]
    assert (alone.seed, distilled.seed) == (1, 1)
    assert run["label_smoothing"].objective["hard"].loss.label_smoothing == 0.1  # type: ignore[attr-defined]
    assert replace(run["label_smoothing"], objective=alone.objective) == alone
    assert replace(run["equal_compute"], optim=alone.optim) == alone
    assert source(distilled).checkpoint == str(done.resolve() / "teacher")
    assert source(run["self_distilled"]).checkpoint == str(done.resolve() / "alone-seed1")
    assert source(run["untrained_teacher"]).checkpoint == str(done.resolve() / "untrained_teacher")
    assert source(run["shuffled_teacher"]) == replace(source(distilled), shuffled=True)
    for arm in ("self_distilled", "untrained_teacher", "shuffled_teacher"):
        assert replace(run[arm], teachers=distilled.teachers) == distilled
    untrained, teacher = load_model(done / "untrained_teacher"), load_model(done / "teacher")
    assert untrained.config == teacher.config
    assert not torch.equal(untrained.head.weight, teacher.head.weight)  # type: ignore[attr-defined]


def source(recipe: Recipe) -> TrainedTeacher:
    found = recipe.teachers["teacher"]
    assert isinstance(found, TrainedTeacher)
    return found


def test_only_controls_that_may_be_at_chance_skip_the_preflight(drawn_set: Path, done: Path) -> None:
    plan = tiny(drawn_set)
    plan = replace(plan, alone=replace(plan.alone, preflight=2), distilled=replace(plan.distilled, preflight=2))
    (fold,) = folds_of(plan, done)
    found = {arm: arm_recipe(plan, arm, fold, 0, classes=("a", "b")).preflight for arm in ARMS}
    skipped = ("self_distilled", "untrained_teacher", "shuffled_teacher")
    assert found == {arm: 0 if arm in skipped else 2 for arm in ARMS}


def test_steps_of_equal_compute_by_hand(done: Path) -> None:
    # A step of the distilled student: 32 clips * (3 * 10 + 60) = 2880; alone: 32 * 30 = 960. Three for one.
    by_hand: dict[str, int] = {"steps": 100, "student_macs": 10, "distilled_clips": 32, "alone_clips": 32}
    assert equal_compute_steps(**by_hand, teacher_macs=60) == 300
    # 32 * 31 / 960 = 1.0333 and a part of a step is a step.
    assert equal_compute_steps(**by_hand, teacher_macs=1) == 104
    # Every clip twice.
    assert equal_compute_steps(**by_hand, teacher_macs=60, shuffled=True) == 600
    # Twice the clips, as with as many unlabelled ones on top.
    assert equal_compute_steps(**(by_hand | {"distilled_clips": 64}), teacher_macs=60) == 600
    found = json.loads((done / "study.json").read_text())["arms"]
    student, teacher = cost(load_model(done / "alone-seed0")).macs, cost(load_model(done / "teacher")).macs
    assert found["equal_compute"]["steps"] == -(-3 * (3 * student + teacher) // (3 * student)) > 3
    assert {one["steps"] for arm, one in found.items() if arm != "equal_compute"} == {3}


def test_an_interrupted_study_says_how_to_go_on_and_ends_as_if_nothing_had_happened(
    drawn_set: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def ctrl_c(seed: int, step: int) -> None:
        calls.append(step)
        if len(calls) == 8:  # the teacher has three steps, alone three: the second of label smoothing
            os.kill(os.getpid(), signal.SIGINT)
        seed_step(seed, step)

    out, plan = tmp_path / "out", tiny(drawn_set, arms=("label_smoothing", "shuffled_teacher"))
    with monkeypatch.context() as patch:
        patch.setattr("videokd.train.seed_step", ctrl_c)
        with pytest.raises(Interrupted, match=r"resume with: videokd study mine\.py"):
            study(plan, out, console=QUIET, go_on="videokd study mine.py")
    with pytest.raises(ValueError, match="7 runs never finished, or were not scored: alone-seed1, label_smoothing"):
        results(plan, out)
    # As if it had been killed before it could score this one.
    (out / "alone-seed0" / "evaluation.json").unlink()
    before = (out / "alone-seed0" / "model.safetensors").stat().st_mtime_ns
    said = io.StringIO()
    found = study(plan, out, console=Console(file=said, width=200))
    assert (out / "alone-seed0" / "model.safetensors").stat().st_mtime_ns == before
    assert "Plan: 9 runs, 1 finished, 1 begun." in said.getvalue()
    assert "label_smoothing-seed0 was begun and never finished: it goes on" in said.getvalue()
    assert "[9/9] shuffled_teacher-seed1: top-1" in said.getvalue()
    assert "left for 1 runs" in said.getvalue()
    expected = json.loads((done / "study.json").read_text())
    assert {arm: one["top1_each"] for arm, one in found["arms"].items()} == {
        arm: one["top1_each"] for arm, one in expected["arms"].items() if arm in plan.chosen
    }
    for run in ("label_smoothing-seed0", "shuffled_teacher-seed1"):
        one, other = load_file(out / run / "model.safetensors"), load_file(done / run / "model.safetensors")
        assert all(torch.equal(one[name], other[name]) for name in one)


def answering(drawn_set: Path, monkeypatch: pytest.MonkeyPatch, **rights: int) -> None:
    """Let the model of each run (by the beginning of its folder's name) be right on every n-th held-out clip."""
    whole = read_manifest(drawn_set)

    def scored(folder: Path, videos: Any, *, calibrate_on: Any, **_: Any) -> Evaluation:
        every = next(n for name, n in rights.items() if folder.name.startswith(name))

        def said(clips: Any) -> Predictions:
            ids = tuple(f"{video.id} {copy}" for video in clips.videos for copy in range(8))
            label = torch.tensor([whole.classes.index(video.names[0]) for video in clips.videos for _ in range(8)])
            wrong = torch.arange(len(label)) % every != 0
            logits = 5 * torch.nn.functional.one_hot((label + wrong) % 12, 12).float()
            return Predictions(ids=ids, groups=ids, paths=ids, label=label, logits=logits, classes=whole.classes)

        test = said(videos)
        numbers = {"temporal": {}, "params": 1, "macs": 1.0, "list": str(drawn_set), **scores(test)}
        return Evaluation(numbers, test, None if calibrate_on is None else said(calibrate_on))

    monkeypatch.setattr("videokd.study.evaluate", scored)


def test_a_teacher_at_chance_on_validation_clips_stops_the_study_unless_told_not_to(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(drawn_set, monkeypatch, teacher=12, alone=2, distilled=2)
    plan, out = tiny(drawn_set, arms=("alone",), seeds=1), tmp_path / "out"
    with pytest.raises(ValueError, match=r"teacher 'teacher' is right on .* of split 'val' .*where chance is") as it:
        study(plan, out, console=QUIET)
    assert "--weak-teacher warn" in str(it.value)
    assert not (out / "alone-seed0").exists()
    said = io.StringIO()
    study(replace(plan, weak_teacher="warn"), out, console=Console(file=said, width=400))
    assert "careful: teacher 'teacher' is right on" in said.getvalue()
    assert "careful: on split 'val' the student alone is" in said.getvalue()
    assert recipes.load(out / "distilled-seed0" / "recipe.json").weak_teacher == "warn"
    study(plan, out, console=QUIET)  # finished: nothing is to be stopped any more


def test_a_student_alone_that_is_better_than_its_teacher_stops_the_study_before_it_is_taught(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(drawn_set, monkeypatch, teacher=3, alone=1)
    with pytest.raises(ValueError, match=r"student alone is 66\.\d points above its teacher .*nothing to learn"):
        study(tiny(drawn_set, seeds=1), tmp_path / "out", console=QUIET)
    assert (tmp_path / "out" / "alone-seed0" / "model.json").is_file()
    assert not (tmp_path / "out" / "equal_compute-seed0").exists()
    assert not (tmp_path / "out" / "distilled-seed0").exists()


def test_without_a_validation_split_the_scored_clips_are_looked_at_and_named(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_manifest(drawn_set)
    kept = tuple(video for video in whole.videos if video.split != "val")
    write_manifest(replace(whole, videos=kept), tmp_path / "two.jsonl")
    answering(tmp_path / "two.jsonl", monkeypatch, teacher=12)
    with pytest.raises(ValueError, match="of split 'test' "):
        study(tiny(tmp_path / "two.jsonl", seeds=1), tmp_path / "out", console=QUIET)


def test_a_study_prints_its_plan_with_a_forecast_before_it_starts(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(0, "", number=2)

    monkeypatch.setattr("videokd.study.train", stop)
    said = io.StringIO()
    with pytest.raises(Interrupted):
        study(tiny(drawn_set), tmp_path / "out", console=Console(file=said, width=400))
    lines = said.getvalue().splitlines()
    assert lines[0] == "Plan: 15 runs, none begun."
    assert lines[1].startswith("  teacher: 1 run, 3 steps of 6 clips, about ")
    assert any(line.startswith("  distilled: 2 runs, 3 steps of 6 clips, about ") for line in lines)
    assert lines[-2].startswith("About ")
    assert lines[-2].endswith("for the 15 runs to come (by a dry run of 2 batches; scoring is not counted).")
    assert lines[-1] == "Only the student alone and distilled: --arms alone distilled"
    assert replace(tiny(drawn_set), arms=("alone", "distilled")).chosen == ("alone", "distilled")


def test_a_finished_study_is_kept_and_its_pairs_and_arms_may_change(drawn_set: Path, done: Path) -> None:
    said = io.StringIO()
    before = {path: path.stat().st_mtime_ns for path in done.glob("*/model.json")}
    found = study(tiny(drawn_set), done, console=Console(file=said, width=200))
    assert "Plan: 15 runs, 15 finished, 0 begun." in said.getvalue()
    assert {path: path.stat().st_mtime_ns for path in done.glob("*/model.json")} == before
    one = results(replace(tiny(drawn_set), seeds=1, arms=("label_smoothing",)), done)
    assert tuple(one["arms"]) == ("alone", "label_smoothing", "distilled")
    assert one["verdict"].startswith("One pair: ")
    assert one["arms"]["alone"]["top1_each"] == found["arms"]["alone"]["top1_each"][:1]


def test_clips_that_one_model_alone_left_out_are_not_compared(done: Path, tmp_path: Path) -> None:
    whole = read_predictions(done / "alone-seed0")
    few = whole.rows(torch.arange(4, 12))
    for folder, said in (("teacher", few), ("alone", whole), ("distilled", whole.rows(torch.arange(11)))):
        (tmp_path / folder).mkdir()
        write_predictions(tmp_path / folder, said)
    found = compare({arm: tmp_path / arm for arm in ("teacher", "alone", "distilled")})
    assert found["not_compared"] == 5
    expected = (whole.predicted == whole.label)[4:11].double().mean().item()
    assert found["top1"] == {arm: pytest.approx(expected) for arm in ("teacher", "alone", "distilled")}
    assert found["against"]["distilled"]["agreement"] == 1
    assert list(found["per_class"]) == [whole.classes[k] for k in sorted(set(whole.label[4:11].tolist()))]


def test_scores_of_another_model_are_not_kept(drawn_set: Path, copied: Path) -> None:
    os.utime(copied / "alone-seed1" / "model.json")
    with pytest.raises(ValueError, match="1 runs never finished, or were not scored: alone-seed1"):
        results(tiny(drawn_set), copied)


def test_a_changed_study_is_refused_by_the_name_of_the_field(drawn_set: Path, copied: Path, tmp_path: Path) -> None:
    plan = tiny(drawn_set)
    optim = replace(plan.alone.optim, lr=0.5)
    changed = replace(plan, alone=replace(plan.alone, optim=optim), distilled=replace(plan.distilled, optim=optim))
    with pytest.raises(ValueError, match=r"another study \(alone\.optim\.lr was 0\.008 and is 0\.5, distilled\.optim"):
        study(changed, copied, console=QUIET)
    with pytest.raises(ValueError, match=r"another study \(split was 'test' and is 'val'\)"):
        study(replace(plan, split="val"), copied, console=QUIET)
    # Nothing was begun: the plan may still change.
    (tmp_path / "new").mkdir()
    shutil.copy(copied / "plan.json", tmp_path / "new")
    wrong = replace(changed, trained_teacher=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no trained model"):
        study(wrong, tmp_path / "new", console=QUIET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="something that is not a study"):
        study(plan, tmp_path / "other", console=QUIET)


def test_a_changed_list_is_refused(drawn_set: Path, tmp_path: Path) -> None:
    manifest = read_manifest(drawn_set)
    write_manifest(manifest, tmp_path / "list.jsonl")
    plan = replace(tiny(drawn_set), lists=(str(tmp_path / "list.jsonl"),), arms=("alone",), seeds=1)
    study(plan, tmp_path / "out", console=QUIET)
    write_manifest(replace(manifest, videos=manifest.videos[:-1]), tmp_path / "list.jsonl")
    with pytest.raises(ValueError, match=r"the list of .* has changed since its study began"):
        study(plan, tmp_path / "out", console=QUIET)


def test_what_no_study_can_be_made_of_is_refused(drawn_set: Path) -> None:
    plan = tiny(drawn_set)
    with pytest.raises(ValueError, match=r"differ by the teacher alone, and differ in optim\.lr \(0\.008 and 1\.0\)"):
        replace(plan, distilled=replace(plan.distilled, optim=replace(plan.distilled.optim, lr=1.0)))
    with pytest.raises(ValueError, match="no arm 'label_smooth'; did you mean 'label_smoothing'"):
        replace(plan, arms=("label_smooth",))
    with pytest.raises(ValueError, match="the student alone has no teacher"):
        replace(plan, alone=plan.distilled)
    with pytest.raises(ValueError, match="a TrainedTeacher called 'teacher', and its recipe has none"):
        replace(plan, distilled=plan.alone)
    with pytest.raises(ValueError, match="a teacher to train, or the folder"):
        replace(plan, teacher=None)
    with pytest.raises(ValueError, match="can't be called 'distilled'"):
        replace(plan, others={"distilled": plan.distilled})
    with pytest.raises(ValueError, match="at least 1, from 0 on: got 0"):
        replace(plan, seeds=0)
    with pytest.raises(ValueError, match="split 'train' is to be scored, and teacher is trained on it"):
        replace(plan, split="train")


def test_a_student_that_lacks_the_teachers_taps_can_not_teach_itself(drawn_set: Path, tmp_path: Path) -> None:
    plan = tiny(drawn_set)
    stage = replace(plan.distilled.objective["frames"], loss=MultiScale(student_tap="stage3", teacher_tap="layer4"))
    plan = replace(plan, distilled=replace(plan.distilled, objective={"frames": stage}))
    with pytest.raises(ValueError, match=r"leave out self_distilled \(arms\): .*'layer4'"):
        study(plan, tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_named(drawn_set: Path, tmp_path: Path) -> None:
    plan = tiny(drawn_set)
    broken = replace(plan.alone, optim=replace(plan.alone.optim, freeze=("nowhere",)))
    with pytest.raises(ValueError, match=r"frozen-seed0: .*nowhere"):
        study(replace(plan, others={"frozen": broken}, arms=("frozen",)), tmp_path / "out", console=QUIET)


@pytest.mark.slow
def test_every_list_is_a_fold_with_a_teacher_of_its_own(drawn_set: Path, tmp_path: Path) -> None:
    assert main(["data", "folds", str(drawn_set), "--k", "2", "--val", "0", "--out", str(tmp_path / "folds")]) == 0
    lists = tuple(str(tmp_path / "folds" / f"fold{number}.jsonl") for number in (1, 2))
    plan = replace(
        tiny(drawn_set), lists=lists, arms=("untrained_teacher",), seeds=2, first_seed=3, weak_teacher="warn"
    )
    found = study(plan, tmp_path / "out", console=QUIET)
    assert found["teacher"]["runs"] == ["fold1/teacher", "fold2/teacher"]
    assert found["arms"]["alone"]["pairs"] == [[1, 3], [1, 4], [2, 3], [2, 4]]
    assert found["arms"]["distilled"]["runs"][2] == "fold2/distilled-seed3"
    assert source(recipes.load(tmp_path / "out/fold2/distilled-seed3/recipe.json")).checkpoint.endswith("fold2/teacher")
    assert len(found["differences"]["distilled"]["folds"]) == 2
    assert found["lists"] == [str(Path(one).resolve()) for one in lists]
    scored = [set(read_predictions(tmp_path / f"out/fold{number}/alone-seed3").ids) for number in (1, 2)]
    assert not scored[0] & scored[1]
    assert scored[0] | scored[1] == {video.id for video in read_manifest(lists[0]).videos}


@pytest.mark.slow
def test_a_trained_teacher_is_copied_and_further_arms_get_it(drawn_set: Path, done: Path, tmp_path: Path) -> None:
    plan = tiny(drawn_set)
    soft = replace(plan.distilled, objective={"soft": plan.distilled.objective["soft"]})
    plan = replace(plan, trained_teacher=str(done / "teacher"), others={"soft": soft}, arms=("soft",), seeds=1)
    found = study(plan, tmp_path / "out", console=QUIET)
    assert tuple(found["arms"]) == ("alone", "distilled", "soft")
    copy = load_file(tmp_path / "out/teacher/model.safetensors")
    original = load_file(done / "teacher/model.safetensors")
    assert all(torch.equal(copy[name], original[name]) for name in original)
    assert source(recipes.load(tmp_path / "out/soft-seed0/recipe.json")).checkpoint == str(tmp_path / "out/teacher")
    # The same students as where it was trained.
    before = json.loads((done / "study.json").read_text())["arms"]["distilled"]["top1_each"]
    assert found["arms"]["distilled"]["top1_each"] == before[:1]
    assert found["differences"]["soft"]["verdict"].startswith("One pair: ")


def test_a_shuffled_teacher_tells_each_clip_what_it_thinks_of_another(done: Path) -> None:
    teacher = Teacher(load_model(done / "teacher"), {"frames": "frames"}, remember=True)
    _, batch = first(done / "distilled-seed0")
    view, ids, views = batch.clips["teacher"], batch.id, batch.view
    assert isinstance(view, Clip)
    view = Clip(view.frames, view.times + torch.arange(6)[:, None])  # each from another second of its video
    own, other = teacher(view, ids, views), teacher.shuffled()(view, ids, views)
    assert own.logits is not None
    assert other.logits is not None
    # The next clip's, whole; times are the clip's own.
    assert torch.equal(other.logits, own.logits.roll(-1, 0))
    assert torch.equal(other.features["frames"].values, own.features["frames"].values.roll(-1, 0))
    assert torch.equal(other.features["frames"].times, own.features["frames"].times)
    # And they share what they remember.
    assert teacher.shuffled()._memory is teacher._memory
    assert torch.equal(teacher(view, ids, views).logits, own.logits)  # type: ignore[arg-type]


def test_a_run_of_a_shuffled_teacher_hears_it_shuffled_and_no_other_does(done: Path) -> None:
    said = {}
    for arm in ("distilled", "shuffled_teacher"):
        made = assemble(recipes.load(done / f"{arm}-seed0" / "recipe.json"))
        said[arm] = all_targets(made.teachers, next(made.batches(range(1))))["teacher"].logits
    assert torch.equal(said["shuffled_teacher"], said["distilled"].roll(-1, 0))  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("arm", ["distilled", "shuffled_teacher"])
def test_a_run_of_a_study_learns_what_its_recipe_alone_does(arm: str, done: Path, tmp_path: Path) -> None:
    train(recipes.load(done / f"{arm}-seed1" / "recipe.json"), tmp_path / "run", console=QUIET)
    one, other = (load_file(run / "model.safetensors") for run in (tmp_path / "run", done / f"{arm}-seed1"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_views_of_one_video_are_never_each_others_targets(done: Path) -> None:
    teacher = Teacher(load_model(done / "teacher"), {}).shuffled()
    _, batch = first(done / "distilled-seed0")
    own = Teacher(teacher.model, {})(batch.clips["teacher"], batch.id, batch.view).logits
    assert own is not None
    ids = ("a", "b", "a", "c", "c", "d")
    said = teacher(batch.clips["teacher"], ids, batch.view).logits
    assert said is not None
    came_from = [next(place for place in range(6) if torch.equal(said[row], own[place])) for row in range(6)]
    assert sorted(came_from) == list(range(6))
    assert all(ids[row] != ids[place] for row, place in enumerate(came_from))
    with pytest.raises(ValueError, match="4 of the 6 clips of a batch are of 'a'"):
        teacher(batch.clips["teacher"], ("a", "a", "a", "a", "b", "c"), batch.view)


def test_what_a_shuffled_teacher_says_is_not_stored(drawn_set: Path, done: Path, tmp_path: Path) -> None:
    recipe = recipes.load(done / "shuffled_teacher-seed0" / "recipe.json")
    with pytest.raises(ValueError, match=r"is shuffled in each batch of a run: store it as it is"):
        label(recipe, tmp_path / "stored", console=QUIET)


@pytest.mark.parametrize("split", ["test", "Test", "testing", "test1"])
def test_a_test_split_by_any_name_is_neither_trained_on_nor_selected_by(split: str) -> None:
    for field in ("train_split", "val_split"):
        with pytest.raises(ValueError, match=rf"split '{split}' is for `videokd evaluate`"):
            Data(path="x", **{field: split})
    Data(path="x", train_split="attested", val_split="latest")


def test_all_of_a_list_with_a_test_split_is_neither_trained_on_nor_labelled(
    drawn_set: Path, done: Path, tmp_path: Path
) -> None:
    recipe = recipes.load(done / "distilled-seed0" / "recipe.json")
    every = replace(recipe, data=replace(recipe.data, train_split=None))
    with pytest.raises(ValueError, match="has the splits test, train, val: name the one to train on"):
        train(every, tmp_path / "run", console=QUIET)
    with pytest.raises(ValueError, match="has the splits test, train, val: name the one to train on"):
        label(every, tmp_path / "stored", console=QUIET)


def resplit(drawn_set: Path, path: Path) -> Path:
    """The list with training and test exchanged."""
    manifest = read_manifest(drawn_set)
    turned = {"train": "test", "test": "train", "val": "val"}
    videos = tuple(replace(video, split=turned[video.split or ""]) for video in manifest.videos)
    write_manifest(replace(manifest, videos=videos), path)
    return path


def test_a_teacher_that_knows_the_test_clips_is_refused_in_a_study_and_named_in_a_run(
    drawn_set: Path, done: Path, tmp_path: Path
) -> None:
    other = resplit(drawn_set, tmp_path / "other.jsonl")
    plan = replace(tiny(other), trained_teacher=str(done / "teacher"))
    with pytest.raises(ValueError, match=r"teacher .*/teacher was trained on clips that are scored.*: 24 of 24"):
        study(plan, tmp_path / "out", console=QUIET)
    # Nor by way of a student of it.
    with pytest.raises(ValueError, match=r"was trained on clips that are scored"):
        study(replace(plan, trained_teacher=str(done / "distilled-seed0")), tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()
    said = io.StringIO()
    recipe = recipes.load(done / "distilled-seed0" / "recipe.json")
    train(
        replace(recipe, data=replace(recipe.data, path=str(other), batch_size=4)),
        tmp_path / "run",
        console=Console(file=said, width=200),
    )
    assert "careful: teacher 'teacher' was trained on 24 of the 24 clips" in said.getvalue()


def test_an_arm_whose_list_has_the_scored_clips_in_training_is_refused(drawn_set: Path, tmp_path: Path) -> None:
    plan = tiny(drawn_set)
    assert plan.teacher is not None
    other = resplit(drawn_set, tmp_path / "other.jsonl")
    teacher = replace(plan.teacher, data=replace(plan.teacher.data, path=str(other)))
    with pytest.raises(ValueError, match=r"teacher trains on clips of .*other\.jsonl that are scored.*: 12 of 12"):
        study(replace(plan, teacher=teacher), tmp_path / "out", console=QUIET)


def test_a_run_without_a_known_list_is_not_taken_for_a_clean_one(drawn_set: Path, done: Path, tmp_path: Path) -> None:
    videos = read_manifest(drawn_set).split("test")
    assert trained_on(done / "teacher", videos) == ()
    assert trained_on(tmp_path, videos) is None
    plan = json.loads((done / "teacher" / "recipe.json").read_text())
    plan["data"]["path"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "recipe.json").write_text(json.dumps(plan))
    assert trained_on(tmp_path, videos) is None


def test_clips_that_a_run_was_selected_by_or_saw_without_labels_count_as_seen(
    drawn_set: Path, done: Path, tmp_path: Path
) -> None:
    whole = read_manifest(drawn_set)
    val = whole.split("val")
    plan = json.loads((done / "teacher" / "recipe.json").read_text())

    def seen(*, more: dict[str, Any], **data: Any) -> int:
        (tmp_path / "recipe.json").write_text(json.dumps(plan | more | {"data": plan["data"] | data}))
        found = trained_on(tmp_path, val)
        assert found is not None
        return len(found)

    assert seen(more={}, val_split="val") == 0
    assert seen(more={"keep": "best"}, val_split="val") == seen(more={"patience": 2}, val_split="val") == 12
    turned = tuple(replace(one, split="unlabelled" if one.split == "val" else one.split) for one in whole.videos)
    write_manifest(replace(whole, videos=turned), tmp_path / "list.jsonl")
    assert seen(more={}, path=str(tmp_path / "list.jsonl")) == 0
    assert seen(more={}, path=str(tmp_path / "list.jsonl"), unlabelled_per_batch=2) == 12


def test_what_teachers_of_teachers_were_trained_on_counts_as_seen(drawn_set: Path, done: Path, tmp_path: Path) -> None:
    whole = read_manifest(drawn_set)
    elsewhere = tuple(replace(one, split="train") for one in whole.videos if one.split == "val")
    write_manifest(replace(whole, videos=elsewhere), tmp_path / "list.jsonl")
    checkpoint = done / "teacher"
    for name in ("student", "student of the student"):
        plan = json.loads((done / "distilled-seed0" / "recipe.json").read_text())
        plan["data"]["path"], plan["teachers"]["teacher"]["checkpoint"] = str(tmp_path / "list.jsonl"), str(checkpoint)
        checkpoint = tmp_path / name
        checkpoint.mkdir()
        (checkpoint / "recipe.json").write_text(json.dumps(plan))
        assert trained_on(checkpoint, whole.split("train")) == tuple(one.id for one in whole.split("train").videos)
        assert trained_on(checkpoint, whole.split("test")) == ()


def test_other_clips_of_a_source_count_as_seen_in_lists_of_the_same_files(drawn_set: Path) -> None:
    whole = read_manifest(drawn_set)
    grouped = replace(whole, videos=tuple(replace(one, group=f"g{n // 2}") for n, one in enumerate(whole.videos)))
    trained, scored = (replace(grouped, videos=grouped.videos[part::2]) for part in (0, 1))
    assert shared(trained, scored) == ()  # no file in common: g1 may be another g1
    assert len(shared(trained, scored, of=grouped)) == len(scored.videos)
    assert shared(trained, trained) == tuple(one.id for one in trained.videos)


def test_the_command_runs_a_file_and_prints_its_table(
    drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from videokd.arms import load\n"
        "def small(recipe):\n"
        "    data = replace(recipe.data, batch_size=6, unlabelled_per_batch=0, val_split=None)\n"
        "    optim = replace(recipe.optim, steps=2)\n"
        "    return replace(recipe, student=replace(recipe.student, width=4), data=data, optim=optim, preflight=0)\n"
        "given = load('studies/quickstart.py')\n"
        "study = replace(given, teacher=small(given.teacher), alone=small(given.alone),\n"
        "                distilled=small(given.distilled))\n"
    )
    short = ["--seeds", "1", "--arms", "shuffled_teacher", "--list", str(drawn_set), "--on-bad-video", "skip"]
    assert main(["study", "mine.py", "--out", "out", *short, "--teacher.optim.steps", "3"]) == 0
    said = capsys.readouterr().out
    for words in ("1 pairs on split 'test'", "student distilled", "shuffled teacher", "One pair: ", "study.json"):
        assert words in said
    assert json.loads((tmp_path / "out/teacher/summary.json").read_text())["steps"] == 3
    assert recipes.load(tmp_path / "out/alone-seed0/recipe.json").data.on_bad_video == "skip"
    assert main(["study", "mine.py", "--out", "out", *short, "--alone.optim.lr", "1"]) == 1
    assert main(["study", "quickstart/alone.py"]) == 1
    assert "does not define `study = Study(...)`" in capsys.readouterr().err


def test_a_second_list_with_few_labels_is_drawn_on_request(tmp_path: Path) -> None:
    counts = ["--train", "4", "--val", "2", "--test", "2", "--workers", "1"]
    assert main(["data", "synth", str(tmp_path / "set"), *counts, "--labelled", "3"]) == 0
    few, full = (read_manifest(tmp_path / "set" / f"{name}.jsonl") for name in ("few_labels", "manifest"))
    assert [video.label is None for video in few.split("train").videos] == [False] * 3 + [True]
    assert few.split("test").videos == full.split("test").videos
    assert main(["data", "synth", str(tmp_path / "set"), *counts, "--labelled", "5"]) == 1
