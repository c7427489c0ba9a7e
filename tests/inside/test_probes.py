import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score

from videokd.clips.manifest import Video
from videokd.clips.synthetic import draw
from videokd.inside.probes import FACTORS, Factor, probe, ridge

SPEED, HEADING, POSITION, SHAPE = FACTORS
DRAWN = [Video(id=str(n), path=f"{n}.mp4", factors=draw("val", n).factors) for n in range(144)]  # type: ignore[arg-type]


def noise(clips: int, channels: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((clips, channels))


def standardised(features: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (features - features.mean(axis=0)) / features.std(axis=0)
    return found


@pytest.mark.parametrize("channels", [5, 60])
def test_ridge_is_sklearns(channels: int) -> None:
    features, targets = 3 * noise(40, channels, 0) + 7, noise(40, 2, 1)
    found = ridge(features, targets, strengths=[0.3])
    reference = SklearnRidge(alpha=0.3 * 40).fit(standardised(features), targets)
    assert found(features) == pytest.approx(reference.predict(standardised(features)))


@pytest.mark.parametrize("channels", [5, 60])
def test_strength_is_the_one_that_leaving_out_each_clip_chooses(channels: int) -> None:
    features = noise(40, channels, 0)
    targets = features[:, :2] + noise(40, 2, 1)
    strengths = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]

    def error(strength: float) -> float:
        whole, total = standardised(features), 0.0
        for left_out in range(40):
            rest = np.delete(np.arange(40), left_out)
            fit = SklearnRidge(alpha=40 * strength).fit(whole[rest], targets[rest])
            total += float(((fit.predict(whole[[left_out]]) - targets[left_out]) ** 2).sum())
        return total

    found = ridge(features, targets, strengths=strengths)
    assert found.strength == min(strengths, key=error)
    assert found.strength not in (strengths[0], strengths[-1])
    alphas = [40 * strength for strength in strengths]
    assert found.strength == RidgeCV(alphas).fit(standardised(features), targets).alpha_ / 40


def test_features_that_never_vary_change_nothing() -> None:
    features, targets = noise(30, 4, 0), noise(30, 1, 1)
    constant = np.concatenate([features, np.full((30, 2), 5.0)], axis=1)
    other = np.concatenate([features, np.full((30, 2), 6.0)], axis=1)  # what it is elsewhere says nothing either
    assert ridge(constant, targets)(other) == pytest.approx(ridge(features, targets)(features))


def planted(factor: Factor, seed: int = 0) -> NDArray[np.float64]:
    """Features (N, 20) in which the factor lies linearly, among noise; 0 where there is none."""
    known = [factor.of(video) for video in DRAWN]
    if factor.kind == "class":
        names = sorted({str(one) for one in known if one is not None})
        rows = np.array([[float(one == name) for name in names] for one in known])
    else:
        width = len(next(one for one in known if one is not None))
        rows = np.array([np.zeros(width) if one is None else one for one in known], float)
    mixed: NDArray[np.float64] = rows @ noise(rows.shape[1], 20, seed) + 0.01 * noise(len(rows), 20, seed + 1)
    return mixed


@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.name)
def test_a_planted_factor_is_read_and_noise_holds_none(factor: Factor) -> None:
    features = planted(factor)
    found = probe(factor, (features[:72], DRAWN[:72]), (features[72:], DRAWN[72:]))
    assert found is not None
    assert found.score > 0.9
    nothing = probe(factor, (noise(72, 20, 5), DRAWN[:72]), (noise(72, 20, 6), DRAWN[72:]))
    assert nothing is not None
    assert nothing.score == pytest.approx(nothing.chance, abs=0.2)


def test_score_is_r2_on_the_other_videos_and_heading_is_of_slides_alone() -> None:
    features = planted(HEADING) + 0.3 * noise(144, 20, 9)
    found = probe(HEADING, (features[:72], DRAWN[:72]), (features[72:], DRAWN[72:]))
    slides = [n for n, video in enumerate(DRAWN) if video.factors is not None and video.factors["pair"] < 2]
    assert len(slides) == 48
    targets = np.array([HEADING.of(DRAWN[n]) for n in slides])
    assert targets[:, 0] ** 2 + targets[:, 1] ** 2 == pytest.approx(1)
    fit = ridge(features[slides[:24]], targets[:24])
    assert found is not None
    assert found.score == pytest.approx(r2_score(targets[24:], fit(features[slides[24:]])))
    assert (found.fitted, found.scored) == (24, 24)


def test_factors_are_those_of_the_drawing() -> None:
    factors = DRAWN[0].factors
    assert factors is not None
    assert SPEED.of(DRAWN[0]) == (factors["speed"],)
    assert SHAPE.of(DRAWN[0]) == factors["movers"][0]["shape"]
    x, y = factors["movers"][0]["centre"][8]
    assert POSITION.of(DRAWN[0]) == pytest.approx((x / 64, y / 64))
    # Of two that split: their middle, and no one shape. What spins heads nowhere.
    ends = np.array([mover["centre"][8] for mover in (DRAWN[8].factors or {})["movers"]])
    assert POSITION.of(DRAWN[8]) == pytest.approx(tuple(ends.mean(axis=0) / 64))
    assert SHAPE.of(DRAWN[8]) is None
    assert HEADING.of(DRAWN[4]) is None


def test_a_factor_of_too_few_clips_or_that_never_varies_is_left_out() -> None:
    features = noise(144, 20, 0)
    assert probe(HEADING, (features[:24], DRAWN[:24]), (features[24:], DRAWN[24:])) is None  # 8 slides
    plain = [Video(id=video.id, path=video.path) for video in DRAWN]
    assert probe(SPEED, (features[:72], plain[:72]), (features[72:], plain[72:])) is None
    same = [Video(id=video.id, path=video.path, factors={"speed": 0.5}) for video in DRAWN]
    assert probe(SPEED, (features[:72], same[:72]), (features[72:], same[72:])) is None


def test_a_channel_that_wakes_for_other_clips_alone_does_not_drown_the_rest() -> None:
    features = planted(POSITION)
    quiet = np.zeros((144, 1))
    quiet[3], quiet[100] = 1e-4, 1.0  # all but silent on the clips that the probe is fitted on
    features = np.concatenate([features, quiet], axis=1)
    found = probe(POSITION, (features[:72], DRAWN[:72]), (features[72:], DRAWN[72:]))
    assert found is not None
    assert found.score > 0.9
