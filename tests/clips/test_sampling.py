import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from videokd.clips.sampling import (
    dense_frames,
    dense_starts,
    joint_frames,
    segment_frames,
    timed_frames,
    uniform_frames,
)
from videokd.clips.views import ViewGrid
from videokd.contracts import Dense, InputSpec, Sampling, Segments, Short, Timed, Uniform

COUNTS = st.integers(1, 400)
FRAMES = st.integers(1, 32)
STRIDES = st.integers(1, 8)


def spec(frames: int, sampling: Sampling) -> InputSpec:
    return InputSpec(frames=frames, size=32, sampling=sampling)


def steady(num_frames: int, *, fps: float = 30.0) -> NDArray[np.float64]:
    """Times of a constant frame rate; the first frame is not at 0."""
    return 0.5 + np.arange(num_frames) / fps


@st.composite
def uneven(draw: st.DrawFn) -> NDArray[np.float64]:
    """Times of a variable frame rate."""
    gaps = draw(st.lists(st.floats(0.005, 0.5), min_size=1, max_size=120))
    return np.cumsum(gaps)


def test_dense_frames_match_the_picture() -> None:
    assert dense_frames(10, frames=3, stride=2, start=1).tolist() == [1, 3, 5]
    assert dense_frames(4, frames=3, stride=2, start=1).tolist() == [1, 3, 3]
    assert dense_frames(4, frames=3, stride=2, start=1, short="wrap").tolist() == [1, 3, 1]
    with pytest.raises(ValueError, match="3 frames at stride 2 need 5 frames, the video has 4"):
        dense_frames(4, frames=3, stride=2, start=1, short="error")


def test_timed_frames_match_the_picture() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.5, 0.6])
    assert timed_frames(times, frames=3, fps=5, start=0.1).tolist() == [1, 2, 3]


def test_uniform_frames_match_the_picture() -> None:
    assert uniform_frames(9, frames=3).tolist() == [0, 4, 8]
    assert uniform_frames(9, frames=1).tolist() == [4]
    assert uniform_frames(2, frames=4).tolist() == [0, 0, 1, 1]  # 0, 1/3, 2/3, 1, rounded


def test_timed_frames_of_a_short_video() -> None:
    times = steady(30)  # a second
    assert timed_frames(times, frames=4, fps=2, start=0).tolist() == [0, 15, 29, 29]
    assert timed_frames(times, frames=4, fps=2, start=0, short="wrap").tolist() == [0, 15, 0, 15]
    with pytest.raises(ValueError, match=r"4 frames at 2 a second last 1\.5 s, the video 1 s"):
        timed_frames(times, frames=4, fps=2, start=0, short="error")


@pytest.mark.parametrize("fps", [10.0, 25.0, 29.97, 60.0])
def test_timed_clips_show_the_same_seconds_whatever_the_frame_rate(fps: float) -> None:
    times = steady(round(4 * fps), fps=fps)
    chosen = joint_frames(times, {"student": spec(8, Timed(fps=4))}, rng=None)["student"]
    seconds = times[chosen] - times[0]
    # 4 s, a window of 2 s: from 1 s on, every 0.25 s; the frame shown then began at most a frame earlier.
    late = 1 + np.arange(8) / 4 - seconds
    assert (late > -3e-3).all()
    assert (late < 1 / fps + 3e-3).all()


@given(uneven(), FRAMES, st.floats(0.5, 40), st.sampled_from(["repeat", "wrap"]), st.integers(0, 10_000) | st.none())
def test_timed_frames_are_those_shown_at_their_moment(
    times: NDArray[np.float64], frames: int, fps: float, short: Short, seed: int | None
) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    chosen = joint_frames(times, {"student": spec(frames, Timed(fps=fps, short=short))}, rng=rng)["student"]
    assert chosen.shape == (frames,)
    assert 0 <= chosen.min() <= chosen.max() < len(times)
    start = timed_frames(times, frames=frames, fps=fps, start=0.0, short=short)
    asked = np.arange(frames) / fps + 1e-6
    if short == "wrap":
        asked %= (times[-1] - times[0]) * len(times) / (len(times) - 1) if len(times) > 1 else 1.0
    for number, second in zip(start, asked):
        # Slow but obvious: the last frame that has begun.
        begun = [n for n, time in enumerate(times - times[0]) if time <= second]
        assert number == begun[-1]


