"""Whatever a file holds, it ends in frames or in one typed error, and never in a hang or in the death of the run."""

import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from drawn_videos import DrawnVideo

from videokd.clips.backends import reader_of
from videokd.clips.dataset import ClipDataset
from videokd.clips.loader import batches
from videokd.clips.manifest import Manifest, Video
from videokd.clips.order import EveryClip
from videokd.clips.pictures import Cut
from videokd.clips.reading import VideoError
from videokd.clips.workers import Workers
from videokd.contracts import InputSpec, Segments

REAL_DATA = Path(os.environ.get("VIDEOKD_REAL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

SMALL = [
    DrawnVideo(name="small.mp4", num_frames=24, options={"g": "8"}),
    DrawnVideo(name="fragments.mp4", num_frames=24, container_options={"movflags": "frag_keyframe+empty_moov"}),
    DrawnVideo(name="small.mkv", num_frames=24, options={"g": "8"}),
    DrawnVideo(name="small.avi", codec="mpeg4", num_frames=24, max_b_frames=2),
    DrawnVideo(name="small.ts", num_frames=24, options={"g": "8"}),
    DrawnVideo(name="small.webm", codec="libvpx-vp9", num_frames=24, options={"deadline": "realtime", "cpu-used": "8"}),
]
KINDS_OF_DAMAGE = 6
DAMAGED_FILES = 90  # of every small file


@dataclass(frozen=True)
class Damaged:
    """A small file with damage that its seed describes."""

    source: Path
    seed: int

    def write(self, folder: Path) -> Path:
        rng, data = random.Random(self.seed), bytearray(self.source.read_bytes())
        kind = self.seed % KINDS_OF_DAMAGE
        if kind == 0:  # single bits
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:  # bytes of the header
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(min(len(data), 1200))] = rng.randrange(256)
        elif kind == 2:  # bytes of the end, where MP4 has its tables
            for _ in range(rng.randint(1, 8)):
                data[-rng.randrange(1, min(len(data), 1200))] = rng.randrange(256)
        elif kind == 3:  # cut off
            del data[rng.randrange(len(data)) :]
        elif kind == 4:  # a hole of zeros or of noise
            start, length = rng.randrange(len(data)), rng.randint(1, 2000)
            data[start : start + length] = rng.choice([bytes(length), rng.randbytes(length)])[: len(data) - start]
        else:  # a part moved elsewhere
            start, length = rng.randrange(len(data)), rng.randint(1, 500)
            part = data[start : start + length]
            del data[start : start + length]
            place = rng.randrange(len(data))
            data[place:place] = part
        path = folder / f"{self.seed}_{self.source.name}"
        path.write_bytes(data)
        return path


def outcome(damaged: Damaged) -> str:
    """How reading it ends; anything but frames or a VideoError is a fault of ours, and raises."""
    path = damaged.write(damaged.source.parent)
    video = Video(id=path.name, path=path)
    try:
        reader = reader_of(video)
        index = reader.scan(video)
        assert index.num_frames > 0
        numbers = sorted({0, index.num_frames // 2, index.num_frames - 1})
        for cut in (Cut(numbers), Cut(numbers[-1:], size=16)):
            (clip,) = reader.read(video, [cut], index=index)
            assert len(clip.frames) == len(cut.numbers)
        return "frames"
    except VideoError as error:
        return error.fault
    finally:
        path.unlink()


def test_hundreds_of_damaged_files_end_in_frames_or_one_typed_error(tmp_path: Path) -> None:
    sources = [video.write(tmp_path) for video in SMALL]
    tasks = [Damaged(source, seed) for source in sources for seed in range(DAMAGED_FILES)]
    assert len(tasks) >= 500
    found: Counter[str] = Counter()
    with Workers(outcome, workers=2, time_limit=20, ahead=20) as pool:
        for task in tasks:
            pool.submit(task)
        while pool.pending:
            for finished in pool.wait():
                if finished.failure is not None:
                    assert finished.failure.kind != "raised", finished.failure.reason
                found[finished.result or finished.failure.kind] += 1  # type: ignore[union-attr]
    assert found.total() == len(tasks)
    assert found["frames"] > 50  # much damage is harmless
    assert found["unreadable"] + found["broken"] + found["no frames"] > 100  # and much is not
    assert found["time limit"] + found["crashed"] < 5


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "robust").is_dir(), reason="set VIDEOKD_REAL_DATA to a folder with robust/")
def test_a_set_of_every_strange_file_is_loaded_to_its_end() -> None:
    paths = sorted(path for path in (REAL_DATA / "robust").glob("*/*") if path.is_file())
    videos = tuple(Video(id=str(path), path=path, label="any") for path in paths)
    clips = ClipDataset(
        Manifest(REAL_DATA / "list.csv", videos, ("any",)),
        {"student": InputSpec(frames=4, size=32, sampling=Segments())},
    )
    found = list(batches(clips, EveryClip(len(videos), 8), workers=2, on_bad_video="skip", time_limit=20))
    delivered = [name for batch in found for name in batch.id]
    reasons = [reason for batch in found for reason in batch.skipped]
    assert len(delivered) + len(reasons) == len(videos)
    assert len(set(delivered)) == len(delivered)
    assert 55 < len(delivered) < len(videos) - 10
    assert not any("took longer" in reason for reason in reasons)
