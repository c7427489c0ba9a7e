"""The losses against slow numpy versions, derived from the papers' formulas and not from the code under test."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from videokd.contracts import UNLABELLED, FeatureMap, Outputs
from videokd.losses import (
    BKD,
    CRD,
    DIST,
    DKD,
    MGD,
    NKD,
    PKT,
    SP,
    SRRL,
    VID,
    BalancedSoftmax,
    BankAffinity,
    BinaryCrossEntropy,
    BinarySoftTargets,
    ClassBalanced,
    ClipFeatures,
    ConvNorm,
    CurriculumSoftTargets,
    Facts,
    FrameFeatures,
    Head,
    Loss,
    MapFeatures,
    MaskedGeneration,
    MultiScale,
    RKDAngle,
    RKDDistance,
    ShuffleRelation,
    SoftTargets,
    SpatialAttention,
    StandardisedSoftTargets,
    TemporalAttention,
    TemporalSpectrum,
    ThroughHead,
    Variational,
)
from videokd.losses.logits import auto_temperature
from videokd.losses.relations import BANK, BANK_CLIP, BANK_FILLED, BANK_LABEL, NO_CLIP

B, T, H, W, C, K = 5, 4, 3, 2, 7, 6
SEEDS = [0, 1, 2]
LABEL = np.array([0, 3, UNLABELLED, 5, 3])
COUNTS = (400, 90, 31, 12, 3, 0)

Array = np.ndarray


# What the losses are given.


def drawn(seed: int, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Array:
    """As float64, but exact in float32."""
    values = np.random.default_rng(seed).normal(mean, scale, shape)
    return values.astype(np.float32).astype(np.float64)


def tensor(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def of_logits(values: Array) -> Outputs:
    return Outputs(tensor(values))


def both_logits(seed: int, *, scale: float = 2.0) -> tuple[Array, Array]:
    return drawn(seed, B, K, scale=scale), drawn(seed + 100, B, K, scale=scale)


def of_map(values: Array, times: Array | None = None, *, tap: str = "frames") -> Outputs:
    """Features (B, T, H, W, C), a step a second."""
    seconds = np.arange(values.shape[1]) + 0.5 if times is None else times
    clips = tensor(seconds).expand(len(values), -1)
    return Outputs(None, {tap: FeatureMap(tensor(values), clips)})


def of_clip(values: Array, *, tap: str = "clip") -> Outputs:
    """Clip vectors (B, C)."""
    return of_map(values[:, None, None, None, :], tap=tap)


def of_frames(values: Array) -> Outputs:
    """Frame vectors (B, T, C)."""
    return of_map(values[:, :, None, None, :])


NO_LABEL = torch.full((B,), UNLABELLED)


def valued(loss: Loss, student: Outputs, teacher: Outputs | None, label: Tensor = NO_LABEL) -> float:
    return loss(student, teacher, label).item()


def near(value: float | np.floating[Any]) -> object:
    expected = float(value)
    assert math.isfinite(expected)
    assert abs(expected) > 1e-4  # else the test could not fail
    return pytest.approx(expected, rel=1e-4)


# Parts of many formulas.


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def kl(p: Array, q: Array) -> float:
    """Of two lists of probabilities."""
    return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True) if a > 0)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def layer_norm(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def pearson(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def cross_entropy(z: Array, y: int) -> float:
    return -math.log(softmax(z)[y])


def pairwise(x: Array) -> Array:
    """Each two adjacent steps averaged."""
    return (x[:, 0::2] + x[:, 1::2]) / 2


def halved(x: Array) -> Array:
    """Each 2 x 2 places of (B, T, H, W, C) averaged."""
    rows = (x[:, :, 0::2] + x[:, :, 1::2]) / 2
    return (rows[:, :, :, 0::2] + rows[:, :, :, 1::2]) / 2


LABELLED = [(b, int(y)) for b, y in enumerate(LABEL) if y != UNLABELLED]


# Logits.


@pytest.mark.parametrize("seed", SEEDS)
def test_binary_cross_entropy(seed: int) -> None:
    z = drawn(seed, B, K, scale=2)
    several = np.random.default_rng(seed).integers(0, 2, (B, K)).astype(float)
    several[2] = UNLABELLED

    def of_row(row: Array, wanted: Array) -> float:
        chances = [sigmoid(v) for v in row]
        return sum(-math.log(p) if w else -math.log(1 - p) for p, w in zip(chances, wanted, strict=True))

    expected = np.mean([of_row(z[b], several[b]) for b in (0, 1, 3, 4)])
    assert valued(BinaryCrossEntropy(), of_logits(z), None, tensor(several)) == near(expected)
    single = np.mean([of_row(z[b], np.eye(K)[y]) for b, y in LABELLED])
    assert valued(BinaryCrossEntropy(), of_logits(z), None, torch.from_numpy(LABEL)) == near(single)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_standardised_soft_targets(seed: int, temperature: float) -> None:
    s, t = drawn(seed, B, K, scale=3, mean=1), drawn(seed + 100, B, K, scale=9, mean=-2)

    def standard(row: Array) -> Array:
        return (row - row.mean()) / (math.sqrt(((row - row.mean()) ** 2).sum() / (K - 1)) + 1e-7)

    expected = np.mean(
        [kl(softmax(standard(b) / temperature), softmax(standard(a) / temperature)) for a, b in zip(s, t, strict=True)]
    )
    loss = StandardisedSoftTargets(temperature=temperature)
    assert valued(loss, of_logits(s), of_logits(t)) == near(temperature**2 * expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_binary_soft_targets(seed: int, temperature: float) -> None:
    s, t = both_logits(seed)
    total = 0.0
    for b in range(B):
        for k in range(K):
            p, q = sigmoid(t[b, k] / temperature), sigmoid(s[b, k] / temperature)
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    loss = BinarySoftTargets(temperature=temperature)
    assert valued(loss, of_logits(s), of_logits(t)) == near(temperature**2 * total / B)


def soft_targets(s: Array, t: Array, temperature: float) -> list[float]:
    """Of every clip."""
    rows = zip(s, t, strict=True)
    return [temperature**2 * kl(softmax(b / temperature), softmax(a / temperature)) for a, b in rows]


def with_theta(s: Array, theta: float, progress: float) -> tuple[Outputs, Tensor, Tensor]:
    logits, parameter = tensor(s).requires_grad_(), torch.tensor(theta, requires_grad=True)
    return Outputs(logits, extra={"theta": parameter, "progress": torch.tensor(progress)}), logits, parameter


@pytest.mark.parametrize("theta", [-2.0, 0.0, 1.0])
def test_curriculum_soft_targets_value(theta: float) -> None:
    s, t = both_logits(0, scale=6)
    student, _, _ = with_theta(s, theta, 0.3)
    expected = np.mean(soft_targets(s, t, 2 + 10 * sigmoid(theta)))
    assert valued(CurriculumSoftTargets(start=2, span=10), student, of_logits(t)) == near(expected)


def test_curriculum_begins_at_the_published_temperature() -> None:
    s, t = both_logits(0, scale=6)
    loss = CurriculumSoftTargets()
    assert loss.learned == {"theta": 1.0}
    student, _, _ = with_theta(s, loss.learned["theta"], 0.0)
    # 1 + 20 sigmoid(1)
    assert valued(loss, student, of_logits(t)) == near(np.mean(soft_targets(s, t, 15.621171572600098)))


@pytest.mark.parametrize(("progress", "strength"), [(0.0, 0.0), (0.05, 0.1464466), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("theta", [-2.0, 1.0])
def test_curriculum_reverses_the_gradient_of_theta(progress: float, strength: float, theta: float) -> None:
    # (1 - cos(pi progress / ramp)) / 2 at a ramp of 0.2: 0, (1 - cos(pi / 4)) / 2, 1/2, 1, 1.
    s, t = both_logits(1, scale=6)
    student, logits, parameter = with_theta(s, theta, progress)
    CurriculumSoftTargets(ramp=0.2)(student, of_logits(t), NO_LABEL).backward()

    def at(value: float) -> float:
        return float(np.mean(soft_targets(s, t, 1 + 20 * sigmoid(value))))

    slope = (at(theta + 1e-5) - at(theta - 1e-5)) / 2e-5
    assert abs(slope) > 1e-3
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(-strength * slope, rel=1e-3, abs=1e-7)
    # The student's own gradient is as ever: T (p_s - p_t) / B.
    temperature = 1 + 20 * sigmoid(theta)
    expected = temperature * (softmax(s / temperature) - softmax(t / temperature)) / B
    torch.testing.assert_close(logits.grad, tensor(expected), rtol=1e-3, atol=1e-5)


def target_part(s: Array, t: Array, y: int, temperature: float) -> float:
    """TCKD of a clip."""
    p, q = softmax(t / temperature)[y], softmax(s / temperature)[y]
    return temperature**2 * kl(np.array([p, 1 - p]), np.array([q, 1 - q]))


def other_part(s: Array, t: Array, y: int, temperature: float) -> float:
    """NCKD of a clip."""
    p, q = softmax(np.delete(t, y) / temperature), softmax(np.delete(s, y) / temperature)
    return temperature**2 * kl(p, q)


@pytest.mark.parametrize("seed", SEEDS)
def test_dkd_by_label(seed: int) -> None:
    s, t = both_logits(seed)
    expected = np.mean([0.7 * target_part(s[b], t[b], y, 2) + 3 * other_part(s[b], t[b], y, 2) for b, y in LABELLED])
    loss = DKD(alpha=0.7, beta=3, temperature=2)
    assert valued(loss, of_logits(s), of_logits(t), torch.from_numpy(LABEL)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_dkd_by_teacher(seed: int) -> None:
    s, t = both_logits(seed)
    true = [max(range(K), key=lambda k, row=row: row[k]) for row in t]  # type: ignore[misc]
    parts = [1.5 * target_part(s[b], t[b], y, 3) + 8 * other_part(s[b], t[b], y, 3) for b, y in enumerate(true)]
    loss = DKD(alpha=1.5, beta=8, temperature=3, target="teacher")
    assert valued(loss, of_logits(s), of_logits(t), torch.from_numpy(LABEL)) == near(np.mean(parts))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", ["label", "teacher"])
def test_dkd_and_soft_targets_are_one_formula(seed: int, target: Literal["label", "teacher"]) -> None:
    # KD = TCKD + (1 - p_t^y) NCKD, clip by clip.
    s, t = both_logits(seed)
    label = np.array([0, 3, 1, 5, 3])
    true = label if target == "label" else t.argmax(1)
    unsure = tensor(1 - softmax(t / 4)[np.arange(B), true])
    arguments = of_logits(s), of_logits(t), torch.from_numpy(label)
    whole = DKD(alpha=1, beta=1, target=target).each(*arguments)
    true_class = DKD(alpha=1, beta=0, target=target).each(*arguments)
    kd = SoftTargets(temperature=4.0).each(*arguments)
    torch.testing.assert_close(kd, true_class + unsure * (whole - true_class), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kd, tensor(np.array(soft_targets(s, t, 4))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", ["label", "teacher"])
def test_nkd(seed: int, target: Literal["label", "teacher"]) -> None:
    s, t = both_logits(seed)
    expected = []
    for b, y in LABELLED if target == "label" else enumerate(t.argmax(1)):
        p, q = softmax(np.delete(t[b], y) / 2), softmax(np.delete(s[b], y) / 2)
        others = -sum(one * math.log(other) for one, other in zip(p, q, strict=True))
        expected.append(-softmax(t[b])[y] * math.log(softmax(s[b])[y]) + 0.8 * 2**2 * others)
    loss = NKD(gamma=0.8, temperature=2, target=target)
    assert valued(loss, of_logits(s), of_logits(t), torch.from_numpy(LABEL)) == near(np.mean(expected))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist(seed: int, temperature: float) -> None:
    s, t = both_logits(seed)
    p, q = softmax(t / temperature), softmax(s / temperature)
    of_clips = np.mean([1 - pearson(p[b], q[b]) for b in range(B)])
    of_classes = np.mean([1 - pearson(p[:, k], q[:, k]) for k in range(K)])
    loss = DIST(beta=2, gamma=0.5, temperature=temperature)
    expected = temperature**2 * float(2 * of_clips + 0.5 * of_classes)
    assert valued(loss, of_logits(s), of_logits(t)) == near(expected)


@pytest.mark.parametrize("scale", [1.0, 20.0, 50.0])
def test_dist_of_a_sure_teacher_and_its_equal_is_nothing(scale: float) -> None:
    # Most classes have a probability of almost 0 for every clip.
    t = drawn(0, 64, 100, scale=scale)
    assert valued(DIST(), of_logits(t), of_logits(t)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        pytest.param(0.3, 1.0, id="unsure: as it is"),
        pytest.param(6.0, 2.0, id="somewhat sure: 2 at most"),
        pytest.param(12.0, None, id="sure"),
        pytest.param(3.0, 1.5, id="somewhat sure, and soon unsure"),
        pytest.param(500.0, 10.0, id="never unsure: 10"),
    ],
)
def test_auto_temperature(scale: float, found: float | None) -> None:
    t = drawn(0, 200, K, scale=scale)

    def confidence(temperature: float) -> float:
        return float(softmax(t / temperature).max(1).mean())

    expected = 1.0
    while confidence(expected) > 0.6 and expected < 10:
        expected += 0.5
    if confidence(1.0) < 0.85:
        expected = min(expected, 2.0)
    assert found is None or found == expected
    assert found is not None or 2 < expected < 10
    assert auto_temperature(tensor(t)) == expected
    fitted = SoftTargets(temperature="auto").fitted(Facts(class_counts=(), teacher=of_logits(t)))
    assert fitted.temperature == expected


# Imbalance.


def class_weights(beta: float) -> list[float]:
    """(1 - beta) / (1 - beta^n), that sum to K; a class without clips is as one with a single clip."""
    plain = [(1 - beta) / (1 - beta ** max(n, 1)) for n in COUNTS]
    return [K * w / sum(plain) for w in plain]


@pytest.mark.parametrize("seed", SEEDS)
def test_balanced_softmax(seed: int) -> None:
    s, counts = drawn(seed, B, K, scale=2), (400, 90, 31, 12, 3, 1)
    loss = BalancedSoftmax().fitted(Facts(class_counts=counts))
    expected = []
    for b, y in LABELLED:
        shares = [n * math.exp(z) for n, z in zip(counts, s[b], strict=True)]
        expected.append(-math.log(shares[y] / sum(shares)))
    assert valued(loss, of_logits(s), None, torch.from_numpy(LABEL)) == near(np.mean(expected))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_class_balanced(seed: int, beta: float) -> None:
    s = drawn(seed, B, K, scale=2)
    loss = ClassBalanced(beta=beta).fitted(Facts(class_counts=COUNTS))
    w = class_weights(beta)
    expected = np.mean([w[y] * cross_entropy(s[b], y) for b, y in LABELLED])
    assert valued(loss, of_logits(s), None, torch.from_numpy(LABEL)) == near(expected)


def test_class_balanced_of_mixed_clips() -> None:
    # Each class's part of a clip by the class's own weight.
    s = drawn(0, B, K, scale=2)
    label = np.zeros((B, K))
    label[0, 1], label[1, [0, 3]], label[2], label[3, [2, 5]], label[4, [4, 1]] = 1, (0.7, 0.3), -1, 0.5, (0.9, 0.1)
    w = np.array(class_weights(0.99))
    expected = np.mean([-((label[b] * w) @ np.log(softmax(s[b]))) for b in (0, 1, 3, 4)])
    loss = ClassBalanced(beta=0.99, class_counts=COUNTS)
    assert valued(loss, of_logits(s), None, tensor(label)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_bkd(seed: int, beta: float) -> None:
    s, t = both_logits(seed)
    loss = BKD(beta=beta, temperature=2.0).fitted(Facts(class_counts=COUNTS))
    expected = []
    for b in range(B):
        weighted = softmax(t[b] / 2) * class_weights(beta)
        expected.append(4 * kl(weighted / weighted.sum(), softmax(s[b] / 2)))
    assert valued(loss, of_logits(s), of_logits(t), torch.from_numpy(LABEL)) == near(np.mean(expected))


# Features.

Distance = Literal["smooth_l1", "cosine", "mse"]
DISTANCES: list[Distance] = ["smooth_l1", "cosine", "mse"]


def distance(x: Array, y: Array, kind: Distance) -> float:
    """Mean over all vectors (..., C)."""
    if kind == "cosine":
        vectors = zip(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), strict=True)
        return float(np.mean([2 - 2 * cosine(a, b) for a, b in vectors]))
    difference = (x - y).ravel()
    return float(np.mean([d * d if kind == "mse" else smooth_l1(d) for d in difference]))


def whitened(x: Array, seen: Array) -> Array:
    vectors = seen.reshape(-1, seen.shape[-1])
    mean = vectors.sum(0) / len(vectors)
    return (x - mean) / np.sqrt(((vectors - mean) ** 2).sum(0) / len(vectors))


SCALES = np.array([0.3, 1, 2, 5, 0.5, 1, 3])
"""Channels as unlike as those of a network."""


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("targets", ["raw", "whitened", "layer_normalised"])
def test_clip_features(kind: Distance, targets: Literal["raw", "whitened", "layer_normalised"]) -> None:
    s, t, seen = drawn(0, B, C), drawn(1, B, C, mean=1) * SCALES, drawn(2, 300, C, mean=1) * SCALES
    loss = ClipFeatures(distance=kind, targets=targets)
    if targets == "whitened":
        loss = loss.fitted(Facts(class_counts=(), teacher=of_clip(seen)))
    target = {"raw": t, "whitened": whitened(t, seen), "layer_normalised": layer_norm(t)}[targets]
    assert valued(loss, of_clip(s), of_clip(t)) == near(distance(s, target, kind))


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("targets", ["raw", "whitened", "layer_normalised"])
def test_frame_features(kind: Distance, targets: Literal["raw", "whitened", "layer_normalised"]) -> None:
    s, t, seen = drawn(0, B, T, C), drawn(1, B, T, C, mean=1) * SCALES, drawn(2, 60, T, C, mean=1) * SCALES
    loss = FrameFeatures(distance=kind, targets=targets)
    if targets == "whitened":
        loss = loss.fitted(Facts(class_counts=(), teacher=of_frames(seen)))
    target = {"raw": t, "whitened": whitened(t, seen), "layer_normalised": layer_norm(t)}[targets]
    assert valued(loss, of_frames(s), of_frames(t)) == near(distance(s, target, kind))


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("targets", ["raw", "whitened", "layer_normalised"])
def test_map_features(kind: Distance, targets: Literal["raw", "whitened", "layer_normalised"]) -> None:
    shape = (T, H, W, C)
    s, t, seen = drawn(0, B, *shape), drawn(1, B, *shape, mean=1) * SCALES, drawn(2, 20, *shape, mean=1) * SCALES
    loss = MapFeatures(distance=kind, targets=targets)
    if targets == "whitened":
        loss = loss.fitted(Facts(class_counts=(), teacher=of_map(seen)))
    target = {"raw": t, "whitened": whitened(t, seen), "layer_normalised": layer_norm(t)}[targets]
    assert valued(loss, of_map(s), of_map(t)) == near(distance(s, target, kind))


def pooled_error(s: Array, t: Array, side: int) -> float:
    """Mean squared error of square maps averaged to side x side places."""
    block = s.shape[2] // side
    errors = []
    for i in range(side):
        for j in range(side):
            rows, columns = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            errors.append((s[:, :, rows, columns].mean((2, 3)) - t[:, :, rows, columns].mean((2, 3))) ** 2)
    return float(np.mean(errors))


def test_multi_scale_of_a_map_finer_than_all_levels() -> None:
    s, t = drawn(0, B, T, 8, 8, C), drawn(1, B, T, 8, 8, C, mean=0.5)
    errors = [((s - t) ** 2).mean(), pooled_error(s, t, 4), pooled_error(s, t, 2), pooled_error(s, t, 1)]
    expected = np.dot([1, 1 / 2, 1 / 4, 1 / 8], errors) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert valued(MultiScale(), of_map(s), of_map(t)) == near(expected)


def test_multi_scale_leaves_out_levels_that_are_not_coarser() -> None:
    s, t = drawn(0, B, T, 4, 4, C), drawn(1, B, T, 4, 4, C, mean=0.5)
    errors = [((s - t) ** 2).mean(), pooled_error(s, t, 2), pooled_error(s, t, 1)]
    expected = np.dot([1, 1 / 2, 1 / 4], errors) / (1 + 1 / 2 + 1 / 4)
    assert valued(MultiScale(), of_map(s), of_map(t)) == near(expected)


def energy(x: Array, power: float) -> Array:
    return np.mean(np.abs(x) ** power, axis=-1)


def spatial_attention(s: Array, t: Array) -> float:
    """Of energies (B, T, H, W)."""
    errors = []
    for b in range(s.shape[0]):
        for step in range(s.shape[1]):
            one, other = s[b, step].ravel(), t[b, step].ravel()
            errors += list((one / math.sqrt(one @ one) - other / math.sqrt(other @ other)) ** 2)
    return float(np.mean(errors))


def temporal_attention(s: Array, t: Array) -> float:
    """Of energies (B, T)."""
    errors: list[float] = []
    for one, other in zip(s, t, strict=True):
        errors += list((one / math.sqrt(one @ one) - other / math.sqrt(other @ other)) ** 2)
    return float(np.mean(errors))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_spatial_attention(power: float) -> None:
    s, t = drawn(0, B, T, H, W, 3), drawn(1, B, T, H, W, C, mean=0.5) * SCALES
    expected = spatial_attention(energy(s, power), energy(t, power))
    assert valued(SpatialAttention(power=power), of_map(s), of_map(t)) == near(expected)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_temporal_attention(power: float) -> None:
    s, t = drawn(0, B, T, H, W, 3), drawn(1, B, T, H, W, C, mean=0.5) * SCALES
    expected = temporal_attention(energy(s, power).mean((2, 3)), energy(t, power).mean((2, 3)))
    assert valued(TemporalAttention(power=power), of_map(s), of_map(t)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_srrl(seed: int) -> None:
    vectors, answers = drawn(seed, B, C), drawn(seed + 1, B, K)
    t, logits = drawn(seed + 2, B, C), drawn(seed + 3, B, K)
    teacher = Outputs(tensor(logits), of_clip(t).features)
    expected = ((vectors - t) ** 2).sum(1).mean() + 2.5 * ((answers - logits) ** 2).mean()
    assert valued(SRRL(beta=2.5), of_clip(np.hstack([vectors, answers])), teacher) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_vid(seed: int) -> None:
    mean, variance = drawn(seed, B, T, H, W, C), np.exp(drawn(seed + 1, C))
    t = drawn(seed + 2, B, T, H, W, C)
    student = np.concatenate([mean, np.broadcast_to(variance, mean.shape)], axis=-1)
    expected = np.mean(0.5 * ((t - mean) ** 2 / variance + np.log(variance)))
    assert valued(VID(), of_map(student), of_map(t)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_mgd(seed: int) -> None:
    generated, t = drawn(seed, B, T, H, W, C), drawn(seed + 1, B, T, H, W, C)
    expected = np.mean([((generated[b, i] - t[b, i]) ** 2).sum() for b in range(B) for i in range(T)])
    assert valued(MGD(), of_map(generated), of_map(t)) == near(expected)


# A teacher of twice the steps, on a grid twice as fine.

COARSE = drawn(10, B, 4, 2, 2, C)
FINE = drawn(11, B, 8, 4, 4, C, mean=0.5) * SCALES
COARSE_TIMES, FINE_TIMES = np.array([1.0, 3, 5, 7]), np.arange(8) + 0.5


def aligned(fine: Array) -> Array:
    return halved(pairwise(fine))


def slow_vid(s: Array, t: Array) -> float:
    mean, variance = s[..., :C], s[..., C:]
    return float(np.mean(0.5 * ((t - mean) ** 2 / variance + np.log(variance))))


FINER: list[tuple[Loss, Array, Callable[[Array, Array], float]]] = [
    (MapFeatures(), COARSE, lambda s, t: distance(s, aligned(t), "mse")),
    (MapFeatures(distance="cosine"), COARSE, lambda s, t: distance(s, aligned(t), "cosine")),
    (
        MultiScale(),
        COARSE,
        lambda s, t: (((s - aligned(t)) ** 2).mean() + pooled_error(s, aligned(t), 1) / 2) / (1 + 1 / 2),
    ),
    # Energies are averaged, not activations: these could cancel.
    (
        SpatialAttention(),
        COARSE,
        lambda s, t: spatial_attention(energy(s, 2), aligned(energy(t, 2)[..., None])[..., 0]),
    ),
    (
        TemporalAttention(),
        COARSE,
        lambda s, t: temporal_attention(energy(s, 2).mean((2, 3)), pairwise(energy(t, 2).mean((2, 3)))),
    ),
    (
        VID(),
        np.concatenate([COARSE, np.broadcast_to(SCALES, COARSE.shape)], axis=-1),
        lambda s, t: slow_vid(s, aligned(t)),
    ),
    (MGD(), COARSE, lambda s, t: float(((s - aligned(t)) ** 2).sum((2, 3, 4)).mean())),
]


@pytest.mark.parametrize(("loss", "student", "slow"), FINER, ids=[repr(loss) for loss, _, _ in FINER])
def test_a_teacher_of_more_steps_and_places(loss: Loss, student: Array, slow: Callable[[Array, Array], float]) -> None:
    value = valued(loss, of_map(student, COARSE_TIMES), of_map(FINE, FINE_TIMES))
    assert value == near(slow(student, FINE))


@pytest.mark.parametrize("kind", DISTANCES)
def test_frame_features_of_a_teacher_of_more_steps(kind: Distance) -> None:
    # The average of two steps is made the target, not the average of two targets.
    s, t = drawn(0, B, 4, C), drawn(1, B, 8, C) * SCALES
    student = of_map(s[:, :, None, None], COARSE_TIMES)
    teacher = of_map(t[:, :, None, None], FINE_TIMES)
    expected = distance(s, layer_norm(pairwise(t)), kind)
    assert valued(FrameFeatures(distance=kind), student, teacher) == near(expected)


# Time.


def spectrum(x: Array) -> Array:
    """Orthonormal discrete Fourier transform (B, F, C) of (B, T, C), frequencies from 0 to half the steps."""
    steps = x.shape[1]
    found = np.zeros((len(x), steps // 2 + 1, x.shape[2]), dtype=complex)
    for f in range(steps // 2 + 1):
        for n in range(steps):
            found[:, f] += x[:, n] * np.exp(-2j * math.pi * f * n / steps) / math.sqrt(steps)
    return found


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("part", ["amplitude", "complex"])
def test_temporal_spectrum(steps: int, part: Literal["amplitude", "complex"]) -> None:
    s, t = drawn(0, B, steps, C, scale=2), drawn(1, B, steps, C, mean=1) * SCALES
    one, other = spectrum(s), spectrum(layer_norm(t))
    if part == "amplitude":
        expected = np.mean([smooth_l1(d) for d in (np.abs(one) - np.abs(other)).ravel()])
    else:
        difference = (one - other).ravel()
        expected = np.mean([smooth_l1(d.real) + smooth_l1(d.imag) for d in difference])
    assert valued(TemporalSpectrum(part=part), of_frames(s), of_frames(t)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffle_relation(seed: int) -> None:
    s, s_shuffled, t, t_shuffled = (drawn(10 * seed + i, B, width) for i, width in enumerate((4, 4, C, C)))
    student = Outputs(None, {**of_clip(s).features, **of_clip(s_shuffled, tap="shuffled clip").features})
    teacher = Outputs(None, {**of_clip(t).features, **of_clip(t_shuffled, tap="shuffled clip").features})

    def change(one: Array, other: Array) -> float:
        return math.sqrt(((one - other) ** 2).sum()) / math.sqrt(((one**2).sum() + (other**2).sum()) / 2)

    expected = np.mean([(change(s[b], s_shuffled[b]) - change(t[b], t_shuffled[b])) ** 2 for b in range(B)])
    assert valued(ShuffleRelation(), student, teacher) == near(expected)


def test_a_student_that_hardly_looks_at_the_order_is_pushed() -> None:
    filmed = tensor(drawn(0, B, C)).requires_grad_()
    nearly = filmed.detach() + 1e-3 * tensor(drawn(1, B, C))
    teacher = {"clip": drawn(2, B, C), "shuffled clip": drawn(3, B, C)}
    said = [of_clip(values, tap=tap).features for tap, values in teacher.items()]
    times = torch.zeros(B, 1)
    student = {
        name: FeatureMap(one[:, None, None, None], times) for name, one in (("clip", filmed), ("shuffled clip", nearly))
    }
    ShuffleRelation()(Outputs(None, student), Outputs(None, {**said[0], **said[1]}), torch.zeros(B)).backward()
    assert filmed.grad is not None
    assert filmed.grad.norm() > 0.05


# Relations between clips: vectors of which the mean is not zero, and of unlike widths.


def related(seed: int) -> tuple[Array, Array]:
    return drawn(seed, B, 4, mean=0.5), drawn(seed + 100, B, C, mean=1) * SCALES


TWO = [(i, j) for i in range(B) for j in range(B) if i != j]


@pytest.mark.parametrize("seed", SEEDS)
def test_rkd_distance(seed: int) -> None:
    s, t = related(seed)

    def distances(x: Array) -> Array:
        found = np.array([math.sqrt(((x[i] - x[j]) ** 2).sum()) for i, j in TWO])
        return found / found.mean()

    expected = np.mean([smooth_l1(d) for d in distances(s) - distances(t)])
    assert valued(RKDDistance(), of_clip(s), of_clip(t)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_rkd_angle(seed: int) -> None:
    s, t = related(seed)
    errors = [
        smooth_l1(cosine(s[i] - s[j], s[k] - s[j]) - cosine(t[i] - t[j], t[k] - t[j]))
        for i, j in TWO
        for k in range(B)
        if k not in (i, j)
    ]
    assert len(errors) == B * (B - 1) * (B - 2)
    assert valued(RKDAngle(), of_clip(s), of_clip(t)) == near(np.mean(errors))


def test_rkd_angle_of_many_clips() -> None:
    # More than are computed at a time.
    s, t = drawn(0, 19, 3, mean=0.5), drawn(1, 19, C, mean=1)
    errors = [
        smooth_l1(cosine(s[i] - s[j], s[k] - s[j]) - cosine(t[i] - t[j], t[k] - t[j]))
        for i in range(19)
        for j in range(19)
        for k in range(19)
        if len({i, j, k}) == 3
    ]
    assert valued(RKDAngle(), of_clip(s), of_clip(t), torch.zeros(19).long()) == near(np.mean(errors))


@pytest.mark.parametrize("seed", SEEDS)
def test_sp(seed: int) -> None:
    s, t = related(seed)

    def likeness(x: Array) -> Array:
        gram = x @ x.T
        return gram / np.sqrt((gram**2).sum(1, keepdims=True))

    expected = ((likeness(s) - likeness(t)) ** 2).sum() / B**2
    assert valued(SP(), of_clip(s), of_clip(t)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_pkt(seed: int) -> None:
    s, t = related(seed)

    def picks(x: Array, i: int) -> Array:
        likeness = np.array([(cosine(x[i], x[j]) + 1) / 2 for j in range(B) if j != i])
        return likeness / likeness.sum()

    expected = np.mean([kl(picks(t, i), picks(s, i)) for i in range(B)])
    assert valued(PKT(), of_clip(s), of_clip(t)) == near(expected)


N = 8
FILLED = np.array([1, 1, 0, 1, 1, 0, 1, 1], dtype=bool)
BANK_CLASSES = np.array([0, 3, 0, UNLABELLED, 5, 1, 3, 2])
OF_CLIPS = np.array([0, 3, UNLABELLED, UNLABELLED, 3])
"""Two of a class, and two of which it is not known whether they are."""


def banked(values: Array, bank: Array) -> Outputs:
    extra = {BANK: tensor(bank), BANK_FILLED: torch.from_numpy(FILLED), BANK_LABEL: torch.from_numpy(BANK_CLASSES)}
    extra[BANK_CLIP] = torch.full((len(bank),), NO_CLIP)
    return Outputs(None, of_clip(values).features, extra=extra)


def same_class(one: int, other: int) -> bool:
    return one != UNLABELLED and one == other


def contrast(s: Array, t: Array, past: list[tuple[Array, int]], temperature: float) -> float:
    """InfoNCE from students to teachers and past, and from teachers to students: mean of both."""
    found = []
    for i in range(B):
        rivals = [j for j in range(B) if j != i and not same_class(OF_CLIPS[j], OF_CLIPS[i])]
        own = math.exp(cosine(s[i], t[i]) / temperature)
        of_student = [math.exp(cosine(s[i], t[j]) / temperature) for j in rivals]
        of_student += [math.exp(cosine(s[i], v) / temperature) for v, y in past if not same_class(y, OF_CLIPS[i])]
        of_teacher = [math.exp(cosine(t[i], s[j]) / temperature) for j in rivals]
        found += [-math.log(own / (own + sum(of_student))), -math.log(own / (own + sum(of_teacher)))]
    return float(np.mean(found))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_crd_over_the_batch(seed: int, temperature: float) -> None:
    s, t = drawn(seed, B, C), drawn(seed + 100, B, C) * SCALES
    loss = CRD(temperature=temperature, queue=0)
    expected = contrast(s, t, [], temperature)
    assert valued(loss, of_clip(s), of_clip(t), torch.from_numpy(OF_CLIPS)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_crd_over_a_queue(seed: int, temperature: float) -> None:
    s, t, bank = drawn(seed, B, C), drawn(seed + 100, B, C) * SCALES, drawn(seed + 200, N, C)
    past = [(bank[n], int(BANK_CLASSES[n])) for n in range(N) if FILLED[n]]
    expected = contrast(s, t, past, temperature)
    assert expected != pytest.approx(contrast(s, t, [], temperature), rel=1e-2)
    loss = CRD(temperature=temperature, queue=N)
    assert valued(loss, of_clip(s), banked(t, bank), torch.from_numpy(OF_CLIPS)) == near(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("of", ["queue", "classes"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_bank_affinity(seed: int, of: Literal["queue", "classes"], temperature: float) -> None:
    s, t, bank = drawn(seed, B, C), drawn(seed + 100, B, C) * SCALES, drawn(seed + 200, N, C)
    teacher = banked(t, bank)
    vectors = [bank[n] for n in range(N) if FILLED[n]] + list(t)
    if of == "classes":
        vectors = list(bank)
        teacher = Outputs(None, teacher.features, extra={**teacher.extra, BANK_FILLED: torch.ones(N).bool()})

    def answer(x: Array) -> Array:
        return softmax(np.array([cosine(x, v) / temperature for v in vectors]))

    expected = np.mean([kl(answer(t[b]), answer(s[b])) for b in range(B)])
    assert valued(BankAffinity(temperature=temperature, of=of), of_clip(s), teacher) == near(expected)


# Connectors.

HEAD = Head(tensor(drawn(20, K, C)), tensor(drawn(21, K)))
NARROW = 4


def built(connector: ConvNorm | Variational | MaskedGeneration | ThroughHead, student: int = NARROW) -> nn.Module:
    """With no parameter as it was initialised."""
    torch.manual_seed(0)
    module = connector.build(student, C, HEAD if connector.needs_head else None)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def parameters(module: nn.Module) -> dict[str, Array]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def by_shape(module: nn.Module, *shape: int) -> list[Array]:
    """In the order in which the module has them."""
    return [values for values in parameters(module).values() if values.shape == shape]


def normalised(x: Array, gain: Array, bias: Array) -> Array:
    """Batch normalisation over all that is not a channel."""
    vectors = x.reshape(-1, x.shape[-1])
    return (x - vectors.mean(0)) / np.sqrt(vectors.var(0) + 1e-5) * gain + bias


def assert_gives(module: nn.Module, x: Array, expected: Array) -> None:
    torch.testing.assert_close(module(tensor(x)), tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_conv_norm(relu: bool) -> None:
    x, module = drawn(0, B, T, H, W, NARROW, mean=1), built(ConvNorm(relu=relu))
    (weight,), (gain, bias) = by_shape(module, C, NARROW), by_shape(module, C)
    expected = normalised(x @ weight.T, gain, bias)
    assert (expected < 0).any()
    assert_gives(module, x, np.maximum(expected, 0) if relu else expected)


def test_conv_norm_by_what_it_has_seen() -> None:
    x, module = drawn(0, B, T, H, W, NARROW, mean=1), built(ConvNorm())
    (weight,), (gain, bias) = by_shape(module, C, NARROW), by_shape(module, C)
    module(tensor(x))
    module.eval()
    y = x @ weight.T
    vectors = y.reshape(-1, C)
    # A tenth of the way from mean 0 and variance 1 to what was seen.
    mean, variance = 0.1 * vectors.mean(0), 0.9 + 0.1 * vectors.var(0, ddof=1)
    assert_gives(module, x, (y - mean) / np.sqrt(variance + 1e-5) * gain + bias)


@pytest.mark.parametrize("initial", [0.5, 5.0])
def test_variational_begins_at_its_initial_variance(initial: float) -> None:
    module = Variational(initial=initial).build(NARROW, C, None)
    variance = module(tensor(drawn(0, B, T, H, W, NARROW)))[..., C:]
    torch.testing.assert_close(variance, torch.full((B, T, H, W, C), initial), rtol=1e-4, atol=0)


def test_variational() -> None:
    x, module = drawn(0, B, T, H, W, NARROW), built(Variational())
    first, second, third = (v for v in parameters(module).values() if v.ndim == 2)
    (scale,) = by_shape(module, C)
    mean = np.maximum(np.maximum(x @ first.T, 0) @ second.T, 0) @ third.T
    variance = np.log1p(np.exp(scale)) + 1e-5
    assert len(np.unique(variance.round(3))) > 1
    assert_gives(module, x, np.concatenate([mean, np.broadcast_to(variance, mean.shape)], axis=-1))


def test_the_variance_of_vid_is_learned() -> None:
    module = VID(variance=2).pairs()[0].connector
    assert module is not None
    torch.manual_seed(0)
    connector = module.build(NARROW, C, None)
    x, t = drawn(0, B, T, H, W, NARROW), drawn(1, B, T, H, W, C) * SCALES
    given = connector(tensor(x))
    student = Outputs(None, {"frames": FeatureMap(given, torch.arange(T).expand(B, T) + 0.5)})
    VID(variance=2)(student, of_map(t), NO_LABEL).backward()
    (scale,) = (p for p in connector.parameters() if p.shape == (C,))
    # d/dv of (e^2 / v + log v) / 2, times dv/dtheta = sigmoid(theta) where softplus(theta) + 1e-5 = 2.
    error = (t - given[..., :C].detach().double().numpy()) ** 2
    by_variance = 0.5 * (1 / 2 - error / 4).mean((0, 1, 2, 3)) / C
    expected = by_variance * (1 - math.exp(-(2 - 1e-5)))
    torch.testing.assert_close(scale.grad, tensor(expected), rtol=1e-4, atol=1e-6)


def conv3(x: Array, weight: Array, bias: Array) -> Array:
    """3 x 3 with zeros around, of (B, T, H, W, C)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.zeros((*x.shape[:-1], len(bias))) + bias
    for i in range(3):
        for j in range(3):
            found += padded[:, :, i : i + x.shape[2], j : j + x.shape[3]] @ weight[:, :, i, j].T
    return found


