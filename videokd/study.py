"""An honest comparison: a student alone, distilled, and under controls, over paired seeds and lists, in one folder."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console

import videokd
from videokd import recipe as recipes
from videokd.arms import TEACHER, TITLES, WITHOUT_TEACHER, Fold, Study, anchored, arm_recipe, folds_of
from videokd.assembly import load_teachers, training_videos
from videokd.clips.dataset import FrameMemory
from videokd.clips.manifest import Manifest
from videokd.config import code_of, differing_fields, to_plain
from videokd.disk import write_text
from videokd.distill import check_taps
from videokd.evaluate import evaluate
from videokd.fidelity import against_teacher
from videokd.interruption import raise_if_stopped
from videokd.json_files import read_object
from videokd.leaks import shared, trained_on
from videokd.machine import terminal
from videokd.metrics import is_right
from videokd.models import load_model, save_model
from videokd.predictions import PREDICTIONS, VALIDATION, read_predictions, write_predictions
from videokd.preflight import Finding, held_out
from videokd.recipe import Recipe, TrainedTeacher
from videokd.report.comparison import write_evaluation
from videokd.report.paired import paired
from videokd.run_files import EVALUATION, STUDY, read_evaluation, read_run_file
from videokd.run_folder import essential, read_recipe
from videokd.study_plan import finished_seconds, forecast_seconds, plan_lines
from videokd.teachers import Mixture, Teacher
from videokd.timing import duration
from videokd.train import Interrupted, train

_UNTRAINED_SEED = 0
_MAY_CHANGE = ("seeds", "first_seed", "arms", "weak_teacher")
"""What may be another when a study goes on: a run of its own belongs to each."""


def study(
    plan: Study, out: str | Path, *, console: Console | None = None, go_on: str = "the same command"
) -> dict[str, Any]:
    """Trains and scores every arm of every pair in `out`, and returns what study.json says; what is there already is
    kept, so that the same call goes on with a study that was interrupted.

    Decoded videos are shared between runs that keep them in memory, and a teacher that remembers what it said serves
    all runs of its list. The untrained and the shuffled teacher, and the student that teaches itself, may well be at
    chance: their runs skip the preflight, which refuses such teachers.

    Args:
        plan: what to compare.
        out: folder of the study.
        console: where to report; None for the terminal.
        go_on: what an interruption names to go on with.

    Raises:
        ValueError: for a study that is not the one `out` holds (seeds and arms may be added or left out), or whose
            students or teacher train on what is scored; whose teacher is not better than chance on held-out clips, or
            worse than the student alone, unless the plan says to go on; or of a run, with its folder.
        Interrupted: after Ctrl-C in a run, which then goes on from its last step.
    """
    console, out = console or terminal(), Path(out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a study runs in one process, not by torchrun: it trains many small students one by one")
    plan = anchored(plan)
    folds = folds_of(plan, out)
    lists = {fold.number: _checked(plan, fold, console) for fold in folds}
    _claim(out, plan, lists)
    runs = _Runs(plan, out, folds, console, go_on, classes=lists[1].classes)
    for fold in folds:
        runs.teacher(fold, lists[fold.number])
        runs.check_teacher(fold, lists[fold.number])
        for seed in plan.seed_range:
            for arm in plan.chosen:
                runs.arm(arm, fold, seed, lists[fold.number])
                if arm == "alone" and seed == plan.first_seed:
                    runs.check_teacher(fold, lists[fold.number], fold.run(arm, seed))
    found = results(plan, out)
    write_text(out / STUDY, json.dumps(found, indent=2) + "\n")
    return found


def results(plan: Study, out: str | Path) -> dict[str, Any]:
    """What study.json says, from the finished and scored runs in `out`.

    Raises:
        ValueError: naming the runs that never finished, or were never scored.
    """
    out = Path(out)
    folds, seeds = folds_of(plan, out), plan.seed_range
    pairs = [(fold, seed) for fold in folds for seed in seeds]
    teachers = {fold.number: fold.folder / TEACHER for fold in folds}
    runs = {arm: [fold.run(arm, seed) for fold, seed in pairs] for arm in plan.chosen}
    unfinished = [one for many in (*runs.values(), teachers.values()) for one in many if not _is_scored(one)]
    if unfinished:
        named = ", ".join(one.relative_to(out).as_posix() for one in unfinished[:5])
        more = ", ..." if len(unfinished) > 5 else ""
        raise ValueError(f"{out}: {len(unfinished)} runs never finished, or were not scored: {named}{more}")
    scored = {arm: [read_evaluation(one) for one in many] for arm, many in runs.items()}
    taught = [read_evaluation(one) for one in teachers.values()]
    compared = [
        compare({TEACHER: teachers[fold.number]} | {arm: fold.run(arm, seed) for arm in plan.chosen})
        for fold, seed in pairs
    ]
    top1 = {arm: [one["top1"][arm] for one in compared] for arm in (TEACHER, *plan.chosen)}
    teacher_each = top1.pop(TEACHER)
    said = paired(top1, teacher=teacher_each, folds=[fold.number for fold, _ in pairs])
    return {
        "study": to_plain(plan),
        "videokd": videokd.__version__,
        "list": scored["alone"][0]["list"],
        "lists": list(dict.fromkeys(one["list"] for one in scored["alone"])),
        "split": plan.split,
        "chance": 1 / len(taught[0]["classes"]),
        "not_compared": [one["not_compared"] for one in compared],
        "teacher": {
            "runs": [one.relative_to(out).as_posix() for one in teachers.values()],
            "top1_each": [one["top1"][TEACHER] for one in compared[:: len(seeds)]],
            "params": taught[0]["params"],
            "macs": taught[0]["macs"],
        },
        "arms": {
            arm: {
                "title": TITLES.get(arm, arm),
                "runs": [one.relative_to(out).as_posix() for one in many],
                "pairs": [[fold.number, seed] for fold, seed in pairs],
                "top1_each": top1[arm],
                "top1_mean": fmean(top1[arm]),
                "top1_sd": stdev(top1[arm]) if len(pairs) > 1 else None,
                **_spent([read_run_file(one / "summary.json") for one in many]),
                **{what: scored[arm][0][what] for what in ("params", "macs", "clips")},
                "skipped": sum(len(one["skipped"]) for one in scored[arm]),
                "differs": _differs(many[0], runs["alone"][0]),
            }
            for arm, many in runs.items()
        },
        **{what: said[what] for what in ("differences", "gap_recovered", "beyond")},
        "against": {arm: _means([one["against"][arm] for one in compared]) for arm in plan.chosen},
        "per_class": {
            name: _means([one["per_class"][name] for one in compared if name in one["per_class"]])
            for name in taught[0]["classes"]
        },
        "verdict": said["verdict"],
    }


def compare(runs: Mapping[str, Path]) -> dict[str, Any]:
    """What the runs of one pair said of the clips that all of them could read: a clip that one model alone had to
    leave out (too short for it) is not compared.

    Args:
        runs: teacher and arms -> their folders.

    Returns:
        "not_compared": how many clips these are; "top1": by arm; "per_class": class -> arm -> share; "against": arm ->
        what it shares with the teacher, see `against_teacher`.
    """
    found = {arm: read_predictions(run) for arm, run in runs.items()}
    alone = found["alone"]
    common = set(alone.ids).intersection(*(one.ids for one in found.values()))
    said = {
        arm: one.rows(torch.tensor([name in common for name in one.ids], dtype=torch.bool)).of(
            [name for name in alone.ids if name in common], alone.classes
        )
        for arm, one in found.items()
    }
    known, label = said["alone"].is_labelled, said["alone"].label
    right = {arm: is_right(one).double() for arm, one in said.items()}
    return {
        "not_compared": len(set().union(*(one.ids for one in found.values())) - common),
        "top1": {arm: one[known].mean().item() for arm, one in right.items()},
        "per_class": {
            name: {arm: one[label == number].mean().item() for arm, one in right.items()}
            for number, name in enumerate(alone.classes)
            if bool((label == number).any())
        },
        "against": {
            arm: against_teacher(one, said[TEACHER], said["alone"]) for arm, one in said.items() if arm != TEACHER
        },
    }


class _Runs:
    """Trains and scores the runs of a study one after the other, and says how long the others will take."""

    def __init__(
        self, plan: Study, out: Path, folds: Sequence[Fold], console: Console, go_on: str, *, classes: Sequence[str]
    ) -> None:
        self.plan, self.out, self.console, self.go_on = plan, out, console, go_on
        self.memory = FrameMemory()
        self.seconds: dict[str, list[float]] = {}
        self.teachers: dict[str, dict[str, Teacher | Mixture]] = {}
        everything = {
            **{fold.folder / TEACHER: TEACHER for fold in folds},
            **{fold.run(arm, seed): arm for fold in folds for seed in plan.seed_range for arm in plan.chosen},
        }
        self.coming = list(everything.values())
        self.total = len(self.coming)
        self._print_plan(everything, classes=classes, first=folds[0])
        for run in everything:
            if (run / "recipe.json").is_file() and not (run / "model.json").is_file():
                console.print(f"{self._name(run)} was begun and never finished: it goes on", highlight=False)

    def _print_plan(self, runs: Mapping[Path, str], *, first: Fold, classes: Sequence[str]) -> None:
        """Print what is to be run and about how long it takes, by finished runs, or by a dry run on the first list."""
        finished = {run: _is_scored(run) for run in runs}
        seconds = finished_seconds(runs)
        left = {arm for run, arm in runs.items() if not finished[run]}
        measured = left <= seconds.keys()
        if not measured:
            plan = self.plan
            there = replace(
                plan,
                alone=first.of(plan.alone),
                distilled=first.of(plan.distilled),
                teacher=None if plan.teacher is None else first.of(plan.teacher),
                others={name: first.of(recipe) for name, recipe in plan.others.items()},
            )
            seconds = {**forecast_seconds(there, classes=classes, memory=self.memory), **seconds}
        for line in plan_lines(self.plan, runs=runs, finished=finished, seconds=seconds, measured=measured):
            self.console.print(line, highlight=False)

    def teacher(self, fold: Fold, whole: Manifest) -> None:
        """The fold's teacher: trained, or a copy of what the study names."""
        self.teachers.clear()
        folder = fold.folder / TEACHER
        if self.plan.trained_teacher is None:
            assert self.plan.teacher is not None
            self._run(TEACHER, fold.of(self.plan.teacher), folder, whole)
        else:
            _copy_run(Path(self.plan.trained_teacher), folder)
            self._score(TEACHER, fold.of(self.plan.distilled), folder, whole, spent=0.0)
        untrained = fold.folder / "untrained_teacher"
        if untrained.name in self.plan.chosen and not (untrained / "model.json").is_file():
            model = load_model(folder, trust=code_of(self.plan))
            torch.manual_seed(_UNTRAINED_SEED)
            save_model(model.config.build(model.classes, pretrained=False), untrained)

    def arm(self, arm: str, fold: Fold, seed: int, whole: Manifest) -> None:
        """One arm of one pair."""
        recipe = arm_recipe(self.plan, arm, fold, seed, classes=whole.classes)
        self._run(arm, recipe, fold.run(arm, seed), whole)

    def _run(self, arm: str, recipe: Recipe, folder: Path, whole: Manifest) -> None:
        raise_if_stopped()
        finished = (folder / "model.json").is_file()
        try:
            summary = train(
                recipe,
                folder,
                or_resume=True,
                teachers=None if finished or arm == "self_distilled" else self._teachers(recipe, whole.classes),
                memory=self.memory,
                console=Console(quiet=True) if finished else self.console,
            )
        except Interrupted as stop:
            raise Interrupted(stop.step, self.go_on, number=stop.number) from stop
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        self._score(arm, recipe, folder, whole, spent=float(summary["seconds"]))

    def check_teacher(self, fold: Fold, whole: Manifest, alone: Path | None = None) -> None:
        """Check that the fold's teacher knows something of held-out clips, and more than the student alone if that is
        given, while there are runs to come that learn from it: on validation clips where there are any, else on those
        that are scored.

        Raises:
            ValueError: if it does not, and the plan does not say to go on with a warning.
        """
        taught = [arm for arm in self.plan.chosen if arm not in WITHOUT_TEACHER]
        runs = [fold.run(arm, seed) for arm in taught for seed in self.plan.seed_range]
        if all(_is_scored(run) for run in runs):
            return
        teacher = fold.folder / TEACHER
        validated = all((one / VALIDATION).is_file() for one in (teacher, alone or teacher))
        val = held_out.validation_split(whole, self.plan.alone, scored=self.plan.split)
        split = str(val) if validated else self.plan.split
        said = read_predictions(teacher, name=VALIDATION if validated else PREDICTIONS)
        if alone is None:
            score = held_out.score_of_predictions(said, split=split)
            if score is not None:
                self._print_or_stop(held_out.finding_of(TEACHER, score, stop=True))
        else:
            student = read_predictions(alone, name=VALIDATION if validated else PREDICTIONS)
            self._print_or_stop(held_out.finding_beside(student, said, split=split))

    def _print_or_stop(self, finding: Finding) -> None:
        if finding.level == "error" and self.plan.weak_teacher == "stop":
            raise ValueError(f"{finding.said}. The study stops before the runs that learn from it")
        level = "" if finding.level == "ok" else "careful: "
        self.console.print(f"{level}{finding.said}", highlight=False)

    def _score(self, arm: str, recipe: Recipe, folder: Path, whole: Manifest, *, spent: float) -> None:
        started = time.monotonic()
        is_new = not _is_scored(folder)
        if is_new:
            val = held_out.validation_split(whole, self.plan.alone, scored=self.plan.split)
            validation = None if val is None else whole.split(val)
            found = evaluate(
                folder,
                whole.split(self.plan.split),
                machine=recipe.machine,
                workers=recipe.data.workers,
                on_bad_video="error" if recipe.data.on_bad_video == "error" else "skip",
                time_limit=recipe.data.time_limit,
                memory=self.memory if recipe.data.in_memory else None,
                calibrate_on=validation,
                trust=code_of(self.plan),
            )
            # That nobody was trained on them was seen to before the first run.
            how = {"split": self.plan.split, "protocol": None, "model": str(folder), "trained_on": 0}
            if found.validation is not None:
                write_predictions(folder, found.validation, name=VALIDATION)
            write_evaluation(folder, replace(found, numbers={**found.numbers, **how}))
        self.seconds.setdefault(arm, []).append(spent + time.monotonic() - started)
        self.coming.remove(arm)
        if is_new:
            top1 = read_evaluation(folder)["top1"]
            said = f"[{self.total - len(self.coming)}/{self.total}] {self._name(folder)}: top-1 {100 * top1:.1f} %"
            self.console.print(f"{said}, {duration(self.seconds[arm][-1])}{self._forecast()}", highlight=False)

    def _forecast(self) -> str:
        """What the runs that are left will take, by those of the same arm, or of all students where there is none."""
        students = [one for arm, many in self.seconds.items() if arm != TEACHER for one in many]
        if not self.coming or not students:
            return ""
        left = sum(fmean(self.seconds.get(arm) or students) for arm in self.coming)
        return f"; about {duration(left)} left for {len(self.coming)} runs"

    def _teachers(self, recipe: Recipe, classes: Sequence[str]) -> dict[str, Teacher | Mixture] | None:
        """Loaded teachers that remember what they said, for all runs of the list that have the same; None lets the run
        load its own."""
        source = recipe.teachers.get(TEACHER)
        if not isinstance(source, TrainedTeacher) or not source.remember:
            return None
        plain = recipes.anchored(
            replace(recipe, teachers={**recipe.teachers, TEACHER: replace(source, shuffled=False)})
        )
        # They remember what they said of these views at these taps.
        # Which frames and which box a teacher is shown depends on what the student wants, too.
        seen = (plain.teachers, plain.objective, plain.data, plain.machine, plain.student)
        key = json.dumps([to_plain(part) for part in seen])
        if key not in self.teachers:
            self.teachers[key] = load_teachers(plain, classes)
        found = dict(self.teachers[key])
        shared_one = found[TEACHER]
        if source.shuffled and isinstance(shared_one, Teacher):
            found[TEACHER] = shared_one.shuffled()
        return found

    def _name(self, run: Path) -> str:
        return run.relative_to(self.out).as_posix()


