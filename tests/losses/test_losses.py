"""What holds for every loss of the package, and the numbers of the first ones; of the others in `test_golden`."""

import inspect
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from videokd import losses
from videokd.contracts import UNLABELLED, FeatureMap, Outputs
from videokd.losses import (
    CRD,
    DKD,
    MGD,
    NKD,
    VID,
    ClipFeatures,
    CrossEntropy,
    Facts,
    FrameFeatures,
    Loss,
    MapFeatures,
    MultiScale,
    SoftTargets,
    SpatialAttention,
    TemporalAffinity,
    TemporalAttention,
    TemporalDifference,
    TemporalSpectrum,
    ThroughHead,
    Variational,
)
from videokd.losses.align import layer_normalised
from videokd.losses.relations import BANK, BANK_CLIP, BANK_FILLED, BANK_LABEL

B, T, C, K = 4, 6, 5, 4
LABEL = torch.tensor([0, 3, UNLABELLED, 3])
Q = 7


def concrete(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Loss) and not inspect.isabstract(cls)


def made(cls: type[Loss]) -> Loss:
    """The loss with its defaults, and what it takes from the data."""
    loss = cls()
    return loss.fitted(Facts((3, 1, 5, 2), teacher_of(loss, seed=9)))


ALL = [getattr(losses, name) for name in losses.__all__ if concrete(getattr(losses, name))]
DISTILLING = [cls for cls in ALL if cls.needs_teacher]
every_loss = pytest.mark.parametrize("loss_class", ALL, ids=lambda cls: cls.__name__)
every_distilling_loss = pytest.mark.parametrize("loss_class", DISTILLING, ids=lambda cls: cls.__name__)


def feature_map(seed: int, grid: str, *, channels: int = C, shift: float = 0.0) -> FeatureMap:
    generator = torch.Generator().manual_seed(seed)
    steps, places = {"clip": (1, 1), "frames": (T, 1), "map": (T, 2)}[grid]
    values = torch.randn(B, steps, places, places, channels, generator=generator)
    return FeatureMap(values, torch.arange(steps).float().expand(B, steps) + shift)


def teacher_of(loss: Loss, seed: int = 1, shift: float = 0.0) -> Outputs:
    """What a teacher says of every pair of the loss, its bank half full."""
    generator = torch.Generator().manual_seed(seed)
    features = {
        pair.teacher_name: feature_map(seed + 10 * number, pair.grid, shift=shift)
        for number, pair in enumerate(loss.pairs())
    }
    extra = {}
    if loss.bank != "none":
        extra = {
            BANK: torch.randn(Q, C, generator=generator),
            BANK_FILLED: torch.arange(Q) < 4,
            BANK_LABEL: torch.arange(Q) % K,
            BANK_CLIP: torch.arange(Q),
        }
    return Outputs(torch.randn(B, K, generator=generator), features, None, extra)


def student_of(loss: Loss, seed: int = 0) -> Outputs:
    """A student's logits, and its features after the loss's connectors."""
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for number, pair in enumerate(loss.pairs()):
        channels = {Variational: 2 * C, ThroughHead: C + K}.get(type(pair.connector), C)  # type: ignore[arg-type]
        found = feature_map(seed + 10 * number, pair.grid, channels=channels)
        values = found.values
        if isinstance(pair.connector, Variational):
            values = torch.cat([values[..., :C], values[..., C:].exp()], dim=-1)
        features[pair.student_name] = FeatureMap(values, found.times)
    return Outputs(torch.randn(B, K, generator=generator), features, None, learned_of(loss))


def learned_of(loss: Loss) -> dict[str, Tensor]:
    start = {name: torch.tensor(value) for name, value in loss.learned.items()}
    return {**start, "progress": torch.tensor(0.5)} if start else {}