def test_masked_generation_with_nothing_hidden() -> None:
    x, module = drawn(0, B, T, H, W, NARROW), built(MaskedGeneration(share=0))
    (align,), (align_bias, first_bias, second_bias) = by_shape(module, C, NARROW), by_shape(module, C)
    first, second = by_shape(module, C, C, 3, 3)
    hidden = np.maximum(conv3(x @ align.T + align_bias, first, first_bias), 0)
    assert_gives(module, x, conv3(hidden, second, second_bias))


def test_masked_generation_hides_channels_and_rescales_none() -> None:
    # Convolutions that hand on what they are given show what is hidden.
    width = 400
    torch.manual_seed(0)
    module = MaskedGeneration(share=0.15).build(width, width, None)
    for parameter in module.parameters():
        if parameter.ndim == 4:
            nn.init.dirac_(parameter)
        else:
            nn.init.zeros_(parameter)
    x = np.abs(drawn(0, B, 2, 2, 2, width)) + 0.1
    with torch.no_grad():
        given, again = module(tensor(x)).numpy(), module(tensor(x)).numpy()
    hidden = given == 0
    np.testing.assert_allclose(given[~hidden], x[~hidden], rtol=1e-6)
    shares = hidden[:, 0, 0, 0].mean(1)
    assert ((shares > 0.08) & (shares < 0.23)).all()
    # The same channels at all times and places of a clip, others in another clip, and others the next time.
    assert (hidden == hidden[:, :1, :1, :1]).all()
    assert (hidden[0] != hidden[1]).any()
    assert (hidden != (again == 0)).any()


