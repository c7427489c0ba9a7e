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

from videokd.norms import synchronise_norms

ROWS = (3, 5)


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
    }
    for norm, _ in found.values():
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    return found


def passed(norm: nn.Module, values: Tensor, after: Tensor) -> dict[str, Any]:
    leaf = values.clone().requires_grad_()
    out = norm(leaf)
    (out * after).sum().backward()
    gradients = {name: one.grad for name, one in norm.named_parameters()}
    return {"out": out.detach(), "input": leaf.grad, **gradients, "state": norm.state_dict()}


def weights_of(values: Tensor) -> Tensor:
    return torch.arange(values.numel()).view_as(values).sin()


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
        found[name] = passed(norm, values[mine], weights_of(values)[mine])
        found[f"{name} at test"] = norm.eval()(values[mine]).detach()
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
    whole = passed(norm, values, weights_of(values))
    for part in ("out", "input"):
        torch.testing.assert_close(torch.cat([one[name][part] for one in found]), whole[part], rtol=1e-3, atol=1e-4)
    for parameter, _ in norm.named_parameters():
        torch.testing.assert_close(sum(one[name][parameter] for one in found), whole[parameter], rtol=1e-4, atol=1e-4)
    for one in found:
        for key, value in whole["state"].items():
            torch.testing.assert_close(one[name]["state"][key], value, rtol=1e-4, atol=1e-5)
    at_test = torch.cat([one[f"{name} at test"] for one in found])
    torch.testing.assert_close(at_test, norm.eval()(values).detach(), rtol=1e-4, atol=1e-5)


def test_one_process_alone_is_as_ever() -> None:
    for norm, values in layers().values():
        before = passed(norm, values, weights_of(values))["out"]
        again = passed(synchronise_norms(norm, torch.device("cpu")), values, weights_of(values))["out"]
        assert torch.equal(before, again)
