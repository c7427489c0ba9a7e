"""The field's lists of videos, read as they are published, into one `Manifest`."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videokd.clips.manifest import Manifest, Packed, Video, is_url, shard_name
from videokd.clips.shards import local_index
from videokd.clips.table import table_path

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".gif",
    ".ogv", ".asf", ".vob", ".mts", ".m2ts",
)  # fmt: skip
_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test", "unlabelled")
_LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".list")
_SPLIT_IN_NAME = re.compile(r"(?i)(?:^|[^a-z])(train|val|valid|validate|validation|test)(?:list)?(?:[^a-z]|$)")
_COLUMNS = {"path", "label", "class", "split", "group", "youtube_id", "time_start"}


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
    found = _found(path, Path(root) if root is not None else None, fold)
    rows, source = list(found.rows), Path(path)
    if not rows:
        raise ValueError(f"{path} holds no video")
    names: Sequence[str] = found.classes
    if class_names is not None:
        numbered = _names_of(Path(class_names))
        names, rows = tuple(numbered.values()), _renamed(rows, numbered, Path(class_names))
    _check_unique(rows)
    if not allow_leaks:
        _check_groups(rows)
    videos = tuple(video for _, video in rows)
    if any(video.labels for video in videos):
        # So that a split in which every video has one label is still of a set of several.
        videos = tuple(replace(video, label=None, labels=video.names) for video in videos)
    has_splits = any(video.split is not None for video in videos)
    if not has_splits:
        videos = tuple(replace(video, split=_hashed_split(video)) for video in videos)
    classes = names or _sorted_classes({name for video in videos for name in video.names})
    return Manifest(found.source or source, videos, tuple(classes), has_splits=has_splits)


_Row = tuple[str, Video]
"""Where a video is listed, for errors, and the video."""


@dataclass
class _Found:
    """What a list holds."""

    rows: Iterable[_Row]
    classes: Sequence[str] = field(default_factory=tuple)
    """In the order of their numbers, where the list has one of its own."""
    source: Path | None = None


def _found(path: str | Path, root: Path | None, fold: int) -> _Found:
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
        return _in_folder(path, root, fold)
    if _HMDB51_FILE.fullmatch(path.name):
        raise ValueError(f"{path} is one of HMDB51's lists, one a class: name their folder")
    if path.suffix == ".jsonl":
        return _Found(_jsonl_rows(path, root or path.parent))
    if path.suffix in _LIST_SUFFIXES:
        return _Found(_list_rows(path, root or path.parent))
    hint = ": name its folder, which holds the class numbers too" if path.suffix == ".json" else ""
    raise ValueError(f"{path} is not a folder or a list ({', '.join(_LIST_SUFFIXES)}, .jsonl){hint}")


def _in_folder(folder: Path, root: Path | None, fold: int) -> _Found:
    names = sorted(child.name for child in folder.iterdir() if child.is_file())
    for own in ("index.jsonl", "manifest.jsonl"):  # a packed set's, and what `videokd data` writes
        if own in names:
            return _Found(_jsonl_rows(folder / own, root or folder), source=folder / own)
    if "classInd.txt" in names:
        return _ucf101(folder, root, fold)
    if any(_HMDB51_FILE.fullmatch(name) for name in names):
        return _hmdb51(folder, root, fold)
    if any(name.removeprefix(_SSV2_PREFIX) == "labels.json" for name in names):
        return _something_something(folder, root)
    lists: dict[str, str] = {}
    for name in names:
        split = _split_in_name(name)
        if split and Path(name).suffix in _LIST_SUFFIXES:
            if split in lists:
                raise ValueError(f"{folder} has two lists of the split {split!r}, {lists[split]} and {name}: name one")
            lists[split] = name
    if lists:
        return _Found(row for name in lists.values() for row in _list_rows(folder / name, root or folder))
    return _Found(_folder_rows(folder))


def _folder_rows(root: Path) -> Iterator[_Row]:
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
            inside = file.relative_to(folder).parts
            if file.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in inside):
                found = True
                # A video right under a split has no class.
                label = (inside[0] if len(inside) > 1 else None) if splits else folder.name
                split = folder.name if splits else None
                yield str(file), Video(id=file.relative_to(root).as_posix(), path=file, label=label, split=split)
    if not found:
        raise ValueError(
            f"{root} holds no video: expected {root}/CLASS/VIDEO or {root}/SPLIT/CLASS/VIDEO "
            f"with one of {' '.join(VIDEO_SUFFIXES)}"
        )


def _jsonl_rows(path: Path, root: Path) -> Iterator[_Row]:
    split = _split_in_name(path.name)
    for where, video in _manifest_rows(_text(path), path, lambda name: str(root / name)):
        yield where, replace(video, split=split) if split and video.split is None else video


def _manifest_rows(lines: Iterable[str], path: Path, place: Callable[[str], str]) -> Iterator[_Row]:
    """The videos of a manifest's lines, of which errors name `path`; `place` makes the path of a file named in it."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, label = str(row.pop("path")), row.pop("label")
            packed = row.pop("packed", None)
            if packed is not None:
                packed["shard"] = place(shard_name(packed["shard"]))
            error = row.get("error")
            video = Video(
                id=name,
                path=Path(place(name)) if packed is None else Path(packed["shard"]) / name,
                label=None if isinstance(label, list) else _label(label),
                labels=_several(label) if isinstance(label, list) else (),
                split=row.pop("split", None),
                group=row.pop("group", None),
                frames=row.pop("frames", None),
                error=error if error is None or isinstance(error, str) else str(error["reason"]),
                packed=None if packed is None else Packed(**packed, table=str(table_path(path))),
                factors=row.pop("factors", None),
                facts=row or None,
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: line {number} is not an object with path and label: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from error
        yield f"{path}: line {number}", video


def _list_rows(path: Path, root: Path) -> Iterator[_Row]:
    """A csv with a header, Kinetics' csv, or a plain list."""
    first = _text(path).readline()
    delimiter = next((mark for mark in "\t;" if {"path", "label"} <= set(first.strip().lower().split(mark))), ",")
    columns = [column.strip().lower() for column in next(csv.reader([first], delimiter=delimiter), [])]
    if not first.strip():
        raise ValueError(f"{path}: line 1 is empty: expected a header or a video")
    if "youtube_id" in columns:
        yield from _kinetics_rows(path, root)
    elif _COLUMNS & set(columns) or (path.suffix == ".csv" and _is_header(columns)):
        yield from _csv_rows(path, root, delimiter)
    else:
        yield from _plain_rows(path, root)


def _is_header(columns: Sequence[str]) -> bool:
    """Words alone, none of them a file or a number."""
    return len(columns) > 1 and all(re.fullmatch(r"[a-z_ ]+", column) for column in columns)


def _csv_rows(path: Path, root: Path, delimiter: str) -> Iterator[_Row]:
    reader = csv.DictReader(_text(path), delimiter=delimiter)
    columns = reader.fieldnames or []
    for needed in ("path", "label"):
        if needed not in columns:
            raise ValueError(
                f"{path}: line 1 has no column {needed!r} (it has {', '.join(columns) or 'nothing'}); "
                "expected path,label[,class][,split][,group]"
            )
    split = _split_in_name(path.name)
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        if not row["path"] or None in row or None in row.values():
            raise ValueError(f"{where} does not have the {len(columns)} columns of line 1")
        # A `class` column holds the names of the classes that `label` numbers.
        label = None if _label(row["label"]) is None else _label(row.get("class") or row["label"])
        yield (
            where,
            Video(
                id=row["path"],
                path=root / row["path"],
                label=label,
                split=row.get("split") or split,
                group=row.get("group") or None,
            ),
        )


def _plain_rows(path: Path, root: Path) -> Iterator[_Row]:
    """`path label...`, `path` alone, or `folder num_frames label...` of frames kept as pictures."""
    split, separator = _split_in_name(path.name), None
    lengths: set[int] = set()
    for where, line in _lines(path):
        if separator is None:
            separator = _separator(line, where)
        name, numbers, is_file = _parted(line, separator)
        if not is_file and not (numbers and numbers[0].isdecimal() and all(map(_is_number, numbers))):
            raise ValueError(
                f"{where} names no video ({', '.join(VIDEO_SUFFIXES[:4])}...) and no folder with "
                f"its number of frames: {line!r}"
            )
        if not is_file and len(numbers) == 1 and not (root / name).is_dir():
            raise ValueError(
                f"{where} may be a video without a suffix and its label, or a folder of pictures and how many they "
                f"are: {line!r}. Write the video's suffix, or a label after the number (-1 for none)"
            )
        frames = None if is_file else int(numbers[0])
        labels = numbers if is_file else numbers[1:]
        lengths.add(len(labels))
        if len(lengths) > 1 and not all(map(_is_number, labels)):
            raise ValueError(f"{where} has {len(labels)} labels, other lines do not: {line!r}")
        if len(labels) > 1 and not all(map(_is_number, labels)):
            raise ValueError(f"{where}: several labels are numbers, got {labels}")
        if 0 in lengths and len(lengths) > 1:
            raise ValueError(f"{where}: some lines have labels, others have none: {line!r}")
        yield (
            where,
            Video(
                id=name,
                path=root / name,
                label=_label(labels[0]) if len(labels) == 1 else None,
                labels=_several(labels) if len(labels) > 1 else (),
                split=split,
                frames=frames,
            ),
        )


def _parted(line: str, separator: str) -> tuple[str, list[str], bool]:
    """The path, what follows it, and whether the path is a video's: the last field with its suffix ends it.

    The path of a folder ends where nothing but numbers follows.
    """
    parts = _split(line, separator)
    fields = [part.strip() for part in parts]
    end = max((n for n, part in enumerate(fields) if part.lower().endswith(VIDEO_SUFFIXES)), default=None)
    is_file = end is not None
    if end is None:
        end = len(fields) - 1
        while end > 0 and (_is_number(fields[end]) or not fields[end]):
            end -= 1
    # Blanks in a row are one separator, but not inside a path.
    after = [part for part in fields[end + 1 :] if part or not separator.isspace()]
    return separator.join(parts[: end + 1]).strip(), after, is_file


def _split(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator)) if '"' in line else line.split(separator)


