"""A motion teacher: any video network, fed what changes between frames instead of the frames."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_small

from videokd.contracts import Outputs
from videokd.models.model import ModelConfig, VideoModel
from videokd.models.published import published

Signal = Literal["difference", "dis", "farneback", "raft"]
"""What the network sees: differences of neighbouring frames; optical flow by OpenCV (extra `flow`), of dense inverse
search [Kroeger et al. 2016] or polynomials [Farneback 2003]; or by torchvision's RAFT [Teed and Deng 2020]."""


@dataclass(frozen=True, kw_only=True)
class Motion(ModelConfig):
    """A video network that is fed motion, as the flow stream of two-stream networks [Simonyan and Zisserman 2014], and
    a teacher of students that see frames alone [MARS, Crasto et al. 2019].

    It takes one frame more than its network, of the same clip, and its steps lie half-way between frames. Motion comes
    as pictures in [0, 255] around 127.5, so that `of`'s own mean and deviation apply: half the difference, or flow to
    the right, flow down, and its length, cut off at `reach` pixels. (Two-stream networks have the first two alone;
    the third keeps networks of three channels, and their weights, as they are.)
    """

    of: ModelConfig
    """The network; a video model with an `input`."""
    signal: Signal = "difference"
    reach: float = 20.0
    """Pixels between frames beyond which flow is cut off."""
    flow_weights: str = "Raft_Small_Weights.C_T_V2"
    """Of "raft": a torchvision name or a local file."""

    @property
    def is_published(self) -> bool:
        """Whether its network is."""
        return self.of.is_published

    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "MotionModel":
        """The network behind the motion.

        Raises:
            ValueError: if `of` is no video model, OpenCV is wanted and not installed, or RAFT can't take the size.
        """
        if not self.reach > 0:
            raise ValueError(f"reach counts pixels: above 0, got {self.reach}")
        network = self.of.build(classes, pretrained=pretrained)
        if not isinstance(network, VideoModel) or isinstance(network, MotionModel):
            raise ValueError(f"motion is seen by a video model, not by {type(network).__name__}")
        raft = None
        if self.signal in ("dis", "farneback"):
            _opencv()
        elif self.signal == "raft":
            if network.input.size < 128 or network.input.size % 8:
                raise ValueError(f"RAFT takes sizes from 128 px that 8 divides, got size={network.input.size}")
            raft = raft_small(weights=None)
            if pretrained and (found := published(self.flow_weights, head="")):
                found.load(raft)
            raft.requires_grad_(False)
        # What the network found out of itself goes with it.
        return MotionModel(replace(self, of=network.config), network, raft)


class MotionModel(VideoModel):
    """See `Motion`. Its taps are its network's."""

    def __init__(self, config: Motion, network: VideoModel, raft: nn.Module | None) -> None:
        stages = [tap for tap in network.taps if tap not in ("frames", "clip")]
        spec = replace(network.input, frames=network.input.frames + 1)
        super().__init__(config, network.classes, taps=stages, input=spec)
        self.network = network
        self.raft = raft
        self.signal: Signal = config.signal
        self.reach = config.reach
        self.has_logits = network.has_logits

    @property
    def trunk(self) -> nn.Module:
        """See `Model.trunk`."""
        return self.network.trunk

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        """The network on motion (B, 3, T - 1, H, W), from frames at `times` (B, T)."""
        return self.network.run(video, (times[:, 1:] + times[:, :-1]) / 2, taps)

    def entered(self, frames: Tensor) -> Tensor:
        """Frames uint8 (B, T, 3, H, W) to motion as the network takes it."""
        with torch.no_grad():
            motion = self._difference(frames) if self.signal == "difference" else self._flow(frames)
        return self.network.entered(motion)

    def _difference(self, frames: Tensor) -> Tensor:
        bright = frames.to(self.mean.dtype)
        half: Tensor = (bright[:, 1:] - bright[:, :-1]) / 2
        around: Tensor = half + 127.5
        return around

    def _flow(self, frames: Tensor) -> Tensor:
        flow = self._raft(frames) if self.raft is not None else _opencv_flow(frames, self.signal)
        bounded = (flow.to(self.mean) / self.reach).clamp(-1, 1)
        length = bounded.square().sum(dim=2, keepdim=True).sqrt().clamp(max=1)
        pictures: Tensor = torch.cat([127.5 + 127.5 * bounded, 255 * length], dim=2)
        return pictures

    def _raft(self, frames: Tensor) -> Tensor:  # (B, T - 1, 2, H, W), pixels
        assert self.raft is not None
        self.raft.eval()
        pictures = frames.to(self.mean.dtype) / 127.5 - 1
        before, after = pictures[:, :-1].flatten(0, 1), pictures[:, 1:].flatten(0, 1)
        found: Tensor = self.raft(before, after, num_flow_updates=6)[-1]
        flows: Tensor = found.unflatten(0, (len(frames), -1))
        return flows


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _opencv_flow(frames: Tensor, signal: Signal) -> Tensor:  # (B, T - 1, 2, H, W), pixels
    cv2 = _opencv()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) if signal == "dis" else None
    flows = []
    for clip in rearrange(frames, "b t c h w -> b t h w c").cpu().numpy():
        grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY) for picture in clip]
        for before, after in pairwise(grey):
            if search is not None:
                flows.append(search.calc(before, after, None))
            else:
                flows.append(cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0))
    found = torch.from_numpy(np.stack(flows))
    return rearrange(found, "(b t) h w c -> b t c h w", b=len(frames)).to(frames.device)


def _opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ValueError(f"this optical flow needs OpenCV ({error}): pip install 'videokd[flow]'") from error
