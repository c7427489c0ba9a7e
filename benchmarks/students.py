"""Every student family on the quickstart's data, trained alone: accuracy, order, size, cost and speed.

    python benchmarks/students.py --out runs/students

One recipe of `configs/students/` a family (and the quickstart's own), three seeds each, all with the same clips,
labels, views and steps, from scratch. Which one is best here says little of other data: the clips are 32 px and
nothing was tuned. A family that is run already is not run again. Speed is of the forward pass alone, on one thread,
in turns.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from measuring import interleaved, setting
from rich.console import Console

from videokd.clips import synthetic
from videokd.clips.dataset import FrameMemory
from videokd.clips.lists import read_manifest
from videokd.evaluate import evaluate
from videokd.machine import Machine
from videokd.models import Model, load_model
from videokd.recipe import configs_folder, load
from videokd.report.comparison import read_evaluation, write_evaluation
from videokd.report.tables import markdown_table
from videokd.train import train

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, results.json and results.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=21, help="of the speed (default: %(default)s)")
    parser.add_argument("--only", nargs="*", help="families to run; results are of all that are there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=130)
    data = args.out / "data" / "manifest.jsonl"
    if not data.is_file():
        synthetic.write_set(data.parent, counts={"train": 1200, "val": 120, "test": 1200})
    memory = FrameMemory()
    recipes = {"compact": configs_folder() / "quickstart" / "alone.py"} | {
        path.stem: path for path in sorted((configs_folder() / "students").glob("*.py"))
    }
    for name in args.only if args.only is not None else recipes:
        recipe = load(recipes[name])
        for seed in range(args.seeds):
            run = args.out / f"{name}-seed{seed}"
            if (run / "evaluation.json").is_file():
                continue
            sized = replace(
                recipe,
                data=replace(recipe.data, path=str(data), val_split=None),
                optim=replace(recipe.optim, steps=args.steps),
                machine=Machine(device="cpu"),
                seed=seed,
            )
            train(sized, run, resume=(run / "recipe.json").is_file(), memory=memory, console=console)
            test = read_manifest(data).split("test")
            write_evaluation(run, evaluate(run, test, machine=Machine(device="cpu"), memory=memory))
            console.print(f"{run.name}: {read_evaluation(run)['top1']:.1%}")
    report(args.out, list(recipes), vars(args), console)


def report(out: Path, names: list[str], arguments: dict[str, Any], console: Console) -> None:
    found = {name: [read_evaluation(run) for run in sorted(out.glob(f"{name}-seed*"))] for name in names}
    found = {name: runs for name, runs in found.items() if runs}
    torch.set_num_threads(1)
    models = {name: load_model(out / f"{name}-seed0") for name in found}
    seconds = interleaved({name: partial_run(model) for name, model in models.items()}, rounds=arguments["rounds"])
    rows, plain = [], {}
    for name, runs in found.items():
        top1, shuffled = [100 * run["top1"] for run in runs], [100 * run["shuffled_top1"] for run in runs]
        speed = [BATCH / one for one in seconds[name]]
        low, high = np.percentile(speed, [25, 75])
        plain[name] = {
            "top1": top1,
            "shuffled": shuffled,
            "params": runs[0]["params"],
            "macs": runs[0]["macs"],
            "clips_per_second": {"median": median(speed), "quartiles": [float(low), float(high)]},
        }
        spread = f" ± {stdev(top1):.1f}" if len(top1) > 1 else ""
        rows.append(
            (
                name,
                f"{fmean(top1):.1f}{spread}",
                f"{fmean(shuffled):.1f}",
                f"{runs[0]['params']:,}",
                f"{runs[0]['macs'] / 1e6:.1f}",
                f"{median(speed):.0f} [{low:.0f}, {high:.0f}]",
            )
        )
    columns = ("student", "top-1 %", "shuffled %", "params", "MMAC/clip", "clips/s, 1 thread [quartiles]")
    table = markdown_table(columns, rows)
    (out / "results.json").write_text(json.dumps({"setting": setting(arguments), "students": plain}, indent=2) + "\n")
    (out / "results.md").write_text(table + "\n")
    console.print(table)


def partial_run(model: Model[Any]) -> Callable[[int], object]:
    view = model.blank(BATCH)

    @torch.inference_mode()
    def run(number: int) -> object:
        return model(view)

    return run


if __name__ == "__main__":
    main()
