"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from videokd.interruption import deferred, note_written

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_LONGEST_NAME = 255 - len(".12345678.partial")
"""Bytes of a name to which the suffix of a temporary file can be added."""


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, text.encode())


@deferred()
def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, and returns when it is on the disk.

    Raises:
        OSError: with the path, if it can't be written; what was there is still there.
    """
    with whole_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path, *, shared: bool = False, keep: bool = False, sync: bool = True) -> Iterator[BinaryIO]:
    """A new file, open for writing, that becomes `path` when the context ends without an error.

    Until then it lies in the same folder as NAME.partial. It is always a new file: a link of that name is removed and
    never followed, so that nobody who may write to the folder can direct the content to another file. Its mode is what
    the umask leaves of 0666. Where `path` is a symbolic link, the link is replaced and its target stays as it is.

    Args:
        path: of the file.
        shared: whether several processes may write `path` at once, all of them the same: each has a temporary file of
            its own, NAME.RANDOM.partial.
        keep: whether a file that is there in the end stays, so that the first of several writers wins.
        sync: whether to wait until the file is on the disk, where it outlives a power cut.

    Raises:
        OSError: with the path, if it can't be written; what was there is still there.
    """
    try:
        partial, handle = _new_partial(path, shared=shared)
    except OSError as error:
        raise _named(error, path) from error
    made = os.fstat(handle)
    try:
        with open(partial, "w+b", opener=lambda *_: handle) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if not _is(partial, made):
            raise OSError(errno.EBUSY, f"another process writes {partial}")
        with deferred():
            _put_in_place(partial, path, keep=keep)
            note_written(str(path))
    except OSError as error:
        # Errors of libraries, and of other files, keep their message.
        if type(error).__module__ != "builtins" or error.errno is None or error.filename not in (None, str(partial)):
            raise
        raise _named(error, path) from error
    finally:
        if _is(partial, made):
            with contextlib.suppress(OSError):
                partial.unlink()
    if sync:
        sync_folder(path.parent)


def name_of(file: BinaryIO) -> str:
    """A name by which a library opens a file that is open here: where the system can, no other file that took its
    place in the folder meanwhile."""
    own = f"/proc/self/fd/{file.fileno()}"
    return own if os.path.exists(own) else file.name


def open_to_append(path: Path) -> BinaryIO:
    """A file that grows over several runs (a log, the records of a shard), open for reading and writing at its end.

    Raises:
        OSError: if `path` is a link or no regular file: what is appended would go elsewhere.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{path} is a symbolic link, and is not written through: remove it") from error
        raise _named(error, path) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"{path} is no regular file: remove it")
    return os.fdopen(handle, "a+b")


def _new_partial(path: Path, *, shared: bool) -> tuple[Path, int]:
    """A new file beside `path`, and its handle."""
    plain = path.with_name(f"{path.name}.partial")
    token = secrets.token_hex(4)
    short = len(os.fsencode(path.name)) > _LONGEST_NAME
    unique = path.with_name(f".{token}.partial" if short else f"{path.name}.{token}.partial")
    # One name, where only one process writes: what a killed one left is overwritten by the next.
    for partial in (unique,) if shared or short else (plain, unique):
        with contextlib.suppress(OSError):
            partial.unlink()
        try:
            return partial, os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
        except FileExistsError:  # a folder, or a file of somebody else's that can't be removed
            continue
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(plain))


def _is(path: Path, made: os.stat_result) -> bool:
    """Whether the file of that name is still the one that was made, and not another's."""
    try:
        return os.path.samestat(made, path.stat(follow_symlinks=False))
    except OSError:
        return False


def _put_in_place(partial: Path, path: Path, *, keep: bool) -> None:
    if keep:
        try:
            os.link(partial, path)  # of several processes, one does it
            return
        except FileExistsError:
            return
        except OSError:  # a file system without links
            pass
    partial.replace(path)


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, f"{path} can't be written: {error.strerror or error}")


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
