"""Clips with their pieces of time in another order, for terms that compare both."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videokd.clips.dataset import view_generator
from videokd.contracts import Batch, Clip, InputSpec, View, ViewSpec


def with_shuffled(batch: Batch, pieces: int, parties: Collection[str] | None = None) -> Batch:
    """The batch with the parties' views cut into `pieces` equally long pieces of time, in another order under
    `shuffled`: the same order for all parties, never the one that was filmed, a function of clip and view alone.

    Args:
        batch: filmed.
        pieces: into which each clip is cut.
        parties: whose views are wanted; None for all.
    """
    order = np.stack([_order(clip, int(view), pieces) for clip, view in zip(batch.id, batch.view, strict=True)])
    wanted = {party: view for party, view in batch.clips.items() if parties is None or party in parties}
    return replace(batch, shuffled={party: _cut(view, order) for party, view in wanted.items()})


def check_pieces(pieces: int, parties: Collection[str], specs: Mapping[str, ViewSpec]) -> None:
    """Raises a `ValueError` if a party has no frames or sound to shuffle, or can't be cut into so many pieces."""
    for party in sorted(parties):
        if party not in specs:
            raise ValueError(f"a term compares shuffled clips, and {party} neither looks nor listens")
        spec = specs[party]
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
        return view.at(torch.from_numpy(order).to(view.start.device, non_blocking=True))
    each = view.frames.shape[1] // order.shape[1]
    frames: Tensor = torch.from_numpy(order)[:, :, None] * each + torch.arange(each)
    return view.at(frames.flatten(1).to(view.times.device, non_blocking=True))