def _checked(plan: Study, fold: Fold, console: Console) -> Manifest:
    """The list of the fold.

    Raises:
        ValueError: if an arm or a teacher is trained or selected on what is scored, or the student has not the taps
            that it would be taught at by itself.
    """
    whole = fold.of(plan.alone).data.manifest()
    if whole.multi_label:
        raise ValueError(f"{whole.source} has several labels a video: a study compares top-1, of one label")
    test = whole.split(plan.split)
    for arm, recipe in plan.recipes.items():
        recipe = fold.of(recipe)
        listed = recipe.data.manifest()
        used = {"trains": training_videos(listed, recipe)}
        if recipe.data.val_split is not None:
            used["selects"] = listed.split(recipe.data.val_split)
        for what, videos in used.items():
            _refuse(shared(videos, test, of=listed), f"{arm} {what} on clips of {listed.source}", test)
    if "self_distilled" in plan.chosen:
        model = plan.distilled.student.build(whole.classes, pretrained=False)
        try:
            check_taps(plan.distilled.objective, {"student": model, TEACHER: model})
        except ValueError as error:
            raise ValueError(f"the student can't teach itself, leave out self_distilled (arms): {error}") from error
    teachers = {
        source.checkpoint
        for arm, recipe in plan.recipes.items()
        for name, source in recipe.teachers.items()
        if isinstance(source, TrainedTeacher) and name != TEACHER
    }
    for teacher in sorted(teachers | ({plan.trained_teacher} if plan.trained_teacher else set())):
        seen = trained_on(teacher, test)
        if seen is None:
            console.print(f"what {teacher} was trained on is not known: see to it that no scored clip is among it")
        _refuse(seen or (), f"the teacher {teacher} was trained on clips", test)
    return whole


