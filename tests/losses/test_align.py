from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videokd.contracts import Dense, FeatureMap, Pace, Sampling, Segments, Timed, Uniform
from videokd.losses import align
from videokd.losses.align import align_in_time, overlap_weights


def times(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def feature_map(values: torch.Tensor, at: torch.Tensor) -> FeatureMap:
    """(B, T, C) as a map of one place."""
    return FeatureMap(values[:, :, None, None, :], at)


# source centres, target centres, weights by hand
CASES = [
    # Equal grids: the identity.
    (times(0, 1, 2), times(0, 1, 2), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    # Two into one: extents [0, 4) over [0, 1), [1, 2), ...
    (times(0.5, 1.5, 2.5, 3.5), times(1, 3), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]),
    # Three into two: extents [0, 3) and [3, 6) over [0, 2), [2, 4), [4, 6).
    (times(1, 3, 5), times(1.5, 4.5), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]),
    # Uneven steps: extents [-0.5, 0.5), [0.5, 2.5), [2.5, 5.5) into the extents [-1, 2), [2, 5).
    (times(0, 1, 4), times(0.5, 3.5), [[1 / 2.5, 1.5 / 2.5, 0], [0, 0.5 / 3, 2.5 / 3]]),
    # A single target step takes all, by the length of each.
    (times(0, 1, 2, 3), times(7), [[0.25, 0.25, 0.25, 0.25]]),
    # A single source step serves all.
    (times(2), times(0, 1), [[1], [1]]),
]


@pytest.mark.parametrize(("source", "target", "expected"), CASES)
def test_weights_match_the_overlap_computed_by_hand(
    source: torch.Tensor, target: torch.Tensor, expected: list[list[float]]
) -> None:
    weights, shared = overlap_weights(source, target)
    torch.testing.assert_close(weights[0], torch.tensor(expected, dtype=torch.float32))
    assert shared.tolist() == [[1.0] * target.shape[1]]


def test_a_step_that_the_other_never_saw_is_not_shared() -> None:
    weights, shared = overlap_weights(times(10, 11), times(0, 10.5, 21))
    assert shared.tolist() == [[0.0, 1.0, 0.0]]
    torch.testing.assert_close(weights[0], torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]))


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 5), st.floats(-3, 3))
def test_rows_sum_to_one_where_shared_and_to_zero_elsewhere(
    sources: int, targets: int, spacing: float, offset: float
) -> None:
    weights, shared = overlap_weights(
        torch.arange(sources).float()[None], (torch.arange(targets) * spacing + offset).float()[None]
    )
    torch.testing.assert_close(weights.sum(dim=2), shared)


def test_the_student_is_never_upsampled() -> None:
    student = feature_map(torch.randn(1, 4, 3), times(1, 3, 5, 7))
    teacher = feature_map(torch.arange(8.0).view(1, 8, 1), torch.arange(8.0)[None] + 0.5)
    aligned = align_in_time(student, teacher)
    assert torch.equal(aligned.student, student.values[:, :, 0, 0])
    assert aligned.teacher.flatten().tolist() == [0.5, 2.5, 4.5, 6.5]


def test_a_finer_student_is_averaged_onto_the_teacher() -> None:
    student = feature_map(torch.arange(8.0).view(1, 8, 1), torch.arange(8.0)[None] + 0.5)
    teacher = feature_map(torch.randn(1, 4, 3), times(1, 3, 5, 7))
    aligned = align_in_time(student, teacher)
    assert torch.equal(aligned.teacher, teacher.values[:, :, 0, 0])
    assert aligned.student.flatten().tolist() == [0.5, 2.5, 4.5, 6.5]


