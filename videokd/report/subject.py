"""What a report is about: the arms of a study, or of a few runs, with all that their folders say."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from videokd.evaluate import gap_recovered, interval
from videokd.fidelity import against_teacher
from videokd.predictions import PREDICTIONS, Predictions, read_predictions
from videokd.protocols import mean_over_folds
from videokd.report.comparison import check_same_test, score_of, trios, verdict
from videokd.report.content import Look, shown
from videokd.report.differences import RunRecord, read_run
from videokd.report.looks import ALONE, CONTROLS, DISTILLED, TEACHER, looks_of
from videokd.run_files import (
    EVALUATION,
    INSIDE,
    STUDY,
    read_evaluation,
    read_inside,
    read_run_file,
    read_study,
)
from videokd.run_folder import read_metrics


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's folder; its files are read when they are asked for, once."""

    path: Path
    pair: tuple[int, int] | None = None
    """Fold and seed."""

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """What evaluation.json says; empty where there is none."""
        return read_evaluation(self.path) if (self.path / EVALUATION).is_file() else {}

    @cached_property
    def predictions(self) -> Predictions | None:
        """What the model said of every video; None where that is not kept."""
        return read_predictions(self.path) if (self.path / PREDICTIONS).is_file() else None

    @cached_property
    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """The rows of its log."""
        return read_metrics(self.path)

    @cached_property
    def record(self) -> RunRecord | None:
        """Recipe, environment, results; None where the folder holds no run any more."""
        try:
            return read_run(self.path)
        except ValueError:
            return None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs that differ in nothing but fold and seed."""

    name: str
    runs: Sequence[Run]
    said: Mapping[str, Any] = field(default_factory=dict)
    """What study.json says of it."""

    @cached_property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """Of the runs that have one."""
        return [run.evaluation for run in self.runs if run.evaluation]

    @property
    def scores(self) -> list[float]:
        """Top-1 of each run, or mean average precision of several-label sets."""
        each = self.said.get("top1_each") or [score_of(one) for one in self.evaluations]
        return [score for score in each if score is not None]

    def fact(self, name: str) -> Any:
        """A number that all of its runs share, such as "macs"; None where it is not known."""
        return self.said.get(name) or next((one[name] for one in self.evaluations if one.get(name) is not None), None)

    def mean(self, *path: str) -> float | None:
        """Mean over the runs of a number in their evaluations, by its path; None where no run has it."""
        found = [value for one in self.evaluations if (value := at(one, *path)) is not None]
        return fmean(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A study, or a few runs beside each other."""

    title: str
    arms: Mapping[str, Arm]
    """The teacher first."""
    compared: Mapping[str, Any]
    """In the form of study.json: "differences", "gap_recovered", "against", "per_class", "verdict", "chance"."""
    inside: Mapping[str, Any] = field(default_factory=dict)
    is_study: bool = False
    command: str = ""
    """What was asked for, for commands that say how to go on."""

    @property
    def students(self) -> list[str]:
        """Arms but the teacher."""
        return [name for name in self.arms if name != TEACHER]

    @property
    def baseline(self) -> str | None:
        """What the others are compared with."""
        return ALONE if ALONE in self.arms and len(self.arms) > 1 else None

    @property
    def main(self) -> str | None:
        """The arm that it is all about: the distilled one, or the first that is neither baseline nor control."""
        if DISTILLED in self.arms:
            return DISTILLED
        others = [name for name in self.students if name not in (ALONE, *CONTROLS)]
        return next(iter(others), None) if self.baseline else None

    @property
    def shown(self) -> list[str]:
        """The arms of pictures that have room for few: teacher, baseline, main; else the first four."""
        few = [name for name in (TEACHER, self.baseline, self.main) if name in self.arms]
        return [str(name) for name in few] if self.main else list(self.arms)[:4]

    @cached_property
    def looks(self) -> Mapping[str, Look]:
        """Title and colour of each arm."""
        titles = {name: arm.said["title"] for name, arm in self.arms.items() if arm.said.get("title")}
        known = [name for found in (self.inside_arms, self.compared.get("differences", {})) for name in found]
        return looks_of(dict.fromkeys((*self.arms, *known)), titles)

    @property
    def inside_arms(self) -> list[str]:
        """Arms, and perhaps the teacher, that inside.json speaks of."""
        parts = (
            at(self.inside, "cka", "arms"),
            *(at(self.inside, "saliency", key) for key in ("agreement", "on_object")),
        )
        return list(dict.fromkeys(name for part in parts for name in part or ()))

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Any evaluation: for what they all share."""
        return next((one for arm in reversed(list(self.arms.values())) for one in arm.evaluations), {})

    @property
    def scored_once(self) -> list[Mapping[str, Any]]:
        """A student's evaluation on each fold: their clips are all that were scored, each once."""
        by_fold: dict[int, Mapping[str, Any]] = {}
        for run in [run for arm in reversed(list(self.arms.values())) for run in arm.runs]:
            if run.evaluation:
                by_fold.setdefault(0 if run.pair is None else run.pair[0], run.evaluation)
        return [by_fold[fold] for fold in sorted(by_fold)]

    @property
    def runs(self) -> list[Run]:
        """All runs of all arms."""
        return [run for arm in self.arms.values() for run in arm.runs]

    def pairs(self, one: str, other: str) -> list[tuple[Run, Run]]:
        """Runs of two arms with the same fold and seed."""
        if one not in self.arms or other not in self.arms:
            return []
        found = {run.pair: run for run in self.arms[one].runs if run.pair is not None}
        return [(found[run.pair], run) for run in self.arms[other].runs if run.pair in found]


