import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn

from videokd.contracts import UNLABELLED
from videokd.metrics import average_views, bootstrap, calibration, fit_temperature, intervals, is_right, scores
from videokd.predictions import Predictions


def said(logits: torch.Tensor, label: torch.Tensor, groups: list[str] | None = None) -> Predictions:
    ids = tuple(map(str, range(len(label))))
    classes = tuple(f"class {k}" for k in range(logits.shape[1]))
    return Predictions(
        ids=ids,
        groups=tuple(groups) if groups else ids,
        paths=ids,
        label=label,
        logits=logits,
        classes=classes,
        skipped=("x.mp4: broken",),
    )


def random_case(seed: int, *, clips: int = 60, classes: int = 7) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (clips,), generator=generator)
    return said(2 * torch.randn(clips, classes, generator=generator), label)


def test_scores_match_a_count_by_hand() -> None:
    predicted = torch.tensor([0, 0, 1, 2, 0])
    found = scores(said(torch.eye(3)[predicted], torch.tensor([0, 0, 0, 1, UNLABELLED])))
    assert found["top1"] == pytest.approx(2 / 4)
    assert found["top5"] is None
    assert found["per_class"] == {
        "class 0": {"clips": 3, "accuracy": pytest.approx(2 / 3), "precision": 1.0, "f1": pytest.approx(0.8)},
        "class 1": {"clips": 1, "accuracy": 0.0, "precision": 0.0, "f1": 0.0},
    }
    assert found["mean_class_accuracy"] == pytest.approx(1 / 3)
    assert found["confusion"] == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert (found["clips"], found["unlabelled"], found["skipped"]) == (4, 1, ["x.mp4: broken"])


