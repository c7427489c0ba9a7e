"""What was passed on: knowledge of time, answers, representations, where a net looks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from videokd.report import figures
from videokd.report.content import Block, Cell, Column, Missing, Panel, Plot, Section, Table, shown
from videokd.report.looks import TEACHER
from videokd.report.subject import Subject, at

ORDERS = {
    "filmed": "as filmed",
    "half": "every 2nd frame",
    "reversed": "reversed",
    "shuffled": "shuffled",
    "frozen": "one frame",
}

_INSIDE = "videokd inside"


def time(subject: Subject) -> Section | Missing:
    """How much of the accuracy comes from motion, and how much of that was passed on."""
    found = {name: {order: arm.mean("temporal", order) for order in ORDERS} for name, arm in subject.arms.items()}
    found = {name: each for name, each in found.items() if each["filmed"] is not None}
    if not any(value is not None for each in found.values() for order, value in each.items() if order != "filmed"):
        return Missing(title="Time", why="no run was scored with its frames disturbed", command="videokd evaluate RUN")
    few = [name for name in subject.shown if name in found]
    groups = {title: {name: found[name][order] for name in few} for order, title in ORDERS.items()}
    groups = {title: each for title, each in groups.items() if any(value is not None for value in each.values())}
    columns = [
        Column(title="arm", kind="arm"),
        *(Column(title=f"{title} %", kind="share") for title in ORDERS.values()),
    ]
    columns += [
        Column(title="from order", kind="points", note="as filmed minus shuffled: what needs the order of the frames"),
        Column(title="from motion", kind="points", note="as filmed minus one frame: what a picture does not show"),
    ]
    passed = subject.baseline in found and TEACHER in found
    columns += (
        [Column(title="order passed on", kind="ratio", note="of the teacher's lead in 'from order' over alone")]
        if passed
        else []
    )
    order_of = {name: _less(each["filmed"], each["shuffled"]) for name, each in found.items()}
    rows: list[list[Cell]] = []
    for name, each in found.items():
        row: list[Cell] = [name, *each.values(), order_of[name], _less(each["filmed"], each["frozen"])]
        if passed:
            gap = _less(order_of[TEACHER], order_of[str(subject.baseline)])
            gain = _less(order_of[name], order_of[str(subject.baseline)])
            student = name not in (TEACHER, subject.baseline)
            row.append(gain / gap if student and gap is not None and gain is not None and gap > 0.02 else None)
        rows.append(row)
    said = "; ".join(
        f"{title}: "
        + ", ".join(f"{subject.looks[name].title} {shown(value, 'share')} %" for name, value in each.items())
        for title, each in groups.items()
    )
    figure = figures.bars(groups, subject.looks, axis="top-1 (%)")
    return Section(
        name="time",
        title="Time",
        lead="How much of the accuracy comes from motion, and whether the student learned that part.",
        blocks=[
            Plot(
                name="time",
                caption="The same videos, their frames disturbed. A model that uses motion falls from left to right, "
                "one that only recognises pictures stays level. A good student falls as far as its teacher does.",
                panels=[Panel(figure=figure, said=said, wide=True)],
                arms=few,
            ),
            Table(columns=columns, rows=rows),
        ],
    )


def teacher(subject: Subject) -> Section | Missing:
    """How the students' answers compare with the teacher's."""
    found: dict[str, Mapping[str, Any]] = dict(subject.compared.get("against") or {})
    for name, arm in subject.arms.items():
        if name not in found and any(one.get("against") for one in arm.evaluations):
            keys = ("agreement", "agreement_where_teacher_wrong", "kl", "retention")
            found[name] = {key: arm.mean("against", key) for key in keys}
    found = {name: each for name, each in found.items() if each}
    if not found:
        why = "no student was scored beside its teacher"
        return Missing(
            title="Against the teacher", why=why, command="videokd evaluate TEACHER, then videokd evaluate RUN"
        )
    names = {
        "agreement": ("agrees %", "share", "same class as the teacher"),
        "agreement_where_teacher_wrong": ("agrees where teacher is wrong %", "share", "same mistake as the teacher"),
        "kl": ("KL, nats", "number", "of the student's probabilities from the teacher's"),
        "retention": ("kept %", "share", "right where the teacher is right"),
        "transferred": ("transferred %", "share", "right where the teacher is right and the student alone wrong"),
        "negative_flips": ("negative flips %", "share", "wrong where the student alone is right"),
    }
    present = {key: one for key, one in names.items() if any(each.get(key) is not None for each in found.values())}
    columns = [Column(title="arm", kind="arm")]
    columns += [Column(title=title, kind=kind, note=note) for title, kind, note in present.values()]  # type: ignore[arg-type]
    found = {name: found[name] for name in [*(arm for arm in subject.arms if arm in found), *found]}
    rows: list[list[Cell]] = [[name, *(each.get(key) for key in present)] for name, each in found.items()]
    drawn = {
        "agreement": "agrees",
        "retention": "kept",
        "transferred": "transferred",
        "negative_flips": "negative flips",
    }
    groups = {
        title: {name: each.get(key) for name, each in found.items()} for key, title in drawn.items() if key in present
    }
    said = "; ".join(
        f"{title}: "
        + ", ".join(f"{subject.looks[name].title} {shown(value, 'share')} %" for name, value in each.items())
        for title, each in groups.items()
    )
    figure = figures.bars(groups, subject.looks, axis="share of clips (%)")
    return Section(
        name="teacher",
        title="Against the teacher",
        lead="Which of the teacher's answers the student took over, and what it forgot on the way.",
        blocks=[
            Plot(
                name="teacher",
                caption="Agreement, kept and transferred: higher is better. Negative flips, clips that the student "
                "alone got right and this one gets wrong: lower is better. Agreement where the teacher is wrong shows "
                "what was copied and not learned from labels.",
                panels=[Panel(figure=figure, said=said, wide=True)],
                arms=list(found),
            ),
            Table(columns=columns, rows=rows),
        ],
    )


def representations(subject: Subject) -> Section | Missing:
    """Centred kernel alignment of the student's taps with the teacher's."""
    found: Mapping[str, Any] = at(subject.inside, "cka", "arms") or {}
    taps = at(subject.inside, "cka", "taps") or {}
    if not found or not taps:
        return _not_looked_inside(subject, "Representations")
    blocks: list[Block] = []
    top = max(0.1, *map(_highest, found.values()))
    panels = [
        Panel(
            figure=figures.heat(
                {subject.looks[name].title: np.array(matrix, dtype=float)},
                rows=taps["student"],
                columns=taps["teacher"],
                row_axis="student",
                column_axis="teacher",
                top=top,
            ),
            said=f"CKA of {subject.looks[name].title} with the teacher: highest {_highest(matrix):.2f}",
        )
        for name, matrix in found.items()
    ]
    rows: list[list[Cell]] = []
    for row, student in enumerate(taps["student"]):
        for column, other in enumerate(taps["teacher"]):
            rows.append([student, other, *(matrix[row][column] for matrix in found.values())])
    columns = [Column(title="student tap", kind="name"), Column(title="teacher tap", kind="name")]
    columns += [Column(title=subject.looks[name].title) for name in found]
    blocks.append(
        Plot(
            name="cka",
            caption="Linear CKA, unbiased over minibatches: 1 means that two layers tell the same clips apart, up to a "
            "rotation. All maps have one scale. A student that took over the teacher's features is darker than the "
            "student alone, most of all where its losses tie the two.",
            panels=panels,
            numbers=Table(title="Numbers", folded=True, columns=columns, rows=rows),
        )
    )
    clips = subject.inside.get("clips")
    lead = f"How alike the students' layers and the teacher's are, on {clips} clips." if clips else ""
    return Section(name="representations", title="Representations", lead=lead, blocks=blocks)


def probes(subject: Subject) -> Section | Missing:
    """What linear probes read out of the features."""
    found: Mapping[str, Mapping[str, Any]] = subject.inside.get("probes") or {}
    if not found:
        if subject.inside:
            why = "the videos have no known factors, as the synthetic set's have"
            return Missing(title="Probes", why=why, command="videokd data synth OUT")
        return _not_looked_inside(subject, "Probes")
    arms = [name for name in subject.looks if any(name in each for each in found.values())]
    groups = {factor: {name: each.get(name) for name in arms} for factor, each in found.items()}
    columns = [Column(title="factor", kind="name"), Column(title="score", kind="name"), Column(title="chance")]
    columns += [Column(title=subject.looks[name].title) for name in arms]
    gaps = [
        name for name in arms if any((each.get("gap_recovered") or {}).get(name) is not None for each in found.values())
    ]
    columns += [Column(title=f"G, {subject.looks[name].title}", kind="ratio") for name in gaps]
    rows: list[list[Cell]] = [
        [
            factor,
            each.get("score"),
            each.get("chance"),
            *(each.get(name) for name in arms),
            *((each.get("gap_recovered") or {}).get(name) for name in gaps),
        ]
        for factor, each in found.items()
    ]
    said = "; ".join(
        f"{factor}: "
        + ", ".join(f"{subject.looks[name].title} {shown(value, 'number')}" for name, value in each.items())
        for factor, each in groups.items()
    )
    figure = figures.bars(groups, subject.looks, axis="R², or accuracy of shapes", percent=False)
    return Section(
        name="probes",
        title="Probes",
        lead="What can be read out of the frozen features by a linear map: facts that no label names.",
        blocks=[
            Plot(
                name="probes",
                caption="R² of a linear probe on held-out clips, accuracy for shapes: 1 is perfect, 0 nothing. "
                "Where the student lies between alone and teacher, G says how much of the teacher's it took over.",
                panels=[Panel(figure=figure, said=said, wide=True)],
                arms=arms,
            ),
            Table(columns=columns, rows=rows),
        ],
    )


def saliency(subject: Subject) -> Section | Missing:
    """Where the nets look, and whether they look at the same."""
    found: Mapping[str, Any] = subject.inside.get("saliency") or {}
    agreement, on_object = found.get("agreement") or {}, found.get("on_object") or {}
    if not agreement and not on_object:
        return _not_looked_inside(subject, "Where the nets look")
    arms = list(dict.fromkeys((*on_object, *agreement)))
    columns = [Column(title="arm", kind="arm")]
    columns += (
        [
            Column(title="rank correlation", note="Spearman's, with the teacher's map"),
            Column(title="overlap", note="intersection over union of the most salient parts"),
        ]
        if agreement
        else []
    )
    columns += [Column(title="on the object %", kind="share")] if on_object else []
    rows: list[list[Cell]] = []
    for name in arms:
        row: list[Cell] = [name]
        row += [(agreement.get(name) or {}).get(key) for key in ("spearman", "iou")] if agreement else []
        row += [on_object.get(name)] if on_object else []
        rows.append(row)
    blocks: list[Block] = []
    area = found.get("object_area")
    if on_object:
        line = (float(area), "object") if area is not None else None
        said = ", ".join(f"{subject.looks[name].title} {shown(value, 'share')} %" for name, value in on_object.items())
        each = {name: [value] for name, value in on_object.items() if value is not None}
        figure = figures.scores(each, subject.looks, axis="saliency on the moving object (%)", line=line)
        blocks.append(
            Plot(
                name="saliency",
                caption="Share of the saliency that lies on the moving object: further right is better. A net that "
                "looks everywhere alike is at the dashed line, the share of the picture that the object covers.",
                panels=[Panel(figure=figure, said=f"saliency on the object: {said}", wide=True)],
            )
        )
    method = found.get("method")
    chance = found.get("chance_iou")
    notes = [f"Saliency is {method}."] if method else []
    notes += [f"The overlap of maps that have nothing in common is about {shown(chance, 'number')}."] if chance else []
    blocks.append(Table(columns=columns, rows=rows, note=" ".join(notes)))
    return Section(
        name="saliency",
        title="Where the nets look",
        lead="Whether the student looks where its teacher looks.",
        blocks=blocks,
    )


def _highest(matrix: Any) -> float:
    return max((value for row in matrix for value in row if value is not None), default=0.0)


def _not_looked_inside(subject: Subject, title: str) -> Missing:
    if subject.inside:
        return Missing(title=title, why=" ".join(subject.inside.get("notes") or ()) or "there was nothing to compare")
    return Missing(title=title, why="nobody looked inside the nets", command=f"{_INSIDE} {subject.command}")


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part
