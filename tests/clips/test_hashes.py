"""Hashes of the content of videos: any change is seen, and an unchanged file is read once."""

import os
from pathlib import Path
from typing import Any

import pytest

from videokd.clips import hashes
from videokd.clips.hashes import ContentHashes, content_hash, part_hash
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Packed, Video
from videokd.clips.packing import Packing, pack


@pytest.fixture
def _remembered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", -(10**18))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The videos that are read."""
    found: list[Any] = []
    hashing = hashes._hash
    monkeypatch.setattr(hashes, "_hash", lambda video: found.append(video.id) or hashing(video))  # type: ignore[func-returns-value]
    return found


def video(path: Path, **more: Any) -> Video:
    return Video(id=path.name, path=path, **more)


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(b"picture %d" % number)
    return folder


def hash_of(path: Path, kept: Path) -> str | None:
    (found,) = ContentHashes(kept).of([video(path)])
    return found


def test_a_hash_is_of_all_bytes_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    data = bytearray(3 * 2**20 + 5)
    file.write_bytes(data)
    found = {content_hash(file)}
    for place in (0, 2**20, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[place] = 1
        file.write_bytes(changed)
        found.add(content_hash(file))
    assert len(found) == 5
    assert None not in found


def test_a_folders_hash_is_of_the_names_and_contents_of_its_pictures(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "clip")
    first = content_hash(folder)
    (folder / ".DS_Store").write_bytes(b"nothing to see")
    (folder / "notes.txt").write_text("nor here")
    assert content_hash(folder) == first
    found = {first}
    (folder / "1.jpg").write_bytes(b"picture X")
    found.add(content_hash(folder))
    (folder / "1.jpg").write_bytes(b"picture 1")
    assert content_hash(folder) == first
    (folder / "2.jpg").rename(folder / "3.jpg")
    found.add(content_hash(folder))
    (folder / "3.jpg").unlink()
    found.add(content_hash(folder))
    # The same bytes in a row, cut at another place.
    (folder / "0.jpg").write_bytes(b"picture 0picture")
    (folder / "1.jpg").write_bytes(b" 1")
    found.add(content_hash(folder))
    assert len(found) == 5


def test_what_can_not_be_read_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty").mkdir()
    assert content_hash(tmp_path / "empty.mp4") is None
    assert content_hash(tmp_path / "empty") is None
    assert content_hash(tmp_path / "nowhere.mp4") is None
    (tmp_path / "short").write_bytes(b"12345")
    assert part_hash(tmp_path / "short", 3, 3) is None
    assert part_hash(tmp_path / "short", 3, 2) is not None
    assert hash_of(tmp_path / "nowhere.mp4", tmp_path / "kept") is None


@pytest.mark.usefixtures("_remembered_at_once")
def test_files_that_did_not_change_are_read_once(tmp_path: Path, read: list[Any]) -> None:
    file, folder = tmp_path / "a.mp4", pictures(tmp_path / "clip")
    file.write_bytes(b"12345")
    kept = ContentHashes(tmp_path / "kept.jsonl")
    first = kept.of([video(file), video(folder)])
    assert kept.of([video(folder), video(file)]) == first[::-1]
    kept.save()
    assert str(tmp_path) not in (tmp_path / "kept.jsonl").read_text()
    assert ContentHashes(tmp_path / "kept.jsonl").of([video(file), video(folder)]) == first
    assert sorted(read) == ["a.mp4", "clip"]


@pytest.mark.usefixtures("_remembered_at_once")
@pytest.mark.parametrize("how", ["written", "time set back", "replaced", "link to another", "in a folder"])
def test_a_change_at_the_same_size_is_seen_by_who_remembers(how: str, tmp_path: Path) -> None:
    file, kept = tmp_path / "a.mp4", ContentHashes(tmp_path / "kept.jsonl")
    if how == "in a folder":
        file = pictures(tmp_path / "clip")
    elif how == "link to another":
        for name in ("one", "two"):
            (tmp_path / name).write_bytes(name.encode())
        file.symlink_to(tmp_path / "one")
    else:
        file.write_bytes(b"12345")
    (before,) = kept.of([video(file)])
    inside = file / "1.jpg" if how == "in a folder" else file
    state = inside.stat()
    if how == "link to another":
        os.utime(tmp_path / "two", ns=(state.st_atime_ns, state.st_mtime_ns))
        file.unlink()
        file.symlink_to(tmp_path / "two")
    elif how == "replaced":
        (tmp_path / "new").write_bytes(b"54321")
        os.utime(tmp_path / "new", ns=(state.st_atime_ns, state.st_mtime_ns))
        (tmp_path / "new").replace(file)
    else:
        inside.write_bytes(inside.read_bytes()[::-1])
        if how == "time set back":
            os.utime(inside, ns=(state.st_atime_ns, state.st_mtime_ns))
    (after,) = kept.of([video(file)])
    assert None not in (before, after)
    assert after != before


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, read: list[Any]) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"12345")
    kept = ContentHashes(tmp_path / "kept.jsonl")
    kept.of([video(file)])
    kept.of([video(file)])
    kept.save()
    assert read == ["a.mp4", "a.mp4"]
    assert not (tmp_path / "kept.jsonl").exists()


@pytest.mark.usefixtures("_remembered_at_once")
def test_damaged_lines_of_what_is_remembered_are_left_out(tmp_path: Path, read: list[Any]) -> None:
    file, path = tmp_path / "a.mp4", tmp_path / "kept.jsonl"
    file.write_bytes(b"12345")
    kept = ContentHashes(path)
    (first,) = kept.of([video(file)])
    kept.save()
    whole = path.read_bytes()
    path.write_bytes(b"\xff\x00{\n[]\nnull\n3\n{}\n" + b'{"file": 3, "stamp": "", "hash": ""}\n' + whole + whole[:30])
    assert hash_of(file, path) == first
    assert read == ["a.mp4"]
    path.write_bytes(whole[:-30])
    assert hash_of(file, path) == first
    assert read == ["a.mp4", "a.mp4"]


@pytest.mark.parametrize("format", ["mp4", "jpeg", "raw"])
def test_videos_of_a_packed_set_are_hashed_by_their_bytes_in_the_shard(
    format: str, drawn_set: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(drawn_set).split("test")
    pack(manifest, tmp_path / "packed", Packing(format=format), workers=1)  # type: ignore[arg-type]
    videos = read_manifest(tmp_path / "packed" / "index.jsonl").videos
    kept = ContentHashes(tmp_path / "kept.jsonl")
    before = kept.of(videos)
    assert len(set(before)) == len(videos)
    # The index says the same.
    assert before == [(one.facts or {})["hash"] for one in videos]
    packed = videos[3].packed
    assert packed is not None
    shard = Path(packed.shard)
    data = bytearray(shard.read_bytes())
    data[packed.offset + packed.size - 1] ^= 1
    shard.write_bytes(data)
    after = kept.of(videos)
    assert [one == other for one, other in zip(before, after)] == [number != 3 for number in range(len(videos))]


def test_a_remote_videos_hash_is_what_its_index_says(tmp_path: Path) -> None:
    packed = Packed(shard="s3://there/0.tar", shard_bytes=9, format="mp4", offset=0, size=4, table="none")
    videos = [video(Path("a.mp4"), packed=packed, facts={"hash": "told"}), video(Path("b.mp4"), packed=packed)]
    assert ContentHashes(tmp_path / "kept").of(videos) == ["told", None]
