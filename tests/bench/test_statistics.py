"""Medians and ratios by hand, and how often their intervals hold the truth on made-up rounds."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from made_up_rounds import rounds

from videokd.bench.results import Measurement, Round
from videokd.bench.statistics import (
    Clock,
    Interval,
    fewest_rounds,
    is_stable,
    ratio,
    relative,
    seconds_a_call,
    summary,
    unpaired_ratio,
)

SIMULATIONS = 300


def turn(*, calls: int = 1, wall: float = 1.0, cpu: float = 1.0, yardstick: float = 1.0) -> Round:
    return Round(calls=calls, wall=wall, cpu=cpu, device=cpu / 4, yardstick=yardstick)


ROUNDS = [turn(calls=2, wall=4, cpu=6, yardstick=1.5), turn(calls=4, wall=4, cpu=4, yardstick=0.5)]


@pytest.mark.parametrize(
    ("clock", "seconds"),
    [("wall", [2, 1]), ("cpu", [3, 1]), ("device", [0.75, 0.25])],  # over 2 and 4 calls
)
def test_each_clock_counts_its_own_seconds_a_call(clock: Clock, seconds: list[float]) -> None:
    assert seconds_a_call(ROUNDS, clock).tolist() == seconds


def test_relative_seconds_are_over_a_power_of_the_yardstick_of_the_same_round() -> None:
    assert relative(ROUNDS, "cpu").tolist() == pytest.approx([3 / 1.5**0.75, 1 / 0.5**0.75])


def test_rounds_without_the_gpus_clock_are_refused_by_number() -> None:
    cpu_only = Round(calls=1, wall=1, cpu=1, device=None, yardstick=1)
    with pytest.raises(ValueError, match=r"'device', by which round 3 was not timed"):
        seconds_a_call([*ROUNDS, cpu_only], "device")


def test_summary_matches_hand_computed_values() -> None:
    measured = Measurement(
        party="student",
        stage="inference",
        variant="eager",
        clips=8,
        rounds=[
            turn(calls=2, wall=wall, cpu=2 * cpu) for cpu, wall in zip((1.0, 2, 3, 5, 9), (2, 4, 6, 4, 4), strict=True)
        ],
        latencies=[float(one) for one in range(101)],
    )
    found = summary(measured, "cpu")
    assert found.clips_per_second == 4  # 8 clips, 10 calls, 20 s of wall time
    assert found.seconds.value == 3
    assert found.spread == 0  # of 1 2 3 2 2 s a call: distances 1 0 1 0 0
    assert (found.p50, found.p95, found.p99) == (50, 95, 99)
    assert found.calls == 10
    assert found.seconds.low == 1  # 5.8 % of draws of five hold the smallest three times or more
    assert found.seconds.high == 9


def test_spread_is_of_the_wall_as_the_rate_is() -> None:
    rounds = [turn(wall=wall, cpu=1) for wall in (1.0, 2, 3, 5, 9)]
    found = summary(Measurement(party="", stage="load", variant="bare", clips=1, rounds=rounds), "cpu")
    assert found.spread == pytest.approx(2 / 3)  # distances 2 1 0 2 6 from the median 3
    assert found.seconds.value == 1


@pytest.mark.parametrize(("calls", "known"), [(19, 1), (20, 2), (99, 2), (100, 3)])
def test_tails_are_of_calls_enough_to_have_them(calls: int, known: int) -> None:
    measured = Measurement(
        party="", stage="load", variant="bare", clips=1, rounds=ROUNDS, latencies=[float(one) for one in range(calls)]
    )
    found = summary(measured, "wall")
    assert np.isfinite([found.p50, found.p95, found.p99]).tolist() == [True] * known + [False] * (3 - known)


def test_summary_without_single_calls_has_no_tails() -> None:
    found = summary(Measurement(party="", stage="decode", variant="bare", clips=1, rounds=ROUNDS), "wall")
    assert found.seconds.value == 1.5
    assert np.isnan([found.p50, found.p95, found.p99]).all()


def test_summary_of_a_failure_says_why_there_is_no_figure() -> None:
    failed = Measurement(party="student", stage="inference", variant="bf16", clips=8, error="out of memory")
    with pytest.raises(ValueError, match=r"'student · inference · bf16 · 8 clips' has no rounds: out of memory"):
        summary(failed, "wall")


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # 2/1, 9/3, 40/10: the ratio of the medians would be 9/3.
    found = ratio([2, 40, 9, 8], [1, 10, 3, 4])
    assert found.value == 2.5  # between 2, 2, 3, 4


def test_ratio_is_untouched_by_a_drift_of_both() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.uniform(1, 1.1, 15), rng.uniform(1, 1.1, 15)
    drift = np.linspace(1, 4, 15)
    slow, quick = ratio((one * drift).tolist(), (other * drift).tolist()), ratio(one.tolist(), other.tolist())
    assert [slow.value, slow.low, slow.high] == pytest.approx([quick.value, quick.low, quick.high], rel=1e-12)


def test_unpaired_ratio_is_of_the_medians() -> None:
    assert unpaired_ratio([2, 40, 9], [1, 10, 3, 5, 2]).value == 3  # 9 / 3


def test_equal_rounds_leave_no_doubt() -> None:
    assert ratio([3.0] * 6, [2.0] * 6) == Interval(value=1.5, low=1.5, high=1.5)
    assert unpaired_ratio([3.0] * 6, [2.0] * 7) == Interval(value=1.5, low=1.5, high=1.5)


@pytest.mark.parametrize("of", [ratio, unpaired_ratio])
def test_a_ratio_of_nothing_is_refused(of: Callable[..., Interval]) -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        of([], [])


def test_a_ratio_of_rounds_that_are_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        ratio([1, 2], [1, 2, 3])


def test_intervals_hold_the_true_ratio_as_often_as_they_say() -> None:
    """Of two contenders whose rounds share a drift; the noise has outliers."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(SIMULATIONS):
        pace = np.exp(np.cumsum(rng.normal(0, 0.05, 21)))
        one = seconds_a_call(rounds(rng, number=21, slower=1.3, pace=pace), "cpu")
        other = seconds_a_call(rounds(rng, number=21, pace=pace), "cpu")
        found = ratio(one.tolist(), other.tolist())
        held += found.low <= 1.3 <= found.high
    assert 0.90 <= held / SIMULATIONS <= 0.99