def subjects(folders: Sequence[Path]) -> list[Subject]:
    """One subject for each study, and one for all the runs together.

    Raises:
        ValueError: if a folder holds neither, or a file of it is no JSON.
    """
    if not folders:
        raise ValueError("name at least one folder of a run or a study")
    studies = [folder for folder in folders if (folder / STUDY).is_file()]
    runs = [folder for folder in folders if folder not in studies]
    for run in runs:
        if not any((run / name).is_file() for name in ("recipe.json", EVALUATION, "summary.json")):
            raise ValueError(f"{run} holds neither a run (recipe.json, {EVALUATION}) nor a study ({STUDY})")
    return [*map(of_study, studies), *([of_runs(runs)] if runs else [])]


def of_study(folder: Path) -> Subject:
    """What a study's folder says."""
    said = read_study(folder)
    teacher = said.get("teacher") or {}
    arms = {}
    if teacher.get("runs"):
        # One teacher for all folds, or one for each, whose numbers are those of the students; it has no seed of theirs.
        numbers = sorted({pair[0] for arm in (said.get("arms") or {}).values() for pair in arm.get("pairs", ())})
        folds = [(number, 0) for number in numbers[: len(teacher["runs"])]]
        arms[TEACHER] = Arm(name=TEACHER, runs=_runs(folder, teacher["runs"], folds), said=teacher)
    for name, arm in (said.get("arms") or {}).items():
        arms[name] = Arm(name=name, runs=_runs(folder, arm.get("runs", ()), arm.get("pairs", ())), said=arm)
    return Subject(
        title=folder.resolve().name,
        arms=arms,
        compared=said,
        inside=read_inside(folder),
        is_study=True,
        command=str(folder),
    )


