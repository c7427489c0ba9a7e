"""The device that a benchmark is about: current, with one arithmetic for all products in fp32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: events are recorded, and memory is pinned, on the current device alone. Nothing of
    other devices."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def fp32_arithmetic(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """One setting of TF32 for matrix products and convolutions on a GPU. PyTorch's own is off for the one and on for
    the other, so that a convolution could pass the ceiling of a matrix product."""
    if device.type != "cuda":
        yield
        return
    # By these names all other ways to ask for the setting agree; by `fp32_precision` they do not.
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
