"""Every method of `configs/methods/` on the quickstart's data: which of them helps a student, and by how much.

    python benchmarks/methods.py --out runs/methods

For each draw of the data: its own videos and its own teacher, which has all 1200 labels. For each regime (transfer set:
the student has 360 of those labels, and with a teacher the other 840 clips without; same data: all 1200) and each of
three seeds: the student alone, the quickstart recipe ("default"), and every method, all with the same initial weights,
views and number of steps. In the transfer set a batch is 32 labelled clips for the student alone and for label
smoothing, and the first 8 of these and 24 unlabelled ones for all others. Every method has the weights of its paper, or
those of the quickstart, and nothing was tuned here: one that does badly may do better with other weights, and `patient`
is made for many times as many steps. Intervals are over all pairs as if they were independent, though those of one draw
share a teacher; and of so many verdicts at 95 % some are wrong by chance. What is run already is not run again.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from measuring import git, setting
from rich.console import Console

from videokd.assembly import load_teachers
from videokd.clips import synthetic
from videokd.clips.dataset import FrameMemory
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import write_manifest
from videokd.evaluate import Interval, evaluate, gap_recovered, interval
from videokd.machine import Machine
from videokd.recipe import Recipe, TrainedTeacher, configs_folder, load
from videokd.report.comparison import read_evaluation, write_evaluation
from videokd.report.tables import markdown_table
from videokd.train import train

LABELLED = 360
REGIMES = {"transfer-set": 24, "same-data": 0}  # unlabelled clips of a batch of 32
CPU = Machine(device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, methods.json and methods.md")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2], help="seeds of data and teacher")
    parser.add_argument("--seeds", type=int, default=3, help="of the student")
    parser.add_argument("--steps", type=int, default=800, help="of the student, whatever the method")
    parser.add_argument("--only", nargs="*", help="methods to run; the tables are of all that are there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=130)
    recipes = {"alone": "quickstart/alone.py", "default": "quickstart/distilled.py"} | {
        path.stem: f"methods/{path.name}" for path in sorted((configs_folder() / "methods").glob("*.py"))
    }
    for name in args.only or ():
        if name not in recipes:
            parser.error(f"no method {name!r}; there are: {', '.join(recipes)}")
    for draw in args.draws:
        run_draw(args.out / f"draw{draw}", draw, recipes, args, console)
    report(args, list(recipes), console)


def run_draw(out: Path, draw: int, recipes: dict[str, str], args: argparse.Namespace, console: Console) -> None:
    """One draw's data, teacher and students."""
    full = synthetic.write_set(out / "data", counts={"train": 1200, "val": 120, "test": 1200}, seed=draw)
    lists = {"same-data": full, "transfer-set": with_few_labels(full)}
    memory = FrameMemory()
    run(replace(on(load("quickstart/teacher.py"), full), seed=draw), out / "teacher", memory, console)
    for name in args.only if args.only is not None else recipes:
        teachers = None  # what a method's teacher said is remembered over seeds and regimes
        for seed in range(args.seeds):
            for regime, unlabelled in REGIMES.items():
                recipe = on(load(recipes[name]), lists[regime])
                recipe = replace(recipe, optim=replace(recipe.optim, steps=args.steps), seed=seed)
                if recipe.teachers:
                    # Clips that are mixed are new at every step: there is nothing to remember.
                    source = TrainedTeacher(checkpoint=str(out / "teacher"), remember=recipe.data.mix is None)
                    data = replace(recipe.data, unlabelled_per_batch=unlabelled)
                    recipe = replace(recipe, data=data, teachers={"teacher": source})
                    teachers = teachers or load_teachers(recipe, read_manifest(full).classes)
                run(recipe, out / regime / f"{name}-seed{seed}", memory, console, teachers)


def run(recipe: Recipe, folder: Path, memory: FrameMemory, console: Console, teachers: Any = None) -> None:
    """Trains and scores, unless that is done already."""
    if (folder / "evaluation.json").is_file():
        return
    if not (folder / "model.json").is_file():
        train(
            recipe,
            folder,
            resume=(folder / "recipe.json").is_file(),
            memory=memory,
            console=console,
            teachers=teachers if recipe.teachers else None,
        )
    (folder / "commit").write_text(f"{git('rev-parse', '--short', 'HEAD')}\n")
    test = read_manifest(recipe.data.path).split("test")
    write_evaluation(folder, evaluate(folder, test, machine=CPU, memory=memory))
    console.print(f"{folder}: {read_evaluation(folder)['top1']:.1%}")


def on(recipe: Recipe, videos: Path) -> Recipe:
    """The recipe on these videos, without validation: nothing is selected by it."""
    return replace(recipe, data=replace(recipe.data, path=str(videos), val_split=None), machine=CPU)


