"""X3D and MoViNet against their papers."""

from dataclasses import replace

import pytest
import torch
from conftest import random_clip
from tiny_models import CLASSES, SMALL
from torch import nn

from videokd.contracts import InputSpec
from videokd.models import X3D, MoViNet
from videokd.models.cost import cost
from videokd.models.movinet import CumulativeMean, MoViNetNetwork, _Bottleneck, _Excitation
from videokd.models.temporal import streaming


@pytest.mark.parametrize(
    ("frames", "size", "published_giga"), [(4, 160, 0.60), (13, 160, 1.96), (16, 224, 4.73)], ids=["XS", "S", "M"]
)
def test_x3d_costs_what_the_paper_says(frames: int, size: int, published_giga: float) -> None:
    # Feichtenhofer 2020, table 4: 3.76 M parameters with 400 classes, and multiply-adds of one view.
    config = replace(X3D(), input=InputSpec(frames=frames, size=size))
    price = cost(config.build([str(number) for number in range(400)]))
    assert price.params / 1e6 == pytest.approx(3.76, rel=0.02)
    assert price.macs / 1e9 == pytest.approx(published_giga, rel=0.02)


@pytest.mark.parametrize(("causal", "published_giga"), [(False, 2.71), (True, 2.73)], ids=["base", "stream"])
def test_movinet_costs_what_the_paper_says(causal: bool, published_giga: float) -> None:
    # Kondratyuk et al. 2021, table 2: 3.1 M parameters with 600 classes, and FLOPs of 50 frames of 172 px. They were
    # counted by TensorFlow's profiler, which counts activations (hard swish is an addition and two products), gates
    # and residual sums too, each of them half a multiply-add; convolutions alone are 2.64.
    model = MoViNet(causal=causal, input=InputSpec(frames=50, size=172)).build([str(k) for k in range(600)]).eval()
    price = cost(model)
    assert price.params / 1e6 == pytest.approx(3.1, rel=0.02)
    assert (price.macs + elementwise(model) / 2) / 1e9 == pytest.approx(published_giga, rel=0.02)


def elementwise(model: MoViNetNetwork) -> int:
    """Operations on single numbers in a forward pass over one clip."""
    counted = 0

    def count(times: int) -> object:
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            nonlocal counted
            counted += times * output.numel()

        return hook

    for module in model.modules():
        for kind, times in ((nn.Hardswish, 3), (_Excitation, 2), (_Bottleneck, 2)):
            if isinstance(module, kind):
                module.register_forward_hook(count(times))  # type: ignore[arg-type]
    with torch.no_grad():
        model(model.blank())
    return counted


def test_movinet_branches_begin_as_nothing() -> None:
    torch.manual_seed(0)
    model = MoViNet(input=SMALL).build(CLASSES).eval()
    block = model.stages[1][1]  # type: ignore[index]
    video = torch.randn(1, 32, 8, 4, 4)
    assert torch.equal(block(video), video)


def test_cumulative_mean_by_hand() -> None:
    values = torch.tensor([1.0, 3.0, 8.0]).view(1, 1, 3, 1, 1)
    assert CumulativeMean(causal=True)(values).flatten().tolist() == [1, 2, 4]
    assert CumulativeMean(causal=False)(values).flatten().tolist() == [4]


def test_a_long_stream_in_half_precision_goes_on_counting() -> None:
    mean = nn.Sequential(CumulativeMean(causal=True))
    state = None
    for value in [1.0] * 300 + [3.0] * 700:
        with streaming(mean, state) as state:
            now = mean(torch.full((1, 1, 1, 1, 1), value, dtype=torch.bfloat16))
    # (300 x 1 + 700 x 3) / 1000 = 2.4, which is 2.40625 in bfloat16.
    assert (now.dtype, now.item()) == (torch.bfloat16, 2.40625)


def test_movinet_takes_the_clip_as_a_stream_of_any_length() -> None:
    model = MoViNet(input=SMALL).build(CLASSES).eval()
    clip = random_clip(frames=8)
    state = None
    for _ in range(3):  # 24 frames, three times its clip
        outputs, state = model.step(clip, state)
    assert outputs.logits is not None
    assert outputs.logits.isfinite().all()
