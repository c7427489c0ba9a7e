"""Lists without a header: `path label...`, `path` alone, or `folder num_frames label...` of frames kept as pictures."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videokd.clips.labels import label_of, labels_of
from videokd.clips.manifest import Video
from videokd.clips.rows import MEDIA_SUFFIXES, VIDEO_SUFFIXES, Notes, Row, file_name, is_comment, is_number, read_lines
from videokd.clips.splits import split_in_name, usual_split

_FIRST_FEW = 10
"""Lines whose files are looked for on disk, where a list can be read in two ways."""


@dataclass(frozen=True)
class _Line:
    where: str
    text: str
    before: Sequence[str]
    """Fields before the one that ends as a video, of which some may be part of the path."""
    path: str
    """Without the fields before it."""
    whole_path: str
    """With them."""
    after: Sequence[str]
    is_file: bool


def plain_rows(path: Path, root: Path, notes: Notes) -> list[Row]:
    """Return the videos of a list without a header; the separator is found on its first line.

    Raises:
        ValueError: for a line that can't be read, or can be read in two ways.
    """
    lines: list[_Line] = []
    separator = None
    for where, text in read_lines(path, notes):
        if is_comment(text, root, where):
            notes.add("lines that begin with # are comments")
            continue
        separator = separator or _separator(text, where)
        lines.append(_parsed(where, text, separator))
    if separator is None:
        return []
    if _has_number_first(lines, root, separator):
        notes.add("the field before the path is the number of the line, and is not read")
        lines = [_Line(one.where, one.text, (), one.path, one.path, one.after, one.is_file) for one in lines]
    says_split = all(len(one.after) > 1 and usual_split(one.after[-1]) for one in lines)
    if says_split:
        notes.add("the last field of a line is its split")
    elif all(len(one.after) == 1 and not is_number(one.after[0]) and usual_split(one.after[0]) for one in lines):
        raise ValueError(
            f"{lines[0].where}: {lines[0].after[0]!r} is the name of a split, as are all other labels: for lists "
            "without labels, write a header (path,split)"
        )
    file_split = split_in_name(path.name)
    rows = []
    lengths: set[int] = set()
    for line in lines:
        split = line.after[-1] if says_split else file_split
        labels = line.after[:-1] if says_split else line.after
        frames = None
        if not line.is_file:
            frames, labels = _frames(line, labels, root)
        _check_labels(line, labels, lengths)
        name = file_name(line.whole_path, root, line.where, notes)
        video = Video(
            id=name,
            path=root / name,
            label=label_of(labels[0]) if len(labels) == 1 else None,
            labels=labels_of(labels) if len(labels) > 1 else (),
            split=split,
            frames=frames,
        )
        rows.append((line.where, video))
    return rows


def _frames(line: _Line, numbers: Sequence[str], root: Path) -> tuple[int, Sequence[str]]:
    """The number of frames of a folder of pictures, and the labels after it."""
    if not (numbers and numbers[0].isdecimal() and all(map(is_number, numbers))):
        raise ValueError(
            f"{line.where} names no video ({', '.join(VIDEO_SUFFIXES[:4])}...) and no folder with "
            f"its number of frames: {line.text!r}"
        )
    if len(numbers) == 1 and not (root / line.whole_path).is_dir():
        raise ValueError(
            f"{line.where} may be a video without a suffix and its label, or a folder of pictures and how many they "
            f"are: {line.text!r}. Write the video's suffix, or a label after the number (-1 for none)"
        )
    return int(numbers[0]), numbers[1:]


def _check_labels(line: _Line, labels: Sequence[str], lengths: set[int]) -> None:
    """Raises a `ValueError` where a line's labels do not go with those of the lines before, of these `lengths`."""
    lengths.add(len(labels))
    if len(lengths) > 1 and not all(map(is_number, labels)):
        raise ValueError(f"{line.where} has {len(labels)} labels, other lines do not: {line.text!r}")
    if len(labels) > 1 and not all(map(is_number, labels)):
        raise ValueError(
            f"{line.where}: several labels are numbers, got {list(labels)}: for other columns write a header"
        )
    if 0 in lengths and len(lengths) > 1:
        raise ValueError(f"{line.where}: some lines have labels, others have none: {line.text!r}")


