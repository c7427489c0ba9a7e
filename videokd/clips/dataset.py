"""The clips of a list, decoded once and cut into a view for every party."""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from videokd.clips import sampling, views
from videokd.clips.backends import Backend, Reader, is_video_file, reader_of, require
from videokd.clips.manifest import Manifest, Video
from videokd.clips.pictures import MAX_PIXELS, Box, Cut, cut_out, places, resized
from videokd.clips.reading import Frames, VideoError, VideoIndex
from videokd.clips.sound import read_sound, sound_start
from videokd.clips.table import FrameTable
from videokd.contracts import UNLABELLED, InputSpec, Resize, SoundSpec, ViewSpec

VIEWS = 1
"""Raised whenever a (seed, clip, view number) comes to show something else: what was stored of it is refused then."""


class PartyView(TypedDict):
    """What one party sees of a clip."""

    frames: Tensor  # uint8 (T, 3, size, size)
    times: Tensor  # float32 (T,), seconds


class PartySound(TypedDict):
    """What one party hears of a clip."""

    samples: Tensor  # float32 (S,)
    start: Tensor  # float32 (), seconds
    heard: Tensor  # bool ()


class Sample(TypedDict):
    """One clip, as the data set hands it out."""

    clips: dict[str, PartyView | PartySound]
    label: int | Tensor  # class number or UNLABELLED; in sets of several labels a clip, float32 (K,)
    id: str
    view: int


