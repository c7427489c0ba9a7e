"""Scores of predictions, how sure they are, and how far the model's own confidence can be trusted.

Standard metrics are those of torchmetrics.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from videokd.predictions import Predictions

NUM_BINS = 15
"""Bins of confidence, as most papers have since Guo et al. 2017."""

RESAMPLES = 1000


def scores(predictions: Predictions) -> dict[str, Any]:
    """Plain numbers, ready for JSON, of the clips that have a label.

    Top-1, top-5 (None for fewer than six classes), the mean of the classes' accuracies, accuracy, precision and F1 by
    class, confusion counts (row: true class, column: predicted), clips scored, unlabelled and skipped. Of several-label
    sets mean average precision over the classes that occur ("map"), and each class's own.

    Raises:
        ValueError: if no clip has a label.
    """
    known = predictions.is_labelled
    labelled = predictions.rows(known)
    if not len(labelled):
        raise ValueError("no clip of the list has a label: nothing to score")
    counts = {
        "classes": list(predictions.classes),
        "clips": len(labelled),
        "unlabelled": int((~known).sum()),
        "skipped": list(predictions.skipped),
    }
    return (_of_several(labelled) if predictions.several_labels else _of_one(labelled)) | counts


def _of_one(labelled: Predictions) -> dict[str, Any]:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    label, num_classes = labelled.label, len(labelled.classes)
    confusion = multiclass_confusion_matrix(labelled.predicted, label, num_classes=num_classes, validate_args=False)
    right, of_class, said = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    per_class = {
        name: {
            "clips": int(of_class[k]),
            "accuracy": _ratio(right[k], of_class[k]),
            "precision": _ratio(right[k], said[k]),
            "f1": _ratio(2 * right[k], of_class[k] + said[k]),
        }
        for k, name in enumerate(labelled.classes)
        if of_class[k] > 0
    }
    return {
        "top1": _share(is_right(labelled)),
        "top5": _share(is_right(labelled, top=5)) if num_classes > 5 else None,
        "mean_class_accuracy": (right / of_class)[of_class > 0].double().mean().item(),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def _of_several(labelled: Predictions) -> dict[str, Any]:
    from torchmetrics.functional.classification import binary_average_precision

    occurs = (labelled.label == 1).any(dim=0)
    names = [name for name, there in zip(labelled.classes, occurs.tolist(), strict=True) if there]
    if not names:
        raise ValueError("no clip of the list has a class: nothing to score")
    # Ranks in place of probabilities, which are 1 for many large logits: the same order, with the same ties.
    ranks = [one.unique(return_inverse=True)[1].double() / len(labelled) for one in labelled.logits[:, occurs].T]
    there = labelled.label[:, occurs].long().T
    found = torch.stack([binary_average_precision(rank, label) for rank, label in zip(ranks, there, strict=True)])
    return {"map": found.mean().item(), "average_precision": dict(zip(names, found.tolist(), strict=True))}


def is_right(predictions: Predictions, *, top: int = 1) -> Tensor:
    """Whether the true class is among the `top` most likely ones, bool (N,)."""
    best = predictions.logits.topk(min(top, len(predictions.classes)), dim=1).indices
    return (best == predictions.label[:, None]).any(dim=1)


def intervals(predictions: Predictions, *, seed: int = 0) -> dict[str, Any]:
    """95 % intervals of the scores by a bootstrap over the clips' sources ("groups": their number): clips cut from one
    video are not independent, and an interval over clips would be too narrow.

    None for each score if there is one source.
    """
    labelled = predictions.rows(predictions.is_labelled)
    names, group = np.unique(np.array(labelled.groups), return_inverse=True)
    ready = _ready(labelled)
    between = bootstrap(ready, group, seed=seed) if len(names) > 1 else {}
    return {
        "intervals": {score: list(between[score]) if score in between else None for score in ready},
        "groups": len(names),
    }


def bootstrap(
    scores: Mapping[str, Callable[[NDArray[np.float64]], float]],
    group: NDArray[np.int64],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Where the middle 95 % of each score lies when groups are drawn anew, with replacement [Efron 1979, percentiles].
    All scores are of the same draws.

    Args:
        scores: of clips that count (N,) times each.
        group: (N,) number of the group of each clip, from 0.
        seed: of the draws.
        resamples: how many draws.
    """
    rng = np.random.default_rng(seed)
    num_groups = int(group.max()) + 1
    found: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
        times = drawn.astype(np.float64)[group]
        for name, score in scores.items():
            found[name].append(score(times))
    between = {name: np.nanquantile(values, [0.025, 0.975]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in between.items()}


def _ready(labelled: Predictions) -> dict[str, Callable[[NDArray[np.float64]], float]]:
    """Each score as a function of how often every clip counts."""
    if labelled.several_labels:
        return {"map": _mean_average_precision(labelled)}

    def share(right: NDArray[np.bool_]) -> Callable[[NDArray[np.float64]], float]:
        return lambda times: float(times[right].sum() / times.sum())

    label, right = labelled.label.numpy(), is_right(labelled).numpy()

    def by_class(times: NDArray[np.float64]) -> float:
        clips = np.bincount(label, weights=times)
        hits = np.bincount(label, weights=times * right)
        return float((hits[clips > 0] / clips[clips > 0]).mean())

    found = {"top1": share(right), "mean_class_accuracy": by_class}
    return found | ({"top5": share(is_right(labelled, top=5).numpy())} if len(labelled.classes) > 5 else {})


def _mean_average_precision(labelled: Predictions) -> Callable[[NDArray[np.float64]], float]:
    # Average precision with clips that count several times: sorted once, then sums along the order.
    order = (-labelled.logits).argsort(dim=0, stable=True).numpy()
    relevant = np.take_along_axis(labelled.label.numpy() == 1, order, axis=0)
    values = np.take_along_axis(labelled.logits.numpy(), order, axis=0)
    # Of clips of one value none comes first: each counts at the place of the last of them.
    last = np.stack([np.searchsorted(-one, -one, side="right") - 1 for one in values.T], axis=1)

    def score(times: NDArray[np.float64]) -> float:
        counted = times[order]
        hits, seen = (np.take_along_axis(one.cumsum(axis=0), last, axis=0) for one in (counted * relevant, counted))
        of_class = hits[-1]
        gained = (counted * relevant * hits / np.maximum(seen, 1e-12)).sum(axis=0)
        return float((gained[of_class > 0] / of_class[of_class > 0]).mean())

    return score


def calibration(predictions: Predictions, *, temperature: float | None = None) -> dict[str, Any]:
    """How far probabilities can be taken at their word: negative log-likelihood, Brier score (summed over classes
    [Brier 1950]), expected calibration error over 15 bins of confidence [Guo et al. 2017], and the bins.

    Of logits divided by a temperature, if one is given.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    labelled = predictions.rows(predictions.is_labelled)
    logits = labelled.logits if temperature is None else labelled.logits / temperature
    probabilities, label = logits.softmax(dim=1), labelled.label
    confidence, predicted = probabilities.max(dim=1)
    edges = torch.linspace(0, 1, NUM_BINS + 1)
    place = torch.bucketize(confidence, edges[1:-1])
    bins = []
    for k in range(NUM_BINS):
        inside = place == k
        some = bool(inside.any())
        bins.append(
            {
                "low": edges[k].item(),
                "high": edges[k + 1].item(),
                "clips": int(inside.sum()),
                "confidence": confidence[inside].mean().item() if some else None,
                "accuracy": (predicted == label)[inside].double().mean().item() if some else None,
            }
        )
    shares = F.one_hot(label, len(labelled.classes))
    error = multiclass_calibration_error(probabilities, label, num_classes=len(labelled.classes), n_bins=NUM_BINS)
    return {
        "nll": F.cross_entropy(logits.double(), label).item(),
        "brier": (probabilities - shares).square().sum(dim=1).mean().item(),
        "ece": error.item(),
        "bins": bins,
    }


def fit_temperature(predictions: Predictions) -> float:
    """The temperature under which the labels are most likely [Guo et al. 2017], between 1/20 and 20.

    For predictions on validation videos; what it is good for is scored on others.

    Raises:
        ValueError: if no clip has a label.
    """
    from scipy.optimize import minimize_scalar

    labelled = predictions.rows(predictions.is_labelled)
    if not len(labelled):
        raise ValueError("no validation clip has a label: no temperature can be fitted on them")
    logits, label = labelled.logits.double(), labelled.label
    bound = float(np.log(20))

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / np.exp(log_temperature), label).item()

    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return (part / whole).item() if whole > 0 else None


def average_views(logits: Tensor, *, average: str, several_labels: bool = False) -> Tensor:
    """Logits of clips from those of their views: (N, V, K) to (N, K).

    Args:
        logits: of every view.
        average: "probabilities", whose mean is handed back as logits again, or "logits".
        several_labels: whether each class has a probability of its own.
    """
    if logits.shape[1] == 1 or average == "logits":
        return logits.mean(dim=1)
    if several_labels:
        # Both from their own side, so that neither 0 nor 1 is rounded away.
        return _mean_log(F.logsigmoid(logits)) - _mean_log(F.logsigmoid(-logits))
    return _mean_log(logits.log_softmax(dim=2))


def _mean_log(logs: Tensor) -> Tensor:
    return logs.logsumexp(dim=1) - float(np.log(logs.shape[1]))
