"""What a network looks at, over space and time: Grad-CAM through its taps, or gradient x input at its pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from videokd.clips.dataset import ClipDataset
from videokd.clips.loader import collate
from videokd.contracts import UNLABELLED, Clip, FeatureMap, Outputs
from videokd.losses.align import align_maps, in_space
from videokd.models import Model, VideoModel
from videokd.models.model import at_positions

Method = Literal["grad-cam", "gradient x input"]

TOP = 0.2
"""The share of a clip, in space and time, that is taken for what a network looks at."""

PLACES = 16
"""Maps are compared on at most as many rows and columns: gradients of single pixels are mostly noise."""


class Explained(NamedTuple):
    """What a model says of a batch, and where it looks for it."""

    outputs: Outputs
    map: FeatureMap  # (B, T', H', W', 1), on the map's own grid; not below 0 for Grad-CAM


def explain(model: VideoModel, clip: Clip, target: Tensor, *, tap: str | None, taps: Sequence[str] = ()) -> Explained:
    """Where a model looks for the logits of some classes, in full precision.

    Args:
        model: in eval mode.
        clip: on its device.
        target: int64 (B,), the class that is explained of each clip; UNLABELLED for the one that the model predicts.
        tap: Grad-CAM [Selvaraju et al. 2017] of this tap's map: the sum of its channels, each weighted by the mean of
            its gradient over space and time, as far as that is positive. None is the gradient x input: summed over
            the colours, with its sign, of the input as it is normalised, whose 0 is the mean colour.
        taps: what else to hand out.

    Raises:
        ValueError: if no gradient reaches the tap's map.
    """
    assert not model.training
    with torch.enable_grad():
        video = model.entered(clip.frames).detach().requires_grad_()
        outputs = model.run(video, clip.times, tuple({*taps, tap} - {None}) if tap else tuple(taps))
        score = chosen(outputs, target).sum()
        if tap is None:
            (gradient,) = torch.autograd.grad(score, video)
            values = rearrange((gradient * video).detach().sum(dim=1), "b t h w -> b t h w 1")
            # A model of differences of frames has one frame less, each between two.
            frames, shown = clip.times.shape[1], values.shape[1]
            centres = torch.arange(shown, device=values.device) + (frames - shown) / 2
            return Explained(outputs, FeatureMap(values, at_positions(clip.times, centres)))
        found = outputs.features[tap]
        gradient_of_map = map_gradient(score, found.values)
    if gradient_of_map is None:
        raise ValueError(f"the logits of {type(model).__name__} do not come from its tap {tap!r}: name another one")
    weights = gradient_of_map.mean(dim=(1, 2, 3), keepdim=True)
    heat = (weights * found.values.detach()).sum(dim=-1, keepdim=True).relu()
    return Explained(outputs, FeatureMap(heat, found.times, found.pace))


def chosen(outputs: Outputs, target: Tensor) -> Tensor:
    """The logit (B,) of each clip's target; where that is UNLABELLED, the largest one."""
    assert outputs.logits is not None
    classes = torch.where(target == UNLABELLED, outputs.logits.argmax(dim=1), target)
    return outputs.logits.gather(1, classes[:, None]).squeeze(1)


