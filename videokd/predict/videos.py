"""What a model says of whole videos, each seen as evaluation sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from videokd.clips.backends import IMAGE_SUFFIXES
from videokd.clips.dataset import ClipDataset, video_index
from videokd.clips.manifest import Manifest, Video
from videokd.clips.reading import VideoError, VideoIndex
from videokd.clips.rows import VIDEO_SUFFIXES
from videokd.clips.table import FrameTable
from videokd.clips.views import ViewGrid
from videokd.evaluate import OnBadVideo, predict
from videokd.machine import Machine
from videokd.models import Model


@dataclass(frozen=True)
class VideoPrediction:
    """What a model says of one video."""

    video: Video
    index: VideoIndex
    probabilities: Tensor  # float64 (K,)

    def top(self, classes: Sequence[str], k: int) -> list[tuple[str, float]]:
        """The `k` likeliest classes with their probabilities, or all where there are fewer."""
        values, places = self.probabilities.topk(min(k, len(classes)))
        return [(classes[place], value) for place, value in zip(places.tolist(), values.tolist())]


@dataclass(frozen=True)
class VideoPredictions:
    """What a model says of those videos that could be read."""

    classes: tuple[str, ...]  # (K,)
    videos: tuple[VideoPrediction, ...]
    skipped: tuple[str, ...]  # one sentence for each video that could not be read


def find_videos(paths: Sequence[Path]) -> Manifest:
    """The videos at these paths, without classes: files as they are named, folders with all the videos and still images
    below them.

    Raises:
        ValueError: if no path is given, or a folder holds neither.
    """
    if not paths:
        raise ValueError("name a video, a folder of videos, or a list (--list)")
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        inside = sorted(file for file in path.rglob("*") if _is_video(file.relative_to(path)) and file.is_file())
        if not inside:
            raise ValueError(
                f"{path} holds no video ({' '.join(VIDEO_SUFFIXES)}) or picture ({' '.join(IMAGE_SUFFIXES)})"
            )
        found |= dict.fromkeys(inside)
    return Manifest(Path("the command line"), tuple(Video(id=str(path), path=path) for path in found), ())


def predict_videos(
    model: Model[Any],
    videos: Manifest,
    *,
    grid: ViewGrid = ViewGrid(),  # noqa: B008  # frozen
    several_labels: bool = False,
    machine: Machine | None = None,
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: OnBadVideo = "error",
    time_limit: float = 60.0,
    advance: Callable[[int], None] = lambda videos: None,
) -> VideoPredictions:
    """Runs the model over every video by the views of `grid`, and averages their probabilities.

    It is `evaluate.predict` of the list, number for number.

    Args:
        model: on the device where it is to run.
        videos: whatever their labels are, they play no part.
        grid: test views in time and space.
        several_labels: a probability for each class by itself (sigmoid); else they add up to 1 (softmax).
        machine: its precision is used; None for fp32.
        batch_size: views at once.
        workers: processes that decode.
        on_bad_video: "skip" leaves out a video that can't be read, and names it.
        time_limit: seconds that a worker may spend on a video.
        advance: called with the number of videos done.

    Raises:
        ValueError: for a model that tells no classes apart by what it sees or hears; or, if `on_bad_video` is "error",
            for a video that can't be read.
    """
    if model.input is None or not model.has_logits:
        raise ValueError(f"a {type(model).__name__} does not tell classes apart by what it sees or hears")
    readable, skipped = readable_videos(videos, on_bad_video)
    advance(len(skipped))
    if not readable:
        return VideoPredictions(model.classes, (), tuple(skipped))
    unlabelled = tuple(replace(video, label=None, labels=()) for video in readable)
    clips = ClipDataset(replace(videos, videos=unlabelled, classes=model.classes), {"student": model.input}, grid=grid)
    clips.multi_label = several_labels  # there are no labels to tell
    found = predict(
        model,
        clips,
        machine=machine,
        batch_size=batch_size,
        workers=workers,
        on_bad_video=on_bad_video,
        time_limit=time_limit,
        advance=advance,
    )
    said = dict(zip(found.ids, probabilities(found.logits, several_labels=several_labels), strict=True))
    predicted = tuple(
        VideoPrediction(video, index, said[video.id]) for video, index in readable.items() if video.id in said
    )
    return VideoPredictions(model.classes, predicted, (*skipped, *found.skipped))


def readable_videos(videos: Manifest, on_bad_video: OnBadVideo) -> tuple[dict[Video, VideoIndex], list[str]]:
    """The videos that have frames, and where these are; a sentence for each of the others.

    Raises:
        ValueError: where there are others and `on_bad_video` is "error".
    """
    table = FrameTable.beside(videos.source)
    found: dict[Video, VideoIndex] = {}
    skipped = []
    for video in videos.videos:
        try:
            if video.error is not None:
                raise VideoError(video.path, video.error)
            found[video] = video_index(video, table, max_pixels=videos.max_pixels)
        except VideoError as error:
            if on_bad_video == "error":
                raise
            skipped.append(str(error))
    return found, skipped


def probabilities(logits: Tensor, *, several_labels: bool) -> Tensor:
    """In double precision, so that a file says all that the logits (N, K) say: float64 (N, K)."""
    return logits.double().sigmoid() if several_labels else logits.double().softmax(dim=1)


def _is_video(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES) and not hidden
