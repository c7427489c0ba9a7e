import copy
import inspect
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import random_clip

from videokd import losses as catalogue
from videokd.clips.shuffling import with_shuffled
from videokd.contracts import Batch, Clip, InputSpec, Outputs
from videokd.distill import Objective, Student, Term, check_clips, check_terms, wanted_taps
from videokd.losses import (
    CRD,
    DIST,
    DKD,
    MLP,
    NKD,
    SRRL,
    BankAffinity,
    BinarySoftTargets,
    ClipFeatures,
    CrossEntropy,
    CurriculumSoftTargets,
    Facts,
    FrameFeatures,
    Loss,
    MapFeatures,
    RKDAngle,
    ShuffleRelation,
    SoftTargets,
    SpatialAttention,
    TemporalAffinity,
    TemporalDifference,
)
from videokd.models import CompactShift, Conv3d, SimKD, TimmVideo
from videokd.teachers import Mixture, Teacher, all_targets, tap_grids, tap_shapes
from videokd.weighting import Uncertainty, WhereTeacherIsRight

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


@torch.no_grad()
def test_the_pace_of_a_tap_is_when_its_steps_are() -> None:
    model = Conv3d(width=4).build(CLASSES).eval()
    clip = random_clip(frames=16, fps=8)
    for tap, (_, pace) in tap_grids(model, set(model.taps)).items():
        times = model(clip, (tap,)).features[tap].times
        assert pace is not None
        torch.testing.assert_close(times[0], clip.times[0, 0] + torch.tensor(pace.centres) / 8)


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
    for wrong, message in (
        ({"weight": -1.0}, "weight must not be negative, got -1"),
        ({"warmup": 2.0}, r"warmup is in \[0, 1\], got 2"),
        ({"decay": -0.5}, r"decay is in \[0, 1\], got -0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Term(loss=CrossEntropy(), **wrong)
    with pytest.raises(ValueError, match=r"write CrossEntropy\(\), with its parentheses"):
        Term(loss=CrossEntropy)  # type: ignore[arg-type]


def test_a_loss_that_gives_more_than_one_number_is_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wide(Loss):
        def __call__(self, student: Outputs, teacher: Outputs | None, label: torch.Tensor) -> torch.Tensor:
            assert student.logits is not None
            return student.logits.mean(dim=1)

    with pytest.raises(ValueError, match=r"term 'wide' \(Wide\) is to give one number, and gave \(4,\)"):
        Objective({"wide": Term(loss=Wide())})(Outputs(torch.randn(4, 3)), {"teacher": Outputs(None)}, torch.zeros(4))


def test_a_constant_teacher_gives_no_soft_gradient_to_an_agreeing_student() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    objective = Objective({"soft": Term(loss=SoftTargets())})
    objective(Outputs(logits), {"teacher": Outputs(logits.detach())}, torch.tensor([0, 1]))["total"].backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


EVERY_LOSS = [
    cls
    for name in catalogue.__all__
    if isinstance(cls := getattr(catalogue, name), type) and issubclass(cls, Loss) and not inspect.isabstract(cls)
]


def run_of(term: Term, *, model: CompactShift | SimKD | None = None) -> tuple[Student, dict[str, Teacher], Batch]:
    """A student of 8 frames, a teacher of 16 whose maps are finer, four clips, all for one term."""
    torch.manual_seed(0)
    teachers = {"teacher": Teacher(Conv3d(width=4).build(CLASSES), wanted_taps({"term": term}, "teacher"))}
    config = model or CompactShift(width=4, input=InputSpec(frames=8, size=32))
    student = Student(config.build(CLASSES), {"term": term}, teachers)
    wide = random_clip(batch=4, frames=16)
    clips = {"student": Clip(wide.frames[:, ::2], wide.times[:, ::2]), "teacher": wide}
    batch = Batch(clips, torch.tensor([1, 0, 2, 1]), ("x", "y", "z", "w"), torch.arange(4))
    return student, teachers, with_shuffled(batch, student.objective.pieces) if student.objective.pieces else batch


def step_of(student: Student, teachers: dict[str, Teacher], batch: Batch) -> dict[str, torch.Tensor]:
    targets = all_targets(teachers, batch)
    outputs = student(batch.clips["student"], batch.shuffled.get("student"))
    found: dict[str, torch.Tensor] = student.objective(outputs, targets, batch.label, progress=0.5)
    return found


def made(cls: type[Loss]) -> Loss:
    """On maps that have places in space, and a bank that four clips fill."""
    fields = {"student_tap": "stage2", "teacher_tap": "stage3"} if any(p.grid == "map" for p in cls().pairs()) else {}
    if "queue" in cls.__dataclass_fields__:
        fields["queue"] = 6  # type: ignore[assignment]
    return cls(**fields).fitted(Facts((1, 2, 1)))


@pytest.mark.parametrize("cls", EVERY_LOSS, ids=lambda cls: cls.__name__)
def test_every_loss_trains_the_student_and_all_that_it_connects(cls: type[Loss]) -> None:
    student, teachers, batch = run_of(Term(loss=made(cls)))
    for _ in range(2):  # the second time there is something in a queue
        value = step_of(student, teachers, batch)["total"]
        assert value.isfinite()
        student.zero_grad()
        value.backward()
    learned = [*student.connectors.parameters(), *student.objective.parameters()]
    assert all(one.grad is not None and one.grad.isfinite().all() for one in learned)
    assert all(one.grad.abs().sum() > 0 for one in student.connectors.parameters() if one.grad is not None)
    of_model = [one.grad for one in student.model.parameters() if one.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in of_model) > 0
    # What is shipped is the plain student.
    plain = CompactShift(width=4, input=InputSpec(frames=8, size=32)).build(CLASSES)
    assert {k: v.shape for k, v in student.model.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }


@pytest.mark.parametrize("cls", EVERY_LOSS, ids=lambda cls: cls.__name__)
def test_losses_stay_in_fp32_under_autocast(cls: type[Loss]) -> None:
    student, teachers, batch = run_of(Term(loss=made(cls)))
    student.train(False)
    targets = all_targets(teachers, batch)
    torch.manual_seed(1)
    outputs = student(batch.clips["student"], batch.shuffled.get("student"))
    exact = student.objective(outputs, targets, batch.label)["total"]
    student, *_ = run_of(Term(loss=made(cls)))
    with torch.autocast("cpu", torch.bfloat16):
        found = student.objective(outputs, targets, batch.label)["total"]
    assert torch.equal(found, exact)


def test_a_queue_is_filled_by_what_the_teacher_said_and_then_counts() -> None:
    student, teachers, batch = run_of(Term(loss=CRD(queue=6)))
    first, second = (step_of(student, teachers, batch)["term"].item() for _ in range(2))
    assert second > first  # more to be told apart from
    said = all_targets(teachers, batch)["teacher"].features["clip"].values[:, 0, 0, 0]
    bank = student.objective.banks["bank of term"]
    assert torch.equal(bank.state_dict()["filled"], torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(bank.state_dict()["vectors"][2:4], said[2:4])


def test_a_bank_of_classes_is_the_teachers_last_layer() -> None:
    student, teachers, _ = run_of(Term(loss=BankAffinity(of="classes")))
    head = teachers["teacher"].model.head
    assert torch.equal(student.objective.banks["bank of term"].state_dict()["vectors"], head.weight)


def test_srrl_goes_through_the_teachers_last_layer_which_does_not_learn() -> None:
    student, teachers, _ = run_of(Term(loss=SRRL()))
    (connector,) = student.connectors.values()
    assert torch.equal(connector.weight, teachers["teacher"].model.head.weight)
    assert {name for name, _ in connector.named_parameters()} == {
        "regress.conv.weight",
        "regress.norm.weight",
        "regress.norm.bias",
    }


def test_a_curriculum_temperature_falls_against_the_student() -> None:
    student, teachers, batch = run_of(Term(loss=CurriculumSoftTargets(ramp=0.1)))
    (theta,) = student.objective.parameters()
    value = step_of(student, teachers, batch)["total"]
    value.backward()
    assert theta.grad is not None
    with torch.no_grad():
        theta -= 1.0 * theta.grad / theta.grad.abs()
    assert step_of(student, teachers, batch)["total"].item() > value.item()


def test_uncertainty_is_learned_with_the_student() -> None:
    terms = {"hard": Term(loss=CrossEntropy()), "soft": Term(loss=SoftTargets())}
    teachers = {"teacher": Teacher(Conv3d(width=4).build(CLASSES), {})}
    student = Student(CompactShift(width=4).build(CLASSES), terms, teachers, Uncertainty())
    assert "objective.weigher.log_variance" in dict(student.named_parameters())


def test_the_total_holds_what_a_weighting_adds() -> None:
    terms = {"hard": Term(loss=CrossEntropy(), weight=2.0), "soft": Term(loss=SoftTargets())}
    student, teacher = Outputs(torch.randn(4, 3)), Outputs(torch.randn(4, 3))
    objective = Objective(terms, weighting=Uncertainty(initial=-0.5))
    found = objective(student, {"teacher": teacher}, torch.tensor([0, 1, 2, 0]))
    factor = 0.5 * torch.tensor(0.5).exp()
    expected = 2 * (factor * found["hard"] - 0.25) + (factor * found["soft"] - 0.25)
    torch.testing.assert_close(found["total"], expected)


def test_a_remembering_teacher_keeps_filmed_and_shuffled_clips_apart() -> None:
    student, teachers, batch = run_of(Term(loss=ShuffleRelation()))
    plain = all_targets(teachers, batch)["teacher"]
    remembering = {"teacher": Teacher(teachers["teacher"].model, teachers["teacher"].taps, remember=True)}
    for _ in range(2):
        found = all_targets(remembering, batch)["teacher"]
        for tap in ("clip", "shuffled clip"):
            assert torch.equal(found.features[tap].values, plain.features[tap].values)
    assert not torch.equal(plain.features["clip"].values, plain.features["shuffled clip"].values)
    assert student.objective.pieces == 4


def test_a_student_far_narrower_has_a_deeper_connector() -> None:
    student, _, _ = run_of(Term(loss=ClipFeatures(connector=MLP())))
    (connector,) = student.connectors.values()
    assert [type(layer).__name__ for layer in connector] == ["Linear", "LayerNorm", "GELU", "Linear"]


def test_simkd_takes_the_last_layer_of_its_teacher() -> None:
    spec = InputSpec(frames=8, size=32)
    term = Term(loss=FrameFeatures(distance="mse", targets="raw", connector=None))
    model = SimKD(student=CompactShift(width=4, input=spec), width=16)
    student, teachers, batch = run_of(term, model=model)
    assert torch.equal(student.model.head.weight, teachers["teacher"].model.head.weight)
    step_of(student, teachers, batch)["total"].backward()
    assert student.model.head.weight.grad is None
    with pytest.raises(ValueError, match=r"has 16 and 3: set width to 16"):
        run_of(term, model=SimKD(student=model.student, width=8))
    with pytest.raises(ValueError, match=r"teacher 'techer', which the recipe does not have; did you mean 'teacher'\?"):
        run_of(term, model=SimKD(student=model.student, width=16, teacher="techer"))
    other = {"teacher": Teacher(Conv3d(width=4).build(CLASSES[::-1]), {"frames": "frames"})}
    with pytest.raises(ValueError, match="the order differs"):
        Student(model.build(CLASSES), {"term": term}, other)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (SpatialAttention(), "at least 2 places in space, and its taps have 1 in common"),
        (TemporalAffinity(teacher_tap="clip"), "at least 2 steps of time, and its taps have 1 in common"),
    ],
)
def test_a_term_that_would_always_be_zero_is_refused(loss: Loss, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_of(Term(loss=loss))


def test_terms_shuffle_clips_into_one_number_of_pieces() -> None:
    terms = {str(n): Term(loss=ShuffleRelation(number_of_pieces=n)) for n in (2, 4)}
    with pytest.raises(ValueError, match="terms shuffle 2 and 4 pieces"):
        check_terms(terms, ["teacher"])
    student, _, batch = run_of(Term(loss=ShuffleRelation()))
    with pytest.raises(ValueError, match="compares shuffled clips, and none were given"):
        student(batch.clips["student"])


GOOD = {"batch_size": 8, "unlabelled": 0, "mixes": False, "several_labels": False}


@pytest.mark.parametrize(
    ("term", "clips", "message"),
    [
        (
            Term(loss=RKDAngle()),
            {"batch_size": 2},
            r"'it' \(RKDAngle\) compares clips of a batch.* at least 3: set",
        ),
        (Term(loss=DIST()), {"batch_size": 1}, "at least 2"),
        (Term(loss=DKD()), {"unlabelled": 4}, "needs labels, and 4 clips of every batch have none: set its target to"),
        (Term(loss=NKD()), {"mixes": True}, "needs clips of one class, and data.mix mixes them: set its target to"),
        (Term(loss=CrossEntropy()), {"several_labels": True}, "these have several labels: take BinaryCrossEntropy"),
        (Term(loss=SoftTargets()), {"several_labels": True}, "these have several labels: take BinarySoftTargets"),
        (
            Term(loss=BinarySoftTargets(), clips=WhereTeacherIsRight()),
            {"several_labels": True},
            "weighs clips of one class",
        ),
        (Term(loss=CRD(queue=4)), {}, r"keeps 4 past clips, which is less than a batch \(8\): set its queue to more"),
        (Term(loss=CrossEntropy()), {"unlabelled": 8}, "needs labels, and no clip of a batch has one"),
    ],
)
def test_clips_that_a_term_can_not_learn_from_are_refused(term: Term, clips: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_clips({"it": term}, **GOOD | clips)  # type: ignore[arg-type]


def test_what_needs_no_label_takes_any_clips() -> None:
    terms = {
        "hard": Term(loss=CrossEntropy()),
        "dkd": Term(loss=DKD(target="teacher")),
        "soft": Term(loss=SoftTargets()),
        "crd": Term(loss=CRD(queue=8)),
        "map": Term(loss=MapFeatures()),
    }
    check_clips(terms, **GOOD | {"unlabelled": 6, "mixes": True})  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", EVERY_LOSS, ids=lambda cls: cls.__name__)
def test_a_batch_of_one_clip_is_no_fault(cls: type[Loss]) -> None:
    student, teachers, batch = run_of(Term(loss=made(cls)))
    clips = {party: Clip(view.frames[:1], view.times[:1]) for party, view in batch.clips.items()}
    one = Batch(clips, batch.label[:1], batch.id[:1], batch.view[:1])
    pieces = student.objective.pieces
    value = step_of(student, teachers, with_shuffled(one, pieces) if pieces else one)["total"]
    value.backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["soft.crd", "values", "bank of term"])
def test_a_term_may_be_called_what_modules_call_things(name: str) -> None:
    _, teachers, batch = run_of(Term(loss=CRD(queue=6)))
    terms = {name: Term(loss=CRD(queue=6)), "other.one": Term(loss=CurriculumSoftTargets())}
    student = Student(CompactShift(width=4, input=InputSpec(frames=8, size=32)).build(CLASSES), terms, teachers)
    assert step_of(student, teachers, batch)[name].isfinite()


def test_terms_that_want_different_things_of_the_same_taps_have_connectors_of_their_own() -> None:
    _, teachers, _ = parties()

    def connectors(*losses: Loss) -> int:
        terms = {str(number): Term(loss=loss) for number, loss in enumerate(losses)}
        return len(Student(CompactShift(width=4).build(CLASSES), terms, teachers).connectors)

    assert connectors(FrameFeatures(), TemporalDifference()) == 1
    assert connectors(FrameFeatures(targets="raw"), TemporalDifference()) == 2
    assert connectors(ClipFeatures(), ClipFeatures(distance="mse")) == 1
    assert connectors(ClipFeatures(), CRD()) == 2


def test_a_number_that_is_learned_has_a_gradient_where_its_term_says_nothing() -> None:
    # Under distributed data parallel every parameter must take part in every step.
    student, teachers, batch = run_of(Term(loss=CurriculumSoftTargets()))
    targets = {"teacher": replace(all_targets(teachers, batch)["teacher"], known=torch.zeros(4, dtype=torch.bool))}
    student.objective(student(batch.clips["student"]), targets, batch.label)["total"].backward()
    (theta,) = student.objective.parameters()
    assert theta.grad is not None
    assert theta.grad == 0


def test_statistics_do_not_notice_the_shuffled_pass_and_masks_are_the_same() -> None:
    class Dropping(torch.nn.Dropout):
        masks: ClassVar[list[torch.Tensor]] = []

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            found = super().forward(torch.ones_like(values))
            self.masks.append(found)
            return values * found

    student, _, batch = run_of(Term(loss=ShuffleRelation()))
    plain = copy.deepcopy(student.model)
    torch.manual_seed(0)
    student.model.head = torch.nn.Sequential(Dropping(0.5), student.model.head)
    student(batch.clips["student"], batch.shuffled["student"])
    after = torch.rand(1)
    first, second = Dropping.masks
    assert torch.equal(first, second)
    plain(batch.clips["student"])
    for name, one in plain.named_buffers():
        assert torch.equal(one, dict(student.model.named_buffers())[name]), name
    # Later draws are as after one pass.
    torch.manual_seed(0)
    student.model(batch.clips["student"])
    assert torch.equal(torch.rand(1), after)
    assert all(one.momentum == 0.1 for one in student.model.modules() if isinstance(one, torch.nn.BatchNorm2d))


def test_order_is_not_compared_with_a_party_that_does_not_look_at_it() -> None:
    term = Term(loss=ShuffleRelation())
    teachers = {"teacher": Teacher(Conv3d(width=4).build(CLASSES), {"clip": "clip"})}
    blind = TimmVideo(backbone="mobilenetv3_small_050", temporal="average", input=InputSpec(frames=8, size=32))
    with pytest.raises(ValueError, match="student's 'clip' is the same in any order"):
        Student(blind.build(CLASSES), {"order": term}, teachers)


def test_a_mixture_does_not_look_at_classes_one_by_one() -> None:
    mixture = Mixture(of=("a", "b"))
    with pytest.raises(ValueError, match="'both' is a mixture of probabilities that sum to 1"):
        check_terms({"soft": Term(loss=BinarySoftTargets(), teacher="both")}, ["a", "b", "both"], {"both": mixture})


def test_a_last_layer_takes_the_clip_tap_alone() -> None:
    with pytest.raises(ValueError, match="takes its tap 'clip', not 'stage2': set teacher_tap to 'clip'"):
        run_of(Term(loss=SRRL(teacher_tap="stage2")))


def test_views_of_one_clip_are_told_by_their_names() -> None:
    def contrast(ids: list[str] | None) -> float:
        student, teachers, batch = run_of(Term(loss=CRD(queue=8)))
        unknown = torch.full((4,), -1)
        outputs, targets = student(batch.clips["student"]), all_targets(teachers, batch)
        for _ in range(2):
            found = student.objective(outputs, targets, unknown, ids=ids)
        held = student.objective.banks["bank of term"].state_dict()["clip"]
        assert len(set(held.tolist())) == len(set(ids or [""]))
        return found["term"].item()

    apart, pairs, nameless = contrast(["x", "y", "z", "w"]), contrast(["x", "x", "z", "z"]), contrast(None)
    # In the queue lie the same four clips again: of their own views each has one, or two and one in the batch, or none.
    assert pairs < apart < nameless
