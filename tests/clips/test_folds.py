"""Folds: every video is tested once, no group is divided, and classes are as even as that allows."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from videokd.clips.folds import folds
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest, Video, write_manifest


def listed(rows: list[tuple[str, str | None]]) -> Manifest:
    """(label, group) of each video."""
    videos = tuple(
        Video(id=f"{place:03}.mp4", path=Path(f"/videos/{place:03}.mp4"), label=label, group=group)
        for place, (label, group) in enumerate(rows)
    )
    return Manifest(Path("/videos/list.jsonl"), videos, tuple(sorted({label for label, _ in rows})))


def uneven(seed: int = 0) -> Manifest:
    """200 videos of two classes, from 40 sources of very different sizes."""
    random = np.random.default_rng(seed)
    sources = random.choice(40, size=200, p=random.dirichlet(np.ones(40)))
    return listed([(("fight", "none")[int(random.random() < 0.4)], f"s{source}") for source in sources])


@pytest.mark.parametrize("seed", range(5))
def test_folds_cover_the_list_once_and_divide_no_group(seed: int) -> None:
    manifest = uneven(seed)
    made = folds(manifest, 4, val=0.2, seed=seed)
    tested = [video.id for fold in made for video in fold.videos if video.split == "test"]
    assert sorted(tested) == sorted(video.id for video in manifest.videos)
    for fold in made:
        splits = defaultdict(set)
        for video in fold.videos:
            splits[video.group].add(video.split)
        assert all(len(of_one) == 1 for of_one in splits.values())
        assert {video.split for video in fold.videos} == {"train", "val", "test"}


def test_classes_are_even_where_groups_are_small() -> None:
    # 60 and 30 videos in groups of one or two: a third of each to each fold.
    rows = [("a", f"a{n // 2}") for n in range(60)] + [("b", f"b{n}") for n in range(30)]
    for fold in folds(listed(rows), 3, val=0.25):
        assert Counter(v.label for v in fold.videos if v.split == "test") == {"a": 20, "b": 10}
        # A quarter of the 40 and 20 that are left.
        assert Counter(v.label for v in fold.videos if v.split == "val") == {"a": 10, "b": 5}


def test_the_same_seed_makes_the_same_folds_and_another_one_others() -> None:
    manifest = uneven()
    splits = [[video.split for fold in folds(manifest, 3, seed=seed) for video in fold.videos] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert all(video.split != "val" for fold in folds(manifest, 3, val=0) for video in fold.videos)


def test_folds_are_read_back(tmp_path: Path) -> None:
    made = folds(uneven(), 3)
    for number, fold in enumerate(made):
        write_manifest(fold, tmp_path / f"{number}.jsonl")
        again = read_manifest(tmp_path / f"{number}.jsonl")
        assert [(v.path.name, v.label, v.split, v.group) for v in again.videos] == [
            (v.path.name, v.label, v.split, v.group) for v in fold.videos
        ]


def test_what_can_not_be_done_is_refused() -> None:
    few = listed([("a", f"a{n}") for n in range(9)] + [("b", "one"), ("b", "one"), ("b", "two")])
    with pytest.raises(ValueError, match=r"class 'b' of .*list\.jsonl has 2 groups.*take at most 2"):
        folds(few, 3)
    with pytest.raises(ValueError, match=r"got 1 and 0\.2"):
        folds(few, 1)
    several = Manifest(few.source, (Video(id="x", path=Path("x"), labels=("a", "b")),), ("a", "b"))
    with pytest.raises(ValueError, match="several labels a video"):
        folds(several, 2)


@pytest.mark.parametrize("groups", [4, 6])
def test_val_has_some_of_every_class_or_is_refused(groups: int) -> None:
    few = listed([(label, f"{label}{source}") for label in ("a", "b") for source in range(groups) for _ in range(4)])
    for fold in folds(few, 2, val=0.2):
        assert {video.label for video in fold.videos if video.split == "val"} == {"a", "b"}
        assert {video.label for video in fold.videos if video.split == "train"} == {"a", "b"}
    two = listed([(label, f"{label}{source}") for label in ("a", "b") for source in range(2) for _ in range(4)])
    with pytest.raises(ValueError, match=r"has no validation videos with some of every class.*--val 0"):
        folds(two, 2, val=0.2)
    assert len(folds(two, 2, val=0)) == 2


def test_val_is_the_part_that_is_nearest_to_its_share() -> None:
    # Two sources of six videos, and twelve videos by themselves: each fold tests half of both. Of the 12 that are left
    # a third is 4: three by themselves are nearer to that than a source of six.
    rows: list[tuple[str, str | None]] = [("a", f"large {n // 6}") for n in range(12)] + [("a", None)] * 12
    for fold in folds(listed(rows), 2, val=1 / 3):
        assert [video.group for video in fold.videos if video.split == "val"] == [None] * 3


def test_a_group_is_not_taken_for_a_video_of_its_name() -> None:
    assert len(folds(listed([("a", None), ("a", "000.mp4"), ("a", "001.mp4")]), 3, val=0)) == 3
