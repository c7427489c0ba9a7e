"""Videos of moving shapes in which only the order of the frames tells a class from its twin.

Twelve classes are six motions, each run forwards and backwards: a clip of a class, reversed in time, is distributed
exactly as a clip of its twin. So a model that ignores order can tell the motions apart but not the twins.

A single frame must not tell twins apart either, and a motion that starts somewhere and ends elsewhere would: early
frames of "grow" are small. Every motion is therefore a cycle entered at a uniformly random phase. A shape that slides
out of the frame comes back in on the other side, a growing one fades out at its largest and in at its smallest. The
phase of any one frame is then uniform whatever the direction, and a frame is drawn from its phase and from things
that know nothing of direction.

Every clip can be drawn again alone, from (VERSION, seed, split, index).
"""

import json
import math
import multiprocessing
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from videokd.clips.lists import read_manifest
from videokd.clips.manifest import write_manifest
from videokd.disk import whole_file, write_text
from videokd.json_files import read_object

VERSION = 1
"""Goes up with every change that changes a pixel."""

CLASSES = (
    "slide_right",
    "slide_left",
    "slide_down",
    "slide_up",
    "spin_cw",
    "spin_ccw",
    "grow",
    "shrink",
    "split",
    "merge",
    "appear",
    "vanish",
)
"""Twins are neighbours: class 2p + 1 is class 2p run backwards."""

SPLITS: Mapping[str, int] = MappingProxyType({"train": 0, "val": 1, "test": 2, "unlabelled": 3})
"""Each split's number in the seed sequence."""

SIZE = 64
"""Height and width in pixels."""
FRAMES = 16
FPS = 8

# The share of its cycle that each motion covers in a clip at full speed: a frame width, a turn, from smallest to
# largest, from together to apart, from invisible to opaque.
_TRAVEL = {"slide": 0.6, "spin": 0.4, "zoom": 0.9, "split": 0.9, "fade": 0.9}
_MOTIONS = ("slide", "slide", "spin", "zoom", "split", "fade")
_TIME = (np.arange(FRAMES) - (FRAMES - 1) / 2) / (FRAMES - 1)  # (T,), in clip lengths: exactly antisymmetric
_SHAPES = ("disc", "square", "bar", "triangle")

# Letters: T frames, S = SIZE. Lengths and places are in frame widths, x right and y down, on a torus: 1.1 is 0.1.
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """One clip, and everything that was drawn at random to make it."""

    frames: NDArray[np.uint8]  # (T, H, W, 3), RGB
    label: str
    factors: dict[str, Any]  # plain JSON, listed in `_film`


