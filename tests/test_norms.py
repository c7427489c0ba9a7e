"""Batch normalisation over the clips of two processes: that of one process over all of them."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from videokd.losses.connectors import ConvNorm, Head, ThroughHead
from videokd.norms import synchronise_norms

ROWS = (3, 5)


class LastDim(nn.BatchNorm1d):
    """Normalises the last dimension, which is as large as the second in the test below."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.flatten(0, -2)).view(values.shape)


class Scaled(nn.BatchNorm2d):
    """Takes a second argument, and calls the function of torch with its own order of arguments."""

    def forward(self, values: Tensor, factor: float = 2.0) -> Tensor:
        tracked = (self.running_mean, self.running_var)
        return factor * torch.batch_norm(values, self.weight, self.bias, *tracked, self.training, 0.2, self.eps, False)


class NeverTrains(nn.BatchNorm2d):
    """Keeps its statistics: a common way to freeze a norm."""

    def train(self, mode: bool = True) -> "NeverTrains":
        return super().train(False)


class ByHand(nn.BatchNorm2d):
    """Computes its statistics by itself."""

    def forward(self, values: Tensor) -> Tensor:
        return values - values.mean((0, 2, 3), keepdim=True)


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """Norms, and what goes through them: channels of unlike size."""
    torch.manual_seed(0)
    size = torch.tensor([1.0, 10.0, 0.1, 3.0])
    activated: Any = BatchNormAct2d(4)  # type: ignore[no-untyped-call]
    found = {
        "1d": (nn.BatchNorm1d(4), torch.randn(8, 4) * size),
        "2d": (nn.BatchNorm2d(4), torch.randn(8, 4, 3, 3) * size[:, None, None]),
        "3d": (nn.BatchNorm3d(4, momentum=None), torch.randn(8, 4, 2, 3, 3) * size[:, None, None, None]),
        "with activation": (activated, torch.randn(8, 4, 3, 3) * size[:, None, None] + 1),
        "not affine": (nn.BatchNorm2d(4, affine=False), torch.randn(8, 4, 3, 3)),
        "not tracked": (nn.BatchNorm2d(4, track_running_stats=False), torch.randn(8, 4, 3, 3)),
        "float64": (nn.BatchNorm1d(4).double(), torch.randn(8, 4, dtype=torch.float64) * size),
        "last dimension": (LastDim(4), torch.randn(8, 4, 4) * size),
        "own arithmetic around it": (Scaled(4), torch.randn(8, 4, 3, 3) * size[:, None, None]),
        "frozen": (NeverTrains(4).train(), torch.randn(8, 4, 3, 3)),
        "connector": (ConvNorm().build(3, 4, None), torch.randn(8, 4, 2, 2, 3) + 1),
        "connector of clip vectors": (ConvNorm(relu=True).build(3, 4, None), torch.randn(8, 1, 1, 1, 3) + 1),
        "connector through a head": (
            ThroughHead().build(3, 4, Head(torch.randn(5, 4), torch.randn(5))),
            torch.randn(8, 1, 1, 1, 3) + 1,
        ),
    }
    for norm, _ in found.values():
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    return found


def passed(norm: nn.Module, values: Tensor, rows: slice = slice(None)) -> dict[str, Any]:
    """What comes of some of the values, and the gradients of a sum with weights that differ."""
    leaf = values[rows].clone().requires_grad_()
    out = norm(leaf)
    weights = torch.arange(out[0].numel() * len(values)).view(len(values), *out.shape[1:]).sin()
    (out * weights[rows]).sum().backward()
    gradients = {name: one.grad for name, one in norm.named_parameters()}
    return {"out": out.detach(), "input": leaf.grad, **gradients, "state": norm.state_dict()}


