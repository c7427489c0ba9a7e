"""Checks every video of a list, each in a worker that can be killed, and says what is wrong with the set."""

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from av import VideoFrame
from numpy.typing import NDArray
from torch import Tensor

from videokd.clips import table
from videokd.clips.backends import is_picture, is_video_file, reader_of
from videokd.clips.fingerprints import MOMENTS, SIDE, Fingerprint, grey_cells, moments, near_duplicates
from videokd.clips.hashes import content_hash
from videokd.clips.manifest import Manifest, Video, row_of, write_rows
from videokd.clips.pictures import MAX_PIXELS, Cut
from videokd.clips.reading import VideoError, VideoIndex, decode_whole
from videokd.clips.set_checks import set_problems
from videokd.clips.views import flip_sensitive
from videokd.clips.workers import Workers
from videokd.disk import open_to_append, write_text
from videokd.interruption import deferred
from videokd.json_files import parse_json

Depth = Literal["decode", "scan"]
"""Decode every frame of a video, or list its packets and decode the first frame."""

_VERSION = 3
"""Of what a check looks for: what an unfinished check of another version found is looked for again."""

TINY = 32
"""Pixels of the shorter side of a frame under which a video is tiny."""

Facts = dict[str, Any]
"""What was found out about a video: frames, fps, seconds, width, height, rotation, mirrored, sizes (how many different
ones its frames have), damaged (how many frames the decoder flags), hash, error."""
Columns = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Checked:
    """One video of the list, checked."""

    video: Video
    facts: Facts
    columns: Columns | None
    """Its row of the frame table; None where it can't be read."""
    fingerprint: Fingerprint | None = None
    """What it looks like; None where it was not decoded whole."""


def check(
    manifest: Manifest,
    *,
    depth: Depth,
    workers: int,
    time_limit: float,
    partial: Path | None = None,
) -> Iterator[Checked]:
    """Checks the videos in parallel and yields them as they are done.

    Args:
        manifest: which videos.
        depth: how thoroughly.
        workers: processes.
        time_limit: seconds for a video; one that takes longer is broken.
        partial: file of what was found so far. What it says of unchanged files is taken over, and it grows.
    """
    known = _read_partial(partial, depth) if partial is not None else {}
    waiting = []
    for video in manifest.videos:
        found = known.get(video.id)
        if found is not None and found["stamp"] == _stamp(video.path):
            columns = None if found["columns"] is None else table.from_text(found["columns"])
            yield Checked(video, found["facts"], columns, _fingerprint_of(found["fingerprint"]))
        else:
            waiting.append(video)
    if not waiting:
        return
    with Workers(_Check(depth, manifest.max_pixels), workers=workers, time_limit=time_limit) as pool:
        for video in waiting:
            pool.submit(video)
        while pool.pending:
            for finished in pool.wait():
                facts, columns, fingerprint = finished.result or ({}, None, None)
                if finished.failure is not None:
                    kind = {"time limit": "slow", "crashed": "crash"}.get(finished.failure.kind, "unreadable")
                    facts = _facts(error=VideoError(finished.task.path, finished.failure.reason), kind=kind)
                one = Checked(finished.task, facts, columns, fingerprint)
                if partial is not None:
                    _append(partial, one, depth)
                yield one


def write_checked(manifest: Manifest, checked: Sequence[Checked], out: Path) -> None:
    """Writes the manifest with what was found, in the list's order, and the frame table beside it."""
    by_id = {one.video.id: one for one in checked}
    rows, columns = [], []
    for video in manifest.videos:
        one = by_id[video.id]
        row = row_of(video, folder=out.parent) | one.facts
        rows.append(row)
        if one.columns is not None:
            columns.append((row["path"], one.columns))
    table.write_table(table.table_path(out), columns)
    write_rows(rows, out)