def draw(split: str, index: int, *, seed: int = 0) -> Drawing:
    """The clip of class `CLASSES[index % 12]` that stands at `index` of a split: any prefix of 12 k is balanced."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got index={index}, seed={seed}")
    rng = np.random.default_rng([VERSION, seed, SPLITS[split], index])
    label = index % len(CLASSES)
    return _film(_stage(label, rng=rng), rng=rng, label=label)


def write_clip(path: Path | str, drawing: Drawing) -> None:
    """Write the frames as an H.264 mp4; the same drawing gives the same bytes under the same libx264."""
    _, height, width, _ = drawing.frames.shape
    with whole_file(Path(path), sync=False) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "20", "g": "8", "threads": "1"}
        for frame in drawing.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_set(folder: Path, *, counts: Mapping[str, int], seed: int = 0, workers: int = 2) -> Path:
    """Write `counts[split]` videos of every split and return the manifest that lists them.

    Makes `folder/<split>/<index>_<class>.mp4`, `folder/manifest.jsonl` (one video a line) and `folder/synthetic.json`
    (what was asked for). A folder that already holds this set is left as it is; one that holds a part of it, because
    the work was cut short, is made again. More than one worker means processes, so a script that calls this needs the
    usual `if __name__ == "__main__":` on macOS and Windows.
    """
    for split, count in counts.items():
        if split not in SPLITS:
            raise ValueError(f"counts must name splits among {', '.join(SPLITS)}, got {split!r}")
        if count < 0:
            raise ValueError(f"counts must not be negative, got {split}={count}")
    if seed < 0 or workers < 1:
        raise ValueError(f"seed must not be negative and workers at least 1, got seed={seed}, workers={workers}")
    folder = Path(folder)
    recipe = {"version": VERSION, "seed": seed, "counts": dict(counts), "classes": list(CLASSES)}
    manifest, note = folder / "manifest.jsonl", folder / "synthetic.json"
    if note.exists():
        found = read_object(note, remedy="remove the folder to make it again")
        if found != recipe:
            differing = ", ".join(
                f"{key} {found.get(key)!r} where {recipe[key]!r} is wanted"
                for key in recipe
                if found.get(key) != recipe[key]
            )
            raise ValueError(f"{folder} holds another synthetic set: {differing}")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} must be empty or hold this synthetic set, and it holds something else")
    jobs = [(split, index) for split in SPLITS for index in range(counts.get(split, 0))]
    if manifest.exists() and all((folder / _relative_path(*job)).exists() for job in jobs):
        return manifest

    manifest.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    # First: whatever else is found here later is then known to be ours.
    write_text(note, json.dumps(recipe, indent=2) + "\n")
    for split in counts:
        (folder / split).mkdir(exist_ok=True)
    lines = _write_videos(folder, jobs, seed=seed, workers=workers)
    # Last and in one move: a folder with a manifest has every video in it.
    write_text(manifest, "".join(lines))
    return manifest


def withhold_labels(full: Path, labelled: int) -> Path:
    """A second list of the same videos, few_labels.jsonl, in which only the first `labelled` training clips keep their
    label: for students that see few of the labels that their teacher saw."""
    manifest = read_manifest(full)
    training = [video.id for video in manifest.videos if video.split == "train"]
    if not 0 < labelled <= len(training):
        raise ValueError(f"labelled counts training clips that keep their label, 1 to {len(training)}, not {labelled}")
    withheld = set(training[labelled:])
    videos = tuple(replace(video, label=None) if video.id in withheld else video for video in manifest.videos)
    path = full.with_name("few_labels.jsonl")
    write_manifest(replace(manifest, videos=videos), path)
    return path


def _relative_path(split: str, index: int) -> str:
    return f"{split}/{index:05d}_{CLASSES[index % len(CLASSES)]}.mp4"


def _write_videos(folder: Path, jobs: list[tuple[str, int]], *, seed: int, workers: int) -> list[str]:
    """Write every job's video; the manifest's lines, in the order of the jobs."""
    write = partial(_write_video, folder, seed=seed)
    if workers == 1:
        return list(_with_progress(map(write, jobs), total=len(jobs)))
    # Forked where that is safe: a spawned worker would import torch first, for longer than it draws. The workers use
    # numpy and libx264 alone, so torch's threads, which a fork does not copy, are not missed.
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
        return list(_with_progress(pool.map(write, jobs, chunksize=16), total=len(jobs)))


def _write_video(folder: Path, job: tuple[str, int], *, seed: int) -> str:
    split, index = job
    drawing = draw(split, index, seed=seed)
    path = _relative_path(split, index)
    write_clip(folder / path, drawing)
    entry = {
        "path": path,
        "label": drawing.label,
        "split": split,
        "group": f"synthetic-{VERSION}-{seed}-{split}-{index}",
        "frames": FRAMES,
        "fps": float(FPS),
        "factors": drawing.factors,
    }
    return json.dumps(entry) + "\n"


def _with_progress(lines: Iterable[str], *, total: int) -> Iterable[str]:
    console = Console(stderr=True)
    return track(lines, "drawing videos", total=total, console=console, disable=not console.is_terminal)


@dataclass(frozen=True)
class _Actor:
    """One shape through a clip."""

    shape: str
    colour: _Floats  # (3,), RGB in [0, 1]
    centre: _Floats  # (T, 2), x and y
    radius: _Floats  # (T,)
    angle: _Floats  # (T,), radians
    opacity: _Floats  # (T,), in [0, 1]

    def backwards(self) -> "_Actor":
        """The same shape in a clip run backwards."""
        return replace(
            self,
            centre=self.centre[::-1],
            radius=self.radius[::-1],
            angle=self.angle[::-1],
            opacity=self.opacity[::-1],
        )


@dataclass(frozen=True)
class _Scene:
    """What happens in front of the camera."""

    background: _Floats  # (S, S, 3), RGB in [0, 1]
    movers: tuple[_Actor, ...]  # one, or two that split; their motion is the class
    bystander: _Actor | None  # wobbles, whatever the class
    phase: _Floats  # (T,), cycles in [0, 1)
    speed: float  # share of the motion's full speed
    heading: float | None  # of a slide: radians clockwise from "to the right"

    def backwards(self) -> "_Scene":
        """The same scene run backwards."""
        return replace(
            self,
            movers=tuple(mover.backwards() for mover in self.movers),
            bystander=self.bystander and self.bystander.backwards(),
            phase=self.phase[::-1],
            heading=None if self.heading is None else self.heading + math.pi,
        )


def _stage(label: int, *, rng: np.random.Generator) -> _Scene:
    """A scene of class `label`; under the same randomness its twin's scene is this one run backwards."""
    background, lightness = _background(rng)
    motion = _MOTIONS[label // 2]
    speed = rng.uniform(0.4, 1.0)
    phase = _floats(rng.uniform() + speed * _TRAVEL[motion] * _TIME)
    heading = rng.uniform(-0.6, 0.6) + (math.pi / 2 if label // 2 == 1 else 0)
    scene = _Scene(
        background=background,
        movers=_movers(motion, phase=phase, heading=heading, lightness=lightness, rng=rng),
        bystander=_bystander(rng) if rng.uniform() < 0.4 else None,
        phase=phase % 1,
        speed=speed,
        heading=heading if motion == "slide" else None,
    )
    return scene if label % 2 == 0 else scene.backwards()


def _movers(
    motion: str, *, phase: _Floats, heading: float, lightness: float, rng: np.random.Generator
) -> tuple[_Actor, ...]:
    """What moves, in the forward class of its pair: phase (T,) in cycles, not wrapped."""
    still = np.ones_like(phase)
    cycle = phase % 1
    mover = _Actor(
        shape=_SHAPES[rng.integers(1 if motion == "spin" else 0, 4)],  # a disc that spins stands still
        colour=_colour(rng, lightness=lightness, contrast=0.25),
        centre=_floats(rng.uniform(0.4, 0.6, 2)) * still[:, None],
        radius=_floats(rng.uniform(0.12, 0.20)) * still,
        angle=_floats(rng.uniform(0, 2 * math.pi)) * still,
        opacity=_floats(rng.uniform(0.7, 1.0)) * still,
    )
    if motion == "slide":
        origin, direction = rng.uniform(0, 1, 2), [math.cos(heading), math.sin(heading)]
        return (replace(mover, centre=_floats(origin + np.outer(phase, direction))),)
    if motion == "spin":
        return (replace(mover, radius=1.25 * mover.radius, angle=2 * math.pi * phase),)
    if motion == "zoom":
        radius = 0.05 * (0.26 / 0.05) ** cycle
        return (replace(mover, radius=radius, opacity=mover.opacity * _fade(cycle)),)
    if motion == "fade":
        return (replace(mover, opacity=mover.opacity * cycle),)
    axis = rng.uniform(0, 2 * math.pi)
    reach = np.outer(0.08 + 0.18 * cycle, [math.cos(axis), math.sin(axis)])
    middle = rng.uniform(0.47, 0.53, 2)
    half = replace(mover, radius=0.65 * mover.radius, opacity=mover.opacity * _fade(cycle))
    other = replace(
        half,
        shape=_SHAPES[rng.integers(4)],
        colour=_colour(rng, lightness=lightness, contrast=0.25),
        centre=_floats(middle - reach),
    )
    return replace(half, centre=_floats(middle + reach)), other


def _fade(cycle: _Floats) -> _Floats:
    """Opacity through a cycle that jumps at its end: 1, and 0 at the jump."""
    return np.clip(np.minimum(cycle, 1 - cycle) / np.float32(0.1), 0, 1)


def _bystander(rng: np.random.Generator) -> _Actor:
    """A small shape that wobbles: two sines at random phases look the same backwards."""
    frequency, start, width = rng.uniform(0.6, 1.4, (1, 2)), rng.uniform(0, 1, (1, 2)), rng.uniform(0.03, 0.08)
    wobble = np.cos(2 * math.pi * (frequency * _TIME[:, None] + start))
    still = np.ones(FRAMES, np.float32)
    return _Actor(
        shape=_SHAPES[rng.integers(4)],
        colour=_colour(rng),
        centre=_floats(rng.uniform(0.1, 0.9, 2) + width * wobble),
        radius=_floats(rng.uniform(0.03, 0.06)) * still,
        angle=0 * still,
        opacity=_floats(rng.uniform(0.4, 0.9)) * still,
    )


def _background(rng: np.random.Generator) -> tuple[_Floats, float]:
    """Smooth colours with up to two still shapes, (S, S, 3), and the lightness around which they vary."""
    lightness = rng.uniform(0.3, 0.7)
    corners = lightness + 0.12 * rng.standard_normal((4, 4, 3))
    place = np.linspace(0, 3, SIZE)
    blend = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(4)))  # (S, 4): bilinear
    columns = np.tensordot(blend, corners, axes=1)  # (S, 4, 3)
    background = _floats(blend @ columns)  # (S, S, 3)
    for _ in range(rng.integers(3)):
        clutter = _Actor(
            shape=_SHAPES[rng.integers(4)],
            colour=_colour(rng),
            centre=_floats(rng.uniform(0, 1, (1, 2))),
            radius=_floats(rng.uniform(0.04, 0.11, 1)),
            angle=_floats(rng.uniform(0, 2 * math.pi, 1)),
            opacity=_floats(rng.uniform(0.3, 0.9, 1)),
        )
        _paint(background[None], clutter)
    return background, lightness


