"""Stores what a recipe's teachers say of so many views of every training clip, and checks what is stored."""

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from videokd import recipe as recipes
from videokd.assembly import (
    Assembly,
    clip_dataset,
    load_teachers,
    shuffling_parties,
    stored_teachers,
    training_videos,
    view_specs,
)
from videokd.clips.dataset import ClipDataset, FrameMemory
from videokd.clips.hashes import ContentHashes
from videokd.clips.loader import OnBadVideo, batches, leave_out_bad
from videokd.clips.order import ClipView
from videokd.clips.shuffling import check_pieces, with_shuffled
from videokd.contracts import Batch, Outputs
from videokd.distill import check_terms
from videokd.interruption import Interruption, deferred
from videokd.machine import terminal
from videokd.progress import LINE_SECONDS, bar
from videokd.recipe import Recipe, TrainedTeacher
from videokd.records import Contents, StoredType, encoded, record, spread, top_classes
from videokd.store import HASHES, StoredOutputs, claim, clip_rows, fingerprint, make_header
from videokd.stored_shards import ShardWriter, fault_of, missing_shards, partial_path, shard_clips, shard_path
from videokd.teachers import Mixture, Teacher, all_targets
from videokd.timing import duration

SLACK = {"fp32": 0.02, "bf16": 0.1}
"""How far a value may be off when it is computed again, beyond the rounding of what is stored, in units of the values'
root mean square. R(2+1)D-18, Swin3D-T and the quickstart's teacher are off by up to 0.07 in bf16; TF32, in which GPUs
convolve fp32, has an eighth of that, and another batch in fp32 on one CPU makes 1e-6. Their maps are off by 0.5 to 1.4
where the picture is moved by a pixel, by 0.8 to 2 where it is another frame, by 2 and more where it is flipped."""

_ROUNDING = 2.0**-11
"""Relative error of a number that is rounded to fp16."""


class Stopped(Interruption):
    """Ctrl-C or SIGTERM: what was computed is kept."""

    def __init__(self, done: int, rows: int) -> None:
        super().__init__(f"stopped after {done} of the shard's {rows} records, which are kept")

    def add_command(self, command: str) -> None:
        """Adds the command that resumes it to the message."""
        self.args = (f"{self}; resume with: {command}",)


