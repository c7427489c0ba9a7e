"""The field's lists of videos, read as they are published, into one `Manifest`."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videokd.clips.manifest import Manifest, Packed, Video, is_url
from videokd.clips.shards import local_index
from videokd.clips.table import table_path

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".gif",
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
        class_names: file with a class name a line, for lists whose labels are numbers from 0.
        allow_leaks: read a list that has clips of one group in several splits, which is refused otherwise.

    Raises:
        ValueError: naming the file and line that is wrong, and what was expected.
    """
    found = _found(path, Path(root) if root is not None else None, fold)
    videos, source = tuple(found.videos), Path(path)
    if not videos:
        raise ValueError(f"{path} holds no video")
    names = _names_of(Path(class_names)) if class_names is not None else found.classes
    if class_names is not None:
        videos = _renamed(videos, names, source)
    _check_unique(source, videos)
    if not allow_leaks:
        _check_groups(source, videos)
    has_splits = any(video.split is not None for video in videos)
    if not has_splits:
        videos = tuple(replace(video, split=_hashed_split(video)) for video in videos)
    classes = names or _sorted_classes({name for video in videos for name in video.names})
    return Manifest(found.source or source, videos, tuple(classes), has_splits=has_splits)


@dataclass
class _Found:
    """What a list holds."""

    videos: Iterable[Video]
    classes: Sequence[str] = field(default_factory=tuple)
    """In the order of their numbers, where the list has one of its own."""
    source: Path | None = None


def _found(path: str | Path, root: Path | None, fold: int) -> _Found:
    if is_url(path):
        url = str(path) if str(path).endswith("/index.jsonl") else f"{str(path).rstrip('/')}/index.jsonl"
        index = local_index(url)
        base = url.removesuffix("index.jsonl")
        with index.open(encoding="utf-8") as file:
            return _Found(list(_manifest_rows(file, index, lambda name: f"{base}{name}")), source=index)
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no list or folder of videos at {path}")
    if path.is_dir():
        return _in_folder(path, root, fold)
    if path.suffix == ".jsonl":
        return _Found(_jsonl_rows(path, root or path.parent))
    if path.suffix in _LIST_SUFFIXES:
        return _Found(_list_rows(path, root or path.parent))
    hint = ": name its folder, which holds the class numbers too" if path.suffix == ".json" else ""
    raise ValueError(f"{path} is not a folder or a list ({', '.join(_LIST_SUFFIXES)}, .jsonl){hint}")


def _in_folder(folder: Path, root: Path | None, fold: int) -> _Found:
    names = sorted(child.name for child in folder.iterdir() if child.is_file())
    if "index.jsonl" in names:
        return _Found(_jsonl_rows(folder / "index.jsonl", root or folder), source=folder / "index.jsonl")
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
        return _Found(video for name in lists.values() for video in _list_rows(folder / name, root or folder))
    return _Found(_folder_rows(folder))


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


def _jsonl_rows(path: Path, root: Path) -> Iterator[Video]:
    with path.open(encoding="utf-8") as file:
        yield from _manifest_rows(file, path, lambda name: str(root / name))


def _manifest_rows(lines: Iterable[str], path: Path, place: Callable[[str], str]) -> Iterator[Video]:
    """The videos of a manifest's lines, of which errors name `path`; `place` makes the path of a file named in it."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, label = str(row.pop("path")), row.pop("label")
            packed = row.pop("packed", None)
            if packed is not None and not is_url(packed["shard"]):
                packed["shard"] = place(packed["shard"])
            error = row.get("error")
            video = Video(
                id=name,
                path=Path(place(name)) if packed is None else Path(packed["shard"]) / name,
                label=None if isinstance(label, list) else _label(label),
                labels=tuple(map(str, label)) if isinstance(label, list) else (),
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
        yield video


def _list_rows(path: Path, root: Path) -> Iterator[Video]:
    """A csv with a header, Kinetics' csv, or a plain list."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
    columns = [column.strip().lower() for column in next(csv.reader([first]), [])]
    if not first.strip():
        raise ValueError(f"{path}: line 1 is empty: expected a header or a video")
    if "youtube_id" in columns:
        yield from _kinetics_rows(path, root)
    elif _COLUMNS & set(columns) or (path.suffix == ".csv" and _is_header(columns)):
        yield from _csv_rows(path, root)
    else:
        yield from _plain_rows(path, root)


def _is_header(columns: Sequence[str]) -> bool:
    """Words alone, none of them a file or a number."""
    return len(columns) > 1 and all(re.fullmatch(r"[a-z_ ]+", column) for column in columns)


