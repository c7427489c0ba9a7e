"""The field's lists of videos, read as they are published, into one `Manifest`."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videokd.clips.columns import column_rows, header_rows, header_separator, named_keys
from videokd.clips.folders import folder_rows
from videokd.clips.labels import check_names, is_missing, label_of, labels_of, with_missing
from videokd.clips.manifest import Manifest, Packed, Video, is_url, shard_name
from videokd.clips.plain_lists import plain_rows
from videokd.clips.rows import VIDEO_SUFFIXES, Notes, file_name, is_number, read_lines, read_text
from videokd.clips.rows import Row as _Row
from videokd.clips.shards import local_index
from videokd.clips.splits import split_in_name, usual_split
from videokd.clips.table import table_path
from videokd.json_files import as_object, parse_json, read_json

_LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".list")


def read_manifest(
    path: str | Path,
    *,
    root: str | Path | None = None,
    fold: int = 1,
    class_names: str | Path | None = None,
    allow_leaks: bool = False,
) -> Manifest:
    """The list at `path`, in any form of data/README.md; the form is told by names and content.

    Where a list names no splits, a fifth of the groups, or of the videos where there are no groups, becomes "test" by
    a hash of its name, and the others "train". A single list called after a split ("train.csv") is all of that split.

    Args:
        path: a folder or a file, or the URL of a packed set's index.
        root: folder that relative paths of the list start from; None is the list's own.
        fold: which official split, of a set that has several (UCF101, HMDB51).
        class_names: file of class names for lists whose labels are numbers: a name a line, the first of number 0, or
            every name with its number (`1 ApplyEyeMakeup`, `0,abseiling`, `abseiling,0`, with or without a header).
        allow_leaks: read a list that has clips of one group in several splits, which is refused otherwise.

    Raises:
        ValueError: naming the file and line that is wrong, and what was expected.
    """
    numbered = {} if class_names is None else _names_of(Path(class_names))
    how = _How(Path(root) if root is not None else None, fold, frozenset(numbered.values()), Notes(path))
    found = _found(path, how)
    rows, source = list(found.rows), Path(path)
    if not rows:
        raise ValueError(f"{path} holds no video")
    names: Sequence[str] = found.classes
    if class_names is not None:
        names, rows = tuple(numbered.values()), _renamed(rows, numbered, Path(class_names))
    if not names:
        check_names(rows)
    rows = _with_usual_splits(rows, how.notes)
    _check_unique(rows)
    if not allow_leaks:
        _check_groups(rows)
    if found.is_text:
        _note_missing(rows, how)
    how.notes.show()
    videos = tuple(video for _, video in rows)
    if any(video.labels for video in videos):
        # So that a split in which every video has one label is still of a set of several.
        videos = tuple(replace(video, label=None, labels=video.names) for video in videos)
    has_splits = any(video.split is not None for video in videos)
    if not has_splits:
        videos = tuple(replace(video, split=_hashed_split(video)) for video in videos)
    classes = names or _sorted_classes({name for video in videos for name in video.names})
    return Manifest(found.source or source, videos, tuple(classes), has_splits=has_splits)


@dataclass(frozen=True)
class _How:
    """How a list is to be read, and notes of how it was."""

    root: Path | None
    fold: int
    known: Collection[str]
    """Names that are certain to be classes: those of the file of class names."""
    notes: Notes


@dataclass
class _Found:
    """What a list holds."""

    rows: Iterable[_Row]
    classes: Sequence[str] = field(default_factory=tuple)
    """In the order of their numbers, where the list has one of its own."""
    source: Path | None = None
    is_text: bool = False
    """Whether somebody's own list names files, so that it is worth saying where they may be."""


