"""How frames that were seen one by one come to know of each other: shift and convolution over time."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def temporal_shift(frames: Tensor, *, num_frames: int, share: float) -> Tensor:
    """Moves `share` of the channels one frame back and as many one frame on [TSM, Lin et al. 2019].

    Frames (B*T, C, H, W) in, the same shape out; what comes from beyond the clip is zero.
    """
    video = rearrange(frames, "(b t) c h w -> b t c h w", t=num_frames)
    moved = int(video.shape[2] * share)
    from_next = F.pad(video[:, 1:, :moved], (0, 0, 0, 0, 0, 0, 0, 1))
    from_last = F.pad(video[:, :-1, moved : 2 * moved], (0, 0, 0, 0, 0, 0, 1, 0))
    shifted = torch.cat([from_next, from_last, video[:, :, 2 * moved :]], dim=2)
    return rearrange(shifted, "b t c h w -> (b t) c h w")


class ShiftedConv(nn.Module):
    """A convolution that sees its neighbours in time: temporal shift, then the convolution itself."""

    def __init__(self, conv: nn.Module, *, num_frames: int, share: float) -> None:
        super().__init__()
        self.conv = conv
        self.num_frames = num_frames
        self.share = share

    def forward(self, frames: Tensor) -> Tensor:
        """(B*T, C, H, W) -> what the convolution makes of it."""
        shifted: Tensor = self.conv(temporal_shift(frames, num_frames=self.num_frames, share=self.share))
        return shifted


class TemporalConv(nn.Module):
    """Adds to every frame's features a depthwise convolution of width 3 over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        over_time: Tensor = self.conv(frames.transpose(1, 2)).transpose(1, 2)
        return frames + over_time
