"""Mixup and cutmix of the clips of a batch, on its device: the same clips, shares and boxes for every party."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videokd.contracts import UNLABELLED, Batch, Clip, Sound, View, labelled


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How clips of a batch are mixed; at a step with both, one of the two is drawn."""

    mixup: float = 0.0
    """Alpha of the Beta distribution that a clip's share is drawn from [Zhang et al. 2018]; 0 is no mixup."""
    cutmix: float = 0.0
    """Alpha likewise, of the share that is not cut out and replaced [Yun et al. 2019]; 0 is no cutmix."""
    probability: float = 1.0
    """Of mixing at all, drawn at every step."""

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or max(self.mixup, self.cutmix) <= 0 or not 0 <= self.probability <= 1:
            raise ValueError(f"one of mixup and cutmix is above 0, and probability lies in [0, 1], got {self}")


def mixed(batch: Batch, mix: Mix, *, num_classes: int, seed: int, step: int) -> Batch:
    """The batch with every clip mixed with another one of it: a function of (seed, step), on the batch's device.

    Labelled clips are mixed with labelled ones, unlabelled with unlabelled. Labels become shares (B, K) at every
    step, mixed or not. A mixed clip keeps its own times: those of the other are not its student's and teacher's grid.
    Sounds are blended by the same share.
    """
    rng = np.random.default_rng([seed, step])
    hit = rng.random() < mix.probability
    both = mix.mixup > 0 and mix.cutmix > 0
    cuts = rng.random() < 0.5 if both else mix.cutmix > 0
    share = float(rng.beta(*2 * (mix.cutmix if cuts else mix.mixup,)))
    centre = rng.random(2)
    label = _shares(batch.label, num_classes)
    if not hit or not batch.id:
        return replace(batch, label=label)
    known = labelled(batch.label)
    partner = _partners(known, rng)
    clips: dict[str, View] = {}
    kept = share
    # Those that look come first: what is really replaced is counted on pixels.
    for number, (party, clip) in enumerate(sorted(batch.clips.items(), key=lambda one: isinstance(one[1], Sound))):
        if isinstance(clip, Sound):
            blended_sound = clip.samples * kept + clip.samples[partner] * (1 - kept)
            clips[party] = Sound(blended_sound, clip.start, clip.heard & clip.heard[partner])
            continue
        other = clip.frames[partner]
        if cuts:
            rows, columns = clip.frames.shape[-2:]
            down, across = _cut(rows, share, centre[0]), _cut(columns, share, centre[1])
            frames = clip.frames.clone()
            frames[..., down, across] = other[..., down, across]
            if number == 0:  # what is really replaced, on the student's own pixels
                kept = 1 - (down.stop - down.start) * (across.stop - across.start) / (rows * columns)
        else:
            blend = clip.frames.float().mul_(share).add_(other.float(), alpha=1 - share)
            frames = blend.round_().to(torch.uint8)
        clips[party] = Clip(frames, clip.times)
    blended = kept * label + (1 - kept) * label[partner]
    return replace(batch, clips=clips, label=torch.where(known[:, None], blended, label))


def _shares(label: Tensor, num_classes: int) -> Tensor:  # float32 (B, K)
    if label.ndim == 2:
        return label.float()
    known = labelled(label)[:, None]
    return torch.where(known, F.one_hot(label.clamp(min=0), num_classes).float(), float(UNLABELLED))


def _partners(known: Tensor, rng: np.random.Generator) -> Tensor:
    """Who each clip is mixed with, (B,): the next one of its kind, in a random circle of all."""
    # A copy that blocks would wait for all the device's work.
    around = torch.from_numpy(rng.permutation(len(known))).to(known.device, non_blocking=True)
    # A stable sort by kind keeps the circle's order within each kind, without asking the device how many there are.
    order = around[known[around].int().argsort(stable=True)]
    kinds = known[order]
    following = order.roll(-1)
    # The last of a kind goes back to the kind's first.
    first = torch.where(kinds, (~kinds).sum(), 0)
    following = torch.where(known[following] == kinds, following, order[first])
    return torch.empty_like(order).scatter_(0, order, following)


def _cut(side: int, share: float, centre: float) -> slice:
    """A stretch of the side, around a centre, whose square is 1 - share of the picture where it lies inside."""
    length = side * (1 - share) ** 0.5
    first = centre * side - length / 2
    return slice(max(round(first), 0), min(round(first + length), side))