class ClipDataset(Dataset[Sample]):
    """The clips of a list, one view for every party.

    A view is a function of (seed, clip id, view number) alone: workers, ranks and resumed runs agree on it.
    `dataset[i]` is view 0 of clip i, `dataset[i, v]` its view v.

    Args:
        manifest: which videos, under which class numbers.
        specs: party name -> what it wants to see or to hear. Sounds are those around the middle of what is seen.
        augment: how training views vary; None for the test views of `grid`.
        grid: test views in time and space; None for the centred one, whatever its number.
        seed: of the views.
        memory: where decoded videos are kept, for sets of short clips that are read many times; None reads the files.
        backend: who decodes video files.
        unseen: parties whose views have their part in placing the others' and are not made: what they would say is
            known.

    Raises:
        ValueError: for a backend that can't be used here, or a party that listens to a packed set, which holds no
            sound.
    """

    def __init__(
        self,
        manifest: Manifest,
        specs: Mapping[str, ViewSpec],
        *,
        augment: views.Augment | None = None,
        grid: views.ViewGrid | None = None,
        seed: int = 0,
        memory: "FrameMemory | None" = None,
        backend: Backend = "pyav",
        unseen: Collection[str] = (),
    ) -> None:
        require(backend)
        self.videos = manifest.videos
        self.classes = manifest.classes
        self.multi_label = manifest.multi_label
        self.specs = {party: spec for party, spec in specs.items() if isinstance(spec, InputSpec)}
        self.sounds = {party: spec for party, spec in specs.items() if isinstance(spec, SoundSpec)}
        self.unseen = frozenset(unseen)
        listening = [party for party in self.sounds if party not in self.unseen]
        if listening and any(video.packed is not None for video in manifest.videos):
            raise ValueError(f"{', '.join(listening)} listens, and {manifest.source} is packed: it holds no sound")
        self.augment = augment
        self.grid = grid
        self.seed = seed
        self.backend: Backend = backend
        self.memory = memory
        self.max_pixels = manifest.max_pixels
        self.short_side = max((spec.short_side for spec in self.specs.values()), default=1)
        # The first party is the student: its geometry places the box for all, so that all see the same place.
        self.crop_fraction = next((spec.crop_fraction for spec in self.specs.values()), 1.0)
        self.resize: Resize = next((spec.resize for spec in self.specs.values()), "crop")
        self.aspect = next((spec.aspect for spec in self.specs.values()), 1.0)
        self._class_numbers = {name: number for number, name in enumerate(manifest.classes)}
        self._flipped = views.flipped_classes(manifest.classes)
        self.table = FrameTable.beside(manifest.source)

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def seen(self) -> dict[str, ViewSpec]:
        """What the parties want for whom views are made."""
        return {party: spec for party, spec in (self.specs | self.sounds).items() if party not in self.unseen}

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Raises a `VideoError` for a video that can't be read."""
        index, view_number = key if isinstance(key, tuple) else (key, 0)
        return self.clips(index, [view_number])[0]

    def may_flip(self, index: int) -> bool:
        """Whether a flip leaves a clip's classes true, or makes others of them."""
        return self._may_flip(self.videos[index])

    def label(self, index: int) -> int:
        """The class number of a clip, or UNLABELLED; of a clip of several labels, the first one's."""
        video = self.videos[index]
        return self._class_numbers[video.names[0]] if video.names else UNLABELLED

    def clips(self, index: int, view_numbers: Sequence[int]) -> list[Sample]:
        """Several views of one clip, from one walk through its video.

        Raises:
            VideoError: for a video that can't be read.
        """
        video = self.videos[index]
        decoded = self._decoded(video)
        looks = [self._look(index, number, decoded) for number in view_numbers]
        wanted = [
            _Wanted(numbers, look.placement.box, self.specs[party].size)
            for look in looks
            for party, numbers in look.numbers.items()
        ]
        found = iter(decoded.cut(wanted) if wanted else [])
        samples: list[Sample] = []
        for look, number in zip(looks, view_numbers):
            clips: dict[str, PartyView | PartySound] = {}
            for party in look.numbers:
                seen = next(found)
                pictures = seen.frames.flip(-1) if look.placement.flipped else seen.frames
                if self.augment is not None and look.appearance_seed is not None:
                    pictures = views.appearance(pictures, self.augment, seed=look.appearance_seed)
                clips[party] = {"frames": pictures, "times": seen.times.float()}
            for party, start in look.sound_starts.items():
                clips[party] = _heard(video, self.sounds[party], start)
            samples.append({"clips": clips, "label": look.label, "id": video.id, "view": number})
        return samples

    def read_of(self, index: int, view_number: int = 0) -> "FileRead":
        """What `clips` reads of a clip's file, for those who time its parts.

        Raises:
            VideoError: for a video that can't be read.
        """
        video = self.videos[index]
        decoded = self._in_file(video)
        look = self._look(index, view_number, decoded)
        wanted = [
            _Wanted(numbers, look.placement.box, self.specs[party].size) for party, numbers in look.numbers.items()
        ]
        return FileRead(video, decoded.index, decoded.cuts(wanted))

    def substitute(self, index: int, view_number: int, attempt: int) -> int | None:
        """Which clip stands in for one that can't be read: another of its class, the same whenever it is asked."""
        alike = self._alike[self.label(index)]
        others = alike[alike != index]
        if not len(others):
            return None
        rng = view_generator(self.seed, f"substitute {attempt} for {self.videos[index].id}", view_number)
        return int(rng.choice(others))

    def _look(self, index: int, view_number: int, decoded: "_Decoded") -> "_Look":
        video, (height, width) = self.videos[index], decoded.nominal
        if self.augment is None:
            grid, view = (self.grid, view_number) if self.grid else (views.ViewGrid(), 0)
            numbers = self._numbers(video, decoded, None, grid.position(view), grid.offset(view))
            placement = grid.placement(
                view,
                height=height,
                width=width,
                crop_fraction=self.crop_fraction,
                resize=self.resize,
                aspect=self.aspect,
            )
            starts = self._sound_starts(decoded, numbers, grid.position(view))
            return self._shown(_Look(numbers, starts, placement, self._target(video, flipped=False), None))
        rng = view_generator(self.seed, video.id, view_number)
        numbers = self._numbers(video, decoded, rng)
        placement = views.drawn(
            self.augment,
            height=height,
            width=width,
            crop_fraction=self.crop_fraction,
            rng=rng,
            resize=self.resize,
            aspect=self.aspect,
            may_flip=self._may_flip(video),
        )
        seed = int(rng.integers(2**62)) if self.augment.changes_appearance else None
        starts = self._sound_starts(decoded, numbers, float(rng.random()) if not numbers else 0.5)
        return self._shown(_Look(numbers, starts, placement, self._target(video, flipped=placement.flipped), seed))

    def _shown(self, look: "_Look") -> "_Look":
        """Without those that nobody is to see; they had their part in placing the others."""
        return replace(
            look,
            numbers={party: numbers for party, numbers in look.numbers.items() if party not in self.unseen},
            sound_starts={party: start for party, start in look.sound_starts.items() if party not in self.unseen},
        )

    def _sound_starts(
        self, decoded: "_Decoded", numbers: Mapping[str, NDArray[np.int64]], position: float
    ) -> dict[str, float]:
        """Where each party begins to listen: around the middle of what is seen, or anywhere if nobody looks."""
        if not self.sounds:
            return {}
        times = decoded.times
        seconds = sampling.length_seconds(times)
        first = float(times[0])
        if numbers:
            seen = np.concatenate(list(numbers.values()))
            middle = float(times[seen.min()] + times[seen.max()]) / 2
        starts = {}
        for party, spec in self.sounds.items():
            around = middle if numbers else first + spec.seconds / 2 + position * max(seconds - spec.seconds, 0.0)
            starts[party] = sound_start(spec, middle=around, first=first, seconds=seconds)
        return starts

    def _numbers(
        self,
        video: Video,
        decoded: "_Decoded",
        rng: np.random.Generator | None,
        position: float = 0.5,
        offset: float = 0.5,
    ) -> dict[str, NDArray[np.int64]]:
        try:
            return sampling.joint_frames(decoded.times, self.specs, rng=rng, position=position, offset=offset)
        except ValueError as error:  # too short for a party that does not bear it
            raise VideoError(video.path, str(error), "broken") from error

    def _decoded(self, video: Video) -> "_Decoded":
        if self.memory is not None:
            held = self.memory.read(video, short_side=self.short_side, table=self.table, max_pixels=self.max_pixels)
            return _InMemory(held)
        return self._in_file(video)

    def _in_file(self, video: Video) -> "_InFile":
        index = video_index(video, self.table, self.backend, max_pixels=self.max_pixels)
        reader = reader_of(video, self.backend, max_pixels=self.max_pixels)
        return _InFile(video, index, reader, short_side=self.short_side)

    def _may_flip(self, video: Video) -> bool:
        return all(self._flipped[self._class_numbers[name]] is not None for name in video.names)

    def _target(self, video: Video, *, flipped: bool) -> int | Tensor:
        numbers = [self._class_numbers[name] for name in video.names]
        if flipped:
            numbers = [mirrored for number in numbers if (mirrored := self._flipped[number]) is not None]
        if not self.multi_label:
            return numbers[0] if numbers else UNLABELLED
        target = torch.full((len(self.classes),), 0.0 if numbers else float(UNLABELLED))
        target[numbers] = 1.0
        return target

    @cached_property
    def _alike(self) -> dict[int, NDArray[np.int64]]:
        """The clips of each class."""
        labels = np.array([self.label(index) for index in range(len(self))])
        return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


