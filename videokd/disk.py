"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from videokd.interruption import deferred, note_written


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, text.encode())


@deferred()
def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, and returns when it is on the disk.

    Raises:
        OSError: with the path, if it can't be written; what was there is still there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"{path} can't be written: {error.strerror}") from error
    sync_folder(path.parent)
    note_written(str(path))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes of this kind out of a folder for as long as this lasts, where the system can.

    Raises:
        ValueError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not a system with such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(f"another process is at work in {folder}: wait for it, or end it") from error
        yield
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    if os.name == "nt":
        return  # a folder can't be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems have no such thing
            raise
    finally:
        os.close(handle)