def report(manifest: Manifest, checked: Sequence[Checked]) -> dict[str, Any]:
    """What is wrong with a set, and what to know of it: plain values, ready for JSON."""
    by_id = {one.video.id: one for one in checked}
    ordered = [by_id[video.id] for video in manifest.videos]
    bad = [one for one in ordered if one.facts["error"]]
    good = [one.facts for one in ordered if not one.facts["error"]]
    same: dict[str, list[Video]] = defaultdict(list)
    for one in ordered:
        if one.facts["hash"]:
            same[one.facts["hash"]].append(one.video)
    twins = [group for group in same.values() if len(group) > 1]
    files = [one for one in ordered if not one.facts["error"] and not is_picture(one.video.path)]
    gifs = [one.video.id for one in files if one.video.path.suffix.lower() == ".gif"]
    counts = Counter(name for video in manifest.videos for name in video.names)
    return {
        "videos": len(ordered),
        "readable": len(good),
        "faults": dict(Counter(one.facts["error"]["kind"] for one in bad)),
        "broken": [{"path": one.video.id, **one.facts["error"], "frames": one.facts["frames"]} for one in bad],
        "spread": {
            fact: _spread([facts[fact] for facts in good]) for fact in ("frames", "fps", "seconds", "width", "height")
        },
        "splits": dict(Counter(video.split or "none" for video in manifest.videos)),
        "duplicates": [[video.id for video in group] for group in twins],
        "duplicates_across_splits": [
            [f"{video.split}: {video.id}" for video in group] for group in twins if len({v.split for v in group}) > 1
        ],
        "duplicates_with_different_labels": [
            [f"{'/'.join(video.names)}: {video.id}" for video in group]
            for group in twins
            if len({video.names for video in group}) > 1
        ],
        "near_duplicates_across_splits": _near_duplicates(ordered),
        "one_frame": [one.video.id for one in files if one.facts["frames"] == 1],
        "tiny": [
            f"{one.video.id} ({one.facts['width']} x {one.facts['height']})"
            for one in ordered
            if not one.facts["error"] and min(one.facts["width"], one.facts["height"]) < TINY
        ],
        "several_sizes": [one.video.id for one in files if (one.facts["sizes"] or 1) > 1],
        "gifs_among_videos": gifs if len(gifs) < len(files) else [],
        "groups_across_splits": _groups_across_splits(manifest),
        "classes": dict(counts.most_common()),
        "imbalance": max(counts.values()) / min(counts.values()) if counts else None,
        "unlabelled": sum(not video.names for video in manifest.videos),
        "classes_missing_in_splits": _missing_classes(manifest),
        "flip_sensitive": list(flip_sensitive(manifest.classes)),
        "set": set_problems(manifest, {one.video.id for one in ordered if not one.facts["error"]}),
    }


def problems(found: Mapping[str, Any]) -> list[str]:
    """A report's problems, a sentence each with what to do; none where there are none."""
    said = []
    if found["faults"]:
        kinds = ", ".join(f"{number} {kind}" for kind, number in found["faults"].items())
        said.append(
            f"{len(found['broken'])} of {found['videos']} videos can't be read whole ({kinds}): "
            "replace them, or train with --on-bad-video skip"
        )
    across, differing = len(found["duplicates_across_splits"]), len(found["duplicates_with_different_labels"])
    if across:
        said.append(f"{_files(across)} in several splits: scores are too good with that. Keep each in one")
    if differing:
        said.append(f"{_files(differing)} with different labels: one of them is wrong")
    if found["duplicates"] and not across and not differing:
        said.append(f"{_files(len(found['duplicates']))} under different names")
    if leaking := len(found["groups_across_splits"]):
        said.append(f"{leaking} group{'s' * (leaking > 1)} (clips of one source) in several splits: keep each in one")
    for title, what in _OF_VIDEOS.items():
        if named := found[title]:
            said.append(f"{len(named)} {what.format(such=named[0])}")
    said += found["set"]
    for split, names in found["classes_missing_in_splits"].items():
        said.append(
            f"split {split!r} has no video of {len(names)} class{'es' * (len(names) > 1)}, such as {names[0]!r}"
        )
    if found["imbalance"] and found["imbalance"] >= 10:
        said.append(f"the largest class has {found['imbalance']:.0f} times as many videos as the smallest")
    return said


_OF_VIDEOS = {
    "near_duplicates_across_splits": "pairs of videos in different splits look the same ({such[0]} = {such[1]}): if "
    "one is a copy of the other, scores are too good with it. Keep both in one split",
    "one_frame": "video files have one frame, such as {such}: nothing moves in them",
    "tiny": f"videos have a side of less than {TINY} pixels, such as {{such}}: they are enlarged for every model",
    "several_sizes": "videos change their resolution midway, such as {such}: encode them again in one size",
    "gifs_among_videos": "GIFs are among other videos, such as {such}: their colours and frame rates differ, which a "
    "model may learn instead of the classes",
}
"""Field of a report -> what is wrong with the videos that it names."""


def _files(number: int) -> str:
    return f"{number} file{'s' * (number > 1)} listed more than once"


class _Check:
    """What a worker does with a video."""

    def __init__(self, depth: Depth, max_pixels: int = MAX_PIXELS) -> None:
        self.depth, self.max_pixels = depth, max_pixels

    def __call__(self, video: Video) -> tuple[Facts, Columns | None, Fingerprint | None]:
        reader = reader_of(video, max_pixels=self.max_pixels)
        error, index, frames, damaged = None, None, 0, None
        watched = _Watched(0)
        try:
            index = reader.scan(video)
            frames = index.num_frames
        except VideoError as found:
            error = found
        if self.depth == "decode" and is_video_file(video) and video.path.is_file():
            watched = _Watched(frames)
            decoded = decode_whole(video.path, index=index, max_pixels=self.max_pixels, watch=watched)
            frames, damaged, index = decoded.num_frames, decoded.num_damaged, decoded.index
            error = error or decoded.fault
        elif self.depth == "decode" and index is not None:
            watched = _Watched(frames)
            try:
                for number in range(index.num_frames):
                    watched.add(number, reader.read(video, [Cut([number])], index=index)[0].frames[0])
            except VideoError as found:
                frames, error = number, found
        num_bytes = video.path.stat().st_size if video.path.is_file() else 0
        columns = None if index is None or error is not None else table.row_of(index, num_bytes=num_bytes)
        digest = content_hash(video.path)
        sizes = len(watched.sizes) or None
        facts = _facts(index=index, frames=frames, sizes=sizes, damaged=damaged, digest=digest, error=error)
        return facts, columns, None if error is not None else watched.fingerprint