def _colour(rng: np.random.Generator, *, lightness: float = 0.0, contrast: float = 0.0) -> _Floats:
    """RGB (3,) whose mean lies at least `contrast` from `lightness`."""
    while True:
        colour = rng.uniform(0, 1, 3)
        if abs(colour.mean() - lightness) >= contrast:
            return _floats(colour)


def _film(scene: _Scene, *, rng: np.random.Generator, label: int) -> Drawing:
    """What a shaky, flickering, grainy camera sees: draws of its own for each frame, whatever the class."""
    frames = _rendered(scene)
    frames *= 1 + 0.05 * rng.standard_normal((FRAMES, 1, 1, 1), dtype=np.float32)
    shake = np.rint(rng.normal(0, 0.6, (FRAMES, 2))).astype(int)  # pixels, x and y
    for frame, (right, down) in zip(frames, shake):
        frame[:] = np.roll(frame, (down, right), axis=(0, 1))
    grain = rng.uniform(0.02, 0.08)
    frames += np.float32(grain) * rng.standard_normal((FRAMES, SIZE, SIZE, 1), dtype=np.float32)
    factors = {
        "pair": label // 2,
        "reversed": bool(label % 2),
        "speed": round(scene.speed, 4),
        "phase": _plain(scene.phase),
        "heading": None if scene.heading is None else round(scene.heading % (2 * math.pi), 4),
        "movers": [
            {
                "shape": mover.shape,
                "colour": _plain(mover.colour),
                "centre": _plain((mover.centre * SIZE + shake) % SIZE),  # pixels
                "radius": _plain(mover.radius * SIZE),  # pixels
                "angle": _plain(mover.angle % (2 * math.pi)),
                "opacity": _plain(mover.opacity),
            }
            for mover in scene.movers
        ],
        "boxes": _boxes(scene.movers, shake=shake).tolist(),  # pixels, x0 y0 x1 y1 of each frame
        "bystander": scene.bystander is not None,
        "shake": shake.tolist(),
        "grain": round(grain, 4),
    }
    return Drawing((np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8), CLASSES[label], factors)


