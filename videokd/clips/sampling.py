"""Which frames of a video make a clip: pure arithmetic on frame numbers and seconds."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from videokd.contracts import Dense, InputSpec, Segments, Short, Timed, Uniform

FrameNumbers = NDArray[np.int64]
Seconds = NDArray[np.float64]
_SLACK = 1e-6
"""Seconds by which a frame may be late: times are sums of rounded ones."""


def dense_frames(num_frames: int, *, frames: int, stride: int, start: int, short: Short = "repeat") -> FrameNumbers:
    """Every `stride`-th frame from `start`.

    ```
    video   0 1 2 3 4 5 6 7 8 9 ...      frames=3, stride=2, start=1
    clip      ^   ^   ^

    video   0 1 2 3                      start=1, "repeat": 1 3 3
              ^   ^ (5)                         "wrap":   1 3 1
    ```

    Raises:
        ValueError: if `short` is "error" and the video ends before the clip.
    """
    _check(num_frames, frames)
    numbers = start + stride * np.arange(frames)
    if short == "wrap":
        return numbers % num_frames
    if short == "error" and numbers[-1] >= num_frames:
        raise ValueError(
            f"{frames} frames at stride {stride} need {(frames - 1) * stride + 1} frames, the video has {num_frames}: "
            'choose short="repeat" or "wrap"'
        )
    return np.minimum(numbers, num_frames - 1)


def dense_starts(num_frames: int, *, frames: int, stride: int) -> int:
    """How many starts a dense clip can have: its window of frames x stride slides inside the video."""
    return max(num_frames - frames * stride, 0) + 1


def timed_frames(times: Seconds, *, frames: int, fps: float, start: float, short: Short = "repeat") -> FrameNumbers:
    """The frame shown at each of `frames` moments 1/fps apart, from `start` seconds after the first frame.

    ```
    times   0.0  0.1  0.2        0.5  0.6      frames=3, fps=5, start=0.1
    asked        0.1       0.3       0.5
    clip          1         2         3        the frame of 0.2 s is still shown at 0.3 s
    ```

    Raises:
        ValueError: if `short` is "error" and the last moment comes after the last frame's.
    """
    _check(len(times), frames)
    asked = start + np.arange(frames) / fps + _SLACK
    length = length_seconds(times)
    if short == "wrap":
        asked = asked % length
    elif short == "error" and asked[-1] > length + 2 * _SLACK:
        raise ValueError(
            f"{frames} frames at {fps:g} a second last {(frames - 1) / fps:g} s, the video {length:g} s: "
            'choose short="repeat" or "wrap"'
        )
    shown = np.searchsorted(times - times[0], asked, side="right") - 1
    return np.clip(shown, 0, len(times) - 1)


def segment_frames(num_frames: int, *, frames: int, offsets: NDArray[np.float64]) -> FrameNumbers:
    """One frame of each of `frames` equal segments, at `offsets` (frames,) in [0, 1) of its segment [TSN].

    ```
    video   0 1 2 3 | 4 5 6 7 | 8 9 10 11    frames=3, offsets=0.5
    clip        ^         ^         ^
    ```
    """
    _check(num_frames, frames)
    return np.minimum(((np.arange(frames) + offsets) * num_frames / frames).astype(np.int64), num_frames - 1)


def uniform_frames(num_frames: int, *, frames: int) -> FrameNumbers:
    """Frames evenly spread from the first to the last; a single one is the middle one.

    ```
    video   0 1 2 3 4 5 6 7 8    frames=3
    clip    ^       ^       ^
    ```
    """
    _check(num_frames, frames)
    if frames == 1:
        return np.array([(num_frames - 1) // 2])
    # Half up, in whole numbers: rounding to even would make gaps of 4 and 6 out of gaps of 5.
    return (2 * np.arange(frames) * (num_frames - 1) + frames - 1) // (2 * (frames - 1))


def joint_frames(
    times: Seconds,
    specs: Mapping[str, InputSpec],
    *,
    rng: np.random.Generator | None,
    position: float = 0.5,
    offset: float = 0.5,
) -> dict[str, FrameNumbers]:
    """Frame numbers for every party of a run, from one draw.

    Parties that take a window of the video, dense or timed, share one place: the widest window is put there, the
    others sit in its middle. All-dense parties sit on its grid, so that a student of 8 frames at stride 4 sees every
    second frame of a teacher of 16 at stride 2. Segment parties whose number of frames divides the largest one's take
    one of its frames out of each group.

    Args:
        times: (N,) seconds of the video's frames.
        specs: party name -> what it wants to see.
        rng: where random samplings draw from; None for a test view.
        position: of a test view's windows: 0 begins them at the video's start, 1 ends them at the video's end, and 0.5
            centres them.
        offset: of a test view's frames in their segments, in [0, 1).

    Raises:
        ValueError: for a video that is too short for a party that does not bear it.
    """
    num_frames = len(times)
    windows = {party: spec for party, spec in specs.items() if isinstance(spec.sampling, Dense | Timed)}
    segments = {party: spec for party, spec in specs.items() if isinstance(spec.sampling, Segments)}
    if rng is not None:
        position = float(rng.random())
    chosen = (
        _joint_timed(times, windows, position)
        if any(isinstance(spec.sampling, Timed) for spec in windows.values())
        else _joint_dense(num_frames, windows, position, drawn=rng is not None)
    )
    chosen |= _joint_segments(num_frames, segments, rng, offset)
    for party, spec in specs.items():
        if isinstance(spec.sampling, Uniform):
            chosen[party] = uniform_frames(num_frames, frames=spec.frames)
    return chosen


def _joint_dense(
    num_frames: int, specs: Mapping[str, InputSpec], position: float, *, drawn: bool
) -> dict[str, FrameNumbers]:
    if not specs:
        return {}
    sampling = {party: spec.sampling for party, spec in specs.items() if isinstance(spec.sampling, Dense)}
    strides = {party: dense.stride for party, dense in sampling.items()}
    windows = {party: spec.frames * strides[party] for party, spec in specs.items()}
    widest = max(specs, key=lambda party: (windows[party], specs[party].frames))
    starts = dense_starts(num_frames, frames=specs[widest].frames, stride=strides[widest])
    # Drawn starts are equally likely. Those of test views go from the first to the last; the centred one of an even
    # choice is the earlier, as integer division does everywhere else.
    start = min(int(position * starts), starts - 1) if drawn else int(position * (starts - 1))
    chosen = {}
    for party, spec in specs.items():
        # In a short video the inset shrinks, so that a window that fits never runs over the end.
        room = min(windows[widest], max(num_frames - start, 0)) - windows[party]
        inset = max(room, 0) // 2 // strides[widest] * strides[widest]
        chosen[party] = dense_frames(
            num_frames,
            frames=spec.frames,
            stride=strides[party],
            start=start + inset,
            short=sampling[party].short,
        )
    return chosen


def _joint_timed(times: Seconds, specs: Mapping[str, InputSpec], position: float) -> dict[str, FrameNumbers]:
    """Windows placed in seconds: a dense party's lasts as long as its frames do at the video's average rate."""
    length = length_seconds(times)
    rate = len(times) / length
    gaps = {
        party: 1 / spec.sampling.fps if isinstance(spec.sampling, Timed) else spec.sampling.stride / rate
        for party, spec in specs.items()
        if isinstance(spec.sampling, Timed | Dense)
    }
    windows = {party: spec.frames * gaps[party] for party, spec in specs.items()}
    widest = max(windows.values())
    start = position * max(length - widest, 0.0)
    chosen = {}
    for party, spec in specs.items():
        # In a short video the inset shrinks, so that a window that fits never runs over the end.
        first = start + max(min(widest, length - start) - windows[party], 0.0) / 2
        if isinstance(spec.sampling, Timed):
            chosen[party] = timed_frames(
                times, frames=spec.frames, fps=spec.sampling.fps, start=first, short=spec.sampling.short
            )
        elif isinstance(spec.sampling, Dense):
            number = int(timed_frames(times, frames=1, fps=1.0, start=first)[0])
            chosen[party] = dense_frames(
                len(times),
                frames=spec.frames,
                stride=spec.sampling.stride,
                start=min(number, dense_starts(len(times), frames=spec.frames, stride=spec.sampling.stride) - 1),
                short=spec.sampling.short,
            )
    return chosen


def _joint_segments(
    num_frames: int, specs: Mapping[str, InputSpec], rng: np.random.Generator | None, offset: float
) -> dict[str, FrameNumbers]:
    chosen: dict[str, FrameNumbers] = {}
    for party, spec in sorted(specs.items(), key=lambda item: (-item[1].frames, item[0])):
        finest = next(iter(chosen.values()), None)
        if rng is not None and finest is not None and len(finest) % spec.frames == 0:
            group = len(finest) // spec.frames
            picks = np.arange(spec.frames) * group + rng.integers(group, size=spec.frames)
            chosen[party] = finest[picks]
        else:
            offsets = np.full(spec.frames, offset) if rng is None else rng.random(spec.frames)
            chosen[party] = segment_frames(num_frames, frames=spec.frames, offsets=offsets)
    return chosen


def length_seconds(times: Seconds) -> float:
    """Seconds from the first frame to the end of the last one, which is taken to last as long as the others do."""
    if len(times) == 1:
        return 1.0  # nothing says how long a single frame is shown
    return float((times[-1] - times[0]) * len(times) / (len(times) - 1))


def _check(num_frames: int, frames: int) -> None:
    if num_frames < 1 or frames < 1:
        raise ValueError(f"a clip of {frames} frames can't be taken from a video of {num_frames}")
