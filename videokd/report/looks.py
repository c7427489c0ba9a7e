"""How arms are named and coloured: an arm always looks the same, in every figure of every report."""

from collections.abc import Iterable

from videokd.report.content import Look
from videokd.text import visible

TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"

LOOKS = {
    TEACHER: Look(title="teacher", light="#2b3139", dark="#f0f2f5", marker="D"),
    ALONE: Look(title="student alone", light="#e0483f", dark="#ff5750", marker="o"),
    DISTILLED: Look(title="student distilled", light="#0791ba", dark="#22c4ee", marker="s"),
    "label_smoothing": Look(title="alone, label smoothing", light="#cf6c08", dark="#f2c230", marker="^"),
    "equal_compute": Look(title="alone, equal compute", light="#6a1d73", dark="#b45ab8", marker="P"),
    "self_distilled": Look(title="self-distilled", light="#1644cc", dark="#666dff", marker="v"),
    "untrained_teacher": Look(title="untrained teacher", light="#6d6f77", dark="#7d8388", marker="X", dashed=True),
    "shuffled_teacher": Look(title="shuffled teacher", light="#1f4a0c", dark="#a2e892", marker="d", dashed=True),
}
"""The arms that `videokd study` knows, and those of a plain comparison."""

CONTROLS = ("untrained_teacher", "shuffled_teacher")
"""Arms that a distillation has to beat, not to be."""

_SPARE = (
    ("#0791ba", "#22c4ee", "s"),
    ("#e0483f", "#ff5750", "o"),
    ("#1644cc", "#666dff", "v"),
    ("#cf6c08", "#f2c230", "^"),
    ("#6a1d73", "#b45ab8", "P"),
    ("#1f4a0c", "#a2e892", "d"),
    ("#6d6f77", "#7d8388", "X"),
)


def looks_of(arms: Iterable[str], titles: dict[str, str] | None = None) -> dict[str, Look]:
    """A look for each arm; those of a name of the user's get the colours that are left, in order.

    Colours come again after the last of these; their titles and numbers still tell them apart.
    """
    arms, titles = list(arms), titles or {}
    taken = {LOOKS[arm].light for arm in arms if arm in LOOKS}
    spare = [one for one in _SPARE if one[0] not in taken] or list(_SPARE)
    found: dict[str, Look] = {}
    for arm in arms:
        if arm in LOOKS:
            look = LOOKS[arm]
        else:
            number = sum(name not in LOOKS for name in found)
            light, dark, marker = spare[number % len(spare)]
            look = Look(title=arm, light=light, dark=dark, marker=marker, dashed=number >= len(spare))
        title = visible(titles.get(arm) or look.title)
        found[arm] = Look(title=title, light=look.light, dark=look.dark, marker=look.marker, dashed=look.dashed)
    return found