def _rendered(scene: _Scene) -> _Floats:
    """The scene as a perfect camera sees it, (T, S, S, 3)."""
    frames = np.repeat(scene.background[None], FRAMES, axis=0)
    for mover in scene.movers:
        _paint(frames, mover)
    if scene.bystander is not None:
        _paint(frames, scene.bystander)
    return frames


def _paint(frames: _Floats, actor: _Actor) -> None:
    """Lay the actor over the frames (T, S, S, 3), in place."""
    cover = _cover(actor) * actor.opacity[:, None, None]
    frames += cover[..., None] * (actor.colour - frames)


def _cover(actor: _Actor) -> _Floats:
    """How much of each pixel the shape covers, (T, S, S) in [0, 1]: soft at the edge by a pixel."""
    away = _away(actor)
    x, y = away[:, None, :, 0], away[:, :, None, 1]
    cos, sin = np.cos(actor.angle)[:, None, None], np.sin(actor.angle)[:, None, None]
    u, v = cos * x + sin * y, cos * y - sin * x
    if actor.shape == "disc":
        reach = np.hypot(u, v)
    elif actor.shape == "square":
        reach = 1.1 * np.maximum(np.abs(u), np.abs(v))
    elif actor.shape == "bar":
        reach = np.maximum(0.7 * np.abs(u), 2.2 * np.abs(v))
    else:
        reach = 1.35 * np.maximum(v, math.sqrt(3) / 2 * np.abs(u) - v / 2)
    return _floats(np.clip((actor.radius[:, None, None] - reach) * SIZE + 0.5, 0, 1))


