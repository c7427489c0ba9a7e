"""Whether `videokd bench compare` can be believed: it finds a planted slow-down, and none where there is none.

    python benchmarks/trust.py --out benchmarks/results/trust.json

Pairs of short runs of two students forward on one thread, one small enough for the caches and one not, each run in a
process of its own, as two benchmarks of different days are. Half of the pairs are of the same code (A/A). In the other
half one run does 10 % more work in every call: it computes on for a tenth of the CPU time that the call took. Which run
of a pair comes first is drawn. Wanted: the same code agrees within 5 %, at most 1 of 20 pairs of it is called slower,
and at least 19 of 20 planted ones are. What the machine's pace did to the bare times stands beside that.

How memory is given out is of the environment that this is started in (docs/benchmark.md, "Memory on a CPU").
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import setting
from rich.console import Console

from videokd.bench.comparing import Row, compare
from videokd.bench.contenders import Contender, Patience, measure
from videokd.bench.results import Measurement, Results
from videokd.bench.statistics import seconds_a_call, unpaired_ratio
from videokd.bench.variants import Rotating, random_views, runner
from videokd.environment import environment
from videokd.models import catalogue
from videokd.report.tables import markdown_table

PLANTED = 0.10
LIMIT = 0.05
"""What is let pass as the same."""
STUDENTS = {"CompactShift (quickstart)": 8, "MobileNetV3-S + shift": 1}
"""And clips a call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parser.add_argument("--pairs", type=int, default=20, help="half of them A/A (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="of a run (default: %(default)s)")
    parser.add_argument("--turn-seconds", type=float, default=0.15, help="of a round (default: %(default)s)")
    args = parser.parse_args()
    console = Console(width=130)
    described = {"environment": environment(), "device": "cpu", "clock": "cpu", "threads": 1}
    order, patience = random.Random(0), Patience(rounds=args.rounds, turn_seconds=args.turn_seconds)
    pairs: list[dict[str, Any]] = []
    for number in range(args.pairs):
        planted = number % 2 == 1
        works = {"old": 0.0, "new": PLANTED if planted else 0.0}
        measured = {which: in_new_process(works[which], patience=patience) for which in order.sample(list(works), k=2)}
        for old, new in zip(measured["old"], measured["new"], strict=True):
            pairs.append(pair(old, new, planted=planted, described=described))
            console.print(
                f"{number + 1}/{args.pairs} {old.party}, {'planted' if planted else 'A/A'}: {pairs[-1]['verdict']}, "
                f"{pairs[-1]['ratio']['value']:.3f} (bare times {pairs[-1]['bare']:.3f})"
            )
    found = {
        f"{student}, {'planted' if planted else 'A/A'}": summed_up(pairs, student, planted=planted)
        for student in STUDENTS
        for planted in (False, True)
    }
    said = {"setting": setting(vars(args)) | {"machine_now": described}, "summary": found, "pairs": pairs}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(said) + "\n")
    console.print(table(found))


def in_new_process(more: float, *, patience: Patience) -> list[Measurement]:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured_run, more, patience=patience).result()


def measured_run(more: float, *, patience: Patience) -> list[Measurement]:
    """A run of the students that computes `more` of a call's time on top of each call."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contenders = [
        Contender(party=name, stage="inference", variant="eager", clips=clips, make=partial(made, name, clips, more))
        for name, clips in STUDENTS.items()
    ]
    return measure(contenders, device=torch.device("cpu"), patience=patience)


def made(name: str, clips: int, more: float) -> Callable[[], None]:
    model = catalogue.STUDENTS[name].build([str(number) for number in range(12)], pretrained=False).eval()
    network = Rotating(runner(model, "eager", []), random_views(model, clips=clips, count=4))

    def call() -> None:
        started = time.process_time()
        network()
        until = started + (1 + more) * (time.process_time() - started)
        while more and time.process_time() < until:
            pass

    return call


def pair(old: Measurement, new: Measurement, *, planted: bool, described: dict[str, Any]) -> dict[str, Any]:
    results = [Results(subject=old.party, setting=described, measurements=[one]) for one in (old, new)]
    row: Row = compare(*results, max_regress=LIMIT).rows[0]
    assert row.ratio is not None
    bare = unpaired_ratio(seconds_a_call(new.rounds, "cpu"), seconds_a_call(old.rounds, "cpu"))
    return {
        "student": old.party,
        "planted": planted,
        "verdict": row.verdict,
        "ratio": asdict(row.ratio),
        "bare": bare.value,
        "rounds": {which: timed(one) for which, one in (("old", old), ("new", new))},
    }


def timed(run: Measurement) -> list[tuple[float | None, ...]]:
    """Of each round, CPU seconds a call and of the yardstick."""
    return [(one.cpu / one.calls, one.yardstick) for one in run.rounds]


def summed_up(pairs: Sequence[dict[str, Any]], student: str, *, planted: bool) -> dict[str, Any]:
    some = [one for one in pairs if one["student"] == student and one["planted"] is planted]
    truth = 1 + PLANTED if planted else 1.0
    ratios = np.array([one["ratio"]["value"] for one in some]) / truth
    bare = np.array([one["bare"] for one in some]) / truth
    return {
        "pairs": len(some),
        "verdicts": {
            said: sum(one["verdict"] == said for one in some) for said in sorted({one["verdict"] for one in some})
        },
        "called_slower": sum(one["verdict"] == "slower" for one in some),
        "within_limit_of_truth": int((np.abs(ratios - 1) <= LIMIT).sum()),
        "truth_in_interval": sum(one["ratio"]["low"] <= truth <= one["ratio"]["high"] for one in some),
        "ratios_over_truth": [float(ratios.min()), float(np.median(ratios)), float(ratios.max())],
        "bare_over_truth": [float(bare.min()), float(np.median(bare)), float(bare.max())],
    }


def table(found: dict[str, Any]) -> str:
    columns = (
        "pairs",
        "called slower",
        f"within {LIMIT:.0%} of the truth",
        "truth in interval",
        "ratio / truth",
        "bare",
    )
    rows = [
        (
            f"{kind}: {one['pairs']}",
            str(one["called_slower"]),
            str(one["within_limit_of_truth"]),
            str(one["truth_in_interval"]),
            spread(one["ratios_over_truth"]),
            spread(one["bare_over_truth"]),
        )
        for kind, one in found.items()
    ]
    return markdown_table(columns, rows)


def spread(values: Sequence[float]) -> str:
    low, median, high = values
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
