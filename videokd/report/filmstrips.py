"""Videos that a student won and lost by its teacher: what they show, where both nets look, and what they say when."""

import io
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from videokd.clips.backends import reader_of
from videokd.clips.dataset import ClipDataset, centred_box, video_index
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest, Video
from videokd.clips.pictures import Cut
from videokd.clips.sampling import joint_frames
from videokd.contracts import Clip
from videokd.fidelity import flips
from videokd.inside.saliency import Strip, strips
from videokd.machine import Machine
from videokd.models import Model, VideoModel, load_model
from videokd.predictions import Predictions, find_video
from videokd.report import figures
from videokd.report.content import Answer, Film, Films, Missing, Panel, Picture, Plot, Section, shown
from videokd.report.subject import Run, Subject

FRAMES, MOMENTS, TOP = 6, 8, 5
"""Frames of a strip; moments of a timeline; classes of an answer."""

HEIGHT, CLIP_SECONDS, CLIP_FPS = 144, 4.0, 12.0
"""Of the looping clips; pixels, seconds, frames a second."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A video that one of two nets gets right and the other wrong."""

    id: str
    times: int
    """Pairs of runs in which that is so."""
    of: int
    """Pairs in which the video was scored."""
    change: float
    """Mean change of the true class's probability over those pairs."""
    before: Run
    """The first pair in which it is so."""
    after: Run


def chosen(pairs: Sequence[tuple[Run, Run]], *, each: int) -> tuple[list[Flip], list[Flip]]:
    """The videos that are won, and those that are lost, in most pairs; among equals those whose probability of the
    true class changes most, then by name. Depends on the predictions alone.

    Args:
        pairs: runs alone and distilled.
        each: how many of either.
    """
    counts: dict[str, dict[str, list[tuple[Run, Run]]]] = {"won": {}, "lost": {}}
    changes: dict[str, list[float]] = {}
    for before, after in pairs:
        if before.predictions is None or after.predictions is None:
            continue
        # What one of the two could not read is not to be won or lost.
        both = set(before.predictions.ids) & set(after.predictions.ids)
        early, late = (
            one.rows(torch.tensor([name in both for name in one.ids], dtype=torch.bool))
            for one in (before.predictions, after.predictions)
        )
        for how, ids in flips(early, late).items():
            for name in ids:
                counts[how].setdefault(name, []).append((before, after))
        gained = _of_true(late) - _of_true(early.of(late.ids, late.classes))
        for name, change in zip(late.ids, gained.tolist(), strict=True):
            changes.setdefault(name, []).append(change)
    found = []
    for where in counts.values():
        all_of_them = [
            Flip(
                id=name,
                times=len(those),
                of=len(changes[name]),
                change=float(np.mean(changes[name])),
                before=those[0][0],
                after=those[0][1],
            )
            for name, those in where.items()
        ]
        all_of_them.sort(key=lambda flip: (-flip.times, -abs(flip.change), flip.id))
        found.append(all_of_them[:each])
    return found[0], found[1]


