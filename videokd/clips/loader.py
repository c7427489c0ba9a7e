"""Manifest rows to batches: decoded once, cut into a view for every party, in a fixed order."""

import contextlib
import hashlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from videokd.clips import sampling, views
from videokd.clips.manifest import Manifest, Video
from videokd.clips.reading import Frames, VideoError, VideoIndex, read, scan
from videokd.contracts import UNLABELLED, Batch, Clip, InputSpec

OnBadVideo = Literal["error", "skip"]


class PartyView(TypedDict):
    """What one party sees of a clip."""

    frames: Tensor  # uint8 (T, 3, size, size)
    times: Tensor  # float32 (T,), seconds


class Sample(TypedDict):
    """One clip, as the data set hands it out."""

    clips: dict[str, PartyView]
    label: int
    id: str
    view: int


class ClipDataset(Dataset[Sample]):
    """The clips of a list, one view for every party.

    A view is a function of (seed, clip id, view number) alone: workers, ranks and resumed runs agree on it.
    `dataset[i]` is view 0 of clip i, `dataset[i, v]` its view v.

    Args:
        manifest: which videos, under which class numbers.
        specs: party name -> what it wants to see.
        augment: how training views vary; None for the centred test view.
        seed: of the views.
        memory: where decoded videos are kept, for sets of short clips that are read many times; None reads the files.
    """

    def __init__(
        self,
        manifest: Manifest,
        specs: Mapping[str, InputSpec],
        *,
        augment: views.Augment | None = None,
        seed: int = 0,
        memory: "FrameMemory | None" = None,
    ) -> None:
        self.videos = manifest.videos
        self.classes = manifest.classes
        self.specs = dict(specs)
        self.augment = augment
        self.seed = seed
        self.short_side = max(spec.short_side for spec in specs.values())
        # The first party is the student: its crop fraction places the box for all, so that all see the same place.
        self.crop_fraction = next(iter(specs.values())).crop_fraction
        self._class_numbers = {name: number for number, name in enumerate(manifest.classes)}
        self.memory = memory

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Raises a `VideoError` for a video that can't be read."""
        index, view_number = key if isinstance(key, tuple) else (key, 0)
        return self._sample(index, view_number)

    def label(self, index: int) -> int:
        """The class number of a clip, or UNLABELLED."""
        name = self.videos[index].label
        return UNLABELLED if name is None else self._class_numbers[name]

    def _sample(self, index: int, view_number: int) -> Sample:
        video = self.videos[index]
        rng = None if self.augment is None else view_generator(self.seed, video.id, view_number)
        decoded, where = self._decode(index, rng)
        height, width = decoded.frames.shape[-2:]
        if self.augment is None or rng is None:
            placement = views.centred(height=height, width=width, crop_fraction=self.crop_fraction)
        else:
            placement = views.drawn(self.augment, height=height, width=width, crop_fraction=self.crop_fraction, rng=rng)
        clips: dict[str, PartyView] = {}
        for party, spec in self.specs.items():
            picked = _places(where[party])
            clips[party] = {
                "frames": views.view(decoded.frames[picked], placement, size=spec.size),
                "times": decoded.times[picked].float(),
            }
        return {"clips": clips, "label": self.label(index), "id": video.id, "view": view_number}

    def _decode(self, index: int, rng: np.random.Generator | None) -> tuple[Frames, dict[str, NDArray[np.int64]]]:
        """Frames that any party needs, and for each party where its own lie among them."""
        path = self.videos[index].path
        if self.memory is not None:
            held = self.memory.read(path, short_side=self.short_side)
            return held, sampling.joint_frames(len(held.frames), self.specs, rng=rng)
        table = _scan(path)
        numbers = sampling.joint_frames(table.num_frames, self.specs, rng=rng)
        needed = np.unique(np.concatenate(list(numbers.values())))
        frames = read(path, needed.tolist(), index=table, short_side=_decoded_side(table, self.short_side))
        return frames, {party: np.searchsorted(needed, wanted) for party, wanted in numbers.items()}


