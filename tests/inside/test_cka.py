from itertools import permutations

import pytest
import torch
from torch import Tensor

from videokd.contracts import FeatureMap
from videokd.inside.cka import TapSimilarity, gram, pooled, unbiased_hsic


def features(clips: int, channels: int, seed: int) -> Tensor:
    return torch.randn(clips, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(one: Tensor, other: Tensor, *, batch: int | None = None) -> float:
    similarity = TapSimilarity()
    for part, other_part in zip(one.split(batch or len(one)), other.split(batch or len(one))):
        similarity.update({"a": part}, {"b": other_part})
    found = similarity.value("a", "b")
    assert found is not None
    return found


def biased_cka(one: Tensor, other: Tensor) -> float:
    """As it is defined without a correction: |Y'X|^2 / (|X'X| |Y'Y|) of centred features."""
    one, other = one - one.mean(dim=0), other - other.mean(dim=0)
    return float((other.T @ one).norm() ** 2 / ((one.T @ one).norm() * (other.T @ other).norm()))


def test_hsic_is_the_average_over_all_choices_of_four_clips() -> None:
    kernel, other = features(5, 3, 0) @ features(5, 3, 0).T, features(5, 2, 1) @ features(5, 2, 1).T
    # [Song et al. 2012, eq. 4]: over ordered choices of distinct i, j, q, r.
    terms = [kernel[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in permutations(range(5), 4)]
    assert unbiased_hsic(kernel, other) == pytest.approx(float(sum(terms) / len(terms)))


def test_hsic_matches_a_hand_computed_value() -> None:
    # One pair of clips is alike in both kernels, and nothing else: sum K L = 2, sum K = sum L = 2, rows of K and L
    # are (1, 1, 0, 0), so K 1 . L 1 = 2: (2 + 2 x 2 / (3 x 2) - 2 / 2 x 2) / (4 x 1) = 1 / 6.
    kernel = torch.zeros(4, 4, dtype=torch.float64)
    kernel[0, 1] = kernel[1, 0] = 1
    assert unbiased_hsic(kernel, kernel) == pytest.approx(1 / 6)
    # Whatever is on the diagonal.
    assert unbiased_hsic(kernel + torch.eye(4), kernel) == pytest.approx(1 / 6)


def test_equal_features_are_alike_and_so_are_turned_scaled_and_shifted_ones() -> None:
    one = features(12, 6, 0)
    turn = torch.linalg.qr(features(6, 6, 1)).Q
    assert cka(one, one) == pytest.approx(1)
    assert cka(one, 3.7 * one @ turn + 1000) == pytest.approx(1)
    other = features(12, 6, 2) + one
    assert cka(one, other) == pytest.approx(cka(2 * one @ turn - 50, 0.1 * other @ turn.T))
    # Not to any linear map: stretched features are others.
    assert cka(one, one * torch.tensor([30.0, 1, 1, 1, 1, 1])) < 0.9


def test_features_without_anything_in_common_are_at_0_on_average_where_the_biased_one_is_not() -> None:
    found = [(features(16, 40, 2 * seed), features(16, 30, 2 * seed + 1)) for seed in range(100)]
    assert sum(biased_cka(*pair) for pair in found) / 100 > 0.5
    each = torch.tensor([cka(*pair) for pair in found])
    assert abs(each.mean()) < 3 * each.std() / 10
    assert abs(each.mean()) < 0.03
    assert (each < 0).any()


def test_batches_say_what_all_clips_at_once_say() -> None:
    one = features(4096, 8, 0)
    other = one @ features(8, 8, 1) + 2 * features(4096, 8, 2)
    # With as many clips the biased one is right too.
    assert cka(one, other) == pytest.approx(biased_cka(one, other), abs=0.01)
    assert cka(one, other, batch=8) == pytest.approx(cka(one, other), abs=0.02)


def test_a_short_batch_is_left_out_and_not_counted() -> None:
    one, other = features(11, 3, 0), features(11, 3, 1)
    similarity = TapSimilarity()
    for rows in (slice(0, 8), slice(8, 11)):
        similarity.update({"a": one[rows]}, {"b": other[rows]})
    assert similarity.clips == 8
    assert similarity.value("a", "b") == pytest.approx(cka(one[:8], other[:8]))
    with pytest.raises(ValueError, match="at least 4 clips, got 3"):
        unbiased_hsic(gram(one[:3]), gram(other[:3]))


def test_a_batch_counts_by_its_clips() -> None:
    one, other = features(12, 3, 0), features(12, 3, 1)
    parts = [(gram(one[rows]), gram(other[rows])) for rows in (slice(0, 8), slice(8, 12))]

    def both(left: int, right: int) -> float:
        return sum(n * unbiased_hsic(part[left], part[right]) for n, part in zip((8, 4), parts))

    assert cka(one, other, batch=8) == pytest.approx(both(0, 1) / (both(0, 0) * both(1, 1)) ** 0.5)


def test_a_tap_that_says_the_same_of_every_clip_has_no_similarity() -> None:
    similarity = TapSimilarity()
    similarity.update({"same": torch.ones(8, 3), "a": features(8, 3, 0)}, {"b": features(8, 3, 1)})
    assert similarity.value("same", "b") is None
    assert similarity.value("a", "b") is not None
    assert TapSimilarity().value("a", "b") is None


def test_maps_are_averaged_over_space_and_time() -> None:
    values = torch.arange(2 * 2 * 1 * 3 * 1, dtype=torch.float32).view(2, 2, 1, 3, 1)
    found = pooled({"a": FeatureMap(values, torch.zeros(2, 2))})["a"]
    assert found.tolist() == [[2.5], [8.5]]