def _away(actor: _Actor) -> _Floats:
    """From the actor's centre to each column and row the short way round, (T, S, 2) in [-0.5, 0.5)."""
    pixel = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return _floats((pixel[None, :, None] - actor.centre[:, None, :] + 0.5) % 1 - 0.5)


def _boxes(movers: tuple[_Actor, ...], *, shake: NDArray[np.int_]) -> NDArray[np.int_]:
    """The smallest box around all movers in each frame, (T, 4) pixels: x0, y0, x1, y1, the last two exclusive.

    Of a shape that leaves on one side and comes in on the other, the part around its centre is boxed. A shape that
    has faded out keeps its box.
    """
    low, high = np.full((FRAMES, 2), np.inf), np.full((FRAMES, 2), -np.inf)
    for mover in movers:
        away, covered = _away(mover), _cover(mover) > 0
        hit = np.stack([covered.any(axis=1), covered.any(axis=2)], axis=-1)  # (T, S, 2): columns, rows
        centre = (mover.centre + shake / SIZE) % 1
        low = np.minimum(low, centre + np.where(hit, away, np.inf).min(axis=1) - 0.5 / SIZE)
        high = np.maximum(high, centre + np.where(hit, away, -np.inf).max(axis=1) + 0.5 / SIZE)
    boxes: NDArray[np.int_] = np.rint(np.concatenate([low, high], axis=1).clip(0, 1) * SIZE).astype(int)
    return boxes


def _floats(values: NDArray[np.floating] | float) -> _Floats:
    return np.asarray(values, np.float32)


def _plain(values: _Floats) -> Any:
    """Nested lists of numbers short enough for a manifest."""
    return values.astype(float).round(3).tolist()
