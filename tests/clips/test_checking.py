import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_videos import DrawnVideo
from numpy.typing import NDArray
from PIL import Image

from videokd.clips import checking
from videokd.clips.checking import Checked, check, problems, report, write_checked
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest
from videokd.clips.reading import scan
from videokd.clips.table import FrameTable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with everything that can be wrong."""
    root = tmp_path_factory.mktemp("set")
    for split, label in (("train", "turn left"), ("train", "jump"), ("test", "jump")):
        (root / split / label).mkdir(parents=True)
    for number in range(3):
        DrawnVideo(name=f"{number}.mp4", num_frames=6 + number, options={"crf": str(20 + number)}).write(
            root / "train" / "jump"
        )
    DrawnVideo(name="turned.mp4", num_frames=9, rotation=90).write(root / "train" / "turn left")
    first = root / "train" / "jump" / "0.mp4"
    (root / "test" / "jump" / "copy.mp4").write_bytes(first.read_bytes())
    (root / "train" / "turn left" / "mislabelled.mp4").write_bytes((root / "train" / "jump" / "1.mp4").read_bytes())
    (root / "train" / "jump" / "empty.mp4").touch()
    (root / "train" / "jump" / "text.avi").write_text("no video" * 40)
    whole = DrawnVideo(name="whole.mp4", num_frames=60, container_options={"movflags": "faststart"}).write(root)
    cut_off = whole.read_bytes()[: whole.stat().st_size * 2 // 3]
    whole.unlink()
    (root / "train" / "jump" / "damaged.mp4").write_bytes(cut_off)
    (root / "test" / "jump" / "v_jump_g01_c01.mp4").write_bytes(
        (root / "train" / "jump" / "2.mp4").read_bytes() + b"\0"
    )
    DrawnVideo(name="v_jump_g01_c02.mp4", num_frames=5).write(root / "train" / "jump")
    return root


def checked(manifest: Manifest, **options: object) -> dict[str, Checked]:
    found = list(check(manifest, **{"depth": "decode", "workers": 2, "time_limit": 20.0, **options}))  # type: ignore[arg-type]
    assert len(found) == len(manifest.videos)
    return {one.video.id: one for one in found}


def test_every_fault_is_typed_and_every_frame_counted(folder: Path) -> None:
    found = checked(read_manifest(folder))
    faults = {name: one.facts["error"]["kind"] for name, one in found.items() if one.facts["error"]}
    assert faults == {
        "train/jump/empty.mp4": "empty",
        "train/jump/text.avi": "unreadable",
        "train/jump/damaged.mp4": "broken",
    }
    assert [found[f"train/jump/{number}.mp4"].facts["frames"] for number in range(3)] == [6, 7, 8]
    damaged = found["train/jump/damaged.mp4"]
    assert 20 < damaged.facts["frames"] < 60
    assert damaged.columns is None
    turned = found["train/turn left/turned.mp4"].facts
    assert (turned["width"], turned["height"], turned["rotation"], turned["fps"]) == (64, 96, 90, pytest.approx(30))


def test_the_report_names_duplicates_leaks_and_sides(folder: Path) -> None:
    manifest = read_manifest(folder)
    result = report(manifest, list(checked(manifest).values()))
    assert json.loads(json.dumps(result)) == result
    assert (result["videos"], result["readable"]) == (11, 8)
    assert result["faults"] == {"empty": 1, "unreadable": 1, "broken": 1}
    assert result["duplicates_across_splits"] == [["test: test/jump/copy.mp4", "train: train/jump/0.mp4"]]
    assert result["duplicates_with_different_labels"] == [
        ["jump: train/jump/1.mp4", "turn left: train/turn left/mislabelled.mp4"]
    ]
    assert result["groups_across_splits"] == {"jump/g01": ["test", "train"]}
    assert result["classes"] == {"jump": 9, "turn left": 2}
    assert result["imbalance"] == 4.5
    assert result["classes_missing_in_splits"] == {"test": ["turn left"]}
    assert result["flip_sensitive"] == ["turn left"]
    said = "\n".join(problems(result))
    for word in (
        "3 of 11 videos can't be read",
        "1 file listed more than once in several splits",
        "1 group",
        "'test' has",
    ):
        assert word in said


def test_a_sound_set_has_no_problems(folder: Path, tmp_path: Path) -> None:
    for number in (10, 11):
        DrawnVideo(name=f"{number}.mp4", num_frames=number).write(tmp_path)
    manifest = read_manifest(folder)
    train = [video for video in manifest.videos if video.path.name in ("0.mp4", "turned.mp4")]
    test = [
        replace(train[0], id=f"test{number}", path=tmp_path / f"{number}.mp4", split="test", label=label)
        for number, label in ((10, "jump"), (11, "turn left"))
    ]
    sound = replace(manifest, videos=(*train, *test))
    assert problems(report(sound, list(checked(sound).values()))) == []
    alone = replace(manifest, videos=tuple(train))
    assert problems(report(alone, list(checked(alone).values()))) == [
        "no readable video is in a split 'test' or 'val' (splits: train): there is nothing to evaluate on"
    ]


def written(path: Path, pictures: Sequence[NDArray[np.uint8]], *, crf: int = 20, codec: str = "libx264") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, options={} if codec == "gif" else {"crf": str(crf)})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def scene(seed: int, *, scale: int = 1, frames: int = 16) -> list[NDArray[np.uint8]]:
    """A static background with a square that moves over it."""
    ground = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    pictures = []
    for number in range(frames):
        picture = np.kron(ground, np.ones((8 * scale, 8 * scale, 1), dtype=np.uint8))
        picture[8 * scale : 24 * scale, 2 * number * scale : (2 * number + 16) * scale] = 255 * (seed % 2)
        pictures.append(picture)
    return pictures


def test_odd_videos_and_copies_that_were_encoded_again_are_named(tmp_path: Path) -> None:
    for number, (split, label) in enumerate((s, c) for s in ("train", "test") for c in ("run", "walk")):
        written(tmp_path / split / label / "a.mp4", scene(number))
    written(tmp_path / "test" / "run" / "copy.mp4", scene(0, scale=2), crf=34)
    written(tmp_path / "test" / "run" / "other.mp4", scene(0)[::-1])  # the same place, another motion
    written(tmp_path / "train" / "run" / "single.mp4", scene(9, frames=1))
    written(tmp_path / "train" / "run" / "tiny.mp4", [picture[:16, :24] for picture in scene(10)])
    written(tmp_path / "train" / "run" / "moving.gif", scene(11), codec="gif")
    grown = tmp_path / "train" / "run" / "grown.ts"
    written(tmp_path / "small.ts", scene(12))
    written(tmp_path / "large.ts", scene(13, scale=2))
    grown.write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())
    for name in ("small.ts", "large.ts"):
        (tmp_path / name).unlink()
    manifest = read_manifest(tmp_path)
    result = report(manifest, list(checked(manifest).values()))
    assert result["near_duplicates_across_splits"] == [["test: test/run/copy.mp4", "train: train/run/a.mp4"]]
    assert result["one_frame"] == ["train/run/single.mp4"]
    assert result["tiny"] == ["train/run/tiny.mp4 (24 x 16)"]
    assert result["gifs_among_videos"] == ["train/run/moving.gif"]
    assert result["several_sizes"] == ["train/run/grown.ts"]
    assert (
        len([problem for problem in problems(result) if "such as train/run" in problem or "copy.mp4" in problem]) == 5
    )


def test_the_written_manifest_reads_back_with_its_table(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    out = tmp_path / "checked.jsonl"
    write_checked(manifest, list(checked(manifest).values()), out)
    again = read_manifest(out)
    assert again.classes == manifest.classes
    for one, other in zip(manifest.videos, again.videos, strict=True):
        assert (one.path.resolve(), one.label, one.split) == (other.path.resolve(), other.label, other.split)
    by_name = {video.path.name: video for video in again.videos}
    assert by_name["empty.mp4"].error == "the file is empty"
    assert by_name["0.mp4"].error is None
    assert by_name["0.mp4"].frames == 6
    row = json.loads(out.read_text().splitlines()[0])
    assert list(row) == [
        *("path", "label", "split", "group", "frames", "fps", "seconds", "width", "height", "rotation"),
        *("mirrored", "sizes", "damaged", "hash", "error"),
    ]
    table = FrameTable.beside(out)
    assert table is not None
    path = by_name["turned.mp4"].path
    index = table.index(by_name["turned.mp4"].id, num_bytes=path.stat().st_size)
    assert index is not None
    assert index.times.tolist() == scan(path).times.tolist()
    assert (index.rotation, index.access) == (90, "seek")
    assert table.row(by_name["empty.mp4"].id) is None


def test_an_interrupted_check_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, partial = read_manifest(folder), tmp_path / "partial"
    whole = checked(manifest)
    running = check(manifest, depth="decode", workers=1, time_limit=20, partial=partial)
    seen = [next(running) for _ in range(5)]
    running.close()
    with partial.open("a") as file:
        file.write('{"path": "torn')
    calls = tmp_path / "calls"
    look = checking._Check.__call__

    def counted(self: checking._Check, video: object) -> object:
        with calls.open("a") as file:
            file.write("x")
        return look(self, video)  # type: ignore[arg-type]

    monkeypatch.setattr(checking._Check, "__call__", counted)
    resumed = checked(manifest, partial=partial)
    assert len(calls.read_text()) == len(manifest.videos) - len(seen)
    for name, one in whole.items():
        assert resumed[name].facts == one.facts
        assert (resumed[name].columns is None) == (one.columns is None)
        for column, values in (one.columns or {}).items():
            assert (resumed[name].columns or {})[column].tolist() == values.tolist()
    # A file that changed is looked at again, and so is everything at another depth.
    calls.unlink()
    os.utime(manifest.videos[2].path, (1, 1))
    checked(manifest, partial=partial)
    assert len(calls.read_text()) == 1
    calls.unlink()
    checked(manifest, partial=partial, depth="scan")
    assert len(calls.read_text()) == len(manifest.videos)


def test_a_video_that_hangs_or_crashes_its_decoder_is_a_broken_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = checking._Check.__call__

    def dangerous(self: checking._Check, video: object) -> object:
        if video.path.name == "0.mp4":  # type: ignore[attr-defined]
            time.sleep(1000)
        if video.path.name == "1.mp4":  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return look(self, video)  # type: ignore[arg-type]

    monkeypatch.setattr(checking._Check, "__call__", dangerous)
    found = checked(read_manifest(folder), time_limit=1.0)
    slow, crash = (found[f"train/jump/{number}.mp4"].facts["error"] for number in range(2))
    assert slow == {"kind": "slow", "reason": "it took longer than 1 s"}
    assert crash["kind"] == "crash"
    assert "SIGKILL" in crash["reason"]
    assert found["train/jump/2.mp4"].facts["error"] is None


def test_folders_of_pictures_are_checked_picture_by_picture(tmp_path: Path) -> None:
    for name, count in (("good", 12), ("short", 3), ("bad", 4)):
        (tmp_path / name).mkdir()
        for number in range(1, count + 1):
            Image.new("RGB", (16, 12), (number, 0, 0)).save(tmp_path / name / f"img_{number:05d}.jpg")
    (tmp_path / "bad" / "img_00003.jpg").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("good 12 0\nshort 5 0\nbad 4 1\n")
    found = checked(read_manifest(tmp_path / "list.txt"))
    assert found["good"].facts | {"hash": None} == {
        **{"frames": 12, "fps": 25.0, "seconds": 0.48, "width": 16, "height": 12, "rotation": 0},
        **{"mirrored": False, "sizes": None, "damaged": None},
        **{"hash": None, "error": None},
    }
    assert "the list says 5 frames, the folder holds 3" in found["short"].facts["error"]["reason"]
    assert found["bad"].facts["frames"] == 2
    assert "img_00003.jpg" in found["bad"].facts["error"]["reason"]