@given(COUNTS, FRAMES)
def test_uniform_frames_go_from_the_first_to_the_last_in_equal_steps(count: int, frames: int) -> None:
    chosen = joint_frames(steady(count), {"student": spec(frames, Uniform())}, rng=None)["student"]
    assert chosen.shape == (frames,)
    if frames > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert np.ptp(np.diff(chosen)) <= 1
        # Mirrored, but for halves that are rounded up.
        assert np.abs(chosen + chosen[::-1] - (count - 1)).max() <= 1


@given(COUNTS, FRAMES, STRIDES, st.integers(0, 60))
def test_a_wrapped_clip_goes_round(count: int, frames: int, stride: int, start: int) -> None:
    chosen = dense_frames(count, frames=frames, stride=stride, start=start % count, short="wrap")
    assert chosen.tolist() == [(start % count + stride * n) % count for n in range(frames)]


def test_test_views_go_from_the_start_to_the_end() -> None:
    specs = {"student": spec(16, Dense(stride=4))}
    starts = [int(joint_frames(steady(100), specs, rng=None, position=p / 9)["student"][0]) for p in range(10)]
    # 37 starts, 0 to 36, in nine steps of 4.
    assert starts == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    segments = {"student": spec(3, Segments())}
    offsets = [ViewGrid(temporal=2, spatial=3).offset(view) for view in (0, 5)]
    assert offsets == [0.25, 0.75]
    parts = [joint_frames(steady(12), segments, rng=None, offset=offset)["student"].tolist() for offset in offsets]
    assert parts == [[1, 5, 9], [3, 7, 11]]


@given(COUNTS, st.floats(0, 1), st.sampled_from([Dense(stride=3), Timed(fps=7.5), Segments(), Uniform()]))
def test_test_views_are_deterministic_and_in_range(count: int, position: float, sampling: Sampling) -> None:
    specs = {"student": spec(8, sampling)}
    one, two = (joint_frames(steady(count), specs, rng=None, position=position)["student"] for _ in range(2))
    assert one.tolist() == two.tolist()
    assert 0 <= one.min() <= one.max() < count
    assert (np.diff(one) >= 0).all()


@given(st.integers(120, 400), st.integers(0, 10_000))
def test_a_timed_student_lies_within_its_dense_teacher(count: int, seed: int) -> None:
    specs = {"student": spec(8, Timed(fps=8)), "teacher": spec(16, Dense(stride=4))}  # 1 s within 2.1 s
    times = steady(count)
    chosen = joint_frames(times, specs, rng=np.random.default_rng(seed))
    student, teacher = times[chosen["student"]], times[chosen["teacher"]]
    assert teacher[0] - 1 / 30 <= student[0] <= student[-1] <= teacher[-1] + 4 / 30
    # In its middle, to a frame of the teacher's.
    assert abs((student[0] + student[-1]) - (teacher[0] + teacher[-1])) / 2 <= 0.1 + 4 / 30


