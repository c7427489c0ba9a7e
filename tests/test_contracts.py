import pytest
import torch

from videokd.config import from_plain, to_plain
from videokd.contracts import (
    UNLABELLED,
    Clip,
    Dense,
    FeatureMap,
    InputSpec,
    Sampling,
    Segments,
    Timed,
    Uniform,
    labelled,
)


def test_a_clip_of_another_layout_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 8, 8\)"):
        Clip(torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="float32"):
        Clip(torch.zeros(1, 4, 3, 8, 8), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="times must be"):
        Clip(torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 5))


def test_a_clip_in_another_order_keeps_its_times() -> None:
    frames = torch.arange(3, dtype=torch.uint8)[None, :, None, None, None].expand(1, 3, 3, 2, 2)
    clip = Clip(frames, torch.tensor([[0.0, 1.0, 2.0]])).at(torch.tensor([[2, 0, 1]]))
    assert clip.frames[0, :, 0, 0, 0].tolist() == [2, 0, 1]
    assert clip.times.tolist() == [[0.0, 1.0, 2.0]]


def test_a_feature_map_is_pooled_by_means() -> None:
    values = torch.arange(8.0).view(1, 2, 2, 2, 1)
    feature_map = FeatureMap(values, torch.tensor([[0.0, 1.0]]))
    assert feature_map.pooled("map") is feature_map
    assert feature_map.pooled("frames").values.flatten().tolist() == [1.5, 5.5]
    clip = feature_map.pooled("clip")
    assert (clip.values.flatten().tolist(), clip.times.tolist()) == ([3.5], [[0.5]])


def test_a_feature_map_without_its_times_is_refused() -> None:
    with pytest.raises(ValueError, match="with times"):
        FeatureMap(torch.zeros(1, 2, 2, 2, 1), torch.zeros(1, 3))


@pytest.mark.parametrize(
    "wrong", [{"frames": 0, "size": 4}, {"frames": 1, "size": 0}, {"frames": 1, "size": 4, "crop_fraction": 1.5}]
)
def test_an_impossible_input_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        InputSpec(**wrong)  # type: ignore[arg-type]


def test_short_side_is_the_size_before_the_crop() -> None:
    assert InputSpec(frames=1, size=112, crop_fraction=0.875).short_side == 128
    with pytest.raises(ValueError, match="stride"):
        Dense(stride=0)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_an_impossible_rate_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="fps must be above 0"):
        Timed(fps=fps)


@pytest.mark.parametrize(
    "sampling", [Dense(stride=4, short="wrap"), Timed(fps=7.5, short="error"), Segments(), Uniform()]
)
def test_an_input_comes_back_from_plain_values(sampling: Sampling) -> None:
    spec = InputSpec(frames=8, size=32, sampling=sampling)
    assert from_plain(to_plain(spec), trust=()) == spec


def test_inputs_saved_before_short_videos_had_a_choice_repeat_the_last_frame() -> None:
    saved = {"type": "videokd.contracts:Dense", "stride": 4}
    assert from_plain(saved, trust=()) == Dense(stride=4, short="repeat")


def test_labelled_clips_are_told_by_number_or_shares() -> None:
    assert labelled(torch.tensor([0, UNLABELLED, 3])).tolist() == [True, False, True]
    # The second row is a clip of several labels that has none of these two classes.
    shares = torch.tensor([[0.7, 0.3], [0.0, 0.0], [float(UNLABELLED)] * 2])
    assert labelled(shares).tolist() == [True, True, False]
