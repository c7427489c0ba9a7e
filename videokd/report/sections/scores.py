"""Who is better, by how much, at what cost, and how they came there."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from videokd.report import figures
from videokd.report.content import (
    Block,
    Cell,
    Column,
    Figures,
    Missing,
    Panel,
    Plot,
    Prose,
    Section,
    Span,
    Spread,
    Table,
    shown,
)
from videokd.report.looks import TEACHER
from videokd.report.paired import besides
from videokd.report.subject import Arm, Run, Subject, at, views_said

POINTS_OF_A_CURVE = 100
"""A longer log is averaged over steps that lie together."""


def headline(subject: Subject) -> Section | Missing:
    """What distillation gained, the arms beside each other, and how sure that is."""
    scored = {name: arm for name, arm in subject.arms.items() if arm.scores}
    if not scored:
        return Missing(title="Scores", why="no run is evaluated", command=_evaluate(subject))
    blocks: list[Block] = []
    if items := _large(subject):
        blocks.append(Figures(items=items))
    blocks.append(_arms_table(subject, scored))
    metric = metric_of(subject)
    share = subject.compared.get("chance") or _chance(subject)
    chance = None if share is None else (share, "chance")
    each = {name: arm.scores for name, arm in scored.items()}
    if len(scored) > 1:
        said = ", ".join(
            f"{subject.looks[name].title} {shown(fmean(found), 'share')} %" for name, found in each.items()
        )
        figure = figures.scores(each, subject.looks, axis=f"{metric} on {_scored(subject)} (%)", line=chance)
        blocks.append(
            Plot(
                name="scores",
                caption="Further right is better. Each mark is one run, each bar the mean of its arm. What matters is "
                "how far the arms lie apart against how far the runs of one arm do.",
                panels=[Panel(figure=figure, said=f"{metric} by arm: {said}", wide=True)],
            )
        )
    found = {name: one for name, one in (subject.compared.get("differences") or {}).items() if one}
    if found and subject.baseline:
        blocks.append(_differences(subject, found))
        # They name their arms themselves.
        sentences = [str(one["verdict"]) for one in found.values() if one.get("verdict")]
        if len(found) > 1 and sentences:
            blocks.append(Prose(items=sentences))
    for note in subject.compared.get("notes", ()):
        blocks.append(Prose(text=note, warns=True))
    if len(scored) == 1:
        blocks += _several_scores(next(iter(scored.values())))
    lead = (
        "Runs of a pair share initial weights, order of the clips, augmentation and budget; differences are taken "
        "within pairs. G is the share of the gap between the teacher and the student alone that was closed. "
        + " ".join(besides(subject.compared) if subject.is_study else ())
        if found
        else f"Scores on split {subject.evaluation.get('split')!r}."
        if subject.evaluation.get("split")
        else "Scores."
    )
    return Section(name="headline", title="Result", lead=lead, blocks=blocks)


def _scored(subject: Subject) -> str:
    split = subject.compared.get("split") or subject.evaluation.get("split")
    return f"split {split!r}" if split else "the scored videos"


def cost(subject: Subject) -> Section | Missing | None:
    """Accuracy over cost."""
    scored = {name: arm for name, arm in subject.arms.items() if arm.scores}
    points = {name: (float(arm.fact("macs")), fmean(arm.scores)) for name, arm in scored.items() if arm.fact("macs")}
    if len(points) < 2:
        return None
    metric = metric_of(subject)
    numbers = Table(
        title="Numbers",
        folded=True,
        columns=[
            Column(title="arm", kind="arm"),
            Column(title=f"{metric} %", kind="share"),
            Column(title="MAC/view", kind="size"),
            Column(title="parameters", kind="size"),
        ],
        rows=[[name, value, macs, scored[name].fact("params")] for name, (macs, value) in points.items()],
    )
    figure = figures.over_cost(points, subject.looks, axis="multiply-adds for one view", score=f"{metric} (%)")
    said = "; ".join(
        f"{subject.looks[n].title}: {shown(v, 'share')} % at {shown(c, 'size')} MAC" for n, (c, v) in points.items()
    )
    return Section(
        name="cost",
        title="Accuracy over cost",
        lead="What a point of accuracy costs when the model is used.",
        blocks=[
            Plot(
                name="cost",
                caption="Up and to the left is better: more accurate, cheaper. The dashed line joins the arms that no "
                "other one beats in both. The cost has a logarithmic scale.",
                panels=[Panel(figure=figure, said=said, wide=True)],
                numbers=numbers,
            )
        ],
    )


def learning(subject: Subject) -> Section | Missing:
    """Validation score and every term of the loss over the steps."""
    runs = {name: [run for run in arm.runs if run.metrics] for name, arm in subject.arms.items()}
    runs = {name: found for name, found in runs.items() if found}
    if not runs:
        return Missing(title="Learning curves", why="no run has a metrics.jsonl", command="videokd train RECIPE")
    terms = {name: _terms(found) for name, found in runs.items()}
    panels, rows = [], []
    several = len(runs) > 1
    for key, title in (("val_top1", "validation top-1 (%)"), ("train_top1", "training top-1 (%)")):
        lines = {name: [_curve(run, key) for run in found] for name, found in runs.items()}
        lines = {name: each for name, each in lines.items() if any(len(x) for x, _ in each)}
        if lines:
            figure = figures.curves(lines, subject.looks, title=title, percent=True, single=key == "val_top1")
            panels.append(Panel(figure=figure, said=_ends(subject, title, lines, scale=100)))
            rows += [_end_row(name, title, each, scale=100) for name, each in lines.items()]
    # A teacher that was trained here has a loss of its own; the students' are what is compared.
    students = {name: found for name, found in runs.items() if name != TEACHER or not several}
    for term in dict.fromkeys(term for name in students for term in terms[name]):
        lines = {name: [_curve(run, term) for run in found] for name, found in students.items() if term in terms[name]}
        values = np.concatenate([y for each in lines.values() for _, y in each])
        positive = values[values > 0]
        wide = len(positive) == len(values) > 0 and float(values.max() / values.min()) > 20
        title = "loss: total" if term == "total" else f"loss: {figures.cut(term)}"
        panels.append(
            Panel(
                figure=figures.curves(lines, subject.looks, title=title, log="y" if wide else "", single=False),
                said=_ends(subject, title, lines),
            )
        )
        rows += [_end_row(name, title, each) for name, each in lines.items()]
    columns = [
        Column(title="curve", kind="name"),
        Column(title="arm", kind="arm"),
        Column(title="first"),
        Column(title="lowest"),
        Column(title="highest"),
        Column(title="last"),
    ]
    return Section(
        name="learning",
        title="Learning curves",
        lead="Whether training had ended, and which term of the loss it followed.",
        blocks=[
            Plot(
                name="learning",
                caption="Thick lines are the mean over the runs of an arm, thin ones its runs. Validation should have "
                "levelled off by the last step; a term that does not fall is not learned, one that falls to nothing "
                "no longer teaches. Terms are drawn before their weights; logs of many steps are averaged.",
                panels=panels,
                arms=list(runs),
                numbers=Table(title="First and last values", folded=True, columns=columns, rows=rows),
            )
        ],
    )


def views(subject: Subject) -> Section | Missing:
    """Accuracy over the number of views."""
    lines = {}
    rows: list[list[Cell]] = []
    for name, arm in subject.arms.items():
        curves = [one["curve"] for one in arm.evaluations if one.get("curve")]
        if curves:
            lines[name] = [([p["macs"] for p in curve], [p["top1"] for p in curve]) for curve in curves]
            for place, point in enumerate(curves[0]):
                found = [curve[place]["top1"] for curve in curves if place < len(curve)]
                rows.append([name, f"{point['temporal']} × {point['spatial']}", point["macs"], _spread(found)])
    if not lines:
        why = "the runs were scored on a single view"
        return Missing(title="View budget", why=why, command=f"{_evaluate(subject)} --temporal 10 --spatial 3")
    figure = figures.curves(
        lines,
        subject.looks,
        axis="multiply-adds a video",
        percent=True,
        width=figures.WIDE,
        height=3,
        single=False,
        log="x",
    )
    figure.axes[0].set_ylabel("top-1 (%)")
    said = views_said(subject.evaluation)
    columns = [
        Column(title="arm", kind="arm"),
        Column(title="views (time × space)", kind="name"),
        Column(title="MAC/video", kind="size"),
        Column(title="top-1 %", kind="share"),
    ]
    return Section(
        name="views",
        title="View budget",
        lead=said,
        blocks=[
            Plot(
                name="views",
                caption="Accuracy over what all views of a video cost, on a logarithmic scale. Up and to the left is "
                "better; where a line is flat, more views are wasted.",
                panels=[Panel(figure=figure, said="accuracy over the cost of the views", wide=True)],
                arms=list(lines),
                numbers=Table(title="Numbers", folded=True, columns=columns, rows=rows),
            )
        ],
    )


def metric_of(subject: Subject) -> str:
    """What the arms are scored by."""
    return "mAP" if "map" in subject.evaluation and "top1" not in subject.evaluation else "top-1"


def _large(subject: Subject) -> list[tuple[str, str, str]]:
    main, baseline = subject.main, subject.baseline
    found = (subject.compared.get("differences") or {}).get(main) if main else None
    if not found or not main or not baseline:
        return []
    items = []
    recovered = (subject.compared.get("gap_recovered") or {}).get(main)
    if recovered:
        sure = _between(recovered, "ratio") or "one pair: no interval"
        items.append((shown(recovered["mean"], "ratio"), "of the gap recovered (G)", sure))
    else:
        known = TEACHER in subject.arms and bool(subject.arms[TEACHER].scores)
        why = "the teacher is too little above the student alone" if known else "the teacher was not scored"
        items.append(("–", "of the gap recovered (G)", why))
    sure = _between(found, "points") or "one pair: no interval"
    items.append((shown(found["mean"], "points"), "points over the student alone", sure))
    positive, pairs = found.get("positive"), len(found.get("each", ()))
    if positive is not None and pairs:
        items.append(
            (f"{positive} of {pairs}", f"pair{'s' * (pairs > 1)} in which it gained", "same seed, data, budget")
        )
    student, teacher = subject.arms[main].fact("macs"), TEACHER in subject.arms and subject.arms[TEACHER].fact("macs")
    if student and teacher:
        items.append(
            (f"{teacher / student:.3g}×", "fewer multiply-adds than the teacher", f"{shown(student, 'size')} a view")
        )
    return items


def _between(found: Mapping[str, Any], kind: Any) -> str:
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f"95 % interval {shown(found['low'], kind)} to {shown(found['high'], kind)}"


def _arms_table(subject: Subject, scored: Mapping[str, Arm]) -> Table:
    metric = metric_of(subject)
    found = subject.compared.get("differences") or {}
    recovered = subject.compared.get("gap_recovered") or {}
    beyond = subject.compared.get("beyond") or {}
    columns = [
        Column(title="arm", kind="arm"),
        Column(title="runs", kind="count"),
        Column(
            title=f"{metric} %", kind="share", note="mean ± standard deviation over runs; of one run, its 95 % interval"
        ),
    ]
    if found:
        columns += [
            Column(title="against alone, points", kind="points", note="mean of the paired differences, 95 % interval"),
            Column(title="pairs gained", kind="count", note="in how many pairs the arm was above the student alone"),
            *(
                [Column(title="distilled above it, points", kind="points", note="paired differences, 95 % interval")]
                if beyond
                else []
            ),
            Column(title="G", kind="ratio", note="share of the gap between alone and teacher that was recovered"),
        ]
    columns += [
        Column(title="parameters", kind="size"),
        Column(title="MAC/view", kind="size", note="multiply-adds for one view of a video"),
    ]
    rows: list[list[Cell]] = []
    for name, arm in scored.items():
        row: list[Cell] = [name, len(arm.scores), _score(arm)]
        if found:
            one, share = found.get(name) or {}, recovered.get(name) or {}
            row += [
                _span(one),
                one.get("positive"),
                *([_span(beyond.get(name))] if beyond else []),
                _span(share),
            ]
        rows.append([*row, arm.fact("params"), arm.fact("macs")])
    return Table(columns=columns, rows=rows)


def _span(found: Mapping[str, Any] | None) -> Span | None:
    return Span(found["mean"], found.get("low"), found.get("high")) if found else None


def _score(arm: Arm) -> Cell:
    if len(arm.scores) == 1:
        key = "map" if arm.evaluations and "top1" not in arm.evaluations[0] else "top1"
        ends = at(arm.evaluations[0], "intervals", key) if arm.evaluations else None
        return Span(arm.scores[0], *(ends or (None, None)))
    return _spread(arm.scores)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _differences(subject: Subject, found: Mapping[str, Mapping[str, Any]]) -> Plot:
    said = ", ".join(f"{subject.looks[name].title} {shown(one['mean'], 'points')}" for name, one in found.items())
    columns = [
        Column(title="arm", kind="arm"),
        Column(title="points", kind="points"),
        Column(title="each pair", kind="name"),
    ]
    rows: list[list[Cell]] = [
        [
            name,
            Span(one["mean"], one.get("low"), one.get("high")),
            "  ".join(shown(value, "points") for value in one.get("each", ())),
        ]
        for name, one in found.items()
    ]
    return Plot(
        name="differences",
        caption="Right of zero is better than the student alone. Bars are 95 % intervals of the mean difference; small "
        "marks are the pairs. An arm whose bar touches zero was not shown to differ. Distillation should beat the "
        "controls too, not the baseline alone.",
        panels=[
            Panel(
                figure=figures.differences(
                    found, subject.looks, axis=f"{metric_of(subject)} above the student alone (points)"
                ),
                said=f"difference to the student alone in points: {said}",
                wide=True,
            )
        ],
        numbers=Table(title="Numbers", folded=True, columns=columns, rows=rows),
    )


def _several_scores(arm: Arm) -> list[Block]:
    """All scores of a single arm, with their intervals."""
    rows: list[list[Cell]] = []
    names = {
        "top1": "top-1",
        "top5": "top-5",
        "mean_class_accuracy": "mean over classes",
        "map": "mean average precision",
    }
    for key, title in names.items():
        values = [one[key] for one in arm.evaluations if one.get(key) is not None]
        if values:
            ends = at(arm.evaluations[0], "intervals", key) if len(values) == 1 else None
            rows.append([title, Span(values[0], *(ends or (None, None))) if len(values) == 1 else _spread(values)])
    if not rows:
        return []
    evaluation = arm.evaluations[0]
    note = f"{evaluation.get('clips', '?')} clips of {evaluation.get('groups', '?')} source videos"
    said = views_said(evaluation)
    columns = [Column(title="score", kind="text"), Column(title="%", kind="share")]
    return [Table(columns=columns, rows=rows, note=f"{note}; {said}" if said else note)]


def _chance(subject: Subject) -> float | None:
    classes = subject.evaluation.get("classes")
    return 1 / len(classes) if classes and metric_of(subject) == "top-1" else None


def _evaluate(subject: Subject) -> str:
    return f"videokd evaluate {subject.runs[0].path if len(subject.runs) == 1 else 'RUN'}"


def _terms(runs: Sequence[Run]) -> list[str]:
    """Names of the loss terms that were logged, the total last."""
    named = [name for run in runs if run.record for name in run.record.recipe.get("objective", {})]
    logged = {key for run in runs for row in run.metrics for key in row}
    terms = [name for name in dict.fromkeys(named) if name in logged]
    return [*terms, *(["total"] if "total" in logged and len(terms) != 1 else [])]


def _curve(run: Run, key: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Steps and values, of long logs averaged."""
    points = [(row["step"], row[key]) for row in run.metrics if row.get(key) is not None]
    if not points:
        return np.empty(0), np.empty(0)
    steps, values = np.array(points, dtype=float).T
    size = -(-len(steps) // POINTS_OF_A_CURVE)
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _ends(subject: Subject, title: str, lines: Mapping[str, Sequence[Any]], *, scale: float = 1) -> str:
    rows = {name: _end_row(name, title, each, scale=scale) for name, each in lines.items()}
    return f"{title} over the steps; last: " + ", ".join(
        f"{subject.looks[name].title} {shown(row[-1], 'number')}" for name, row in rows.items()
    )


def _end_row(name: str, title: str, each: Sequence[Any], *, scale: float = 1) -> list[Cell]:
    found = [scale * y for _, y in each if len(y)]
    ends = [fmean(float(pick(y)) for y in found) for pick in (_first, np.min, np.max, _last)]
    return [title, name, *ends]


def _first(values: np.ndarray[Any, Any]) -> float:
    return float(values[0])


def _last(values: np.ndarray[Any, Any]) -> float:
    return float(values[-1])
