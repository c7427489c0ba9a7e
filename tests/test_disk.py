import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from videokd.clips.manifest import write_rows
from videokd.clips.synthetic import draw, write_clip
from videokd.clips.table import write_table
from videokd.disk import open_to_append, whole_file, write_bytes, write_text
from videokd.models import CompactShift, save_model
from videokd.store import _write_if_new
from videokd.stored_shards import ShardWriter

if sys.platform == "win32":
    pytest.skip("links and modes as POSIX has them", allow_module_level=True)

LAYOUT = np.dtype([("valid", "u1")])


def save_a_model(path: Path) -> None:
    save_model(CompactShift().build(["a", "b"], pretrained=False), path.parent)


def save_a_figure(path: Path) -> None:
    with whole_file(path) as file:
        Figure().savefig(file, format="png")


def label(path: Path) -> None:
    with ShardWriter(path, LAYOUT, rows=1, block=1) as writer:
        writer.append(np.zeros(1, LAYOUT))
        writer.finish({"precision": "fp32"})


WRITERS: dict[str, Callable[[Path], object]] = {
    "report.html": lambda path: write_text(path, "new"),
    "checkpoint.safetensors": lambda path: write_bytes(path, b"new"),
    "videos.jsonl": lambda path: write_rows([{"path": "a.mp4"}], path),
    "videos.frames": lambda path: write_table(path, [("a", {"pts": np.zeros(1, np.int64)})]),
    "model.safetensors": save_a_model,
    "plot.png": save_a_figure,
    "clip.mp4": lambda path: write_clip(path, draw("train", 0)),
    "header.json": lambda path: _write_if_new(path, "{}"),
    "clips.jsonl": lambda path: _write_if_new(path, "{}", replace=True),
    "shard-1-of-1.bin": label,
}


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_has_the_mode_that_the_umask_leaves(name: str, umask: int, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert name in modes
    assert set(modes.values()) == {0o666 & ~umask}


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.startswith("shard")])
def test_no_file_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f"{name}.partial").symlink_to(other)
    if name != "header.json":  # which is not written where there is one
        (folder / name).symlink_to(other)
    WRITERS[name](folder / name)
    assert other.read_text() == "untouched"
    assert not (folder / name).is_symlink()
    assert all(path.is_symlink() for path in folder.glob("*.partial"))


def test_what_grows_is_not_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    (tmp_path / "metrics.jsonl").symlink_to(other)
    (tmp_path / "shard-1-of-1.bin.partial").symlink_to(other)
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match=r"metrics\.jsonl is a symbolic link, and is not written through: remove it"):
        open_to_append(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="is a symbolic link"):
        label(tmp_path / "shard-1-of-1.bin")
    with pytest.raises(OSError, match="is a symbolic link"):
        open_to_append(tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        open_to_append(tmp_path / "pipe")
    assert other.read_text() == "untouched"
    assert not (tmp_path / "made").exists()


def test_what_grows_goes_on_at_its_end(tmp_path: Path) -> None:
    for part in (b"one", b"two"):
        with open_to_append(tmp_path / "log") as file:
            file.write(part)
    assert (tmp_path / "log").read_bytes() == b"onetwo"


@pytest.mark.parametrize("there", ["nothing", "a file", "a folder"])
def test_a_file_is_whole_or_not_there(there: str, tmp_path: Path) -> None:
    path, partial = tmp_path / "file", tmp_path / "file.partial"
    path.write_text("before")
    if there == "a file":  # left by a process that was killed
        partial.write_text("half")
    elif there == "a folder":
        partial.mkdir()
    with contextlib.suppress(KeyError), whole_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "before"
    with whole_file(path) as file:
        file.write(b"after")
    assert path.read_text() == "after"
    assert {one.name for one in tmp_path.iterdir()} == {"file", *(["file.partial"] if there == "a folder" else [])}


def test_a_file_that_another_writer_took_over_is_not_put_in_place(tmp_path: Path) -> None:
    writer = whole_file(tmp_path / "file")
    writer.__enter__().write(b"mine")
    (tmp_path / "file.partial").unlink()
    (tmp_path / "file.partial").write_bytes(b"half of another's")
    with pytest.raises(OSError, match="file can't be written: another process writes"):
        writer.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["file.partial"]


def test_several_processes_may_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path, shared=True, keep=True) as one, whole_file(path, shared=True, keep=True) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"other"  # whose context ended first
    with whole_file(path, shared=True) as file:
        file.write(b"third")
    assert path.read_bytes() == b"third"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)  # 254 bytes
    write_text(path, "here")
    assert path.read_text() == "here"
    with pytest.raises(OSError, match="can't be written: File name too long"):
        write_text(tmp_path / ("ä" * 128), "here")