def of_runs(folders: Sequence[Path]) -> Subject:
    """A few runs: those that differ in their seed alone are one arm, and pairs of alone and distilled are compared as
    a study would."""
    groups: dict[str, list[Path]] = {}
    for run in folders:
        groups.setdefault(_without_seed(run, groups), []).append(run)
    notes = []
    try:
        found = trios([run for run in folders if (run / EVALUATION).is_file()])
    except ValueError as error:
        found = []
        notes.append(f"What distillation gained is not shown: {error}.")
    roles: dict[Path, str] = {}
    if len({tuple(alone) for _, alone, _ in found}) == 1:
        roles |= {found[0][1][0]: ALONE}
    if len(found) == 1:
        roles |= {found[0][2][0]: DISTILLED}
    teachers = {teacher for teacher, _, _ in found}
    arms: dict[str, Arm] = {}
    if len(teachers) == 1 and (teachers.copy().pop() / EVALUATION).is_file():
        arms[TEACHER] = Arm(name=TEACHER, runs=(Run(path=teachers.copy().pop(), pair=(0, 0)),))
    for runs in groups.values():
        if TEACHER in arms and {run.resolve() for run in runs} == {arms[TEACHER].runs[0].path.resolve()}:
            continue
        role = next((roles[run] for run in runs if run in roles), None)
        name = role or _free(_stem(runs[0]), arms)
        arms[name] = Arm(name=name, runs=tuple(Run(path=run, pair=(0, _seed(run))) for run in runs))
    compared = _compared(arms, found, notes)
    here = {run.resolve() for run in (*folders, *teachers)}
    looked = (run for run in folders if (run / INSIDE).is_file())
    inside = next((read_inside(run) for run in looked if _inside_runs(run) <= here), {})
    title = _stem(folders[0]) if len(folders) == 1 else " · ".join(arms)
    return Subject(
        title=title, arms=arms, compared=compared, inside=inside, command=" ".join(str(run) for run in folders)
    )


def at(plain: Any, *path: str) -> Any:
    """The value at a path into plain data; None where it ends early."""
    for key in path:
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    return plain


def views_said(evaluation: Mapping[str, Any]) -> str:
    """The views and the protocol of a score, in a sentence; empty where they are not known."""
    views, protocol = evaluation.get("views") or {}, at(evaluation, "protocol", "said")
    if not views:
        return str(protocol or "")
    several = views.get("temporal", 1) * views.get("spatial", 1) > 1
    said = f"{views.get('temporal')} × {views.get('spatial')} views (time × space), {views.get('average')} averaged"
    return ": ".join(str(one) for one in (protocol, said if several else "a single view") if one)


def read_json(path: Path) -> dict[str, Any]:
    """What a file says; empty where there is none.

    Raises:
        ValueError: if it is no JSON object.
    """
    return read_run_file(path) if path.is_file() else {}


def _inside_runs(folder: Path) -> set[Path]:
    """The runs that a folder's inside.json compares; they are written relative to the folder."""
    return {(folder / run).resolve() for run in read_inside(folder).get("runs", ())}


def _runs(study: Path, folders: Iterable[str], pairs: Sequence[Sequence[int]]) -> tuple[Run, ...]:
    numbers = [(int(pair[0]), int(pair[1])) for pair in pairs]
    return tuple(
        Run(path=study / run, pair=numbers[place] if place < len(numbers) else None)
        for place, run in enumerate(folders)
    )


def _compared(
    arms: Mapping[str, Arm], found: Sequence[tuple[Path, list[Path], list[Path]]], notes: list[str]
) -> dict[str, Any]:
    """What study.json would say of these arms."""
    of_run = {run.path: run for arm in arms.values() for run in arm.runs}
    names = {run.path: name for name, arm in arms.items() for run in arm.runs}
    said: dict[str, Any] = {"differences": {}, "gap_recovered": {}, "against": {}}
    verdicts = []
    for folder, alone, distilled in found:
        name = names[distilled[0]]
        teacher = of_run.get(folder) or Run(path=folder)
        try:
            check_same_test([of_run[run].evaluation for run in (*alone, *distilled)] + [teacher.evaluation])
            said["against"][name] = _against(
                [of_run[run] for run in distilled], teacher, [of_run[run] for run in alone]
            )
        except ValueError as error:
            notes.append(f"{arms[name].name} is not compared: {error}.")
            continue
        before, after = ([score_of(of_run[run].evaluation) or 0.0 for run in runs] for runs in (alone, distilled))
        each = [late - early for early, late in zip(before, after, strict=True)]
        over, top = interval(each), score_of(teacher.evaluation)
        sentence = verdict(each, gap=None if top is None else top - fmean(before))
        said["differences"][name] = {
            "mean": over.mean,
            "low": over.low,
            "high": over.high,
            "each": each,
            "positive": sum(difference > 0 for difference in each),
            "verdict": sentence,
        }
        recovered = None if top is None else gap_recovered(teacher=top, alone=before, distilled=after)
        said["gap_recovered"][name] = None if recovered is None else vars(recovered)
        verdicts.append(sentence if len(found) == 1 else f"{name}: {sentence}")
    said["per_class"] = {
        label: {name: arm.mean("per_class", label, "accuracy") for name, arm in arms.items()}
        for label in dict.fromkeys(
            label for arm in arms.values() for one in arm.evaluations for label in one["classes"]
        )
    }
    folds = mean_over_folds([one for arm in arms.values() for one in arm.evaluations])
    if folds:
        scores = (
            f"top-1 {shown(folds['top1'], 'share')} %, {shown(folds['mean_class_accuracy'], 'share')} % over classes"
        )
        verdicts.append(f"{folds['protocol']}: {scores}.")
    said["verdict"] = " ".join(verdicts or [_plain_verdict(arms)])
    said["notes"] = notes
    return said


