"""Which clips make up each batch: arithmetic on the step's number, so that a resumed run and every rank agree."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from videokd.contracts import UNLABELLED

ClipView = tuple[int, int]
"""A clip's place in the list, and the number of its view."""


class Order(Protocol):
    """Batches, in blocks within which the views of one video are decoded together."""

    def blocks(self) -> Iterator[list[list[ClipView]]]:
        """Lists of batches; put one after the other they are the order."""


class BatchOrder(Sampler[list[ClipView]]):
    """Which (clip, view) make up the batch of each step: a function of (seed, step) alone.

    Labelled and unlabelled clips come from two endless streams, each reshuffled at every pass; the number of the
    pass is the number of the view, modulo `views` where that is given. A step uses up `batch_size` places of the
    labelled stream, however many of them unlabelled clips take: so the labelled clips of a mixed batch are the first
    ones of the batch that a run without unlabelled clips has at that step.

    With `repeats` a video is opened once for so many of its views, which are shuffled over the batches of a block
    [repeated augmentation, Hoffer et al. 2020]: with repeats=2 and spread=3

        batches    0      1      2    |  3      4      5    |  6 ...
        videos   a b c  d e f  g h i  | f a h  c i e  b g d |  another nine videos

    With `class_balance` a pass of the labelled stream draws as many clips as there are, with replacement: some come
    several times, others not at all. The place in the stream is the number of the view then, so that no two draws of
    a clip look alike.

    Args:
        labels: (clips,) class numbers, UNLABELLED where unknown.
        batch_size: clips a step, over all ranks.
        unlabelled_per_batch: how many of them have no label.
        seed: of the order.
        steps: first step and step after the last.
        views: how many different views of a clip there are; None for no end of them.
        repeats: views of a video that are decoded together.
        spread: batches that the videos of a block fill; with one rank or spread=1, batches are the same for any
            number of ranks.
        class_balance: labelled clips are drawn by the size of their class to the power of minus this [Kang et al.
            2020]; 0 takes every clip once a pass, 1 gives every class the same chance.
        rank: which part of each batch to name.
        world_size: how many parts there are; they are equal, and together the batch.

    Raises:
        ValueError: if the list has too few clips of a kind that a batch needs, or a batch can't be parted equally.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        batch_size: int,
        unlabelled_per_batch: int = 0,
        seed: int,
        steps: range,
        views: int | None = None,
        repeats: int = 1,
        spread: int = 1,
        class_balance: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= unlabelled_per_batch <= batch_size or batch_size < 1:
            raise ValueError(f"a batch of {batch_size} clips can't hold {unlabelled_per_batch} unlabelled ones")
        if repeats < 1 or spread < 1:
            raise ValueError(f"repeats and spread are at least 1, got {repeats} and {spread}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
        kinds = np.asarray(labels) == UNLABELLED
        labelled, unlabelled = np.flatnonzero(~kinds), np.flatnonzero(kinds)
        self.steps = steps
        self.views = views
        self.repeats = repeats
        self.spread = spread if repeats > 1 else 1  # without repeats there is nothing to spread
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._streams = []
        wanted = {"labelled": (labelled, batch_size - unlabelled_per_batch, batch_size)}
        wanted["unlabelled"] = (unlabelled, unlabelled_per_batch, unlabelled_per_batch)
        chances = {"labelled": _chances(np.asarray(labels)[labelled], class_balance) if class_balance else None}
        for number, (kind, (clips, per_batch, pace)) in enumerate(wanted.items()):
            if per_batch and not len(clips):
                raise ValueError(f"a batch needs {per_batch} {kind} clips, and the list has none")
            if per_batch % world_size:
                raise ValueError(f"{per_batch} {kind} clips a batch can't be parted equally over {world_size} ranks")
            if per_batch:
                stream = _Stream(clips, seed=(seed, number), chances=chances.get(kind))
                self._streams.append((stream, per_batch, pace))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[ClipView]]:
        for step in self.steps:
            yield self.batch(step)

    def over(self, steps: range, *, whole: bool = False) -> "BatchOrder":
        """The same order, of other steps; `whole` names the clips of all ranks."""
        other = copy(self)
        other.steps = steps
        if whole:
            other._rank, other._world_size = 0, 1
        return other

    def blocks(self) -> Iterator[list[list[ClipView]]]:
        """The batches of `steps`, those that share videos together."""
        if not self.steps:
            return
        length = self.spread * self.repeats
        for first in range(self.steps.start - self.steps.start % length, self.steps.stop, length):
            yield [self.batch(step) for step in range(first, first + length) if step in self.steps]

    def batch(self, step: int) -> list[ClipView]:
        """The (clip, view number) pairs of one step."""
        block, place = divmod(step, self.spread * self.repeats)
        turn, column = divmod(place, self.spread)
        chosen: list[ClipView] = []
        for number, (stream, per_batch, pace) in enumerate(self._streams):
            first = block * self.spread * pace
            positions = [
                first + row * pace + offset
                for row in range(self.spread)
                for offset in range(self._rank, per_batch, self._world_size)
            ]
            if turn:  # the first view of each video comes in the stream's own order
                rng = np.random.default_rng([self._seed, number, block, turn, self._rank])
                positions = rng.permutation(positions).tolist()
            share = len(positions) // self.spread
            for position in positions[column * share : (column + 1) * share]:
                clip, visit = stream.at(position)
                view = visit * self.repeats + turn
                chosen.append((clip, view if self.views is None else view % self.views))
        return chosen


def _chances(labels: NDArray[np.int64], power: float) -> NDArray[np.float64]:
    """The chance of each clip, by the size of its class to the power of minus `power`."""
    _, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    weights = sizes[numbers] ** -float(power)
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


class _Stream:
    """Endless passes over `items`, each in an order of its own, or drawn anew by the items' `chances`."""

    def __init__(
        self, items: NDArray[np.int64], *, seed: tuple[int, int], chances: NDArray[np.float64] | None = None
    ) -> None:
        self.items = items
        self.seed = seed
        self.chances = chances
        self.order = lru_cache(maxsize=2)(self._order)

    def at(self, position: int) -> tuple[int, int]:
        """(item, number of this visit to it) at a position counted from the very start."""
        number, place = divmod(position, len(self.items))
        return int(self.order(number)[place]), number if self.chances is None else position

    def _order(self, number: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([*self.seed, number])
        if self.chances is None:
            return rng.permutation(self.items)
        return rng.choice(self.items, size=len(self.items), p=self.chances)


@dataclass(frozen=True)
class EveryClip(Sampler[list[ClipView]]):
    """Every view of every clip of a list, once over all ranks, in the list's order."""

    num_clips: int
    batch_size: int
    views: int = 1
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        clips = len(range(self.rank, self.num_clips, self.world_size))
        return -(-clips * self.views // self.batch_size)

    def __iter__(self) -> Iterator[list[ClipView]]:
        batch: list[ClipView] = []
        for clip in range(self.rank, self.num_clips, self.world_size):
            for view in range(self.views):
                batch.append((clip, view))
                if len(batch) == self.batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def blocks(self) -> Iterator[list[list[ClipView]]]:
        """Each batch by itself."""
        for batch in self:
            yield [batch]