def test_through_head() -> None:
    x, module = drawn(0, B, T, H, W, NARROW, mean=1), built(ThroughHead())
    # The regressor's weight, gain and bias learn; the head does not.
    assert sorted(p.shape for p in module.parameters() if p.requires_grad) == [(C,), (C,), (C, NARROW)]
    (weight,), (gain, bias) = by_shape(module, C, NARROW), by_shape(module, C)
    vectors = np.maximum(normalised(x @ weight.T, gain, bias), 0)
    answers = vectors @ HEAD.weight.double().numpy().T + HEAD.bias.double().numpy()
    assert_gives(module, x, np.concatenate([vectors, answers], axis=-1))


def test_other_views_of_a_clip_are_no_counter_examples() -> None:
    s, t, bank = drawn(0, 3, C), drawn(1, 3, C), drawn(2, 4, C)
    unknown = torch.full((3,), UNLABELLED)

    def value(teacher_clips: list[int], kept_clips: list[int]) -> float:
        features = of_clip(t).features
        extra = {
            BANK: tensor(bank),
            BANK_FILLED: torch.ones(4, dtype=torch.bool),
            BANK_LABEL: torch.full((4,), UNLABELLED),
            BANK_CLIP: torch.tensor(kept_clips),
        }
        teacher = Outputs(None, features, None, extra, torch.tensor(teacher_clips))
        return valued(CRD(), of_clip(s), teacher, unknown)

    e_s, e_t, e_b = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (s, t, bank))
    within, kept = e_s @ e_t.T / 0.07, e_s @ e_b.T / 0.07
    # Clips 0 and 2 are views of one; so is the second of the queue; the fourth is a view of clip 1.
    within[0, 2] = within[2, 0] = kept[0, 1] = kept[2, 1] = kept[1, 3] = -np.inf
    forward = [-np.log(softmax(np.concatenate([within[b], kept[b]]))[b]) for b in range(3)]
    backward = [-np.log(softmax(within[:, b])[b]) for b in range(3)]
    assert value([7, 8, 7], [1, 7, 2, 8]) == near((np.mean(forward) + np.mean(backward)) / 2)


@pytest.mark.parametrize("apart", [0.0, 1e-5, 1e-4])
def test_clips_that_are_nearly_the_same_have_no_wild_angles_or_distances(apart: float) -> None:
    # Vectors as wide as a network's, far from the origin, two of them alike but for rounding.
    s, t = tensor(drawn(0, 16, 512, mean=3)), tensor(drawn(1, 16, 512))
    s[1] = s[0] + apart * tensor(drawn(2, 1, 512))[0]
    plain = tensor(drawn(0, 16, 512, mean=3))
    for loss in (RKDAngle(), RKDDistance()):
        sizes = []
        for one in (plain, s):
            leaf = one.clone().requires_grad_()
            value = loss(of_clip_tensor(leaf), of_clip_tensor(t), torch.zeros(16))
            value.backward()
            assert leaf.grad is not None
            sizes.append((value.item(), leaf.grad.abs().max().item()))
        assert sizes[1][0] < 10 * sizes[0][0] + 0.1
        assert sizes[1][1] < 20 * sizes[0][1]


def of_clip_tensor(values: torch.Tensor) -> Outputs:
    return Outputs(None, {"clip": FeatureMap(values[:, None, None, None], torch.zeros(len(values), 1))})