class FrameMemory:
    """Decoded videos, each held whole; data sets that read the same files can share one."""

    def __init__(self) -> None:
        self._videos: dict[tuple[Path, str, int], Frames | VideoError] = {}

    def read(
        self, video: Video, *, short_side: int, table: FrameTable | None = None, max_pixels: int = MAX_PIXELS
    ) -> Frames:
        """All frames of a video; decoded at the first call. Raises its `VideoError` at every call."""
        key = (video.path, video.id, short_side)
        if key not in self._videos:
            try:
                index = video_index(video, table, max_pixels=max_pixels)
                side = min(short_side, index.height, index.width)
                reader = reader_of(video, max_pixels=max_pixels)
                (held,) = reader.read(video, [Cut(range(index.num_frames), size=side)], index=index)
                self._videos[key] = held
            except VideoError as error:
                self._videos[key] = error
        found = self._videos[key]
        if isinstance(found, VideoError):
            # A new one each time: a raised exception keeps the frames of its traceback alive.
            raise VideoError(found.path, found.reason, found.fault)
        return found

    def fill(self, dataset: ClipDataset, *, threads: int = 2) -> Iterator[None]:
        """Decodes what `dataset` will read, some files at a time, yielding as they come."""

        def hold(video: Video) -> None:
            # A broken video is raised, or counted, where its clip is asked for.
            with contextlib.suppress(VideoError):
                self.read(video, short_side=dataset.short_side, table=dataset.table, max_pixels=dataset.max_pixels)

        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(hold, dataset.videos)


def video_index(
    video: Video, table: FrameTable | None, backend: Backend = "pyav", *, max_pixels: int = MAX_PIXELS
) -> VideoIndex:
    """Where a video's frames are: from the table if it knows this very file, else from a scan, made once a process.

    Raises:
        VideoError: for a video that can't be read.
    """
    if table is not None and (num_bytes := file_bytes(video)) is not None:
        known = table.index(video.id, num_bytes=num_bytes, packed=video.packed is not None)
        if known is not None:
            return known
    return _scan(video, backend, max_pixels)