def _found(path: str | Path, how: _How) -> _Found:
    if is_url(path):
        url = str(path) if str(path).endswith("/index.jsonl") else f"{str(path).rstrip('/')}/index.jsonl"
        index = local_index(url)
        base = url.removesuffix("index.jsonl")
        with index.open(encoding="utf-8") as file:
            rows = list(_manifest_rows(file, index, lambda name: f"{base}{name}"))
        if loose := next((video for _, video in rows if video.packed is None), None):
            raise ValueError(f"{url} names {loose.id}, which is not packed: only packed sets are read from a URL")
        return _Found(rows, source=index)
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no list or folder of videos at {path}")
    if path.is_dir():
        return _in_folder(path, how)
    if _HMDB51_FILE.fullmatch(path.name):
        raise ValueError(f"{path} is one of HMDB51's lists, one a class: name their folder")
    if path.suffix == ".jsonl":
        return _Found(_jsonl_rows(path, how.root or path.parent, how.notes))
    if path.suffix in _LIST_SUFFIXES:
        return _Found(_list_rows(path, how.root or path.parent, how), is_text=True)
    hint = ": name its folder, which holds the class numbers too" if path.suffix == ".json" else ""
    raise ValueError(f"{path} is not a folder or a list ({', '.join(_LIST_SUFFIXES)}, .jsonl){hint}")


def _in_folder(folder: Path, how: _How) -> _Found:
    names = sorted(child.name for child in folder.iterdir() if child.is_file())
    for own in ("index.jsonl", "manifest.jsonl"):  # a packed set's, and what `videokd data` writes
        if own in names:
            return _Found(_jsonl_rows(folder / own, how.root or folder, how.notes), source=folder / own)
    if "classInd.txt" in names:
        return _ucf101(folder, how.root, how.fold)
    if any(_HMDB51_FILE.fullmatch(name) for name in names):
        return _hmdb51(folder, how.root, how.fold)
    if any(name.removeprefix(_SSV2_PREFIX) == "labels.json" for name in names):
        return _something_something(folder, how.root)
    lists: dict[str, str] = {}
    for name in names:
        split = split_in_name(name)
        if split and Path(name).suffix in _LIST_SUFFIXES:
            if split in lists:
                raise ValueError(f"{folder} has two lists of the split {split!r}, {lists[split]} and {name}: name one")
            lists[split] = name
    if lists:
        rows = [row for name in lists.values() for row in _list_rows(folder / name, how.root or folder, how)]
        return _Found(rows, is_text=True)
    return _Found(folder_rows(folder, how.notes))


def _jsonl_rows(path: Path, root: Path, notes: Notes) -> Iterator[_Row]:
    split = split_in_name(path.name)
    for where, video in _manifest_rows(read_text(path, notes), path, lambda name: str(root / name), notes):
        if "\\" in video.id and video.packed is None:
            name = file_name(video.id, root, where, notes)
            video = replace(video, id=name, path=root / name)
        yield where, replace(video, split=split) if split and not video.split else video


def _manifest_rows(
    lines: Iterable[str], path: Path, place: Callable[[str], str], notes: Notes | None = None
) -> Iterator[_Row]:
    """The videos of a manifest's lines, of which errors name `path`; `place` makes the path of a file named in it.

    Where there are `notes`, keys may have other usual names than the documented ones.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = as_object(parse_json(line, source="it"), source="it")
            if notes is not None:
                row = named_keys(row, notes)
            name, label = str(row.pop("path")), row.pop("label")
            packed = row.pop("packed", None)
            if packed is not None:
                packed["shard"] = place(shard_name(packed["shard"]))
            if notes is not None and isinstance(label, str) and is_missing(label):
                notes.add(f"{label!r} is a class; no label is null")
            error = row.get("error")
            video = Video(
                id=name,
                path=Path(place(name)) if packed is None else Path(packed["shard"]) / name,
                label=None if isinstance(label, list) else label_of(label),
                labels=labels_of(label) if isinstance(label, list) else (),
                split=row.pop("split", None),
                group=row.pop("group", None),
                frames=row.pop("frames", None),
                error=error if error is None or isinstance(error, str) else str(error["reason"]),
                packed=None if packed is None else Packed(**packed, table=str(table_path(path))),
                factors=row.pop("factors", None),
                facts=row or None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: line {number} is not an object with path and label: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from error
        yield f"{path}: line {number}", video


def _list_rows(path: Path, root: Path, how: _How) -> list[_Row]:
    """A list with a header, Kinetics' csv, or a plain list."""
    text = (line.strip() for line in read_text(path, how.notes))
    first = next(
        (line for line in text if line and not line.startswith("#") and not line.lower().startswith("sep=")), ""
    )
    if not first:
        raise ValueError(f"{path}: line 1 is empty: expected a header or a video")
    separator = header_separator(first, is_csv=path.suffix == ".csv")
    if separator is None:
        return with_missing(plain_rows(path, root, how.notes), how.known, how.notes)
    if re.search(r"youtube[_\s-]?id", first.lower()):
        return list(_kinetics_rows(path, root, separator, how.notes))
    rows, are_words = column_rows(path, root, separator, how.notes)
    return with_missing(rows, how.known, how.notes) if are_words else rows


