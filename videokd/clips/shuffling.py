"""Clips with their pieces of time in another order, for terms that compare both."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videokd.clips.dataset import view_generator
from videokd.contracts import Batch, Clip, InputSpec, View, ViewSpec


def with_shuffled(batch: Batch, pieces: int) -> Batch:
    """The batch with every party's view cut into `pieces` equally long pieces of time, in another order under
    `shuffled`: the same order for all parties, never the one that was filmed, a function of clip and view alone.
    """
    order = np.stack([_order(clip, int(view), pieces) for clip, view in zip(batch.id, batch.view, strict=True)])
    return replace(batch, shuffled={party: _cut(view, order) for party, view in batch.clips.items()})


def check_pieces(pieces: int, specs: Mapping[str, ViewSpec]) -> None:
    """Raises a `ValueError` if a party's frames can't be cut into so many pieces."""
    for party, spec in specs.items():
        if isinstance(spec, InputSpec) and spec.frames % pieces:
            raise ValueError(
                f"{party} sees {spec.frames} frames, which can't be cut into {pieces} equal pieces: choose another "
                "number_of_pieces"
            )


def _order(clip: str, view: int, pieces: int) -> NDArray[np.int64]:
    rng = view_generator(0, f"shuffled {clip}", view)  # a stream of its own, beside that of the views
    while True:
        order = rng.permutation(pieces)
        if (order != np.arange(pieces)).any():
            return order


def _cut(view: View, order: NDArray[np.int64]) -> View:
    if not isinstance(view, Clip):
        return view.at(torch.from_numpy(order).to(view.start.device))
    each = view.frames.shape[1] // order.shape[1]
    frames: Tensor = torch.from_numpy(order)[:, :, None] * each + torch.arange(each)
    return view.at(frames.flatten(1).to(view.times.device))
