"""From video files to logits: every stage by itself, and all of them together."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch

from videokd.bench.contenders import Contender
from videokd.bench.results import Measurement, Round, Stage
from videokd.bench.variants import Runner
from videokd.clips import reading
from videokd.clips.backends import is_video_file
from videokd.clips.dataset import ClipDataset
from videokd.clips.loader import batches, on_device
from videokd.clips.manifest import Manifest
from videokd.clips.order import ClipView
from videokd.clips.reading import VideoError
from videokd.contracts import Batch, InputSpec


def chosen(manifest: Manifest, *, split: str | None, clips: int) -> Manifest:
    """So many clips of a split that are there, evenly spread over the list.

    Raises:
        ValueError: if there are none.
    """
    there = [one for one in manifest.split(split).videos if one.error is None and one.is_there()]
    if not there:
        raise ValueError(f"no video of {manifest.source} (split {split}) is there: nothing to decode")
    step = max(len(there) / clips, 1)
    return replace(manifest, videos=tuple(there[int(place * step)] for place in range(min(clips, len(there)))))


def readable(manifest: Manifest, spec: InputSpec) -> tuple[Manifest, list[str]]:
    """The clips that can be read, each of which is read once to know it, and why the others can't.

    Raises:
        ValueError: if none can.
    """
    dataset = ClipDataset(manifest, {"student": spec})
    kept, unread = [], []
    for number, video in enumerate(manifest.videos):
        try:
            dataset.clips(number, [0])
            kept.append(video)
        except VideoError as error:
            unread.append(str(error))
    if not kept:
        raise ValueError(f"no clip of {manifest.source} can be read; the first: {unread[0]}")
    return replace(manifest, videos=tuple(kept)), unread


class Endless:
    """The clips in the list's order, again and again, for as many batches as are wanted."""

    def __init__(self, num_clips: int, batch_size: int, batches: int | None = None) -> None:
        self._clips, self._size, self._batches = num_clips, batch_size, batches

    def blocks(self) -> Iterator[list[list[ClipView]]]:
        """Each batch by itself."""
        coming, made = cycle(range(self._clips)), 0
        while self._batches is None or made < self._batches:
            yield [[(next(coming), 0) for _ in range(self._size)]]
            made += 1


def loading(dataset: ClipDataset, *, clips: int, device: torch.device) -> list[Contender]:
    """Decoding, transforming, both in batches, and the copy to the GPU: one batch a call, in this process.

    Where frames are not decoded by PyAV from files of their own (packed sets, other decoders, folders of pictures),
    decoding and transforming are one thing, and are timed together as loading.
    """
    makers: dict[Stage, Callable[[ClipDataset, int], Callable[[], object]]] = {"load": _loads}
    if dataset.backend == "pyav" and all(map(is_video_file, dataset.videos)):
        makers = {"decode": _decodes, "transform": _transforms, "load": _loads}
    found = [
        Contender(party="", stage=stage, variant="this process", clips=clips, make=partial(make, dataset, clips))
        for stage, make in makers.items()
    ]
    if device.type == "cuda":
        copies = partial(_copies, dataset, clips, device)
        found.append(Contender(party="", stage="copy", variant="pinned", clips=clips, make=copies))
    return found


def end_to_end(
    dataset: ClipDataset, run: Callable[[], Runner], *, party: str, variant: str, clips: int, device: torch.device
) -> Contender:
    """From files to logits in one process, nothing ahead of anything: what the stages add up to."""

    def make() -> Callable[[], object]:
        runner, coming = run(), _served(dataset, clips, device)
        return lambda: runner(next(coming).clips["student"])

    return Contender(party=party, stage="end to end", variant=variant, clips=clips, make=make)


def with_workers(
    dataset: ClipDataset,
    run: Runner | None,
    *,
    party: str,
    variant: str,
    workers: int,
    clips: int,
    seconds: float,
    device: torch.device,
) -> Measurement:
    """Throughput with processes that decode ahead, over the whole time after they have started: with a network that
    looks at the clips, or (None) of the loader alone."""
    order, beside = Endless(len(dataset), clips), f"{workers} worker{'s' * (workers > 1)}"
    rounds: list[Round] = []
    source = on_device(batches(dataset, order, workers=workers, on_bad_video="skip"), device)
    try:
        for _ in range(4 * workers):  # what was decoded while they started
            _seen(next(source), run)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(rounds) < 4:
            start, cpu, calls = time.perf_counter(), time.process_time(), 0
            while calls == 0 or time.perf_counter() - start < seconds / 8:
                _seen(next(source), run)
                calls += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            wall = time.perf_counter() - start
            rounds.append(Round(calls=calls, wall=wall, cpu=time.process_time() - cpu, device=None, yardstick=None))
    finally:
        source.close()  # type: ignore[attr-defined]
    return Measurement(
        party=party if run else "",
        stage="end to end" if run else "load",
        variant=f"{variant}, {beside}" if run else beside,
        clips=clips,
        rounds=rounds,
        latencies=[one.wall / one.calls for one in rounds],
    )


def _seen(batch: Batch, run: Runner | None) -> None:
    if run is not None:
        run(batch.clips["student"])


def _served(dataset: ClipDataset, clips: int, device: torch.device) -> Iterator[Batch]:
    return on_device(batches(dataset, Endless(len(dataset), clips)), device)


def _loads(dataset: ClipDataset, clips: int) -> Callable[[], object]:
    coming = batches(dataset, Endless(len(dataset), clips))
    return lambda: next(coming)


def _groups(dataset: ClipDataset, clips: int) -> Iterator[Sequence[int]]:
    for (batch,) in Endless(len(dataset), clips).blocks():
        yield [clip for clip, _ in batch]


def _decodes(dataset: ClipDataset, clips: int) -> Callable[[], object]:
    reads = [dataset.read_of(number) for number in range(len(dataset))]
    coming = _groups(dataset, clips)
    return lambda: [
        reading.decode(reads[clip].video.path, reads[clip].cuts, index=reads[clip].index) for clip in next(coming)
    ]


def _transforms(dataset: ClipDataset, clips: int) -> Callable[[], object]:
    reads = [dataset.read_of(number) for number in range(len(dataset))]
    # A few are enough: they are held as they come from the decoder, whole.
    held: list[Any] = [(one, reading.decode(one.video.path, one.cuts, index=one.index)) for one in reads[: 2 * clips]]
    coming = cycle(held)

    def call() -> object:
        found = []
        for _ in range(clips):
            one, frames = next(coming)
            found.append(reading.paint(one.cuts, frames, index=one.index))
        return found

    return call


def _copies(dataset: ClipDataset, clips: int, device: torch.device) -> Callable[[], object]:
    held = [batch for batch, _ in zip(batches(dataset, Endless(len(dataset), clips)), range(4))]
    coming = cycle(held)
    return lambda: next(coming).to(device)
