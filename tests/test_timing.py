import pytest

from videokd.timing import bound_by, duration


def test_the_largest_part_of_a_step_bounds_it_and_comes_with_advice() -> None:
    # 0.6 / (0.6 + 0.1 + 0.3) and so on.
    assert bound_by(0.6, 0.1, 0.3).startswith("a step of 1.0 s is 60% waiting for clips, 10% teacher, 30% student; the")
    assert "data.workers" in bound_by(0.6, 0.1, 0.3)
    assert "videokd label" in bound_by(0.1, 0.6, 0.3)
    assert "bf16" in bound_by(0.1, 0.3, 0.6)


def test_a_run_without_a_teacher_is_not_told_about_one() -> None:
    assert bound_by(0.0, 0.0, 0.02).startswith("a step of 20 ms is 0% waiting for clips, 100% student; the student")
    assert "teacher" not in bound_by(0.02, 0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (89, "89 s"), (600, "10 min"), (3 * 3600, "3.0 h"), (30 * 3600, "30 h"), (50 * 3600, "2.1 days")],
)
def test_durations_are_said_as_a_reader_would(seconds: float, said: str) -> None:
    assert duration(seconds) == said