def _csv_rows(path: Path, root: Path) -> Iterator[Video]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        for needed in ("path", "label"):
            if needed not in columns:
                raise ValueError(
                    f"{path}: line 1 has no column {needed!r} (it has {', '.join(columns) or 'nothing'}); "
                    "expected path,label[,class][,split][,group]"
                )
        split = _split_in_name(path.name)
        for row in reader:
            if not row["path"] or None in row or None in row.values():
                raise ValueError(f"{path}: line {reader.line_num} does not have the {len(columns)} columns of line 1")
            # A `class` column holds the names of the classes that `label` numbers.
            label = None if _label(row["label"]) is None else _label(row.get("class") or row["label"])
            yield Video(
                id=row["path"],
                path=root / row["path"],
                label=label,
                split=row.get("split") or split,
                group=row.get("group") or None,
            )


def _plain_rows(path: Path, root: Path) -> Iterator[Video]:
    """`path label...`, `path` alone, or `folder num_frames label...` of frames kept as pictures."""
    split, separator = _split_in_name(path.name), None
    lengths: set[int] = set()
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line:
                continue
            if separator is None:
                separator = _separator(line, root, f"{path}: line {number}")
            fields = [part.strip() for part in line.split(separator)]
            end = max((n for n, part in enumerate(fields) if part.lower().endswith(VIDEO_SUFFIXES)), default=None)
            frames = None
            if end is None:  # a folder of pictures: what follows it is numbers
                end = len(fields) - 1
                while end > 0 and _is_number(fields[end]):
                    end -= 1
                if len(fields) - end < 2:
                    raise ValueError(
                        f"{path}: line {number} names no video ({', '.join(VIDEO_SUFFIXES[:4])}...) and no folder with "
                        f"its number of frames: {line!r}"
                    )
                frames = int(fields[end + 1])
            name = separator.join(fields[: end + 1])
            labels = fields[end + 1 + (frames is not None) :]
            lengths.add(len(labels))
            if len(lengths) > 1 and not all(map(_is_number, labels)):
                raise ValueError(f"{path}: line {number} has {len(labels)} labels, other lines do not: {line!r}")
            if len(labels) > 1 and not all(map(_is_number, labels)):
                raise ValueError(f"{path}: line {number}: several labels are numbers, got {labels}")
            if 0 in lengths and len(lengths) > 1:
                raise ValueError(f"{path}: line {number}: some lines have labels, others have none: {line!r}")
            yield Video(
                id=name,
                path=root / name,
                label=_label(labels[0]) if len(labels) == 1 else None,
                labels=tuple(labels) if len(labels) > 1 else (),
                split=split,
                frames=frames,
            )


def _separator(line: str, root: Path, where: str) -> str:
    """What parts the fields of a list's first line: then one of them is a video, or a folder of pictures."""
    for separator in ("\t", ";", ",", " "):
        fields = [part.strip() for part in line.split(separator)]
        if len(fields) > 1 and (
            any(part.lower().endswith(VIDEO_SUFFIXES) for part in fields)
            or (_is_number(fields[-1]) and not any(" " in part for part in fields[1:]))
        ):
            return separator
    if line.lower().endswith(VIDEO_SUFFIXES):
        return "\t"  # a path alone, whatever is in it
    raise ValueError(f"{where} is neither `path label` nor a path: {line!r}")


def _kinetics_rows(path: Path, root: Path) -> Iterator[Video]:
    """`label,youtube_id,time_start,time_end,split`, with files called ID_START_END as the usual scripts do."""
    listed: dict[Path, dict[str, str]] = {}

    def at(folder: Path) -> dict[str, str]:
        """The videos of a folder by their name without suffix."""
        if folder not in listed:
            files = folder.iterdir() if folder.is_dir() else iter(())
            listed[folder] = {file.stem: file.name for file in files if file.suffix.lower() in VIDEO_SUFFIXES}
        return listed[folder]

    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: line {reader.line_num} is not label,youtube_id,time_start,time_end,split: {error!r}"
                ) from error
            label, split = _label(row.get("label")), row.get("split") or _split_in_name(path.name)
            folders = [""]
            folders += [label, label.replace(" ", "_")] if label else []
            folders += [f"{split}/{folder}".rstrip("/") for folder in folders] if split else []
            place = next((folder for folder in folders if name in at(root / folder)), None)
            # A video that was not to be had is named as it would be; the loader says that it is missing.
            file_name = f"{folders[0]}{name}.mp4" if place is None else f"{place}/{at(root / place)[name]}".lstrip("/")
            yield Video(id=file_name, path=root / file_name, label=label, split=split)