def films(
    subject: Subject,
    *,
    each: int = 3,
    machine: Machine | None = None,
    trust: Collection[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> Section | Missing:
    """The section with the videos that the student won and lost; one that can't be read is named instead.

    Args:
        subject: with a baseline and a main arm whose predictions are kept.
        each: how many videos of either kind.
        machine: where the nets run; None for the defaults.
        trust: packages and modules of your own that their networks are made by.
        advance: called after each video.
    """
    title = "Videos won and lost"
    baseline, main = subject.baseline, subject.main
    if baseline is None or main is None:
        why = "it takes a student alone and a distilled one, paired"
        return Missing(title=title, why=why, command="videokd report ALONE DISTILLED, or videokd study STUDY")
    pairs = subject.pairs(baseline, main)
    known = [pair for pair in pairs if all(run.predictions is not None for run in pair)]
    if not known:
        return Missing(title=title, why="no predictions are kept", command="videokd evaluate RUN")
    if any(run.predictions is not None and run.predictions.several_labels for pair in known for run in pair):
        return Missing(title=title, why="videos of several labels are neither right nor wrong")
    won, lost = chosen(known, each=each)
    studio = _Studio(subject=subject, machine=machine or Machine(), trust=trust)
    blocks = []
    for name, found, note in (
        ("Won", won, f"{subject.looks[main].title} is right, {subject.looks[baseline].title} wrong."),
        ("Lost", lost, f"{subject.looks[baseline].title} is right, {subject.looks[main].title} wrong."),
    ):
        made = []
        for number, flip in enumerate(found):
            made.append(studio.film(flip, name=f"{name.lower()}-{number}"))
            advance()
        none = "" if found else " There is none in any pair."
        blocks.append(Films(title=name, note=note + none, films=made))
    return Section(
        name="films",
        title=title,
        lead=f"Those that flip in most of the {len(known)} pairs, among equals those whose confidence changes most: "
        "nobody picked them. Clips are the middle of the video. Saliency is of the class that the net predicts. The "
        "curves say how likely the net would have found the true class had the video ended there.",
        blocks=blocks,
    )


@dataclass(frozen=True, kw_only=True)
class _Studio:
    """Makes films, with the nets loaded once."""

    subject: Subject
    machine: Machine
    trust: Collection[str]
    loaded: dict[Path, Model[Any] | str] = field(default_factory=dict)

    def film(self, flip: Flip, *, name: str) -> Film:
        nets = {str(self.subject.main): flip.after, str(self.subject.baseline): flip.before}
        predictions = flip.after.predictions
        assert predictions is not None
        row = predictions.ids.index(flip.id)
        label, path = predictions.classes[int(predictions.label[row])], predictions.paths[row]
        pairs = f"in {flip.times} of {flip.of} pairs" if flip.of > 1 else "in the only pair"
        said = f"{pairs}; probability of the true class {shown(flip.change, 'points')} points"
        answers = {arm: _answer(arm, run.predictions, flip.id) for arm, run in nets.items()}
        made: dict[str, Any] = {"fault": ""}
        try:
            video = self._video(flip)
            made |= self._shown(video)
            for arm, run in nets.items():
                model = self._model(run)
                if isinstance(model, str):
                    made["fault"] = model
                elif isinstance(model, VideoModel) and answers[arm] is not None:
                    made["strips"] += self._saliency(model, video, arm, run, plain=len(made["strips"]) == 0)
                    answers[arm] = self._over_time(model, video, answers[arm], label)
        except (ValueError, OSError) as error:  # a video that is no more, or no more what it was
            made["fault"] = str(error)
        there = [answer for answer in answers.values() if answer is not None]
        return Film(
            id=flip.id,
            path=path,
            label=label,
            said=said,
            answers=there,
            plot=self._timeline(there, name=name, chance=1 / len(predictions.classes)),
            **made,
        )

    def _video(self, flip: Flip) -> Video:
        predictions, run = flip.after.predictions, flip.after.path
        assert predictions is not None
        row = predictions.ids.index(flip.id)
        if (place := find_video(predictions, row, run)) is not None:
            return Video(id=flip.id, path=place)
        # A video of a packed set is no file, and a list knows where its videos are now.
        source = flip.after.evaluation.get("list")
        listed: Sequence[Video] = ()
        if source and Path(source).is_file():
            with suppress(ValueError):  # a list that can't be read leaves the video not found
                listed = read_manifest(source, allow_leaks=True).videos
        for video in listed:
            if video.id == flip.id and video.is_there():
                return video
        raise ValueError(f"{predictions.paths[row]} is not found from here ({Path.cwd()}), nor beside {run}")

    def _model(self, run: Run) -> Model[Any] | str:
        """The net of a run, or why there is none."""
        if run.path not in self.loaded:
            try:
                self.loaded[run.path] = load_model(run.path, trust=self.trust).to(self.machine.find())
            except (ValueError, OSError) as error:
                self.loaded[run.path] = f"Without saliency and curves: {error}"
        return self.loaded[run.path]

    def _shown(self, video: Video) -> dict[str, Any]:
        """The looping clip, and frames evenly spread over the video."""
        index = video_index(video, None)
        side = min(HEIGHT, index.height, index.width)
        times = index.times - index.times[0]
        half, middle = CLIP_SECONDS / 2, times[-1] / 2
        inside = np.flatnonzero(np.abs(times - middle) <= half)
        step = max(1, round(index.fps / CLIP_FPS))
        moving = inside[::step]
        still = np.unique(np.linspace(0, index.num_frames - 1, FRAMES).round().astype(int))
        cuts = [Cut(numbers.tolist(), size=side) for numbers in (moving, still)]
        film, strip = (
            found.frames.permute(0, 2, 3, 1).contiguous().numpy()
            for found in reader_of(video).read(video, cuts, index=index)
        )
        clip = encoded(film, fps=index.fps / step)
        height, width = film.shape[1] // 2 * 2, film.shape[2] // 2 * 2
        seconds = f"0 to {times[-1]:.1f} s"
        return {
            "clip": clip,
            "clip_size": (width, height),
            "strips": [(f"Frames, {seconds}", _strip(strip, said=f"{len(strip)} frames, {seconds}"))],
        }

    def _saliency(
        self, model: VideoModel, video: Video, arm: str, run: Run, *, plain: bool
    ) -> list[tuple[str, Picture]]:
        source = Path(str(run.evaluation.get("list", video.path)))
        manifest = Manifest(source=source, videos=(video,), classes=model.classes)
        found = strips(model, ClipDataset(manifest, {"student": model.input}), [video.id])
        return [
            (
                f"{self.subject.looks[arm].title} looks ({one.method}, for {one.explained})",
                _strip(overlaid(one), said=f"where {self.subject.looks[arm].title} looks for {one.explained}"),
            )
            for one in found
        ]

    @torch.no_grad()
    def _over_time(self, model: VideoModel, video: Video, answer: Answer | None, label: str) -> Answer | None:
        """What the net would have said, had the video ended at each of some moments."""
        index = video_index(video, None)
        spec = model.input
        lengths = np.unique(np.linspace(0, index.num_frames, MOMENTS + 1).round().astype(int)[1:])
        box, numbers = centred_box(index, spec), []
        for length in lengths:
            try:
                numbers.append(joint_frames(index.times[:length], {"student": spec}, rng=None)["student"])
            except ValueError:  # too short yet for a net that bears no short videos
                numbers.append(np.empty(0, np.int64))
        cuts = [Cut(found.tolist(), box, (spec.size, spec.size)) for found in numbers if len(found)]
        if not cuts or label not in model.classes or answer is None:
            return answer
        found = reader_of(video).read(video, cuts, index=index)
        clip = Clip(torch.stack([one.frames for one in found]), torch.stack([one.times.float() for one in found]))
        with self.machine.autocast(model.device):
            logits = model(clip.to(model.device)).logits
        assert logits is not None
        probability = logits.float().softmax(dim=1)[:, model.classes.index(label)].cpu()
        shown_at = [index.times[length - 1] - index.times[0] for length, one in zip(lengths, numbers) if len(one)]
        return Answer(
            arm=answer.arm,
            top=answer.top,
            seconds=[round(float(one), 3) for one in shown_at],
            confidence=[round(float(one), 4) for one in probability],
        )

    def _timeline(self, answers: Sequence[Answer], *, name: str, chance: float) -> Plot | None:
        lines = {one.arm: (one.seconds, one.confidence) for one in answers if one.seconds}
        if not lines:
            return None
        said = "; ".join(
            f"{self.subject.looks[arm].title}: " + ", ".join(f"{100 * y:.0f} % at {x:.1f} s" for x, y in zip(*line))
            for arm, line in lines.items()
        )
        figure = figures.timeline(lines, self.subject.looks, chance=chance)
        return Plot(
            name=name, caption="", panels=[Panel(figure=figure, said=f"confidence in the true class over time: {said}")]
        )


def encoded(film: NDArray[np.uint8], *, fps: float) -> bytes:
    """A film (T, H, W, 3) as H.264 in MP4, the one form that every browser of today plays; odd sides lose a pixel.

    A `<video>` can be stopped and stays still for who asked for less motion, which an animated picture can't.
    """
    height, width = film.shape[1] // 2 * 2, film.shape[2] // 2 * 2
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "fast", "crf": "27", "threads": "1"}
        for frame in film:
            picture = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def overlaid(strip: Strip) -> NDArray[np.uint8]:
    """Some of a strip's frames (T, H, W, 3), grey, under what the net looks at, in colour."""
    rows = np.unique(np.linspace(0, len(strip.frames) - 1, FRAMES).round().astype(int))
    frames, heat = strip.frames[rows].astype(np.float32) / 255, strip.saliency[rows, ..., None]
    grey = np.repeat(frames.mean(axis=-1, keepdims=True), 3, axis=-1) * 0.8
    colour = matplotlib.colormaps["inferno"](0.25 + 0.75 * heat[..., 0])[..., :3]
    strength = np.clip(1.4 * heat, 0, 1) * 0.8
    mixed: NDArray[np.uint8] = np.clip(255 * (grey * (1 - strength) + colour * strength), 0, 255).astype(np.uint8)
    return mixed


def _strip(frames: NDArray[np.uint8], *, said: str) -> Picture:
    """Frames (T, H, W, 3) side by side."""
    gap, height = 6, HEIGHT
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    picture = Image.new("RGBA", (len(frames) * (width + gap) - gap, height))
    for number, frame in enumerate(frames):
        one = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
        picture.paste(one, (number * (width + gap), 0))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80, method=4)
    return Picture(data=file.getvalue(), media="image/webp", said=said, width=picture.width, height=picture.height)


def _answer(arm: str, predictions: Predictions | None, name: str) -> Answer | None:
    if predictions is None or name not in predictions.ids:
        return None
    probability = predictions.probabilities[predictions.ids.index(name)]
    best = probability.topk(min(TOP, len(predictions.classes)))
    top = [(predictions.classes[k], float(p)) for p, k in zip(best.values, best.indices.tolist(), strict=True)]
    return Answer(arm=arm, top=top, seconds=(), confidence=())


def _of_true(predictions: Predictions) -> torch.Tensor:
    """Probability of the true class, (N,); 0 where that is unknown."""
    label = predictions.label
    found = predictions.probabilities.gather(1, label.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(label >= 0, found, torch.zeros(()))
