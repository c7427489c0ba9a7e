"""Rounds of a noisy, shared machine, without a machine."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from videokd.bench.results import Round
from videokd.bench.statistics import YARDSTICK_POWER

CALLS, SECONDS, YARDSTICK = 10, 0.02, 0.01


def rounds(
    rng: np.random.Generator,
    *,
    number: int = 20,
    slower: float = 1.0,
    noise: float = 0.02,
    outliers: float = 0.05,
    pace: Sequence[float] | NDArray[np.float64] | float = 1.0,
) -> list[Round]:
    """Log-normal noise of contender and yardstick apart, outliers that take half as long again, and a pace of the
    machine (of each round, or one for all) that slows both: the yardstick more, as it was measured."""
    paces = np.broadcast_to(pace, number)
    work = CALLS * SECONDS * slower * paces * _noisy(rng, number, noise, outliers)
    yardstick = YARDSTICK * paces ** (1 / YARDSTICK_POWER) * _noisy(rng, number, noise, outliers)
    return [
        Round(calls=CALLS, wall=2 * one, cpu=one, device=None, yardstick=fixed, waited=0.0)
        for one, fixed in zip(work.tolist(), yardstick.tolist(), strict=True)
    ]


def _noisy(rng: np.random.Generator, number: int, noise: float, outliers: float) -> NDArray[np.float64]:
    return np.exp(rng.normal(0, noise, number)) * np.where(rng.random(number) < outliers, 1.5, 1.0)
