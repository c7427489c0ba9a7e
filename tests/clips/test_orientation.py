"""How a display matrix is applied: any of the eight ways of turning and mirroring, exactly."""

import io
import random
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_videos import DrawnVideo, decoded_sequentially
from numpy.typing import NDArray
from PIL import Image

from videokd.clips.backends import reader_of
from videokd.clips.manifest import Video
from videokd.clips.pictures import Box, Cut, Orientation, orientation_of_matrix
from videokd.clips.reading import VideoError, read, read_cuts, scan, walk
from videokd.clips.table import index_of, row_of

ONE = 1 << 16  # 1 in the 16.16 numbers of a display matrix
EIGHT = [
    (a, b, c, d)
    for a, b, c, d in product((-ONE, 0, ONE), repeat=4)
    if a * b == c * d == a * c == b * d == 0 and a * d - b * c != 0
]


def matrix(a: int, b: int, c: int, d: int) -> NDArray[np.int64]:
    return np.array([[a, b, 0], [c, d, 0], [0, 0, 1 << 30]])


def with_matrix(source: Path, target: Path, numbers: NDArray[np.int64]) -> Path:
    """A copy of an MP4 file whose video track has this display matrix."""
    data = bytearray(source.read_bytes())
    track_header = data.index(b"tkhd") + 4
    place = track_header + 40  # of version 0: flags, dates, track, duration, layer, volume come before
    assert data[track_header] == 0
    assert struct.unpack(">9i", data[place : place + 36])[0] == ONE, "the source is upright"
    data[place : place + 36] = struct.pack(">9i", *numbers.ravel().tolist())
    target.write_bytes(data)
    return target


