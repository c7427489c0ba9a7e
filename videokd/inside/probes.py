"""What can be read from a network's features by a linear map: the factors that drew a video, such as its speed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from videokd.clips.manifest import Video
from videokd.clips.synthetic import SIZE

STRENGTHS = tuple(10.0**power for power in np.arange(-5, 4.5, 0.5))
"""Ridge strengths that are tried, per clip."""

_QUIET = 0.1
"""Features that vary less than this share of the others' deviation are scaled as if they varied so much."""

LEAST_CLIPS = 12
"""With fewer clips to fit on, or to score on, a factor is left out."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ridge:
    """A linear map from features (N, C) to targets (N, D)."""

    weight: _Floats  # (C, D)
    bias: _Floats  # (D,)
    strength: float

    def __call__(self, features: _Floats) -> _Floats:
        """(N, D)."""
        predicted: _Floats = features @ self.weight + self.bias
        return predicted


def ridge(features: _Floats, targets: _Floats, *, strengths: Sequence[float] = STRENGTHS) -> Ridge:
    """The ridge regression (N, C) -> (N, D), of the strength that predicts clips best that were left out one by one.

    Features are brought to unit deviation first, but those that hardly vary beside the others. The strength is that of
    the sum of squared errors plus N x strength x |weight|^2, one for all targets; the error of each clip by a fit
    without it is exact and costs no other fit [Allen 1974].
    """
    clips = len(features)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # A channel that is silent but for a clip or two must not become the loudest on others.
    deviation = np.maximum(deviation, _QUIET * np.sqrt(np.mean(deviation**2)))
    deviation = np.where(deviation > 0, deviation, np.inf)
    left, lengths, right = np.linalg.svd((features - mean) / deviation, full_matrices=False)
    middle = targets.mean(axis=0)
    turned = left.T @ (targets - middle)  # (R, D)

    def left_out(strength: float) -> float:
        kept = lengths**2 / (lengths**2 + clips * strength)
        residuals = targets - middle - left @ (kept[:, None] * turned)
        own = 1 / clips + (left**2) @ kept  # how much each clip has to say in its own prediction
        return float(((residuals / (1 - own).clip(min=1e-9)[:, None]) ** 2).sum())

    best = min(strengths, key=left_out)
    weight = right.T @ ((lengths / (lengths**2 + clips * best))[:, None] * turned) / deviation[:, None]
    return Ridge(weight, middle - mean @ weight, best)


@dataclass(frozen=True)
class Factor:
    """Something that is known of how a video was drawn."""

    name: str
    kind: Literal["number", "class"]
    of: Callable[[Video], tuple[float, ...] | str | None]
    """Numbers, or a class's name; None of a video that has no such thing."""

    @property
    def score(self) -> str:
        """What a probe of it is scored by."""
        return "R^2" if self.kind == "number" else "accuracy"


def _speed(video: Video) -> tuple[float, ...] | None:
    """Share of the motion's full speed."""
    speed = (video.factors or {}).get("speed")
    return None if speed is None else (float(speed),)


def _heading(video: Video) -> tuple[float, ...] | None:
    """Of what slides: cosine and sine, so that nothing jumps where a turn is full."""
    heading = (video.factors or {}).get("heading")
    return None if heading is None else (math.cos(heading), math.sin(heading))


def _position(video: Video) -> tuple[float, ...] | None:
    """The middle of the movers, x and y in frame widths, half-way through the video."""
    movers = (video.factors or {}).get("movers")
    if not movers:
        return None
    centres = np.array([mover["centre"][len(mover["centre"]) // 2] for mover in movers], float)
    return tuple((centres.mean(axis=0) / SIZE).tolist())


def _shape(video: Video) -> str | None:
    """Of a single mover."""
    movers = (video.factors or {}).get("movers")
    return str(movers[0]["shape"]) if movers and len(movers) == 1 else None


FACTORS = (
    Factor("speed", "number", _speed),
    Factor("heading", "number", _heading),
    Factor("position", "number", _position),
    Factor("shape", "class", _shape),
)
"""Of the synthetic set."""


@dataclass(frozen=True)
class Probed:
    """How well a factor could be read from features of clips that the probe was not fitted on."""

    score: float
    """R^2, the mean over the factor's numbers: 0 for always saying their mean. Of classes, the share right."""
    chance: float
    """What a probe that knows nothing gets: 0, or the share of the class that is the most frequent to fit on."""
    fitted: int
    scored: int

    @property
    def above(self) -> float:
        """The score, or chance where it is worse: a probe that misleads has read no less than nothing."""
        return max(self.score, self.chance)


def probe(
    factor: Factor, fit: tuple[_Floats, Sequence[Video]], score: tuple[_Floats, Sequence[Video]]
) -> Probed | None:
    """A factor read by ridge regression from features (N, C), fitted on some videos and scored on others.

    None where either has fewer than `LEAST_CLIPS` videos of which the factor is known, or it never varies.
    """
    (features, known), (other_features, other_known) = _rows(factor, *fit), _rows(factor, *score)
    if min(len(known), len(other_known)) < LEAST_CLIPS:
        return None
    counts = {"fitted": len(known), "scored": len(other_known)}
    if factor.kind == "class":
        classes, numbers, sizes = np.unique(np.array(known, dtype=str), return_inverse=True, return_counts=True)
        if len(classes) < 2:
            return None
        predicted = classes[ridge(features, np.eye(len(classes))[numbers])(other_features).argmax(axis=1)]
        right = np.array(other_known, dtype=str)
        chance = float((classes[sizes.argmax()] == right).mean())
        return Probed(float((predicted == right).mean()), chance, **counts)
    targets, others = np.array(known, float), np.array(other_known, float)
    spread = ((others - others.mean(axis=0)) ** 2).sum(axis=0)
    if not spread.all():
        return None
    errors = ((others - ridge(features, targets)(other_features)) ** 2).sum(axis=0)
    return Probed(float((1 - errors / spread).mean()), 0.0, **counts)


def _rows(factor: Factor, features: _Floats, videos: Sequence[Video]) -> tuple[_Floats, list[tuple[float, ...] | str]]:
    """The clips of which the factor is known."""
    found = [(row, value) for row, video in enumerate(videos) if (value := factor.of(video)) is not None]
    return features[[row for row, _ in found]], [value for _, value in found]
