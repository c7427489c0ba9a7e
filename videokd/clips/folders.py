"""Folders of videos without a list: which level is the splits, which the classes."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from videokd.clips.backends import IMAGE_SUFFIXES
from videokd.clips.manifest import Video
from videokd.clips.rows import MEDIA_SUFFIXES, VIDEO_SUFFIXES, Notes, Row
from videokd.clips.splits import usual_split

_Identity = tuple[int, int]
"""Device and number of a folder: the same under all its links."""


def media_below(folder: Path, notes: Notes) -> list[Path]:
    """Return the videos and pictures in a folder and all folders below it, sorted; hidden ones are left out.

    Links are followed. A folder is read once, whatever the links to it, so that links in a circle end; a link to a
    folder above is not followed. A link to a video that is gone counts as a video, which is missing.

    Raises:
        ValueError: for a link without a suffix that leads nowhere: the videos of a whole folder may be missing.
    """
    seen = {*_above(folder), _identity(folder)}
    found, waiting = [], [folder]
    while waiting:
        folders, files = _inside(waiting.pop())
        found += files
        for child in folders:
            identity = _identity(child)
            if identity in seen:
                notes.add(f"{child} links to a folder that is read already, or lies above it: it is not followed")
            else:
                seen.add(identity)
                waiting.append(child)
    return sorted(found)


@dataclass(frozen=True)
class _Folder:
    """A folder right under the one that is looked at, with the videos in and below it."""

    path: Path
    files: Sequence[Path]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def inside(self) -> list[str]:
        """Names of its folders that hold videos."""
        names = (file.relative_to(self.path).parts for file in self.files)
        return sorted({parts[0] for parts in names if len(parts) > 1})

    @property
    def is_nested(self) -> bool:
        """Whether all videos lie in folders below it."""
        return all(len(file.relative_to(self.path).parts) > 1 for file in self.files)


def folder_rows(root: Path, notes: Notes) -> list[Row]:
    """Return the videos of ROOT/CLASS/VIDEO, ROOT/SPLIT/CLASS/VIDEO, or ROOT/CLASS/SPLIT/VIDEO.

    Folders below those of the classes are no classes. Splits go by their usual names (`usual_split`).

    Raises:
        ValueError: where it is not certain which level is the classes, naming the folder to pass instead.
    """
    children, direct = _inside(root)
    splits = [child for child in children if usual_split(child.name)]
    others = [_Folder(child, media_below(child, notes)) for child in children if child not in splits]
    _check_direct(root, direct, bool(splits) or any(folder.files for folder in others), notes)
    classes = _with_videos(others, notes)
    if splits and classes:
        raise ValueError(
            f"{root} mixes folders of splits ({_some([path.name for path in splits])}) with others "
            f"({_some([folder.name for folder in classes])}): is a folder a split or a class?"
        )
    found = list(_split_files(splits, notes) if splits else _class_files(root, classes, notes))
    if not found:
        raise ValueError(
            f"{root} holds no video: expected {root}/CLASS/VIDEO or {root}/SPLIT/CLASS/VIDEO "
            f"with one of {' '.join(MEDIA_SUFFIXES)}"
        )
    return [
        (
            str(one.file),
            Video(id=one.file.relative_to(root).as_posix(), path=one.file, label=one.label, split=one.split),
        )
        for one in found
    ]


@dataclass(frozen=True)
class _File:
    file: Path
    label: str | None
    split: str | None


def _class_files(root: Path, classes: Sequence[_Folder], notes: Notes) -> Iterator[_File]:
    """The videos of ROOT/CLASS/VIDEO, or of ROOT/CLASS/SPLIT/VIDEO where every class has folders of splits alone."""
    with_splits = [folder for folder in classes if folder.is_nested and all(map(usual_split, folder.inside))]
    _check_is_class_level(root, classes)
    if with_splits and len(with_splits) < len(classes):
        without = next(folder for folder in classes if folder not in with_splits)
        raise ValueError(
            f"{with_splits[0].path} holds folders of splits ({_some(with_splits[0].inside)}) and {without.path} does "
            f"not: pass {with_splits[0].path} if it is a set by itself, or sort all classes alike"
        )
    for folder in classes:
        if not with_splits:
            yield from (_File(file, folder.name, None) for file in _checked(folder, notes))
            continue
        for name in folder.inside:
            below = _Folder(folder.path / name, media_below(folder.path / name, notes))
            if below.is_nested:
                raise ValueError(
                    f"{below.path} holds folders ({_some(below.inside)}), so {folder.path} looks like a set by itself "
                    f"and {folder.name} not like a class: pass {folder.path}"
                )
            yield from (_File(file, folder.name, usual_split(name)) for file in _checked(below, notes))
    if with_splits:
        notes.add(f"the folders of the classes hold those of the splits ({_some(with_splits[0].inside)})")
    _note_levels(classes if not with_splits else (), notes)


def _split_files(splits: Sequence[Path], notes: Notes) -> Iterator[_File]:
    """The videos of SPLIT/CLASS/VIDEO; those right under a split, and all of "unlabelled", have no label."""
    seen: dict[str, Path] = {}
    classes: dict[Path, list[_Folder]] = {}
    direct: dict[Path, list[Path]] = {}
    for path in splits:
        split = usual_split(path.name) or path.name
        if split in seen:
            raise ValueError(f"{seen[split]} and {path} are both folders of the split {split!r}: keep one")
        seen[split] = path
        if path.name != split:
            notes.add(f"folder {path.name} is the split {split!r}")
        children, direct[path] = _inside(path)
        below = [_Folder(child, media_below(child, notes)) for child in children]
        classes[path] = (
            [folder for folder in below if folder.files] if split == "unlabelled" else _with_videos(below, notes)
        )
    labelled = [folder for path in splits if usual_split(path.name) != "unlabelled" for folder in classes[path]]
    if labelled and all(usual_split(folder.name) for folder in labelled):
        raise ValueError(
            f"{labelled[0].path} is a folder of a split in a folder of a split: move what is in {labelled[0].path} up "
            f"to {labelled[0].path.parent}"
        )
    if len({folder.name for folder in labelled}) == 1 and all(folder.is_nested for folder in labelled):
        raise ValueError(
            f"{labelled[0].path} would be the only class, but holds folders ({_some(labelled[0].inside)}) that look "
            f"like the classes: move them up to {labelled[0].path.parent}, so that they are right under their split"
        )
    for path in splits:
        split = usual_split(path.name) or path.name
        if direct[path] and split != "unlabelled":
            notes.add(f"{len(direct[path])} videos right under {path.name} have no label")
        files = [_File(file, None, split) for file in direct[path]]
        for folder in classes[path]:
            label = None if split == "unlabelled" else folder.name
            files += [_File(file, label, split) for file in _checked(folder, notes)]
        yield from sorted(files, key=lambda one: one.file)
    _note_levels(labelled, notes)


def _check_direct(root: Path, files: Sequence[Path], has_folders: bool, notes: Notes) -> None:
    """Raises a `ValueError` where videos lie right under `root`, which says neither class nor split."""
    videos = [file.name for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    if has_folders and videos:
        raise ValueError(
            f"{len(videos)} videos ({_some(videos)}) lie right under {root}, next to its folders: move each into the "
            "folder of its class, or, without a label, into a folder of a split (train, unlabelled)"
        )
    if has_folders and files:
        notes.add(f"pictures right under {root} are left out ({_some([file.name for file in files])})")
    elif files:
        raise ValueError(
            f"{root} holds {len(files)} videos ({_some([file.name for file in files])}) and no folders of classes, so "
            f"none has a label. With labels, sort them as {root}/CLASS/VIDEO. Without, move them to {root}/unlabelled "
            f"next to {root}/train/CLASS, or write a list that has a path a line "
            f"(`find {root} -maxdepth 1 -type f > videos.txt`); `videokd predict MODEL {root}` needs no list"
        )


def _check_is_class_level(root: Path, classes: Sequence[_Folder]) -> None:
    """Raises a `ValueError` where the only class has all its videos in folders: classes or splits, it seems."""
    if len(classes) != 1 or not classes[0].is_nested:
        return
    top = below = classes[0]
    while len(below.inside) == 1 and not usual_split(below.inside[0]):
        inside = below.path / below.inside[0]
        deeper = _Folder(inside, [file for file in below.files if file.is_relative_to(inside)])
        if not deeper.is_nested:
            break
        below = deeper
    are = "splits" if all(map(usual_split, below.inside)) else "classes"
    raise ValueError(
        f"{top.path} would be the only class of {root}, but holds its videos in folders: those of {below.path} "
        f"({_some(below.inside)}) look like the {are}. Pass {below.path}; or, if {top.name} is a class, move its "
        "videos right into it"
    )


def _note_levels(classes: Sequence[_Folder], notes: Notes) -> None:
    nested = next((folder for folder in classes if folder.inside), None)
    if nested is not None:
        notes.add(
            f"the classes are {_some(sorted({folder.name for folder in classes}))}; folders below them "
            f"({_some(nested.inside)}) are none"
        )


def _with_videos(folders: Sequence[_Folder], notes: Notes) -> list[_Folder]:
    if empty := [str(folder.path) for folder in folders if not folder.files]:
        notes.add(f"folders without videos are left out ({_some(empty)})")
    return [folder for folder in folders if folder.files]


def _checked(folder: _Folder, notes: Notes) -> list[Path]:
    """The videos of a class, without the thumbnails beside them.

    Raises:
        ValueError: where pictures in a folder below look like the frames of a video.
    """
    videos = {file.with_suffix("") for file in folder.files if file.suffix.lower() in VIDEO_SUFFIXES}
    pictures = [file for file in folder.files if file.suffix.lower() in IMAGE_SUFFIXES]
    thumbnails = {file for file in pictures if file.with_suffix("") in videos}
    if thumbnails:
        notes.add("pictures with the name of a video beside them are thumbnails, and left out")
    numbered: dict[tuple[Path, str], list[int]] = {}
    for file in pictures:
        match = re.fullmatch(r"(.*?)(\d+)", file.stem)
        if match and file.parent != folder.path:
            numbered.setdefault((file.parent, match[1]), []).append(int(match[2]))
    for (parent, _), numbers in numbered.items():
        if len(numbers) > 1 and max(numbers) - min(numbers) == len(numbers) - 1:
            raise ValueError(
                f"{parent} holds {len(numbers)} pictures with consecutive numbers: frames of a video, or still "
                f"pictures? For frames, write a list (`{parent.relative_to(folder.path.parent)} {len(numbers)} LABEL` "
                f"a line); still pictures lie right in the folder of their class, {folder.path}"
            )
    return [file for file in folder.files if file not in thumbnails]


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the videos right in a folder, sorted, without what is hidden.

    Raises:
        ValueError: for a link without a suffix that leads nowhere.
    """
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(path)
            elif path.suffix.lower() in MEDIA_SUFFIXES:
                files.append(path)
            elif not path.suffix and entry.is_symlink() and not path.exists():
                raise ValueError(
                    f"{path} is a link to {os.readlink(path)}, which is not there, and may hold videos: restore that "
                    "folder, or remove the link"
                )
    return sorted(folders), sorted(files)


def _above(folder: Path) -> set[_Identity]:
    """The folders that hold a folder, by the names it was reached by and by where it really lies."""
    return {_identity(parent) for parent in (*folder.absolute().parents, *folder.resolve().parents)}


def _identity(folder: Path) -> _Identity:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
