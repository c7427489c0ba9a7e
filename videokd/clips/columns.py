"""Lists with a header: which column is what, by its name and by what it holds."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videokd.clips.labels import is_missing, label_of
from videokd.clips.manifest import Video
from videokd.clips.rows import MEDIA_SUFFIXES, Notes, Row, file_name, is_comment, is_number, read_text
from videokd.clips.splits import split_in_name, usual_split

# Names of columns without case, spaces and marks: `Video_Path` is "videopath".
_PATHS = (
    *("path", "videopath", "filepath", "clippath", "imagepath", "imgpath", "relativepath", "relpath", "fullpath"),
    *("pathtovideo", "videofilepath"),
)
_FILES = (
    *("filename", "file", "files", "video", "videoname", "videofile", "videofilename", "clip", "clipname", "clipfile"),
    *("image", "imagename", "imagefile", "img", "imgname", "name", "id", "videoid", "clipid", "imageid"),
)
"""Columns that may hold names which are no files: taken where they end as files do."""
_LABELS = (
    *("label", "labels", "target", "targets", "labelid", "labelidx", "labelindex", "labelnum", "labelnumber", "y"),
    *("classid", "classidx", "classindex", "classnum", "classnumber", "classlabel", "targetid", "categoryid"),
    *("actionid", "actionlabel", "class", "classes", "classname", "labelname", "labeltext", "targetname"),
    *("category", "categoryname", "action", "actionname"),
)
_SPLITS = ("split", "set", "subset", "partition", "usage", "phase", "dataset", "datasplit")
_GROUPS = ("group", "groups", "groupid", "groupname")
_SOURCES = ("source", "sourceid", "sourcevideo", "subject", "subjectid", "person", "personid", "actor", "actorid")
_NO_LABELS = (
    *("fps", "frames", "numframes", "framecount", "nframes", "duration", "seconds", "length", "width", "height"),
    *("size", "index", "start", "end", "timestart", "timeend", "url", "hash", "md5", "sha256", "rotation", "iscc"),
)
_KNOWN = {*_PATHS, *_FILES, *_LABELS, *_SPLITS, *_GROUPS, "youtubeid"}
_PLAIN = {"path", "label", "class", "split", "group"}
"""The documented names, of which no note is needed."""


def header_separator(line: str, *, is_csv: bool) -> str | None:
    """Return the separator under which a line is the header of a list; None if it is none.

    A header has a name that is known, no number and no file; in a .csv, words alone are one too.
    """
    best, separator = 0, None
    for mark in ("\t", ";", "|", ",", " "):
        fields = [field.strip() for field in next(csv.reader([line.strip("\r\n")], delimiter=mark), [])]
        if any(is_number(field) or field.lower().endswith(MEDIA_SUFFIXES) for field in fields):
            continue
        known = sum(_squashed(field) in _KNOWN for field in fields)
        if mark == " " and (known < len(fields) or known < 2):
            continue
        if len(fields) == 1 and _squashed(line) not in (*_PATHS, *_FILES):
            continue
        if is_csv and len(fields) > 1 and mark != " ":
            known += all(re.fullmatch(r"[A-Za-z_ ]*", field) for field in fields)
        if known > best:
            best, separator = known, mark
    return separator


@dataclass(frozen=True)
class _Table:
    """A list with a header, read whole."""

    path: Path
    names: Sequence[str]
    """Of the columns, as line 1 has them, stripped."""
    rows: Sequence[tuple[str, Sequence[str]]]
    """Where each row stands, and its fields, stripped."""

    def column(self, place: int) -> list[str]:
        return [fields[place] for _, fields in self.rows]

    def called(self, *names: str) -> list[int]:
        """Places of the columns with one of these names."""
        return [place for place, name in enumerate(self.names) if _squashed(name) in names]

    def listed(self, places: Sequence[int]) -> str:
        return " and ".join(repr(self.names[place]) for place in places)


def column_rows(path: Path, root: Path, separator: str, notes: Notes) -> tuple[list[Row], bool]:
    """Return the videos of a list with a header, and whether words such as `nan` may still mean that there is no label.

    Raises:
        ValueError: where it is not certain which column is what, naming the columns.
    """
    table = _read(path, root, separator, notes)
    video = _path_column(table)
    labels, are_words = _label_columns(table, notes)
    split, group = _split_column(table), _one(table, table.called(*_GROUPS), exact="group")
    _note_columns(table, {"path": video, "split": split, "group": group}, labels, notes)
    file_split = split_in_name(path.name)
    names = _labels(table, labels)
    rows = []
    for (where, fields), label in zip(table.rows, names, strict=True):
        if not fields[video]:
            raise ValueError(f"{where} names no video: column {table.names[video]!r} is empty")
        name = file_name(fields[video], root, where, notes)
        says = [None if place is None or _is_empty(fields[place]) else fields[place] for place in (split, group)]
        rows.append((where, Video(id=name, path=root / name, label=label, split=says[0] or file_split, group=says[1])))
    silent = sum(
        label is None and "-1" not in [fields[place] for place in labels]
        for label, (_, fields) in zip(names, table.rows, strict=True)
    )
    if labels and silent:
        notes.add(f"{silent} of {len(rows)} videos have no label")
    return rows, are_words


def header_rows(path: Path, separator: str, notes: Notes) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where it stands, column -> field) for a list whose columns are known by their own names, in any case.

    Raises:
        ValueError: for a line that does not have the columns of the first.
    """
    table = _read(path, path.parent, separator, notes)
    names = [re.sub(r"[\s-]+", "_", name.lower()) for name in table.names]
    for where, fields in table.rows:
        yield where, dict(zip(names, fields, strict=True))


