from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_clip
from einops import rearrange
from scipy import stats
from torch import Tensor

from videokd.clips.dataset import ClipDataset
from videokd.clips.lists import read_manifest
from videokd.contracts import UNLABELLED, Clip, Dense, FeatureMap, InputSpec, Outputs
from videokd.inside.saliency import agreement, cam_tap, explain, on_clip, strips
from videokd.models import ModelConfig, VideoModel
from videokd.models.model import clip_map, conv_map, token_map


@dataclass(frozen=True, kw_only=True)
class Planted(ModelConfig):
    def build(self, classes: Sequence[str] | None, *, pretrained: bool = True) -> "VideoModel":
        raise NotImplementedError


SPEC = InputSpec(frames=4, size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
WEIGHT = torch.tensor([[-2.0, 0.0, 1.0], [1.0, -1.0, 0.5]])  # of bright pictures, class b is the likelier


class LinearNetwork(VideoModel):
    """Cells of 2 x 4 x 4 pixels, averaged, then over all cells, then a linear layer without bias."""

    def __init__(self, spec: InputSpec = SPEC) -> None:
        super().__init__(Planted(), ("a", "b"), taps=("cells",), input=spec)

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        cells = torch.nn.functional.avg_pool3d(video, (2, 4, 4))
        pooled = cells.mean(dim=(2, 3, 4))
        steps = times.unflatten(1, (-1, 2)).mean(dim=2)
        maps = {"cells": conv_map(cells, steps), "frames": conv_map(cells, steps), "clip": clip_map(pooled, times)}
        return Outputs(pooled @ WEIGHT.T, {tap: maps[tap] for tap in taps})


class TokenNetwork(VideoModel):
    """Tokens behind a class token, of which each place has a weight of its own: 2 steps of 2 x 2 places of 3 colours.

    The tap "dead" comes after all that the logits are made of.
    """

    def __init__(self) -> None:
        super().__init__(Planted(), ("a",), taps=("tokens", "dead"), input=SPEC)
        self.places = torch.nn.Parameter(torch.randn(9, 3, generator=torch.Generator().manual_seed(3)))

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        cells = rearrange(torch.nn.functional.avg_pool3d(video, (2, 4, 4)), "b c t h w -> b (t h w) c")
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
        logit = (tokens.square() * self.places).sum(dim=(1, 2))[:, None]
        steps = times.unflatten(1, (-1, 2)).mean(dim=2)
        found = token_map(tokens, steps, prefix=1)
        dead = token_map(torch.nn.functional.relu(tokens), steps, prefix=1)
        maps = {"tokens": found, "dead": dead, "frames": found.pooled("frames"), "clip": clip_map(tokens[:, 0], times)}
        return Outputs(logit, {tap: maps[tap] for tap in taps})


class CornerNetwork(LinearNetwork):
    """Looks at the top left quarter in the first half of the clip, and nowhere else."""

    def run(self, video: Tensor, times: Tensor, taps: Sequence[str]) -> Outputs:
        seen = torch.zeros_like(video)
        seen[:, :, : video.shape[2] // 2, : video.shape[3] // 2, : video.shape[4] // 2] = 1
        return super().run(video * seen, times, taps)


def clip_of(spec: InputSpec = SPEC, **options: int) -> Clip:
    return random_clip(frames=spec.frames, size=spec.size, **options)


def test_grad_cam_of_a_linear_network_is_the_hand_computed_map() -> None:
    model, clip = LinearNetwork().eval(), clip_of()
    found = explain(model, clip, torch.tensor([0, 1]), tap="cells").map
    # The logit is the mean of 2 x 2 x 2 = 8 cells times the weights: each cell's gradient is weight / 8, and so is its
    # mean over the cells.
    cells = torch.nn.functional.avg_pool3d(rearrange(clip.frames.float() / 255, "b t c h w -> b c t h w"), (2, 4, 4))
    expected = torch.einsum("bcthw,bc->bthw", cells, WEIGHT / 8).relu()
    assert (expected == 0).any()
    assert (expected > 0).any()
    assert torch.allclose(found.values[..., 0], expected, atol=1e-6)
    assert torch.allclose(found.times, clip.times.unflatten(1, (-1, 2)).mean(dim=2))


def test_gradient_through_a_layout_is_that_of_the_tokens() -> None:
    model, clip = TokenNetwork().eval(), clip_of()
    found = explain(model, clip, torch.tensor([0, 0]), tap="tokens", taps=("tokens",))
    tokens = found.outputs.features["tokens"].values.detach()  # (B, 2, 2, 2, 3)
    gradient = 2 * tokens * model.places.detach()[1:].view(1, 2, 2, 2, 3)  # of weight x token^2
    expected = (tokens * gradient.mean(dim=(1, 2, 3), keepdim=True)).sum(dim=-1, keepdim=True).relu()
    assert torch.allclose(found.map.values, expected, atol=1e-6)
    # No gradient reaches what is made of the tokens beside the way.
    assert cam_tap(model) == "tokens"
    with pytest.raises(ValueError, match="do not come from its tap 'dead'"):
        explain(model, clip, torch.tensor([0, 0]), tap="dead")


def test_gradient_times_input_of_a_linear_network_without_bias_sums_to_the_logit() -> None:
    model, clip = LinearNetwork().eval(), clip_of()
    found = explain(model, clip, torch.tensor([0, UNLABELLED]), tap=None)
    logits = found.outputs.logits
    assert logits is not None
    assert logits[1, 1] > logits[1, 0]
    total = found.map.values.sum(dim=(1, 2, 3, 4))
    assert torch.allclose(total, torch.stack([logits[0, 0], logits[1, 1]]), atol=1e-5)


@pytest.mark.parametrize("tap", ["cells", None])
def test_a_network_that_looks_at_a_corner_has_its_saliency_there(tap: str | None) -> None:
    clip = clip_of(InputSpec(frames=8, size=16))
    model = CornerNetwork(InputSpec(frames=8, size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))).eval()
    heat = on_clip(explain(model, clip, torch.tensor([1, 1]), tap=tap).map, clip).abs()
    assert heat.shape == (2, 8, 16, 16)
    # Between cells it fades: those of Grad-CAM are 4 pixels wide and 2 frames long.
    reach = 0 if tap is None else 1
    there = heat[:, : 4 + reach, : 8 + 2 * reach, : 8 + 2 * reach].sum()
    assert there > 0
    assert there == pytest.approx(float(heat.sum()))


def test_a_map_is_brought_to_the_clips_frames_by_its_times() -> None:
    # Steps at 1 s and 2 s; frames before, between and behind them.
    heat = FeatureMap(torch.tensor([0.0, 4.0]).view(1, 2, 1, 1, 1), torch.tensor([[1.0, 2.0]]))
    clip = Clip(torch.zeros(1, 5, 3, 2, 2, dtype=torch.uint8), torch.tensor([[0.5, 1.0, 1.25, 1.5, 3.0]]))
    assert on_clip(heat, clip)[0, :, 0, 0].tolist() == [0, 0, 1, 2, 4]
    still = FeatureMap(torch.ones(1, 1, 1, 1, 1), torch.tensor([[9.0]]))
    assert on_clip(still, clip).unique().tolist() == [1]


def test_agreement_is_rank_correlation_and_overlap_of_the_top_fifth() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(1, 2, 5, 5, 1, generator=generator), torch.rand(1, 2, 5, 5, 1, generator=generator)
    times = torch.tensor([[0.0, 1.0]])
    found = agreement(FeatureMap(one, times), FeatureMap(other, times))
    first, second = one.flatten().numpy(), other.flatten().numpy()
    assert found.spearman == pytest.approx([stats.spearmanr(first, second).statistic])
    top, other_top = (set(np.argsort(cells)[-10:].tolist()) for cells in (first, second))
    assert found.iou == pytest.approx([len(top & other_top) / len(top | other_top)])
    same = agreement(FeatureMap(one, times), FeatureMap(one.exp(), times))
    assert (same.spearman.item(), same.iou.item()) == (pytest.approx(1), 1)


def test_agreement_is_on_the_coarser_grid_at_the_same_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 4, 2, 2, 1, generator=generator)
    times = torch.arange(4.0)[None]
    # The teacher has twice the steps and three times the places of the same map.
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(3, 2).repeat_interleave(3, 3)
    finer_times = (torch.arange(8.0) / 2 - 0.25)[None]
    found = agreement(FeatureMap(coarse, times), FeatureMap(fine, finer_times))
    assert (found.spearman.item(), found.iou.item()) == (pytest.approx(1), 1)
    moved = agreement(FeatureMap(coarse, times), FeatureMap(fine.flip(1), finer_times))
    assert moved.spearman.item() < 0.9


