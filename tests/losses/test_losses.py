"""What holds for every loss of the package, and the numbers of each."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from videokd import losses
from videokd.contracts import UNLABELLED, FeatureMap, Outputs
from videokd.losses import (
    ClipFeatures,
    CrossEntropy,
    FrameFeatures,
    Loss,
    SoftTargets,
    TemporalAffinity,
    TemporalDifference,
)
from videokd.losses.align import layer_normalised

ALL = [getattr(losses, name) for name in losses.__all__ if name not in ("Loss", "Pair")]
DISTILLING = [cls() for cls in ALL if cls is not CrossEntropy]
FEATURE_LOSSES = [ClipFeatures, FrameFeatures, TemporalDifference, TemporalAffinity]
B, T, C, K = 3, 6, 5, 4


def outputs(seed: int, *, grad: bool = False, shift: float = 0.0) -> Outputs:
    """Random logits and features; `shift` seconds are added to all times."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, K, generator=generator)
    frames, clip = torch.randn(B, T, 1, 1, C, generator=generator), torch.randn(B, 1, 1, 1, C, generator=generator)
    seconds = torch.arange(T).float().expand(B, T) + shift
    features = {"frames": FeatureMap(frames.requires_grad_(grad), seconds)}
    features["clip"] = FeatureMap(clip.requires_grad_(grad), seconds[:, :1])
    return Outputs(logits.requires_grad_(grad), features)


def perfect(teacher: Outputs) -> Outputs:
    """A student that says what the teacher says, its projected features as the targets are."""
    features = {tap: FeatureMap(layer_normalised(m.values), m.times) for tap, m in teacher.features.items()}
    return Outputs(teacher.logits, features)


LABEL = torch.tensor([0, 3, UNLABELLED])


@pytest.mark.parametrize("loss", [cls() for cls in ALL], ids=lambda loss: type(loss).__name__)
def test_gradients_are_finite_and_reach_the_student_alone(loss: Loss) -> None:
    student, teacher = outputs(0, grad=True), outputs(1, grad=True)
    value = loss(student, Outputs(teacher.logits.detach(), _detached(teacher)), LABEL)  # type: ignore[union-attr]
    assert value.shape == ()
    value.backward()
    leaves = [student.logits, *(m.values for m in student.features.values())]
    gradients = [leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    "loss", [cls() for cls in ALL if cls is not CrossEntropy], ids=lambda loss: type(loss).__name__
)
def test_a_perfect_student_has_no_loss(loss: Loss) -> None:
    teacher = outputs(1)
    projected = any(pair.projected for pair in loss.pairs())
    student = perfect(teacher) if projected else teacher
    assert loss(student, teacher, LABEL).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [cls() for cls in ALL], ids=lambda loss: type(loss).__name__)
def test_bf16_inputs_give_about_the_same_value_in_fp32(loss: Loss) -> None:
    student, teacher = outputs(0), outputs(1)
    exact, rounded = loss(student, teacher, LABEL), loss(_bf16(student), _bf16(teacher), LABEL)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.01)


@pytest.mark.parametrize(
    "loss", [cls() for cls in ALL if cls is not CrossEntropy], ids=lambda loss: type(loss).__name__
)
def test_unlabelled_clips_carry_the_distillation_terms(loss: Loss) -> None:
    student, teacher = outputs(0), outputs(1)
    unknown = torch.full((B,), UNLABELLED)
    assert (
        loss(student, teacher, unknown).item() == loss(student, teacher, torch.zeros(B, dtype=torch.int64)).item() > 0
    )


@pytest.mark.parametrize("loss_class", [FrameFeatures, TemporalDifference, TemporalAffinity])
def test_the_same_event_matches_at_the_same_second_and_not_at_another(loss_class: type[Loss]) -> None:
    loss = loss_class()

    def event(steps: int, start: float) -> FeatureMap:
        """Four seconds in `steps` steps: an impulse from `start` on for half a second, over a faint constant."""
        at = (torch.arange(steps) + 0.5) * 4 / steps
        values = torch.tensor([0.1, 0.0, -0.1, 0.05]).expand(1, steps, 4).clone()
        values[0, (at > start) & (at < start + 0.5)] += torch.tensor([1.0, -2.0, 0.5, 0.0])
        return FeatureMap(values[:, :, None, None, :], at[None])

    teacher = Outputs(None, {"frames": event(16, 1.0)})

    def value(start: float) -> float:
        student = event(8, start)
        student = FeatureMap(layer_normalised(student.values), student.times)
        return loss(Outputs(None, {"frames": student}), teacher, LABEL[:1]).item()

    assert value(1.0) < 1e-6
    assert value(3.0) > 0.1


