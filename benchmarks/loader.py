"""Clips a second of the whole loader, beside mmaction2's with decord: from video files to batches.

    benchmarks/peers.sh && benchmarks/.peers/bin/python benchmarks/loader.py --out loader.json

Both decode 16 frames at stride 4 of the same drawn videos, cut a random box, resize it, flip half of the clips and
collate batches of 8, in worker processes. They run in turns; ratios are of wall time and of CPU time, with that of the
workers. Ours has the frame table that `videokd data check` writes; without it, each worker scans a video once.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import File, Interval, interleaved, setting, times_faster, write
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from videokd.clips import Augment, BatchOrder, ClipDataset, Manifest, RandomResizedCrop, Video, batches
from videokd.clips.reading import scan
from videokd.clips.table import row_of, table_path, write_table
from videokd.contracts import Dense, InputSpec

BATCH, FRAMES, STRIDE, NUM_VIDEOS = 8, 16, 4, 64
CASES = [
    (File(name="gop12.mp4", options={"g": "12"}), 112),
    (File(name="gop12.mp4", options={"g": "12"}), 224),
    (File(name="gop250.mp4"), 112),
    (File(name="gop250.mp4"), 224),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of every loader (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=12, help="batches a round (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=130)
    rows: list[dict[str, Any]] = []
    theirs = mmaction2() if has_mmaction2(console) else None
    with tempfile.TemporaryDirectory() as folder:
        for file, size in CASES:
            path = write(file, Path(folder))
            rows.append({"file": file.name, "size": size} | measure(path, size, theirs, args.rounds, args.batches))
            console.print(f"{file.name} to {size} px done")
    table = Table(title="16 frames at stride 4, random resized crop, flip, batches of 8")
    for heading in ("file", "pixels", "2 workers over 2 x 1", *(f"times mmaction2, {kind}" for kind in RATIOS)):
        table.add_column(heading, justify="right")
    for row in rows:
        found = [str(Interval(**row[key])) if key in row else "" for key in ("scaling", *RATIOS)]
        table.add_row(row["file"], str(row["size"]), *found)
    console.print(table)
    if args.out:
        args.out.write_text(json.dumps({"setting": setting(vars(args)), "cases": rows}, indent=2) + "\n")


Load = Callable[[int, int, int, int], Iterator[object]]  # (size, workers, batches, seed)
Theirs = Callable[[Path], Load]

RATIOS = {
    "wall": ("videokd, 2 workers", "mmaction2, 2 workers"),
    "wall, 1 worker": ("videokd, 1 worker", "mmaction2, 1 worker"),
    "wall, with scan": ("videokd with scan, 2 workers", "mmaction2, 2 workers"),
    "CPU": ("videokd, 2 workers", "mmaction2, 2 workers"),
}


def measure(path: Path, size: int, theirs: Theirs | None, rounds: int, num_batches: int) -> dict[str, Any]:
    listed = Manifest(path.with_suffix(".csv"), tuple(videos(path)), ("drawn",))
    index = row_of(scan(path), num_bytes=path.stat().st_size)
    write_table(table_path(listed.source), [(video.id, index) for video in listed.videos])
    loads = {
        "videokd, 2 workers": (ours(listed), 2),
        "videokd, 1 worker": (ours(listed), 1),
        "videokd with scan, 2 workers": (ours(replace(listed, source=path.with_suffix(".other"))), 2),
    }
    if theirs is not None:
        loads |= {"mmaction2, 2 workers": (theirs(path), 2), "mmaction2, 1 worker": (theirs(path), 1)}
    cpu: dict[str, list[float]] = {name: [] for name in loads}

    def run(name: str, seed: int) -> None:
        load, workers = loads[name]
        # From the start of the workers to the last batch: what a loader does ahead is never for nothing.
        before = cpu_seconds()
        assert sum(1 for _ in load(size, workers, num_batches, seed)) == num_batches
        cpu[name].append(cpu_seconds() - before)

    wall = interleaved({name: partial(run, name) for name in loads}, rounds=rounds, clock=time.perf_counter)
    for times in cpu.values():
        del times[0]  # of the round that warms up
    found: dict[str, Any] = {
        "clips_per_second": {name: num_batches * BATCH / median(times) for name, times in wall.items()},
        "cpu_ms_per_clip": {name: 1000 * median(times) / num_batches / BATCH for name, times in cpu.items()},
        "scaling": halved(times_faster(wall["videokd, 2 workers"], wall["videokd, 1 worker"])),
    }
    for kind, (our, their) in RATIOS.items():
        if their in loads:
            seconds = cpu if kind == "CPU" else wall
            found[kind] = asdict(times_faster(seconds[our], seconds[their]))
    return found


def videos(path: Path) -> Iterator[Video]:
    """One file under so many names, so that no clip of a batch is read together with another."""
    for number in range(NUM_VIDEOS):
        yield Video(id=f"{number}", path=path, label="drawn", split="train")


def halved(ratio: Interval) -> dict[str, float]:
    return {name: value / 2 for name, value in asdict(ratio).items()}


def cpu_seconds() -> float:
    """Of this process and its children, those that are still running too."""
    spent = time.process_time()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for pid in children.read_text().split() if children.exists() else ():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent + sum(os.times()[2:4])


def ours(listed: Manifest) -> Load:
    augment = Augment(crop=RandomResizedCrop(scale=(0.08, 1.0)), flip=0.5)

    def load(size: int, workers: int, num_batches: int, seed: int) -> Iterator[object]:
        spec = InputSpec(frames=FRAMES, size=size, sampling=Dense(stride=STRIDE))
        clips = ClipDataset(listed, {"student": spec}, augment=augment, seed=seed)
        order = BatchOrder([0] * len(clips), batch_size=BATCH, seed=seed, steps=range(num_batches))
        return batches(clips, order, workers=workers)

    return load


def has_mmaction2(console: Console) -> bool:
    try:
        import mmaction  # noqa: F401
    except ImportError as error:
        console.print(f"mmaction2 is not here ({error}); see benchmarks/peers.sh")
        return False
    return True


def mmaction2() -> Theirs:
    # The wheel lacks this module, which its package imports.
    missing = types.ModuleType("mmaction.models.localizers.drn.drn")
    missing.DRN = object  # type: ignore[attr-defined]
    sys.modules["mmaction.models.localizers.drn"] = types.ModuleType("mmaction.models.localizers.drn")
    sys.modules["mmaction.models.localizers.drn.drn"] = missing
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import cv2
    from mmaction.datasets.transforms import (
        DecordDecode,
        DecordInit,
        Flip,
        FormatShape,
        PackActionInputs,
        RandomResizedCrop,
        Resize,
        SampleFrames,
    )
    from mmengine.dataset import pseudo_collate

    cv2.setNumThreads(0)  # as its runner does

    class Clips(Dataset[object]):
        def __init__(self, path: Path, size: int, length: int) -> None:
            self.path, self.length = path, length
            self.pipeline = [
                DecordInit(),
                SampleFrames(clip_len=FRAMES, frame_interval=STRIDE, num_clips=1),
                DecordDecode(),
                RandomResizedCrop(),
                Resize(scale=(size, size), keep_ratio=False),
                Flip(flip_ratio=0.5),
                FormatShape(input_format="NCTHW"),
                PackActionInputs(),
            ]

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, number: int) -> object:
            results: Any = {"filename": str(self.path), "label": 0, "start_index": 0, "modality": "RGB"}
            for step in self.pipeline:
                results = step(results)
            return results

    def loader_of(path: Path) -> Load:
        def load(size: int, workers: int, num_batches: int, seed: int) -> Iterator[object]:
            torch.manual_seed(seed)
            clips = Clips(path, size, num_batches * BATCH)
            return iter(DataLoader(clips, BATCH, num_workers=workers, collate_fn=pseudo_collate))

        return load

    return loader_of


if __name__ == "__main__":
    main()
