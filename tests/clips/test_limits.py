"""Frames that are too large are refused before they are decoded, in videos and pictures, by a fault of their own."""

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_videos import DrawnVideo
from PIL import Image, PngImagePlugin

from videokd.clips.backends import reader_of
from videokd.clips.checking import check
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.lists import read_manifest
from videokd.clips.loader import batches
from videokd.clips.manifest import Manifest, Video
from videokd.clips.order import EveryClip
from videokd.clips.packing import Packing, pack
from videokd.clips.pictures import MAX_PIXELS, Cut
from videokd.clips.reading import VideoError, decode_whole, read, scan, walk
from videokd.contracts import InputSpec

SPEC = {"student": InputSpec(frames=2, size=16)}


def png_header(width: int, height: int, *, extra: bytes = b"", content: bytes = b"") -> bytes:
    """A PNG file that names a size and holds no picture of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", content or zlib.compress(bytes(3000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + end


def reading(path: Path, *, max_pixels: int = MAX_PIXELS) -> VideoError:
    """The error of reading the first frame of a file, found by every way to read it."""
    video = Video(id=path.name, path=path)
    reader = reader_of(video, max_pixels=max_pixels)
    with pytest.raises(VideoError) as caught:
        reader.read(video, [Cut([0])], index=reader.scan(video))
    return caught.value


def test_a_large_picture_is_refused_by_its_header_and_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for side in (8000, 20_000, 60_000, 2**31 - 1):
        path.write_bytes(png_header(side, side))
        tracemalloc.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's own, above 89 megapixels
            error = reading(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
        assert error.fault == "too large", side
        assert "bomb.png" in str(error)
    assert Image.MAX_IMAGE_PIXELS == 89478485, "Pillow's own limit is the user's"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_a_video_above_the_limit_is_refused_however_it_is_read(suffix: str, tmp_path: Path) -> None:
    path = DrawnVideo(name=f"video.{suffix}", num_frames=4).write(tmp_path)  # 96 x 64
    assert scan(path, max_pixels=96 * 64).num_frames == 4
    index, limit = scan(path), 96 * 64 - 1
    for attempt in (
        lambda: scan(path, max_pixels=limit),
        lambda: read(path, [0], max_pixels=limit),
        lambda: read(path, [0], index=index, max_pixels=limit),
        lambda: next(walk(path, Cut([0]), index=index, max_pixels=limit)),
    ):
        with pytest.raises(VideoError, match=r"96 x 64 pixels, and the limit is 6,143 pixels") as caught:
            attempt()
        assert caught.value.fault == "too large"
    fault = decode_whole(path, max_pixels=limit).fault
    assert fault is not None
    assert fault.fault == "too large"


def with_size_in_header(path: Path, *, width: int, height: int) -> Path:
    """The MP4 file with another size in its sample entry; that of the bitstream stays."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"avc1", data.index(b"stsd")) + 28
    data[entry : entry + 4] = struct.pack(">HH", width, height)
    path.write_bytes(data)
    return path


def test_an_8000_by_8000_video_is_refused_by_its_header(tmp_path: Path) -> None:
    path = DrawnVideo(name="large.mp4", num_frames=2).write(tmp_path)
    assert reading(with_size_in_header(path, width=8000, height=8000)).fault == "too large"


def test_a_header_that_names_a_smaller_size_does_not_help(tmp_path: Path) -> None:
    path = DrawnVideo(name="small.mp4", num_frames=2, width=960, height=640).write(tmp_path)
    with_size_in_header(path, width=96, height=64)
    for limit in (100_000, 600_000):
        assert reading(path, max_pixels=limit).fault == "too large"