class FrameMemory:
    """Decoded videos, each held whole; data sets that read the same files can share one."""

    def __init__(self) -> None:
        self._videos: dict[tuple[Path, int], Frames | VideoError] = {}

    def read(self, path: Path, *, short_side: int) -> Frames:
        """All frames of a video; decoded at the first call. Raises its `VideoError` at every call."""
        key = (path, short_side)
        if key not in self._videos:
            try:
                table = _scan(path)
                numbers = range(table.num_frames)
                self._videos[key] = read(path, numbers, index=table, short_side=_decoded_side(table, short_side))
            except VideoError as error:
                self._videos[key] = error
        held = self._videos[key]
        if isinstance(held, VideoError):
            # A new one each time: a raised exception keeps the frames of its traceback alive.
            raise VideoError(held.path, held.reason)
        return held

    def fill(self, dataset: ClipDataset, *, threads: int = 2) -> Iterator[None]:
        """Decodes what `dataset` will read, some files at a time, yielding as they come."""

        def hold(video: Video) -> None:
            # A broken video is raised, or counted, where its clip is asked for.
            with contextlib.suppress(VideoError):
                self.read(video.path, short_side=dataset.short_side)

        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(hold, dataset.videos)


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """Which (clip, view) make up the batch of each step: a function of (seed, step) alone.

    Labelled and unlabelled clips come from two endless streams, each reshuffled at every pass; the number of the
    pass is the number of the view, modulo `views` where that is given. A step uses up `batch_size` places of the
    labelled stream, however many of them unlabelled clips take: so the labelled clips of a mixed batch are the first
    ones of the batch that a run without unlabelled clips has at that step.

    Args:
        labels: (clips,) class numbers, UNLABELLED where unknown.
        batch_size: clips a step.
        unlabelled_per_batch: how many of them have no label.
        seed: of the order.
        steps: first step and step after the last.
        views: how many different views of a clip there are; None for no end of them.

    Raises:
        ValueError: if the list has too few clips of a kind that a batch needs.
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
    ) -> None:
        if not 0 <= unlabelled_per_batch <= batch_size or batch_size < 1:
            raise ValueError(f"a batch of {batch_size} clips can't hold {unlabelled_per_batch} unlabelled ones")
        kinds = np.asarray(labels) == UNLABELLED
        labelled, unlabelled = np.flatnonzero(~kinds), np.flatnonzero(kinds)
        self.steps = steps
        self.views = views
        self._streams = []
        wanted = {"labelled": (labelled, batch_size - unlabelled_per_batch, batch_size)}
        wanted["unlabelled"] = (unlabelled, unlabelled_per_batch, unlabelled_per_batch)
        for number, (kind, (clips, per_batch, pace)) in enumerate(wanted.items()):
            if per_batch and not len(clips):
                raise ValueError(f"a batch needs {per_batch} {kind} clips, and the list has none")
            if per_batch:
                self._streams.append((_Stream(clips, seed=(seed, number)), per_batch, pace))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield self.batch(step)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The (clip, view number) pairs of one step."""
        chosen = [
            stream.at(position)
            for stream, per_batch, pace in self._streams
            for position in range(step * pace, step * pace + per_batch)
        ]
        return [(clip, number if self.views is None else number % self.views) for clip, number in chosen]


class _Stream:
    """Endless passes over `items`, each in an order of its own."""

    def __init__(self, items: NDArray[np.int64], *, seed: tuple[int, int]) -> None:
        self.items = items
        self.seed = seed
        self.order = lru_cache(maxsize=2)(self._order)

    def at(self, position: int) -> tuple[int, int]:
        """(item, number of the pass) at a position counted from the very start."""
        number, place = divmod(position, len(self.items))
        return int(self.order(number)[place]), number

    def _order(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self.seed, number]).permutation(self.items)


