import re
from pathlib import Path

import pytest

from videokd.clips.manifest import Manifest, Video
from videokd.clips.set_checks import set_problems


def problems(*rows: tuple[str | None, str | None], unreadable: tuple[int, ...] = ()) -> list[str]:
    """Return the problems of a list with one video for each (split, label)."""
    videos = [Video(id=f"{n}", path=Path(f"{n}"), split=split, label=label) for n, (split, label) in enumerate(rows)]
    classes = sorted({label for _, label in rows if label})
    readable = {video.id for n, video in enumerate(videos) if n not in unreadable}
    return set_problems(Manifest(Path("list"), tuple(videos), tuple(classes)), readable)


SOUND = (("train", "run"), ("train", "walk"), ("test", "run"), ("test", "walk"))


@pytest.mark.parametrize(
    "more",
    [(), (("val", "run"),), (("unlabelled", None),), (("train", None),)],
    ids=["none", "val", "pool", "unlabelled"],
)
def test_a_set_that_trains_and_can_be_scored_has_no_problem(more: tuple[tuple[str, str | None], ...]) -> None:
    assert problems(*SOUND, *more) == []


def test_a_validation_split_is_enough_to_evaluate_on() -> None:
    assert problems(("Training", "run"), ("Training", "walk"), ("dev", "run"), ("dev", "walk")) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            (("train", "run"), ("train", "walk")),
            r"in a split 'test' or 'val' \(splits: train\): there is nothing to eval",
        ),
        ((("test", "run"), ("test", "walk")), r"in a split 'train' \(splits: test\): training needs one"),
        ((("a", "run"), ("b", "walk")), r"in a split 'train' \(splits: a, b\)"),
        ((("train", "run"), ("test", "run")), "all training videos are of one class, 'run'"),
        ((("train", None), ("test", "run")), "no training video has a label"),
        ((*SOUND[:2], ("test", None)), "no video of split 'test' has a label: it can't be scored"),
        ((*SOUND, ("test", None)), "1 of 3 videos of split 'test' have no label"),
        ((*SOUND, ("test", "jump")), "'test' has videos of 1 class that no training video has, such as 'jump'"),
        ((*SOUND, ("val", "hop"), ("val", "jump")), "'val' has videos of 2 classes .* such as 'hop'"),
    ],
)
def test_sets_that_cannot_be_trained_or_scored_are_named(
    rows: tuple[tuple[str, str | None], ...], message: str
) -> None:
    assert any(re.search(message, problem) for problem in problems(*rows))


def test_videos_that_cannot_be_read_do_not_count() -> None:
    assert problems(*SOUND, unreadable=(1,)) == [
        "all training videos are of one class, 'run': there is nothing to learn",
        "split 'test' has videos of 1 class that no training video has, such as 'walk': no model can name it",
    ]
