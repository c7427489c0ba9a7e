"""What was found of the models of each seed, and the means over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videokd.evaluate import gap_recovered
from videokd.inside.cka import TapSimilarity
from videokd.inside.probes import FACTORS, Probed
from videokd.inside.saliency import TOP, Agreement, Method

TEACHER = "teacher"
"""The name that no arm has."""


@dataclass
class Round:
    """What is found of one seed's models."""

    clips: int = 0
    taps: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by the model's name
    cka: dict[str, TapSimilarity] = field(default_factory=dict)  # by arm
    method: Method = "grad-cam"
    cam_taps: dict[str, str | None] = field(default_factory=dict)  # of the models that have saliency
    agreement: dict[str, list[Agreement]] = field(default_factory=dict)
    on_object: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    area: list[NDArray[np.float32]] = field(default_factory=list)
    probes: dict[str, dict[str, Probed]] = field(default_factory=dict)  # factor -> name


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """ "cka", "saliency" and "probes", as `look` has them."""
    return {"cka": _cka(rounds), "saliency": _saliency(rounds), "probes": _probes(rounds)}


def _cka(rounds: Sequence[Round]) -> dict[str, Any] | None:
    arms = list(dict.fromkeys(chain.from_iterable(one.cka for one in rounds)))
    if not arms:
        return None
    rows = list(dict.fromkeys(tap for one in rounds for arm in one.cka for tap in one.taps[arm]))
    columns = list(dict.fromkeys(tap for one in rounds if one.cka for tap in one.taps[TEACHER]))

    def entry(arm: str, row: str, column: str) -> float | None:
        return _mean(
            one.cka[arm].value(row, column)
            for one in rounds
            if arm in one.cka and row in one.taps[arm] and column in one.taps[TEACHER]
        )

    return {
        "taps": {"student": rows, "teacher": columns},
        "arms": {arm: [[entry(arm, row, column) for column in columns] for row in rows] for arm in arms},
        "clips": min(similarity.clips for one in rounds for similarity in one.cka.values()),
    }


def _saliency(rounds: Sequence[Round]) -> dict[str, Any] | None:
    names = list(dict.fromkeys(chain.from_iterable(one.cam_taps for one in rounds)))
    arms = [name for name in names if name != TEACHER]
    if not arms:
        return None
    methods = {one.method for one in rounds}
    if len(methods) > 1:
        raise ValueError("only some of the models have maps for Grad-CAM: take gradient x input for all")

    def agreed(arm: str) -> dict[str, float | None] | None:
        parts = [part for one in rounds for part in one.agreement.get(arm, ())]
        if not parts:
            return None
        return {
            "spearman": _mean(chain.from_iterable(part.spearman for part in parts)),
            "iou": _mean(chain.from_iterable(part.iou for part in parts)),
        }

    area = _mean(chain.from_iterable(chain.from_iterable(one.area for one in rounds)))
    shares = {
        name: _mean(chain.from_iterable(chain.from_iterable(one.on_object.get(name, ()) for one in rounds)))
        for name in names
    }
    return {
        "method": methods.pop(),
        "taps": {name: tap for one in rounds for name, tap in one.cam_taps.items()},
        "agreement": {arm: agreed(arm) for arm in arms},
        "chance_iou": TOP / (2 - TOP),
        "on_object": None if area is None else shares,
        "object_area": area,
    }


def _probes(rounds: Sequence[Round]) -> dict[str, Any] | None:
    factors = list(dict.fromkeys(chain.from_iterable(one.probes for one in rounds)))
    return {
        factor: _probe(factor, [one.probes[factor] for one in rounds if factor in one.probes]) for factor in factors
    } or None


def _probe(name: str, rounds: Sequence[Mapping[str, Probed]]) -> dict[str, Any]:
    """One factor's probes, over seeds and folds."""
    names = list(dict.fromkeys(chain.from_iterable(rounds)))
    first = rounds[0][names[0]]

    def recovered(arm: str) -> float | None:
        trios = [
            (one[TEACHER].above, one["alone"].above, one[arm].above)
            for one in rounds
            if {TEACHER, "alone", arm} <= set(one)
        ]
        if not trios:
            return None
        teacher, alone, distilled = zip(*trios)
        found = gap_recovered(teacher=float(np.mean(teacher)), alone=alone, distilled=distilled)
        return None if found is None else found.mean

    return {
        "score": next(factor.score for factor in FACTORS if factor.name == name),
        "chance": _mean(probed.chance for one in rounds for probed in one.values()),
        **{who: _mean(one[who].score for one in rounds if who in one) for who in names},
        "each": {who: [one[who].score for one in rounds if who in one] for who in names},
        "gap_recovered": {arm: recovered(arm) for arm in names if arm not in (TEACHER, "alone")},
        "fitted": first.fitted,
        "scored": first.scored,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None