def test_single_pixels_and_signs_do_not_matter_to_agreement() -> None:
    cells = torch.rand(1, 1, 16, 16, 1, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 2)
    cells = 1 + cells.repeat_interleave(2, 3)
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1  # as much up as down in every 2 x 2 pixels
    noisy = cells + 0.9 * board[:, :, None]
    found = agreement(FeatureMap(cells, torch.zeros(1, 1)), FeatureMap(-noisy, torch.zeros(1, 1)))
    assert (found.spearman.item(), found.iou.item()) == (pytest.approx(1, abs=1e-3), 1)


def test_a_network_that_looks_nowhere_agrees_with_nobody() -> None:
    times = torch.zeros(2, 1)
    flat = torch.zeros(2, 1, 2, 2, 1)
    seeing = torch.rand(2, 1, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    found = agreement(FeatureMap(flat, times), FeatureMap(seeing, times))
    assert np.isnan(found.spearman).all()
    assert np.isnan(found.iou).all()


def test_cells_of_0_are_looked_at_by_nobody() -> None:
    one, other = torch.zeros(1, 1, 10, 1, 1), torch.zeros(1, 1, 10, 1, 1)
    one[0, 0, 9], other[0, 0, 8] = 1, 1  # two cells in ten are the top; the second would be any of those at 0
    found = agreement(FeatureMap(one, torch.zeros(1, 1)), FeatureMap(other, torch.zeros(1, 1)))
    assert found.iou.item() == 0


def test_strips_show_what_the_model_sees_and_where_it_looks(drawn_set: Path) -> None:
    spec = InputSpec(frames=8, size=32, sampling=Dense(stride=2), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    videos = read_manifest(drawn_set).split("test")
    dataset = ClipDataset(videos, {"student": spec})
    ids = [videos.videos[3].id, videos.videos[1].id]
    found = strips(CornerNetwork(spec), dataset, ids)
    assert [one.id for one in found] == ids
    one = found[0]
    sample = dataset[3]["clips"]["student"]
    assert torch.equal(torch.from_numpy(one.frames), sample["frames"].permute(0, 2, 3, 1))  # type: ignore[typeddict-item]
    assert (one.saliency.shape, one.saliency.min(), one.saliency.max()) == ((8, 32, 32), 0, 1)
    assert one.saliency[6:].max() == 0
    assert (one.method, one.explained in ("a", "b"), one.times.shape) == ("grad-cam", True, (8,))
    assert strips(CornerNetwork(spec), dataset, ids, method="gradient x input")[1].method == "gradient x input"
    with pytest.raises(ValueError, match="has no video 'nowhere'"):
        strips(CornerNetwork(spec), dataset, ["nowhere"])
