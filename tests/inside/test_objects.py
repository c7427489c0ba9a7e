from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videokd.clips.dataset import ClipDataset
from videokd.clips.loader import collate
from videokd.clips.manifest import Manifest, Video
from videokd.clips.synthetic import SIZE, draw, write_clip
from videokd.contracts import Clip, Dense, InputSpec
from videokd.inside.objects import on_object


def detector_videos(folder: Path, count: int) -> list[Video]:
    """Videos in which a white spot lies on the middle of each mover of a drawn clip, and all else is black."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    videos = []
    for number in range(count):
        drawing = draw("test", number)
        frames = np.zeros_like(drawing.frames)
        for mover in drawing.factors["movers"]:
            for frame, (x, y), radius in zip(frames, mover["centre"], mover["radius"]):
                frame[np.hypot(columns - x, rows - y) < max(0.4 * radius, 1.5)] = 255
        write_clip(folder / f"{number}.mp4", replace(drawing, frames=frames))
        videos.append(Video(id=f"{number}", path=folder / f"{number}.mp4", label="a", factors=drawing.factors))
    return videos


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(frames=16, size=64, crop_fraction=1.0),
        InputSpec(frames=5, size=32, sampling=Dense(stride=3), crop_fraction=0.8),
        InputSpec(frames=8, size=48, sampling=Dense(stride=2), crop_fraction=0.6),  # from a frame of 80, if it were
    ],
    ids=["whole", "small", "middle"],
)
def test_what_a_detector_sees_lies_on_the_object_wherever_the_view_is(tmp_path: Path, spec: InputSpec) -> None:
    videos = detector_videos(tmp_path, 24)
    dataset = ClipDataset(Manifest(tmp_path / "list", tuple(videos), ("a",)), {"student": spec})
    clip = collate([dataset[place] for place in range(24)]).clips["student"]
    assert isinstance(clip, Clip)
    seen = (clip.frames.float().mean(dim=2) > 128).float()
    found = on_object(seen, clip, videos, dataset)
    known = ~found.share.isnan()
    assert known.sum() > 20  # the spot may be outside of the crop
    assert found.share[known].mean() > 0.97
    # Chance: an even map has as much there as the object has room.
    even = on_object(torch.ones_like(seen), clip, videos, dataset)
    assert torch.allclose(even.share, even.area)
    assert 0.05 < even.area.mean() < 0.4
    # A map of another moment is off the objects that move.
    assert on_object(seen.flip(1), clip, videos, dataset).share[:4].nanmean() < 0.8


def test_share_and_area_match_a_hand_computed_case(tmp_path: Path) -> None:
    # The crop is the 32 x 32 in the middle of 64 x 64, at 16 x 16: the box is x 4..8, y 6..7.5 of the view.
    video = Video(id="a", path=tmp_path / "a.mp4", label="a", factors={"boxes": [[24, 28, 32, 31]] * 4})
    spec = InputSpec(frames=2, size=16, crop_fraction=0.5)
    dataset = ClipDataset(Manifest(tmp_path / "list", (video,), ("a",)), {"student": spec})
    assert dataset.short_side == 32  # the frame is made smaller, then cut to 16 x 16
    clip = Clip(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), torch.tensor([[0.0, 0.125]]))
    saliency = torch.zeros(1, 2, 16, 16)
    saliency[:, :, 7, 5], saliency[:, :, 0, 0] = 1.0, 0.5  # of which half is on the box, and nothing
    found = on_object(saliency, clip, [video], dataset)
    assert found.area.item() == pytest.approx(4 * 1.5 / 16**2)
    assert found.share.item() == pytest.approx(0.5 / 1.5)
    assert on_object(0 * saliency, clip, [video], dataset).share.isnan().all()


def test_frames_are_not_made_larger_before_they_are_cut(tmp_path: Path) -> None:
    # A crop of 0.6 is 38 of 64 pixels, whatever the model's size.
    video = Video(id="a", path=tmp_path / "a.mp4", label="a", factors={"boxes": [[24, 28, 32, 31]] * 2})
    spec = InputSpec(frames=2, size=64, crop_fraction=0.6)
    dataset = ClipDataset(Manifest(tmp_path / "list", (video,), ("a",)), {"student": spec})
    clip = Clip(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8), torch.tensor([[0.0, 0.125]]))
    found = on_object(torch.ones(1, 2, 64, 64), clip, [video], dataset)
    assert found.area.item() == pytest.approx(8 * 3 / 38**2)


def test_of_videos_without_boxes_nothing_is_known(tmp_path: Path) -> None:
    video = Video(id="a", path=tmp_path / "a.mp4", label="a")
    dataset = ClipDataset(Manifest(tmp_path / "list", (video,), ("a",)), {"student": InputSpec(frames=2, size=16)})
    clip = Clip(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 2))
    found = on_object(torch.ones(1, 2, 16, 16), clip, [video], dataset)
    assert found.share.isnan().all()
    assert found.area.isnan().all()
