"""Videos with sound, drawn for tests."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write(
    path: Path,
    *,
    claps: Sequence[float] = (0.5, 1.25, 2.0),
    codec: str = "aac",
    rate: int = 44100,
    layout: str = "mono",
    seconds: float = 3.0,
    from_second: float = 0.0,
) -> Path:
    """A video of 3 s at 30 frames a second, whose sound is silent but for some claps."""
    num_samples = round(seconds * rate)
    wave = np.zeros(num_samples, dtype=np.float32)
    for clap in claps:
        first = round((clap - from_second) * rate)
        wave[first : first + rate // 200] = 0.8 * np.hanning(rate // 200)  # 5 ms
    channels = {"mono": [wave], "stereo": [wave, np.zeros_like(wave)]}[layout]
    with av.open(path, "w") as container:
        pictures = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout=layout) if seconds else None
        noise = np.random.default_rng(0)
        for number in range(90):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (64, 96, 3), dtype=np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if sound is None:
            return path
        kind = "s16" if codec.startswith("pcm") or codec == "mp2" else "fltp"
        for first in range(0, num_samples, 1024):
            block = np.stack([channel[first : first + 1024] for channel in channels])
            if kind == "s16":
                block = (block.T.reshape(1, -1) * 32767).astype(np.int16)
            samples = av.AudioFrame.from_ndarray(block, format=kind, layout=layout)
            samples.sample_rate, samples.time_base = rate, Fraction(1, rate)
            samples.pts = first + round(from_second * rate)
            container.mux(sound.encode(samples))
        container.mux(sound.encode())
    return path


def write_noisy_set(folder: Path) -> Path:
    """A list of eight videos of two classes, clapped early or late; the last two have no sound."""
    rows = ["path,label,split"]
    for number in range(8):
        clap = 0.5 if number % 2 == 0 else 2.0
        name = f"{number}.mp4"
        if number < 6:
            write(folder / name, claps=(clap,))
        else:
            write(folder / name, claps=(), seconds=0)
        rows.append(f"{name},{'early' if number % 2 == 0 else 'late'},{'train' if number not in (4, 5) else 'test'}")
    path = folder / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    return path
