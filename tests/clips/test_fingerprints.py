import numpy as np
import pytest
import torch

from videokd.clips.fingerprints import MOMENTS, SIDE, Fingerprint, grey_cells, moments, near_duplicates


def of_noise(seed: int, *, deviation: float = 40.0) -> Fingerprint:
    noise = np.random.default_rng(seed).normal(128, deviation, (MOMENTS, SIDE, SIDE))
    return noise.clip(0, 255).astype(np.uint8)


def encoded_again(cells: Fingerprint, by: int) -> Fingerprint:
    change = np.random.default_rng(1).integers(-by, by + 1, cells.shape)
    return (cells.astype(int) + change).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("frames", "expected"), [(8, [1, 3, 5, 7]), (4, [0, 1, 2, 3]), (1, [0, 0, 0, 0])])
def test_moments_are_the_middles_of_four_parts(frames: int, expected: list[int]) -> None:
    assert moments(frames) == expected


def test_cells_do_not_depend_on_the_size_of_the_picture() -> None:
    ramp = torch.linspace(0, 255, 48)[None].expand(36, 48)
    larger = torch.nn.functional.interpolate(ramp[None, None], size=(144, 192), mode="bilinear")[0, 0]
    assert np.abs(grey_cells(ramp).astype(int) - grey_cells(larger).astype(int)).max() <= 2


def test_copies_in_other_splits_are_found_and_no_others() -> None:
    one, other = of_noise(0), of_noise(1)
    prints = [one, other, encoded_again(one, 12), encoded_again(other, 12), of_noise(2)]
    splits = ["train", "train", "test", "train", "test"]
    assert list(near_duplicates(prints, splits)) == [(0, 2)]


def test_one_moving_object_tells_clips_of_a_static_camera_apart() -> None:
    first = of_noise(0)
    second = first.copy()
    second[2, 5, 5] = np.uint8((int(second[2, 5, 5]) + 128) % 256)
    assert list(near_duplicates([first, second], ["train", "test"])) == []


def test_black_and_white_clips_are_no_copies_of_each_other() -> None:
    flat = [np.full((MOMENTS, SIDE, SIDE), level, np.uint8) for level in (0, 1, 255, 254)]
    assert list(near_duplicates(flat, ["train", "test"] * 2)) == []


def test_dark_clips_need_smaller_differences() -> None:
    dark = of_noise(0, deviation=5)
    assert list(near_duplicates([dark, of_noise(1, deviation=5)], ["train", "test"])) == []
    assert list(near_duplicates([dark, encoded_again(dark, 2)], ["train", "test"])) == [(0, 1)]


def test_no_videos_have_no_copies() -> None:
    assert list(near_duplicates([], [])) == []