def joined(folder: Path, codec: str, suffix: str, options: dict[str, str], pix_fmt: str = "yuv420p") -> Path:
    """A raw stream whose frames grow from 96x64 to 960x640 midway."""
    parts = [
        DrawnVideo(
            name=f"{side}.{suffix}", codec=codec, options=options, num_frames=5, width=96 * side, height=64 * side,
            pix_fmt=pix_fmt,
        ).write(folder)
        for side in (1, 10)
    ]  # fmt: skip
    path = folder / f"grows.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", "ts", {}),
        ("libx264", "h264", {}),
        ("libx265", "hevc", {"x265-params": "log-level=none:pools=1:frame-threads=1"}),
        ("mpeg2video", "mpg", {}),
        ("mjpeg", "mjpeg", {}),
    ],
)
def test_a_frame_that_grows_midway_is_refused(codec: str, suffix: str, options: dict[str, str], tmp_path: Path) -> None:
    path = joined(tmp_path, codec, suffix, options, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    assert scan(path).num_frames >= 9
    for limit in (100_000, 500_000):  # FFmpeg refuses to allocate; it allocates, and the frame is refused
        assert reading(path, max_pixels=limit).fault == "too large"


@pytest.mark.parametrize("form", ["mp4", "jpeg", "raw"])
def test_packed_videos_have_the_limit_too(form: str, tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    DrawnVideo(name="video.mp4", num_frames=4).write(tmp_path / "set" / "a")
    pack(read_manifest(tmp_path / "set"), tmp_path / "packed", Packing(format=form), workers=1)  # type: ignore[arg-type]
    (video,) = read_manifest(tmp_path / "packed").videos
    reader = reader_of(video, max_pixels=6143)
    with pytest.raises(VideoError, match="limit is 6,143") as caught:
        reader.read(video, [Cut([0])], index=reader.scan(video))
    assert caught.value.fault == "too large"
    left_out = pack(
        replace(read_manifest(tmp_path / "set"), max_pixels=6144), tmp_path / "again", Packing(format=form), workers=1  # type: ignore[arg-type]
    )  # fmt: skip
    assert left_out == []


@pytest.fixture
def mixed(tmp_path: Path) -> Manifest:
    """A good video, a large picture, and a video above a limit of 10 000 pixels."""
    good = DrawnVideo(name="good.mp4", num_frames=4).write(tmp_path)
    large = DrawnVideo(name="large.mp4", num_frames=4, width=192, height=128).write(tmp_path)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_header(7000, 9000))
    videos = tuple(Video(id=path.name, path=path, label="any") for path in (good, large, bomb))
    return Manifest(tmp_path / "list.csv", videos, ("any",), max_pixels=10_000)


@pytest.mark.parametrize("memory", [False, True])
def test_policies_hold_for_large_frames(mixed: Manifest, memory: bool) -> None:
    def served(on_bad_video: str) -> list[tuple[list[str], list[str]]]:
        clips = ClipDataset(mixed, SPEC, memory=FrameMemory() if memory else None)
        return [
            (list(batch.id), list(batch.skipped))
            for batch in batches(clips, EveryClip(3, 3), on_bad_video=on_bad_video)  # type: ignore[arg-type]
        ]

    ((ids, skipped),) = served("skip")
    assert ids == ["good.mp4"]
    assert len(skipped) == 2
    assert all("limit" in reason for reason in skipped)
    ((ids, skipped),) = served("substitute")
    assert ids == ["good.mp4"] * 3
    with pytest.raises(ValueError, match="limit is 10,000 pixels"):
        served("error")


def test_a_check_and_the_packing_count_large_frames(mixed: Manifest, tmp_path: Path) -> None:
    found = {one.video.id: one.facts["error"] for one in check(mixed, depth="decode", workers=1, time_limit=60)}
    assert found["good.mp4"] is None
    assert found["large.mp4"]["kind"] == found["bomb.png"]["kind"] == "too large"
    left_out = pack(mixed, tmp_path / "packed", Packing(format="raw"), workers=1, on_bad_video="skip")
    assert len(left_out) == 2


def test_a_limit_is_at_least_one_pixel(mixed: Manifest) -> None:
    with pytest.raises(ValueError, match="max_pixels is at least 1, got 0"):
        replace(mixed, max_pixels=0)


def truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def text_bomb(whole: bytes) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 80_000_000, zip=True)
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=info)
    return content.getvalue()


def tiff(whole: bytes) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "TIFF")
    return content.getvalue()


def postscript(whole: bytes) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "EPS")
    return content.getvalue()


def broken_exif(whole: bytes) -> bytes:
    content = io.BytesIO()
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + bytes(7)
    Image.new("RGB", (8, 8)).save(content, "JPEG", exif=exif)
    return content.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        text_bomb,
        tiff,
        postscript,
        lambda whole: b"",
        lambda whole: b"no picture",
        lambda whole: png_header(0, 0),
        lambda whole: png_header(64, 64, content=b"not compressed"),
        lambda whole: png_header(8, 8, extra=struct.pack(">I", 2**31 - 1) + b"zTXt"),
        lambda whole: b"\x89PNG\r\n\x1a\n" + bytes(40),
        lambda whole: b"RIFF\xff\xff\xff\x7fWEBPVP8X" + bytes(30),
        lambda whole: b"BM" + bytes(60),
        lambda whole: b"GIF89a\xff\xff\xff\xff\x00\x00\x00;",
    ],
)
def test_every_broken_picture_is_one_video_error(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(content, "PNG")
    for suffix in ("png", "jpg"):
        path = tmp_path / f"picture.{suffix}"
        path.write_bytes(damage(content.getvalue()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert reading(path).fault in ("unreadable", "too large")


def test_broken_exif_of_a_sound_picture_is_one_video_error_or_ignored(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(broken_exif(b""))
    video = Video(id="picture.jpg", path=path)
    with warnings.catch_warnings(), contextlib.suppress(VideoError):
        warnings.simplefilter("ignore")  # Pillow's
        assert reader_of(video).scan(video).num_frames == 1
