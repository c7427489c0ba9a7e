"""Whether a teacher is right, and whether its classes are named right: from what it says of labelled clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from videokd.preflight.report import Finding, TeacherScore

LEVEL = 0.01
"""Error rate of the tests."""

WORTH_FOLLOWING = 0.25
"""How far from chance to always right a teacher is that nobody would stop a run for."""

FEWEST_FOR_RENAMING = 3
"""So many clips must a renaming explain for every class that it renames, before it is looked at."""


@dataclass(frozen=True, kw_only=True)
class Renaming:
    """A class of which the teacher says another one."""

    label: int
    said: int
    clips: int
    """Clips of `label` that it says `said` of."""
    of: int
    """Clips of `label`."""


def score(teacher: str, said: NDArray[np.int64], classes: NDArray[np.bool_]) -> TeacherScore:
    """How often a teacher is right, against chance.

    Args:
        teacher: its name.
        said: (N,) the class that it puts first.
        classes: (N, K) which classes each clip has: one, or several.
    """
    clips = len(classes)
    right = int(classes[np.arange(clips), said].sum())
    chance = chance_of(said, classes)
    p_value = float(binomtest(right, clips, min(chance, 1.0), alternative="greater").pvalue) if clips else 1.0
    return TeacherScore(teacher=teacher, labelled=clips, right=right, chance=chance, p_value=p_value)


def chance_of(said: NDArray[np.int64], classes: NDArray[np.bool_]) -> float:
    """Return the share of clips on which the same answers would be right if they were dealt to the clips at random.

    That is the share of each class among the answers times its share among the clips, summed; at least 1 / K. A model
    that gives one answer to all clips, such as the most frequent class, is right as often as this.

    Args:
        said: (N,) the class that the model puts first.
        classes: (N, K) which classes each clip has: one, or several.
    """
    clips, num_classes = classes.shape
    if not clips:
        return 1.0 / int(num_classes)
    answers = np.bincount(said, minlength=num_classes) / clips
    return float(max(answers @ classes.mean(axis=0), 1 / num_classes))


def accuracy_finding(found: TeacherScore) -> Finding:
    """Whether the teacher knows the classes.

    An error needs evidence in both directions, each at 1 %: it is not shown to be better than chance, and it is shown
    to be worse than a teacher a quarter of the way from chance to always right. Few clips therefore give a warning;
    of a teacher that is at least so good, fewer than one in a hundred is called untrained, whatever their number.
    """
    what = f"teacher {found.teacher}"
    share = f" ({found.right / found.labelled:.0%})" if found.labelled else ""
    rates = f"is right on {found.right} of {found.labelled} labelled clips{share}, where chance is {found.chance:.0%}"
    if found.p_value < LEVEL:
        return Finding(level="ok", what=what, said=f"teacher {found.teacher!r} {rates}")
    if not found.labelled:
        said = f"none of these clips has a label, so how right teacher {found.teacher!r} is can't be told"
        return Finding(level="warning", what=what, said=said)
    least = found.chance + WORTH_FOLLOWING * (1 - found.chance)
    if binomtest(found.right, found.labelled, least, alternative="less").pvalue < LEVEL:
        said = (
            f"teacher {found.teacher!r} {rates}: it was not trained, its weights were not loaded, its input (frames, "
            "size, mean, std) is not what it was trained on, or its classes are in another order"
        )
        return Finding(level="error", what=what, said=said)
    said = f"teacher {found.teacher!r} {rates}: too few to tell; `videokd preflight RECIPE --batches N` looks at more"
    return Finding(level="warning", what=what, said=said)


def renamed(label: NDArray[np.int64], said: NDArray[np.int64]) -> list[Renaming]:
    """The classes that a teacher seems to have under other names.

    The names that fit the answers best are a linear assignment on the counts of (label, answer), in which every class
    that keeps its name has `FEWEST_FOR_RENAMING` clips more. What it renames falls into circles (two classes that are
    swapped, or more), and each circle must pass a sign test: of the clips of its classes, those of which the teacher
    says the new name against those of which it says the old one. A teacher that mixes up two classes, half of the time,
    is right on as many as it is not; that there may be as many such pairs as half the classes, the level accounts for.
    That one class is taken for another is no swap: a name counts only where clips of both its classes were seen, no
    class of a circle may go more often by its old name, and two of them go by their new one twice or more.

    Args:
        label: (N,) of clips of one class.
        said: (N,) the class that the teacher puts first.
    """
    seen, places = np.unique(np.concatenate([label, said]), return_inverse=True)
    counts = np.zeros((len(seen), len(seen)))
    np.add.at(counts, (places[: len(label)], places[len(label) :]), 1)
    _, new = linear_sum_assignment(counts + FEWEST_FOR_RENAMING * np.eye(len(seen)), maximize=True)
    clips = counts.sum(axis=1)
    found = []
    for circle in _circles(new):
        moved = [(one, new[one]) for one in circle if clips[new[one]]]
        by_new = np.array([counts[edge] for edge in moved])
        by_old = np.array([counts[one, one] for one, _ in moved])
        if (by_new < by_old).any() or (by_new > 1).sum() < 2:
            continue
        as_new, as_old = int(by_new.sum()), int(by_old.sum())
        level = LEVEL / max(len(np.unique(label)) / 2, 1)
        if binomtest(as_new, as_new + as_old, alternative="greater").pvalue < level:
            found += [
                Renaming(label=int(seen[one]), said=int(seen[other]), clips=int(counts[one, other]), of=int(clips[one]))
                for one, other in moved
                if counts[one, other]
            ]
    return found


def renaming_finding(teacher: str, found: Sequence[Renaming], classes: Sequence[str]) -> Finding:
    """The pairs by name."""
    shown = [
        f"{classes[one.said]!r} of {one.clips} of the {one.of} clips of {classes[one.label]!r}"
        for one in sorted(found, key=lambda one: -one.clips)[:4]
    ]
    more = ", ..." if len(found) > len(shown) else ""
    said = (
        f"teacher {teacher!r} has its classes under other names: it says {', '.join(shown)}{more}; put its class list "
        "in the order that it was trained with (`classes` in its model.json, or data.class_names)"
    )
    return Finding(level="error", what=f"classes of {teacher}", said=said)


def _circles(new: NDArray[np.int64]) -> list[list[int]]:
    """The circles of a permutation that move anything."""
    found, left = [], {one for one, other in enumerate(new) if one != other}
    while left:
        circle = [left.pop()]
        while (following := int(new[circle[-1]])) in left:
            left.remove(following)
            circle.append(following)
        found.append(circle)
    return found
