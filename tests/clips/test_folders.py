"""Folders without a list: splits, classes, links and nesting."""

import os
import sys
from pathlib import Path

import pytest

from videokd.clips.lists import read_manifest

Rows = list[tuple[str, str | None, str | None]]


def folder(root: Path, *files: str) -> Path:
    """Return `root`, with these empty files in it."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def rows(root: Path) -> Rows:
    """Return (id, label, split) of every video, sorted; no split where the folder names none."""
    manifest = read_manifest(root)
    return sorted((one.id, one.label, one.split if manifest.has_splits else None) for one in manifest.videos)


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN", "train_set"])
@pytest.mark.parametrize(
    ("held_out", "split"),
    [("val", "val"), ("Validation", "val"), ("dev", "val"), ("Testing", "test"), ("TEST", "test")],
)
def test_folders_with_usual_names_of_splits_are_splits(train: str, held_out: str, split: str, tmp_path: Path) -> None:
    root = folder(tmp_path, f"{train}/run/a.mp4", f"{train}/walk/b.mp4", f"{held_out}/run/c.mp4")
    found = {(Path(name).name, label, into) for name, label, into in rows(root)}
    assert found == {("a.mp4", "run", "train"), ("b.mp4", "walk", "train"), ("c.mp4", "run", split)}


def test_splits_below_the_classes_are_splits_too(tmp_path: Path) -> None:
    root = folder(tmp_path, "run/train/a.mp4", "run/test/b.mp4", "walk/train/c.mp4", "walk/test/d.mp4")
    assert rows(root) == [
        ("run/test/b.mp4", "run", "test"),
        ("run/train/a.mp4", "run", "train"),
        ("walk/test/d.mp4", "walk", "test"),
        ("walk/train/c.mp4", "walk", "train"),
    ]


def test_folders_below_classes_are_no_classes(tmp_path: Path) -> None:
    root = folder(tmp_path, "run/person0/a.mp4", "run/person1/b.mp4", "walk/person0/c.mp4")
    assert [label for _, label, _ in rows(root)] == ["run", "run", "walk"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("set/run/p0/a.mp4", "set/walk/p0/b.mp4"),
            r"would be the only class .*set \(run, walk\) look like the classes",
        ),
        (("set/train/run/a.mp4", "set/test/run/b.mp4"), r"\(test, train\) look like the splits\. Pass .*set"),
        (("a/b/run/a.mp4", "a/b/walk/b.mp4"), r"a/b \(run, walk\) look like the classes\. Pass .*a/b"),
        (("train/set/run/a.mp4", "train/set/walk/b.mp4"), r"set would be the only class.*\(run, walk\)"),
        (("train/train/run/a.mp4",), "is a folder of a split in a folder of a split"),
        (("train/run/a.mp4", "walk/b.mp4"), "mixes folders of splits"),
        (("train/run/a.mp4", "Training/run/b.mp4"), "are both folders of the split 'train'"),
        (("run/a.mp4", "b.mp4"), "1 videos .* lie right under"),
        (("run/train/a.mp4", "walk/b.mp4"), "holds folders of splits"),
    ],
)
def test_levels_that_are_not_certain_are_refused(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path)


def test_a_flat_folder_says_how_to_read_it(tmp_path: Path) -> None:
    folder(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(ValueError, match=r"2 videos .* no folders of classes, so none has a label.*unlabelled"):
        read_manifest(tmp_path)
    unlabelled = folder(tmp_path / "set", "unlabelled/a.mp4", "train/run/b.mp4")
    assert rows(unlabelled) == [("train/run/b.mp4", "run", "train"), ("unlabelled/a.mp4", None, "unlabelled")]


needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


@needs_links
@pytest.mark.parametrize("linked", ["train", "train/run", "train/run/person"])
def test_linked_folders_are_read_at_every_level(linked: str, tmp_path: Path) -> None:
    elsewhere = folder(tmp_path / "elsewhere", *(f"{linked}/{file}" for file in inside(linked)))
    root = folder(tmp_path / "set", "test/run/z.mp4")
    (root / linked).parent.mkdir(parents=True, exist_ok=True)
    (root / linked).symlink_to(elsewhere / linked, target_is_directory=True)
    assert [(label, split) for _, label, split in rows(root)].count(("run", "train")) == 2


def inside(linked: str) -> tuple[str, ...]:
    below = "train/run/person".removeprefix(linked).strip("/")
    return tuple(f"{below}/{name}".lstrip("/") for name in ("a.mp4", "b.mp4"))


@needs_links
def test_linked_root_and_linked_files_are_read(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", "run/a.mp4", "walk/b.mp4")
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    (real / "walk" / "c.mp4").symlink_to(real / "run" / "a.mp4")
    assert [one[0] for one in rows(tmp_path / "link")] == ["run/a.mp4", "walk/b.mp4", "walk/c.mp4"]


@needs_links
@pytest.mark.parametrize("target", [".", "..", "../.."])
@pytest.mark.filterwarnings("default:.*links to a folder")
def test_links_in_a_circle_end(target: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "run/a.mp4", "walk/b.mp4")
    (root / "run" / "again").symlink_to(target, target_is_directory=True)
    assert [one[0] for one in rows(root)] == ["run/a.mp4", "walk/b.mp4"]


@needs_links
def test_a_link_to_a_folder_that_is_gone_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "run/a.mp4")
    os.symlink(tmp_path / "gone", root / "walk")
    with pytest.raises(ValueError, match=r"walk is a link to .*gone, which is not there"):
        read_manifest(root)