def cam_tap(model: VideoModel) -> str | None:
    """The deepest tap with a map for Grad-CAM; None if there is none.

    One that keeps space, that the logits come from (the places of a transformer's last block are of no use where a
    class token alone is read), and that keeps time where another does.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, model.blank().frames.shape, dtype=torch.uint8, generator=generator)
    with torch.enable_grad():
        video = model.entered(noise.to(model.device)).detach().requires_grad_()
        outputs = model.run(video, model.blank().times, model.taps)
        score = chosen(outputs, torch.tensor([UNLABELLED], device=model.device)).sum()
        usable = []
        for tap in reversed(model.taps):
            values = outputs.features[tap].values
            if values.shape[2] * values.shape[3] == 1:
                continue
            gradient = map_gradient(score, values, keep=True)
            if gradient is not None and bool(gradient.any()):
                usable.append(tap)
                if values.shape[1] > 1:
                    return tap
    return usable[0] if usable else None


def map_gradient(score: Tensor, values: Tensor, *, keep: bool = False) -> Tensor | None:
    """The gradient of a score () on a feature map (B, T', H', W', C); None where the score does not come from it.

    A map is a look at what the network goes on with: the same numbers in another layout, perhaps without the tokens
    that have no place. So the gradient is taken where the two part, and put into the map's layout.

    Args:
        score: what is explained.
        values: the map's.
        keep: whether the graph is needed again.
    """
    edge = _parting(score, values)
    if edge is None:
        return None
    (gradient,) = torch.autograd.grad(score, edge, retain_graph=keep)
    if edge.node is values.grad_fn:
        return gradient
    # The layout is a linear map; its transpose is what autograd has, and the transpose of that is the map itself.
    probe = torch.zeros_like(values, requires_grad=True)
    (transposed,) = torch.autograd.grad(values, edge, grad_outputs=probe, create_graph=True)
    (found,) = torch.autograd.grad(transposed, probe, grad_outputs=gradient)
    return found


_RESHAPED = ("View", "UnsafeView", "Reshape", "ReshapeAlias", "Unflatten", "Unsqueeze", "Squeeze", "AsStrided")
_MOVED = ("Permute", "Transpose", "T", "Clone", "Alias", "ToCopy")
_PICKED = ("Slice", "Select", "Narrow", "Split", "SplitWithSizes")
_LAYOUT = {*_RESHAPED, *_MOVED, *_PICKED}
"""What autograd calls the steps that change the layout alone."""


def _parting(score: Tensor, values: Tensor) -> GradientEdge | None:
    """Where the way back from a map meets that from a score, if only the layout changed since."""
    of_score = set(_nodes(score.grad_fn))
    node, number = values.grad_fn, values.output_nr
    while node is not None and node not in of_score:
        befores = [(before, output) for before, output in node.next_functions if before is not None]
        if len(befores) != 1 or node.name().rstrip("0123456789").removesuffix("Backward") not in _LAYOUT:
            return None
        ((node, number),) = befores
    return None if node is None else GradientEdge(node, number)


def _nodes(last: Node | None) -> Iterator[Node]:
    """A node of the graph and all before it."""
    seen: set[Node] = set()
    waiting = [] if last is None else [last]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions if before is not None]


def on_clip(heat: FeatureMap, clip: Clip) -> Tensor:  # (B, T, H, W)
    """A map (B, T', H', W', 1) at the clip's frames and pixels: linear between steps and between places."""
    values = heat.values.squeeze(-1)
    if values.shape[1] > 1:
        after = torch.searchsorted(heat.times.contiguous(), clip.times.contiguous()).clamp(1, values.shape[1] - 1)
        before_times, after_times = heat.times.gather(1, after - 1), heat.times.gather(1, after)
        part = ((clip.times - before_times) / (after_times - before_times).clamp(min=1e-9)).clamp(0, 1)
        before, then = (torch.take_along_dim(values, at[:, :, None, None], dim=1) for at in (after - 1, after))
        values = torch.lerp(before, then, part[:, :, None, None].to(values.dtype))
    else:
        values = values.expand(-1, clip.times.shape[1], -1, -1)
    return F.interpolate(values, clip.frames.shape[-2:], mode="bilinear", align_corners=False)


class Agreement(NamedTuple):
    """How far two networks look at the same: of each clip, nan where one of them looks nowhere."""

    spearman: NDArray[np.float64]  # (B,), rank correlation over all cells of space and time
    iou: NDArray[np.float64]  # (B,), what both look at over what either does; of chance maps about TOP / (2 - TOP)


def agreement(student: FeatureMap, teacher: FeatureMap) -> Agreement:
    """Of two maps (B, T', H', W', 1) of the same seconds, on the coarser of their grids in time and in space.

    Seconds that one party did not see are left out. "Look at" is the `TOP` share of the cells, but none of those that
    are 0.
    """
    both = align_maps(_coarse(student), _coarse(teacher))
    spearman, iou = [], []
    for clip in range(len(both.student)):
        seen = slice(None) if both.shared is None else both.shared[clip] > 0
        one, other = (side[clip][seen].flatten().cpu().numpy() for side in (both.student, both.teacher))
        if not len(one) or np.ptp(one) == 0 or np.ptp(other) == 0:
            spearman.append(np.nan)
            iou.append(np.nan)
            continue
        spearman.append(float(stats.spearmanr(one, other).statistic))
        looked, other_looked = _top(one), _top(other)
        iou.append(float((looked & other_looked).sum() / (looked | other_looked).sum()))
    return Agreement(np.array(spearman), np.array(iou))


def _coarse(heat: FeatureMap) -> FeatureMap:
    rows, columns = heat.values.shape[2:4]
    return in_space(FeatureMap(heat.values.abs(), heat.times, heat.pace), min(rows, PLACES), min(columns, PLACES))


def _top(cells: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The highest `TOP` of the cells."""
    chosen_cells = np.zeros(len(cells), bool)
    chosen_cells[np.argsort(-cells, kind="stable")[: max(1, round(TOP * len(cells)))]] = True
    return chosen_cells & (cells > 0)


@dataclass(frozen=True)
class Strip:
    """One video's frames as a model sees them, and where in them it looks."""

    id: str
    frames: NDArray[np.uint8]  # (T, H, W, 3), RGB
    saliency: NDArray[np.float32]  # (T, H, W), in [0, 1]; 1 is the clip's most salient pixel
    times: NDArray[np.float32]  # (T,), seconds in the video
    explained: str  # name of the class whose logit is explained
    method: Method


def strips(model: Model[Any], dataset: ClipDataset, ids: Sequence[str], *, method: Method | None = None) -> list[Strip]:
    """Frames of some videos and where the model looks in them for the class that it predicts, in the order of `ids`.

    Args:
        model: on the device where it is to run.
        dataset: made with `specs={"student": model.input}` and without augmentation.
        ids: names of videos of the data set (`Video.id`).
        method: None takes Grad-CAM where the model has maps for it, else gradient x input.

    Returns:
        A strip for each id. An empty list for a model that does not look at frames, or tells no classes apart.

    Raises:
        ValueError: for an id that the data set does not have, or Grad-CAM of a model without maps for it.
        VideoError: for a video that can't be read.
    """
    if not isinstance(model, VideoModel) or not model.has_logits:
        return []
    places = {video.id: place for place, video in enumerate(dataset.videos)}
    unknown = [name for name in ids if name not in places]
    if unknown:
        raise ValueError(f"the list has no video {unknown[0]!r}")
    training = model.training
    model.eval()
    tap = None if method == "gradient x input" else cam_tap(model)
    if tap is None and method == "grad-cam":
        raise ValueError(f"{type(model).__name__} has no map for Grad-CAM: take gradient x input")
    found = []
    for name in ids:
        clip = collate([dataset[places[name]]]).clips["student"].to(model.device)
        assert isinstance(clip, Clip)
        explained = explain(model, clip, torch.tensor([UNLABELLED], device=model.device), tap=tap)
        heat = on_clip(explained.map, clip)[0].abs()
        assert explained.outputs.logits is not None
        found.append(
            Strip(
                id=name,
                frames=rearrange(clip.frames[0], "t c h w -> t h w c").cpu().numpy(),
                saliency=(heat / heat.max().clamp(min=1e-12)).float().cpu().numpy(),
                times=clip.times[0].cpu().numpy(),
                explained=model.classes[int(explained.outputs.logits.argmax())],
                method="gradient x input" if tap is None else "grad-cam",
            )
        )
    model.train(training)
    return found
