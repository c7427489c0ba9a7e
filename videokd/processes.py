"""The processes of a run: one, or those that torchrun started, on one machine or many."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_LONGEST_WAIT = timedelta(minutes=30)


def is_distributed() -> bool:
    """Whether there are other processes."""
    return world_size() > 1


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and reports, joined or not."""
    return (rank() if is_distributed() else int(os.environ.get("RANK", "0"))) == 0


def local_rank() -> int:
    """The number of this process on its machine: which of the GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started, for as long as this lasts; alone, or joined already, nothing happens.

    GPUs talk by NCCL, and what lies in memory goes by gloo.

    Raises:
        ValueError: if torchrun is to start dead processes again but would hand the new ones the addresses of the dead.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and streams are those of the current device
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if (
        int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
        and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):
        # pytorch issue 135712: the store outlives the processes, and so do the addresses that they left in it.
        raise ValueError(
            "torchrun --max-restarts shares one store between all its starts, so that processes started again look for "
            "the dead ones: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, on every machine"
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    yield
    # Not after an error: the others may be waiting for this process, and it would wait for them.
    dist.destroy_process_group()


def mean_over_processes(values: Tensor) -> Tensor:
    """Without gradient, the same on all of them."""
    values = values.detach()
    if not is_distributed():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def largest_of_all(value: int) -> int:
    """The largest that any process says."""
    if not is_distributed():
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def of_all(value: T) -> list[T]:
    """What every process says, in the order of their ranks, on all of them."""
    if not is_distributed():
        return [value]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return [one for one in found if one is not None]


def agreed(source: Iterator[T]) -> Iterator[T]:
    """The items of a source that has as many in every process. What fails in one of them fails in all: the others would
    wait for it.

    Raises:
        ValueError: of this process's source, or one that says that another's failed.
    """
    while True:
        failure: ValueError | None = None
        try:
            item = next(source)
        except StopIteration:
            return
        except ValueError as error:
            failure = error
        if largest_of_all(int(failure is not None)):
            raise failure or ValueError("another process could not go on, and says why")
        yield item


def wait_for_all() -> None:
    """Returns when all processes have come here."""
    largest_of_all(0)