def test_cross_entropy_counts_labelled_clips_alone() -> None:
    # Two classes, logits (0, ln 3): p = (1/4, 3/4). Labels 0 and 1: -(ln 1/4 + ln 3/4) / 2; the third does not count.
    logits = torch.tensor([[0.0, np.log(3)]] * 3)
    value = CrossEntropy()(Outputs(logits), None, torch.tensor([0, 1, UNLABELLED]))
    assert value.item() == pytest.approx(-(np.log(1 / 4) + np.log(3 / 4)) / 2)


def test_cross_entropy_without_any_label_is_zero() -> None:
    logits = torch.randn(2, K, requires_grad=True)
    value = CrossEntropy()(Outputs(logits), None, torch.full((2,), UNLABELLED))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_label_smoothing_matches_hand_computed_value() -> None:
    # p = (1/4, 3/4), target (0.95, 0.05): -(0.95 ln 1/4 + 0.05 ln 3/4).
    value = CrossEntropy(label_smoothing=0.1)(Outputs(torch.tensor([[0.0, np.log(3)]])), None, torch.tensor([0]))
    assert value.item() == pytest.approx(-(0.95 * np.log(1 / 4) + 0.05 * np.log(3 / 4)))


def test_cross_entropy_with_shares_matches_hand_computed_value() -> None:
    # p = (1/4, 3/4), shares (0.7, 0.3): -(0.7 ln 1/4 + 0.3 ln 3/4); the second clip is unlabelled and does not count.
    logits = torch.tensor([[0.0, np.log(3)]] * 2)
    label = torch.tensor([[0.7, 0.3], [UNLABELLED, UNLABELLED]])
    value = CrossEntropy()(Outputs(logits), None, label)
    assert value.item() == pytest.approx(-(0.7 * np.log(1 / 4) + 0.3 * np.log(3 / 4)))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_with_whole_shares_is_that_with_class_numbers(label_smoothing: float) -> None:
    loss = CrossEntropy(label_smoothing=label_smoothing)
    numbers = torch.tensor([2, UNLABELLED, 0])
    shares = torch.tensor([[0.0, 0.0, 1.0, 0.0], [float(UNLABELLED)] * K, [1.0, 0.0, 0.0, 0.0]])
    logits = torch.randn(3, K, requires_grad=True)
    by_number, by_share = (loss(Outputs(logits), None, label) for label in (numbers, shares))
    torch.testing.assert_close(by_share, by_number)
    (ours,), (expected,) = (torch.autograd.grad(value, logits) for value in (by_share, by_number))
    torch.testing.assert_close(ours, expected)


def test_cross_entropy_with_shares_of_no_labelled_clip_is_zero() -> None:
    value = CrossEntropy(label_smoothing=0.1)(Outputs(torch.randn(2, K)), None, torch.full((2, K), float(UNLABELLED)))
    assert value.item() == 0


