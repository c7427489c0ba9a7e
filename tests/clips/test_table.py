import os
import pickle
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from drawn_videos import DrawnVideo

from videokd.clips import table as table_module
from videokd.clips.reading import Access, VideoIndex, scan
from videokd.clips.table import FrameTable, index_of, row_of, table_path, write_table


def index(num_frames: int, *, access: Access = "seek") -> VideoIndex:
    number = np.arange(num_frames)
    return VideoIndex(
        pts=number * 512 - 1024,
        packets=number[::-1].copy(),
        key_pts=number[::12] * 512,
        key_packets=number[::12],
        last_ticks=511,
        time_base=Fraction(1, 15360),
        height=240,
        width=320,
        rotation=270,
        access=access,
    )


def same(one: VideoIndex, other: VideoIndex) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(VideoIndex))


def test_every_index_comes_back_from_the_file(tmp_path: Path) -> None:
    held = {"a.mp4": index(90), "späces 视频.mkv": index(1, access="count"), "odd\udce4.avi": index(7, access="start")}
    write_table(tmp_path / "set.frames", [(name, row_of(one, num_bytes=5)) for name, one in held.items()])
    table = FrameTable.beside(tmp_path / "set.jsonl")
    assert table is not None
    for again in (table, pickle.loads(pickle.dumps(table))):  # workers that are spawned get a pickle
        for name, one in held.items():
            found = again.index(name, num_bytes=5)
            assert found is not None
            assert same(found, one)
        assert again.row("b.mp4") is None
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_of_another_size_is_another_file(tmp_path: Path) -> None:
    write_table(tmp_path / "set.frames", [("a.mp4", row_of(index(9), num_bytes=1000))])
    table = FrameTable(tmp_path / "set.frames")
    assert table.index("a.mp4", num_bytes=1001) is None
    assert table.index("a.mp4", num_bytes=1000) is not None


def test_rows_may_have_columns_of_their_own(tmp_path: Path) -> None:
    offsets = np.array([512, 4096, 9000])
    write_table(
        tmp_path / "set.frames",
        [("a", row_of(index(3), num_bytes=0)), ("b", {**row_of(index(2), num_bytes=0), "offsets": offsets})],
    )
    table = FrameTable(tmp_path / "set.frames")
    one, two = table.row("a"), table.row("b")
    assert one is not None
    assert two is not None
    assert one["offsets"].tolist() == []
    assert two["offsets"].tolist() == offsets.tolist()
    assert same(index_of(two), index(2))


def test_an_empty_table_can_be_read(tmp_path: Path) -> None:
    write_table(tmp_path / "set.frames", [])
    assert FrameTable(tmp_path / "set.frames").row("a") is None


def test_no_table_and_a_broken_one(tmp_path: Path) -> None:
    assert FrameTable.beside(tmp_path / "set.jsonl") is None
    table_path(tmp_path / "set.jsonl").write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(ValueError, match=r"set\.frames is no frame table.*videokd data check"):
        FrameTable.beside(tmp_path / "set.jsonl")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_rows_are_read_from_a_map_and_not_loaded(tmp_path: Path) -> None:
    big = row_of(index(1_000_000), num_bytes=0)  # 16 MB a row
    write_table(tmp_path / "set.frames", [(f"{number}", big) for number in range(8)])
    del big
    table = FrameTable(tmp_path / "set.frames")
    assert table.row("none") is None

    def private_pages() -> int:
        resident, shared = (int(field) for field in Path("/proc/self/statm").read_text().split()[1:3])
        return resident - shared

    before = private_pages()
    row = table.row("3")
    assert row is not None
    assert (private_pages() - before) * os.sysconf("SC_PAGE_SIZE") < 32e6  # the row of 128 MB that is asked for


def test_a_table_of_the_former_format_is_used_for_packed_videos_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = DrawnVideo(name="video.mp4", num_frames=3).write(tmp_path)
    former = dict(row_of(scan(path), num_bytes=5))
    former["facts"] = np.delete(former["facts"], -2)  # it had no place for mirrored
    with monkeypatch.context() as patch:
        patch.setattr(table_module, "_FORMAT", "videokd frame table 1")
        write_table(tmp_path / "old.frames", [("video.mp4", former)])
    table = FrameTable(tmp_path / "old.frames")
    assert table.index("video.mp4", num_bytes=5) is None
    index = table.index("video.mp4", num_bytes=5, packed=True)
    assert index is not None
    assert (index.num_frames, index.mirrored) == (3, False)