def _kinetics_rows(path: Path, root: Path, separator: str, notes: Notes) -> Iterator[_Row]:
    """`label,youtube_id,time_start,time_end,split`, with files called ID_START_END as the usual scripts do."""
    listed: dict[str, dict[str, str]] = {}

    def at(folder: str) -> dict[str, str]:
        """The videos of a folder in `root` by their name without suffix."""
        if folder not in listed:
            files = (root / folder).iterdir() if (root / folder).is_dir() else iter(())
            listed[folder] = {file.stem: file.name for file in files if file.suffix.lower() in VIDEO_SUFFIXES}
        return listed[folder]

    for where, row in header_rows(path, separator, notes):
        try:
            name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} is not label,youtube_id,time_start,time_end,split: {error!r}") from error
        if not row["youtube_id"]:
            raise ValueError(f"{where} has an empty youtube_id")
        label, split = label_of(row.get("label")), row.get("split") or split_in_name(path.name)
        folders = [""]
        folders += [label, label.replace(" ", "_")] if label else []
        folders += [f"{split}/{folder}".rstrip("/") for folder in folders] if split else []
        place = next((folder for folder in folders if name in at(folder)), None)
        # A video that was not to be had is named as it would be; the loader says that it is missing.
        name = f"{name}.mp4" if place is None else f"{place}/{at(place)[name]}".lstrip("/")
        usual = None if split is None else usual_split(split) or split
        yield where, Video(id=name, path=root / name, label=label, split=usual)


def _ucf101(folder: Path, root: Path | None, fold: int) -> _Found:
    """`trainlist01.txt` (CLASS/v_CLASS_g08_c01.avi 1), `testlist01.txt` (without the number), `classInd.txt`."""
    numbers: dict[str, str] = {}
    for where, line in _lines(folder / "classInd.txt"):
        number, _, name = line.partition(" ")
        if number != str(len(numbers) + 1) or not name or name in numbers:
            raise ValueError(f"{where} is not `{len(numbers) + 1} CLASS`: {line!r}")
        numbers[name] = number
    rows = []
    for split in ("train", "test"):
        for where, line in _lines(_fold_file(folder, f"{split}list{fold:02d}.txt", fold)):
            name, _, number = line.partition(" ")
            label, _, file = name.rpartition("/")
            group = re.search(r"_g(\d+)_c\d+", file)
            if label not in numbers or group is None:
                raise ValueError(f"{where} is not CLASS/v_CLASS_gNN_cNN.avi of a class of classInd.txt: {line!r}")
            if number.strip() != numbers[label] and (number.strip() or split == "train"):
                raise ValueError(f"{where}: classInd.txt gives {label} the number {numbers[label]}: {line!r}")
            video = Video(id=name, path=Path(name), label=label, split=split, group=f"{label}/g{group[1]}")
            rows.append((where, video))
    return _Found(_rooted(rows, folder, root, beside=("UCF-101", "UCF101", "videos")), tuple(numbers))


_HMDB51_FILE = re.compile(r"(.+)_test_split(\d)\.txt")


def _hmdb51(folder: Path, root: Path | None, fold: int) -> _Found:
    """`CLASS_test_split1.txt` with `NAME.avi 1`: 1 is training, 2 is test, 0 is not used in this fold."""
    rows = []
    classes = sorted({match[1] for file in folder.iterdir() if (match := _HMDB51_FILE.fullmatch(file.name))})
    for label in classes:
        for where, line in _lines(_fold_file(folder, f"{label}_test_split{fold}.txt", fold)):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name:
                raise ValueError(f"{where} is not `NAME.avi 0|1|2`: {line!r}")
            if use != "0":
                name = f"{label}/{name.strip()}"
                split = "train" if use == "1" else "test"
                rows.append((where, Video(id=name, path=Path(name), label=label, split=split)))
    return _Found(_rooted(rows, folder, root, beside=("hmdb51_org", "hmdb51", "videos")), classes)