def _separator(line: str, where: str) -> str:
    """What parts the fields of a list's first line: then one of them is a video, or a folder of pictures."""
    for separator in ("\t", ";", ",", " "):
        fields = [part.strip() for part in _split(line, separator)]
        if len(fields) > 1 and (
            any(part.lower().endswith(VIDEO_SUFFIXES) for part in fields)
            or (_is_number(fields[-1]) and not any(" " in part for part in fields[1:]))
        ):
            return separator
    if line.lower().endswith(VIDEO_SUFFIXES):
        return "\t"  # a path alone, whatever is in it
    raise ValueError(f"{where} is neither `path label` nor a path: {line!r}")


def _kinetics_rows(path: Path, root: Path) -> Iterator[_Row]:
    """`label,youtube_id,time_start,time_end,split`, with files called ID_START_END as the usual scripts do."""
    listed: dict[str, dict[str, str]] = {}

    def at(folder: str) -> dict[str, str]:
        """The videos of a folder in `root` by their name without suffix."""
        if folder not in listed:
            files = (root / folder).iterdir() if (root / folder).is_dir() else iter(())
            listed[folder] = {file.stem: file.name for file in files if file.suffix.lower() in VIDEO_SUFFIXES}
        return listed[folder]

    reader = csv.DictReader(_text(path))
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        try:
            name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} is not label,youtube_id,time_start,time_end,split: {error!r}") from error
        if not row["youtube_id"] or None in row:
            raise ValueError(f"{where} does not fill the columns of line 1: {', '.join(reader.fieldnames or ())}")
        label, split = _label(row.get("label")), row.get("split") or _split_in_name(path.name)
        folders = [""]
        folders += [label, label.replace(" ", "_")] if label else []
        folders += [f"{split}/{folder}".rstrip("/") for folder in folders] if split else []
        place = next((folder for folder in folders if name in at(folder)), None)
        # A video that was not to be had is named as it would be; the loader says that it is missing.
        file_name = f"{name}.mp4" if place is None else f"{place}/{at(place)[name]}".lstrip("/")
        yield where, Video(id=file_name, path=root / file_name, label=label, split=split)


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
                try:
                    return json.loads(file.read_text(encoding="utf-8"))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}: line {error.lineno} is not JSON: {error.msg}") from error
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
            rows.append((where, Video(id=name, path=Path(name), label=label, split=split)))
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