def worker(rank: int, folder: str) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mine = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    found = {}
    for name, (norm, values) in layers().items():
        keys = list(norm.state_dict())
        norm = synchronise_norms(norm, torch.device("cpu"))
        assert list(norm.state_dict()) == keys
        found[name] = passed(norm, values, mine)
        found[f"{name} at test"] = norm.eval()(values[mine]).detach()
    by_hand = synchronise_norms(nn.Sequential(ByHand(4)), torch.device("cpu"))
    try:
        by_hand(torch.randn(4, 4, 2, 2))
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("norms")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", layers())
def test_two_processes_normalise_as_one_does(name: str, found: list[dict[str, Any]]) -> None:
    norm, values = layers()[name]
    whole = passed(norm, values)
    for part in ("out", "input"):
        torch.testing.assert_close(torch.cat([one[name][part] for one in found]), whole[part], rtol=1e-3, atol=1e-4)
    for parameter, _ in norm.named_parameters():
        torch.testing.assert_close(sum(one[name][parameter] for one in found), whole[parameter], rtol=1e-4, atol=1e-4)
    for one in found:
        for key, value in whole["state"].items():
            torch.testing.assert_close(one[name]["state"][key], value, rtol=1e-4, atol=1e-5)
    if name == "not tracked":
        return  # at test its statistics are those of the values that it is given
    at_test = torch.cat([one[f"{name} at test"] for one in found])
    torch.testing.assert_close(at_test, norm.eval()(values).detach(), rtol=1e-4, atol=1e-5)


def test_one_process_alone_is_as_ever() -> None:
    for norm, values in layers().values():
        before = passed(norm, values)["out"]
        again = passed(synchronise_norms(norm, torch.device("cpu")), values)["out"]
        assert torch.equal(before, again)


def test_a_norm_of_own_arithmetic_is_refused_by_name(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert "ByHand (0) is a batch norm with a forward pass of its own" in one["refused"]
        assert "set machine.synchronise_norms to False" in one["refused"]


def test_on_a_gpu_only_the_types_that_torch_can_replace_are_replaced() -> None:
    activated: Any = BatchNormAct2d(4)  # type: ignore[no-untyped-call]
    shared, patched = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    patched.forward = lambda values: 2 * values  # type: ignore[method-assign, assignment]
    parts = [nn.BatchNorm3d(4), activated, LastDim(4), NeverTrains(4), shared, shared, patched]
    net = nn.Sequential(*parts, ConvNorm().build(3, 4, None))
    hooks = [part.register_forward_hook(lambda *_: None) for part in parts]
    keys, forwards = list(net.state_dict()), [LastDim.forward, NeverTrains.forward]
    synchronise_norms(net, torch.device("cuda"))
    assert list(net.state_dict()) == keys
    kinds = [type(part).__name__ for part in net]
    assert kinds[:4] == ["SyncBatchNorm", "SyncBatchNormAct", "LastDim", "NeverTrains"]
    assert kinds[4:7] == ["SyncBatchNorm", "SyncBatchNorm", "BatchNorm2d"]
    assert net[4] is net[5]
    assert [type(part).forward for part in net[2:4]] == forwards
    assert net[6](torch.ones(2, 4, 1, 1)).tolist() == torch.full((2, 4, 1, 1), 2.0).tolist()  # one process: as ever
    assert isinstance(net[7].norm, nn.SyncBatchNorm)
    assert all(len(part._forward_hooks) == 1 for part in net[:4])
    assert len(hooks) == 7
    assert type(synchronise_norms(nn.BatchNorm1d(4), torch.device("cuda"))) is nn.SyncBatchNorm


@pytest.mark.parametrize("relu", [False, True])
def test_no_connector_overrides_the_forward_pass_of_a_norm(relu: bool) -> None:
    connector = ConvNorm(relu=relu).build(3, 4, None)
    norms = [one for one in connector.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    assert [type(one) for one in norms] == [nn.BatchNorm1d]


def test_one_vector_alone_is_normalised_by_the_running_statistics() -> None:
    connector = ConvNorm().build(3, 4, None)
    values = torch.randn(1, 1, 1, 1, 3)
    alone = connector(values)
    assert torch.equal(alone, connector.eval()(values))
    assert connector.norm.num_batches_tracked == 0  # type: ignore[union-attr]