def _has_number_first(lines: Sequence[_Line], root: Path, separator: str) -> bool:
    """Whether a field that is no part of the path stands before it, on every line.

    Raises:
        ValueError: where that can't be told.
    """
    if not all(line.is_file and line.before for line in lines):
        return False
    step = max(1, len(lines) // _FIRST_FEW)
    looked = lines[::step]
    if any((root / line.whole_path).exists() for line in looked):
        return False
    firsts = [line.before[0] for line in lines]
    numbered = all(first.isdecimal() for first in firsts)
    there = any((root / line.path).exists() for line in looked)
    if not (
        numbered or there or separator in "\t;|" or (separator == "," and len({len(x.before) for x in lines}) == 1)
    ):
        if not any(line.after for line in lines):
            line = lines[0]
            raise ValueError(
                f"{line.where}: {line.before[0]!r} may be part of the path or the label, and neither "
                f"{line.whole_path!r} nor {line.path!r} is in {root}: write `path label`, or a header: path,label, "
                f"or path alone: {line.text!r}"
            )
        return False  # spaces or commas in paths
    start = int(firsts[0]) if numbered else -1
    counts = numbered and start in (0, 1) and [int(first) for first in firsts] == list(range(start, start + len(lines)))
    line = lines[0]
    if any(len(one.before) > 1 for one in lines) or not all(one.after for one in lines):
        raise ValueError(
            f"{line.where}: {line.before[0]!r} stands before the path {line.path!r}: is it the label, or the number of "
            f"the line? Write `path label`, or a header (path,label): {line.text!r}"
        )
    if there or counts or separator == "\t":  # no path holds a tab
        return True
    raise ValueError(
        f"{line.where}: {line.before[0]!r} may be part of the path or a column of its own, and neither "
        f"{line.whole_path!r} nor {line.path!r} is in {root}: write a header (such as id,path,label): {line.text!r}"
    )


def _parsed(where: str, text: str, separator: str) -> _Line:
    """A line's path, what follows it, and whether the path is a file's: the last field with its suffix ends it.

    The path of a folder ends where nothing but numbers follows.
    """
    parts = _split(text, separator)
    fields = [part.strip() for part in parts]
    end = max((n for n, part in enumerate(fields) if part.lower().endswith(MEDIA_SUFFIXES)), default=None)
    is_file = end is not None
    if end is None:
        end = len(fields) - 1
        while end > 0 and (is_number(fields[end]) or not fields[end]):
            end -= 1
    # Blanks in a row are one separator, but not inside a path.
    after = [part for part in fields[end + 1 :] if part or not separator.isspace()]
    whole_path = separator.join(parts[: end + 1]).strip()
    before = [field for field in fields[:end] if field]
    path = separator.join(parts[1 : end + 1]).strip()
    return _Line(where, text, before if separator != " " else before[:1], path, whole_path, after, is_file)


def _split(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator)) if '"' in line else line.split(separator)


def _separator(line: str, where: str) -> str:
    """What parts the fields of a list's first line: then one of them is a video, or a folder of pictures."""
    for separator in ("\t", ";", "|", ",", " "):
        fields = [part.strip() for part in _split(line, separator)]
        if len(fields) > 1 and (
            any(part.lower().endswith(MEDIA_SUFFIXES) for part in fields)
            or (is_number(fields[-1]) and not any(" " in part for part in fields[1:]))
        ):
            return separator
    if line.lower().endswith(MEDIA_SUFFIXES):
        return "\t"  # a path alone, whatever is in it
    raise ValueError(f"{where} is neither `path label` nor a path: {line!r}")
