import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videokd.clips.sampling import dense_frames, dense_starts, joint_frames, segment_frames
from videokd.contracts import Dense, InputSpec, Sampling, Segments

COUNTS = st.integers(1, 400)
FRAMES = st.integers(1, 32)
STRIDES = st.integers(1, 8)


def spec(frames: int, sampling: Sampling) -> InputSpec:
    return InputSpec(frames=frames, size=32, sampling=sampling)


def test_dense_frames_match_the_picture() -> None:
    assert dense_frames(10, frames=3, stride=2, start=1).tolist() == [1, 3, 5]


def test_a_short_video_repeats_its_last_frame() -> None:
    assert dense_frames(4, frames=4, stride=2, start=0).tolist() == [0, 2, 3, 3]


def test_segment_frames_match_the_picture() -> None:
    assert segment_frames(12, frames=3, offsets=np.full(3, 0.5)).tolist() == [2, 6, 10]


def test_centred_dense_clip_is_in_the_middle() -> None:
    # 100 frames, a window of 16 x 4 = 64: starts 0..36, the middle one is 18.
    chosen = joint_frames(100, {"student": spec(16, Dense(stride=4))}, rng=None)["student"]
    assert chosen.tolist() == list(range(18, 82, 4))


def test_an_empty_video_has_no_clip() -> None:
    with pytest.raises(ValueError, match="video of 0"):
        dense_frames(0, frames=3, stride=2, start=1)


@given(COUNTS, FRAMES, STRIDES, st.integers(0, 10_000) | st.none())
def test_dense_frames_are_in_range_and_exactly_spaced(count: int, frames: int, stride: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    chosen = joint_frames(count, {"student": spec(frames, Dense(stride=stride))}, rng=rng)["student"]
    assert chosen.shape == (frames,)
    assert 0 <= chosen.min() <= chosen.max() < count
    if count >= frames * stride:
        assert set(np.diff(chosen)) <= {stride}


@given(COUNTS, FRAMES, st.integers(0, 10_000) | st.none())
def test_segment_frames_are_one_of_each_segment(count: int, frames: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    chosen = joint_frames(count, {"student": spec(frames, Segments())}, rng=rng)["student"]
    starts = np.arange(frames) * count / frames
    assert np.all(chosen >= np.floor(starts))
    assert np.all(chosen <= starts + count / frames)
    assert chosen.max() < count


@given(COUNTS, st.sampled_from([1, 2, 4]), STRIDES, st.integers(0, 10_000))
def test_a_student_of_the_same_window_sees_frames_of_its_teacher(
    count: int, ratio: int, stride: int, seed: int
) -> None:
    specs = {"student": spec(16 // ratio, Dense(stride=stride * ratio)), "teacher": spec(16, Dense(stride=stride))}
    chosen = joint_frames(count, specs, rng=np.random.default_rng(seed))
    assert chosen["student"].tolist() == chosen["teacher"][::ratio].tolist()


def test_a_narrower_window_sits_in_the_middle_of_the_wider_on_its_grid() -> None:
    specs = {"student": spec(4, Dense(stride=4)), "teacher": spec(16, Dense(stride=4))}
    chosen = joint_frames(64, specs, rng=None)
    assert chosen["student"].tolist() == [24, 28, 32, 36]
    assert set(chosen["student"]) <= set(chosen["teacher"])


@given(COUNTS, FRAMES, STRIDES, FRAMES, STRIDES, st.integers(0, 10_000))
def test_a_window_that_fits_never_runs_over_the_end_of_a_short_video(
    count: int, frames: int, stride: int, wide_frames: int, wide_stride: int, seed: int
) -> None:
    specs = {"student": spec(frames, Dense(stride=stride)), "teacher": spec(wide_frames, Dense(stride=wide_stride))}
    chosen = joint_frames(count, specs, rng=np.random.default_rng(seed))["student"]
    if count >= frames * stride:
        assert set(np.diff(chosen)) <= {stride}


@given(COUNTS, st.integers(0, 10_000))
def test_a_segment_student_sees_frames_of_its_teacher(count: int, seed: int) -> None:
    specs = {"student": spec(4, Segments()), "teacher": spec(8, Segments())}
    chosen = joint_frames(count, specs, rng=np.random.default_rng(seed))
    assert set(chosen["student"]) <= set(chosen["teacher"])
    assert chosen["student"].tolist() == sorted(chosen["student"].tolist())


def test_both_halves_of_a_pair_of_segments_are_picked() -> None:
    specs = {"student": spec(2, Segments()), "teacher": spec(4, Segments())}
    rng = np.random.default_rng(0)
    picked = {
        tuple(np.isin(c["teacher"], c["student"])) for c in (joint_frames(400, specs, rng=rng) for _ in range(60))
    }
    assert len(picked) == 4


def test_every_start_is_drawn() -> None:
    rng = np.random.default_rng(0)
    specs = {"student": spec(4, Dense(stride=2))}
    starts = [int(joint_frames(12, specs, rng=rng)["student"][0]) for _ in range(200)]
    assert set(starts) == set(range(dense_starts(12, frames=4, stride=2))) == {0, 1, 2, 3, 4}
