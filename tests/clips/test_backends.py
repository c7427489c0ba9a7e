import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_videos import DrawnVideo, number_in
from PIL import Image

from videokd.clips.backends import Backend, PictureReader, PlannedReader, reader_of, require
from videokd.clips.dataset import ClipDataset
from videokd.clips.manifest import Manifest, Video
from videokd.clips.pictures import Box, Cut
from videokd.clips.reading import Frames, VideoError
from videokd.contracts import InputSpec


def usable(backend: Backend) -> bool:
    try:
        require(backend)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = DrawnVideo(name="drawn.mp4", options={"g": "12"}, width=128).write(tmp_path_factory.mktemp("drawn"))
    return Video(id="drawn.mp4", path=path, label="drawn")


def read_in_a_process(backend: Backend, video: Video, cuts: Sequence[Cut]) -> list[Frames]:
    """Libraries with threads of their own can hang: not in this process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(_read, (backend, video, list(cuts))).get(timeout=120)


def _read(backend: Backend, video: Video, cuts: Sequence[Cut]) -> list[Frames]:
    reader = reader_of(video, backend)
    return reader.read(video, cuts, index=reader.scan(video))


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_backends_give_the_same_clips(backend: Backend, drawn: Video) -> None:
    if not usable(backend):
        pytest.skip(f"{backend} can't be used here")
    cuts = [Cut([3, 40, 3]), Cut([7], box=Box(0, 0, 32, 128)), Cut([5, 6], size=(20, 30))]
    for ours, theirs in zip(_read("pyav", drawn, cuts), read_in_a_process(backend, drawn, cuts), strict=True):
        assert theirs.frames.dtype == torch.uint8
        assert theirs.frames.shape == ours.frames.shape
        assert torch.equal(ours.times, theirs.times)
        assert (ours.frames.float() - theirs.frames.float()).abs().mean() < 10
    (clip,) = read_in_a_process(backend, drawn, [Cut([50, 2])])
    assert [number_in(frame) for frame in clip.frames] == [50, 2]


def test_a_backend_that_is_not_there_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, drawn: Video
) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(f"no {name}\nmore")))
    with pytest.raises(ValueError, match=r"decord can't be used here \(no decord\); pip install decord2"):
        reader_of(drawn, "decord")
    manifest = Manifest(Path("list.csv"), (drawn,), ("drawn",))
    with pytest.raises(ValueError, match=r"torchcodec can't .*pip install 'videokd\[torchcodec\]', and FFmpeg"):
        ClipDataset(manifest, {"student": InputSpec(frames=2, size=32)}, backend="torchcodec")
    with pytest.raises(ValueError, match="no reader 'opencv'; there are pyav, decord, torchcodec"):
        require("opencv")  # type: ignore[arg-type]


def test_a_backend_that_counts_other_frames_or_fails_is_a_video_error(
    monkeypatch: pytest.MonkeyPatch, drawn: Video, tmp_path: Path
) -> None:
    class Decord:
        def __init__(self, path: str, num_threads: int) -> None:
            if "broken" in path:
                raise RuntimeError("Error reading\nstack trace")

        def __len__(self) -> int:
            return 89

    module = type("decord", (), {"VideoReader": Decord})
    monkeypatch.setattr("videokd.clips.backends.require", lambda _: module)
    index = PlannedReader().scan(drawn)
    reader = reader_of(drawn, "decord")
    with pytest.raises(VideoError, match="decord counts 89 frames where decoding shows 90"):
        reader.read(drawn, [Cut([1])], index=index)
    copied = Path(shutil.copy(drawn.path, tmp_path / "broken.mp4"))
    with pytest.raises(VideoError, match=r"decord cannot read it \(Error reading\)"):
        reader.read(replace(drawn, path=copied), [Cut([1])], index=index)


@pytest.fixture
def pictures(tmp_path: Path) -> Video:
    """Twelve pictures whose red is their number, written so that names sort otherwise than numbers."""
    for number in range(1, 13):
        Image.fromarray(np.full((24, 32, 3), (10 * number, 0, 0), dtype=np.uint8)).save(tmp_path / f"img_{number}.png")
    (tmp_path / "flow_x.txt").touch()
    return Video(id="pictures", path=tmp_path, label="drawn", frames=10)


def test_a_folder_of_pictures_is_a_video(pictures: Video) -> None:
    reader = reader_of(pictures, "decord")
    assert isinstance(reader, PictureReader)
    index = reader.scan(pictures)
    assert (index.num_frames, index.height, index.width, index.fps) == (10, 24, 32, 25)
    whole, part, none = reader.read(pictures, [Cut([9, 1, 1]), Cut([0], Box(0, 0, 12, 16), 6), Cut([])], index=index)
    assert [int(frame[0, 0, 0]) for frame in whole.frames] == [100, 20, 20]
    assert whole.times.tolist() == [9 / 25, 1 / 25, 1 / 25]
    assert part.frames.shape == (1, 3, 6, 8)
    assert none.frames.shape == (0, 3, 24, 32)
    sample = ClipDataset(Manifest(Path("x"), (pictures,), ("drawn",)), {"student": InputSpec(frames=4, size=16)})[0]
    assert sample["clips"]["student"]["frames"].shape == (4, 3, 16, 16)


def test_wrong_folders_of_pictures_are_named(pictures: Video, tmp_path: Path) -> None:
    reader = PictureReader()
    with pytest.raises(VideoError, match="the list says 13 frames, the folder holds 12"):
        reader.scan(replace(pictures, frames=13))
    index = reader.scan(pictures)
    Image.new("RGB", (8, 8)).save(tmp_path / "img_3.png")
    (tmp_path / "img_4.png").write_bytes(b"nothing")
    with pytest.raises(VideoError, match=r"img_3\.png is 8x8, not 24x32"):
        reader.read(pictures, [Cut([1, 2])], index=index)
    with pytest.raises(VideoError, match=r"img_4\.png is no picture"):
        reader.read(pictures, [Cut([3])], index=index)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="holds no pictures"):
        reader.scan(replace(pictures, path=tmp_path / "empty"))