def batches(
    dataset: ClipDataset,
    order: Sampler[list[tuple[int, int]]],
    *,
    workers: int = 0,
    on_bad_video: OnBadVideo = "error",
) -> Iterator[Batch]:
    """The batches that `order` names.

    Args:
        dataset: where the clips come from.
        order: lists of (clip, view number).
        workers: processes that decode; 0 decodes in this one.
        on_bad_video: "skip" leaves a video that can't be read out of its batch, which names it in `skipped`.

    Raises:
        ValueError: for a video that can't be read, if `on_bad_video` is "error".
    """
    loader = DataLoader(
        _Forgiving(dataset),
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )
    for batch in loader:
        if batch.skipped and on_bad_video == "error":
            raise ValueError(f"{batch.skipped[0]} To leave such videos out, named and counted: --on-bad-video skip")
        yield batch


class _Forgiving(Dataset["Sample | BadVideo"]):
    """Hands a broken video on as a value: an exception would reach the main process as text, without its type."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> "Sample | BadVideo":
        try:
            return self.dataset[key]
        except VideoError as error:
            return BadVideo(str(error))


@dataclass(frozen=True)
class BadVideo:
    """Stands in for a clip that could not be read, until `collate` counts it."""

    reason: str


@dataclass(frozen=True)
class EveryClip(Sampler[list[tuple[int, int]]]):
    """View 0 of every clip of a list, once, in its order."""

    num_clips: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.num_clips // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, self.num_clips, self.batch_size):
            yield [(clip, 0) for clip in range(start, min(start + self.batch_size, self.num_clips))]


def collate(samples: "Sequence[Sample | BadVideo]") -> Batch:
    """One batch of the samples that could be read; the others are named in `Batch.skipped`."""
    good = [sample for sample in samples if not isinstance(sample, BadVideo)]
    skipped = tuple(sample.reason for sample in samples if isinstance(sample, BadVideo))
    parties = good[0]["clips"] if good else {}
    return Batch(
        clips={
            party: Clip(
                torch.stack([sample["clips"][party]["frames"] for sample in good]),
                torch.stack([sample["clips"][party]["times"] for sample in good]),
            )
            for party in parties
        },
        label=torch.tensor([sample["label"] for sample in good], dtype=torch.int64),
        id=tuple(sample["id"] for sample in good),
        view=torch.tensor([sample["view"] for sample in good], dtype=torch.int64),
        skipped=skipped,
    )


def leave_out_missing(manifest: Manifest, *, on_bad_video: OnBadVideo) -> tuple[Manifest, tuple[str, ...]]:
    """The videos whose file is there, and a sentence for each whose file is not.

    Raises:
        ValueError: where files are missing and `on_bad_video` is "error", or where all are.
    """
    missing = [video for video in manifest.videos if not video.path.is_file()]
    if missing and (on_bad_video == "error" or len(missing) == len(manifest.videos)):
        named = ", ".join(str(video.path) for video in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{len(missing)} of {len(manifest.videos)} videos are missing: {named}. "
            "Correct the list, or leave them out with --on-bad-video skip"
        )
    there = tuple(video for video in manifest.videos if video.path.is_file())
    return replace(manifest, videos=there), tuple(f"{video.path}: the file is missing" for video in missing)


def view_generator(seed: int, clip_id: str, view_number: int) -> np.random.Generator:
    """The randomness of one view."""
    # A counter-based generator keyed by a hash: no state to warm up, and no two views share a stream.
    key = hashlib.blake2b(f"{seed}/{view_number}/{clip_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def _places(where: NDArray[np.int64]) -> slice | Tensor:
    """Evenly spaced places as a slice, which copies no frame; others as they are."""
    step = int(where[1] - where[0]) if len(where) > 1 else 1
    if step > 0 and where[-1] - where[0] == step * (len(where) - 1) and (np.diff(where) == step).all():
        return slice(int(where[0]), int(where[-1]) + 1, step)
    return torch.from_numpy(where)


@lru_cache(maxsize=16384)
def _scan(path: Path) -> VideoIndex:
    return scan(path)


def _decoded_side(table: VideoIndex, short_side: int) -> int:
    # A small video is enlarged once, after its crop, and not twice.
    return min(short_side, table.height, table.width)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C is for the main process: it goes on to the end of its step, and needs its workers for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
