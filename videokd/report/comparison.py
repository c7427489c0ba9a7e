"""Trained runs beside each other: who is better, by how much, and how sure that is."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from videokd.config import from_plain, to_plain
from videokd.disk import write_text
from videokd.evaluate import MIN_GAP, Evaluation, gap_recovered, interval, standard_error
from videokd.fidelity import against_teacher
from videokd.interruption import deferred
from videokd.json_files import finite
from videokd.predictions import Predictions, read_predictions, write_predictions
from videokd.run_files import EVALUATION, read_evaluation
from videokd.run_folder import read_recipe

_OF_ONE_RUN = ("seed", "track", "audit", "preflight", "weak_teacher", "checkpoint_every")
"""Fields of a recipe in which runs of one arm may differ."""
_WORTH_HAVING = 0.01
"""A gain (a share of clips) that an interval must leave out to say that there is none."""


@deferred()
def write_evaluation(run: str | Path, evaluation: Evaluation) -> Path:
    """Leaves a run's scores and predictions in its folder, where `compare` and `report` find them."""
    path = Path(run) / EVALUATION
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(run, evaluation.predictions)
    # Last: scores have their predictions beside them.
    write_text(path, json.dumps(finite(evaluation.numbers)) + "\n")
    return path


def score_of(evaluation: Mapping[str, Any]) -> float | None:
    """Top-1, or the mean average precision of a set with several labels a video."""
    found = evaluation.get("top1", evaluation.get("map"))
    return None if found is None else float(found)