def named_keys(row: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """Return an object of a list as JSON lines with its keys called path, label, split and group.

    Keys of these names are taken as they are; where one is missing, a usual name for it is, in any case.

    Raises:
        ValueError: if several keys may be the one that is missing.
    """
    renamed = {}
    for role, names in (("path", (*_PATHS, *_FILES)), ("label", _LABELS), ("split", _SPLITS), ("group", _GROUPS)):
        if role in row:
            continue
        keys = [key for key in row if _squashed(key) in names]
        if role == "path":
            keys = [key for key in keys if str(row[key]).lower().endswith(MEDIA_SUFFIXES)]
        elif role == "split":
            keys = [key for key in keys if usual_split(str(row[key]))]
        keys = [key for key in keys if _squashed(key) == role] or keys
        if len(keys) > 1:
            raise ValueError(
                f"the keys {' and '.join(map(repr, keys))} may both be the {role}: call one of them {role!r}"
            )
        if keys:
            notes.add(f"{role} is key {keys[0]!r}")
            renamed[keys[0]] = role
    return {renamed.get(key, key): value for key, value in row.items()}


def _read(path: Path, root: Path, separator: str, notes: Notes) -> _Table:
    reader = csv.reader(read_text(path, notes), delimiter=separator)
    names: list[str] | None = None
    rows = []
    for fields in reader:
        where = f"{path}: line {reader.line_num}"
        if not any(field.strip() for field in fields) or _is_excel_mark(separator.join(fields)):
            continue
        if is_comment(separator.join(fields), root, where):
            notes.add("lines that begin with # are comments")
            continue
        if names is None:
            names = [field.strip() for field in fields]
            continue
        if len(fields) != len(names):
            raise ValueError(
                f"{where} does not have the {len(names)} columns of line 1 ({', '.join(names)}): "
                f"{separator.join(fields)!r}"
            )
        rows.append((where, [field.strip() for field in fields]))
    return _Table(path, names or [], rows)


def _path_column(table: _Table) -> int:
    found = _one(table, table.called(*_PATHS), exact="path")
    if found is not None:
        return found
    files = [place for place in table.called(*_FILES) if _are_files(table.column(place))]
    files = files or [place for place in range(len(table.names)) if table.rows and _are_files(table.column(place))]
    found = _one(table, files, exact="filename")
    if found is not None:
        return found
    named = table.called(*_FILES)
    if named and not table.rows:
        return named[0]
    example = (
        f": {table.names[named[0]]!r} holds {table.rows[0][1][named[0]]!r}, which has no video's suffix"
        if named
        else ""
    )
    raise ValueError(
        f"{table.path}: line 1 has no column 'path' (it has {', '.join(table.names) or 'nothing'}){example}; "
        "expected path,label[,class][,split][,group], or usual names for them such as video_path, filename, "
        "class_name, target"
    )


def _label_columns(table: _Table, notes: Notes) -> tuple[list[int], bool]:
    """The columns of class names and numbers, names first; and whether words in them may mean that there is none."""
    found = [place for place in table.called(*_LABELS) if not all(map(_is_blank, table.column(place)))]
    words = [place for place in found if _has_words(table.column(place))]
    numbers = [place for place in found if place not in words]
    exact = [place for place in (_exact(table, words, "label"), _exact(table, words, "class")) if place is not None]
    name = _one(table, exact or words, exact="")
    number = _exact(table, numbers, "label")
    number = number if number is not None else _one(table, numbers, exact="class")
    if name is not None and number is not None:
        return [name, number], False
    if name is not None or number is not None:
        return [place for place in (name, number) if place is not None], True
    if empty := table.called(*_LABELS):
        return empty[:1], True
    others = [
        place
        for place, name in enumerate(table.names)
        if _squashed(name) not in (*_PATHS, *_FILES, *_SPLITS, *_GROUPS, *_SOURCES, *_NO_LABELS) and not _is_index(name)
    ]
    if others:
        raise ValueError(
            f"{table.path}: line 1 has no column 'label' (it has {', '.join(table.names)}): if "
            f"{table.listed(others[:1])} says the class, call it label; if there are no labels, remove it"
        )
    notes.add("it has no column of labels")
    return [], True


def _labels(table: _Table, columns: Sequence[int]) -> list[str | None]:
    """The label of every row, out of a column of names and one of numbers where there are both.

    Raises:
        ValueError: where the two do not number every class once.
    """
    if len(columns) < 2:
        return [label_of(fields[columns[0]]) if columns else None for _, fields in table.rows]
    pairs = [(where, label_of(fields[columns[0]]), _number(fields[columns[1]])) for where, fields in table.rows]
    names: dict[str, tuple[str, str]] = {}
    numbers: dict[str, str] = {}
    # `None` is the name of a class where no other name has its number.
    for where, name, number in sorted(pairs, key=lambda pair: pair[1] is not None and is_missing(pair[1])):
        if number is None or name is None or (is_missing(name) and number in names):
            continue
        other, there = names.setdefault(number, (name, where))
        if other != name or numbers.setdefault(name, number) != number:
            said = f"{number} is {other!r} ({there})" if other != name else f"{name!r} is {numbers[name]} elsewhere"
            raise ValueError(
                f"{where}: the columns {table.listed(columns)} do not number the classes: {name!r} is {number} here, "
                f"and {said}. Remove the column that is not the label"
            )
    return [
        None if number is None else names[number][0] if number in names else name or number for _, name, number in pairs
    ]


def _number(field: str) -> str | None:
    """A class number, or None where there is none."""
    label = label_of(field)
    if label is None or is_missing(label):
        return None
    return label_of(float(label)) if "." in label else label


def _split_column(table: _Table) -> int | None:
    exact = _exact(table, table.called("split"), "split")
    if exact is not None:
        return exact
    said = [
        place
        for place in table.called(*_SPLITS)
        if all(_is_empty(field) or usual_split(field) for field in table.column(place))
        and not all(map(_is_empty, table.column(place)))
    ]
    return _one(table, said, exact="split")


def _note_columns(table: _Table, roles: dict[str, int | None], labels: Sequence[int], notes: Notes) -> None:
    read = {place: role for role, place in roles.items() if place is not None}
    read |= dict.fromkeys(labels, "label")
    for place, role in read.items():
        if table.names[place] not in _PLAIN:
            notes.add(f"{role} is column {table.names[place]!r}")
    unread = [place for place, name in enumerate(table.names) if place not in read and not _is_index(name)]
    odd = [place for place in unread if _squashed(table.names[place]) not in _NO_LABELS]
    sources = [place for place in odd if _squashed(table.names[place]) in _SOURCES] if roles["group"] is None else []
    if sources:
        notes.add(
            f"{table.listed(sources)} is not read: where it is the source of a clip, call it group, so that clips of "
            "one source stay in one split"
        )
    elif odd and any(table.names[place] not in _PLAIN for place in read):
        notes.add(f"{table.listed(odd)} is not read")


def _one(table: _Table, places: Sequence[int], *, exact: str) -> int | None:
    """The one of these columns, or the one that has exactly the name; columns that hold the same count as one."""
    best = _exact(table, places, exact)
    if best is not None or not places:
        return best
    first, *others = places
    for other in others:
        if table.column(other) != table.column(first):
            raise ValueError(
                f"{table.path}: line 1 has the columns {table.listed(places)}, and it is not certain which one to "
                "read: remove or rename the others"
            )
    return first


def _exact(table: _Table, places: Sequence[int], name: str) -> int | None:
    same = [place for place in places if _squashed(table.names[place]) == name]
    if len(same) > 1:
        raise ValueError(f"{table.path}: line 1 has the column {name!r} {len(same)} times: remove or rename the others")
    return same[0] if same else None


def _has_words(column: Sequence[str]) -> bool:
    others = [field for field in column if not _is_empty(field)]
    return not all(is_number(field) or re.fullmatch(r"-?\d+\.0+", field) for field in others)


def _are_files(column: Sequence[str]) -> bool:
    return bool(column) and all(field.lower().endswith(MEDIA_SUFFIXES) for field in column)


def _is_empty(field: str) -> bool:
    return is_missing(label_of(field))


def _is_blank(field: str) -> bool:
    """Whether nothing is said, not even by -1 that there is no label."""
    return field != "-1" and _is_empty(field)


def _is_index(name: str) -> bool:
    """Whether a column is the row number that pandas writes."""
    return not name or re.fullmatch(r"Unnamed: \d+(_level_\d+)?", name) is not None


def _is_excel_mark(line: str) -> bool:
    return re.fullmatch(r"sep=.?", line.strip().lower()) is not None


def _squashed(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())
