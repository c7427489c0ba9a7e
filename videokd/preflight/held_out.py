"""How right a teacher is on clips that are kept out of training, against chance and against the student alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from videokd.assembly import Assembly, clip_dataset, view_specs
from videokd.clips.loader import OnBadVideo, batches, leave_out_bad, on_device
from videokd.clips.manifest import Manifest
from videokd.clips.order import EveryClip
from videokd.contracts import labelled
from videokd.metrics import bootstrap, is_right
from videokd.predictions import Predictions
from videokd.preflight.class_lists import WORTH_FOLLOWING, chance_of
from videokd.preflight.report import Finding
from videokd.recipe import Recipe
from videokd.teachers import all_targets

VALIDATION_SPLITS = ("val", "valid", "validation", "dev")
"""Names of the split that a teacher is checked on where the recipe names none; never the test split."""

CLIPS = 128
"""Validation clips that a preflight shows the teacher at most, drawn once for all runs."""

FEW = 30
"""Below so many clips an interval that holds both chance and a teacher worth following decides nothing."""


@dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """How right a model is on held-out clips."""

    clips: int
    right: int
    """Clips of which it says a class that they have first."""
    chance: float
    """Share that the same answers would be right on, if they were dealt to the clips at random; at least 1 / K."""
    low: float
    """Lower end of a 95 % interval of the share that is right, over clips and over their sources."""
    high: float
    split: str

    @property
    def at_chance(self) -> bool:
        """Whether the interval includes chance, or lies below it."""
        return self.low <= self.chance

    @property
    def is_decided(self) -> bool:
        """Whether the clips are enough to say so: there are `FEW`, or the interval leaves out any teacher that is a
        quarter of the way from chance to always right."""
        return self.clips >= FEW or self.high < self.chance + WORTH_FOLLOWING * (1 - self.chance)

    def __str__(self) -> str:
        return (
            f"right on {self.right} of {self.clips} clips of split {self.split!r} ({self.right / self.clips:.1%}, 95 % "
            f"interval {self.low:.1%} to {self.high:.1%}), where chance is {self.chance:.1%}"
        )


def score_of(
    said: NDArray[np.int64], classes: NDArray[np.bool_], groups: Sequence[str], *, split: str
) -> HeldOutScore | None:
    """Return the score of answers, or None where there are none.

    The interval holds Wilson's over clips and, where there are several sources, a bootstrap's over them: the bootstrap
    alone is too narrow for few clips, and Wilson's for clips of one source.

    Args:
        said: (N,) the class that the model puts first.
        classes: (N, K) the classes of each clip.
        groups: (N,) the source of each clip.
        split: the clips' split.
    """
    clips = len(said)
    if not clips:
        return None
    right = classes[np.arange(clips), said]
    between = binomtest(int(right.sum()), clips).proportion_ci(method="wilson")
    low, high = float(between.low), float(between.high)
    names, group = np.unique(np.array(groups), return_inverse=True)
    if len(names) > 1:
        over = bootstrap({"right": lambda times: float(times[right].sum() / times.sum())}, group)["right"]
        low, high = min(low, over[0]), max(high, over[1])
    return HeldOutScore(
        clips=clips, right=int(right.sum()), chance=chance_of(said, classes), low=low, high=high, split=split
    )


def score_of_predictions(predictions: Predictions, *, split: str) -> HeldOutScore | None:
    """Return the score of the labelled clips of kept predictions, or None where there are none."""
    known = predictions.rows(predictions.is_labelled)
    classes = _classes(known.label, len(known.classes))
    return score_of(known.predicted.numpy(), classes.numpy(), known.groups, split=split)


def alone_is_better(alone: Predictions, teacher: Predictions) -> tuple[float, float, float] | None:
    """Return by how much the student alone is right more often than the teacher on the clips that both could read: the
    difference of shares and the ends of its 95 % interval, by a bootstrap over sources; None without such clips."""
    common = set(alone.ids) & set(teacher.ids)
    alone = alone.rows(torch.tensor([name in common for name in alone.ids]) & alone.is_labelled)
    if not len(alone):
        return None
    teacher = teacher.of(teacher.ids, alone.classes)
    place = {name: row for row, name in enumerate(teacher.ids)}
    teacher = teacher.rows(torch.tensor([place[name] for name in alone.ids], dtype=torch.long))
    gained = (is_right(alone).double() - is_right(teacher).double()).numpy()
    _, group = np.unique(np.array(alone.groups), return_inverse=True)
    if group.max() == 0:
        group = np.arange(len(alone))  # one source: over clips
    low, high = bootstrap({"gained": lambda times: float((times * gained).sum() / times.sum())}, group)["gained"]
    return float(gained.mean()), low, high


def finding_of(teacher: str, found: HeldOutScore, *, stop: bool) -> Finding:
    """What a teacher's score on held-out clips means; an error only where `stop` is wanted and the clips are enough."""
    what, said = f"teacher {teacher} on held-out clips", f"teacher {teacher!r} is {found}"
    if not found.at_chance:
        return Finding(level="ok", what=what, said=said)
    if not found.is_decided:
        return Finding(level="warning", what=what, said=f"{said}: these are too few clips to tell it from chance")
    said += (
        ": it is not shown to know more than chance about clips that it was not trained on. Train a better one, or "
        "go on all the same with --weak-teacher warn"
    )
    return Finding(level="error" if stop else "warning", what=what, said=said)


