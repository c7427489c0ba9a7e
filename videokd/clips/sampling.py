"""Which frames of a video make a clip: pure arithmetic on frame numbers."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from videokd.contracts import Dense, InputSpec, Segments

FrameNumbers = NDArray[np.int64]


def dense_frames(num_frames: int, *, frames: int, stride: int, start: int) -> FrameNumbers:
    """Every `stride`-th frame from `start`; a video that is too short repeats its last frame.

    ```
    video   0 1 2 3 4 5 6 7 8 9 ...      frames=3, stride=2, start=1
    clip      ^   ^   ^
    ```
    """
    _check(num_frames, frames)
    return np.minimum(start + stride * np.arange(frames), num_frames - 1)


def dense_starts(num_frames: int, *, frames: int, stride: int) -> int:
    """How many starts a dense clip can have: its window of frames x stride slides inside the video."""
    return max(num_frames - frames * stride, 0) + 1


def segment_frames(num_frames: int, *, frames: int, offsets: NDArray[np.float64]) -> FrameNumbers:
    """One frame of each of `frames` equal segments, at `offsets` (frames,) in [0, 1) of its segment [TSN].

    ```
    video   0 1 2 3 | 4 5 6 7 | 8 9 10 11    frames=3, offsets=0.5
    clip        ^         ^         ^
    ```
    """
    _check(num_frames, frames)
    return np.minimum(((np.arange(frames) + offsets) * num_frames / frames).astype(np.int64), num_frames - 1)


def joint_frames(
    num_frames: int, specs: Mapping[str, InputSpec], *, rng: np.random.Generator | None
) -> dict[str, FrameNumbers]:
    """Frame numbers for every party of a run, from one draw; centred where `rng` is None.

    Dense parties share one position: the widest window is placed, the others sit in its middle, on its grid. So a
    student of 8 frames at stride 4 sees every second frame of a teacher of 16 at stride 2.
    Segment parties whose number of frames divides the largest one's take one of its frames out of each group.
    """
    dense = {party: spec for party, spec in specs.items() if isinstance(spec.sampling, Dense)}
    segments = {party: spec for party, spec in specs.items() if isinstance(spec.sampling, Segments)}
    position = 0.5 if rng is None else float(rng.random())
    return _joint_dense(num_frames, dense, position) | _joint_segments(num_frames, segments, rng)


def _joint_dense(num_frames: int, specs: Mapping[str, InputSpec], position: float) -> dict[str, FrameNumbers]:
    if not specs:
        return {}
    strides = {party: spec.sampling.stride for party, spec in specs.items() if isinstance(spec.sampling, Dense)}
    windows = {party: spec.frames * strides[party] for party, spec in specs.items()}
    widest = max(specs, key=lambda party: (windows[party], specs[party].frames))
    starts = dense_starts(num_frames, frames=specs[widest].frames, stride=strides[widest])
    # A centred window of an even choice of starts takes the earlier one, as integer division does everywhere else.
    start = min(int(position * starts), starts - 1) if position != 0.5 else (starts - 1) // 2
    chosen = {}
    for party, spec in specs.items():
        # In a short video the inset shrinks, so that a window that fits never runs over the end.
        room = min(windows[widest], max(num_frames - start, 0)) - windows[party]
        inset = max(room, 0) // 2 // strides[widest] * strides[widest]
        chosen[party] = dense_frames(num_frames, frames=spec.frames, stride=strides[party], start=start + inset)
    return chosen


def _joint_segments(
    num_frames: int, specs: Mapping[str, InputSpec], rng: np.random.Generator | None
) -> dict[str, FrameNumbers]:
    chosen: dict[str, FrameNumbers] = {}
    for party, spec in sorted(specs.items(), key=lambda item: (-item[1].frames, item[0])):
        finest = next(iter(chosen.values()), None)
        if rng is not None and finest is not None and len(finest) % spec.frames == 0:
            group = len(finest) // spec.frames
            picks = np.arange(spec.frames) * group + rng.integers(group, size=spec.frames)
            chosen[party] = finest[picks]
        else:
            offsets = np.full(spec.frames, 0.5) if rng is None else rng.random(spec.frames)
            chosen[party] = segment_frames(num_frames, frames=spec.frames, offsets=offsets)
    return chosen


def _check(num_frames: int, frames: int) -> None:
    if num_frames < 1 or frames < 1:
        raise ValueError(f"a clip of {frames} frames can't be taken from a video of {num_frames}")
