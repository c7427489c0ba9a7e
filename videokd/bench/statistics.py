"""Medians, tails and ratios of noisy timings, with intervals.

Intervals are percentiles of the bootstrap: rounds are drawn again with replacement, and the median is taken of each
draw. No distribution is assumed, and a seed makes the same figures of the same rounds. Of fewer rounds than
`fewest_rounds` even the extremes miss the median more often than an interval may: theirs is too narrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videokd.bench.results import Measurement, Round

Clock = Literal["cpu", "wall", "device"]
"""Which seconds count: what the process computed, what passed by, or what the GPU's stream took."""

CLOCK_NAMES: Mapping[Clock, str] = {"cpu": "process CPU", "wall": "wall", "device": "GPU events"}
"""As tables, pages and messages name them."""

YARDSTICK_POWER = 0.75
"""Of the yardstick's seconds, that a contender's are divided by. What makes the machine slow does not slow both alike,
and the yardstick has noise of its own: 1 corrects too much and 0 nothing. Measured, see DECISIONS."""
FEWEST_CALLS: Mapping[Literal["p50", "p95", "p99"], int] = {"p50": 1, "p95": 20, "p99": 100}
"""That a percentile of single calls needs."""
_RESAMPLED = 4000
_RESAMPLED_AT_MOST = 20_000
_FEWEST_CALLS, _STILL_FASTER = 6, 0.03


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval: of 95 %, where nothing else is said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a measurement comes to."""

    clips_per_second: float
    """All clips over all seconds of wall time."""
    seconds: Interval
    """Of a call, by the clock that counts: median over rounds."""
    p50: float
    """Of the wall seconds of single calls; so are p95 and p99. NaN where single calls were not timed."""
    p95: float
    """NaN of fewer than 20 calls."""
    p99: float
    """NaN of fewer than 100 calls."""
    spread: float
    """Half the middle half of the rounds' wall seconds a call (the median absolute deviation), over their median: what
    else the machine did is in it, as it is in the rate."""
    calls: int


def seconds_a_call(rounds: Sequence[Round], clock: Clock) -> NDArray[np.float64]:
    """Of each round.

    Raises:
        ValueError: if the clock is the GPU's and a round was not timed by it.
    """
    seconds = [getattr(one, clock) for one in rounds]
    if None in seconds:
        raise ValueError(f"the clock is {clock!r}, by which round {seconds.index(None) + 1} was not timed")
    return np.asarray(np.array(seconds, dtype=np.float64) / [one.calls for one in rounds])


def relative(rounds: Sequence[Round], clock: Clock) -> NDArray[np.float64]:
    """Each round's seconds a call over `YARDSTICK_POWER` of the seconds of its yardstick.

    A shared machine is faster in one hour than in the next. Most of what slows the contender slows the yardstick too
    and cancels, so runs of different hours are compared by their code.

    Raises:
        ValueError: if a round has no yardstick, or none by this clock.
    """
    yardsticks = [one.yardstick for one in rounds]
    if None in yardsticks:
        raise ValueError(f"round {yardsticks.index(None) + 1} has no yardstick")
    return np.asarray(seconds_a_call(rounds, clock) / np.array(yardsticks, dtype=np.float64) ** YARDSTICK_POWER)


def summary(measurement: Measurement, clock: Clock) -> Summary:
    """Of a measurement that has rounds.

    Raises:
        ValueError: if it has none.
    """
    rounds = measurement.rounds
    if not rounds:
        raise ValueError(f"{measurement.name!r} has no rounds: {measurement.error or 'nothing was timed'}")
    seconds = seconds_a_call(rounds, clock)
    median = float(np.median(seconds))
    calls = sum(one.calls for one in rounds)
    each = measurement.latencies
    p50, p95, p99 = (
        float(np.percentile(each, share)) if len(each) >= fewest else math.nan
        for share, fewest in zip((50, 95, 99), FEWEST_CALLS.values(), strict=True)
    )
    walls = seconds_a_call(rounds, "wall")
    middle = float(np.median(walls))
    return Summary(
        clips_per_second=measurement.clips * calls / sum(one.wall for one in rounds),
        seconds=_interval(median, _medians(seconds, np.random.default_rng(0)), 0.95),
        p50=p50,
        p95=p95,
        p99=p99,
        spread=float(np.median(np.abs(walls - middle))) / middle,
        calls=calls,
    )


def ratio(one: Sequence[float], other: Sequence[float]) -> Interval:
    """one / other of interleaved rounds: the median of the rounds' ratios, which a drift of the machine does not
    touch, with a bootstrap interval over rounds."""
    if len(one) != len(other) or not len(one):
        raise ValueError(f"a ratio is of as many rounds of both, and of one at least, got {len(one)} and {len(other)}")
    ratios = np.asarray(one, dtype=np.float64) / np.asarray(other, dtype=np.float64)
    return _interval(float(np.median(ratios)), _medians(ratios, np.random.default_rng(0)), 0.95)


def unpaired_ratio(new: ArrayLike, old: ArrayLike, *, level: float = 0.95) -> Interval:
    """new / old of two runs whose rounds have nothing to do with each other: the ratio of their medians, with a
    bootstrap interval that draws the rounds of both again."""
    of_new, of_old = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if not of_new.size or not of_old.size:
        raise ValueError(f"a ratio is of one round of both at least, got {of_new.size} and {of_old.size}")
    # Tails of narrow levels need more draws: ten beyond each end, as far as time allows.
    draws = min(max(_RESAMPLED, round(20 / (1 - level))), _RESAMPLED_AT_MOST)
    rng = np.random.default_rng(0)
    ratios = _medians(of_new, rng, draws) / _medians(of_old, rng, draws)
    return _interval(float(np.median(of_new) / np.median(of_old)), ratios, level)


def fewest_rounds(level: float = 0.95) -> int:
    """That an interval of the level needs: the median lies between the smallest and the largest of n rounds with
    probability 1 - 2 / 2^n."""
    return math.ceil(math.log2(2 / (1 - level)))


def is_stable(seconds: Sequence[float]) -> bool:
    """Whether the last calls have stopped becoming faster: the median of the last third lies at most 3 % under that of
    the third before it. Of fewer than six calls nothing can be said, which counts as no."""
    if len(seconds) < _FEWEST_CALLS:
        return False
    third = len(seconds) // 3
    before, last = np.median(seconds[-2 * third : -third]), np.median(seconds[-third:])
    return bool(last >= (1 - _STILL_FASTER) * before)


def _medians(values: NDArray[np.float64], rng: np.random.Generator, draws: int = _RESAMPLED) -> NDArray[np.float64]:
    """Of bootstrap draws: (draws,)."""
    return np.asarray(np.median(rng.choice(values, size=(draws, len(values))), axis=1))


def _interval(value: float, resampled: NDArray[np.float64], level: float) -> Interval:
    outside = 100 * (1 - level) / 2
    low, high = np.percentile(resampled, [outside, 100 - outside])
    return Interval(value=value, low=float(low), high=float(high))
