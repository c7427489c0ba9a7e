"""Where the moving objects of the drawn videos are, in what a model sees of them, and how much it looks there."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videokd.clips.dataset import ClipDataset
from videokd.clips.manifest import Video
from videokd.clips.synthetic import FPS, SIZE
from videokd.clips.views import centred
from videokd.contracts import Clip


class OnObject(NamedTuple):
    """How much of a clip's saliency lies on what moves, and how large that is: the share that chance would give."""

    share: Tensor  # (B,), nan where the saliency is 0 everywhere, or it is not known where the object is
    area: Tensor  # (B,), nan where it is not known


def on_object(saliency: Tensor, clip: Clip, videos: list[Video], dataset: ClipDataset) -> OnObject:
    """Of saliency (B, T, H, W), not below 0, at the pixels of a clip that `dataset` made by its centred test view.

    What moves is the box around all of the class's movers in each frame, as the synthetic set's factors hold it: of two
    that split, what lies between them belongs to it, and of one that leaves on one side and comes in on the other, the
    part around its centre.
    """
    covered = torch.stack(
        [object_cover(video, clip.rows(torch.tensor([row])), dataset) for row, video in enumerate(videos)]
    )
    covered = covered.to(saliency.device, saliency.dtype)
    whole = saliency.sum(dim=(1, 2, 3))
    share = (saliency * covered).sum(dim=(1, 2, 3)) / torch.where(whole > 0, whole, torch.nan)
    return OnObject(share, covered.mean(dim=(1, 2, 3)))


def object_cover(video: Video, clip: Clip, dataset: ClipDataset) -> Tensor:  # (T, H, W)
    """How much of each pixel the box of the movers covers, from 0 to 1; nan where it is not known."""
    frames, _, height, width = clip.frames.shape[1:]
    boxes = (video.factors or {}).get("boxes")
    if not boxes:
        return torch.full((frames, height, width), torch.nan)
    # The frames that were drawn are square: the view is a square in their middle.
    side = min(dataset.short_side, SIZE)
    crop = centred(height=side, width=side, crop_fraction=dataset.crop_fraction).box
    numbers = (clip.times[0].cpu() * FPS).round().long().clamp(0, len(boxes) - 1)
    seen = torch.tensor(boxes, dtype=torch.float64)[numbers] / SIZE  # (T, 4), in frame widths: x0 y0 x1 y1
    across = _overlap((seen[:, 0::2] * side - crop.left) / crop.width * width, width)
    down = _overlap((seen[:, 1::2] * side - crop.top) / crop.height * height, height)
    return (down[:, :, None] * across[:, None, :]).float()


def _overlap(span: Tensor, pixels: int) -> Tensor:  # (T, pixels)
    """How much of each pixel lies between start and end (T, 2)."""
    start = torch.from_numpy(np.arange(pixels))
    return (torch.minimum(span[:, 1:], start + 1) - torch.maximum(span[:, :1], start)).clamp(0, 1)
