"""How a student's answers compare with its teacher's, and with those of the same student trained alone."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from videokd.metrics import is_right
from videokd.predictions import Predictions


def against_teacher(
    student: Predictions, teacher: Predictions, alone: Predictions | None = None
) -> dict[str, float | None]:
    """What of its teacher a student took over, over the clips that both were shown: plain numbers, ready for JSON.

    Returns:
        "agreement": share of clips of which both say the same class; "agreement_where_teacher_wrong": of the labelled
        clips that the teacher gets wrong, which no label can have taught [Stanton et al. 2021]; "kl": mean
        KL(teacher || student) in nats; "retention": P(student right | teacher right). With `alone`, too:
        "negative_flips": P(student wrong | alone right) [Yan et al. 2021], and "transferred": P(student right and
        alone wrong | teacher right). None where there is no clip to count.

    Of sets of several labels, each class of each clip is an answer of its own: yes above one half.

    Raises:
        ValueError: if they saw different clips or know different classes.
    """
    teacher = teacher.of(student.ids, student.classes)
    if student.several_labels:
        return _of_several(student, teacher, None if alone is None else alone.of(student.ids, student.classes))
    same = student.predicted == teacher.predicted
    found: dict[str, float | None] = {"agreement": same.double().mean().item(), "kl": _divergence(teacher, student)}
    known = student.is_labelled
    right, teacher_right = is_right(student), is_right(teacher)
    found["agreement_where_teacher_wrong"] = _share(same, known & ~teacher_right)
    found["retention"] = _share(right, known & teacher_right)
    if alone is not None:
        alone_right = is_right(alone.of(student.ids, student.classes))
        found["negative_flips"] = _share(~right, known & alone_right)
        found["transferred"] = _share(right & ~alone_right, known & teacher_right)
    return found


def _of_several(student: Predictions, teacher: Predictions, alone: Predictions | None) -> dict[str, float | None]:
    answers = [one.logits > 0 for one in (student, teacher)]
    same, known = answers[0] == answers[1], student.is_labelled[:, None].expand_as(student.label)
    right, teacher_right = ((one == (student.label == 1)) for one in answers)
    p, q = teacher.logits.double(), student.logits.double()
    divergence = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q)) + (-p).sigmoid() * (
        F.logsigmoid(-p) - F.logsigmoid(-q)
    )
    found: dict[str, float | None] = {
        "agreement": same.double().mean().item(),
        "kl": divergence.sum(dim=1).mean().item(),
        "agreement_where_teacher_wrong": _share(same, known & ~teacher_right),
        "retention": _share(right, known & teacher_right),
    }
    if alone is not None:
        alone_right = (alone.logits > 0) == (student.label == 1)
        found["negative_flips"] = _share(~right, known & alone_right)
        found["transferred"] = _share(right & ~alone_right, known & teacher_right)
    return found


def flips(before: Predictions, after: Predictions) -> dict[str, Any]:
    """The labelled clips that one model gets right and the other wrong: "won" by `after`, and "lost" by it, by id.

    Raises:
        ValueError: as `against_teacher`.
    """
    before = before.of(after.ids, after.classes)
    known, was, now = after.is_labelled, is_right(before), is_right(after)
    return {"won": _ids(after, known & now & ~was), "lost": _ids(after, known & was & ~now)}


def _divergence(teacher: Predictions, student: Predictions) -> float:
    logs = [one.logits.double().log_softmax(dim=1) for one in (student, teacher)]
    return F.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True).item()


def _share(what: Tensor, among: Tensor) -> float | None:
    return what[among].double().mean().item() if bool(among.any()) else None


def _ids(predictions: Predictions, which: Tensor) -> list[str]:
    return [name for name, chosen in zip(predictions.ids, which.tolist(), strict=True) if chosen]
