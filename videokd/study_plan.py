"""What a study is going to run and about how long that takes, before its first step."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from videokd.arms import TEACHER, WITHOUT_TEACHER, Study, equal_compute_steps
from videokd.assembly import assemble
from videokd.clips.dataset import FrameMemory
from videokd.models import load_model
from videokd.models.cost import cost
from videokd.preflight import preflight
from videokd.recipe import Recipe, TrainedTeacher
from videokd.run_files import read_run_file
from videokd.timing import duration

DRY_RUN_BATCHES = 2


def plan_lines(
    plan: Study,
    *,
    runs: Mapping[Path, str],
    finished: Mapping[Path, bool],
    seconds: Mapping[str, float],
    measured: bool,
) -> list[str]:
    """Return the plan in lines: arms, runs, steps, clips, what is there already, and a forecast.

    Args:
        plan: of the study.
        runs: every run's folder -> its arm, the teacher's too.
        finished: folder -> whether the run is finished and scored.
        seconds: arm -> about how long one run takes; arms that are not in it have no forecast.
        measured: whether `seconds` are those of finished runs alone, and not of a dry run.
    """
    counts, done = Counter(runs.values()), Counter(arm for run, arm in runs.items() if finished[run])
    begun = sum((run / "recipe.json").is_file() and not (run / "model.json").is_file() for run in runs)
    state = f"{sum(done.values())} finished, {begun} begun" if done or begun else "none begun"
    lines = [f"Plan: {len(runs)} runs, {state}."]
    for arm, count in counts.items():
        recipe = plan.recipes.get(arm, plan.alone if arm in WITHOUT_TEACHER else plan.distilled)
        parts = [f"{count} run{'s' * (count > 1)}"]
        if arm == TEACHER and plan.trained_teacher is not None:
            parts.append(f"a copy of {plan.trained_teacher}")
        elif arm == "equal_compute":
            parts.append("as many steps as pay for the teacher")
        else:
            parts.append(f"{recipe.optim.steps} steps of {recipe.data.batch_size} clips")
        if done[arm]:
            parts.append(f"{done[arm]} finished")
        if arm in seconds and done[arm] < count:
            parts.append(f"about {duration(seconds[arm])} each")
        lines.append(f"  {arm}: {', '.join(parts)}")
    left = [arm for run, arm in runs.items() if not finished[run]]
    if left and all(arm in seconds for arm in left):
        whole = sum(seconds[arm] for arm in left)
        how = "by the runs that are finished" if measured else f"by a dry run of {DRY_RUN_BATCHES} batches"
        lines.append(f"About {duration(whole)} for the {len(left)} runs to come ({how}; scoring is not counted).")
    elif left:
        lines.append("No forecast: the dry run of a recipe failed, or there is nothing to measure.")
    if left and len(counts) > 3:
        lines.append("Only the student alone and distilled: --arms alone distilled")
    return lines


def finished_seconds(runs: Mapping[Path, str]) -> dict[str, float]:
    """Return arm -> the mean seconds of its runs that are finished."""
    found: dict[str, list[float]] = {}
    for run, arm in runs.items():
        summary = run / "summary.json"
        if (run / "model.json").is_file() and summary.is_file():
            found.setdefault(arm, []).append(float(read_run_file(summary)["seconds"]))
    return {arm: fmean(each) for arm, each in found.items()}


def forecast_seconds(plan: Study, *, classes: Sequence[str], memory: FrameMemory) -> dict[str, float]:
    """Return arm -> about how many seconds one of its runs takes; empty where no batch can be run.

    The student alone, and the teacher where it is to be trained, are measured by a dry run. The others follow from
    multiply-accumulates as equal compute does: a teacher costs a forward pass of each clip, a student three.
    """
    alone = _dry_run(plan.alone, memory)
    if alone is None:
        return {}
    found = {"alone": alone, "label_smoothing": alone}
    if plan.trained_teacher is not None:
        source = plan.distilled.teachers[TEACHER]
        assert isinstance(source, TrainedTeacher)
        teacher_macs = cost(load_model(plan.trained_teacher, trust=source.trust)).macs
        found[TEACHER] = 0.0
    else:
        assert plan.teacher is not None
        teacher_macs = cost(plan.teacher.student.build(classes, pretrained=False)).macs
        taught = _dry_run(plan.teacher, memory)
        if taught is None:
            return {}
        found[TEACHER] = taught
    student_macs = cost(plan.alone.student.build(classes, pretrained=False)).macs

    def of(recipe: Recipe, macs: int) -> float:
        steps = equal_compute_steps(
            steps=recipe.optim.steps,
            student_macs=student_macs,
            teacher_macs=macs,
            distilled_clips=recipe.data.batch_size,
            alone_clips=plan.alone.data.batch_size,
            shuffled=any(term.loss.pieces for term in recipe.objective.values()),
        )
        return alone * steps / plan.alone.optim.steps

    distilled = of(plan.distilled, teacher_macs)
    found |= dict.fromkeys(("equal_compute", "distilled", "untrained_teacher", "shuffled_teacher"), distilled)
    found["self_distilled"] = of(plan.distilled, student_macs)
    return found | {name: of(recipe, teacher_macs) for name, recipe in plan.others.items()}


def _dry_run(recipe: Recipe, memory: FrameMemory) -> float | None:
    """Seconds of a run without teachers, by its first batches; None where they can't be run: the run says why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run warns
            made = assemble(recipe, memory=memory if recipe.data.in_memory else None)
            report = preflight(made, batches=DRY_RUN_BATCHES)
    except ValueError:
        return None
    return None if report.forecast is None else report.forecast.seconds
