"""Clips to batches, in a fixed order, by worker processes that no video can hang or take along."""

import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from videokd.clips.dataset import ClipDataset, PartySound, PartyView, Sample
from videokd.clips.manifest import Manifest
from videokd.clips.order import ClipView, Order
from videokd.clips.reading import Fault, VideoError
from videokd.clips.workers import Finished, Workers
from videokd.contracts import Batch, Clip, InputSpec, Sound, SoundSpec, View, ViewSpec
from videokd.interruption import raise_if_stopped

OnBadVideo = Literal["error", "skip", "substitute"]
"""What to do with a video that can't be read: stop; leave it out; put another clip of its class in its place."""

MAX_SUBSTITUTES = 5
"""So many clips are tried in the place of one."""


def batches(
    dataset: ClipDataset,
    order: Order,
    *,
    workers: int = 0,
    on_bad_video: OnBadVideo = "error",
    time_limit: float = 60.0,
) -> Iterator[Batch]:
    """The batches that `order` names, each in its place, whatever happens to a video or a worker.

    Clips come through shared memory that is allocated once: two blocks of batches, and what the workers have in hand.
    Frames lie channels last in memory, pinned where there is a GPU.

    Args:
        dataset: where the clips come from.
        order: lists of (clip, view number).
        workers: processes that decode; 0 decodes in this one, where nothing can end a decoder that hangs.
        on_bad_video: what to do with a video that can't be read, takes longer than `time_limit`, or kills its worker
            twice; each is named in `Batch.skipped`.
        time_limit: seconds for the views of one video.

    Raises:
        ValueError: for such a video, if `on_bad_video` is "error".
    """
    blocks = order.blocks()
    first = list(islice(blocks, 2))  # a resumed run may begin in the middle of a block
    if not first:
        return
    most_clips = max(sum(map(len, block)) for block in first)
    most_views = max(max(Counter(index for batch in block for index, _ in batch).values()) for block in first)
    num_slots = 2 * most_clips + 2 * workers * most_views
    slots = _Slots(dataset.seen, num_slots, shared=workers > 0)
    decode = _Decode(dataset, slots)
    pool: _Pool = _InThisProcess(decode)
    if workers:
        # The main process may be busy with a step for long: each worker has its share of the slots to go on with.
        ahead = min(num_slots // workers, 64)
        pool = Workers(decode, workers=workers, time_limit=time_limit, ahead=ahead)
    with closing(pool):
        yield from _Desk(dataset, chain(first, blocks), slots, num_slots, on_bad_video).served(pool)


def on_device(source: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on `device`; on a GPU each is copied while the one before it is used, in a stream of its own."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in source)
        return
    copies = torch.cuda.Stream(device)
    coming: Batch | None = None
    for batch in source:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
        if coming is not None:
            yield coming
        torch.cuda.current_stream(device).wait_stream(copies)
        moved.record_stream(torch.cuda.current_stream(device))
        coming = moved
    if coming is not None:
        yield coming


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of samples, for a `DataLoader` of one's own."""
    parties = samples[0]["clips"] if samples else {}
    return Batch(
        clips={party: _view([sample["clips"][party] for sample in samples]) for party in parties},
        label=_labels([_plain(sample["label"]) for sample in samples]),
        id=tuple(sample["id"] for sample in samples),
        view=torch.tensor([sample["view"] for sample in samples], dtype=torch.int64),
    )


def _view(seen: Sequence[PartyView | PartySound]) -> View:
    """What one party gets of a batch."""
    parts = {name: torch.stack([one[name] for one in seen]) for name in seen[0]}  # type: ignore[literal-required]
    return Clip(**parts) if "frames" in parts else Sound(**parts)


def leave_out_bad(manifest: Manifest, *, on_bad_video: OnBadVideo) -> tuple[Manifest, tuple[str, ...]]:
    """The videos whose file is there and was not found broken before, and a sentence for each of the others.

    Raises:
        ValueError: where there are others and `on_bad_video` is "error", or where all are.
    """
    reasons = {
        video.id: "the file is missing" if video.error is None else video.error
        for video in manifest.videos
        if video.error is not None or not video.is_there()
    }
    if reasons and (on_bad_video == "error" or len(reasons) == len(manifest.videos)):
        bad = [video for video in manifest.videos if video.id in reasons]
        named = ", ".join(f"{video.path} ({reasons[video.id]})" for video in bad[:5]) + (
            ", ..." if len(bad) > 5 else ""
        )
        raise ValueError(
            f"{len(bad)} of {len(manifest.videos)} videos are missing or broken: {named}. "
            "Correct the list, or leave them out with --on-bad-video skip"
        )
    good = tuple(video for video in manifest.videos if video.id not in reasons)
    return replace(manifest, videos=good), tuple(
        f"{video.path}: {reasons[video.id]}" for video in manifest.videos if video.id in reasons
    )


@dataclass(frozen=True)
class _Task:
    """Views of one clip, and where to put them."""

    ticket: int
    index: int
    views: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class _Placed:
    """A clip whose frames lie in their slot."""

    label: int | list[float]
    id: str
    view: int


@dataclass
class _Entry:
    """One place in a batch."""

    index: int
    view: int
    slot: int | None = None
    placed: _Placed | None = None
    reasons: list[str] = field(default_factory=list)
    """Why what belongs here could not be read."""
    given_up: bool = False

    @property
    def settled(self) -> bool:
        return self.placed is not None or self.given_up


_Result = list[_Placed] | VideoError


class _Pool(Protocol):
    """What the desk asks of `Workers`."""

    def submit(self, task: _Task) -> None: ...
    def wait(self) -> "list[Finished[_Task, _Result]]": ...
    def close(self) -> None: ...


class _InThisProcess:
    """Decodes a clip when it is waited for: nothing is decoded ahead."""

    def __init__(self, decode: "_Decode") -> None:
        self._decode = decode
        self._tasks: deque[_Task] = deque()

    def submit(self, task: _Task) -> None:
        self._tasks.append(task)

    def wait(self) -> "list[Finished[_Task, _Result]]":
        task = self._tasks.popleft()
        result = self._decode(task)
        raise_if_stopped()  # a decoder's callback may have lost the signal, and the video seems damaged
        return [Finished(task, result, None)]

    def close(self) -> None:
        self._tasks.clear()


class _Slots:
    """Memory for so many clips, channels last, that workers write and the main process reads."""

    def __init__(self, specs: Mapping[str, ViewSpec], count: int, *, shared: bool) -> None:
        self._pin = torch.cuda.is_available()
        if shared:
            _check_shared_memory(count * sum(map(_num_bytes, specs.values())))
        # party -> part of its view -> (slots, ...); frames are (slots, T, size, size, 3)
        self.parts = {party: _room(spec, count) for party, spec in specs.items()}
        for part in (part for parts in self.parts.values() for part in parts.values()):
            if shared:
                part.share_memory_()

    def put(self, slot: int, sample: Sample) -> None:
        for party, seen in sample["clips"].items():
            for name, room in self.parts[party].items():
                part: Tensor = seen[name]  # type: ignore[literal-required]
                room[slot].copy_(part.permute(0, 2, 3, 1) if name == "frames" else part)

    def take(self, slots: Sequence[int]) -> dict[str, View]:
        """The clips in these slots, copied."""
        wanted = torch.tensor(slots)
        views: dict[str, View] = {}
        for party, parts in self.parts.items():
            held = {}
            for name, room in parts.items():
                held[name] = torch.empty((len(slots), *room.shape[1:]), dtype=room.dtype, pin_memory=self._pin)
                torch.index_select(room, 0, wanted, out=held[name])
            if "frames" in held:
                views[party] = Clip(held["frames"].permute(0, 1, 4, 2, 3), held["times"])
            else:
                views[party] = Sound(**held)
        return views


def _room(spec: ViewSpec, count: int) -> dict[str, Tensor]:
    if isinstance(spec, SoundSpec):
        return {
            "samples": torch.empty((count, spec.samples)),
            "start": torch.empty(count),
            "heard": torch.empty(count, dtype=torch.bool),
        }
    return {
        "frames": torch.empty((count, spec.frames, spec.size, spec.size, 3), dtype=torch.uint8),
        "times": torch.empty((count, spec.frames)),
    }


def _num_bytes(spec: ViewSpec) -> int:
    """Bytes of one clip."""
    if isinstance(spec, InputSpec):
        return spec.frames * (3 * spec.size**2 + 4)
    return 4 * spec.samples + 5


class _Decode:
    """What a worker does with a task."""

    def __init__(self, dataset: ClipDataset, slots: _Slots) -> None:
        self._dataset, self._slots = dataset, slots

    def __call__(self, task: _Task) -> _Result:
        try:
            samples = self._dataset.clips(task.index, task.views)
        except VideoError as error:
            return error
        for slot, sample in zip(task.slots, samples):
            self._slots.put(slot, sample)
        return [_Placed(_plain(sample["label"]), sample["id"], sample["view"]) for sample in samples]


class _Desk:
    """Keeps the workers busy and puts batches together in their order."""

    def __init__(
        self,
        dataset: ClipDataset,
        blocks: Iterator[list[list[ClipView]]],
        slots: _Slots,
        num_slots: int,
        policy: OnBadVideo,
    ) -> None:
        self._dataset, self._blocks, self._slots, self._policy = dataset, blocks, slots, policy
        self._free = deque(range(num_slots))
        self._batches: deque[list[_Entry]] = deque()
        self._groups: deque[list[_Entry]] = deque()  # entries of one clip, not yet given to a worker
        self._in_work: dict[int, list[_Entry]] = {}  # ticket -> entries
        self._bad: dict[int, VideoError] = {}  # clips that hung or killed a worker: not tried again
        self._tickets = count()

    def served(self, pool: _Pool) -> Iterator[Batch]:
        while True:
            self._submit(pool)
            if not self._batches:
                return
            while not all(entry.settled for entry in self._batches[0]):
                for finished in pool.wait():
                    self._settle(finished)
                self._submit(pool)
            yield self._batch(self._batches.popleft())

    def _submit(self, pool: _Pool) -> None:
        """Gives out as many clips as there are slots."""
        while self._groups or self._take_block():
            group = self._groups[0]
            missing = [entry for entry in group if entry.slot is None]
            if len(missing) > len(self._free):
                return
            self._groups.popleft()
            if group[0].index in self._bad:
                self._replace(group, self._bad[group[0].index])
                continue
            for entry in missing:
                entry.slot = self._free.popleft()
            ticket = next(self._tickets)
            self._in_work[ticket] = group
            slots = tuple(entry.slot for entry in group if entry.slot is not None)
            pool.submit(_Task(ticket, group[0].index, tuple(entry.view for entry in group), slots))

    def _take_block(self) -> bool:
        """Reads a block of the order, and groups what one video has in it; False at the end."""
        for block in self._blocks:
            groups: dict[int, list[_Entry]] = {}
            for batch in block:
                entries = [_Entry(index, view) for index, view in batch]
                self._batches.append(entries)
                for entry in entries:
                    groups.setdefault(entry.index, []).append(entry)
            self._groups.extend(groups.values())
            if groups:
                return True
        return False

    def _settle(self, finished: "Finished[_Task, _Result]") -> None:
        task, result, failure = finished.task, finished.result, finished.failure
        entries = self._in_work.pop(task.ticket)
        if failure is not None:
            if failure.kind == "raised":
                raise RuntimeError(f"{self._dataset.videos[task.index].path}: {failure.reason}")
            fault: Fault = "slow" if failure.kind == "time limit" else "crash"
            result = VideoError(self._dataset.videos[task.index].path, failure.reason, fault)
            self._bad[task.index] = result
        if isinstance(result, VideoError):
            self._replace(entries, result)
            return
        assert result is not None
        for entry, placed in zip(entries, result, strict=True):
            entry.placed = placed

    def _replace(self, entries: Sequence[_Entry], error: VideoError) -> None:
        """Puts others in the place of a clip that can't be read, or nothing."""
        for entry in entries:
            other = None
            if self._policy == "substitute" and len(entry.reasons) < MAX_SUBSTITUTES:
                other = self._dataset.substitute(entry.index, entry.view, len(entry.reasons))
            entry.reasons.append(str(error) if other is None else f"{error} Another clip of its class stood in.")
            if other is None:
                entry.given_up = True
                if entry.slot is not None:
                    self._free.append(entry.slot)
            else:
                entry.index = other
                self._groups.appendleft([entry])

    def _batch(self, entries: Sequence[_Entry]) -> Batch:
        reasons = tuple(reason for entry in entries for reason in entry.reasons)
        if reasons and self._policy == "error":
            raise ValueError(f"{reasons[0]} To leave such videos out, named and counted: --on-bad-video skip")
        slots = [entry.slot for entry in entries if entry.placed is not None and entry.slot is not None]
        placed = [entry.placed for entry in entries if entry.placed is not None]
        clips = self._slots.take(slots) if slots else {}
        self._free.extend(slots)
        return Batch(
            clips=clips,
            label=_labels([one.label for one in placed]),
            id=tuple(one.id for one in placed),
            view=torch.tensor([one.view for one in placed], dtype=torch.int64),
            skipped=reasons,
        )


def _check_shared_memory(num_bytes: int) -> None:
    """Raises a `ValueError` where there is too little: who writes beyond it is killed, and videos would be blamed."""
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else num_bytes
    if num_bytes > free:
        raise ValueError(
            f"the batches need {num_bytes / 1e6:.0f} MB of shared memory, and {shared} has {free / 1e6:.0f} MB: "
            "give the container more (docker run --shm-size), or make batches, repeats or workers fewer"
        )


def _plain(label: int | Tensor) -> int | list[float]:
    """A label that goes through a pipe as it is; a tensor would go through a file of its own."""
    if isinstance(label, int):
        return label
    shares: list[float] = label.tolist()
    return shares


def _labels(labels: Sequence[int | list[float]]) -> Tensor:
    """int64 (B,), or float32 (B, K) in sets of several labels a clip."""
    return torch.tensor(labels) if labels else torch.empty(0, dtype=torch.int64)