_SSV2_PREFIX = "something-something-v2-"


def _something_something(folder: Path, root: Path | None) -> _Found:
    """`labels.json` (template -> number), `train.json`, `validation.json`, `test.json` (without labels)."""

    def load(name: str) -> Any:
        for file in (folder / name, folder / f"{_SSV2_PREFIX}{name}"):
            if file.is_file():
                return read_json(file)
        return None

    numbers = load("labels.json")
    order = sorted(map(str, numbers.values())) if isinstance(numbers, dict) else []
    if not order or order != sorted(map(str, range(len(order)))):
        raise ValueError(f"{folder}: labels.json does not give every template a number from 0")
    classes = sorted(numbers, key=lambda name: int(numbers[name]))
    rows = []
    for split in ("train", "validation", "test"):
        for number, entry in enumerate(load(f"{split}.json") or (), start=1):
            where = f"{folder}: entry {number} of {split}.json"
            if not isinstance(entry, dict) or "id" not in entry or (split != "test" and "template" not in entry):
                raise ValueError(f"{where} has no id, or no template: {entry}")
            label = entry["template"].replace("[", "").replace("]", "") if "template" in entry else None
            if label is not None and label not in numbers:
                raise ValueError(f"{where} has the template {label!r}, which labels.json does not have")
            name = f"{entry['id']}.webm"
            rows.append((where, Video(id=name, path=Path(name), label=label, split=usual_split(split))))
    return _Found(_rooted(rows, folder, root, beside=("20bn-something-something-v2", "videos")), classes)


def _rooted(rows: Sequence[_Row], folder: Path, root: Path | None, *, beside: Sequence[str]) -> Iterator[_Row]:
    """The videos in their folder: the one named, or the first usual one that has the first of them.

    Where that one is an mp4 instead of what the list says, as sets are often converted, so are all.
    """
    places = [root] if root is not None else [folder, *(b / name for b in (folder, folder.parent) for name in beside)]
    suffixes = (rows[0][1].path.suffix, ".mp4") if rows else ()
    root, suffix = next(
        (
            (place, suffix)
            for place in places
            for suffix in suffixes
            if (place / rows[0][1].path.with_suffix(suffix)).is_file()
        ),
        (places[0], None),
    )
    for where, video in rows:
        yield where, replace(video, path=root / (video.path.with_suffix(suffix) if suffix else video.path))


def _fold_file(folder: Path, name: str, fold: int) -> Path:
    if not (folder / name).is_file():
        raise ValueError(f"{folder} has no {name}: is there a fold {fold}?")
    return folder / name


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    return read_lines(path, Notes(path))


_NUMBERED = re.compile(r"(?P<before>\d+)(?:\s+|\s*[,;]\s*)(?P<name>\S.*)|(?P<first>.*\S)\s*[,;\t]\s*(?P<after>\d+)")


def _names_of(path: Path) -> dict[int, str]:
    """Number -> name: a name a line from 0, or every name with the number that it has."""
    if not path.is_file():
        raise ValueError(f"no file of class names at {path}")
    lines = [line for _, line in _lines(path)]
    found = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) > 1 and found[0] is None and re.search(r"[,;\t]", lines[0]) and all(found[1:]):
        del lines[0], found[0]  # a header, such as `id,name`
    numbered = [(int(m["before"] or m["after"]), (m["name"] or m["first"]).strip('"')) for m in found if m]
    if not numbered or len(numbered) < len(lines):
        numbered = list(enumerate(lines))
    elif sorted(n for n, _ in numbered) not in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        raise ValueError(
            f"{path} gives its classes numbers that do not run from 0 or 1 without a gap; "
            "where they belong to the names, write 0, 1, ... before them"
        )
    seen: set[str] = set()
    for number, name in numbered:
        if name in seen:
            raise ValueError(f"{path} names the class {name!r} twice")
        if is_number(name) and name != str(number):
            raise ValueError(f"{path} calls class number {number} {name!r}, which is a number too: write it as a word")
        seen.add(name)
    return dict(sorted(numbered))