def check_same_test(evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Raises a `ValueError` for scores that can't be put beside each other: of another list, split, number of clips, or
    by other views."""
    for name in ("list", "split", "clips", "views", "protocol"):
        values = list(dict.fromkeys(json.dumps(one[name]) for one in evaluations if name in one))
        if len(values) > 1:
            raise ValueError(f"they were scored on different {name} ({values[0]} and {values[1]})")


def arms(teacher: str | Path, alone: Sequence[str | Path], distilled: Sequence[str | Path]) -> dict[str, Any]:
    """The three arms of a distillation, with what it gained: plain numbers, ready for JSON.

    Args:
        teacher: the evaluated teacher's folder.
        alone: evaluated runs of the student without a teacher, one for each seed.
        distilled: evaluated runs with it, paired with `alone` by place.

    Returns:
        "arms" by name, "paired_difference" (distilled - alone, shares of clips), "gap_recovered" (or None where the
        gap is under 8 points) and "verdict", a sentence.

    Raises:
        ValueError: if the runs were scored on different clips, or by different views.
    """
    folders = {"teacher": [teacher], "alone": alone, "distilled": distilled}
    scored = {arm: [read_evaluation(run) for run in runs] for arm, runs in folders.items()}
    said = {arm: [read_predictions(run) for run in runs] for arm, runs in folders.items()}
    check_same_test([run for runs in scored.values() for run in runs])
    top1 = {arm: [score_of(run) or 0.0 for run in runs] for arm, runs in scored.items()}
    differences = [after - before for before, after in zip(top1["alone"], top1["distilled"], strict=True)]
    recovered = gap_recovered(teacher=top1["teacher"][0], alone=top1["alone"], distilled=top1["distilled"])
    error = standard_error(differences) if len(differences) > 1 else None
    return {
        "arms": {arm: _arm(runs, said[arm], teacher=said["teacher"][0]) for arm, runs in scored.items()},
        "paired_difference": {"mean": fmean(differences), "se": error, "each": differences},
        "gap_recovered": asdict(recovered) if recovered else None,
        "verdict": verdict(differences, gap=top1["teacher"][0] - fmean(top1["alone"])),
    }


def verdict(differences: Sequence[float], *, gap: float | None, subject: str = "Distillation") -> str:
    """What paired differences (an arm - alone, shares of clips) say of it, in a sentence or two.

    It helped or hurt if the 95 % interval of the mean difference (Student's t) leaves zero out. It did not help if the
    students did not gain, or if the interval leaves out a gain of a point; else there are too few pairs to tell.

    Args:
        differences: one for each pair.
        gap: teacher - alone; None says nothing of it.
        subject: the arm.
    """
    found = interval(differences)
    if found.low is None or found.high is None:
        arm = subject[:1].lower() + subject[1:]
        said = f"One pair: {points(asdict(found))} for {arm}; run more seeds to know whether it helped."
    else:
        no_gain = found.mean <= 0 or found.high < _WORTH_HAVING
        not_shown = "did not help" if no_gain else "was not shown to help"
        word = "helped" if found.low > 0 else "hurt" if found.high < 0 else not_shown
        said = f"{subject} {word}: {points(asdict(found))}."
    if gap is None:
        return said
    if gap < 0:
        said += f" The teacher is {-100 * gap:.1f} points below the student alone: train a better one first."
    elif gap < MIN_GAP:
        said += f" The teacher is {100 * gap:.1f} points above the student alone: too little to speak of a share of it."
    return said


def points(found: Mapping[str, Any]) -> str:
    """A mean difference with its interval, if it has one, in words."""
    said = f"{100 * found['mean']:+.1f} points"
    if found["low"] is None:
        return said
    return f"{said}, 95 % interval {100 * found['low']:+.1f} to {100 * found['high']:+.1f}"


def trios(runs: Sequence[str | Path], *, trust: Collection[str] = ()) -> list[tuple[Path, list[Path], list[Path]]]:
    """Teacher, runs alone and distilled runs among `runs`, paired by seed.

    A distilled run is paired with the run without a teacher that has its student, optimiser, seed and data (but for
    the number of unlabelled clips). Pairs of one student, teacher and objective make one trio.

    Recipes are compared as data: nothing is imported but what is trusted.

    Args:
        runs: folders.
        trust: modules, packages and recipe files whose code recipes may name.

    Raises:
        ValueError: if two runs without a teacher would do, or a recipe.json is damaged.
    """
    found = {Path(run): _plain_recipe(run, trust) for run in runs if _has_recipe(run)}
    groups: dict[str, tuple[Path, list[Path], list[Path]]] = {}
    for run, recipe in found.items():
        if len(recipe["teachers"]) != 1:
            continue
        (teacher,) = recipe["teachers"].values()
        if "checkpoint" not in teacher:
            continue  # it was not scored: there is no gap to recover
        alone = [other for other, base in found.items() if not base["teachers"] and _setting(base) == _setting(recipe)]
        if len(alone) > 1:
            raise ValueError(f"{alone[0]} and {alone[1]} could both be paired with {run}: name one of them")
        for other in alone:
            key = json.dumps({name: part for name, part in recipe.items() if name not in _OF_ONE_RUN}, sort_keys=True)
            trio = groups.setdefault(key, (Path(teacher["checkpoint"]), [], []))
            trio[1].append(other)
            trio[2].append(run)
    return list(groups.values())


def _arm(runs: Sequence[Mapping[str, Any]], said: Sequence[Predictions], *, teacher: Predictions) -> dict[str, Any]:
    top1 = [score_of(run) or 0.0 for run in runs]
    shuffled = [run["temporal"]["shuffled"] for run in runs if "shuffled" in run["temporal"]]
    return {
        "top1_mean": fmean(top1),
        "top1_sd": stdev(top1) if len(top1) > 1 else None,
        "top1_each": top1,
        "shuffled_top1": fmean(shuffled) if len(shuffled) == len(runs) else None,
        "agreement_with_teacher": fmean(against_teacher(one, teacher)["agreement"] or 0.0 for one in said),
        "params": runs[0]["params"],
        "macs": runs[0]["macs"],
        "clips": runs[0]["clips"],
        "skipped": sum(len(run["skipped"]) for run in runs),
    }


def _has_recipe(run: str | Path) -> bool:
    return (Path(run) / "recipe.json").is_file()


def _plain_recipe(run: str | Path, trust: Collection[str]) -> dict[str, Any]:
    """A run's recipe as data, with the defaults of fields that came with a later version."""
    recipe = {"teachers": {}, **read_recipe(run)}
    try:
        plain: dict[str, Any] = to_plain(from_plain(recipe, trust=trust))
        return plain
    except ValueError:  # of code that is not trusted, or an earlier version: as it is written
        return recipe


def _setting(recipe: Mapping[str, Any]) -> tuple[object, ...]:
    """What the two runs of a pair have in common."""
    student, data = recipe.get("student") or {}, recipe["data"]
    of_simkd = student.get("student") if str(student.get("type")).endswith(":SimKD") else None
    data = {name: value for name, value in data.items() if name != "unlabelled_per_batch"}
    return of_simkd or student, recipe.get("optim"), recipe.get("seed"), data