@given(COUNTS, st.sampled_from([1, 2, 4]), st.sampled_from([2.0, 4.0, 8.0]), st.integers(0, 10_000))
def test_a_timed_student_of_the_same_window_sees_frames_of_its_teacher(
    count: int, ratio: int, fps: float, seed: int
) -> None:
    specs = {"student": spec(16 // ratio, Timed(fps=fps / ratio)), "teacher": spec(16, Timed(fps=fps))}
    chosen = joint_frames(steady(count), specs, rng=np.random.default_rng(seed))
    assert chosen["student"].tolist() == chosen["teacher"][::ratio].tolist()


def test_a_short_video_repeats_its_last_frame() -> None:
    assert dense_frames(4, frames=4, stride=2, start=0).tolist() == [0, 2, 3, 3]


def test_segment_frames_match_the_picture() -> None:
    assert segment_frames(12, frames=3, offsets=np.full(3, 0.5)).tolist() == [2, 6, 10]


def test_centred_dense_clip_is_in_the_middle() -> None:
    # 100 frames, a window of 16 x 4 = 64: starts 0..36, the middle one is 18.
    chosen = joint_frames(steady(100), {"student": spec(16, Dense(stride=4))}, rng=None)["student"]
    assert chosen.tolist() == list(range(18, 82, 4))


def test_an_empty_video_has_no_clip() -> None:
    with pytest.raises(ValueError, match="video of 0"):
        dense_frames(0, frames=3, stride=2, start=1)


@given(COUNTS, FRAMES, STRIDES, st.integers(0, 10_000) | st.none())
def test_dense_frames_are_in_range_and_exactly_spaced(count: int, frames: int, stride: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    chosen = joint_frames(steady(count), {"student": spec(frames, Dense(stride=stride))}, rng=rng)["student"]
    assert chosen.shape == (frames,)
    assert 0 <= chosen.min() <= chosen.max() < count
    if count >= frames * stride:
        assert set(np.diff(chosen)) <= {stride}


@given(COUNTS, FRAMES, st.integers(0, 10_000) | st.none())
def test_segment_frames_are_one_of_each_segment(count: int, frames: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    chosen = joint_frames(steady(count), {"student": spec(frames, Segments())}, rng=rng)["student"]
    starts = np.arange(frames) * count / frames
    assert np.all(chosen >= np.floor(starts))
    assert np.all(chosen <= starts + count / frames)
    assert chosen.max() < count


@given(COUNTS, st.sampled_from([1, 2, 4]), STRIDES, st.integers(0, 10_000))
def test_a_student_of_the_same_window_sees_frames_of_its_teacher(
    count: int, ratio: int, stride: int, seed: int
) -> None:
    specs = {"student": spec(16 // ratio, Dense(stride=stride * ratio)), "teacher": spec(16, Dense(stride=stride))}
    chosen = joint_frames(steady(count), specs, rng=np.random.default_rng(seed))
    assert chosen["student"].tolist() == chosen["teacher"][::ratio].tolist()


def test_a_window_that_has_no_place_in_the_very_middle_sits_on_the_grid() -> None:
    # 16 x 4 frames and 5 x 4: the middle would begin at frame 22, and the grid has 20.
    specs = {"student": spec(5, Dense(stride=4)), "teacher": spec(16, Dense(stride=4))}
    assert joint_frames(steady(64), specs, rng=None)["student"].tolist() == [20, 24, 28, 32, 36]


def test_a_narrower_window_sits_in_the_middle_of_the_wider_on_its_grid() -> None:
    specs = {"student": spec(4, Dense(stride=4)), "teacher": spec(16, Dense(stride=4))}
    chosen = joint_frames(steady(64), specs, rng=None)
    assert chosen["student"].tolist() == [24, 28, 32, 36]
    assert set(chosen["student"]) <= set(chosen["teacher"])


@given(COUNTS, FRAMES, STRIDES, FRAMES, STRIDES, st.integers(0, 10_000))
def test_a_window_that_fits_never_runs_over_the_end_of_a_short_video(
    count: int, frames: int, stride: int, wide_frames: int, wide_stride: int, seed: int
) -> None:
    specs = {"student": spec(frames, Dense(stride=stride)), "teacher": spec(wide_frames, Dense(stride=wide_stride))}
    chosen = joint_frames(steady(count), specs, rng=np.random.default_rng(seed))["student"]
    if count >= frames * stride:
        assert set(np.diff(chosen)) <= {stride}


@given(COUNTS, st.integers(0, 10_000))
def test_a_segment_student_sees_frames_of_its_teacher(count: int, seed: int) -> None:
    specs = {"student": spec(4, Segments()), "teacher": spec(8, Segments())}
    chosen = joint_frames(steady(count), specs, rng=np.random.default_rng(seed))
    assert set(chosen["student"]) <= set(chosen["teacher"])
    assert chosen["student"].tolist() == sorted(chosen["student"].tolist())


def test_both_halves_of_a_pair_of_segments_are_picked() -> None:
    specs = {"student": spec(2, Segments()), "teacher": spec(4, Segments())}
    rng = np.random.default_rng(0)
    picked = {
        tuple(np.isin(c["teacher"], c["student"]))
        for c in (joint_frames(steady(400), specs, rng=rng) for _ in range(60))
    }
    assert len(picked) == 4


def test_every_start_is_drawn() -> None:
    rng = np.random.default_rng(0)
    specs = {"student": spec(4, Dense(stride=2))}
    starts = [int(joint_frames(steady(12), specs, rng=rng)["student"][0]) for _ in range(200)]
    assert set(starts) == set(range(dense_starts(12, frames=4, stride=2))) == {0, 1, 2, 3, 4}


def test_an_image_teacher_sees_every_kth_of_the_students_frames() -> None:
    student = InputSpec(frames=8, size=32, sampling=Dense(stride=2))
    every_fourth = InputSpec(frames=2, size=32, sampling=Dense(stride=8))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = joint_frames(np.arange(100) / 25, {"student": student, "teacher": every_fourth}, rng=rng)
        assert found["teacher"].tolist() == found["student"][::4].tolist()