@pytest.mark.parametrize(("level", "least", "most"), [(0.5, 0.42, 0.6), (0.95, 0.90, 0.99), (0.995, 0.98, 1.0)])
def test_intervals_of_two_runs_hold_the_true_ratio_as_often_as_they_say(
    level: float, least: float, most: float
) -> None:
    """Of runs at other hours, with other numbers of rounds, over their yardsticks; medians are of gamma noise too."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(SIMULATIONS):
        new, old = 1.2 * rng.gamma(40, 1 / 40, size=25), rng.gamma(40, 1 / 40, size=15)
        found = unpaired_ratio(new, old, level=level)
        held += found.low <= 1.2 <= found.high
    assert least <= held / SIMULATIONS <= most


def test_an_hour_in_which_the_machine_is_slow_is_taken_off_by_the_yardstick() -> None:
    rng = np.random.default_rng(3)
    old, new = rounds(rng), rounds(rng, pace=np.linspace(1.2, 1.6, 20))
    bare = unpaired_ratio(seconds_a_call(new, "cpu"), seconds_a_call(old, "cpu"))
    assert bare.low > 1.2
    over_yardstick = unpaired_ratio(relative(new, "cpu"), relative(old, "cpu"))
    assert over_yardstick.low < 1 < over_yardstick.high
    assert over_yardstick.value == pytest.approx(1, abs=0.02)


def test_the_same_rounds_give_the_same_interval() -> None:
    rng = np.random.default_rng(4)
    one, other = rng.uniform(1, 2, 20), rng.uniform(1, 2, 20)
    assert unpaired_ratio(one, other) == unpaired_ratio(one, other)
    assert ratio(one.tolist(), other.tolist()) == ratio(one.tolist(), other.tolist())


@pytest.mark.parametrize(("level", "fewest"), [(0.95, 6), (0.9375, 5), (0.99, 8)])
def test_fewest_rounds_have_the_median_between_their_extremes(level: float, fewest: int) -> None:
    assert fewest_rounds(level) == fewest  # 1 - 2/64 = 0.969, 1 - 2/32 = 0.9375, 1 - 2/256 = 0.992


@pytest.mark.parametrize(
    ("seconds", "stable"),
    [
        ([9.0, 1.0, 1.0, 1.0, 1.0], False),  # too few
        ([9.0, 1.0, 1.0, 1.0, 1.0, 1.0], True),
        ([5.0, 5.0, 2.0, 2.0, 1.93, 1.93], False),  # 3.5 % faster
        ([5.0, 5.0, 2.0, 2.0, 1.95, 1.95], True),  # 2.5 %
        ([1.0, 1.0, 1.0, 1.0, 1.5, 1.5], True),  # slower is not faster
        ([5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 9.0, 1.0], True),  # one call is no median
        ([0.5, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0], False),  # of seven, the first is let go
    ],
)
def test_warm_up_ends_when_calls_stop_becoming_faster(seconds: list[float], stable: bool) -> None:
    assert is_stable(seconds) is stable


def test_seconds_over_no_yardstick_are_refused() -> None:
    with pytest.raises(ValueError, match="round 2 has no yardstick"):
        relative([ROUNDS[0], replace(ROUNDS[1], yardstick=None)], "cpu")
