"""Commands on lists of videos: `videokd data ...`."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import tyro

from videokd.cli.options import CONSOLE, HowToRead, ListOptions
from videokd.clips import checking, synthetic
from videokd.clips.folds import folds as make_folds
from videokd.clips.manifest import Manifest, shard_in, write_manifest
from videokd.clips.packing import Packing
from videokd.clips.packing import pack as pack_videos
from videokd.disk import write_text
from videokd.interruption import Interruption, deferred
from videokd.progress import bar as progress_bar
from videokd.report.data_check import check_lines
from videokd.report.tables import terminal_table


def synth(
    out: tyro.conf.Positional[Path],
    train: int = 1200,
    val: int = 240,
    test: int = 1200,
    labelled: int | None = None,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Draws the synthetic set of twelve motions as H.264 files, with a manifest that knows what is in them.

    Args:
        out: Folder to make.
        train: Training clips.
        val: Validation clips.
        test: Test clips.
        labelled: Write a second list beside it, few_labels.jsonl, in which so many training clips keep their label.
        seed: Of the drawings.
        workers: Processes.
    """
    path = synthetic.write_set(out, counts={"train": train, "val": val, "test": test}, seed=seed, workers=workers)
    CONSOLE.print(f"{train + val + test} videos, listed in {path}")
    if labelled is not None:
        CONSOLE.print(
            f"{labelled} of the {train} training clips keep their label in {synthetic.withhold_labels(path, labelled)}"
        )


def folds(
    videos: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    out: Path,
    k: int = 5,
    val: float = 0.2,
    seed: int = 0,
    how: HowToRead = ListOptions(),  # frozen
) -> None:
    """Makes k lists of a list, for cross-validation: every video is in the test split of one of them.

    Clips of one source (group) are never in two splits, and classes are as even as that allows. The list's own splits
    play no part.

    Args:
        videos: Folder or list of videos, in any form of data/README.md.
        out: Folder for fold1.jsonl, fold2.jsonl, ...
        k: How many.
        val: Share of the videos outside of a fold that are its validation split, about; 0 makes none.
        seed: Of the order in which groups of the same size are dealt out.
        how: How the list is read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: remove it, or name another --out")
    manifest = how.read(videos, allow_leaks=True)
    made = make_folds(manifest, k, val=val, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, fold in enumerate(made, start=1):
        write_manifest(fold, out / f"fold{number}.jsonl")
        rows.append((f"fold{number}.jsonl", *(_sizes(fold, split) for split in ("train", "val", "test"))))
    heads = (f"{split}: videos (groups), videos a class" for split in ("train", "val", "test"))
    CONSOLE.print(terminal_table(("list", *heads), rows, justify="left"))
    if manifest.has_splits:
        own = Counter(video.split or "none" for video in manifest.videos)
        listed = ", ".join(f"{split} {number}" for split, number in own.items())
        CONSOLE.print(f"The list's own splits ({listed}) are not used: a video is in the test split of one fold")
    if not any(video.group for fold in made for video in fold.videos):
        CONSOLE.print("The list names no groups: clips of one source may be in training and test, and scores too good")


def _sizes(fold: Manifest, split: str) -> str:
    videos = [video for video in fold.videos if video.split == split]
    counts = {name: sum(video.label == name for video in videos) for name in fold.classes}
    if len(counts) <= 6:
        by_class = ", ".join(f"{name} {count}" for name, count in counts.items())
    else:
        fewest, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
        by_class = f"{counts[fewest]} ({fewest}) to {counts[most]} ({most})"
    return f"{len(videos)} ({len({video.group or video.id for video in videos})}), {by_class}"


def check(
    videos: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    out: Path | None = None,
    how: HowToRead = ListOptions(),  # frozen
    depth: checking.Depth = "decode",
    workers: int = os.cpu_count() or 1,
    time_limit: float = 60.0,
) -> None:
    """Reads every video of a list, says what is wrong, and writes a manifest that training can rely on.

    Stopped and started again, it goes on with the files that it has not seen yet.

    Args:
        videos: Folder or list of videos, in any form of data/README.md.
        out: Manifest to write, a .jsonl; NAME.checked.jsonl in this folder if not given.
        how: How the list is read.
        depth: Decode every frame, or list the packets and decode the first frame.
        workers: Processes.
        time_limit: Seconds for a video; one that takes longer counts as broken.
    """
    out = out or Path(f"{Path(videos).stem}.checked.jsonl")
    if out.suffix != ".jsonl":
        raise ValueError(f"the manifest is a .jsonl file, not {out}")
    if out.exists():
        raise ValueError(f"{out} is there already: remove it, or name another --out")
    manifest = how.read(videos, allow_leaks=True)
    for video in manifest.videos:
        if video.packed is not None:
            shard_in(out.parent, video.packed.shard)  # before the work, not after it
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, found = out.with_name(out.name + ".partial-check"), []
    with progress_bar(CONSOLE) as progress:
        bar = progress.add_task("checking", total=len(manifest.videos))
        try:
            for one in checking.check(manifest, depth=depth, workers=workers, time_limit=time_limit, partial=partial):
                found.append(one)
                progress.advance(bar)
        except KeyboardInterrupt as stop:
            raise Interruption(
                f"stopped after {len(found)} of {len(manifest.videos)} videos, which are kept; resume with the same "
                "command"
            ) from stop
    try:
        with deferred():
            checking.write_checked(manifest, found, out)
            result = checking.report(manifest, found)
            write_text(out.with_suffix(".report.json"), json.dumps(result, indent=2) + "\n")
            partial.unlink(missing_ok=True)
            for line in check_lines(result, checking.problems(result)):
                CONSOLE.print(line)
    except KeyboardInterrupt as stop:
        raise Interruption(f"stopped; {out} is written, and nothing is left to resume") from stop
    CONSOLE.print(f"{out}: the manifest, with its frame table and report beside it. Train on it: --data.path {out}")


def pack(
    videos: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    out: Path,
    packing: Annotated[Packing, tyro.conf.arg(name="")],
    how: HowToRead = ListOptions(),  # frozen
    shard_mb: int = 512,
    workers: int = os.cpu_count() or 1,
    time_limit: float = 600.0,
    on_bad_video: Literal["error", "skip"] = "error",
) -> None:
    """Packs the videos of a list into tar shards that are smaller and faster to read.

    Stopped and started again, it goes on after the last whole shard.

    Args:
        videos: Folder or list of videos, in any form of data/README.md.
        out: Folder of the packed set; train on it with --data.path OUT.
        packing: How videos are packed.
        how: How the list is read.
        shard_mb: Megabytes at which a shard is closed.
        workers: Processes.
        time_limit: Seconds for a video.
        on_bad_video: Stop at a video that can't be read, or leave it out, named and counted.
    """
    manifest = how.read(videos)
    with progress_bar(CONSOLE) as progress:
        bar = progress.add_task("packing", total=len(manifest.videos))
        left_out = pack_videos(
            manifest,
            out,
            packing,
            shard_mb=shard_mb,
            workers=workers,
            time_limit=time_limit,
            on_bad_video=on_bad_video,
            advance=lambda: progress.advance(bar),
        )
    for reason in left_out:
        CONSOLE.print(f"left out: {reason}")
    shards = sorted(out.glob("*.tar"))
    megabytes = sum(shard.stat().st_size for shard in shards) / 1e6
    CONSOLE.print(
        f"{len(manifest.videos) - len(left_out)} videos in {len(shards)} shards of {megabytes:.1f} MB together, "
        f"{len(left_out)} left out. Train on them: --data.path {out}"
    )
