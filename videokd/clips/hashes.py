"""Hashes of the content of videos, remembered so that a file that has not changed is read once.

What is remembered names files by a hash of their path: it lies in folders that are passed on.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from videokd.clips.backends import IMAGE_SUFFIXES
from videokd.clips.manifest import Packed, Video, is_url
from videokd.disk import write_text
from videokd.json_files import parse_json
from videokd.processes import is_first, of_all, rank, world_size

T = TypeVar("T")

_SIZE = 16  # bytes of a hash
_CHUNK = 2**20
SETTLED_NS = 2_000_000_000
"""A file that changed so short a time ago may change again within the same tick of the file system's clock: that it was
read is not remembered."""
_WORTH_TELLING = 2_000_000_000  # bytes


class _Remembered(NamedTuple):
    stamp: str
    """What the file system says of the file: size, time of the last change, identity."""
    hash: str


class ContentHashes:
    """Hashes of the content of videos, kept in a file by path, size and time of change.

    Args:
        path: of the file; it is read if it is there, and written by `save`. A line that is damaged is left out.
        notify: called with a sentence before reading takes long.
    """

    def __init__(self, path: Path, notify: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.notify = path, notify
        self._known = _read(path)
        self._changed = False

    def of(self, videos: Sequence[Video]) -> list[str | None]:
        """Return the hash of each video's content; None where it can't be read.

        Of a file it is that of its bytes; of a folder, of the names and bytes of its pictures; of a video in a packed
        set, of its bytes in the shard, or where the shard is at a URL, what the set's index says (None if it says
        nothing). Several processes read a part each, and all must call this.
        """
        mine = range(rank(), len(videos), world_size())
        before = dict(zip(mine, _in_threads(_stamp, [videos[number] for number in mine])))
        found: dict[int, tuple[str, _Remembered | None, str | None]] = {}
        waiting = []
        for number, stamp in before.items():
            video, key = videos[number], _key(videos[number])
            known = self._known.get(key)
            if stamp is None:
                found[number] = key, None, _told(video)
            elif known is not None and known.stamp == stamp.text:
                found[number] = key, None, known.hash
            else:
                waiting.append(number)
        bytes_to_read = sum(stamp.bytes for number in waiting if (stamp := before[number]) is not None)
        if bytes_to_read > _WORTH_TELLING:
            self.notify(
                f"reading {len(waiting)} videos ({bytes_to_read / 1e9:.1f} GB) to hash their content, which is kept "
                f"in {self.path}"
            )
        for number, value in zip(waiting, _in_threads(_hash, [videos[number] for number in waiting])):
            stamp = before[number]
            assert stamp is not None
            # A file that was written to meanwhile, or just before, is read again the next time.
            lasts = is_settled(stamp.changed_ns) and _stamp(videos[number]) == stamp
            remembered = _Remembered(stamp.text, value) if value is not None and lasts else None
            found[number] = _key(videos[number]), remembered, value
        everyone = {number: one for part in of_all(found) for number, one in part.items()}
        for key, remembered, _ in everyone.values():
            if remembered is not None:
                self._known[key], self._changed = remembered, True
        return [everyone[number][2] for number in range(len(videos))]

    def save(self) -> None:
        """Write what is new, where the folder can be written to; else the files are read again the next time."""
        if not self._changed or not is_first():
            return
        rows = ({"file": key, "stamp": one.stamp, "hash": one.hash} for key, one in self._known.items())
        with suppress(OSError):
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
            self._changed = False


def content_hash(path: Path) -> str | None:
    """Return the hash of a file's bytes, or of the names and bytes of a folder's pictures.

    None where there is nothing, or it can't be read.
    """
    digest = hashlib.blake2b(digest_size=_SIZE)
    files = _files(path)
    try:
        for file in files:
            if path.is_dir():
                digest.update(
                    f"{file.stat().st_size} {len(file.name)} {file.name}\n".encode("utf-8", "surrogateescape")
                )
            with file.open("rb") as content:
                _update(digest, content)
        empty = not files or (not path.is_dir() and path.stat().st_size == 0)
    except OSError:
        return None
    return None if empty else digest.hexdigest()


def part_hash(path: Path, start: int, size: int) -> str | None:
    """Return the hash of `size` bytes of a file from byte `start`; None if it has fewer or can't be read."""
    digest = hashlib.blake2b(digest_size=_SIZE)
    try:
        with path.open("rb") as content:
            content.seek(start)
            whole = _update(digest, content, size) == size
    except (OSError, ValueError):
        return None
    return digest.hexdigest() if whole else None


def changed_ns(state: os.stat_result) -> int:
    """Return when a file last changed: of its inode (ctime), which can't be set back, where the system has that."""
    return state.st_mtime_ns if os.name == "nt" else state.st_ctime_ns


def is_settled(changed: int) -> bool:
    """Return whether a later change of a file would show in its times; `changed` is its `changed_ns`."""
    return changed < time.time_ns() - SETTLED_NS


class _Stamp(NamedTuple):
    text: str
    bytes: int
    changed_ns: int


def _stamp(video: Video) -> _Stamp | None:
    """What tells a file from another one or a later one without reading it; None where no file can be read."""
    packed = video.packed
    if packed is not None and is_url(packed.shard):
        return None
    files = _files(video.path) if packed is None else [Path(packed.shard)]
    if not files:
        return None
    digest, num_bytes, changed = hashlib.blake2b(digest_size=_SIZE), 0, 0
    try:
        for file in files:
            state = file.stat()
            facts = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
            digest.update(f"{file.name} {facts}\n".encode("utf-8", "surrogateescape"))
            num_bytes += state.st_size
            changed = max(changed, changed_ns(state))
    except OSError:
        return None
    size = num_bytes if packed is None else packed.size
    return _Stamp(f"{size} {changed} {digest.hexdigest()}", size, changed)


def _files(path: Path) -> list[Path]:
    """The file itself, or a folder's pictures in the order of their names."""
    try:
        if not path.is_dir():
            return [path] if path.is_file() else []
        return sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES and child.is_file())
    except OSError:
        return []


def _key(video: Video) -> str:
    packed = video.packed
    path = os.path.abspath(video.path if packed is None else packed.shard)
    part = "" if packed is None else f" {packed.offset}+{packed.size}"
    return hashlib.blake2b(f"{path}{part}".encode("utf-8", "surrogateescape"), digest_size=_SIZE).hexdigest()


def _told(video: Video) -> str | None:
    """What a remote set's index says of a video."""
    told = (video.facts or {}).get("hash") if video.packed is not None else None
    return told if isinstance(told, str) else None


def _hash(video: Video) -> str | None:
    packed: Packed | None = video.packed
    return content_hash(video.path) if packed is None else part_hash(Path(packed.shard), packed.offset, packed.size)


def _in_threads(function: Callable[[Video], T], videos: Sequence[Video]) -> list[T]:
    if not videos:
        return []
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(videos)))
    try:
        return list(pool.map(function, videos))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, what is not begun is not read


def _update(digest: hashlib.blake2b, content: BinaryIO, most: int | None = None) -> int:
    """Hash a file's bytes, `most` at most; returns how many."""
    done = 0
    while chunk := content.read(_CHUNK if most is None else min(_CHUNK, most - done)):
        digest.update(chunk)
        done += len(chunk)
    return done


def _read(path: Path) -> dict[str, _Remembered]:
    known: dict[str, _Remembered] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return known
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):  # torn or foreign: read again
            row = parse_json(line, source=path)
            if all(isinstance(row[name], str) for name in ("file", "stamp", "hash")):
                known[row["file"]] = _Remembered(row["stamp"], row["hash"])
    return known
