"""A still image is a video of one frame, alone or next to videos."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_videos import DrawnVideo
from PIL import Image

from videokd.clips.backends import IMAGE_SUFFIXES, reader_of
from videokd.clips.checking import check, write_checked
from videokd.clips.dataset import ClipDataset, video_index
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches
from videokd.clips.manifest import Manifest, Video
from videokd.clips.order import EveryClip
from videokd.clips.packing import Packing, pack
from videokd.clips.pictures import Cut
from videokd.clips.reading import VideoError
from videokd.clips.table import FrameTable
from videokd.contracts import Dense, InputSpec, Segments, SoundSpec, Timed
from videokd.predict import find_videos

RGB = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)  # (24, 32, 3)


def read_whole(path: Path) -> torch.Tensor:  # uint8 (3, H, W)
    video = Video(id=path.name, path=path)
    reader = reader_of(video)
    index = reader.scan(video)
    assert (index.num_frames, index.seconds) == (1, 1 / 25)
    (clip,) = reader.read(video, [Cut([0, 0])], index=index)
    assert torch.equal(clip.frames[0], clip.frames[1])
    assert clip.times.tolist() == [0, 0]
    assert clip.frames.shape[2:] == (index.height, index.width)
    return clip.frames[0]


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".PNG"])
def test_every_kind_of_picture_is_a_video_of_one_frame(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(RGB).save(path, quality=95)
    frame = read_whole(path)
    assert (
        frame.float() - torch.from_numpy(RGB).permute(2, 0, 1)
    ).abs().mean() < 20  # colours are stored at half the resolution
    if suffix in (".png", ".bmp"):
        assert torch.equal(frame, torch.from_numpy(RGB).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "picture.png", exif=exif)
    # What EXIF's row 0 and column 0 are on the display.
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB[::-1].transpose(1, 0, 2),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: RGB[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert torch.equal(read_whole(tmp_path / "picture.png"), torch.from_numpy(upright.copy()).permute(2, 0, 1))


def test_other_pixel_formats_become_rgb(tmp_path: Path) -> None:
    path, picture = tmp_path / "picture.png", Image.fromarray(RGB)
    wanted = torch.from_numpy(RGB).permute(2, 0, 1)
    transparent = np.concatenate([RGB, np.full((24, 32, 1), 7, np.uint8)], axis=-1)
    Image.fromarray(transparent).save(path)
    assert torch.equal(read_whole(path), wanted), "alpha is dropped, as for videos"
    picture.quantize(256).save(path, transparency=bytes(range(256)))
    assert (read_whole(path).float() - wanted).abs().mean() < 8
    grey = RGB[..., 0].astype(np.uint16) * 257
    Image.fromarray(grey).save(path)
    assert torch.equal(read_whole(path), wanted[:1].expand(3, -1, -1)), "16 bits are scaled, not clipped"
    picture.convert("1").save(path)
    assert set(read_whole(path).unique().tolist()) <= {0, 255}
    picture.convert("LA").save(path)
    assert torch.equal(read_whole(path)[0], read_whole(path)[2])
    picture.convert("CMYK").save(tmp_path / "picture.jpg", quality=95)
    assert (read_whole(tmp_path / "picture.jpg").float() - wanted).abs().mean() < 16


def test_an_animated_picture_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_whole(tmp_path / "moving.webp").unique().tolist() == [10]


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    video = Video(id="gone.png", path=tmp_path / "gone.png")
    with pytest.raises(VideoError, match="no such file") as caught:
        reader_of(video).scan(video)
    assert caught.value.fault == "missing"


@pytest.fixture
def mixed(tmp_path: Path) -> Manifest:
    """Two pictures and a video of each of two classes, in a manifest."""
    rows = []
    for name, value in (("dark", 40), ("light", 210)):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.full((48, 64, 3), value + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
            rows.append({"path": f"{name}/{number}.png", "label": name, "split": ("train", "test")[number]})
        DrawnVideo(name=f"{name}/film.mp4", num_frames=8).write(tmp_path)
        rows.append({"path": f"{name}/film.mp4", "label": name, "split": "train"})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_manifest(tmp_path / "list.jsonl")


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(frames=4, size=16, sampling=Dense(stride=2)),
        InputSpec(frames=4, size=16, sampling=Segments()),
        InputSpec(frames=4, size=16, sampling=Timed(fps=10.0)),
        InputSpec(frames=1, size=16),
    ],
    ids=lambda spec: type(spec.sampling).__name__,
)
def test_clips_of_pictures_repeat_their_frame(spec: InputSpec, mixed: Manifest) -> None:
    clips = ClipDataset(mixed, {"student": spec})
    view = clips[0]["clips"]["student"]
    assert view["frames"].shape == (spec.frames, 3, 16, 16)  # type: ignore[typeddict-item]
    assert view["frames"].unique().tolist() == [40]  # type: ignore[typeddict-item]
    (batch,) = batches(clips, EveryClip(6, 6), workers=1)
    assert (len(batch.id), len(batch.skipped)) == (6, 0)


def test_pictures_are_silent(mixed: Manifest) -> None:
    clips = ClipDataset(
        mixed, {"student": InputSpec(frames=2, size=16), "sound": SoundSpec(sample_rate=8000, seconds=0.5)}
    )
    heard = clips[0]["clips"]["sound"]
    assert not heard["heard"]  # type: ignore[typeddict-item]


def test_a_set_with_pictures_is_checked_and_read_by_its_frame_table(mixed: Manifest, tmp_path: Path) -> None:
    found = list(check(mixed, depth="decode", workers=1, time_limit=60))
    assert [one.facts["error"] for one in found] == [None] * 6
    facts = next(one.facts for one in found if one.video.id == "dark/0.png")
    assert (facts["frames"], facts["seconds"], facts["width"], facts["height"]) == (1, 0.04, 64, 48)
    write_checked(mixed, found, tmp_path / "checked.jsonl")
    again = read_manifest(tmp_path / "checked.jsonl")
    table = FrameTable.beside(again.source)
    assert table is not None
    picture = next(video for video in again.videos if video.path.suffix == ".png")
    assert table.index(picture.id, num_bytes=picture.path.stat().st_size) is not None
    assert video_index(picture, table).num_frames == 1


@pytest.mark.parametrize("form", ["mp4", "jpeg", "raw"])
def test_a_set_with_pictures_is_packed(form: str, mixed: Manifest, tmp_path: Path) -> None:
    assert pack(mixed, tmp_path / "packed", Packing(format=form), workers=1) == []  # type: ignore[arg-type]
    packed = read_manifest(tmp_path / "packed")
    clips, original = (ClipDataset(one, {"student": InputSpec(frames=4, size=16)}) for one in (packed, mixed))
    assert [video.id for video in packed.videos] == [video.id for video in mixed.videos]
    for place in range(6):
        ours, theirs = (one[place]["clips"]["student"]["frames"].float() for one in (clips, original))  # type: ignore[typeddict-item]
        assert (ours - theirs).abs().mean() < 6


def test_prediction_finds_pictures_next_to_videos(mixed: Manifest, tmp_path: Path) -> None:
    found = find_videos([tmp_path / "dark"])
    assert [video.path.name for video in found.videos] == ["0.png", "1.png", "film.mp4"]
    assert find_videos([tmp_path / "light" / "0.png"]).videos[0].path.name == "0.png"
