"""How networks run: compiled, with CUDA graphs, with their channels last."""

from typing import Literal

import torch
from torch import nn

Compilation = Literal["default", "cuda-graphs"]
"""Fused kernels; or these, launched as one CUDA graph, which pays where the host is too slow for many small kernels."""

_GRAPHS = 64
"""How many graphs may be made of all networks together: of each one for training and one for scoring, and for every
size of batch. Beyond it torch goes on without compiling."""


def compile_in_place(network: nn.Module, compilation: Compilation) -> None:
    """Has a network compiled at its first call: it stays what it is, with its attributes and names of parameters.

    Copies of it, pickled or deep, are not compiled. It comes before `DistributedDataParallel`, which wraps the compiled
    network. Batches of a second size, train and eval mode, and calls with and without gradients have graphs of their
    own, each compiled once. A model inside the network is compiled as its part, and not where it is called alone.

    With CUDA graphs, what a call returns is overwritten by the next; begin every step by
    `torch.compiler.cudagraph_mark_step_begin()`.

    Raises:
        ValueError: for CUDA graphs of a network that is not on a CUDA device.
    """
    if compilation == "cuda-graphs":
        places = sorted({tensor.device.type for tensor in (*network.parameters(), *network.buffers())})
        if places != ["cuda"]:
            raise ValueError(
                f"CUDA graphs need a network on a CUDA device, and {type(network).__name__} is on "
                f"{' and '.join(places)}: compile it by 'default'"
            )
    # torch counts the graphs of all modules together, and by default gives up after eight.
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _GRAPHS)
    settings.allow_rnn = True  # unrolled; else they tear the graph to pieces
    if compilation == "cuda-graphs":
        network.compile(mode="reduce-overhead", dynamic=False)
    else:
        network.compile()


def to_channels_last(network: nn.Module) -> None:
    """Lays the weights of convolutions out channels last, in place, as activations are from a model's door on; the
    parameters, their names and their values stay the same. Other tables of four axes are left alone: foreign code may
    rely on how they lie."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            layout = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.weight.data = module.weight.data.contiguous(memory_format=layout)
