"""Shards of stored outputs: files of records that appear whole, each with a checksum.

A shard's checksum is over its records and over all else that is said of it in the .json file beside it: which shard it
is, a hash of its store's header, and which records are not valid. So a shard that was damaged, renamed, or taken from
another store is told from the one that was written.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from videokd.clips.hashes import changed_ns, is_settled
from videokd.disk import open_to_append, write_text
from videokd.json_files import read_json
from videokd.records import VALID

HEADER = "header.json"
_SYNC_BYTES = 64 * 2**20
_CHUNK = 2**20
_CHECKSUM_BYTES = 16
_verified: set[tuple[object, ...]] = set()
"""Shards whose checksum this process has compared, with the size and times of their files."""


def missing_shards(folder: Path, shards: int) -> tuple[int, ...]:
    """The numbers of those that are not whole yet."""
    return tuple(number for number in range(1, shards + 1) if not shard_path(folder, number, shards).is_file())


def shard_path(folder: Path, number: int, shards: int) -> Path:
    """Where a shard's records lie; numbers are 1 to `shards`."""
    return folder / f"shard-{number}-of-{shards}.bin"


def partial_path(shard: Path) -> Path:
    """Where a shard lies while it is not whole."""
    return shard.with_name(shard.name + ".partial")


def shard_clips(clips: int, number: int, shards: int) -> range:
    """The clips of a shard."""
    return range(clips * (number - 1) // shards, clips * number // shards)


class ShardWriter:
    """Appends records to a shard that is not whole, after those that are there; a context.

    Args:
        path: of the shard. It is written as PATH.partial.
        layout: of a record.
        rows: how many the shard is to have.
        block: records that were computed together. What is there of an unfinished block is written anew: so a shard is
            the same to the last bit, however often it was interrupted.

    Raises:
        ValueError: if another process is at it.
    """

    def __init__(self, path: Path, layout: np.dtype[np.void], *, rows: int, block: int) -> None:
        self.path, self.layout, self.rows = path, layout, rows
        self.partial = partial_path(path)
        self._file = open_to_append(self.partial)
        _lock(self._file, self.partial)
        there = min(self._file.seek(0, os.SEEK_END) // layout.itemsize, rows)
        self.done = there if there == rows else there - there % block
        """Records that are there."""
        self._file.truncate(self.done * layout.itemsize)
        self._digest = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            self._digest.update(chunk)
        self._unsynced = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._file.closed:
            self._sync()
            self._file.close()

    def append(self, records: NDArray[np.void]) -> None:
        """Writes some more; they outlive this process at once, and the machine's every 64 MiB."""
        data = records.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._file.flush()
        self.done += len(records)
        self._unsynced += records.nbytes
        if self._unsynced >= _SYNC_BYTES:
            self._sync()

    def finish(self, made: Mapping[str, Any]) -> None:
        """Give the whole shard its name, and write beside it which of its records are not valid, what `made` says of
        how it was computed ("precision" at least), which shard of which store it is, and a checksum of all that."""
        assert self.done == self.rows
        self._sync()
        invalid = np.flatnonzero(mapped(self.partial, self.layout, self.rows)[VALID] == 0)
        facts = {"shard": self.path.stem, "header": header_hash(self.path.parent), "invalid": invalid.tolist(), **made}
        facts["checksum"] = _checksum(self._digest, facts)
        write_text(facts_path(self.path), json.dumps(facts, indent=1) + "\n")
        self.partial.replace(self.path)
        self._file.close()

    def discard(self) -> None:
        """Remove what was written: it is not to be resumed."""
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0


def header_hash(folder: Path) -> str:
    """Return the hash of a store's header file."""
    path = folder / HEADER
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def facts_path(shard: Path) -> Path:
    """Return where the facts about a shard are written."""
    return shard.with_suffix(".json")


def fault_of(shard: Path) -> str | None:
    """Return what is wrong with a shard that has its full size, or None if it is the one that was written.

    The records are read once in a process, as long as the file stays as it is.
    """
    path = facts_path(shard)
    try:
        facts = read_json(path)
        checksum, invalid = facts["checksum"], facts["invalid"]
        if not (isinstance(checksum, str) and isinstance(invalid, list) and isinstance(facts["precision"], str)):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} is missing or damaged"
    if facts.get("shard") != shard.stem:
        return f"it is {facts.get('shard')} under another name"
    if facts.get("header") != header_hash(shard.parent):
        return f"it was written for another {HEADER}: it is of another store, or {HEADER} was changed"
    state, said = shard.stat(), json.dumps(facts, sort_keys=True)
    key = (os.path.abspath(shard), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, said)
    if key in _verified:
        return None
    digest = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
    with shard.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if _checksum(digest, facts) != checksum:
        return "its checksum is not the one that it was written with: it is damaged"
    if is_settled(changed_ns(state)):
        _verified.add(key)
    return None


def check_shards(shards: Sequence[Path]) -> None:
    """Check the shards of a store against their checksums.

    Raises:
        ValueError: that names those that are damaged, or of another store.
    """
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1, len(shards)))) as pool:
        faults = {path: fault for path, fault in zip(shards, pool.map(fault_of, shards)) if fault is not None}
    if faults:
        named = "; ".join(f"{path}: {fault}" for path, fault in list(faults.items())[:5])
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        numbers = ", ".join(path.stem.removeprefix("shard-").replace("-of-", "/") for path in list(faults)[:5])
        raise ValueError(
            f"{named}{more}. Run `videokd label` again with this --out and --shard {numbers}: it makes a damaged shard "
            "anew"
        )


def mapped(path: Path, layout: np.dtype[np.void], rows: int) -> NDArray[np.void]:
    """Return a shard's records, mapped into memory.

    Raises:
        ValueError: if the file has another size.
    """
    size = path.stat().st_size
    if size != rows * layout.itemsize:
        raise ValueError(f"{path} has {size} bytes, and {rows} records have {rows * layout.itemsize}: label it again")
    # Nothing can't be mapped.
    return np.memmap(path, dtype=layout, mode="r", shape=(rows,)) if rows else np.zeros(0, dtype=layout)


def _checksum(records: "hashlib.blake2b", facts: Mapping[str, Any]) -> str:
    """The hash of a shard's records, continued over what is said of it."""
    whole = records.copy()
    rest = {name: value for name, value in facts.items() if name != "checksum"}
    whole.update(json.dumps(rest, sort_keys=True).encode())
    return whole.hexdigest()


def _lock(file: BinaryIO, path: Path) -> None:
    """For as long as the file is open, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.close()
            raise ValueError(f"another process is writing {path}") from error
