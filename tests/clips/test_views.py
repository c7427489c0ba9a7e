import numpy as np
import pytest
import torch

from videokd.clips.views import Augment, Box, Placement, RandomResizedCrop, centred, drawn, view


def coordinates(height: int, width: int) -> torch.Tensor:
    """Frames whose red is the row and whose green is the column."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8)[None, :].expand(height, width)
    return torch.stack([rows, columns, torch.zeros_like(rows)])[None].expand(2, 3, height, width)


def test_the_test_view_is_the_middle_square() -> None:
    assert centred(height=128, width=170, crop_fraction=0.875) == Placement(Box(8, 29, 112, 112), flipped=False)


def test_a_crop_of_the_party_size_is_cut_out_and_not_resampled() -> None:
    seen = view(coordinates(36, 40), Placement(Box(2, 5, 32, 32), flipped=False), size=32)
    assert seen[0, 0, :, 0].tolist() == list(range(2, 34))
    assert seen[0, 1, 0, :].tolist() == list(range(5, 37))


def test_parties_of_two_sizes_see_the_same_place() -> None:
    placement = Placement(Box(10, 20, 64, 64), flipped=False)
    large = view(coordinates(100, 120), placement, size=64).float()
    small = view(coordinates(100, 120), placement, size=32).float()
    # Each small pixel is the mean of the four that it covers; the borders have fewer neighbours.
    expected = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(small[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1, rtol=0)


def test_a_flip_mirrors_columns() -> None:
    seen = view(coordinates(4, 4), Placement(Box(0, 0, 4, 4), flipped=True), size=4)
    assert seen[0, 1, 0].tolist() == [3, 2, 1, 0]


def test_random_crops_reach_every_place_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    boxes = [drawn(Augment(), height=36, width=36, crop_fraction=32 / 36, rng=rng).box for _ in range(300)]
    assert {(box.top, box.left) for box in boxes} == {(top, left) for top in range(5) for left in range(5)}
    assert {(box.height, box.width) for box in boxes} == {(32, 32)}


def test_random_resized_crops_keep_to_area_and_shape() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(crop=RandomResizedCrop(scale=(0.4, 0.6), ratio=(0.8, 1.25)), flip=0.5)
    placements = [drawn(augment, height=90, width=120, crop_fraction=1, rng=rng) for _ in range(300)]
    for box, _ in ((placement.box, placement.flipped) for placement in placements):
        assert 0 <= box.top <= 90 - box.height
        assert 0 <= box.left <= 120 - box.width
        assert 0.38 < box.height * box.width / (90 * 120) < 0.62
        assert 0.75 < box.width / box.height < 1.3
    assert 100 < sum(placement.flipped for placement in placements) < 200


def test_flip_is_off_by_default() -> None:
    rng = np.random.default_rng(0)
    assert not any(drawn(Augment(), height=8, width=8, crop_fraction=1, rng=rng).flipped for _ in range(99))


@pytest.mark.parametrize("wrong", [{"scale": (0.6, 0.4)}, {"scale": (0.0, 1.0)}, {"ratio": (-1.0, 1.0)}])
def test_an_impossible_crop_is_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="scale must rise"):
        RandomResizedCrop(**wrong)
    with pytest.raises(ValueError, match="probability"):
        Augment(flip=2.0)
