"""Lists of videos: one row per video, whatever the form in which the list was found."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videokd.config import nearest

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp")
_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class Video:
    """One row of a list."""

    id: str
    """The path as the list writes it: a stable name, whatever the folder that holds the set."""
    path: Path
    label: str | None = None
    """Class name; None where it is unknown."""
    split: str | None = None
    group: str | None = None
    """Source of the clip: clips of one group must not be spread over training and test."""
    factors: Mapping[str, Any] | None = None
    """What is known of the content, in synthetic sets."""


@dataclass(frozen=True)
class Manifest:
    """A list of videos with the class names in order: a class's number is its place in `classes`."""

    source: Path
    videos: tuple[Video, ...]
    classes: tuple[str, ...]

    def split(self, name: str | None) -> "Manifest":
        """The videos of one split, under the same class numbers; all of them where `name` is None.

        Raises:
            ValueError: if no video is in that split.
        """
        if name is None:
            return self
        videos = tuple(video for video in self.videos if video.split == name)
        if not videos:
            splits = sorted({video.split for video in self.videos if video.split is not None})
            raise ValueError(f"{self.source} has no video in split {name!r}{nearest(name, splits)}")
        return replace(self, videos=videos)

    def with_classes(self, classes: Sequence[str], *, of: str) -> "Manifest":
        """The same videos under a model's class numbers.

        Raises:
            ValueError: if a video is of a class that `classes`, those `of` the model named, do not have.
        """
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise ValueError(
                f"{self.source} has classes that {of} was not trained for: {', '.join(unknown[:5])}"
                f"{nearest(unknown[0], classes)}"
            )
        return replace(self, classes=tuple(classes))


def read_manifest(path: str | Path) -> Manifest:
    """The list at `path`: a .jsonl manifest, a .csv with a header, or a folder with one folder per class.

    Paths inside a list are relative to the folder that holds it.

    Raises:
        ValueError: naming the file and line that is wrong, and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        videos = tuple(_folder_rows(path))
    elif not path.exists():
        raise ValueError(f"no list or folder of videos at {path}; name it with --data.path")
    elif path.suffix == ".jsonl":
        videos = tuple(_jsonl_rows(path))
    elif path.suffix == ".csv":
        videos = tuple(_csv_rows(path))
    else:
        raise ValueError(f"{path} is not a folder, a .csv or a .jsonl list")
    if not videos:
        raise ValueError(f"{path} holds no video")
    _check_unique(path, videos)
    return Manifest(path, videos, _sorted_classes({video.label for video in videos if video.label is not None}))


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Writes JSON lines that `read_manifest` reads back; paths are made relative to the new file's folder."""
    lines = []
    for video in manifest.videos:
        row: dict[str, Any] = {"path": Path(os.path.relpath(video.path, path.parent)).as_posix()}
        row |= {"label": video.label, "split": video.split, "group": video.group}
        if video.factors is not None:
            row["factors"] = video.factors
        lines.append(json.dumps(row) + "\n")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)


def _folder_rows(root: Path) -> Iterator[Video]:
    folders = sorted(child for child in root.iterdir() if child.is_dir())
    has_splits = bool(folders) and all(folder.name.lower() in _SPLIT_FOLDERS for folder in folders)
    for folder in folders:
        split = folder.name if has_splits else None
        for class_folder in sorted(child for child in folder.iterdir() if child.is_dir()) if has_splits else [folder]:
            for file in sorted(class_folder.rglob("*")):
                if file.suffix.lower() in VIDEO_SUFFIXES:
                    name = file.relative_to(root).as_posix()
                    yield Video(id=name, path=file, label=class_folder.name, split=split)
    if not any(file.suffix.lower() in VIDEO_SUFFIXES for folder in folders for file in folder.rglob("*")):
        raise ValueError(
            f"{root} holds no video: expected {root}/CLASS/VIDEO or {root}/SPLIT/CLASS/VIDEO "
            f"with one of {' '.join(VIDEO_SUFFIXES)}"
        )


def _csv_rows(path: Path) -> Iterator[Video]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        for needed in ("path", "label"):
            if needed not in columns:
                raise ValueError(
                    f"{path}: line 1 has no column {needed!r} (it has {', '.join(columns) or 'nothing'}); "
                    "expected path,label[,class][,split][,group]"
                )
        for row in reader:
            if not row["path"] or None in row or None in row.values():
                raise ValueError(f"{path}: line {reader.line_num} does not have the {len(columns)} columns of line 1")
            # A `class` column holds the names of the classes that `label` numbers.
            label = (row.get("class") or row["label"]).strip()
            yield Video(
                id=row["path"],
                path=path.parent / row["path"],
                label=None if label in ("", "-1") else label,
                split=row.get("split") or None,
                group=row.get("group") or None,
            )


def _jsonl_rows(path: Path) -> Iterator[Video]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, label = row["path"], row["label"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is not an object with path and label: {error!r}") from error
            yield Video(
                id=name,
                path=path.parent / name,
                label=None if label is None else str(label),
                split=row.get("split"),
                group=row.get("group"),
                factors=row.get("factors"),
            )


def _check_unique(path: Path, videos: tuple[Video, ...]) -> None:
    seen: set[str] = set()
    for video in videos:
        if video.id in seen:
            raise ValueError(f"{path} lists {video.id} twice")
        seen.add(video.id)


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    # Numbers as numbers, so that class "10" does not come before class "2".
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))
