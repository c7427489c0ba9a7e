"""Lists of videos: one row per video, whatever the form in which the list was found."""

import csv
import hashlib
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
    has_splits: bool = True
    """False where the list names no splits, and a fifth of its groups (or videos) was made the test split."""

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

    Paths inside a list are relative to the folder that holds it. Where a list names no splits, a fifth of the groups,
    or of the videos where there are no groups, becomes "test" by a hash of its name, and the others "train".

    Raises:
        ValueError: naming the file and line that is wrong, and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        videos = tuple(_folder_rows(path))
    elif not path.exists():
        raise ValueError(f"no list or folder of videos at {path}")
    elif path.suffix == ".jsonl":
        videos = tuple(_jsonl_rows(path))
    elif path.suffix == ".csv":
        videos = tuple(_csv_rows(path))
    else:
        raise ValueError(f"{path} is not a folder, a .csv or a .jsonl list")
    if not videos:
        raise ValueError(f"{path} holds no video")
    _check_unique(path, videos)
    _check_groups(path, videos)
    has_splits = any(video.split is not None for video in videos)
    if not has_splits:
        videos = tuple(replace(video, split=_hashed_split(video)) for video in videos)
    classes = _sorted_classes({video.label for video in videos if video.label is not None})
    return Manifest(path, videos, classes, has_splits=has_splits)


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
    folders = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    splits = [folder.name for folder in folders if folder.name.lower() in _SPLIT_FOLDERS]
    if splits and len(splits) < len(folders):
        others = [folder.name for folder in folders if folder.name not in splits]
        raise ValueError(
            f"{root} mixes folders of splits ({', '.join(splits)}) with others ({', '.join(others[:5])}): "
            "is a folder a split or a class?"
        )
    found = False
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in VIDEO_SUFFIXES:
                found = True
                inside = file.relative_to(folder).parts
                # A video right under a split has no class.
                label = (inside[0] if len(inside) > 1 else None) if splits else folder.name
                yield Video(
                    id=file.relative_to(root).as_posix(), path=file, label=label, split=folder.name if splits else None
                )
    if not found:
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
            label = None if _label(row["label"]) is None else _label(row.get("class") or row["label"])
            yield Video(
                id=row["path"],
                path=path.parent / row["path"],
                label=label,
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
                label=_label(label),
                split=row.get("split"),
                group=row.get("group"),
                factors=row.get("factors"),
            )


def _label(written: object) -> str | None:
    """A class name, or None for what marks an unlabelled clip: nothing, or -1."""
    text = "" if written is None else str(written).strip()
    return None if text in ("", "-1") else text


def _check_groups(path: Path, videos: tuple[Video, ...]) -> None:
    splits: dict[str, str] = {}
    for video in videos:
        if video.group and video.split and splits.setdefault(video.group, video.split) != video.split:
            raise ValueError(
                f"{path}: group {video.group!r} lies in the splits {splits[video.group]!r} and {video.split!r}; "
                "clips of one source in training and test make a score too good. Keep a group in one split"
            )


def _hashed_split(video: Video) -> str:
    """ "test" for a fifth of the groups, "train" for the others: the same for ever, whatever else is in the list."""
    digest = hashlib.blake2b((video.group or video.id).encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) % 5 == 0 else "train"


def _check_unique(path: Path, videos: tuple[Video, ...]) -> None:
    seen: set[str] = set()
    for video in videos:
        if video.id in seen:
            raise ValueError(f"{path} lists {video.id} twice")
        seen.add(video.id)


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    # Numbers as numbers, so that class "10" does not come before class "2".
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))