def _refuse(seen: Sequence[str], what: str, test: Manifest) -> None:
    if seen:
        raise ValueError(
            f"{what} that are scored, or on others of the same source: {len(seen)} of {len(test.videos)}, such as "
            f"{seen[0]}; the comparison would be worth nothing. Take them out of one of the two"
        )


def _claim(out: Path, plan: Study, lists: Mapping[int, Manifest]) -> None:
    """Refuses a folder that holds something else, and remembers what is compared in this one."""
    path = out / "plan.json"
    now = {"study": to_plain(plan), "lists": {str(number): _digest(one) for number, one in lists.items()}}
    # A plan of which nothing was begun may become another.
    if path.is_file() and set(out.iterdir()) - {path}:
        before = read_object(path)
        if changed := differing_fields(_essential(before["study"]), _essential(now["study"])):
            named = ", ".join(f"{name} was {one!r} and is {other!r}" for name, (one, other) in changed.items())
            raise ValueError(f"{out} holds another study ({named}); go on with the same one, or name another --out")
        if before["lists"] != now["lists"]:
            raise ValueError(f"the list of {out} has changed since its study began: name another --out")
    elif not path.is_file() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something that is not a study; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(now, indent=2) + "\n")


def _essential(study: Mapping[str, Any]) -> dict[str, Any]:
    """A plain study without what may change while it runs: see `essential`, and `_MAY_CHANGE`."""
    found = {name: part for name, part in study.items() if name not in _MAY_CHANGE}
    for name in ("alone", "distilled", "teacher"):
        found[name] = found[name] and essential(found[name])
    return {**found, "others": {name: essential(recipe) for name, recipe in study["others"].items()}}


