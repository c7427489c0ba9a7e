"""The losses in single precision against double precision, where squares and probabilities are very small or large."""

import pytest
import torch
from test_losses import LABEL, every_loss, leaves, made, student_of, teacher_of
from torch import Tensor

from videokd.contracts import UNLABELLED, FeatureMap, Outputs
from videokd.losses import (
    DIST,
    PKT,
    SP,
    VID,
    Loss,
    RKDAngle,
    RKDDistance,
    SpatialAttention,
    TemporalAffinity,
    TemporalAttention,
)


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Of rows in double precision; 0 for a row that is constant but for rounding."""
    centred = [rows - rows.mean(dim=1, keepdim=True) for rows in (one, other)]
    # By the largest first: squares of 1e-200 underflow in double precision too.
    largest = [rows.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-300) for rows in centred]
    constant = [
        a <= 1e-13 * rows.detach().abs().amax(dim=1, keepdim=True)
        for a, rows in zip(largest, (one, other), strict=True)
    ]
    a, b = (torch.nn.functional.normalize(rows / by, dim=1) for rows, by in zip(centred, largest, strict=True))
    return (a * b).sum(dim=1).masked_fill((constant[0] | constant[1]).squeeze(1), 0.0)


def dist_by_definition(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = student.double().softmax(dim=1), teacher.double().softmax(dim=1)
    return (1 - pearson(p, q).mean()) + (1 - pearson(p.T, q.T).mean())


def assert_dist_is_its_definition(student: Tensor, teacher: Tensor) -> None:
    one, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    found = DIST()(Outputs(one), Outputs(teacher), torch.full((len(one),), UNLABELLED))
    expected = dist_by_definition(other, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found, one)
    (expected_gradient,) = torch.autograd.grad(expected, other)
    assert gradient.isfinite().all()
    largest = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5 * largest + 1e-6)


@pytest.mark.parametrize("clips", [2, 3, 16])
@pytest.mark.parametrize("classes", [2, 5, 400])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 50.0, 100.0])  # from 200 on, double precision underflows too
def test_dist_equals_its_definition_in_double_precision(clips: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(clips + classes)
    student, teacher = (scale * torch.randn(clips, classes, generator=generator) for _ in range(2))
    assert_dist_is_its_definition(student, teacher)


@pytest.mark.parametrize("clips", [2, 3, 16])
@pytest.mark.parametrize("size", [10.0, 50.0, 100.0])
def test_dist_of_logits_of_one_size_equals_its_definition(clips: int, size: float) -> None:
    # Each logit is +size or -size; several are the largest of their clip, and classes may be constant.
    generator = torch.Generator().manual_seed(clips)
    signs = [2.0 * torch.randint(0, 2, (clips, 7), generator=generator) - 1 for _ in range(2)]
    noise = 1e-2 * torch.randn(clips, 7, generator=generator)
    assert_dist_is_its_definition(size * signs[0] + noise, size * signs[1])


def test_dist_of_two_clips_with_logits_of_50_matches_hand_computed_value() -> None:
    # Within a clip all probabilities are (1, 0, 0): correlation 1. Class 0 is constant: 0. Classes 1 and 2 have
    # e^-100 in one clip and e^-99 in the other: correlation 1 where the teacher has the same order, else -1.
    rising, falling = torch.tensor([[50.0, -50.0, -49.0], [50.0, -49.0, -50.0]]).unflatten(0, (2, 1)).unbind()
    student, swapped = torch.cat([rising, falling]), torch.cat([falling, rising])
    label = torch.full((2,), UNLABELLED)
    assert DIST()(Outputs(student), Outputs(student), label).item() == pytest.approx(1 - 2 / 3, abs=1e-6)
    assert DIST()(Outputs(student), Outputs(swapped), label).item() == pytest.approx(1 + 2 / 3, abs=1e-6)


@pytest.mark.parametrize("student_scale", [0.0, 50.0])
@pytest.mark.parametrize("teacher_scale", [0.0, 50.0])
def test_dist_of_identical_clips_has_no_correlation_within_classes(student_scale: float, teacher_scale: float) -> None:
    rows = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0)).expand(2, 4, 6)
    student, teacher = (student_scale * rows[0]).requires_grad_(), teacher_scale * rows[1]
    value = DIST(beta=0)(Outputs(student), Outputs(teacher), torch.full((4,), UNLABELLED))
    assert value.item() == pytest.approx(1.0, abs=1e-6)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()


def results(loss: Loss, logits: float, features: float) -> list[Tensor]:
    """Value and gradients, for logits and features of these scales."""
    student, teacher = (
        Outputs(
            None if one.logits is None else one.logits * logits,
            {
                tap: FeatureMap(_scaled(loss, side, found.values, features), found.times)
                for tap, found in one.features.items()
            },
            None,
            one.extra,
        )
        for side, one in (("student", student_of(loss)), ("teacher", teacher_of(loss)))
    )
    of_student = leaves(student)
    value = loss(student, teacher, LABEL)
    gradients = torch.autograd.grad(value, of_student, allow_unused=True)
    return [value.detach(), *(one for one in gradients if one is not None)]


def _scaled(loss: Loss, side: str, values: Tensor, by: float) -> Tensor:
    if isinstance(loss, VID) and side == "student":  # half are variances
        mean, variance = values.chunk(2, dim=-1)
        return torch.cat([mean * by, variance * by**2], dim=-1)
    return values * by


@every_loss
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 200.0])
@pytest.mark.parametrize("of", ["logits", "features"])
def test_single_precision_gives_what_double_precision_gives(
    loss_class: type[Loss], scale: float, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = made(loss_class)
    scales = (scale, 1.0) if of == "logits" else (1.0, scale)
    single = results(loss, *scales)
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # every loss converts what it is given by it
    double = results(loss, *scales)
    # A divergence near 0 has the rounding of its terms, which are near 1, times T^2 and the weight: up to 128 in DKD.
    torch.testing.assert_close(single[0].double(), double[0].double(), rtol=1e-3, atol=128 * 2e-7)
    for one, other in zip(single[1:], double[1:], strict=True):
        assert one.isfinite().all()
        largest = other.abs().max().item()
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-4 * largest + 1e-6)


SCALE_FREE = [SP, PKT, RKDDistance, RKDAngle, SpatialAttention, TemporalAttention, TemporalAffinity]


@pytest.mark.parametrize("loss_class", SCALE_FREE, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e4])
def test_losses_on_relations_do_not_depend_on_the_scale_of_features(loss_class: type[Loss], scale: float) -> None:
    loss = made(loss_class)
    value, gradient = results(loss, 1.0, 1.0)
    scaled_value, scaled_gradient = results(loss, 1.0, scale)
    torch.testing.assert_close(scaled_value, value, rtol=1e-3, atol=1e-6)
    largest = gradient.abs().max().item()
    torch.testing.assert_close(scaled_gradient * scale, gradient, rtol=1e-3, atol=1e-3 * largest)
