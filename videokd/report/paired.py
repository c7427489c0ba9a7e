"""What paired runs of a study say: differences with intervals, the share of the gap recovered, and a verdict in words.

A pair is one seed on one list (fold): all arms of a pair have the same initial weights, order, views and steps, so what
they differ by is the arm. Pairs are the units of every interval (Student's t over them). They are not independent:
seeds of one fold share its test clips and its teacher, and folds share most of their training clips, so an interval
tells how the result varies over seeds and folds of this set, and is too narrow for other sets [Bengio and Grandvalet
2004: no unbiased estimate of the variance over folds exists]. Where there are several folds, their means are given too:
a gain that one fold alone makes is not to be trusted, whatever its interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from videokd.arms import TITLES
from videokd.evaluate import gap_recovered, interval
from videokd.report.comparison import points, verdict

WITHOUT_TEACHER = ("label_smoothing", "equal_compute")
"""Arms that a gain from a teacher has to exceed."""
WRONG_TEACHER = ("self_distilled", "untrained_teacher", "shuffled_teacher")
"""Arms whose teacher knows nothing that the student alone does not."""


def paired(top1: Mapping[str, Sequence[float]], *, teacher: Sequence[float], folds: Sequence[int]) -> dict[str, Any]:
    """What the arms' scores say: "differences" to "alone", "gap_recovered", "beyond" and "verdict".

    Args:
        top1: arm -> a share of clips for each pair; "alone" and "distilled" among them.
        teacher: that of each pair's teacher.
        folds: each pair's fold.

    Returns:
        Plain numbers. "differences": arm -> mean, 95 % interval (None for one pair), each pair's, in how many it is
        above zero, the mean of each fold where there are several, and a sentence. "gap_recovered": arm -> G with a
        jackknife interval, or None where the gap is too small. "beyond": the distilled arm's differences to every
        other one. "verdict": a paragraph on the distilled arm.
    """
    alone = top1["alone"]
    gap = fmean(teacher) - fmean(alone)
    others = [arm for arm in top1 if arm != "alone"]
    differences = {arm: difference(top1[arm], alone, folds=folds) for arm in others}
    for arm, found in differences.items():
        found["verdict"] = verdict(found["each"], gap=gap if arm == "distilled" else None, subject=subject(arm))
    beyond = {arm: difference(top1["distilled"], top1[arm], folds=folds) for arm in others if arm != "distilled"}
    return {
        "differences": differences,
        "gap_recovered": {arm: _gap_recovered(teacher, alone, top1[arm]) for arm in others},
        "beyond": beyond,
        "verdict": headline(differences, beyond),
    }


def difference(one: Sequence[float], other: Sequence[float], *, folds: Sequence[int]) -> dict[str, Any]:
    """one - other, paired by place."""
    each = [after - before for after, before in zip(one, other, strict=True)]
    by_fold = {fold: [value for value, of in zip(each, folds, strict=True) if of == fold] for fold in folds}
    return {
        **asdict(interval(each)),
        "each": each,
        "positive": sum(value > 0 for value in each),
        "folds": [fmean(values) for values in by_fold.values()] if len(by_fold) > 1 else None,
    }


def headline(differences: Mapping[str, Mapping[str, Any]], beyond: Mapping[str, Mapping[str, Any]]) -> str:
    """A paragraph: whether distillation helped, and if so, whether it was the teacher.

    Args:
        differences: of every arm to the student alone, with their verdicts.
        beyond: of the distilled arm to every other one.
    """
    distilled = differences["distilled"]
    said = [distilled["verdict"]]
    if distilled["folds"] is not None:
        said.append(f"Fold by fold: {', '.join(f'{100 * mean:+.1f}' for mean in distilled['folds'])}.")
    if distilled["low"] is None:
        return " ".join(said)
    helped = distilled["low"] > 0
    for arm in WITHOUT_TEACHER if helped else ():
        if arm in beyond:
            said.append(_without_teacher(arm, beyond[arm]))
    for arm in WRONG_TEACHER:
        if arm in beyond:
            said += _wrong_teacher(arm, differences[arm], beyond[arm], helped=helped)
    return " ".join(said)


def subject(arm: str) -> str:
    """The arm as the beginning of a sentence."""
    if arm == "distilled":
        return "Distillation"
    wrong = {"untrained_teacher": "An untrained teacher", "shuffled_teacher": "A shuffled teacher"}
    named = {**wrong, "equal_compute": "Training alone at equal compute", "self_distilled": "Teaching itself"}
    title = TITLES.get(arm, arm)
    return named.get(arm, title[:1].upper() + title[1:])


def _without_teacher(arm: str, beyond: Mapping[str, Any]) -> str:
    if beyond["low"] > 0:
        return f"It is better than {TITLES[arm]} ({points(beyond)})."
    if beyond["mean"] <= 0:
        return f"{subject(arm)} reaches as far (distillation - this: {points(beyond)}): the gain is not the teacher's."
    return f"It is not shown to be better than {TITLES[arm]} ({points(beyond)}): the gain may not be the teacher's."


def _wrong_teacher(arm: str, alone: Mapping[str, Any], beyond: Mapping[str, Any], *, helped: bool) -> list[str]:
    """What a control says, if it says anything: it does as well, or it moves the student."""
    if helped and beyond["mean"] <= 0:
        return [f"{subject(arm)} does as well (distillation - this: {points(beyond)}): {_MEANS[arm]}."]
    if helped and beyond["low"] <= 0:
        return [f"Distillation is not shown to be better than with {_WITH[arm]} ({points(beyond)})."]
    if alone["low"] > 0:
        return [f"{subject(arm)} moves the student too, by {points(alone)}: so much is not the teacher's."]
    return []


_WITH = {
    "self_distilled": "the student as its own teacher",
    "untrained_teacher": "an untrained teacher",
    "shuffled_teacher": "a shuffled teacher",
}
_MEANS = {
    "self_distilled": "the teacher adds nothing to what the student knows by itself",
    "untrained_teacher": "what helped is not what the teacher was trained for",
    "shuffled_teacher": "what helped is not what the teacher says of the clips",
}


def _gap_recovered(
    teacher: Sequence[float], alone: Sequence[float], arm: Sequence[float]
) -> dict[str, float | None] | None:
    """G over pairs that may have different teachers: each pair is moved so that its teacher stands at the mean of all,
    which leaves every difference as it is."""
    mean = fmean(teacher)
    moved = [mean - one for one in teacher]
    found = gap_recovered(
        teacher=mean,
        alone=[one + move for one, move in zip(alone, moved, strict=True)],
        distilled=[one + move for one, move in zip(arm, moved, strict=True)],
    )
    return None if found is None else asdict(found)


def besides(study: Mapping[str, Any]) -> list[str]:
    """Sentences of a study.json on arms whose recipes differ from the student alone in more than what makes them an
    arm (its teacher, its loss, its steps at equal compute)."""
    fields: dict[tuple[str, ...], list[str]] = {}
    for arm, found in study["arms"].items():
        own = ("optim.steps",) if arm == "equal_compute" else ()
        if others := tuple(name for name in found.get("differs", ()) if name not in own):
            fields.setdefault(others, []).append(found["title"])
    return [f"Not as for the student alone: {_listed(names)} of {_listed(of)}." for names, of in fields.items()]


def not_compared(study: Mapping[str, Any]) -> str | None:
    """A sentence of a study.json on clips that not all models could read; None if there are none."""
    most = max(study.get("not_compared", ()), default=0)
    clips = "1 clip is" if most == 1 else f"{most:,} clips are"
    return f"In a pair up to {clips} not compared, since not all of its models could read them." if most else None


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


STUDY_COLUMNS = ("arm", "top-1 %", "- alone", "95 % interval", "above 0", "G %", "steps", "s/step")


def study_rows(study: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for the teacher and each arm of a study.json, under `STUDY_COLUMNS`."""
    rows: list[tuple[str, ...]] = [("teacher", _mean_and_sd(study["teacher"]["top1_each"]), *[""] * 6)]
    for arm, found in study["arms"].items():
        row = [found["title"], _mean_and_sd(found["top1_each"]), "", "", "", ""]
        if arm in study["differences"]:
            to_alone = study["differences"][arm]
            recovered = study["gap_recovered"][arm]
            row[2] = f"{100 * to_alone['mean']:+.1f}"
            row[3] = "" if to_alone["low"] is None else f"{100 * to_alone['low']:+.1f} to {100 * to_alone['high']:+.1f}"
            row[4] = f"{to_alone['positive']} of {len(to_alone['each'])}"
            row[5] = "" if recovered is None else f"{100 * recovered['mean']:.0f}"
        rows.append((*row, f"{found['steps']}", f"{found['seconds_per_step']:.3f}"))
    return rows


def _mean_and_sd(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"