def label(
    recipe: Recipe,
    folder: str | Path,
    *,
    views: int | None = None,
    shard: tuple[int, int] = (1, 1),
    batch_size: int = 32,
    dtype: StoredType = "float16",
    top_k: int | None = None,
    console: Console | None = None,
) -> tuple[int, ...]:
    """Runs the recipe's teachers over its training clips and leaves their outputs in `folder`; returns the numbers of
    the shards that are still missing there. A shard that was interrupted goes on, one that is whole is left alone, and
    one that is damaged (see `stored_shards`) is made anew.

    Args:
        recipe: whose training it is for; its test clips are never looked at.
        folder: for the outputs; other shards of the same may be there, or be at work.
        views: of every clip; None for the recipe's `data.views`.
        shard: (i, n), the i-th of n parts of the clips, from 1 on.
        batch_size: clips at once.
        dtype: of logits and features.
        top_k: keep the log-probabilities of so many of the likeliest classes, and the mass of the rest; None keeps all
            logits.
        console: where to report; None for the terminal.

    Raises:
        ValueError: for a recipe that can't be trained on stored outputs, a folder that holds something else, too
            little room on the disk, outputs that are not numbers, or videos that change meanwhile.
        VideoError: for a broken video, if `data.on_bad_video` is "error".
        Stopped: after Ctrl-C or SIGTERM.
    """
    console, folder, (number, shards) = console or terminal(), Path(folder), shard
    views = recipe.data.views if views is None else views
    if views is None:
        raise ValueError("of how many views of a clip? Give --views, or set the recipe's data.views")
    if not 1 <= number <= shards or views < 1 or batch_size < 1:
        raise ValueError(
            f"shards are 1/n to n/n, views and batch_size at least 1, got {number}/{shards}, {views} and {batch_size}"
        )
    work = _work(recipe, views, console)
    sample = _said(work, _blank(work))
    contents = {name: Contents.of(sample[name], one.taps) for name, one in work.teachers.items()}
    layout = record(contents, dtype=dtype, top_k=top_k)
    hashes = ContentHashes(folder / HASHES, console.print)
    clips = clip_rows(work.clips, hashes)
    header = make_header(
        made_from=fingerprint(work.clips, {name: one.model for name, one in work.teachers.items()}),
        contents=contents,
        layout=layout,
        clips=clips,
        views=views,
        shards=shards,
        dtype=dtype,
        top_k=top_k,
        pieces=work.pieces,
    )
    mine = shard_clips(len(clips), number, shards)
    path, rows = shard_path(folder, number, shards), len(mine) * views
    _forecast(folder, layout.itemsize, clips=len(clips), views=views, shard=shard, rows=rows, console=console)
    claim(folder, header, clips)
    hashes.save()
    if path.is_file() and path.stat().st_size != rows * layout.itemsize:
        console.print(f"{path} has {path.stat().st_size} bytes, and not {rows * layout.itemsize}: it is made anew")
        path.unlink()
    elif path.is_file() and (fault := fault_of(path)) is not None:
        console.print(f"{path}: {fault}; it is made anew")
        path.unlink()
    if path.is_file():
        console.print(f"{path} is whole: nothing to do")
        return missing_shards(folder, shards)

    # All views of a clip are decoded together, and a batch never begins in the middle of a clip's views if it has room
    # for all of them.
    per_block = max(batch_size // views, 1)
    with ShardWriter(path, layout, rows=rows, block=per_block * views) as writer:
        try:
            order = _ViewsOf(mine[writer.done // views :], views, batch_size, per_block)
            _compute(work, order, writer, top_k=top_k, console=console)
        except KeyboardInterrupt:
            raise Stopped(writer.done, rows) from None
        _check_unchanged(clips[mine.start : mine.stop], hashes.of(work.clips.videos[mine.start : mine.stop]), writer)
        hashes.save()
        with deferred():
            writer.finish(_made(work.recipe))
    return missing_shards(folder, shards)


def _check_unchanged(rows: Sequence[Mapping[str, Any]], hashes: Sequence[str | None], writer: ShardWriter) -> None:
    """Check that the videos of a shard are still those that were hashed before they were labelled.

    Raises:
        ValueError: that names those that are not; what was written is removed.
    """
    changed = [row["id"] for row, found in zip(rows, hashes, strict=True) if row["hash"] != found]
    if changed:
        writer.discard()
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"{', '.join(changed[:5])}{more} changed while they were labelled, and the shard is not kept: label the "
            "set into another folder when nothing writes to it any more"
        )


@torch.no_grad()
def audit(
    made: Assembly, *, share: float, seed: int = 0, console: Console | None = None
) -> dict[str, dict[str, float]]:
    """Computes a share of a run's stored outputs again; teacher -> what it says -> the largest absolute difference.

    Decoding, cuts, augmentation and teachers are those of now: what the header can't say is found here.

    Args:
        made: a run on stored outputs.
        share: of the records that the run may use; at least one is computed.
        seed: of the choice.
        console: where to report; None says nothing.

    Raises:
        ValueError: if a difference is larger than rounding and another machine explain (`SLACK`), naming the clip.
    """
    if made.recipe.stored is None or made.recipe.data.views is None:
        raise ValueError("the recipe trains on no stored outputs: nothing can be compared")
    store, stored = StoredOutputs(made.recipe.stored), stored_teachers(made.teachers)
    clips = copy(made.clips)
    clips.unseen = frozenset(made.clips.seen)  # the student: the teachers' views are what is made here
    slack = max(SLACK[precision] for precision in {made.recipe.machine.precision, *store.precisions})
    rounding = _ROUNDING if store.header["dtype"] == "float16" else 0.0
    order = _Listed(_chosen(store, clips, made.recipe.data.views, share, seed), made.recipe.data.batch_size)
    found: dict[str, dict[str, float]] = {name: {} for name in stored}
    computed = 0
    try:
        online = {name: Teacher(one.model.to(made.device), one.taps) for name, one in stored.items()}
        pieces = made.student.objective.pieces
        work = _Work(made.recipe, made.device, clips, online, pieces, shuffling_parties(made.terms))
        for batch in _served(work, order):
            if not batch.id:
                continue
            computed += len(batch.id)
            now = _said(work, batch)
            for name, one in stored.items():
                assert one.stored is not None
                before = one.stored(batch.id, batch.view, made.device)
                differences = _differences(
                    before, now[name], top_k=store.header["top_k"], rounding=rounding, slack=slack
                )
                for what, difference in differences.items():
                    largest = float(difference.size.max())
                    found[name][what] = max(found[name].get(what, 0.0), largest)
                    if not difference.is_explained:
                        raise ValueError(
                            f"what is stored of teacher {name!r} is not what it says now: {what} of clip "
                            f"{batch.id[difference.worst]}, view {int(batch.view[difference.worst])}, differs by up to "
                            f"{largest:.2g} from values of about {difference.scale:.2g}. Videos, decoder or code have "
                            "changed: label again, into another folder"
                        )
    finally:
        for one in stored.values():
            one.model.to("cpu")
    if not computed:
        raise ValueError(f"none of the {len(order.pairs)} clips to be compared could be read")
    if console is not None:
        named = "; ".join(
            f"{name}: {', '.join(f'{what} {largest:.2g}' for what, largest in parts.items())}"
            for name, parts in found.items()
        )
        console.print(f"{computed} stored records computed again; largest differences of {named}")
    return found


def _chosen(store: StoredOutputs, clips: ClipDataset, views: int, share: float, seed: int) -> list[ClipView]:
    """A share of a run's views, at random, of those that could be read when they were stored."""
    ids = [video.id for video in clips.videos]
    rows = np.stack([store.rows(ids, [view] * len(ids)) for view in range(views)], axis=1)  # (clips, views)
    valid = np.argwhere(~np.isin(rows, list(store.invalid)))
    count = min(max(1, round(share * rows.size)), len(valid))
    picked = np.random.default_rng(seed).choice(len(valid), size=count, replace=False)
    return [(int(clip), int(view)) for clip, view in valid[np.sort(picked)]]


@dataclass(frozen=True)
class _Work:
    """Teachers that run, over clips of which they alone get views."""

    recipe: Recipe
    device: torch.device
    clips: ClipDataset
    teachers: Mapping[str, Teacher]
    pieces: int
    shuffling: set[str]


def _work(recipe: Recipe, views: int, console: Console) -> _Work:
    """What is to be computed for a recipe.

    Raises:
        ValueError: if its training can't use stored outputs.
    """
    sources = {
        name: source if isinstance(source, Mixture) else replace(source, remember=False)
        for name, source in recipe.teachers.items()
    }
    for name, source in sources.items():
        if isinstance(source, TrainedTeacher) and source.shuffled:
            raise ValueError(f"teacher {name!r} is shuffled in each batch of a run: store it as it is (shuffled=False)")
    recipe = replace(recipe, teachers=sources, stored=None, data=replace(recipe.data, views=views))
    recipe = recipes.anchored(recipe)
    recipes.check_stored(recipe)
    manifest = recipe.data.manifest()
    mixtures = {name: source for name, source in recipe.teachers.items() if isinstance(source, Mixture)}
    check_terms(recipe.objective, list(recipe.teachers), mixtures)
    videos, missing = leave_out_bad(training_videos(manifest, recipe), on_bad_video=recipe.data.on_bad_video)
    for reason in missing:
        console.print(f"skipped: {reason}")
    every = load_teachers(recipe, manifest.classes)
    teachers = {name: one for name, one in every.items() if isinstance(one, Teacher) and one.model.input is not None}
    if not teachers:
        raise ValueError("no teacher of the recipe looks or listens: there is nothing to store")
    # Of the student only what it sees is wanted: all parties' views are placed together.
    specs = view_specs(recipe.student.build(manifest.classes, pretrained=False), teachers)
    memory = FrameMemory() if recipe.data.in_memory else None
    clips = clip_dataset(videos, recipe, specs, memory, train=True, unseen={"student"})
    pieces = max(term.loss.pieces for term in recipe.objective.values())
    shuffling = shuffling_parties(recipe.objective)
    if pieces:
        check_pieces(pieces, shuffling, specs)
    return _Work(recipe, recipe.machine.find(), clips, teachers, pieces, shuffling)


def _blank(work: _Work) -> Batch:
    """One clip of nothing, for a dry run."""
    views = {name: one.model.blank() for name, one in work.teachers.items()}
    return Batch(
        views, torch.zeros(1, dtype=torch.int64, device=work.device), ("blank",), torch.zeros(1, dtype=torch.int64)
    )


def _served(work: _Work, order: "_ViewsOf | _Listed") -> Iterator[Batch]:
    """The batches of `order`; without the clips that can't be read, unless these are to stop everything."""
    data = work.recipe.data
    # Another clip's outputs under this one's name would be wrong: nothing stands in.
    policy: OnBadVideo = "error" if data.on_bad_video == "error" else "skip"
    served = batches(work.clips, order, workers=data.workers, on_bad_video=policy, time_limit=data.time_limit)
    for batch in served:
        yield batch.to(work.device)


@torch.no_grad()
def _said(work: _Work, batch: Batch) -> dict[str, Outputs]:
    if work.pieces:
        batch = with_shuffled(batch, work.pieces, work.shuffling)
    with work.recipe.machine.autocast(work.device):
        return all_targets(work.teachers, batch)


def _compute(work: _Work, order: "_ViewsOf", writer: ShardWriter, *, top_k: int | None, console: Console) -> None:
    # From the first batch on: before it, workers start and networks warm up.
    started, before, named = 0.0, writer.done, set[str]()
    said = 0.0
    with bar(console) as bars:
        task = bars.add_task(writer.path.name, total=writer.rows, completed=writer.done, detail="")
        for step, (pairs, batch) in enumerate(zip(order, _served(work, order), strict=True), start=1):
            for reason in batch.skipped:
                if reason not in named:
                    console.print(f"skipped: {reason}")
                named.add(reason)
            records = np.zeros(len(pairs), dtype=writer.layout)  # not valid, until something is known
            if batch.id:
                places = {(work.clips.videos[clip].id, view): place for place, (clip, view) in enumerate(pairs)}
                where = [places[one] for one in zip(batch.id, batch.view.tolist())]
                records[where] = encoded(_said(work, batch), batch.id, writer.layout, top_k=top_k)
            with deferred():
                writer.append(records)
            now = time.monotonic()
            if step == 1:
                started, before, said = now, writer.done, now
                bars.update(task, completed=writer.done)
                continue
            rate = (writer.done - before) / max(now - started, 1e-9)
            left = f"about {duration((writer.rows - writer.done) / rate)} to go, at {rate:.1f} clips/s"
            often = now - said >= LINE_SECONDS and not console.is_terminal
            if writer.done < writer.rows and (step == 2 or often):
                said = now
                console.print(f"{writer.path.name}: {writer.done}/{writer.rows}, {left}")
            bars.update(task, completed=writer.done, detail=f"{rate:.1f} clips/s")


@dataclass(frozen=True)
class _Listed:
    """Some views of clips, in batches."""

    pairs: Sequence[ClipView]
    batch_size: int

    def blocks(self) -> Iterator[list[list[ClipView]]]:
        for first in range(0, len(self.pairs), self.batch_size):
            yield [list(self.pairs[first : first + self.batch_size])]


@dataclass(frozen=True)
class _ViewsOf:
    """All views of some clips, clip by clip, in batches that are decoded `per_block` clips at a time."""

    clips: range
    views: int
    batch_size: int
    per_block: int

    def blocks(self) -> Iterator[list[list[ClipView]]]:
        for first in range(0, len(self.clips), self.per_block):
            pairs = [(clip, view) for clip in self.clips[first : first + self.per_block] for view in range(self.views)]
            yield [pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size)]

    def __iter__(self) -> Iterator[list[ClipView]]:
        for block in self.blocks():
            yield from block


@dataclass(frozen=True)
class _Difference:
    """Between what was stored and what is said now."""

    size: Tensor  # (N, ...), absolute
    allowed: Tensor  # likewise: what rounding and another machine explain
    scale: float  # root mean square of what was stored
    clips: Tensor  # int64 (N,), places in the batch

    @property
    def worst(self) -> int:
        """The place of the clip that differs most beyond what is allowed."""
        excess = (self.size - self.allowed).nan_to_num(nan=torch.inf).reshape(len(self.clips), -1).amax(dim=1)
        return int(self.clips[excess.argmax()])

    @property
    def is_explained(self) -> bool:
        return bool((self.size <= self.allowed).all())  # what is not a number is not


def _differences(
    before: Outputs, now: Outputs, *, top_k: int | None, rounding: float, slack: float
) -> dict[str, _Difference]:
    """By what was said: "known" for whether anything was; logits, taps and their times of the clips where it was."""
    said = [one.values for one in before.features.values()] if before.logits is None else [before.logits]
    everything = torch.ones(len(said[0]), dtype=torch.bool, device=said[0].device)
    known = [everything if one.known is None else one.known for one in (before, now)]
    found = {}
    if any(one.known is not None for one in (before, now)):
        found["known"] = _difference(known[0], known[1], everything, rounding=0, slack=0)
    both = known[0] & known[1]
    parts = {tap: (one.values, now.features[tap].values) for tap, one in before.features.items()}
    if before.logits is not None and now.logits is not None:
        of_now = now.logits
        if top_k is not None:  # the same classes: which are the likeliest may differ by a hair
            top = top_classes(now.logits, top_k, before.logits.topk(top_k, dim=1).indices)
            of_now = spread(top["top"], top["top classes"], top["rest"], num_classes=now.logits.shape[1])
        parts["logits"] = (before.logits, of_now)
    for what, sides in parts.items() if both.any() else ():
        found[what] = _difference(*sides, both, rounding=rounding, slack=slack)
    for tap, one in before.features.items() if both.any() else ():
        found[f"times of {tap}"] = _difference(one.times, now.features[tap].times, both, rounding=0, slack=1e-6)
    return found


def _difference(before: Tensor, now: Tensor, clips: Tensor, *, rounding: float, slack: float) -> _Difference:
    one, other = before[clips].float(), now[clips].float()
    scale = float(one.square().mean().sqrt())
    return _Difference((one - other).abs(), rounding * one.abs() + slack * scale, scale, clips.nonzero().squeeze(1))


def _forecast(
    folder: Path, record_bytes: int, *, clips: int, views: int, shard: tuple[int, int], rows: int, console: Console
) -> None:
    """Says how much it will be.

    Raises:
        ValueError: if the disk has no room for the shard.
    """
    number, shards = shard
    there = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    path = shard_path(folder, number, shards)
    present = sum(one.stat().st_size for one in (path, partial_path(path)) if one.is_file())
    free, needed = shutil.disk_usage(there).free, rows * record_bytes - present
    console.print(
        f"{clips} clips x {views} views, records of {_bytes(record_bytes)}: {_bytes(clips * views * record_bytes)} in "
        f"all, {_bytes(rows * record_bytes)} in shard {number} of {shards}, {_bytes(present)} of them there already; "
        f"{_bytes(free)} free on the disk"
    )
    if needed > free:
        raise ValueError(
            f"the shard needs {_bytes(needed)} more, and the disk of {there} has {_bytes(free)}: keep fewer views, "
            "coarser features, --top-k classes, or name an --out on another disk"
        )


def _made(recipe: Recipe) -> dict[str, Any]:
    """Who made a shard; it is compared with nothing."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "av", "numpy")}
    return {
        "precision": recipe.machine.precision,
        "device": recipe.machine.find().type,
        "versions": {"videokd": importlib.metadata.version("videokd"), "python": platform.python_version(), **versions},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _bytes(number: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