def test_a_sparse_student_over_the_video_meets_a_dense_teacher_where_they_overlap() -> None:
    # The teacher saw seconds 4 to 6 only; the student a frame every 2 seconds.
    student = feature_map(torch.randn(1, 5, 1), times(1, 3, 5, 7, 9))
    teacher = feature_map(torch.arange(8.0).view(1, 8, 1), (4 + torch.arange(8.0) / 4 + 1 / 8)[None])
    aligned = align_in_time(student, teacher)
    assert aligned.shared.tolist() == [[0, 0, 1, 0, 0]]
    assert aligned.teacher[0, 2].tolist() == [3.5]


def test_space_is_averaged_away() -> None:
    student = FeatureMap(torch.ones(2, 4, 3, 3, 5), torch.arange(4.0).expand(2, 4))
    teacher = FeatureMap(torch.ones(2, 4, 7, 7, 6), torch.arange(4.0).expand(2, 4))
    aligned = align_in_time(student, teacher)
    assert (aligned.student.shape, aligned.teacher.shape) == ((2, 4, 5), (2, 4, 6))


def test_grids_of_the_same_times_are_found_once_and_let_go_of() -> None:
    for _ in range(20):
        student, teacher = (
            feature_map(torch.randn(1, 4, 3), times(1, 3, 5, 7)),
            feature_map(torch.randn(1, 8, 3), times(*range(8))),
        )
        first = align_in_time(student, teacher)
        again = align_in_time(student, teacher)
        assert first.shared is again.shared
    assert len(align._RECENT) <= 4


def test_other_times_of_the_same_shape_are_other_grids() -> None:
    student = feature_map(torch.randn(1, 2, 3), times(1, 3))
    values = torch.arange(4.0).view(1, 4, 1)
    early, late = (feature_map(values, times(*(start + one for one in range(4)))) for start in (0.5, 1.5))
    assert align_in_time(student, early).teacher.flatten().tolist() == [0.5, 2.5]
    assert align_in_time(student, late).teacher.flatten().tolist() == [0.0, 1.5]


FRAMES, VIDEO_FPS, VIDEO_SECONDS = 16, 10, 20


def at_pace(sampling: Sampling, *, taken: int = 1, start: float = 0.0) -> FeatureMap:
    """A map of every `taken` frames of a clip, in a video of 10 frames a second that lasts 20 s."""
    centres = tuple(taken * (step + 0.5) - 0.5 for step in range(FRAMES // taken))
    if isinstance(sampling, Dense):
        seconds = sampling.stride / VIDEO_FPS
    elif isinstance(sampling, Timed):
        seconds = 1 / sampling.fps
    else:
        seconds = VIDEO_SECONDS / (FRAMES - isinstance(sampling, Uniform))
    at = start + torch.tensor([centres]) * seconds
    return FeatureMap(torch.zeros(1, len(centres), 1, 1, 1), at, Pace(sampling, FRAMES, centres))


@pytest.mark.parametrize(
    "samplings",
    [
        [Dense(stride=1), Dense(stride=2), Dense(stride=4)],
        [Timed(fps=10), Timed(fps=5), Timed(fps=2.5)],
        [Segments(), Uniform()],
    ],
    ids=["dense", "timed", "whole"],
)
def test_what_the_sampling_tells_of_two_grids_is_what_their_times_tell(samplings: list[Sampling]) -> None:
    for one, other in product(product(samplings, (1, 2, 4, 8, 16)), repeat=2):
        # Windows of one length are the same one; a shorter one begins later.
        student, teacher = (
            at_pace(each[0], taken=each[1], start=samplings.index(each[0]) / 3) for each in (one, other)
        )
        unread = [FeatureMap(each.values, each.times) for each in (student, teacher)]
        assert align._compared(student, teacher) == align._compared(*unread), (one, other)


def test_samplings_that_do_not_tell_are_read() -> None:
    # 16 frames of a video of 20 s are farther apart than those of a clip of 8 s, and than those of one of 32 s are not.
    sparse, dense = at_pace(Segments()), at_pace(Dense(stride=5), start=6.0)
    assert align._compared(sparse, dense) == (False, True)
    assert align._compared(sparse, at_pace(Dense(stride=20))) == (False, False)