def test_soft_targets_match_hand_computed_value() -> None:
    # At T = 2, logits (0, 2 ln 3) soften to (1/4, 3/4) and (0, 0) to (1/2, 1/2).
    # KL = 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2), times T^2 = 4, mean over the two equal clips.
    student, teacher = Outputs(torch.zeros(2, 2)), Outputs(torch.tensor([[0.0, 2 * np.log(3)]] * 2))
    expected = 4 * (0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    assert SoftTargets(temperature=2.0)(student, teacher, LABEL[:2]).item() == pytest.approx(expected, rel=1e-6)


def test_soft_targets_do_not_depend_on_the_number_of_classes_or_a_constant() -> None:
    # Ten classes that neither net believes in change nothing: not divided by K.
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    never = torch.full((5, 10), -1e4)
    label = torch.zeros(5, dtype=torch.int64)
    loss = SoftTargets(temperature=3.0)
    value = loss(Outputs(student), Outputs(teacher), label)
    wide = loss(Outputs(torch.cat([student, never], 1)), Outputs(torch.cat([teacher, never], 1)), label)
    torch.testing.assert_close(wide, value)
    torch.testing.assert_close(loss(Outputs(student + 7), Outputs(teacher - 3), label), value)


def test_soft_target_gradients_keep_their_size_over_temperatures() -> None:
    sizes = []
    for temperature in (8.0, 16.0, 32.0):
        logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
        target = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
        SoftTargets(temperature=temperature)(Outputs(logits), Outputs(target), torch.zeros(64)).backward()
        assert logits.grad is not None
        sizes.append(logits.grad.norm().item())
    assert max(sizes) / min(sizes) < 1.1


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        SoftTargets(temperature=0)


# Slow numpy versions, written apart from the code under test.


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def smooth_l1(x: np.ndarray) -> float:
    return float(np.mean([0.5 * v * v if abs(v) < 1 else abs(v) - 0.5 for v in x.ravel()]))


def cosine_distance(x: np.ndarray, y: np.ndarray) -> float:
    pairs = zip(x.reshape(-1, C), y.reshape(-1, C), strict=True)
    return float(np.mean([2 - 2 * a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]))


def affinities(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.einsum("btc,bsc->bts", unit, unit)


def numpy_frames(o: Outputs) -> np.ndarray:
    return o.features["frames"].values[:, :, 0, 0].detach().double().numpy()


def numpy_clip(o: Outputs) -> np.ndarray:
    return o.features["clip"].values[:, 0, 0, 0].detach().double().numpy()


NUMPY: list[tuple[Loss, Callable[[Outputs, Outputs], float]]] = [
    (ClipFeatures(distance="cosine"), lambda s, t: cosine_distance(numpy_clip(s), normalised(numpy_clip(t)))),
    (ClipFeatures(distance="smooth_l1"), lambda s, t: smooth_l1(numpy_clip(s) - normalised(numpy_clip(t)))),
    (FrameFeatures(distance="smooth_l1"), lambda s, t: smooth_l1(numpy_frames(s) - normalised(numpy_frames(t)))),
    (FrameFeatures(distance="cosine"), lambda s, t: cosine_distance(numpy_frames(s), normalised(numpy_frames(t)))),
    (FrameFeatures(distance="mse"), lambda s, t: float(np.mean((numpy_frames(s) - normalised(numpy_frames(t))) ** 2))),
    (
        TemporalDifference(),
        lambda s, t: smooth_l1(np.diff(numpy_frames(s), axis=1) - np.diff(normalised(numpy_frames(t)), axis=1)),
    ),
    (TemporalAffinity(), lambda s, t: float(np.mean((affinities(numpy_frames(s)) - affinities(numpy_frames(t))) ** 2))),
]


@pytest.mark.parametrize(("loss", "slow"), NUMPY, ids=lambda v: repr(v) if isinstance(v, Loss) else "")
def test_value_matches_a_slow_numpy_version(loss: Loss, slow: Callable[[Outputs, Outputs], float]) -> None:
    student, teacher = outputs(0), outputs(1)
    assert loss(student, teacher, LABEL).item() == pytest.approx(slow(student, teacher), rel=1e-4)


@pytest.mark.parametrize("loss_class", FEATURE_LOSSES)
def test_the_scale_of_the_teachers_features_does_not_matter(loss_class: type[Loss]) -> None:
    student, teacher = outputs(0), outputs(1)
    scaled = Outputs(None, {tap: FeatureMap(m.values * 100, m.times) for tap, m in teacher.features.items()})
    torch.testing.assert_close(
        loss_class()(student, scaled, LABEL), loss_class()(student, teacher, LABEL), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("loss_class", [FrameFeatures, TemporalDifference, TemporalAffinity])
def test_steps_that_were_not_seen_by_both_do_not_count(loss_class: type[Loss]) -> None:
    # Shifted by three steps, three of six are in common.
    student, teacher = outputs(0), outputs(1, shift=3.0)
    value = loss_class()(student, teacher, LABEL)
    unseen = student.features["frames"].values.clone()
    unseen[:, :3] = 100.0
    changed = Outputs(None, {"frames": FeatureMap(unseen, student.features["frames"].times)})
    torch.testing.assert_close(loss_class()(changed, teacher, LABEL), value)
    far = outputs(1, shift=100.0)
    assert loss_class()(student, far, LABEL).item() == 0


def test_a_still_clip_has_no_temporal_loss_gradient_blow_up() -> None:
    still = torch.ones(1, 4, 1, 1, 3, requires_grad=True)
    student = Outputs(None, {"frames": FeatureMap(still, torch.arange(4.0)[None])})
    teacher = Outputs(None, {"frames": FeatureMap(torch.randn(1, 4, 1, 1, 3), torch.arange(4.0)[None])})
    TemporalAffinity()(student, teacher, LABEL[:1]).backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()


def _detached(o: Outputs) -> dict[str, FeatureMap]:
    return {tap: FeatureMap(m.values.detach(), m.times) for tap, m in o.features.items()}


def _bf16(o: Outputs) -> Outputs:
    assert o.logits is not None
    features = {tap: FeatureMap(m.values.bfloat16(), m.times) for tap, m in o.features.items()}
    return Outputs(o.logits.bfloat16(), features)
