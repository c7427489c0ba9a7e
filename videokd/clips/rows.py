"""What all forms of lists share: their text, the rows that are read from it, and notes on how it was read."""

import codecs
import io
import os
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from videokd.clips.backends import IMAGE_SUFFIXES
from videokd.clips.manifest import Video
from videokd.processes import is_first

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".gif",
    ".ogv", ".asf", ".vob", ".mts", ".m2ts",
)  # fmt: skip
MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
"""Files that a list may name: videos, and still pictures, which are videos of one frame."""

Row = tuple[str, Video]
"""Where a video is listed, for errors, and the video."""


class Notes:
    """How a list was read, where that is more than its documented form says; shown as one line."""

    def __init__(self, source: object) -> None:
        self._source = source
        self._notes: dict[str, None] = {}

    def add(self, note: str) -> None:
        """Add a note, once."""
        self._notes[note] = None

    def show(self) -> None:
        """Warn of all notes in one line: once a process, and in the first process alone."""
        if self._notes and is_first():
            _warn_once(f"{self._source} was read like this: {'; '.join(self._notes)}")


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def read_text(path: Path, notes: Notes) -> io.StringIO:
    """Return a list's text with its line ends as they are: UTF-8, or UTF-16 and UTF-32 that can be told from it.

    Raises:
        ValueError: for any other encoding, naming the line.
    """
    content = path.read_bytes()
    encoding = _encoding(content)
    if encoding != "utf-8-sig":
        notes.add(f"it is {encoding.upper()}, not UTF-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {number} is not {'UTF-8' if encoding == 'utf-8-sig' else encoding.upper()} "
            f"({error.reason}): convert the file, for example `iconv -f CP1252 -t UTF-8` if Windows wrote it"
        ) from error
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}: line {number} holds a NUL character: this is no text file, or damaged")
    return io.StringIO(text.removeprefix("\ufeff"), newline="")


def _encoding(content: bytes) -> str:
    for encoding, marks in (
        ("utf-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),  # UTF-16's little-endian mark begins it, so first
        ("utf-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
    ):
        if content.startswith(marks):
            return encoding
    # Without a mark: every other byte of Latin letters in UTF-16 is 0, and UTF-8 text has none.
    even, odd = content[0::2].count(0), content[1::2].count(0)
    if len(content) % 2 == 0 and max(even, odd) > 10 * min(even, odd) and max(even, odd) > len(content) // 8:
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8-sig"


def read_lines(path: Path, notes: Notes) -> Iterator[tuple[str, str]]:
    """Yield (where it stands, line) of a text file, stripped, without empty lines."""
    for number, line in enumerate(read_text(path, notes), start=1):
        if line.strip():
            yield f"{path}: line {number}", line.strip()


def is_comment(line: str, root: Path, where: str) -> bool:
    """Return whether a line that begins with # is a comment.

    Raises:
        ValueError: if it may also be a file whose name begins so.
    """
    if not line.startswith("#"):
        return False
    if not re.search(rf"({'|'.join(map(re.escape, MEDIA_SUFFIXES))})\b", line.lower()) or line.startswith("# "):
        return True
    if not any(root.glob("#*")):
        raise ValueError(
            f"{where} begins with #: a comment, or a file's name? Remove it, or write ./ before it: {line!r}"
        )
    return False


def file_name(written: str, root: Path, where: str, notes: Notes) -> str:
    """Return a path as it is called here: with forward slashes, unless a file in `root` has the backslashes.

    Raises:
        ValueError: for a path of another machine that no folder can be put before.
    """
    name = written.strip()
    if os.sep == "/" and "\\" in name:
        if re.match(r"[A-Za-z]:\\|\\\\", name):
            raise ValueError(
                f"{where}: {name!r} is an absolute path of a Windows machine: write paths relative to the folder of "
                "the videos, and name that folder with --root (--data.root of a recipe)"
            )
        if not (root / name).exists():
            notes.add("backslashes in paths are read as slashes")
            name = name.replace("\\", "/")
    return name


def is_number(text: str) -> bool:
    """Return whether a field is a whole number."""
    return text.removeprefix("-").isdecimal()