def test_a_list_without_labels_has_no_score() -> None:
    with pytest.raises(ValueError, match="no clip of the list has a label"):
        scores(said(torch.zeros(1, 3), torch.tensor([UNLABELLED])))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    case = random_case(seed)
    found, label, predicted = scores(case), case.label.numpy(), case.predicted.numpy()
    assert found["top1"] == pytest.approx(sklearn.accuracy_score(label, predicted))
    probabilities = case.probabilities.numpy()
    assert found["top5"] == pytest.approx(sklearn.top_k_accuracy_score(label, probabilities, k=5, labels=range(7)))
    assert found["mean_class_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(label, predicted))
    assert found["confusion"] == sklearn.confusion_matrix(label, predicted, labels=range(7)).tolist()
    precision, recall, f1, clips = sklearn.precision_recall_fscore_support(
        label, predicted, labels=range(7), zero_division=np.nan
    )
    for k in range(7):
        one = found["per_class"][f"class {k}"]
        assert (one["accuracy"], one["f1"], one["clips"]) == pytest.approx((recall[k], f1[k], clips[k]))
        assert np.isnan(precision[k]) if one["precision"] is None else one["precision"] == pytest.approx(precision[k])
    calibrated = calibration(case)
    assert calibrated["nll"] == pytest.approx(sklearn.log_loss(label, probabilities, labels=range(7)), rel=1e-5)


def test_average_precision_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(50, 4, generator=generator) < 0.3).float()
    label[7] = UNLABELLED
    label[:, 3] = label[:, 3].clamp(max=0)  # a class that never occurs
    case = said(torch.randn(50, 4, generator=generator), label)
    kept = label[:, 0] != UNLABELLED
    found = scores(case)
    expected = [sklearn.average_precision_score(label[kept, k], case.logits[kept, k].sigmoid()) for k in range(3)]
    assert list(found["average_precision"].values()) == pytest.approx(expected, rel=1e-5)
    assert found["map"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert (found["clips"], found["unlabelled"]) == (49, 1)
    low, high = intervals(case)["intervals"]["map"]
    assert low < found["map"] < high


def test_calibration_matches_numbers_computed_by_hand() -> None:
    # Two clips at confidence 3/4, of which one is right; one at 1/2, in a tie, right.
    logits = torch.tensor([[np.log(3), 0.0], [np.log(3), 0.0], [0.0, 0.0]]).float()
    found = calibration(said(logits, torch.tensor([0, 1, 0])))
    assert found["nll"] == pytest.approx((np.log(4 / 3) + np.log(4) + np.log(2)) / 3, rel=1e-6)
    assert found["brier"] == pytest.approx((2 / 16 + 2 * 9 / 16 + 2 / 4) / 3, rel=1e-6)
    # |1/2 - 3/4| on two of three, |1 - 1/2| on one.
    assert found["ece"] == pytest.approx((2 * 0.25 + 0.5) / 3, rel=1e-6)
    full = [one for one in found["bins"] if one["clips"]]
    assert [(one["clips"], one["accuracy"]) for one in full] == [(1, 1.0), (2, 0.5)]
    assert [one["confidence"] for one in full] == pytest.approx([0.5, 0.75])
    assert len(found["bins"]) == 15


def test_the_fitted_temperature_is_the_one_that_was_planted() -> None:
    generator = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(8000, 5, generator=generator)
    label = true.softmax(dim=1).multinomial(1, generator=generator).flatten()
    overconfident = said(3 * true, label)
    temperature = fit_temperature(overconfident)
    assert temperature == pytest.approx(3, rel=0.08)
    before, after = calibration(overconfident), calibration(overconfident, temperature=temperature)
    assert after["ece"] < 0.03 < before["ece"]
    assert after["nll"] < before["nll"]


def test_intervals_over_sources_cover_the_truth_where_those_over_clips_do_not() -> None:
    # 60 sources of 8 clips; a source's clips are right together more often than not.
    rng = np.random.default_rng(0)
    covered = {"sources": 0, "clips": 0}
    rounds, group = 200, np.repeat(np.arange(60), 8)
    for number in range(rounds):
        chance = rng.beta(1.4, 0.6, 60)  # 0.7 on average
        right = rng.random(480) < chance[group]

        def share(times: np.ndarray, right: np.ndarray = right) -> float:
            return float(times[right].sum() / times.sum())

        for kind, of in (("sources", group), ("clips", np.arange(480))):
            low, high = bootstrap({"share": share}, of, seed=number, resamples=300)["share"]
            covered[kind] += low <= 0.7 <= high
    assert 0.9 <= covered["sources"] / rounds <= 0.99
    assert covered["clips"] / rounds < 0.75


def test_intervals_are_those_of_a_slower_bootstrap() -> None:
    case = random_case(0)
    case = said(case.logits, case.label, groups=[str(row // 3) for row in range(60)])
    found = intervals(case)
    assert found["groups"] == 20
    right = is_right(case).numpy().reshape(20, 3)
    slow = stats.bootstrap((right.mean(axis=1),), np.mean, n_resamples=4000, method="percentile", rng=0)
    assert found["intervals"]["top1"] == pytest.approx(list(slow.confidence_interval), abs=0.02)
    assert set(found["intervals"]) == {"top1", "top5", "mean_class_accuracy"}
    assert intervals(said(case.logits, case.label, groups=["one"] * 60)) == {
        "intervals": dict.fromkeys(("top1", "mean_class_accuracy", "top5")),
        "groups": 1,
    }


def test_views_are_averaged_as_probabilities_or_as_logits() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(average_views(logits, average="logits"), torch.tensor([[1.0, 0.5]]))
    mean = logits.softmax(dim=2).mean(dim=1)
    torch.testing.assert_close(average_views(logits, average="probabilities").softmax(dim=1), mean)
    several = average_views(logits, average="probabilities", several_labels=True)
    torch.testing.assert_close(several.sigmoid(), logits.sigmoid().mean(dim=1))


def test_average_precision_of_ties_and_of_large_logits_lies_in_its_interval() -> None:
    label = torch.zeros(200, 1)
    label[:100] = 1  # sorted by class: whoever breaks ties by place gains by it
    generator = torch.Generator().manual_seed(0)
    for logits in (torch.zeros(200, 1), torch.randn(200, 1, generator=generator) + label + 30):
        case = said(logits, label)
        expected = sklearn.average_precision_score(label[:, 0], logits[:, 0])
        assert scores(case)["map"] == pytest.approx(expected, rel=1e-5)
        low, high = intervals(case)["intervals"]["map"]
        assert low < expected < high


def test_no_temperature_is_fitted_on_clips_without_labels() -> None:
    with pytest.raises(ValueError, match="no validation clip has a label"):
        fit_temperature(said(torch.zeros(2, 3), torch.tensor([UNLABELLED, UNLABELLED])))
