from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from videokd.clips.pictures import Box, Cut, cut_out
from videokd.clips.reading import read, read_cuts


def smooth(height: int, width: int) -> NDArray[np.uint8]:  # (H, W, 3)
    """Red rises downwards, green to the right; no detail that subsampled colours would lose."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 200 // height + 20, columns * 200 // width + 20, 0 * rows + 90], axis=2).astype(np.uint8)


def write(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=30, options={"qp": "0"} if options is None else options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path: Path, box: Box | None, size: tuple[int, int] | int | None = None) -> torch.Tensor:  # (3, H, W) float
    return read_cuts(path, [Cut([0], box, size)])[0].frames[0].float()


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "box", "lands_at"),
    [
        ("yuv444p", "libx264", Box(7, 5, 30, 41), (7, 5)),
        ("yuv420p", "libx264", Box(8, 6, 30, 40), (8, 6)),
        ("yuv420p", "libx264", Box(7, 5, 30, 41), (6, 4)),  # the next pixel up and left with a colour sample
        ("yuv422p", "libx264", Box(7, 5, 30, 40), (7, 4)),
        ("yuv420p10le", "libx264", Box(8, 6, 30, 40), (8, 6)),
        ("gray", "ffv1", Box(7, 5, 30, 41), (7, 5)),
        ("bgra", "ffv1", Box(7, 5, 30, 41), (7, 5)),
        ("nv12", "rawvideo", Box(7, 5, 30, 41), (7, 5)),  # two colours in a plane: cropped as RGB
    ],
)
def test_a_box_is_that_part_of_the_whole_picture(
    pix_fmt: str, codec: str, box: Box, lands_at: tuple[int, int], tmp_path: Path
) -> None:
    options = {"qp": "0"} if codec == "libx264" else {}
    path = write(tmp_path / "video.mkv", [smooth(64, 96)], codec=codec, pix_fmt=pix_fmt, options=options)
    whole = read(path, [0]).frames[0].float()
    part = cut(path, box)
    top, left = lands_at
    expected = whole[:, top : top + box.height, left : left + box.width]
    assert part.shape == expected.shape
    # A pixel further would be 3 levels of red or 2 of green. More bits than 8 are dithered.
    assert (part - expected).abs().mean() < (1 if "10" in pix_fmt else 0.2)


@pytest.mark.parametrize("colours", ["colormatrix=bt709", "fullrange=on", "colormatrix=bt2020nc"])
def test_a_part_has_the_colours_of_the_whole(colours: str, tmp_path: Path) -> None:
    red = np.zeros((64, 96, 3), dtype=np.uint8)
    red[..., 0] = 220
    path = write(tmp_path / "video.mkv", [red], options={"qp": "0", "x264-params": colours})
    whole = read(path, [0]).frames[0].float()
    assert (whole.mean((1, 2)) - torch.tensor([220.0, 0.0, 0.0])).abs().max() > 5  # encoded as if it were BT.601
    torch.testing.assert_close(cut(path, Box(8, 8, 32, 32)), whole[:, 8:40, 8:40], atol=1, rtol=0)


def test_a_box_of_a_picture_with_a_palette(tmp_path: Path) -> None:
    Image.fromarray(smooth(64, 96)).quantize(256).save(tmp_path / "palette.png")
    whole = read(tmp_path / "palette.png", [0]).frames[0].float()
    assert torch.equal(cut(tmp_path / "palette.png", Box(7, 5, 30, 41)), whole[:, 7:37, 5:46])


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_box_lies_in_the_picture_as_displayed(rotation: int, tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", [smooth(64, 96)], pix_fmt="yuv444p", rotation=rotation)
    whole = read(path, [0]).frames[0].float()
    assert whole.shape[1:] == ((96, 64) if rotation in (90, 270) else (64, 96))
    box = Box(4, 9, 31, 20)
    torch.testing.assert_close(cut(path, box), whole[:, 4:35, 9:29], atol=1, rtol=0)
    assert cut(path, box, (62, 10)).shape == (3, 62, 10)
    # Still the same part when it is resized on the way: red and green tell the place.
    small = cut(path, box, (31, 10))
    torch.testing.assert_close(small.mean((1, 2)), cut(path, box).mean((1, 2)), atol=1, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (48, 20), 24])
def test_a_resized_box_is_close_to_torch_antialiased_bilinear(size: tuple[int, int] | int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    path = write(tmp_path / "video.mkv", [noise], pix_fmt="yuv444p")
    whole, box = read(path, [0]).frames, Box(10, 20, 48, 60)
    wanted = cut_out(whole, Cut([0], box, size))[0].float()
    ours = cut(path, box, size)
    assert ours.shape == wanted.shape == (3, *(size if isinstance(size, tuple) else (24, 30)))
    assert (ours - wanted).abs().mean() < 3


def test_pictures_of_another_size_midway_are_cut_at_the_same_place(tmp_path: Path) -> None:
    small = write(tmp_path / "small.ts", [smooth(64, 96)] * 3)
    large = write(tmp_path / "large.ts", [smooth(128, 192)] * 3)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    clip = read_cuts(joined, [Cut([0, 4], Box(16, 24, 32, 48))])[0].frames.float()
    torch.testing.assert_close(clip[0].mean((1, 2)), clip[1].mean((1, 2)), atol=3, rtol=0)


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(0, 0, 65, 5), Box(0, 90, 5, 7), Box(0, 0, 0, 5)])
def test_a_box_outside_of_the_picture_is_refused(box: Box, tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", [smooth(64, 96)])
    with pytest.raises(ValueError, match=r"Box\(.* does not lie in a picture 64 pixels high and 96 wide"):
        cut(path, box)
    with pytest.raises(ValueError, match="does not lie in a picture 64 pixels high and 96 wide"):
        cut_out(read(path, [0]).frames, Cut([0], box))


def test_cutting_out_keeps_the_pixels_of_a_box_of_the_right_size() -> None:
    pictures = torch.arange(2 * 3 * 6 * 8, dtype=torch.uint8).view(2, 3, 6, 8)
    part = cut_out(pictures, Cut([0, 1], Box(1, 2, 4, 3), (4, 3)))
    assert torch.equal(part, pictures[..., 1:5, 2:5])
