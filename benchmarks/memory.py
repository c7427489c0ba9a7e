"""What it saves on a CPU that the process keeps its memory and has it in large pages: `GLIBC_TUNABLES`, set before it
starts (docs/benchmark.md, "Memory on a CPU").

    python benchmarks/memory.py --out benchmarks/results/memory.json

By itself glibc gives large blocks back to the system after every call, and is given them anew, page by page and wiped.
Processes with and without the setting take turns; in each, students look at random clips and make training steps on one
thread. What counts is the time that the process computed, the system's work for it included.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from measuring import setting
from rich.console import Console

from videokd.bench.statistics import ratio
from videokd.bench.variants import random_views
from videokd.contracts import View
from videokd.models import Model, catalogue
from videokd.report.tables import markdown_table

KEPT = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2000000000:"
    "glibc.malloc.trim_threshold=8000000000:glibc.malloc.top_pad=200000000"
)
STUDENTS = {"CompactShift (quickstart)": 32, "MobileNetV3-S + shift": 2, "ResNet-18 + shift": 1}
"""And clips a call."""
CALLS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parser.add_argument("--rounds", type=int, default=9, help="a process of each kind a round (default: %(default)s)")
    args = parser.parse_args()
    console = Console(width=130)
    order = random.Random(0)
    each: dict[str, list[dict[str, Any]]] = {"plain": [], "kept": []}
    for number in range(args.rounds):
        for which in order.sample(list(each), k=2):
            each[which].append(in_new_process(KEPT if which == "kept" else None))
        console.print(f"{number + 1}/{args.rounds}")
    works = list(each["plain"][0]["seconds"])
    found = {
        work: ratio(*([one["seconds"][work] for one in each[which]] for which in ("plain", "kept"))) for work in works
    }
    resident = {which: median(one["resident"] for one in some) for which, some in each.items()}
    said = {
        "setting": setting(vars(args)) | {"GLIBC_TUNABLES": KEPT},
        "speed": {work: asdict(one) for work, one in found.items()},
        "resident_bytes": resident,
        "processes": each,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(said, indent=1) + "\n")
    rows = [(work, f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]") for work, one in found.items()]
    console.print(markdown_table(("work", "speed, kept / plain"), rows))
    console.print({which: f"{size / 2**20:.0f} MiB at most" for which, size in resident.items()})


def in_new_process(tunables: str | None) -> dict[str, Any]:
    """glibc reads the variable when a process starts."""
    os.environ.pop("GLIBC_TUNABLES", None)
    if tunables is not None:
        os.environ["GLIBC_TUNABLES"] = tunables
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured).result()


def measured() -> dict[str, Any]:
    import resource

    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = {}
    for name, clips in STUDENTS.items():
        model = catalogue.STUDENTS[name].build([str(number) for number in range(12)], pretrained=False)
        (view,) = random_views(model, clips=clips, count=1)
        seconds[f"{name}, forward"] = of_a_call(forward(model, view))
        seconds[f"{name}, training step"] = of_a_call(step(model, view, clips))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "resident": peak}


def forward(model: Model[Any], view: View) -> Callable[[], object]:
    model.eval()

    @torch.inference_mode()
    def call() -> object:
        return model(view)

    return call


def step(model: Model[Any], view: View, clips: int) -> Callable[[], object]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    classes = torch.zeros(clips, dtype=torch.long)

    def call() -> None:
        F.cross_entropy(model(view).logits, classes).backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def of_a_call(call: Callable[[], object]) -> float:
    each = []
    for _ in range(3 + CALLS):
        started = time.process_time()
        call()
        each.append(time.process_time() - started)
    return median(each[3:])


if __name__ == "__main__":
    main()