def applied(picture: NDArray[np.uint8], a: int, b: int, c: int, d: int) -> NDArray[np.uint8]:
    """The displayed picture pixel by pixel, as the matrix says: the pixel (x, y) goes to (ax + cy, bx + dy)."""
    height, width = picture.shape[:2]
    places = {
        ((a * x + c * y) // ONE, (b * x + d * y) // ONE): picture[y, x] for y in range(height) for x in range(width)
    }
    left, top = (min(place[axis] for place in places) for axis in (0, 1))
    right, bottom = (max(place[axis] for place in places) for axis in (0, 1))
    shown = np.zeros((bottom - top + 1, right - left + 1, 3), dtype=np.uint8)
    for (x, y), pixel in places.items():
        shown[y - top, x - left] = pixel
    return shown


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours of full resolution, so that any box can be cut exactly."""
    folder = tmp_path_factory.mktemp("upright")
    return DrawnVideo(name="upright.mp4", num_frames=3, width=48, height=32, pix_fmt="yuv444p").write(folder)


@pytest.mark.parametrize("numbers", EIGHT, ids=lambda numbers: str([n // ONE for n in numbers]))
def test_each_of_the_eight_matrices_is_applied_exactly_with_any_box(
    numbers: tuple[int, int, int, int], upright: Path, tmp_path: Path
) -> None:
    stored = decoded_sequentially(upright)[1].permute(1, 2, 0).numpy()
    expected = torch.from_numpy(applied(stored, *numbers)).permute(2, 0, 1)
    path = with_matrix(upright, tmp_path / "turned.mp4", matrix(*numbers))
    index = scan(path)
    assert (index.height, index.width) == expected.shape[1:]
    assert torch.equal(read(path, [1], index=index).frames[0], expected)
    (walked,) = walk(path, Cut([1]), index=index)
    assert torch.equal(walked, expected)
    rng = random.Random(1)
    boxes = []
    for _ in range(12):
        top, left = rng.randrange(index.height - 4), rng.randrange(index.width - 4)
        box = Box(top, left, rng.randint(1, index.height - top), rng.randint(1, index.width - left))
        boxes.append(box)
    for box, clip in zip(boxes, read_cuts(path, [Cut([1], box) for box in boxes], index=index)):
        cut = expected[:, box.top : box.top + box.height, box.left : box.left + box.width]
        assert torch.equal(clip.frames[0], cut), box
    # Resized on the way: bit for bit the same part of the stored picture, resized and then turned.
    (small,) = read_cuts(path, [Cut([1], Box(4, 8, 16, 16), (8, 8))], index=index)
    rows, columns = np.mgrid[:32, :48].astype(np.uint8)
    stored_at = applied(np.stack([rows, columns, rows], axis=-1), *numbers)[4:20, 8:24]
    top, left = int(stored_at[..., 0].min()), int(stored_at[..., 1].min())
    (theirs,) = read_cuts(upright, [Cut([1], Box(top, left, 16, 16), (8, 8))])
    turned = applied(theirs.frames[0].permute(1, 2, 0).numpy(), *numbers)
    assert torch.equal(small.frames[0], torch.from_numpy(turned).permute(2, 0, 1))


def test_there_are_eight_orientations_and_a_frame_table_keeps_them(upright: Path) -> None:
    found = {orientation_of_matrix(matrix(*numbers)) for numbers in EIGHT}
    assert found == {Orientation(turns, mirrored) for turns in range(4) for mirrored in (False, True)}
    index = scan(upright)
    object.__setattr__(index, "mirrored", True)
    object.__setattr__(index, "rotation", 270)
    again = index_of(row_of(index, num_bytes=7))
    assert (again.rotation, again.mirrored) == (270, True)


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 0, 0, 0),
        (ONE, ONE, ONE, ONE),
        (ONE, 0, ONE, 0),
        (0, ONE, 0, 0),
        (-(1 << 31), -(1 << 31), -(1 << 31), -(1 << 31)),
        ((1 << 31) - 1, 0, 0, 0),
    ],
)
def test_a_matrix_that_cannot_be_inverted_means_no_turn(
    numbers: tuple[int, int, int, int], upright: Path, tmp_path: Path
) -> None:
    path = with_matrix(upright, tmp_path / "singular.mp4", matrix(*numbers))
    index = scan(path)
    assert (index.rotation, index.mirrored, index.height, index.width) == (0, False, 32, 48)
    assert torch.equal(read(path, [0, 2]).frames, decoded_sequentially(upright)[[0, 2]])


@pytest.mark.parametrize(
    ("numbers", "orientation"),
    [
        # A turn counterclockwise by an angle t is [[cos t, -sin t], [sin t, cos t]] where y points down.
        ((3 * ONE, 0, 0, ONE // 4), (0, False)),  # scale plays no part
        ((0, -5, 7, 0), (1, False)),  # nor do tiny numbers
        ((0, (1 << 31) - 1, -(1 << 31), 0), (3, False)),
        ((ONE, -ONE // 2, ONE // 2, ONE), (0, False)),  # 27 degrees: the nearest quarter is none
        ((ONE // 2, -ONE, ONE, ONE // 2), (1, False)),  # 63 degrees
        ((-ONE, ONE // 9, ONE // 9, ONE), (0, True)),  # mirrored, and turned a little
        ((-ONE, -ONE // 9, ONE // 9, -ONE), (2, False)),
    ],
)
def test_other_angles_are_rounded_to_quarter_turns(
    numbers: tuple[int, int, int, int], orientation: tuple[int, bool]
) -> None:
    assert orientation_of_matrix(matrix(*numbers)) == orientation


def test_frames_with_exif_are_read_and_turned(tmp_path: Path) -> None:
    # FFmpeg attaches EXIF to MJPEG frames, as side data of a type that PyAV does not know.
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    )
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 5  # transposed
    picture.save(content, "JPEG", exif=exif, quality=95, subsampling="4:4:4")
    path = tmp_path / "exif.mjpeg"
    path.write_bytes(content.getvalue() * 2)
    index = scan(path)
    assert (index.height, index.width, index.mirrored) == (48, 32, True)
    shown = read(path, [0]).frames[0].float()
    assert (shown - torch.from_numpy(np.array(picture)).permute(2, 1, 0).float()).abs().mean() < 3


def test_other_readers_refuse_what_they_would_show_otherwise(upright: Path, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    mirrored = with_matrix(upright, tmp_path / "mirrored.mp4", matrix(-ONE, 0, 0, ONE))
    video = Video(id="mirrored.mp4", path=mirrored)
    reader = reader_of(video, "decord")
    with pytest.raises(VideoError, match="decord does not mirror"):
        reader.read(video, [Cut([0])], index=reader.scan(video))