def with_few_labels(full: Path) -> Path:
    """A second list, in which only the first `LABELLED` training clips keep their label."""
    manifest = read_manifest(full)
    withheld = {video.id for video in [v for v in manifest.videos if v.split == "train"][LABELLED:]}
    videos = tuple(replace(video, label=None) if video.id in withheld else video for video in manifest.videos)
    path = full.with_name("few_labels.jsonl")
    write_manifest(replace(manifest, videos=videos), path)
    return path


@dataclass(frozen=True)
class Arm:
    """A method's runs in one regime; by draw, then by seed."""

    top1: list[list[float]]
    alone: list[list[float]]
    kd: list[list[float]] | None
    teacher: list[float]
    commits: list[str]

    def minus(self, other: list[list[float]]) -> Interval:
        """The mean difference to another method's runs, pair by pair."""
        pairs = [
            (mine, theirs) for many, base in zip(self.top1, other) for mine, theirs in zip(many, base, strict=True)
        ]
        return interval([mine - theirs for mine, theirs in pairs])

    @property
    def recovered(self) -> list[float | None]:
        """G of every draw."""
        found = [
            gap_recovered(teacher=teacher, alone=base, distilled=many)
            for teacher, base, many in zip(self.teacher, self.alone, self.top1, strict=True)
        ]
        return [one.mean if one else None for one in found]


def report(args: argparse.Namespace, names: list[str], console: Console) -> None:
    """Writes methods.json and methods.md of all that is there."""
    plain: dict[str, Any] = {"setting": setting(vars(args)), "regimes": {}}
    pages = []
    for regime in REGIMES:
        arms = {name: arm for name in names if (arm := collected(args, regime, name)) is not None}
        plain["regimes"][regime] = {name: asdict(arm) | {"gap_recovered": arm.recovered} for name, arm in arms.items()}
        table = markdown_table(COLUMNS, list(rows(arms)))
        console.print(f"\n{regime}\n{table}")
        pages.append(f"## {regime}\n\n{table}\n")
    (args.out / "methods.json").write_text(json.dumps(plain, indent=2) + "\n")
    (args.out / "methods.md").write_text("\n".join(pages))


COLUMNS = (
    "method",
    "top-1 % by draw",
    "sd over seeds",
    "- alone, points [95 %]",
    "- kd, points [95 %]",
    "G % by draw",
    "than alone",
    "than kd",
)


def rows(arms: dict[str, Arm]) -> Iterator[tuple[str, ...]]:
    """One row a method, the best first."""
    for name, arm in sorted(arms.items(), key=lambda one: -fmean(map(fmean, one[1].top1))):
        means = ", ".join(f"{100 * fmean(many):.1f}" for many in arm.top1)
        spread = 100 * fmean(stdev(many) if len(many) > 1 else 0.0 for many in arm.top1)
        if name == "alone":
            yield name, means, f"{spread:.1f}", "", "", "", "", ""
            continue
        to_alone = arm.minus(arm.alone)
        to_kd = arm.minus(arm.kd) if arm.kd and name != "kd" else None
        shares = ", ".join("-" if share is None else f"{100 * share:.0f}" for share in arm.recovered)
        points, verdicts = zip(*(said(one) if one else ("", "") for one in (to_alone, to_kd)), strict=True)
        yield name, means, f"{spread:.1f}", *points, shares, *verdicts


def said(found: Interval) -> tuple[str, str]:
    """Points with their interval, and the verdict that follows from it."""
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.1f}", "one pair"
    verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "not shown"
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]", verdict


def collected(args: argparse.Namespace, regime: str, name: str) -> Arm | None:
    """A method's scores beside those of the student alone; None unless all of its runs are there."""
    folders = [
        [args.out / f"draw{draw}" / regime / f"{name}-seed{seed}" for seed in range(args.seeds)] for draw in args.draws
    ]

    def there(other: str) -> bool:
        runs = (run.parent / f"{other}-seed{n}" / "evaluation.json" for many in folders for n, run in enumerate(many))
        return all(run.is_file() for run in runs)

    if not there(name) or not there("alone"):
        return None

    def beside(other: str) -> list[list[float]]:
        return [[read_evaluation(run.parent / f"{other}-seed{n}")["top1"] for n, run in enumerate(m)] for m in folders]

    return Arm(
        beside(name),
        beside("alone"),
        beside("kd") if there("kd") else None,
        [read_evaluation(args.out / f"draw{draw}" / "teacher")["top1"] for draw in args.draws],
        sorted({(folder / "commit").read_text().strip() for many in folders for folder in many}),
    )


if __name__ == "__main__":
    main()