def _against(distilled: Sequence[Run], teacher: Run, alone: Sequence[Run]) -> dict[str, float | None]:
    each = [
        against_teacher(after.predictions, teacher.predictions, before.predictions)
        for before, after in zip(alone, distilled, strict=True)
        if after.predictions and teacher.predictions and before.predictions
    ]
    keys = dict.fromkeys(key for one in each for key in one)
    values = {key: [value for one in each if (value := one[key]) is not None] for key in keys}
    return {key: fmean(found) if found else None for key, found in values.items()}


def _plain_verdict(arms: Mapping[str, Arm]) -> str:
    """What runs that make no pair are told apart by: their scores."""
    parts = []
    for name, arm in arms.items():
        if arm.scores:
            spread = f" ± {shown(stdev(arm.scores), 'share')}" if len(arm.scores) > 1 else ""
            parts.append((name, f"{shown(fmean(arm.scores), 'share')}{spread} %"))
    if not parts:
        return "No scores yet."
    evaluation = next(one for arm in arms.values() for one in arm.evaluations)
    metric = "Top-1" if "top1" in evaluation else "Mean average precision"
    if len(parts) == 1:
        low_high = at(evaluation, "intervals", "top1") or at(evaluation, "intervals", "map")
        sure = f", 95 % interval {shown(low_high[0], 'share')} to {shown(low_high[1], 'share')}" if low_high else ""
        split = f" of split {evaluation['split']!r}" if evaluation.get("split") else ""
        return f"{metric} {parts[0][1]} on {evaluation.get('clips', '?'):,} clips{split}{sure}."
    return f"{metric}: {', '.join(f'{name} {score}' for name, score in parts)}. No pairs of alone and distilled here."


def _without_seed(run: Path, groups: Mapping[str, Sequence[Path]]) -> str:
    """The same for runs of one recipe and different seeds."""
    recipe = read_json(run / "recipe.json")
    if not recipe:
        return str(run)
    seed = recipe.pop("seed", 0)
    for name in ("track", "audit", "preflight", "weak_teacher", "checkpoint_every"):
        recipe.pop(name, None)
    key = json.dumps(recipe, sort_keys=True)
    # The same recipe and seed twice: a repetition, which is looked at beside the first.
    return f"{key} {run}" if seed in {_seed(other) for other in groups.get(key, ())} else key


def _seed(run: Path) -> int:
    return int(read_json(run / "recipe.json").get("seed", 0))


def _stem(run: Path) -> str:
    """A run's name without its seed: "alone-seed0" and "alone-seed1" are "alone"."""
    name = run.resolve().name
    return re.sub(r"[-_.]?(seed|s)?[-_]?\d+$", "", name) or name


def _free(name: str, taken: Iterable[str]) -> str:
    numbers = (f"{name} {number}" for number in range(2, 1000))
    return name if name not in taken else next(one for one in numbers if one not in taken)