def _digest(manifest: Manifest) -> str:
    """A number for the rows of a list, in so far as they matter."""
    rows = [[video.id, video.names, video.split, video.group] for video in manifest.videos]
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def _copy_run(run: Path, folder: Path) -> None:
    """A trained teacher as part of the study, whatever becomes of the original."""
    if (folder / "model.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    # The description last: a folder that has it is whole.
    for name in ("recipe.json", "metrics.jsonl", "summary.json", "model.safetensors", "model.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)


def _is_scored(run: Path) -> bool:
    """Whether a run is finished, and its scores are of the model that it left."""
    model, scores = run / "model.json", run / EVALUATION
    there = all(one.is_file() for one in (model, scores, run / PREDICTIONS))
    return there and scores.stat().st_mtime_ns >= model.stat().st_mtime_ns


def _spent(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, and seconds with and without validation."""
    steps = [one["seconds_per_step"] for one in summaries]
    return {
        "steps": max(one["steps"] for one in summaries),
        "seconds_each": [one["seconds"] for one in summaries],
        "seconds_per_step": fmean(
            sum(parts.values()) if parts else one["seconds"] / one["steps"]
            for parts, one in zip(steps, summaries, strict=True)
        ),
    }


def _differs(run: Path, alone: Path) -> list[str]:
    """Fields of the recipe in which an arm is not the student alone, apart from what makes it an arm."""
    one, other = (read_recipe(folder) for folder in (run, alone))
    left_out = ("teachers", "objective", "preflight", "weak_teacher")
    return [name for name in differing_fields(other, one) if name.partition(".")[0] not in left_out]


def _means(found: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Means of the same numbers of several pairs; None where no pair has it."""
    values = {
        name: [value for one in found if (value := one[name]) is not None] for name in (found[0] if found else ())
    }
    return {name: fmean(known) if known else None for name, known in values.items()}