def _text(path: Path) -> io.StringIO:
    """A list's text, with its line ends as they are."""
    content = path.read_bytes()
    try:
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {number} is not UTF-8 ({error.reason}): convert the file") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, line) of a text file, without empty lines."""
    for number, line in enumerate(_text(path), start=1):
        if line.strip():
            yield f"{path}: line {number}", line.strip()


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
        if _is_number(name) and name != str(number):
            raise ValueError(f"{path} calls class number {number} {name!r}, which is a number too: write it as a word")
        seen.add(name)
    return dict(sorted(numbered))


def _renamed(rows: Sequence[_Row], names: Mapping[int, str], path: Path) -> list[_Row]:
    """Numbers to names, which `path` gives; names stay."""
    known = {str(number): name for number, name in names.items()} | {name: name for name in names.values()}

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


def _split_in_name(name: str) -> str | None:
    """The split that a list is called after."""
    found = _SPLIT_IN_NAME.search(Path(name).stem)
    split = found[1].lower() if found else None
    return "val" if split in ("valid", "validate", "validation") else split


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _label(written: object) -> str | None:
    """A class name, or None for what marks an unlabelled clip: nothing, or -1."""
    text = "" if written is None else str(written).strip()
    return None if text in ("", "-1") else text


def _several(written: Iterable[object]) -> tuple[str, ...]:
    return tuple(name for name in map(_label, written) if name is not None)


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
