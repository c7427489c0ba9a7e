"""Every kind of model in one graph: taps and all, in eval and train mode, what it says and its gradients the same."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_every_model import noise
from tiny_models import built
from torch import Tensor

from videokd.contracts import Outputs
from videokd.models import Model

# One for each way in which a model can be hard to trace, and below one more of each family.
QUICK = ("Conv3d", "CompactShift", "MobileNetV3 shift", "VideoMAE", "torchvision ResNet-18 frames", "motion")
SLOW = (
    *("R(2+1)D-18", "MViTv2-S", "X3D", "MoViNet", "MobileNetV3 gru", "MobileNetV3 attention causal"),
    *("EfficientNet shift", "ViT-Ti frames", "V-JEPA 2", "SimKD", "mel", "AST"),
)
# At the edge of a torn graph torch asks every tensor for its gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
TORN = {"AST": "its spectrogram is NumPy's"}
"""Why a model is not one graph."""


@pytest.fixture(autouse=True)
def graphs() -> Any:
    """How many graphs were made; from none on, with recurrent units unrolled, as `compile_in_place` has it."""
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    with torch._dynamo.config.patch(allow_rnn=True, recompile_limit=64):
        yield lambda: counted["unique_graphs"]
    torch._dynamo.reset()


def said(model: Model[Any], view: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All that a model puts out for a view, by name; and the gradients of a loss on all of it."""
    torch.manual_seed(0)
    outputs: Outputs = model(view, model.taps)
    values = {tap: one.values for tap, one in outputs.features.items()}
    values |= {} if outputs.logits is None else {"logits": outputs.logits}
    loss = torch.stack([one.float().square().mean() for one in values.values()]).sum()
    if loss.requires_grad:
        loss.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    times = {f"{tap}.times": one.times for tap, one in outputs.features.items()}
    return {name: one.detach() for name, one in (values | times).items()}, gradients


def check(name: str, originals: Path, *, train: bool, backend: str, sizes: tuple[int, ...], graphs: Any) -> None:
    plain = built(name, originals).train(train)
    # As a run does when it looks for the shapes of taps: transformers puts its hooks in at the first such call.
    with torch.no_grad():
        copy.deepcopy(plain)(noise(plain), plain.taps)
        plain.eval()(noise(plain), plain.taps)
    compiled = copy.deepcopy(plain.train(train))
    compiled.compile(backend=backend, fullgraph=name not in TORN)
    made = []
    for seed, size in enumerate(sizes):
        view = noise(plain, batch=size, seed=seed)
        wanted, found = said(plain, view), said(compiled, view)
        made.append(graphs())
        for one, other in zip(found, wanted, strict=True):
            assert one.keys() == other.keys()
            # Some gradients are zero but for rounding, as before batch normalisation: against the largest.
            scale = max((tensor.abs().max().item() for tensor in other.values()), default=0.0)
            for key in one:
                torch.testing.assert_close(
                    one[key], other[key], rtol=1e-3, atol=1e-4 * scale, msg=f"{key}: {{}}".format
                )
    for (key, one), (_, other) in zip(compiled.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=f"{key}: {{}}".format)
    again = [after - before for before, after in pairwise(made)]
    # None for a batch of the first size; one for another size, which then takes any.
    assert all(more == 0 for more, size in zip(again, sizes[1:]) if size == sizes[0]), made
    if name not in TORN:
        assert made[0] == 1
        assert sum(again) <= 2


@pytest.mark.parametrize("name", QUICK)
def test_a_model_is_one_graph_that_says_the_same(name: str, originals: Path, graphs: Any) -> None:
    check(name, originals, train=True, backend="eager", sizes=(2, 2), graphs=graphs)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_a_last_smaller_batch_costs_one_more_graph(train: bool, originals: Path, graphs: Any) -> None:
    check("CompactShift", originals, train=train, backend="aot_eager", sizes=(4, 4, 3, 2, 4), graphs=graphs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_model_of_another_family_is_one_graph(name: str, originals: Path, graphs: Any) -> None:
    check(name, originals, train=True, backend="eager", sizes=(2, 2), graphs=graphs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["R(2+1)D-18", "MobileNetV3 gru"])
def test_backward_graphs_say_the_same(name: str, originals: Path, graphs: Any) -> None:
    check(name, originals, train=True, backend="aot_eager", sizes=(2, 2), graphs=graphs)
