"""The sections of a report, each made of what a subject's folders hold, or named as missing."""

from collections.abc import Callable

from videokd.report.content import Missing, Section
from videokd.report.sections import answers, knowledge, provenance, scores
from videokd.report.subject import Subject

SECTIONS: tuple[Callable[[Subject], Section | Missing | None], ...] = (
    scores.headline,
    scores.cost,
    scores.learning,
    answers.classes,
    answers.confusion,
    answers.calibration,
    scores.views,
    knowledge.time,
    knowledge.teacher,
    knowledge.representations,
    knowledge.probes,
    knowledge.saliency,
)
"""In the order of the page. None is a part that has no place in this kind of report."""

LAST: tuple[Callable[[Subject], Section | Missing | None], ...] = (
    provenance.debt,
    provenance.card,
    provenance.difference,
)
"""What comes after the videos: what the numbers rest on."""

__all__ = ["LAST", "SECTIONS"]
