"""The command that says what is in videos."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.progress import Progress
from rich.table import Table

from videokd.cli.options import CONSOLE, HowToRead, ListOptions, TrustOption
from videokd.clips.manifest import Manifest
from videokd.clips.reading import VideoError, VideoIndex
from videokd.clips.views import ViewGrid
from videokd.disk import write_text
from videokd.evaluate import OnBadVideo
from videokd.machine import Machine
from videokd.models import load_model
from videokd.predict import (
    Caption,
    Timeline,
    TimelineOptions,
    VideoPredictions,
    check_copy,
    clock,
    find_videos,
    predict_videos,
    predictions_csv,
    predictions_json,
    readable_videos,
    timelines_csv,
    timelines_json,
)
from videokd.predict import draw as draw_copy
from videokd.predict import plot as draw_plot
from videokd.predict import timeline as make_timeline
from videokd.progress import bar as progress_bar
from videokd.report.tables import terminal_table
from videokd.text import to_json, to_stderr

Format = Literal["table", "json", "csv"]


def predict(
    model: tyro.conf.Positional[Path],
    videos: tyro.conf.Positional[tuple[Path, ...]] = (),
    listed: Annotated[str | None, tyro.conf.arg(name="list")] = None,
    how: HowToRead = ListOptions(),  # frozen
    split: str | None = None,
    top_k: int = 5,
    temporal: int = 1,
    spatial: Literal[1, 3] = 1,
    several_labels: bool = False,
    timeline: bool = False,
    options: Annotated[TimelineOptions, tyro.conf.arg(name="")] = TimelineOptions(),  # noqa: B008  # frozen
    format: Format | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    draw: Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "skip",
    time_limit: float = 60.0,
    trust: TrustOption = (),
    machine: Machine = Machine(),  # noqa: B008  # frozen
) -> None:
    """Says what a trained model sees in videos: the likeliest classes of each, or, with --timeline, what happens when.

    Videos that can't be read are named and counted; the exit code is 1 then, after all others are done.

    Args:
        model: Folder of a finished run, or of a model that was saved.
        videos: Video files and pictures, and folders of them.
        listed: Folder or list of videos instead, in any form of data/README.md.
        how: How the list is read.
        split: Which split of the list; None takes every video.
        top_k: So many of the likeliest classes.
        temporal: Views in time, from a video's start to its end; their probabilities are averaged.
        spatial: Views in space: 3 squares that cover the frame, or the centre.
        several_labels: A probability for each class by itself, for models trained on sets of several labels a video.
        timeline: Slide a window over each video, and tell its segments.
        options: How a timeline is made.
        format: What is written; a table if not given, or what the name of --out says.
        out: File to write, .json or .csv; the terminal if not given.
        plot: PNG to draw the timeline to; a folder for several videos.
        draw: MP4 to write a copy of the video to, with label, probability and time on it; a folder for several videos.
        batch_size: Videos, or windows, at once.
        workers: Processes that decode; a timeline is decoded by one.
        on_bad_video: Stop at a video that can't be read, or leave it out, named and counted.
        time_limit: Seconds that a worker may spend on a video.
        trust: Module, package or recipe file of your own whose code a run may name; give it once for each.
        machine: Device and precision.
    """
    if top_k < 1 or batch_size < 1:
        raise ValueError(f"top_k and batch_size are at least 1, got {top_k} and {batch_size}")
    grid = ViewGrid(temporal=temporal, spatial=spatial)
    if timeline and len(grid) > 1:
        raise ValueError("--temporal and --spatial are for whole videos: a timeline has its windows")
    if not timeline and (plot is not None or options != TimelineOptions()):
        raise ValueError("--plot, --window, --stride, --smooth, --threshold and --min-seconds are for --timeline")
    written = _format(format, out)
    chosen = _chosen(videos, listed, how, split)
    paths = [video.path for video in chosen.videos]
    plots, copies = _targets(paths, plot, ".png"), _targets(paths, draw, ".mp4")
    for path, copy in copies.items():
        check_copy(path, copy)
    for target in (*plots.values(), *([out] if out else [])):
        if target.exists():
            raise ValueError(f"{target} is there already: remove it, or name another")
    if not model.is_dir():
        raise ValueError(f"no folder {model}: name that of a run, or of a saved model")
    network = load_model(model, trust=trust).to(machine.find())

    with progress_bar(CONSOLE, transient=True, disable=written != "table") as progress:
        if timeline:
            one = partial(
                make_timeline,
                network,
                options=options,
                several_labels=several_labels,
                machine=machine,
                batch_size=batch_size,
            )
            timelines, skipped = _timelines(one, chosen, on_bad_video, plots, copies, top_k, progress)
            plain = timelines_json(
                timelines, model=str(model), classes=network.classes, options=options, skipped=skipped
            )
            result = _Result(plain, timelines_csv(timelines), [_timeline_table(one) for one in timelines])
        else:
            bar = progress.add_task("predicting", total=len(chosen.videos))
            found = predict_videos(
                network,
                chosen,
                grid=grid,
                several_labels=several_labels,
                machine=machine,
                batch_size=batch_size,
                workers=workers,
                on_bad_video=on_bad_video,
                time_limit=time_limit,
                advance=lambda videos: progress.advance(bar, videos),
            )
            skipped = [*found.skipped, *_copies(found, copies, on_bad_video, progress)]
            plain = predictions_json(found, model=str(model), grid=grid, top_k=top_k) | {"skipped": skipped}
            result = _Result(plain, predictions_csv(found, top_k=top_k), [_predictions_table(found, top_k)])
    _hand_out(result, written, out)
    for reason in skipped:
        to_stderr(f"skipped: {reason}")
    if skipped:
        raise ValueError(f"{len(skipped)} of {len(chosen.videos)} videos were skipped, for the reasons above")


@dataclass(frozen=True)
class _Result:
    """What was found, in every form."""

    plain: Mapping[str, Any]
    csv: str
    tables: Sequence[Table]


def _format(format: Format | None, out: Path | None) -> Format:
    """The form of what is written.

    Raises:
        ValueError: for a file in no form of a file.
    """
    if out is None:
        return format or "table"
    if format is None and out.suffix == ".json":
        return "json"
    if format is None and out.suffix == ".csv":
        return "csv"
    if format is None or format == "table":
        raise ValueError(f"--out is a .json or .csv file, or --format says which of them it is, got {out}")
    return format


def _chosen(videos: Sequence[Path], listed: str | None, how: ListOptions, split: str | None) -> Manifest:
    if listed is None:
        return replace(find_videos(videos), max_pixels=how.max_pixels)
    if videos:
        raise ValueError(f"name videos or a --list, not both: got {videos[0]} and {listed}")
    return how.read(listed).split(split)


def _targets(videos: Sequence[Path], out: Path | None, suffix: str) -> dict[Path, Path]:
    """Where what is made of each video goes: a file, or for several a folder, which has their folders in it.

    Raises:
        ValueError: for one file of several videos, or a file of another kind.
    """
    if out is None:
        return {}
    if out.suffix.lower() == suffix:
        if len(videos) > 1:
            raise ValueError(f"{out} is one file, and there are {len(videos)} videos: name a folder")
        return {videos[0]: out}
    if out.suffix and not out.is_dir():
        raise ValueError(f"{out} is no {suffix} file and no folder")
    # Without "..", which a list may write and which would lead out of the folder.
    places = [Path(os.path.abspath(video)) for video in videos]
    common = Path(os.path.commonpath([place.parent for place in places]))
    names = [place.relative_to(common) for place in places]
    stems = [name.with_suffix("") for name in names]
    times = Counter(stems)
    # The suffix is kept where it tells two videos apart.
    kept = [name if times[stem] > 1 else stem for name, stem in zip(names, stems)]
    return {video: out / f"{name}{suffix}" for video, name in zip(videos, kept)}


def _timelines(
    make: Callable[..., Timeline],
    videos: Manifest,
    on_bad_video: OnBadVideo,
    plots: Mapping[Path, Path],
    copies: Mapping[Path, Path],
    top: int,
    progress: Progress,
) -> tuple[list[Timeline], list[str]]:
    """The timeline of every video, its plot and its copy; a sentence for each video that could not be read."""
    readable, skipped = readable_videos(videos, on_bad_video)
    timelines: list[Timeline] = []
    for video, index in readable.items():
        bar = progress.add_task(video.path.name, total=index.seconds)
        try:
            found = make(video, index, advance=lambda seconds, bar=bar: progress.advance(bar, seconds))
            timelines.append(found)
            if video.path in plots:
                plots[video.path].parent.mkdir(parents=True, exist_ok=True)
                draw_plot(found, plots[video.path], top=top)
            if video.path in copies:
                _copy(video.path, copies[video.path], found.caption_at, index, progress)
        except VideoError as error:
            if on_bad_video == "error":
                raise
            skipped.append(str(error))
        progress.remove_task(bar)
    return timelines, skipped


def _copies(
    found: VideoPredictions, copies: Mapping[Path, Path], on_bad_video: OnBadVideo, progress: Progress
) -> list[str]:
    """Draws a copy of every video; a sentence for each of which there can be none."""
    skipped = []
    for one in found.videos if copies else ():
        said = Caption(*one.top(found.classes, 1)[0])
        try:
            _copy(one.video.path, copies[one.video.path], lambda seconds, said=said: said, one.index, progress)  # type: ignore[misc]
        except VideoError as error:
            if on_bad_video == "error":
                raise
            skipped.append(str(error))
    return skipped


def _copy(path: Path, out: Path, caption: Callable[[float], Caption], index: VideoIndex, progress: Progress) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    bar = progress.add_task(f"drawing {out.name}", total=index.num_frames)
    lost = draw_copy(path, out, caption, index=index, advance=lambda frames: progress.advance(bar, frames))
    progress.remove_task(bar)
    if lost is not None:
        to_stderr(f"{out}: {lost}")


def _predictions_table(found: VideoPredictions, top_k: int) -> Table:
    rows = [
        (str(one.video.path) if rank == 0 else "", name, f"{100 * value:.1f}")
        for one in found.videos
        for rank, (name, value) in enumerate(one.top(found.classes, top_k))
    ]
    return terminal_table(("video", "class", "%"), rows)


def _timeline_table(found: Timeline) -> Table:
    title = f"{found.video.path}: {clock(found.index.seconds)} in windows of {found.window:.3g} s"
    rows = [
        (
            clock(one.start),
            clock(one.end),
            one.name if one.is_sure else f"{one.name} ({one.likeliest})",
            f"{100 * one.confidence:.1f}",
        )
        for one in found.segments
    ]
    return terminal_table(("from", "to", "class", "%"), rows, title=title)


def _hand_out(result: _Result, written: Format, out: Path | None) -> None:
    if written != "table":
        text = result.csv if written == "csv" else to_json(result.plain, indent=2) + "\n"
        if out is None:
            sys.stdout.write(text)
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    for table in result.tables:
        CONSOLE.print(table)
