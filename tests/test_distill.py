import pytest
import torch
from conftest import random_clip

from videokd.contracts import Batch, Clip, InputSpec, Outputs
from videokd.distill import Objective, Student, Teacher, Term, all_targets, check_terms, tap_shapes, wanted_taps
from videokd.losses import (
    ClipFeatures,
    CrossEntropy,
    FrameFeatures,
    SoftTargets,
    TemporalAffinity,
    TemporalDifference,
)
from videokd.models import CompactShift, Conv3d

CLASSES = ("a", "b", "c")
TERMS = {
    "hard": Term(loss=CrossEntropy(), weight=0.1),
    "soft": Term(loss=SoftTargets(temperature=2), weight=0.9),
    "frames": Term(loss=FrameFeatures(), weight=2.0, warmup=0.5),
    "difference": Term(loss=TemporalDifference()),
    "affinity": Term(loss=TemporalAffinity()),
    "clip": Term(loss=ClipFeatures()),
}


def parties() -> tuple[Student, dict[str, Teacher], Batch]:
    torch.manual_seed(0)
    teacher = Teacher(Conv3d(width=4).build(CLASSES), wanted_taps(TERMS, "teacher"))
    student = Student(
        CompactShift(width=4, input=InputSpec(frames=8, size=32)).build(CLASSES), TERMS, {"teacher": teacher}
    )
    wide = random_clip(frames=16)
    clips = {"student": Clip(wide.frames[:, ::2], wide.times[:, ::2]), "teacher": wide}
    return student, {"teacher": teacher}, Batch(clips, torch.tensor([1, -1]), ("x", "y"), torch.tensor([0, 3]))


def test_the_five_lines_train_the_student_and_leave_the_teacher_alone() -> None:
    student, teachers, batch = parties()
    before = {name: tensor.clone() for name, tensor in teachers["teacher"].model.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    totals = []
    for _ in range(8):
        targets = all_targets(teachers, batch)
        outputs = student(batch.clips["student"])
        losses = Objective(TERMS)(outputs, targets, batch.label)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(losses["total"].item())
    assert totals[-1] < totals[0]
    after = teachers["teacher"].model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in teachers["teacher"].model.parameters())
    assert not teachers["teacher"].model.training
    assert "Teacher" not in {type(module).__name__ for module in student.modules()}


def test_the_total_is_the_weighted_sum_and_the_weight_rises() -> None:
    student, teachers, batch = parties()
    targets, outputs = all_targets(teachers, batch), student(batch.clips["student"])
    for progress, frames_weight in ((0.125, 0.5), (0.25, 1.0), (0.5, 2.0), (1.0, 2.0)):
        losses = Objective(TERMS)(outputs, targets, batch.label, progress=progress)
        weights = {**{name: term.weight for name, term in TERMS.items()}, "frames": frames_weight}
        expected = sum(weights[name] * losses[name] for name in TERMS)
        torch.testing.assert_close(losses["total"], expected)


def test_terms_on_the_same_taps_share_a_projection_and_affinity_has_none() -> None:
    student, _, _ = parties()
    # One for "frames", shared by two terms; one for "clip".
    assert len(student.connectors) == 2
    # Student 12 wide (3 x 4), teacher 16 (4 x 4).
    assert {(p.in_features, p.out_features) for p in student.connectors.values()} == {(12, 16)}


def test_the_initial_model_does_not_depend_on_the_objective() -> None:
    def initial(terms: dict[str, Term]) -> dict[str, torch.Tensor]:
        teacher = Teacher(Conv3d(width=4).build(CLASSES), wanted_taps(terms, "teacher"))
        torch.manual_seed(5)
        model = CompactShift(width=4).build(CLASSES)
        return dict(Student(model, terms, {"teacher": teacher}).model.state_dict())

    alone, distilled = initial({"hard": TERMS["hard"]}), initial(TERMS)
    assert all(torch.equal(alone[name], distilled[name]) for name in alone)


def test_a_remembering_teacher_says_the_same_and_computes_each_view_once() -> None:
    _, teachers, batch = parties()
    plain = teachers["teacher"]
    remembering = Teacher(plain.model, plain.taps, remember=True)
    calls: list[int] = []
    plain.model.register_forward_hook(lambda module, inputs, outputs: calls.append(len(inputs[0].frames)))
    first = remembering(batch.clips["teacher"], batch.id, batch.view)
    again = remembering(batch.clips["teacher"], batch.id, batch.view)
    turned = Clip(batch.clips["teacher"].frames.flip(0), batch.clips["teacher"].times.flip(0))
    swapped = remembering(turned, batch.id[::-1], batch.view.flip(0))
    assert calls == [2]
    fresh = plain(batch.clips["teacher"], batch.id, batch.view)
    for outputs in (first, again):
        assert torch.equal(outputs.logits, fresh.logits)  # type: ignore[arg-type]
        for tap, feature_map in fresh.features.items():
            assert torch.equal(outputs.features[tap].values, feature_map.values)
            assert torch.equal(outputs.features[tap].times, feature_map.times)
    assert torch.equal(swapped.logits, fresh.logits.flip(0))  # type: ignore[arg-type, union-attr]
    # Another view of a clip is another thing to remember.
    remembering(batch.clips["teacher"], batch.id, batch.view + 1)
    assert calls == [2, 2, 2]


def test_wanted_taps_are_kept_as_finely_as_the_finest_term_needs() -> None:
    assert wanted_taps(TERMS, "teacher") == {"frames": "frames", "clip": "clip"}
    assert wanted_taps({"a": Term(loss=ClipFeatures(teacher_tap="frames")), **TERMS}, "teacher")["frames"] == "frames"
    assert wanted_taps(TERMS, "other") == {}


def test_tap_shapes_leave_the_model_as_it_was() -> None:
    model = CompactShift(width=4).build(CLASSES).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert tap_shapes(model, {"stage1", "clip"}) == {"stage1": (8, 8, 8, 8), "clip": (1, 1, 1, 12)}
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("terms", "teachers", "message"),
    [
        ({}, ["teacher"], "objective has no term"),
        ({"soft": Term(loss=SoftTargets())}, ["taecher"], r"'teacher', which the recipe does not have; did you mean"),
        ({"total": Term(loss=CrossEntropy())}, [], "can't be called 'total'"),
    ],
)
def test_an_impossible_objective_is_refused(terms: dict[str, Term], teachers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_terms(terms, teachers)


def test_a_tap_that_a_party_does_not_have_is_refused_before_training() -> None:
    model = Conv3d(width=4).build(CLASSES)
    with pytest.raises(ValueError, match=r"Conv3dNetwork has no tap 'stage9'; did you mean 'stage"):
        Teacher(model, {"stage9": "frames"})
    terms = {"frames": Term(loss=FrameFeatures(student_tap="fraems"))}
    with pytest.raises(ValueError, match=r"no tap 'fraems'; did you mean 'frames'\?"):
        Student(CompactShift(width=4).build(CLASSES), terms, {"teacher": Teacher(model, {"frames": "frames"})})


def test_an_impossible_weight_is_refused() -> None:
    for wrong in ({"weight": -1.0}, {"warmup": 2.0}):
        with pytest.raises(ValueError, match="weight must not be negative"):
            Term(loss=CrossEntropy(), **wrong)


def test_a_constant_teacher_gives_no_soft_gradient_to_an_agreeing_student() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    objective = Objective({"soft": Term(loss=SoftTargets())})
    objective(Outputs(logits), {"teacher": Outputs(logits.detach())}, torch.tensor([0, 1]))["total"].backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
