"""The sound of a stretch of a video, on the video's own clock."""

import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor

from videokd.clips.container import open_container
from videokd.clips.reading import VideoError
from videokd.contracts import SoundSpec

_MARGIN = 0.1
"""Seconds read beyond both ends: a filter looks around itself, and codecs need a packet or two to settle."""


def sound_start(spec: SoundSpec, *, middle: float, first: float, seconds: float) -> float:
    """Where a sound around `middle` begins: inside the video, which starts at `first` and lasts `seconds`.

    A video that is shorter than the sound is heard from its beginning.
    """
    latest = first + max(seconds - spec.seconds, 0.0)
    return min(max(middle - spec.seconds / 2, first), latest)


def read_sound(path: Path, spec: SoundSpec, *, start: float) -> Tensor | None:
    """Mono samples float32 (S,) in [-1, 1] from `start` seconds on; None if the video has no sound there.

    Samples are placed by their presentation times, as frames are, and resampled with a zero-phase filter
    (`scipy.signal.resample_poly`): a clap is heard when it is seen. Beyond the ends of the sound there is silence.

    Raises:
        VideoError: for a file that can't be opened, or sound that can't be decoded.
    """
    try:
        with open_container(path) as container:
            if not container.streams.audio:
                return None
            return _decoded(container, spec, start)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(path, f"its sound can't be decoded ({error})", "broken") from error


def _decoded(container: "av.container.InputContainer", spec: SoundSpec, start: float) -> Tensor | None:
    stream = container.streams.audio[0]
    rate = int(stream.rate)
    first, last = start - _MARGIN, start + spec.seconds + _MARGIN
    held = np.zeros(math.ceil((last - first) * rate), dtype=np.float32)
    any_sound = False
    container.seek(max(int(first / stream.time_base), 0) if stream.time_base else 0, stream=stream)
    as_float = av.AudioResampler(format="fltp")
    for packet_frame in _frames(container, stream):
        if packet_frame.time is None:
            continue
        if packet_frame.time >= last:
            break
        place = round((packet_frame.time - first) * rate)
        for frame in as_float.resample(packet_frame):
            mono: NDArray[np.float32] = frame.to_ndarray().mean(axis=0)
            inside = slice(max(place, 0), min(place + len(mono), len(held)))
            if inside.start < inside.stop:
                held[inside] = mono[inside.start - place : inside.stop - place]
                # What lies in the margin alone is no sound of this stretch.
                any_sound |= place < (last - first - _MARGIN) * rate and place + len(mono) > _MARGIN * rate
            place += len(mono)
    if not any_sound:
        return None
    common = math.gcd(spec.sample_rate, rate)
    heard = resample_poly(held, spec.sample_rate // common, rate // common)
    skipped = round(_MARGIN * spec.sample_rate)
    samples = np.zeros(spec.samples, dtype=np.float32)
    kept = heard[skipped : skipped + spec.samples]
    samples[: len(kept)] = kept
    return torch.from_numpy(samples).clamp_(-1, 1)


def _frames(
    container: "av.container.InputContainer", stream: "av.audio.stream.AudioStream"
) -> Iterator["av.audio.frame.AudioFrame"]:
    """All frames from here on. After a seek some formats begin in the middle of one, which can't be decoded."""
    begun, failed = False, None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            if begun:
                raise
            failed = error
            continue
        begun = begun or bool(frames)
        yield from frames
    if failed is not None and not begun:
        raise failed