def _ucf101(folder: Path, root: Path | None, fold: int) -> _Found:
    """`trainlist01.txt` (CLASS/v_CLASS_g08_c01.avi 1), `testlist01.txt` (without the number), `classInd.txt`."""
    classes: list[str] = []
    for where, line in _lines(folder / "classInd.txt"):
        number, _, name = line.partition(" ")
        if number != str(len(classes) + 1) or not name:
            raise ValueError(f"{where} is not `{len(classes) + 1} CLASS`: {line!r}")
        classes.append(name)
    rows = []
    for split in ("train", "test"):
        for where, line in _lines(_fold_file(folder, f"{split}list{fold:02d}.txt", fold)):
            name = line.split()[0]
            label, _, file = name.rpartition("/")
            group = re.search(r"_g(\d+)_c\d+", file)
            if label not in classes or group is None:
                raise ValueError(f"{where} is not CLASS/v_CLASS_gNN_cNN.avi of a class of classInd.txt: {line!r}")
            rows.append(Video(id=name, path=Path(name), label=label, split=split, group=f"{label}/g{group[1]}"))
    return _Found(_rooted(rows, folder, root, beside=("UCF-101", "UCF101", "videos")), classes)


_HMDB51_FILE = re.compile(r"(.+)_test_split(\d)\.txt")


def _hmdb51(folder: Path, root: Path | None, fold: int) -> _Found:
    """`CLASS_test_split1.txt` with `NAME.avi 1`: 1 is training, 2 is test, 0 is not used in this fold."""
    rows, classes = [], []
    files = [match for file in sorted(folder.iterdir()) if (match := _HMDB51_FILE.fullmatch(file.name))]
    for match in files:
        if int(match[2]) != fold:
            continue
        label = match[1]
        classes.append(label)
        for where, line in _lines(folder / match[0]):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name:
                raise ValueError(f"{where} is not `NAME.avi 0|1|2`: {line!r}")
            if use != "0":
                name = f"{label}/{name.strip()}"
                rows.append(Video(id=name, path=Path(name), label=label, split="train" if use == "1" else "test"))
    if not classes:
        _fold_file(folder, f"CLASS_test_split{fold}.txt", fold)
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
    classes = sorted(numbers, key=lambda name: int(numbers[name]))
    rows = []
    for split in ("train", "validation", "test"):
        for number, entry in enumerate(load(f"{split}.json") or (), start=1):
            where = f"{folder}: entry {number} of {split}.json"
            if "id" not in entry:
                raise ValueError(f"{where} has no id: {entry}")
            label = entry["template"].replace("[", "").replace("]", "") if "template" in entry else None
            if label is not None and label not in numbers:
                raise ValueError(f"{where} has the template {label!r}, which labels.json does not have")
            name = f"{entry['id']}.webm"
            rows.append(Video(id=name, path=Path(name), label=label, split=split))
    return _Found(_rooted(rows, folder, root, beside=("20bn-something-something-v2", "videos")), classes)


def _rooted(rows: Sequence[Video], folder: Path, root: Path | None, *, beside: Sequence[str]) -> Iterator[Video]:
    """The videos in their folder: the one named, or the first usual one that has the first of them."""
    if root is None:
        places = [folder, *(base / name for base in (folder, folder.parent) for name in beside)]
        root = next((place for place in places if rows and (place / rows[0].path).is_file()), folder)
    for video in rows:
        yield replace(video, path=root / video.path)


def _fold_file(folder: Path, name: str, fold: int) -> Path:
    if not (folder / name).is_file():
        raise ValueError(f"{folder} has no {name}: is there a fold {fold}?")
    return folder / name


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, line) of a text file, without empty lines."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            yield f"{path}: line {number}", line.strip()


def _names_of(path: Path) -> tuple[str, ...]:
    """A class name a line; a number before it, as UCF101 has it, is left out."""
    if not path.is_file():
        raise ValueError(f"no file of class names at {path}")
    names = [re.sub(r"^\d+[\s,]+", "", line) for _, line in _lines(path)]
    twice = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{path} names the class {twice[0]!r} twice")
    return tuple(names)


def _renamed(videos: Sequence[Video], names: Sequence[str], source: Path) -> tuple[Video, ...]:
    """Numbers to names; names stay."""

    def name(label: str, video: Video) -> str:
        if label in names:
            return label
        if not label.isdecimal() or int(label) >= len(names):
            raise ValueError(f"{source}: {video.id} has the label {label!r}, and there are {len(names)} class names")
        return names[int(label)]

    return tuple(
        replace(
            video,
            label=None if video.label is None else name(video.label, video),
            labels=tuple(name(label, video) for label in video.labels),
        )
        for video in videos
    )


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
