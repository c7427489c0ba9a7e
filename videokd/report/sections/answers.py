"""What the answers look like from near: by class, by mistake, by confidence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videokd.report import figures
from videokd.report.content import Block, Cell, Column, Missing, Panel, Plot, Section, Table, shown
from videokd.report.looks import TEACHER
from videokd.report.subject import Arm, Subject

CLASSES_OF_A_PLOT = 24
"""With more, only those that changed most are drawn."""
CLASSES_OF_A_MATRIX = 30
MISTAKES = 60
CLIPS_OF_A_BIN = 5
"""With fewer, the accuracy of a bin of confidence says nothing."""


def classes(subject: Subject) -> Section | Missing:
    """Accuracy by class: who gained and who lost."""
    found: Mapping[str, Mapping[str, float | None]] = subject.compared.get("per_class") or {}
    several = dict.fromkeys(label for one in _evaluations(subject) for label in one.get("average_precision") or ())
    if several:
        found = {
            label: {name: arm.mean("average_precision", label) for name, arm in subject.arms.items()}
            for label in several
        }
    if not any(value is not None for each in found.values() for value in each.values()):
        return Missing(title="Classes", why="no run is evaluated by class", command="videokd evaluate RUN")
    baseline, main = subject.baseline, subject.main
    arms = [name for name in subject.arms if any(each.get(name) is not None for each in found.values())]
    clips = _clips(subject)
    columns = [Column(title="class", kind="name")]
    columns += [Column(title="clips", kind="count")] if clips else []
    columns += [Column(title=f"{subject.looks[name].title} %", kind="share") for name in arms]
    paired = baseline is not None and main is not None and baseline in arms and main in arms
    gains = {label: _gain(each, baseline, main) if paired else None for label, each in found.items()}
    columns += [Column(title="gained", kind="points", note="main arm against the student alone")] if paired else []
    alone = len(arms) == 1
    columns += [Column(title="precision %", kind="share"), Column(title="F1 %", kind="share")] if alone else []
    order = sorted(found, key=lambda label: -(gains[label] or 0)) if paired else list(found)
    rows: list[list[Cell]] = []
    for label in order:
        row: list[Cell] = [label, *([clips.get(label)] if clips else []), *(found[label].get(name) for name in arms)]
        row += [gains[label]] if paired else []
        row += [subject.arms[arms[0]].mean("per_class", label, key) for key in ("precision", "f1")] if alone else []
        rows.append(row)
    blocks: list[Block] = []
    if paired and baseline and main:
        drawn = order
        if len(order) > CLASSES_OF_A_PLOT:
            drawn = [*order[: CLASSES_OF_A_PLOT // 2], *order[-CLASSES_OF_A_PLOT // 2 :]]
        few = [name for name in (TEACHER, baseline, main) if name in arms]
        figure = figures.dumbbells(
            drawn,
            {name: [found[label].get(name) for label in drawn] for name in few},
            subject.looks,
            before=baseline,
            after=main,
        )
        gained, lost = (sum(sign * (gain or 0) > 1e-9 for gain in gains.values()) for sign in (1, -1))
        best = ", ".join(f"{label} {shown(gains[label], 'points')}" for label in [*order[:3], *order[-2:]])
        left = "" if drawn is order else f" Of {len(order)} classes, the {len(drawn)} that changed most are drawn."
        blocks.append(
            Plot(
                name="classes",
                caption=f"{gained} classes gained, {lost} lost. Each line runs from the student alone to "
                f"{subject.looks[main].title}, in the colour of the one that is ahead; the best gains are on top, what "
                f"was lost is at the bottom.{left}",
                panels=[Panel(figure=figure, said=f"accuracy by class; gains: {best}", wide=True)],
                arms=few,
            )
        )
    blocks.append(Table(title="All classes" if blocks else "", columns=columns, rows=rows, folded=bool(blocks)))
    lead = "A mean can hide that some classes pay for others." if paired else ""
    return Section(name="classes", title="Classes", lead=lead, blocks=blocks)


def confusion(subject: Subject) -> Section | Missing:
    """Which class is taken for which."""
    counts = {name: found for name in subject.shown if (found := _confusion(subject.arms[name])) is not None}
    if not counts:
        return Missing(title="Confusion", why="no evaluation has a confusion matrix", command="videokd evaluate RUN")
    names = counts[next(iter(counts))][0]
    counts = {arm: found for arm, found in counts.items() if set(found[0]) == set(names)}
    shares = {}
    for arm, (order, matrix) in counts.items():
        places = [order.index(name) for name in names]
        matrix = matrix[np.ix_(places, places)]
        shares[arm] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    blocks: list[Block] = []
    if len(names) <= CLASSES_OF_A_MATRIX:
        panels = [
            Panel(
                figure=figures.heat(
                    {subject.looks[arm].title: share},
                    rows=names,
                    columns=names,
                    row_axis="true class",
                    column_axis="predicted class",
                    percent=True,
                    width=3.4,
                ),
                said=f"confusion of {subject.looks[arm].title}: {_worst(share, names)}",
            )
            for arm, share in shares.items()
        ]
        blocks.append(
            Plot(
                name="confusion",
                caption="Per cent of each true class (rows) that is taken for each class (columns), over all runs. A "
                "good model has its colour on the diagonal alone.",
                panels=panels,
            )
        )
    last = subject.main if subject.main in shares else list(shares)[-1]
    blocks.append(_mistakes(subject, shares, names, last=str(last)))
    return Section(
        name="confusion",
        title="Confusion",
        lead="Which mistakes are left, and which the teacher took away.",
        blocks=blocks,
    )


def calibration(subject: Subject) -> Section | Missing:
    """How far the confidence can be taken at its word."""
    found = {
        name: [one["calibration"] for one in arm.evaluations if one.get("calibration")]
        for name, arm in subject.arms.items()
    }
    found = {name: each for name, each in found.items() if each}
    if not found:
        return Missing(title="Calibration", why="no evaluation has it", command="videokd evaluate RUN")
    panels = []
    kinds = [("as it is", found)]
    scaled = {name: [one["scaled"] for one in each if one.get("scaled")] for name, each in found.items()}
    if any(scaled.values()):
        kinds.append(("after temperature", {name: each for name, each in scaled.items() if each}))
    for title, each in kinds:
        bins = {name: _bins(each[name]) for name in subject.shown if each.get(name)}
        said = ", ".join(f"{subject.looks[name].title} {shown(_mean(each[name], 'ece'), 'share')} %" for name in bins)
        figure = figures.reliability(bins, subject.looks, title=title)
        panels.append(
            Panel(figure=figure, said=f"accuracy over confidence {title}; expected calibration error: {said}")
        )
    columns = [Column(title="arm", kind="arm"), Column(title="NLL", note="negative log-likelihood, nats")]
    columns += [Column(title="Brier"), Column(title="ECE %", kind="share", note="expected calibration error")]
    after = len(kinds) > 1
    columns += (
        [
            Column(title="temperature"),
            Column(title="NLL, scaled"),
            Column(title="Brier, scaled"),
            Column(title="ECE %, scaled", kind="share"),
        ]
        if after
        else []
    )
    rows: list[list[Cell]] = []
    for name, of_runs in found.items():
        row: list[Cell] = [name, *(_mean(of_runs, key) for key in ("nll", "brier", "ece"))]
        row += [_mean(of_runs, "temperature")] if after else []
        row += [_mean(scaled[name], key) for key in ("nll", "brier", "ece")] if after else []
        rows.append(row)
    fitted = list(dict.fromkeys(one["fitted_on"] for each in found.values() for one in each if one.get("fitted_on")))
    note = (
        f"Temperatures were fitted on {'; '.join(fitted)}."
        if fitted
        else "No temperature was fitted: that needs a validation split."
    )
    return Section(
        name="calibration",
        title="Calibration",
        lead="Whether a model that says 80 % is right four times in five.",
        blocks=[
            Plot(
                name="calibration",
                caption="On the dashed line confidence is honest; below it the model is surer than it should be. The "
                "size of a mark is the share of clips; bins of fewer than five are left out. Of all numbers, lower is "
                "better.",
                panels=panels,
                arms=[name for name in subject.shown if name in found],
                numbers=None,
            ),
            Table(columns=columns, rows=rows, note=note),
        ],
    )


def _evaluations(subject: Subject) -> list[Mapping[str, Any]]:
    return [one for arm in subject.arms.values() for one in arm.evaluations]


def _clips(subject: Subject) -> dict[str, int]:
    """Clips of each class that were scored, of all folds."""
    found: Counter[str] = Counter()
    for evaluation in subject.scored_once:
        for label, one in (evaluation.get("per_class") or {}).items():
            if isinstance(one, Mapping) and "clips" in one:
                found[label] += one["clips"]
    return dict(found)


def _gain(each: Mapping[str, float | None], baseline: str | None, main: str | None) -> float | None:
    before, after = each.get(str(baseline)), each.get(str(main))
    return None if before is None or after is None else after - before


def _confusion(arm: Arm) -> tuple[list[str], NDArray[np.float64]] | None:
    """Classes, and counts over all runs of an arm, as far as they know the same classes."""
    scored = [one for one in arm.evaluations if one.get("confusion")]
    if not scored:
        return None
    names = scored[0]["classes"]
    total = np.zeros((len(names), len(names)))
    for one in scored:
        if set(one["classes"]) == set(names):
            places = [one["classes"].index(name) for name in names]
            total += np.array(one["confusion"], dtype=float)[np.ix_(places, places)]
    return list(names), total


def _worst(share: NDArray[np.float64], names: Sequence[str]) -> str:
    wrong = share * (1 - np.eye(len(names)))
    most = np.argsort(-wrong, axis=None, kind="stable")[:3]
    found = [(names[place // len(names)], names[place % len(names)], wrong.flat[place]) for place in most]
    return (
        ", ".join(f"{true} taken for {said} in {100 * part:.0f} %" for true, said, part in found if part > 0) or "none"
    )


def _mistakes(subject: Subject, shares: Mapping[str, NDArray[np.float64]], names: Sequence[str], *, last: str) -> Table:
    paired = subject.baseline in shares and subject.main in shares
    columns = [Column(title="true class", kind="name"), Column(title="taken for", kind="name")]
    columns += [Column(title=f"{subject.looks[arm].title} %", kind="share") for arm in shares]
    columns += [Column(title="changed", kind="points", note="negative: the mistake became rarer")] if paired else []
    most = np.max([share * (1 - np.eye(len(names))) for share in shares.values()], axis=0)
    order = [place for place in np.argsort(-most, axis=None, kind="stable") if most.flat[place] > 0][:MISTAKES]
    order.sort(key=lambda place: -shares[last].flat[place])
    rows: list[list[Cell]] = []
    for place in order:
        row: list[Cell] = [names[place // len(names)], names[place % len(names)]]
        row += [float(share.flat[place]) for share in shares.values()]
        if paired:
            row.append(float(shares[str(subject.main)].flat[place] - shares[str(subject.baseline)].flat[place]))
        rows.append(row)
    left = int((most > 0).sum()) - len(order)
    note = "Per cent of the true class's clips." + (f" {left} rarer pairs are left out." if left > 0 else "")
    return Table(title="Most confused pairs", columns=columns, rows=rows, note=note)


def _bins(each: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float]]:
    """Confidence, accuracy and share of the clips, of the bins that have some, over all runs."""
    total = sum(one["clips"] for found in each for one in found["bins"])
    points = []
    for same in zip(*(found["bins"] for found in each), strict=False):
        clips = sum(one["clips"] for one in same)
        if clips >= CLIPS_OF_A_BIN:
            sure, right = (
                sum(one["clips"] * (one[key] or 0) for one in same) / clips for key in ("confidence", "accuracy")
            )
            points.append((sure, right, clips / total))
    return points


def _mean(each: Sequence[Mapping[str, Any]], key: str) -> float | None:
    found = [one[key] for one in each if one.get(key) is not None]
    return fmean(found) if found else None
