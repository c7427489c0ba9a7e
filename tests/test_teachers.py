"""Teachers stay as they are: in eval mode at each call, whatever is done to the model outside."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CLASSES, EVERY, built
from torch import Tensor, nn

from videokd.acceleration import to_channels_last
from videokd.contracts import Outputs
from videokd.distill import Student, Term
from videokd.losses import CrossEntropy, SoftTargets
from videokd.models import CompactShift, Conv3d, Model
from videokd.teachers import Teacher, tap_grids

IDS, VIEWS = ("x", "y"), torch.tensor([0, 0])
KINDS = (
    *(
        "Conv3d",
        "R(2+1)D-18",
        "S3D",
        "MoViNet",
        "MobileNetV3 attention",
        "ViT-Ti frames",
        "torchvision ResNet-18 frames",
    ),
    *("VideoMAE", "CLIP frames", "X-CLIP", "own R3D-18", "motion", "mel", "AST", "class names", "SimKD"),
)


def view_of(model: Model[Any]) -> Any:
    """Two different clips, or labels."""
    view = model.blank(2)
    generator = torch.Generator().manual_seed(0)
    if hasattr(view, "frames"):
        view.frames.random_(0, 256, generator=generator)
    elif hasattr(view, "samples"):
        view.samples.normal_(generator=generator)
    return view


def assert_same(outputs: Outputs, expected: Outputs) -> None:
    if expected.logits is not None:
        torch.testing.assert_close(outputs.logits, expected.logits)
    for tap, feature_map in expected.features.items():
        torch.testing.assert_close(outputs.features[tap].values, feature_map.values)


def with_dropout(model: nn.Module) -> nn.Module:
    """With every dropout at a half, so that train mode shows."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.5
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_statistics_of_a_teacher_do_not_change_after_train(kind: str, originals: Path) -> None:
    assert kind in EVERY
    model = built(kind, originals)
    with_dropout(model)
    taps = {"clip": "clip"} if "clip" in model.taps else {}
    teacher, view = Teacher(model, taps), view_of(model)  # type: ignore[arg-type]
    state = copy.deepcopy(model.state_dict())
    expected = teacher(view, IDS, VIEWS)
    model.train()
    assert_same(teacher(view, IDS, VIEWS), expected)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def conv3d() -> Model[Any]:
    torch.manual_seed(0)
    return Conv3d(width=4).build(CLASSES)


def test_a_part_of_a_teacher_in_train_mode_alone_is_put_back() -> None:
    teacher = Teacher(conv3d(), {})
    view = view_of(teacher.model)
    expected = teacher(view, IDS, VIEWS)
    norm = next(one for one in teacher.model.modules() if isinstance(one, nn.BatchNorm3d))
    mean = norm.running_mean.clone()  # type: ignore[union-attr]
    norm.train()
    assert not teacher.model.training
    assert_same(teacher(view, IDS, VIEWS), expected)
    assert torch.equal(norm.running_mean, mean)  # type: ignore[arg-type]


def test_a_compiled_teacher_with_channels_last_is_in_eval_mode_too() -> None:
    model = conv3d()
    plain = Teacher(copy.deepcopy(model), {})
    to_channels_last(model)
    model.compile(backend="eager")
    teacher, view = Teacher(model, {}), view_of(model)
    expected = plain(view, IDS, VIEWS)
    for _ in range(2):
        model.train()
        torch.testing.assert_close(teacher(view, IDS, VIEWS).logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_a_teacher_under_two_names_and_its_shuffled_control_stay_in_eval_mode() -> None:
    teacher = Teacher(conv3d(), {})
    control, view = teacher.shuffled(), view_of(teacher.model)
    expected, of_others = teacher(view, IDS, VIEWS), control(view, IDS, VIEWS)
    teacher.model.train()
    assert_same(control(view, IDS, VIEWS), of_others)
    teacher.model.train()
    assert_same(teacher(view, IDS, VIEWS), expected)


def test_outputs_of_a_teacher_have_no_gradient_even_if_its_parameters_do() -> None:
    teacher = Teacher(conv3d(), {"clip": "clip"})
    teacher.model.requires_grad_(True)
    outputs = teacher(view_of(teacher.model), IDS, VIEWS)
    assert outputs.logits is not None
    assert not outputs.logits.requires_grad
    assert not outputs.features["clip"].values.requires_grad


class NeverEval(nn.Dropout):
    """Stays in train mode, as layers do that draw at test time too."""

    def train(self, mode: bool = True) -> "NeverEval":
        return super().train(True)


def test_a_part_that_stays_in_train_mode_is_refused_by_name() -> None:
    model = conv3d()
    model.add_module("noise", NeverEval(0.5))
    with pytest.raises(ValueError, match=r"its 'noise' \(NeverEval\) stays in train mode after eval\(\)"):
        Teacher(model, {})


class Wrapped(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.part(values)
        return out


@pytest.mark.parametrize("shared", ["the model", "a layer", "a parameter", "nothing"])
def test_a_student_that_is_its_own_teacher_is_refused(shared: str) -> None:
    student = CompactShift(width=4).build(CLASSES)
    of_teacher = student if shared == "the model" else conv3d()
    if shared == "a layer":
        of_teacher.add_module("last", Wrapped(student.head))  # type: ignore[arg-type]
    elif shared == "a parameter":
        of_teacher.register_parameter("tied", next(student.parameters()))
    terms = {"hard": Term(loss=CrossEntropy()), "soft": Term(loss=SoftTargets())}
    teachers = {"teacher": Teacher(of_teacher, {})}
    if shared == "nothing":
        Student(student, terms, teachers)
        Student(student, terms, {"teacher": Teacher(copy.deepcopy(student), {})})
        return
    what = {"the model": "its whole model", "a layer": "its 'last.part'", "a parameter": "its 'tied'"}[shared]
    with pytest.raises(ValueError, match=f"teacher 'teacher' shares {what} with the student: .*copy.deepcopy"):
        Student(student, terms, teachers)


def test_a_look_at_the_taps_leaves_the_mode_of_every_part() -> None:
    model = conv3d().train()
    norm = next(one for one in model.modules() if isinstance(one, nn.BatchNorm3d)).eval()
    tap_grids(model, {"clip"})
    assert model.training
    assert not norm.training