def centred_box(index: VideoIndex, spec: InputSpec) -> Box:
    """The part of a video's frames that the centred test view of a single party shows, for those who read by
    themselves."""
    height, width = _nominal(index, spec.short_side)
    placement = views.centred(
        height=height, width=width, crop_fraction=spec.crop_fraction, resize=spec.resize, aspect=spec.aspect
    )
    return _scaled(placement.box, (height, width), (index.height, index.width))


def file_bytes(video: Video) -> int | None:
    """Size of a video's file, or of its part of a shard; None where it is no file."""
    if video.packed is not None:
        return video.packed.size
    try:
        return video.path.stat().st_size if video.path.is_file() else None
    except OSError:
        return None


def view_generator(seed: int, clip_id: str, view_number: int) -> np.random.Generator:
    """The randomness of one view."""
    # A counter-based generator keyed by a hash: no state to warm up, and no two views share a stream.
    key = hashlib.blake2b(f"{seed}/{view_number}/{clip_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


@dataclass(frozen=True)
class FileRead:
    """What is read of a file for one view."""

    video: Video
    index: VideoIndex
    cuts: list[Cut]


@dataclass(frozen=True)
class _Look:
    """What one view shows."""

    numbers: dict[str, NDArray[np.int64]]  # party -> frame numbers (T,)
    sound_starts: dict[str, float]  # party -> seconds
    placement: views.Placement  # in the nominal frame
    label: int | Tensor
    appearance_seed: int | None


class _Wanted(NamedTuple):
    """What one party sees of a view."""

    numbers: NDArray[np.int64]  # (T,)
    box: Box  # in the nominal frame
    size: int


class _Decoded(Protocol):
    """A video as its views are placed in it: by seconds, and in pixels of a nominal frame.

    The nominal frame is the same whether frames are kept in memory or cut out of the file, so that a view is too.
    """

    nominal: tuple[int, int]  # (height, width)
    times: NDArray[np.float64]  # (N,), seconds

    def cut(self, wanted: Sequence[_Wanted]) -> list[Frames]:
        """The pictures of each, square."""


def _heard(video: Video, spec: SoundSpec, start: float) -> PartySound:
    samples = None if not is_video_file(video) else read_sound(video.path, spec, start=start)
    return {
        "samples": torch.zeros(spec.samples) if samples is None else samples,
        "start": torch.tensor(start, dtype=torch.float32),
        "heard": torch.tensor(samples is not None),
    }


class _InFile:
    """A video whose frames are decoded when they are wanted, and cut on the way."""

    def __init__(self, video: Video, index: VideoIndex, reader: Reader, *, short_side: int) -> None:
        self._video, self.index, self._reader = video, index, reader
        # A small video is enlarged once, after its crop, and not twice.
        self.nominal = _nominal(index, short_side)
        self.times = index.times

    def cut(self, wanted: Sequence[_Wanted]) -> list[Frames]:
        return self._reader.read(self._video, self.cuts(wanted), index=self.index)

    def cuts(self, wanted: Sequence[_Wanted]) -> list[Cut]:
        """The same in pixels of the file."""
        stored = (self.index.height, self.index.width)
        return [
            Cut(numbers.tolist(), _scaled(box, self.nominal, stored), (size, size)) for numbers, box, size in wanted
        ]


class _InMemory:
    """A video whose frames are all there, already of the nominal size."""

    def __init__(self, held: Frames) -> None:
        self._held = held
        self.nominal = (held.frames.shape[-2], held.frames.shape[-1])
        self.times = held.times.numpy()

    def cut(self, wanted: Sequence[_Wanted]) -> list[Frames]:
        frames, times = self._held.frames, self._held.times
        found = []
        for numbers, box, size in wanted:
            where = places(numbers)
            found.append(Frames(cut_out(frames[where], Cut((), box, (size, size))), times[where]))
        return found


def _nominal(index: VideoIndex, short_side: int) -> tuple[int, int]:
    return resized((index.height, index.width), min(short_side, index.height, index.width))


def _scaled(box: Box, nominal: tuple[int, int], stored: tuple[int, int]) -> Box:
    """A box of the nominal frame in the pixels of the stored one."""

    def span(start: int, length: int, side: int, target: int) -> tuple[int, int]:
        first = round(start * target / side)
        return first, max(1, min(round(length * target / side), target - first))

    top, height = span(box.top, box.height, nominal[0], stored[0])
    left, width = span(box.left, box.width, nominal[1], stored[1])
    return Box(top, left, height, width)


@lru_cache(maxsize=16384)
def _scan(video: Video, backend: Backend, max_pixels: int) -> VideoIndex:
    return reader_of(video, backend, max_pixels=max_pixels).scan(video)