class _Watched:
    """What is kept of a video while its frames are decoded one after the other."""

    def __init__(self, num_frames: int) -> None:
        self._moments = moments(num_frames)
        self._cells: dict[int, Fingerprint] = {}
        self.sizes: set[tuple[int, int]] = set()
        """Width and height of its frames, as they are stored."""

    def __call__(self, number: int, frame: VideoFrame) -> None:
        self.sizes.add((frame.width, frame.height))
        if number in self._moments:
            self._cells[number] = grey_cells(torch.from_numpy(frame.to_ndarray(format="gray")))

    def add(self, number: int, picture: Tensor) -> None:
        """Keep what is needed of a frame (3, H, W) that was read as a picture."""
        if number in self._moments:
            self._cells[number] = grey_cells(picture.float().mean(dim=0))

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What the video looks like; None unless all its moments were seen."""
        if not all(number in self._cells for number in self._moments):
            return None
        return np.stack([self._cells[number] for number in self._moments])


def _facts(
    *,
    index: VideoIndex | None = None,
    frames: int = 0,
    sizes: int | None = None,
    damaged: int | None = None,
    digest: str | None = None,
    error: VideoError | None = None,
    kind: str | None = None,
) -> Facts:
    return {
        "frames": frames,
        "fps": round(index.fps, 3) if index else None,
        "seconds": round(index.seconds, 3) if index else None,
        "width": index.width if index else None,
        "height": index.height if index else None,
        "rotation": index.rotation if index else None,
        "mirrored": index.mirrored if index else None,
        "sizes": sizes,
        "damaged": damaged,
        "hash": digest,
        "error": {"kind": kind or error.fault, "reason": error.reason} if error else None,
    }


def _stamp(path: Path) -> list[int]:
    """Size and time of the last change: what tells whether a file is still the one that was checked."""
    if not path.exists():
        return [-1, -1]
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _append(partial: Path, one: Checked, depth: Depth) -> None:
    text = None if one.columns is None else table.to_text(one.columns)
    line = {
        "version": _VERSION,
        "path": one.video.id,
        "stamp": _stamp(one.video.path),
        "depth": depth,
        "facts": one.facts,
        "columns": text,
        "fingerprint": None if one.fingerprint is None else base64.b64encode(one.fingerprint.tobytes()).decode(),
    }
    with deferred(), open_to_append(partial) as file:
        file.write(f"{json.dumps(line)}\n".encode())


def _read_partial(partial: Path, depth: Depth) -> dict[str, dict[str, Any]]:
    """What an earlier check found out; a last line that it did not finish is dropped."""
    if not partial.is_file():
        return {}
    whole, _, torn = partial.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        write_text(partial, whole + "\n" if whole else "")
    rows = [parse_json(line, source=f"{partial}:{number}") for number, line in enumerate(whole.splitlines(), start=1)]
    return {row["path"]: row for row in rows if row["depth"] == depth and row.get("version") == _VERSION}


def _fingerprint_of(text: str | None) -> Fingerprint | None:
    if text is None:
        return None
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(MOMENTS, SIDE, SIDE)


def _near_duplicates(ordered: Sequence[Checked]) -> list[list[str]]:
    """Pairs in different splits that look the same, but for those of the same content."""
    known = [(one, one.fingerprint) for one in ordered if one.fingerprint is not None and one.video.split is not None]
    pairs = near_duplicates([print_ for _, print_ in known], [one.video.split for one, _ in known])
    return [
        [f"{known[place][0].video.split}: {known[place][0].video.id}" for place in pair]
        for pair in pairs
        if known[pair[0]][0].facts["hash"] != known[pair[1]][0].facts["hash"]
    ]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def _groups_across_splits(manifest: Manifest) -> dict[str, list[str]]:
    """Group -> the splits that it lies in, where there are several; UCF101's gNN counts as a group of its class."""
    splits: dict[str, set[str]] = defaultdict(set)
    for video in manifest.videos:
        numbered = re.search(r"_g(\d+)_c\d+", video.path.name)
        group = video.group or (f"{video.label}/g{numbered[1]}" if numbered else None)
        if group and video.split and video.split != "unlabelled":
            splits[group].add(video.split)
    return {group: sorted(found) for group, found in sorted(splits.items()) if len(found) > 1}


def _missing_classes(manifest: Manifest) -> dict[str, list[str]]:
    """Split -> classes that none of its videos has, for splits with labels."""
    present: dict[str, set[str]] = defaultdict(set)
    for video in manifest.videos:
        if video.split and video.names:
            present[video.split].update(video.names)
    missing = {split: [name for name in manifest.classes if name not in there] for split, there in present.items()}
    return {split: names for split, names in missing.items() if names}
