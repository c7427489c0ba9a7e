"""Folds of a list for cross-validation: no source of clips in two parts, classes as even as that allows."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from videokd.clips.manifest import Manifest, Video


def folds(manifest: Manifest, k: int, *, val: float = 0.2, seed: int = 0) -> list[Manifest]:
    """The list k times, with new splits: every video is "test" in one of them, and "train" or "val" in the others.

    A group is never divided; a video without a group is one by itself. Groups are dealt out from the largest on, each
    to the part that it leaves most even; of the same size, in random order. Splits of the list itself play no part.

    Args:
        manifest: of videos with one label each, or none.
        k: folds.
        val: share of the videos outside of a fold that are its "val", about; 0 for none.
        seed: of the order.

    Raises:
        ValueError: if a class has fewer groups than there are folds, so that a fold would have none of it, or too few
            for every "val" to have some of it.
    """
    if k < 2 or not 0 <= val <= 0.5:
        raise ValueError(f"folds are at least 2 and val lies in [0, 0.5], got {k} and {val}")
    if manifest.multi_label:
        raise ValueError(f"{manifest.source} has several labels a video, and folds are even in classes of one label")
    sources = {name: {_group(one) for one in manifest.videos if one.label == name} for name in manifest.classes}
    fewest = min(sources, key=lambda name: len(sources[name]))
    if len(sources[fewest]) < k:
        raise ValueError(
            f"class {fewest!r} of {manifest.source} has {len(sources[fewest])} groups (sources of clips), which can't "
            f"be in {k} folds: take at most {len(sources[fewest])}"
        )
    found = []
    for number, tested in enumerate(parts(manifest.videos, k, seed=seed)):
        split = dict.fromkeys(tested, "test")
        rest = [video for video in manifest.videos if video.id not in split]
        if val:
            groups = {name: {_group(video) for video in rest if video.label == name} for name in manifest.classes}
            # No class has fewer groups than there are parts: one of them can be "val" with some of every class.
            many = min(round(1 / val), *map(len, groups.values()))
            chosen = _most_even(parts(rest, many, seed=seed + number), rest) if many > 1 else None
            if chosen is None:
                few = min(groups, key=lambda name: len(groups[name]))
                raise ValueError(
                    f"fold {number + 1} of {manifest.source} has no validation videos with some of every class, of "
                    f"which {few!r} has {len(groups[few])} groups outside of it: take other folds, or --val 0"
                )
            split |= dict.fromkeys(chosen, "val")
        videos = tuple(replace(video, split=split.get(video.id, "train")) for video in manifest.videos)
        found.append(replace(manifest, videos=videos, has_splits=True))
    return found


def parts(videos: Sequence[Video], many: int, *, seed: int) -> list[list[str]]:
    """The ids of the videos in so many parts; see `folds`."""
    groups: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        groups[_group(video)].append(video)
    names = [sorted(groups)[place] for place in np.random.default_rng(seed).permutation(len(groups))]
    totals = Counter(video.label for video in videos)
    held: list[Counter[str | None]] = [Counter() for _ in range(many)]
    found: list[list[str]] = [[] for _ in range(many)]
    for name in sorted(names, key=lambda name: -len(groups[name])):
        dealt = Counter(video.label for video in groups[name])
        # By how much the sum of the squares of all parts' shares of the classes grows.
        grows = [
            (sum(n * (n + 2 * has[label]) / totals[label] ** 2 for label, n in dealt.items()), has.total(), part)
            for part, has in enumerate(held)
        ]
        part = min(grows)[2]
        held[part] += dealt
        found[part] += [video.id for video in groups[name]]
    return found


def _most_even(many: Sequence[Sequence[str]], videos: Sequence[Video]) -> Sequence[str] | None:
    """The part whose shares of the classes are nearest to its share of the whole, of those that have every class; None
    if none has."""
    label = {video.id: video.label for video in videos}
    totals = Counter(label.values())

    def unevenness(part: Sequence[str]) -> float:
        has = Counter(label[name] for name in part)
        return sum((has[name] / totals[name] - 1 / len(many)) ** 2 for name in totals)

    whole = [part for part in many if {label[name] for name in part} >= {one for one in totals if one is not None}]
    return min(whole, key=unevenness, default=None)


def _group(video: Video) -> str:
    # A name of a group can't be taken for that of a video.
    return f"group {video.group}" if video.group else f"video {video.id}"