def perfect(loss: Loss, teacher: Outputs) -> Outputs:
    """A student that says what the teacher says, its connected features as the targets are."""
    features = {}
    for pair in loss.pairs():
        values, times = teacher.features[pair.teacher_name].values, teacher.features[pair.teacher_name].times
        if isinstance(pair.connector, Variational):
            values = torch.cat([values, torch.ones_like(values)], dim=-1)  # certain to a deviation of 1
        elif isinstance(pair.connector, ThroughHead):
            assert teacher.logits is not None
            values = torch.cat([values, teacher.logits[:, None, None, None]], dim=-1)
        elif hasattr(loss, "target") and callable(loss.target):
            values = loss.target(values)
        elif isinstance(loss, TemporalDifference | TemporalSpectrum):
            values = layer_normalised(values)
        features[pair.student_name] = FeatureMap(values, times)
    return Outputs(teacher.logits, features, None, learned_of(loss))


def leaves(outputs: Outputs) -> list[Tensor]:
    found = [outputs.logits, *(one.values for one in outputs.features.values())]
    return [leaf.requires_grad_() for leaf in found if leaf is not None]


@every_loss
def test_gradients_are_finite_and_reach_the_student_alone(loss_class: type[Loss]) -> None:
    loss = made(loss_class)
    student, teacher = student_of(loss), teacher_of(loss)
    of_student = leaves(student)
    value = loss(student, teacher, LABEL)
    assert value.shape == ()
    assert value.dtype == torch.float32
    gradients = [one for one in torch.autograd.grad(value, of_student, allow_unused=True) if one is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


@every_distilling_loss
@pytest.mark.parametrize("at", ["equal", "zero"])
def test_gradients_are_finite_at_the_corners(loss_class: type[Loss], at: str) -> None:
    loss = made(loss_class)
    teacher = teacher_of(loss)
    student = perfect(loss, teacher)
    if at == "zero":
        # Of a variance, the least that there is.
        features = {
            tap: FeatureMap(torch.full_like(one.values, 1e-5 if isinstance(loss, VID) else 0.0), one.times)
            for tap, one in student.features.items()
        }
        student = Outputs(torch.zeros(B, K), features, None, learned_of(loss))
    student = Outputs(
        student.logits.clone() if student.logits is not None else None,
        {tap: FeatureMap(one.values.clone(), one.times) for tap, one in student.features.items()},
        None,
        student.extra,
    )
    of_student = leaves(student)
    for gradient in torch.autograd.grad(loss(student, teacher, LABEL), of_student, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


# Floors above zero, a cross-entropy's, and a target that is not what the teacher says: see test_golden.
WITH_FLOORS = (NKD, CRD, losses.BKD)


@pytest.mark.parametrize("loss_class", [cls for cls in DISTILLING if cls not in WITH_FLOORS])
def test_a_perfect_student_has_no_loss(loss_class: type[Loss]) -> None:
    loss = made(loss_class)
    teacher = teacher_of(loss)
    assert loss(perfect(loss, teacher), teacher, LABEL).item() == pytest.approx(0, abs=1e-5)
    assert loss(student_of(loss), teacher, LABEL).item() > 1e-3


@every_loss
def test_bf16_inputs_give_about_the_same_value_in_fp32(loss_class: type[Loss]) -> None:
    loss = made(loss_class)
    student, teacher = student_of(loss), teacher_of(loss)
    exact, rounded = loss(student, teacher, LABEL), loss(_bf16(student), _bf16(teacher), LABEL)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.02)


@every_distilling_loss
def test_unlabelled_clips_carry_the_distillation_terms(loss_class: type[Loss]) -> None:
    loss = made(loss_class)
    student, teacher = student_of(loss), teacher_of(loss)
    unknown = torch.full((B,), UNLABELLED)
    value = loss(student, teacher, unknown).item()
    if loss.needs_labels:
        assert value == 0
        assert "target" in vars(loss)
        value = replace(loss, target="teacher")(student, teacher, unknown).item()  # type: ignore[call-arg]
    assert value > 0


@every_distilling_loss
def test_a_batch_that_is_too_small_or_empty_has_no_loss_and_no_fault(loss_class: type[Loss]) -> None:
    loss = made(loss_class)
    student, teacher = student_of(loss), teacher_of(loss)
    few = torch.arange(B) < max(loss.min_clips - 1, 1)
    value = loss(student.at(few), teacher.at(few), LABEL[few])
    assert value.isfinite()
    # Of one clip, DIST still knows the classes within it.
    if loss.min_clips > 1 and loss_class is not losses.DIST:
        assert value.item() == 0


@every_loss
def test_what_the_catalogue_says_of_it_is_there(loss_class: type[Loss]) -> None:
    assert loss_class.__doc__
    assert loss_class.paper or loss_class in (losses.BinaryCrossEntropy,)


SAME_EVENT: list[Loss] = [
    FrameFeatures(),
    TemporalDifference(),
    TemporalAffinity(),
    TemporalAttention(student_tap="frames"),
    TemporalSpectrum(part="complex"),
    MapFeatures(),
    MultiScale(),
    SpatialAttention(),
    VID(),
    MGD(),
]


def event(steps: int, start: float) -> FeatureMap:
    """Four seconds in `steps` steps: half a second's impulse in a corner from `start` on, over a faint constant."""
    at = (torch.arange(steps) + 0.5) * 4 / steps
    values = torch.tensor([0.1, 0.0, -0.1, 0.05]).expand(1, steps, 2, 2, 4).clone()
    values[0, (at > start) & (at < start + 0.5), 0, 0] += torch.tensor([4.0, -8.0, 2.0, 0.0])
    return FeatureMap(values, at[None])


def distance_of_events(loss: Loss, start: float) -> float:
    """Of a student of 8 steps whose event is at `start` to a teacher of 16 whose event is at second 1."""
    (pair,) = loss.pairs()
    teacher = Outputs(None, {"frames": event(16, 1.0).pooled(pair.grid)})
    # What a perfect student would give on its own, coarser, grid.
    seen = Outputs(None, {"frames": event(8, start).pooled(pair.grid)})
    return loss(perfect(loss, seen), teacher, LABEL[:1]).item()


@pytest.mark.parametrize("loss", SAME_EVENT, ids=lambda loss: type(loss).__name__)
def test_the_same_event_matches_at_the_same_second_and_not_at_another(loss: Loss) -> None:
    assert distance_of_events(loss, 1.0) == pytest.approx(0, abs=1e-5)
    assert distance_of_events(loss, 3.0) > 0.02


def test_an_amplitude_tells_how_fast_and_not_when() -> None:
    loss = TemporalSpectrum(part="amplitude")
    assert distance_of_events(loss, 3.0) == pytest.approx(distance_of_events(loss, 1.0), abs=1e-5)


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
    student, teacher = student_of(loss), teacher_of(loss)
    assert loss(student, teacher, LABEL).item() == pytest.approx(slow(student, teacher), rel=1e-4)


SCALE_FREE = [
    cls
    for cls in DISTILLING
    if cls().pairs() and cls not in (losses.SRRL, VID, MGD, MapFeatures, MultiScale)  # published on raw features
]


@pytest.mark.parametrize("loss_class", SCALE_FREE, ids=lambda cls: cls.__name__)
def test_the_scale_of_the_teachers_features_does_not_matter(loss_class: type[Loss]) -> None:
    loss = made(loss_class)
    student, teacher = student_of(loss), teacher_of(loss)
    scaled = {tap: FeatureMap(one.values * 100, one.times) for tap, one in teacher.features.items()}
    torch.testing.assert_close(
        loss(student, Outputs(teacher.logits, scaled, None, teacher.extra), LABEL),
        loss(student, teacher, LABEL),
        rtol=1e-3,
        atol=1e-4,
    )


ALIGNED = [cls for cls in DISTILLING if any(pair.grid != "clip" for pair in cls().pairs())]
ALIGNED.remove(TemporalSpectrum)  # of a whole clip


@pytest.mark.parametrize("loss_class", ALIGNED, ids=lambda cls: cls.__name__)
def test_steps_that_were_not_seen_by_both_do_not_count(loss_class: type[Loss]) -> None:
    # Shifted by three steps, three of six are in common.
    loss = made(loss_class)
    student, teacher = student_of(loss), teacher_of(loss, shift=3.0)
    value = loss(student, teacher, LABEL)
    (tap,) = student.features
    unseen = student.features[tap].values.clone()
    unseen[:, :3] = 100.0
    changed = Outputs(None, {tap: FeatureMap(unseen, student.features[tap].times)})
    torch.testing.assert_close(loss(changed, teacher, LABEL), value)
    assert loss(student, teacher_of(loss, shift=100.0), LABEL).item() == 0


def test_a_still_clip_has_no_temporal_loss_gradient_blow_up() -> None:
    still = torch.ones(1, 4, 1, 1, 3, requires_grad=True)
    student = Outputs(None, {"frames": FeatureMap(still, torch.arange(4.0)[None])})
    teacher = Outputs(None, {"frames": FeatureMap(torch.randn(1, 4, 1, 1, 3), torch.arange(4.0)[None])})
    TemporalAffinity()(student, teacher, LABEL[:1]).backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftTargets(temperature=-1), "temperature must be above 0, got -1"),
        (lambda: SoftTargets(temperature="hot"), "temperature is a number above 0 or 'auto', got 'hot'"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(label_smoothing=1.5), r"label_smoothing is in \[0, 1\], got 1.5"),
        (lambda: DKD(beta=-1), "beta is at least 0, got -1"),
        (lambda: NKD(temperature=0), "temperature must be above 0"),
        (lambda: losses.DIST(gamma=-0.1), "gamma is at least 0"),
        (lambda: losses.CurriculumSoftTargets(span=0), "span must be above 0"),
        (lambda: losses.ClassBalanced(beta=1.0), "beta must be below 1, got 1.0"),
        (lambda: losses.BKD(beta=-1), "beta is at least 0"),
        (lambda: CRD(queue=-1), "queue is at least 0"),
        (lambda: losses.BankAffinity(temperature=0), "temperature must be above 0"),
        (lambda: MultiScale(levels=(1, 2)), "levels are falling numbers"),
        (lambda: SpatialAttention(power=0.5), "power is at least 1"),
        (lambda: TemporalAttention(power=0.5), "power is at least 1"),
        (lambda: MGD(share=2), r"share is in \[0, 1\]"),
        (lambda: VID(variance=0), "variance must be above 0"),
        (lambda: losses.ShuffleRelation(number_of_pieces=1), "number_of_pieces is at least 2"),
    ],
)
def test_a_number_out_of_range_is_refused(make: Callable[[], Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_found_on_the_data_must_be_found_first() -> None:
    teacher = teacher_of(ClipFeatures())
    for loss, message in (
        (SoftTargets(temperature="auto"), "temperature 'auto' is found"),
        (losses.BalancedSoftmax(), "class_counts is counted"),
        (ClipFeatures(targets="whitened"), "moments of whitened targets are found"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(student_of(ClipFeatures()), teacher, LABEL)
    with pytest.raises(ValueError, match="class_counts has 2 numbers, and there are 4 classes"):
        losses.BalancedSoftmax(class_counts=(1, 2))(student_of(ClipFeatures()), None, LABEL)


def _bf16(o: Outputs) -> Outputs:
    assert o.logits is not None
    features = {tap: FeatureMap(m.values.bfloat16(), m.times) for tap, m in o.features.items()}
    return Outputs(o.logits.bfloat16(), features, None, o.extra)