def finding_beside(alone: Predictions, teacher: Predictions, *, split: str) -> Finding:
    """Compare a teacher with the student alone on the same held-out clips: an error where the student is better and
    the interval of the difference leaves zero out."""
    what, found = "teacher beside the student alone", alone_is_better(alone, teacher)
    if found is None:
        said = f"teacher and student alone have no labelled clip of split {split!r} in common"
        return Finding(level="warning", what=what, said=said)
    mean, low, high = found
    said = (
        f"on split {split!r} the student alone is {100 * abs(mean):.1f} points {'above' if mean > 0 else 'below'} its "
        f"teacher (95 % interval of the difference {100 * low:+.1f} to {100 * high:+.1f} points)"
    )
    if low > 0:
        said += ": it has nothing to learn from it. Train a better one, or go on all the same with --weak-teacher warn"
        return Finding(level="error", what=what, said=said)
    return Finding(level="warning" if mean > 0 else "ok", what=what, said=said)


@torch.no_grad()
def held_out_scores(made: Assembly, teachers: Sequence[str]) -> dict[str, HeldOutScore]:
    """Return how right teachers are on at most `CLIPS` labelled validation clips, in centred views; empty where the
    list has no validation split. The test split is never looked at.

    Args:
        made: the run.
        teachers: those whose classes can be judged.
    """
    found = _validation(made)
    if not teachers or found is None:
        return {}
    manifest, split = found
    recipe = made.recipe
    stored = [name for name, one in made.teachers.items() if getattr(one, "stored", None) is not None]
    if stored:
        return {}  # outputs are stored of the training clips alone
    specs = view_specs(made.student.model, made.teachers)
    clips = clip_dataset(manifest, recipe, specs, None, train=False)
    order = EveryClip(len(clips), recipe.data.batch_size, rank=0, world_size=1)
    groups = {video.id: video.group or video.id for video in manifest.videos}
    said: dict[str, list[Tensor]] = {name: [] for name in teachers}
    classes: dict[str, list[Tensor]] = {name: [] for name in teachers}
    of_groups: dict[str, list[str]] = {name: [] for name in teachers}
    policy: OnBadVideo = "error" if recipe.data.on_bad_video == "error" else "skip"
    served = batches(clips, order, workers=recipe.data.workers, on_bad_video=policy, time_limit=recipe.data.time_limit)
    for batch in on_device(served, made.device):
        if not batch.id:
            continue
        with recipe.machine.autocast(made.device):
            targets = all_targets(made.teachers, batch)
        for name in teachers:
            logits, known = targets[name].logits, targets[name].known
            assert logits is not None, "a term follows its classes"
            rows = labelled(batch.label) & logits.isfinite().all(dim=1)
            rows = rows if known is None else rows & known
            said[name].append(logits[rows].argmax(dim=1).cpu())
            classes[name].append(_classes(batch.label[rows], len(made.clips.classes)).cpu())
            of_groups[name] += [groups[one] for one, kept in zip(batch.id, rows.tolist(), strict=True) if kept]
    scores: Mapping[str, HeldOutScore | None] = {
        name: score_of(torch.cat(said[name]).numpy(), torch.cat(classes[name]).numpy(), of_groups[name], split=split)
        for name in teachers
        if said[name]
    }
    return {name: score for name, score in scores.items() if score is not None}


def validation_split(whole: Manifest, recipe: Recipe, *, scored: str | None = None) -> str | None:
    """Return the validation split of a recipe, or else of its list, by name; None if it has no labelled clip.

    Args:
        whole: the list.
        recipe: that trains on it.
        scored: a split that is kept for testing, whatever its name.
    """
    labelled_splits = {video.split for video in whole.videos if video.split is not None and video.names}
    kept = labelled_splits - {recipe.data.train_split, scored}
    if recipe.data.val_split is not None:
        return recipe.data.val_split if recipe.data.val_split in kept else None
    return next((one for one in sorted(kept) if one.lower() in VALIDATION_SPLITS), None)


def _validation(made: Assembly) -> tuple[Manifest, str] | None:
    """The labelled validation clips to look at, with the name of their split."""
    whole = made.recipe.data.manifest()
    split = validation_split(whole, made.recipe)
    if split is None:
        return None
    videos = [video for video in whole.videos if video.split == split and video.names]
    policy: OnBadVideo = "error" if made.recipe.data.on_bad_video == "error" else "skip"
    chosen = np.random.default_rng(0).permutation(len(videos))[:CLIPS]
    sample = replace(whole, videos=tuple(videos[number] for number in sorted(chosen.tolist())))
    return leave_out_bad(sample, on_bad_video=policy)[0], split


def _classes(label: Tensor, num_classes: int) -> Tensor:
    """bool (N, K): the classes of labelled clips."""
    return label > 0 if label.ndim == 2 else torch.nn.functional.one_hot(label, num_classes).bool()