def _renamed(rows: Sequence[_Row], names: Mapping[int, str], path: Path) -> list[_Row]:
    """Numbers to names, which `path` gives; names stay."""
    known = {str(number): name for number, name in names.items()} | {name: name for name in names.values()}
    for label in {name for _, video in rows for name in video.names if name.isdecimal()}:  # 01 is number 1
        if str(int(label)) in known:
            known.setdefault(label, known[str(int(label))])

    def renamed(where: str, video: Video) -> _Row:
        unknown = next((name for name in video.names if name not in known), None)
        if unknown is not None:
            raise ValueError(
                f"{where}: {video.id} has the label {unknown!r}, and {path} names {len(names)} classes, "
                f"from {min(names)} to {max(names)}"
            )
        label = None if video.label is None else known[video.label]
        return where, replace(video, label=label, labels=tuple(known[name] for name in video.labels))

    return [renamed(where, video) for where, video in rows]


def _with_usual_splits(rows: Sequence[_Row], notes: Notes) -> list[_Row]:
    """The rows with their splits called train, val, test or unlabelled where they have a usual name for one.

    Raises:
        ValueError: if two different words of one list mean the same split.
    """
    usual: dict[str, str] = {}
    written: dict[str, str] = {}
    for name in dict.fromkeys(video.split for _, video in rows):
        if not name:
            continue
        split = usual[name] = usual_split(name) or name.strip()
        other = written.setdefault(split, name)
        if other.strip().lower() != name.strip().lower():
            raise ValueError(
                f"the list has the splits {other!r} and {name!r}, both of which may mean {split!r}: call them "
                "differently, or both the same"
            )
        if name != split:
            notes.add(f"split {name!r} is {split!r}")
    if usual and (silent := sum(not video.split for _, video in rows)):
        notes.add(f"{silent} videos name no split, and are in none")
    return [(where, replace(video, split=usual.get(video.split or ""))) for where, video in rows]


def _note_missing(rows: Sequence[_Row], how: _How) -> None:
    """Notes where the files of a list may be instead, if the first few are not where it says."""
    looked = [video for _, video in rows[:: max(1, len(rows) // 10)]]
    if any(video.path.exists() for video in looked):
        return
    name = looked[0].id
    if Path(name).is_absolute():
        how.notes.add(
            f"its paths are absolute, and {name} is not there: if the list is from another machine, write paths "
            "relative to the folder of the videos, and name that folder with --root (--data.root of a recipe)"
        )
        return
    folder = Path(str(looked[0].path)[: -len(name)] or ".")
    if not folder.is_dir():
        return
    near = [folder.parent, *sorted(child for child in folder.iterdir() if child.is_dir())]
    there = [place for place in near if (place / name).exists()]
    if len(there) == 1:
        how.notes.add(f"{name} is not in {folder} but in {there[0]}: pass --root {there[0]} (--data.root of a recipe)")


def _check_groups(rows: Sequence[_Row]) -> None:
    splits: dict[str, str] = {}
    for where, video in rows:
        if video.group and video.split and splits.setdefault(video.group, video.split) != video.split:
            raise ValueError(
                f"{where}: group {video.group!r} lies in the splits {splits[video.group]!r} and {video.split!r}; "
                "clips of one source in training and test make a score too good. Keep a group in one split"
            )


def _hashed_split(video: Video) -> str:
    """ "test" for a fifth of the groups, "train" for the others: the same for ever, whatever else is in the list."""
    digest = hashlib.blake2b((video.group or video.id).encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) % 5 == 0 else "train"


def _check_unique(rows: Sequence[_Row]) -> None:
    seen: dict[str, str] = {}
    for where, video in rows:
        if video.id in seen:
            raise ValueError(f"{where} lists {video.id} twice: before at {seen[video.id]}")
        seen[video.id] = where


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    # Numbers as numbers, so that class "10" does not come before class "2".
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))
