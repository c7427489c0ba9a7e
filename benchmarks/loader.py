"""Clips a second of the whole loader, beside mmaction2's with decord: from video files to batches.

    benchmarks/peers.sh && benchmarks/.peers/bin/python benchmarks/loader.py --out loader.json

Both decode 16 frames at stride 4 of the same drawn videos, cut a random box, resize it, flip half of the clips and
collate batches of 8, in worker processes. They run in turns; ratios are of wall time and of CPU time with the workers'.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measuring import File, Interval, interleaved, setting, times_faster, write
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from videokd.clips import Augment, BatchOrder, ClipDataset, Manifest, RandomResizedCrop, Video, batches
from videokd.contracts import Dense, InputSpec

BATCH, FRAMES, STRIDE = 8, 16, 4
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
    console, rows = Console(width=130), []
    theirs = mmaction2() if has_mmaction2(console) else None
    with tempfile.TemporaryDirectory() as folder:
        for file, size in CASES:
            path = Path(folder) / file.name
            videos = [path] * 64 if path.exists() else [write(file, Path(folder))] * 64
            rows.append({"file": file.name, "size": size} | measure(videos, size, theirs, args.rounds, args.batches))
            console.print(f"{file.name} to {size} px done")
    table = Table(title="16 frames at stride 4, random resized crop, flip, batches of 8")
    for heading in ("file", "pixels", "against mmaction2, wall", "against mmaction2, CPU", "2 workers over 2 x 1"):
        table.add_column(heading, justify="right")
    for row in rows:
        found = [str(Interval(**row[key])) if key in row else "" for key in ("wall", "cpu", "scaling")]
        table.add_row(row["file"], str(row["size"]), *found)
    console.print(table)
    if args.out:
        args.out.write_text(json.dumps({"setting": setting(vars(args)), "cases": rows}, indent=2) + "\n")


Load = Callable[[list[Path], int, int, int, int], Iterator[object]]  # (videos, size, workers, batches, seed)


def measure(videos: list[Path], size: int, theirs: Load | None, rounds: int, num_batches: int) -> dict[str, Any]:
    loads = {"videokd, 2 workers": (ours, 2), "videokd, 1 worker": (ours, 1)}
    if theirs is not None:
        loads["mmaction2, 2 workers"] = (theirs, 2)
    cpu: dict[str, list[float]] = {name: [] for name in loads}

    def run(name: str, seed: int) -> None:
        load, workers = loads[name]
        # From the start of the workers to the last batch: what a loader does ahead is never for nothing.
        before, started = cpu_seconds(), time.perf_counter()
        assert sum(1 for _ in load(videos, size, workers, num_batches, seed)) == num_batches
        wall[name].append(time.perf_counter() - started)
        cpu[name].append(cpu_seconds() - before)

    wall: dict[str, list[float]] = {name: [] for name in loads}
    interleaved({name: lambda n, name=name: run(name, n) for name in loads}, rounds=rounds)  # type: ignore[misc]
    medians = {name: float(torch.tensor(times).median()) for name, times in wall.items()}
    found: dict[str, Any] = {
        "clips_per_second": {name: num_batches * BATCH / seconds for name, seconds in medians.items()},
        "scaling": halved(times_faster(wall["videokd, 2 workers"], wall["videokd, 1 worker"])),
    }
    if theirs is not None:
        found["wall"] = asdict(times_faster(wall["videokd, 2 workers"], wall["mmaction2, 2 workers"]))
        found["cpu"] = asdict(times_faster(cpu["videokd, 2 workers"], cpu["mmaction2, 2 workers"]))
    return found


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


def ours(videos: list[Path], size: int, workers: int, num_batches: int, seed: int) -> Iterator[object]:
    rows = tuple(Video(id=f"{n}", path=path, label="drawn", split="train") for n, path in enumerate(videos))
    spec = InputSpec(frames=FRAMES, size=size, sampling=Dense(stride=STRIDE))
    augment = Augment(crop=RandomResizedCrop(scale=(0.08, 1.0)), flip=0.5)
    clips = ClipDataset(Manifest(Path("list.csv"), rows, ("drawn",)), {"student": spec}, augment=augment, seed=seed)
    order = BatchOrder([0] * len(rows), batch_size=BATCH, seed=seed, steps=range(num_batches))
    return batches(clips, order, workers=workers)


def has_mmaction2(console: Console) -> bool:
    try:
        import mmaction  # noqa: F401
    except ImportError as error:
        console.print(f"mmaction2 is not here ({error}); see benchmarks/peers.sh")
        return False
    return True


def mmaction2() -> Load:
    # The wheel lacks this module, which its package imports.
    missing = types.ModuleType("mmaction.models.localizers.drn.drn")
    missing.DRN = object  # type: ignore[attr-defined]
    sys.modules["mmaction.models.localizers.drn"] = types.ModuleType("mmaction.models.localizers.drn")
    sys.modules["mmaction.models.localizers.drn.drn"] = missing
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
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

    class Clips(Dataset[object]):
        def __init__(self, videos: list[Path], size: int) -> None:
            self.videos = videos
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
            return len(self.videos)

        def __getitem__(self, number: int) -> object:
            results: Any = {"filename": str(self.videos[number]), "label": 0, "start_index": 0, "modality": "RGB"}
            for step in self.pipeline:
                results = step(results)
            return results

    def load(videos: list[Path], size: int, workers: int, num_batches: int, seed: int) -> Iterator[object]:
        wanted = [videos[n % len(videos)] for n in range(num_batches * BATCH)]
        return iter(DataLoader(Clips(wanted, size), BATCH, num_workers=workers, collate_fn=pseudo_collate))

    return load


if __name__ == "__main__":
    main()
