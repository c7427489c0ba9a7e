"""The motion teacher: what it sees of a known motion, and when."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny_models import CLASSES, SMALL
from torchvision.models.optical_flow import raft_small

from videokd.contracts import Clip, InputSpec
from videokd.models import CompactShift, Conv3d, HuggingFaceVideo, MelNetwork, Motion, load_model, save_model
from videokd.models.motion import MotionModel


def motion(signal: str, *, size: int = 128, frames: int = 2, reach: float = 10.0, **options: object) -> MotionModel:
    of = Conv3d(width=4, input=InputSpec(frames=frames, size=size, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))
    return Motion(of=of, signal=signal, reach=reach, **options).build(CLASSES).eval()  # type: ignore[arg-type]


def sliding(step: int, *, frames: int = 3, size: int = 128) -> Clip:
    """A texture that moves right by `step` pixels a frame."""
    texture = gaussian_filter(np.random.default_rng(0).uniform(size=(size, 3 * size)), 3)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    pictures = [texture[:, size - step * number : 2 * size - step * number] for number in range(frames)]
    clip = torch.from_numpy(np.stack(pictures))[None, :, None].expand(1, frames, 3, size, size)
    return Clip(clip.contiguous(), torch.arange(frames)[None] / 4)


def test_differences_are_halved_around_grey_and_normalised_by_the_network() -> None:
    model = motion("difference", size=32)
    frames = torch.zeros(1, 3, 3, 32, 32, dtype=torch.uint8)
    frames[:, 1] = 100  # +100, then -60
    frames[:, 2] = 40
    seen = model.entered(frames)
    # (127.5 + 50 - 127.5) / 51 and (127.5 - 30 - 127.5) / 51
    assert seen.shape == (1, 3, 2, 32, 32)
    assert seen[0, :, 0].unique().tolist() == pytest.approx([50 / 51])
    assert seen[0, :, 1].unique().tolist() == pytest.approx([-30 / 51])


@pytest.mark.parametrize("signal", ["dis", "farneback"])
def test_flow_finds_three_pixels_to_the_right(signal: str) -> None:
    model = motion(signal)
    pictures = model.entered(sliding(3).frames) * 51 + 127.5  # in [0, 255] again
    inside = pictures[0, :, :, 16:-16, 16:-16].mean(dim=(1, 2, 3))
    # 127.5 (1 + 3 / 10) to the right, none down, 255 x 3 / 10 in length.
    assert inside.tolist() == pytest.approx([165.75, 127.5, 76.5], abs=2.0)


def test_flow_is_cut_off_at_its_reach() -> None:
    pictures = motion("dis", reach=2.0).entered(sliding(3).frames) * 51 + 127.5
    assert pictures[0, 0, :, 16:-16, 16:-16].mean().item() == pytest.approx(255, abs=1)


def test_raft_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = raft_small(weights=None).eval()
    torch.save(own.state_dict(), tmp_path / "raft.pth")
    model = motion("raft", flow_weights=str(tmp_path / "raft.pth"))
    clip = sliding(2)
    bright = clip.frames.float() / 127.5 - 1
    with torch.no_grad():
        flow = own(bright[0, :-1], bright[0, 1:], num_flow_updates=6)[-1]
    torch.testing.assert_close(model._raft(clip.frames)[0], flow)
    with pytest.raises(ValueError, match="RAFT takes sizes from 128 px that 8 divides, got size=100"):
        motion("raft", size=100, flow_weights=str(tmp_path / "raft.pth"))


def test_it_takes_one_frame_more_and_lies_between_them() -> None:
    model = motion("difference", size=32, frames=8)
    assert model.input.frames == 9
    found = model(model.blank(), model.taps)
    assert found.features["stage1"].times[0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
    assert found.features["clip"].times.item() == 4.0


def test_what_cannot_see_motion_is_refused() -> None:
    with pytest.raises(ValueError, match="motion is seen by a video model, not by MelNetworkModel"):
        Motion(of=MelNetwork()).build(CLASSES)
    with pytest.raises(ValueError, match="not by MotionModel"):
        Motion(of=Motion(of=CompactShift(input=SMALL))).build(CLASSES)
    with pytest.raises(ValueError, match=r"above 0, got 0"):
        Motion(of=CompactShift(input=SMALL), reach=0.0).build(CLASSES)


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'videokd\[flow\]'"):
        motion("dis")


def test_a_saved_one_over_a_published_network_comes_back_alone(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "videomae", tmp_path / "source")
    model = Motion(of=HuggingFaceVideo(source=str(tmp_path / "source"))).build(None).eval()
    save_model(model, tmp_path / "saved")
    shutil.rmtree(tmp_path / "source")
    loaded = load_model(tmp_path / "saved")
    assert loaded.input == model.input
    assert torch.equal(loaded(model.blank()).logits, model(model.blank()).logits)


def test_raft_does_not_learn() -> None:
    of = Conv3d(width=4, input=InputSpec(frames=2, size=128))
    model = Motion(of=of, signal="raft").build(CLASSES, pretrained=False)
    assert not any(parameter.requires_grad for parameter in model.raft.parameters())  # type: ignore[union-attr]
    assert all(parameter.requires_grad for parameter in model.network.parameters())
