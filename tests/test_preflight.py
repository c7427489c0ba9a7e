"""A dry run says what is wrong with a run, and leaves it as it was."""

import io
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from videokd import train as training
from videokd.assembly import Assembly, assemble
from videokd.cli import main
from videokd.clips.lists import read_manifest
from videokd.clips.mixing import Mix
from videokd.contracts import Outputs, View
from videokd.distill import Term, wanted_taps
from videokd.losses import CRD, CrossEntropy, Loss, Pair, SoftTargets
from videokd.models import CompactShift, load_model, save_model
from videokd.preflight import Report, check, held_out, preflight, terms
from videokd.preflight import forecast as forecasts
from videokd.preflight.class_lists import accuracy_finding, renamed, score
from videokd.recipe import Recipe, TrainedTeacher, load
from videokd.teachers import Mixture, Teacher
from videokd.weighting import GradientRatio, Uncertainty, Weighting, WhereTeacherIsRight

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def untrained(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a teacher with random weights."""
    torch.manual_seed(0)
    config = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    folder = tmp_path_factory.mktemp("untrained")
    save_model(config.build(read_manifest(drawn_set).classes), folder)
    return folder


@pytest.fixture
def recipe(drawn_set: Path, untrained: Path) -> Recipe:
    """A distilled run of eight steps of 24 clips."""
    recipe = load("quickstart/distilled.py")
    data = replace(recipe.data, path=str(drawn_set), batch_size=24, val_split=None, in_memory=False)
    return replace(
        recipe,
        data=data,
        student=CompactShift(width=4, input=recipe.student.input),
        teachers={"teacher": TrainedTeacher(checkpoint=str(untrained))},
        optim=replace(recipe.optim, steps=8),
    )


class Oracle(Teacher):
    """Knows the class of every clip, and says another one of some."""

    def __init__(self, recipe: Recipe, says: Callable[[int], int] = lambda label: label) -> None:
        manifest = recipe.data.manifest()
        self.truth = {video.id: manifest.classes.index(video.names[0]) for video in manifest.videos}
        self.says = says
        source = recipe.teachers["teacher"]
        assert isinstance(source, TrainedTeacher)
        super().__init__(load_model(source.checkpoint), wanted_taps(recipe.objective, "teacher"))

    def __call__(self, view: View | Tensor, ids: Sequence[str], views: Tensor) -> Outputs:
        found = super().__call__(view, ids, views)
        assert found.logits is not None
        said = torch.tensor([self.says(self.truth[one]) for one in ids])
        return replace(found, logits=10 * torch.nn.functional.one_hot(said, found.logits.shape[1]).float())


def good(recipe: Recipe) -> dict[str, Teacher | Mixture]:
    return {"teacher": Oracle(recipe)}


def said(report: Report, level: str) -> str:
    return "\n".join(finding.said for finding in report.findings if finding.level == level)


def test_a_good_run_is_a_go_with_its_numbers(recipe: Recipe) -> None:
    recipe = replace(recipe, data=replace(recipe.data, val_split="val"))
    report = preflight(assemble(recipe, teachers=good(recipe)), batches=2)
    assert (report.verdict, report.batches) == ("go", 2)
    (teacher,) = report.teachers
    assert (teacher.labelled, teacher.right) == (48, 48)
    assert {one.term for one in report.terms} == set(recipe.objective)
    assert sum(one.share or 0 for one in report.terms) == pytest.approx(1)
    assert report.forecast is not None
    assert min(report.forecast.student, report.forecast.teacher, report.forecast.validation) > 0
    assert report.forecast.memory > 0
    assert "8 steps and " in said(report, "ok")
    # The weight is the one after the warm-up, which has hardly begun.
    assert next(one.weight for one in report.terms if one.term == "frames") == pytest.approx(16.0)
    plain = json.loads(json.dumps(report.as_plain()))
    assert plain["verdict"] == "go"
    assert plain["forecast"]["seconds"] == pytest.approx(report.forecast.seconds)


def test_taps_are_shown_with_their_shapes_and_what_is_learned_between_them(recipe: Recipe) -> None:
    first, second = preflight(assemble(recipe, teachers=good(recipe)), batches=1).connections
    assert (first.terms, first.connector, first.grid) == (("frames", "difference"), "Linear", "frames")
    # Width 4: the student's frames have 12 channels, the teacher's 16.
    assert (first.student_shape[0], first.teacher_shape[0]) == (8, 8)
    student, teacher = first.student_shape[-1], first.teacher_shape[-1]
    assert first.params == student * teacher + teacher
    assert (second.terms, second.connector, second.params) == (("affinity",), None, 0)


@pytest.mark.parametrize("weighting", [GradientRatio(interval=2), Uncertainty()])
def test_training_after_a_preflight_is_the_same_to_the_bit(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighting: Weighting
) -> None:
    objective = {**recipe.objective, "contrast": Term(loss=CRD(queue=32), weight=0.1)}
    recipe = replace(recipe, objective=objective, weighting=weighting, preflight=0)
    recipe = replace(recipe, data=replace(recipe.data, batch_size=6))
    training.train(recipe, tmp_path / "without", console=QUIET)

    def looked_at(*args: Any, **kwargs: Any) -> Assembly:
        made = assemble(*args, **kwargs)
        student, random = made.student, torch.get_rng_state()
        student.eval()
        student.model.train()
        modes = [module.training for module in student.modules()]
        before = {name: value.clone() for name, value in student.state_dict().items()}
        preflight(made, batches=3)
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        assert [module.training for module in student.modules()] == modes
        assert all(parameter.grad is None for parameter in student.parameters())
        assert made.student.objective.weights == {}
        return made

    monkeypatch.setattr(training, "assemble", looked_at)
    training.train(recipe, tmp_path / "with", console=QUIET)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("without", "with"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_is_left_as_it_was_when_it_fails(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = assemble(recipe)
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    monkeypatch.setattr("videokd.preflight.terms.seen", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        preflight(made)
    assert all(torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    assert all(parameter.grad is None for parameter in made.student.parameters())


def test_an_untrained_teacher_is_an_error_from_enough_clips_and_a_warning_from_few(recipe: Recipe) -> None:
    report = preflight(assemble(recipe), batches=4)
    assert report.verdict == "don't"
    assert "of 96 labelled clips" in said(report, "error")
    assert "it was not trained" in said(report, "error")
    few = replace(recipe, data=replace(recipe.data, batch_size=6))
    report = preflight(assemble(few), batches=2)
    assert report.verdict == "go, but look at these"
    assert "of 12 labelled clips" in said(report, "warning")
    assert "too few to tell" in said(report, "warning")
    # Teachers alone go on until they have seen 64: 11 batches of 6.
    more = replace(few, optim=replace(few.optim, steps=20))
    report = preflight(assemble(more), batches=2, most=16)
    assert report.teachers[0].labelled == 66
    assert report.verdict == "don't"


def answers(right: int, clips: int, num_classes: int, *, per_source: int = 1) -> held_out.HeldOutScore:
    label = np.arange(clips) % num_classes
    said = np.where(np.arange(clips) < right, label, (label + 1) % num_classes)
    groups = [f"source {number // per_source}" for number in range(clips)]
    found = held_out.score_of(said, np.eye(num_classes, dtype=bool)[label], groups, split="val")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("right", "clips", "num_classes", "level"),
    [
        (17, 96, 6, "error"),  # 17.7 % where chance is 16.7 %
        (0, 96, 6, "error"),  # worse than chance
        (40, 96, 6, "ok"),
        (10, 60, 30, "ok"),  # weak, and far above chance
        (33, 60, 2, "error"),
        (2, 12, 6, "warning"),  # may be 45 %
        (0, 12, 6, "error"),  # is no more than 24 %
        (9, 12, 6, "ok"),
        (9, 12, 2, "warning"),  # a good teacher of two classes is not told from chance by a dozen clips
        (3, 3, 2, "warning"),
    ],
)
def test_a_teacher_is_stopped_where_its_interval_includes_chance_and_the_clips_are_enough(
    right: int, clips: int, num_classes: int, level: str
) -> None:
    assert held_out.finding_of("t", answers(right, clips, num_classes), stop=True).level == level
    weaker = "warning" if level == "error" else level
    assert held_out.finding_of("t", answers(right, clips, num_classes), stop=False).level == weaker


def test_an_answer_that_is_the_same_for_all_clips_is_at_chance_whatever_its_share() -> None:
    classes = np.zeros((100, 4), dtype=bool)
    classes[:70, 0], classes[70:, 1] = True, True
    found = held_out.score_of(np.zeros(100, dtype=np.int64), classes, [str(n) for n in range(100)], split="val")
    assert found is not None
    assert (found.right, found.chance, found.at_chance) == (70, pytest.approx(0.7), True)


def test_clips_of_few_sources_make_the_interval_wider() -> None:
    alone, together = answers(48, 96, 6), answers(48, 96, 6, per_source=16)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_a_teacher_is_checked_on_validation_clips_and_never_on_test_clips(recipe: Recipe) -> None:
    splits = {video.id: video.split for video in recipe.data.manifest().videos}
    seen: list[str] = []

    class Memorised(Oracle):
        """Right on the training clips alone."""

        def __call__(self, view: View | Tensor, ids: Sequence[str], views: Tensor) -> Outputs:
            found = super().__call__(view, ids, views)
            assert found.logits is not None
            seen.extend(ids)
            known = torch.tensor([splits[one] == "train" for one in ids])[:, None]
            return replace(found, logits=found.logits.where(known, found.logits.roll(1, dims=1)))

    report = preflight(assemble(recipe, teachers={"teacher": Memorised(recipe)}), batches=2)
    (finding,) = (one for one in report.findings if "held-out" in one.what)
    assert finding.level == "error"
    assert "clips of split 'val'" in finding.said
    assert {splits[one] for one in seen} == {"train", "val"}
    told = replace(recipe, weak_teacher="warn")
    report = preflight(assemble(told, teachers={"teacher": Memorised(recipe)}), batches=2)
    assert not report.at("error")
    assert "held-out" in " ".join(one.what for one in report.at("warning"))


def test_the_parts_of_a_mixture_are_judged_too(recipe: Recipe) -> None:
    source = recipe.teachers["teacher"]
    mixture = Mixture(of=("good", "bad"))
    objective = {"hard": Term(loss=CrossEntropy()), "soft": Term(loss=SoftTargets(), teacher="both")}
    mixed = replace(recipe, objective=objective, teachers={"good": source, "bad": source, "both": mixture})
    untaught = assemble(mixed).teachers
    report = preflight(assemble(mixed, teachers={**untaught, "good": Oracle(recipe)}), batches=4)
    assert {one.teacher for one in report.teachers} == {"good", "bad", "both"}
    assert [finding.what for finding in report.at("error")] == ["teacher bad"]


def test_swapped_classes_are_named(recipe: Recipe) -> None:
    swapped = Oracle(recipe, says=lambda label: {0: 1, 1: 0}.get(label, label))
    report = preflight(assemble(recipe, teachers={"teacher": swapped}), batches=8)
    first, second = recipe.data.manifest().classes[:2]
    (finding,) = report.at("error")
    # Eight times the two clips that the set has of each.
    assert f"{first!r} of 16 of the 16 clips of {second!r}" in finding.said
    assert f"{second!r} of 16 of the 16 clips of {first!r}" in finding.said


def test_a_class_list_in_another_order_is_told_from_an_untrained_teacher(recipe: Recipe) -> None:
    turned = Oracle(recipe, says=lambda label: (label + 1) % 12)
    report = preflight(assemble(recipe, teachers={"teacher": turned}), batches=8)
    wrong = {finding.what for finding in report.at("error")}
    assert wrong == {"teacher teacher", "teacher teacher on held-out clips", "classes of teacher"}


@dataclass(frozen=True, kw_only=True)
class Scaled(Loss):
    """Cross entropy of the labels, times a number, by a term that has a teacher."""

    scale: float = 1.0
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        assert student.logits is not None
        return self.scale * torch.nn.functional.cross_entropy(student.logits, label)


@dataclass(frozen=True, kw_only=True)
class Detached(Loss):
    """Has a value, and teaches nothing."""

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        assert student.logits is not None
        return student.logits.detach().square().mean() + 1


def with_terms(recipe: Recipe, **terms: Term) -> Recipe:
    return replace(recipe, objective={"hard": Term(loss=CrossEntropy()), **terms})


def test_shares_and_cosines_of_gradients_match_hand_computed_ones(recipe: Recipe) -> None:
    # Gradients of g, 0.5 x 4 g and -5 g: of 1 + 2 + 5 = 8 they are an eighth, two and five.
    recipe = with_terms(recipe, along=Term(loss=Scaled(scale=4.0), weight=0.5), against=Term(loss=Scaled(scale=-5.0)))
    hard, along, against = preflight(assemble(recipe, teachers=good(recipe)), batches=2).terms
    assert [one.share for one in (hard, along, against)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1e-5)
    assert (hard.cosine, along.cosine, against.cosine) == (None, pytest.approx(1), pytest.approx(-1))
    assert along.value == pytest.approx(4 * hard.value)


def test_a_term_that_is_zero_is_an_error(recipe: Recipe) -> None:
    recipe = with_terms(recipe, lost=Term(loss=Scaled(scale=0.0)))
    report = preflight(assemble(recipe, teachers=good(recipe)), batches=2)
    assert "term 'lost' (Scaled) is exactly 0 on every batch" in said(report, "error")


def test_a_term_without_gradient_is_an_error(recipe: Recipe) -> None:
    recipe = with_terms(recipe, cut=Term(loss=Detached()))
    report = preflight(assemble(recipe, teachers=good(recipe)), batches=2)
    assert "term 'cut' (Detached) is" in said(report, "error")
    assert "no gradient in the student" in said(report, "error")


def test_a_term_of_weight_zero_or_in_its_warmup_is_none(recipe: Recipe) -> None:
    recipe = with_terms(
        recipe,
        watched=Term(loss=Scaled(), weight=0.0),
        later=Term(loss=Scaled(), warmup=1.0),
    )
    report = preflight(assemble(recipe, teachers=good(recipe)), batches=1)
    assert report.verdict == "go"
    assert "term 'watched' (Scaled) has weight 0" in said(report, "ok")
    shares = {one.term: one.share for one in report.terms}
    assert shares == {"hard": pytest.approx(0.5), "watched": 0, "later": pytest.approx(0.5)}


def test_terms_far_too_small_or_too_large_are_warned_of(recipe: Recipe) -> None:
    small = with_terms(recipe, small=Term(loss=Scaled(), weight=0.001))
    report = preflight(assemble(small, teachers=good(small)), batches=1)
    assert "term 'small' (Scaled)" in said(report, "warning")
    assert "too little to be noticed" in said(report, "warning")
    assert "term 'hard' (CrossEntropy)" in said(report, "warning")
    assert "the others hardly count" in said(report, "warning")


def test_a_weight_that_is_not_a_number_is_named(recipe: Recipe) -> None:
    teachers = assemble(recipe).teachers
    teacher = teachers["teacher"]
    assert isinstance(teacher, Teacher)
    name, weight = list(teacher.model.named_parameters())[-1]
    weight[0] = float("nan")
    report = preflight(assemble(recipe, teachers=teachers), batches=2)
    error = said(report, "error")
    assert "what teacher 'teacher' says of 48 clips is not finite" in error
    assert f"is nan: not finite are 'logits' of the teacher 'teacher' on 24 clips; the weights {name} of" in error
    assert next(one for one in report.as_plain()["terms"] if one["term"] == "soft")["value"] is None
    # Its features are what they were: only the term on its logits is broken.
    assert [finding.what for finding in report.at("error")] == ["teacher teacher", "term soft"]


def test_terms_that_count_no_clip_are_warned_of(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = assemble(recipe, teachers=good(recipe))
    blank = [replace(batch, label=torch.full_like(batch.label, -1)) for batch in made.batches(range(2))]
    monkeypatch.setattr(Assembly, "batches", lambda self, steps: iter(blank[steps.start : steps.stop]))
    report = preflight(made, batches=2)
    assert "term 'hard' (CrossEntropy) counts no clip" in said(report, "warning")
    assert "none of these clips has a label" in said(report, "warning")
    assert report.at("error") == []


def test_clip_weights_that_leave_nothing_are_the_teachers_doing(recipe: Recipe) -> None:
    recipe = with_terms(recipe, right=Term(loss=SoftTargets(), clips=WhereTeacherIsRight()))
    wrong = Oracle(recipe, says=lambda label: (label + 1) % 12)
    report = preflight(assemble(recipe, teachers={"teacher": wrong}), batches=1)
    assert "WhereTeacherIsRight gives no clip of these batches any weight" in said(report, "warning")


def test_mixed_clips_are_right_by_either_class(recipe: Recipe) -> None:
    recipe = replace(recipe, data=replace(recipe.data, mix=Mix(mixup=1.0)))
    report = preflight(assemble(recipe, teachers=good(recipe)), batches=2)
    assert report.teachers[0].right == 48


def test_a_full_disk_is_an_error(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = assemble(recipe, teachers=good(recipe))
    need = preflight(made, batches=1, out=tmp_path / "not" / "there").forecast
    assert need is not None
    # Module and AdamW's two moments, old and new; the model once.
    learned = sum(4 * one.numel() for one in made.student.parameters())
    module = sum(one.nbytes for one in made.student.state_dict().values())
    model = sum(one.nbytes for one in made.student.model.state_dict().values())
    assert need.disk == 2 * (module + 2 * learned) + model
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need.disk - 1))
    report = preflight(made, batches=1, out=tmp_path / "not" / "there")
    assert [finding.what for finding in report.at("error")] == ["disk"]
    assert "--out" in said(report, "error")


def test_too_little_memory_and_a_long_run_are_warned_of(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "memory_there", lambda device: 10_000)
    monkeypatch.setattr(forecasts, "LONG", 0.0)
    report = preflight(assemble(recipe, teachers=good(recipe)), batches=1)
    assert {finding.what for finding in report.at("warning")} == {"memory", "time"}


def test_a_teacher_that_remembers_is_forecast_with_what_it_keeps(recipe: Recipe) -> None:
    data = replace(recipe.data, views=1, batch_size=6)
    recipe = replace(recipe, data=data, optim=replace(recipe.optim, steps=400))
    source = recipe.teachers["teacher"]
    assert isinstance(source, TrainedTeacher)
    remembering = replace(recipe, teachers={"teacher": replace(source, remember=True)})
    online, kept = (preflight(assemble(one), batches=2).forecast for one in (recipe, remembering))
    assert online is not None
    assert kept is not None
    # 24 clips of one view, at 6 a step: it computes at 4 of 400 steps.
    assert kept.teacher < online.teacher / 10


def test_check_prints_warnings_and_stops_a_run_that_can_not_work(recipe: Recipe) -> None:
    screen = Console(file=io.StringIO(), width=300)
    report = check(assemble(recipe, teachers=good(recipe)), batches=2, console=screen)
    assert report.verdict == "go"
    assert screen.file.getvalue().startswith("preflight: 8 steps take about")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^preflight: teacher .* is right on .*--preflight 0$"):
        check(assemble(recipe), batches=4, console=QUIET)
    with pytest.raises(ValueError, match="at least, not 0"):
        preflight(assemble(recipe), batches=0)


def test_the_command_prints_a_verdict_and_returns_it(
    drawn_set: Path, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--data.path", str(drawn_set), "--data.val-split", "None", "--student.width", "4", "--optim.steps", "8"]
    assert main(["preflight", "quickstart/alone.py", "--batches", "2", "--out", str(tmp_path / "run"), *small]) == 0
    shown = capsys.readouterr().out
    for part in ("terms", "hard", "in order:", "steps take about", "Verdict: go."):
        assert part in shown
    assert not (tmp_path / "run").exists()
    checkpoint = ["--teachers.teacher.checkpoint", str(untrained)]
    assert main(["preflight", "quickstart/distilled.py", *small, *checkpoint]) == 1
    captured = capsys.readouterr()
    assert "wrong:\n  teacher 'teacher' is right on" in captured.out
    assert "frames, difference" in captured.out
    assert captured.err == "videokd: error: verdict: don't, because of teacher teacher\n"
    assert main(["preflight"]) == 1
    assert "usage: videokd preflight RECIPE" in capsys.readouterr().err
    assert main(["preflight", "--help"]) == 0


def test_a_negative_number_of_batches_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="preflight counts batches: 0 for none, not -1"):
        replace(recipe, preflight=-1)


def test_chance_is_what_the_same_answers_are_right_on_when_dealt_at_random() -> None:
    # One answer to all: of classes a, a, a, b it is right on 3 of 4 by saying a. Chance is 1 x 3/4.
    labels = np.eye(2, dtype=bool)[[0, 0, 0, 1]]
    found = score("t", np.array([0, 0, 0, 0]), labels)
    assert (found.right, found.chance) == (3, 0.75)
    # Answers a, a, b, b: 1/2 x 3/4 + 1/2 x 1/4 = 1/2.
    assert score("t", np.array([0, 0, 1, 1]), labels).chance == 0.5
    # Never under 1 / K, and nothing without clips.
    assert score("t", np.array([1]), np.eye(4, dtype=bool)[[0]]).chance == 0.25
    assert score("t", np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=bool)).p_value == 1.0


def drawn(
    rng: np.random.Generator, *, classes: int, clips: int, accuracy: float, twins: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels, and answers that are right so often; else any other class, or always the same one (its twin)."""
    label = rng.integers(0, classes, clips)
    other = np.minimum(label ^ 1, classes - 1) if twins else (label + rng.integers(1, classes, clips)) % classes
    return label, np.where(rng.random(clips) < accuracy, label, other)


def test_a_weak_teacher_is_seldom_called_untrained_and_an_untrained_one_mostly() -> None:
    rng = np.random.default_rng(0)

    def errors(clips: int, accuracy: float) -> float:
        found = []
        for _ in range(200):
            label, answers = drawn(rng, classes=12, clips=clips, accuracy=accuracy)
            found.append(accuracy_finding(score("t", answers, np.eye(12, dtype=bool)[label])).level == "error")
        return float(np.mean(found))

    assert max(errors(clips, 0.35) for clips in (12, 32, 64, 128)) <= 0.02
    assert errors(64, 1 / 12) > 0.9


def test_a_teacher_with_the_right_names_is_hardly_ever_called_renamed() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        classes, clips = int(rng.choice([2, 3, 5, 12, 30, 101, 400])), int(rng.integers(64, 257))
        twins = bool(rng.random() < 0.5)
        least = 0.5 if twins or classes == 2 else 0.3
        label, answers = drawn(rng, classes=classes, clips=clips, accuracy=rng.uniform(least, 0.95), twins=twins)
        wrong += bool(renamed(label, answers))
    assert wrong <= 3


def test_classes_that_swallow_others_are_not_called_renamed() -> None:
    # All of 0 is taken for 1, and 1 for itself; one answer to everything.
    assert renamed(np.repeat([0, 1], 20), np.repeat([1, 1], 20)) == []
    assert renamed(np.repeat([0, 1, 2], [30, 1, 20]), np.ones(51, dtype=np.int64)) == []
    # Two are taken for two of which there is no clip, whatever their numbers: no circle may come of both.
    for one, taken, other, for_this in permutations(range(4)):
        assert renamed(np.repeat([one, other], 20), np.repeat([taken, for_this], 20)) == []


@pytest.mark.parametrize(("classes", "clips"), [(2, 64), (5, 64), (12, 128), (20, 256)])
def test_two_swapped_names_of_a_good_teacher_are_found(classes: int, clips: int) -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        label, answers = drawn(rng, classes=classes, clips=clips, accuracy=0.9)
        names: Mapping[int, int] = {0: 1, 1: 0}
        answers = np.array([names.get(int(one), int(one)) for one in answers])
        found += {(one.label, one.said) for one in renamed(label, answers)} == {(0, 1), (1, 0)}
    assert found >= 90


@pytest.mark.gpu
def test_memory_on_a_gpu_is_that_of_a_step(recipe: Recipe) -> None:
    report = preflight(assemble(recipe), batches=2)
    assert report.forecast is not None
    assert report.forecast.memory_there is not None
    assert 0 < report.forecast.memory < report.forecast.memory_there


FROZEN = ("stem", "stages.0")


@dataclass(frozen=True, kw_only=True)
class OfAFrozenTap(Loss):
    """Of a stage that `FROZEN` freezes, and of nothing else."""

    def pairs(self) -> tuple[Pair, ...]:
        return (Pair("stage1", "stage1", grid="clip", connector=None),)

    def __call__(self, student: Outputs, teacher: Outputs | None, label: Tensor) -> Tensor:
        return student.features["stage1"].values.square().mean()


def freezing(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, optim=replace(recipe.optim, freeze=FROZEN, **changes))


def watched(monkeypatch: pytest.MonkeyPatch, made: Assembly) -> list[set[str]]:
    """Which parameters of the model have a gradient after each backward pass, filled as a preflight runs."""
    found: list[set[str]] = []
    look = terms.seen

    def seen(*args: Any, **kwargs: Any) -> Any:
        found.append({name for name, one in made.student.model.named_parameters() if one.grad is not None})
        return look(*args, **kwargs)

    monkeypatch.setattr(terms, "seen", seen)
    return found


def is_frozen(name: str) -> bool:
    return any(name.startswith(f"{one}.") for one in FROZEN)


def test_frozen_parameters_have_no_gradient_and_frozen_norms_do_not_move(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = assemble(freezing(recipe), teachers=good(recipe))
    model = made.student.model
    names = [name for name, _ in model.named_parameters()]
    gradients = watched(monkeypatch, made)
    means: list[Tensor] = []
    norms = [one for name, one in model.named_modules() if is_frozen(name) and isinstance(one, torch.nn.BatchNorm2d)]
    assert norms
    now = norms[0].running_mean
    assert now is not None
    hook = model.register_forward_hook(lambda *_: means.append(now.clone()))
    before = now.clone()
    preflight(made, batches=2)
    hook.remove()
    assert gradients == [{name for name in names if not is_frozen(name)}] * 2
    assert len(means) >= 2
    assert all(torch.equal(mean, before) for mean in means)
    # It is left as it was.
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "train" not in vars(norms[0])
    assert model.train() is model
    assert norms[0].training


def test_what_a_run_has_frozen_already_stays_frozen_after_a_preflight(recipe: Recipe) -> None:
    recipe = freezing(recipe, freeze_until=0.25)  # two of eight steps
    made = assemble(recipe, teachers=good(recipe))
    model = made.student.model
    recipe.optim.set_frozen(model, True)
    preflight(made, batches=3)
    model.train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != is_frozen(name)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.training != is_frozen(name)


def test_each_batch_is_frozen_as_its_step_is(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = freezing(recipe, freeze_until=0.25)
    made = assemble(recipe, teachers=good(recipe))
    gradients = watched(monkeypatch, made)
    preflight(made, batches=3)
    assert [any(is_frozen(name) for name in one) for one in gradients] == [False, False, True]
    # Where the batches end before the frozen part does, the last one shows what comes later.
    gradients.clear()
    report = preflight(made, batches=1)
    assert [any(is_frozen(name) for name in one) for one in gradients] == [False, True]
    assert report.batches == 1


def test_a_term_that_learns_nothing_until_its_layers_thaw_is_a_warning_and_if_never_an_error(recipe: Recipe) -> None:
    recipe = with_terms(recipe, early=Term(loss=OfAFrozenTap()))
    for until, level in ((0.5, "warning"), (1.0, "error")):
        later = freezing(recipe, freeze_until=until)
        report = preflight(assemble(later, teachers=good(later)), batches=1)
        (finding,) = [one for one in report.findings if one.what == "term early"]
        assert finding.level == level, finding.said
        assert ("only after optim.freeze_until" in finding.said) == (until < 1)


def test_a_wrong_name_to_freeze_is_refused_in_a_preflight_too(recipe: Recipe) -> None:
    wrong = replace(recipe, optim=replace(recipe.optim, freeze=("stemm",)))
    with pytest.raises(ValueError, match=r"freeze names 'stemm'.*did you mean 'stem'"):
        preflight(assemble(wrong, teachers=good(wrong)), batches=1)


def test_a_forecast_counts_what_learns_and_the_copies_of_the_weights(recipe: Recipe) -> None:
    def disk(recipe: Recipe) -> tuple[int, Assembly]:
        made = assemble(recipe, teachers=good(recipe))
        need = preflight(made, batches=1).forecast
        assert need is not None
        return need.disk, made

    plain, made = disk(recipe)
    model = sum(one.nbytes for one in made.student.model.state_dict().values())
    frozen = sum(4 * one.numel() for name, one in made.student.model.named_parameters() if is_frozen(name))
    assert disk(freezing(recipe))[0] == plain - 2 * 2 * frozen  # no moments, in two checkpoints
    assert disk(freezing(recipe, freeze_until=0.5))[0] == plain
    assert disk(replace(recipe, optim=replace(recipe.optim, ema=0.9)))[0] == plain + 2 * model


def test_a_batch_is_checked_in_the_parts_in_which_it_is_learned(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, optim=replace(recipe.optim, accumulate=4))
    made = assemble(recipe, teachers=good(recipe))
    sizes: list[int] = []
    hook = made.student.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0].frames)))
    report = preflight(made, batches=1)
    hook.remove()
    assert sizes == [6, 6, 6, 6]
    assert report.teachers[0].labelled == 24


def test_networks_are_laid_out_as_in_the_run(recipe: Recipe) -> None:
    recipe = replace(recipe, machine=replace(recipe.machine, channels_last=True))
    made = assemble(recipe, teachers=good(recipe))
    preflight(made, batches=1)
    convolutions = [one for network in made.networks for one in network.modules() if isinstance(one, torch.nn.Conv2d)]
    assert convolutions
    assert all(one.weight.is_contiguous(memory_format=torch.channels_last) for one in convolutions)
