"""Medians, tails and ratios of noisy timings, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from videokd.bench.results import Measurement, Round

Clock = Literal["cpu", "wall", "device"]
"""Which seconds count: what the process computed, what passed by, or what the GPU's stream took."""

_RESAMPLED = 4000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval."""

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
    """Of the wall seconds of single calls; so are p95 and p99."""
    p95: float
    p99: float
    spread: float
    """Half the middle half of the rounds' seconds a call (the median absolute deviation), over their median."""
    calls: int


def seconds_a_call(rounds: Sequence[Round], clock: Clock) -> NDArray[np.float64]:
    """Of each round."""
    raise NotImplementedError


def summary(measurement: Measurement, clock: Clock) -> Summary:
    """Of a measurement that has rounds."""
    raise NotImplementedError


def ratio(one: Sequence[float], other: Sequence[float]) -> Interval:
    """one / other of interleaved rounds: the median of the rounds' ratios, which a drift of the machine does not
    touch, with a bootstrap interval over rounds."""
    raise NotImplementedError
