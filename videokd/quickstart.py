"""The main job on videos that are drawn here: teacher, student alone, student distilled, and who is better."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

import videokd
from videokd import recipe as recipes
from videokd.assembly import load_teachers
from videokd.clips import synthetic
from videokd.clips.dataset import FrameMemory
from videokd.clips.lists import read_manifest
from videokd.disk import write_text
from videokd.evaluate import evaluate
from videokd.machine import Machine, terminal
from videokd.recipe import Recipe, TrainedTeacher, configs_folder, load
from videokd.report.comparison import arms, write_evaluation
from videokd.report.pictures import draw_all
from videokd.report.tables import COLUMNS, arm_rows, gain_lines, markdown_table, terminal_table
from videokd.run_files import read_run_file
from videokd.teachers import Mixture, Teacher
from videokd.train import Interrupted, train

Regime = Literal["transfer-set", "same-data"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How big a quickstart is."""

    train: int = 1200
    """Training clips; the teacher sees all their labels."""
    labelled: int = 360
    """How many of those labels the student sees in the transfer-set regime."""
    val: int = 120
    test: int = 1200
    teacher_steps: int = 700
    student_steps: int = 800
    preflight: int = 2
    """Batches on which each run is checked first; 0 for trials too small for their teacher to learn anything."""


FAST = Scale(train=600, labelled=180, val=60, test=600, teacher_steps=450, student_steps=500)


def quickstart(
    out: Path,
    *,
    seeds: int = 3,
    regime: Regime = "transfer-set",
    scale: Scale | None = None,
    resume: bool = False,
    machine: Machine | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Makes the data, trains and scores the arms, and writes report.json, report.md and plots into `out`.

    Args:
        out: a folder that holds nothing yet, unless `resume`.
        seeds: pairs of students, alone and distilled, with the same initial weights, order, views and budget.
        regime: "transfer-set": the teacher has all labels, the student few of them and the other clips without
            labels. "same-data" adds the regime in which the student has them all too.
        scale: how big; None for the full quickstart.
        resume: go on with an interrupted quickstart of the same settings, or add a regime to a finished one.
        machine: where to run; None for the defaults.
        console: where to report; None for the terminal.

    Returns:
        What report.json says.
    """
    console, scale, machine = console or terminal(), scale or Scale(), machine or Machine()
    if seeds < 1:
        raise ValueError(f"seeds counts pairs of students: at least 1, not {seeds}")
    # Not the regime: one can be added to a quickstart that is finished.
    settings = json.dumps({"seeds": seeds, "scale": asdict(scale)}) + "\n"
    _claim(out, settings, resume=resume)
    clock = _Clock()

    with clock.stage("data"):
        console.print(f"Drawing {scale.train + scale.val + scale.test} videos in {out / 'data'}")
        counts = {"train": scale.train, "val": scale.val, "test": scale.test}
        full = synthetic.write_set(out / "data", counts=counts)
        lists = {"same-data": full, "transfer-set": synthetic.withhold_labels(full, scale.labelled)}

    memory = FrameMemory()
    teacher_recipe = _sized(_shipped("teacher"), full, steps=scale.teacher_steps, scale=scale, machine=machine)
    console.print("Training the teacher")
    clock.add("teacher", _run(teacher_recipe, out / "teacher", resume, memory=memory, console=console))

    runs: dict[str, dict[str, list[Path]]] = {}
    teachers: dict[str, Teacher | Mixture] | None = None
    # A regime that this folder already holds stays in its report.
    both = regime == "same-data" or (out / "same-data").is_dir()
    for name in ("transfer-set", "same-data") if both else ("transfer-set",):
        distilled_recipe = _shipped("distilled" if name == "same-data" else "distilled_unlabelled")
        recipe_of = {"alone": _shipped("alone"), "distilled": distilled_recipe}
        runs[name] = {"teacher": [out / "teacher"], "alone": [], "distilled": []}
        for seed in range(seeds):
            for arm, recipe in recipe_of.items():
                console.print(f"Training the student {arm}, {name} regime, seed {seed}")
                recipe = _sized(recipe, lists[name], steps=scale.student_steps, scale=scale, machine=machine)
                if recipe.teachers:
                    source = TrainedTeacher(checkpoint=str(out / "teacher"), remember=True)
                    recipe = replace(recipe, teachers={"teacher": source})
                    # One teacher for all seeds and regimes: it remembers what it said of every view.
                    teachers = teachers or load_teachers(recipe, read_manifest(full).classes)
                folder = out / name / f"{arm}-seed{seed}"
                shared = {"teachers": teachers if recipe.teachers else {}, "memory": memory, "console": console}
                clock.add(arm, _run(replace(recipe, seed=seed), folder, resume, **shared))
                runs[name][arm].append(folder)

    with clock.stage("evaluation"):
        folders = list(dict.fromkeys(run for arm_runs in runs.values() for many in arm_runs.values() for run in many))
        test = read_manifest(full).split("test")
        for folder in track(folders, "evaluating", console=console, disable=not console.is_terminal, transient=True):
            write_evaluation(folder, evaluate(folder, test, machine=machine, memory=memory))

    with clock.stage("report"):
        report = _report(runs, scale=scale, seeds=seeds)
        draw_all(report, runs["transfer-set"], out / "figures", class_order=synthetic.CLASSES)
        if "same-data" in runs:
            same_figures = out / "figures" / "same-data"
            draw_all(report["same_data"], runs["same-data"], same_figures, class_order=synthetic.CLASSES)
    report["seconds"] = clock.seconds
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(out / "report.md", markdown(report))
    _print(report, out, console)
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown, beside its figures."""
    parts = ["# videokd quickstart", "", f"videokd {report['videokd']}, {report['seeds']} paired seeds.", ""]
    for block, figures in ((report, "figures"), (report.get("same_data"), "figures/same-data")):
        if block is None:
            continue
        parts += [f"## {block['regime']} regime", "", block["description"], ""]
        parts += [markdown_table(COLUMNS, arm_rows(block)), "", *[f"- {line}" for line in gain_lines(block)], ""]
        for name, caption in _CAPTIONS.items():
            parts += [f"![{caption}]({figures}/{name}.png)", f"*{caption}*", ""]
    parts += ["## Read before quoting", "", _CAVEAT, "", "## Seconds by stage", ""]
    parts += [markdown_table(("stage", "seconds"), [(k, f"{v:.0f}") for k, v in report["seconds"].items()]), ""]
    return "\n".join(parts)


_CAPTIONS = {
    "accuracy": "Top-1 on held-out clips: the arms with their spread",
    "learning_curves": "Validation top-1 during training",
    "accuracy_over_macs": "Accuracy over cost",
    "confusion": "Confusion on held-out clips; neighbouring classes are time-reversal twins",
    "shuffled": "What shuffling the frames costs",
}

_CAVEAT = (
    "The videos are drawn, and the size of the gap was designed: the number of labels was chosen so that the student "
    "alone is far below the teacher. With more labels the student alone climbs quickly, and the gain shrinks. The "
    "share of the gap that is recovered (G) depends on this less than the points gained. All seeds share one teacher "
    "and one draw of the data, which understates the spread. Labels are saved for the student, not in total: the "
    "teacher used them all."
)


def _report(runs: Mapping[str, Mapping[str, list[Path]]], *, scale: Scale, seeds: int) -> dict[str, Any]:
    blocks = {}
    for name, arm_runs in runs.items():
        few = name == "transfer-set"
        unlabelled = scale.train - scale.labelled if few else 0
        blocks[name] = {
            "regime": name,
            "labelled_clips": scale.labelled if few else scale.train,
            "unlabelled_clips": unlabelled,
            "description": (
                f"The teacher was trained on {scale.train} labelled clips. The student sees "
                + (
                    f"{scale.labelled} of those labels; distilled, it also sees the other {unlabelled} clips, "
                    "without their labels."
                    if few
                    else f"the same {scale.train} labelled clips."
                )
                + f" Scored on {scale.test} held-out clips; chance is {100 / len(synthetic.CLASSES):.1f} %."
            ),
            **arms(arm_runs["teacher"][0], arm_runs["alone"], arm_runs["distilled"]),
        }
    report = {"videokd": videokd.__version__, "seeds": seeds, "scale": asdict(scale), **blocks["transfer-set"]}
    if "same-data" in blocks:
        report["same_data"] = blocks["same-data"]
    return report


def _print(report: Mapping[str, Any], out: Path, console: Console) -> None:
    for block in (report, report.get("same_data")):
        if block is None:
            continue
        console.print()
        console.print(f"{block['regime']} regime. {block['description']}")
        console.print(terminal_table(COLUMNS, arm_rows(block)))
        for line in gain_lines(block):
            console.print(line)
    if "same_data" not in report:
        console.print(
            "\nTo add the regime in which the student sees all the labels too: the same command with "
            "--regime same-data --resume",
        )
    minutes = sum(report["seconds"].values()) / 60
    console.print()
    console.print(f"Took {minutes:.1f} minutes. Report and plots: {out / 'report.md'}")


def _claim(out: Path, settings: str, *, resume: bool) -> None:
    """Refuses a folder that holds something else, and remembers what runs in this one."""
    path = out / "quickstart.json"
    if path.is_file() and path.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{out} holds a quickstart of other settings; name another --out")
    if path.is_file() and not resume:
        raise ValueError(f"{out} already holds a quickstart; go on with it by --resume, or name another --out")
    if not path.is_file() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something that is not a quickstart; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, settings)


def _shipped(name: str) -> Recipe:
    return load(configs_folder() / "quickstart" / f"{name}.py")


def _sized(recipe: Recipe, videos: Path, *, steps: int, scale: Scale, machine: Machine) -> Recipe:
    data, optim = replace(recipe.data, path=str(videos)), replace(recipe.optim, steps=steps)
    return replace(recipe, data=data, optim=optim, machine=machine, preflight=scale.preflight)


def _run(recipe: Recipe, folder: Path, resume: bool, **shared: Any) -> float:
    """Trains, goes on with, or leaves alone what an interrupted quickstart has finished; the seconds that it took."""
    started = (folder / "recipe.json").is_file()
    if started and (folder / "model.json").is_file():
        if recipes.dump(recipes.anchored(recipe)) != (folder / "recipe.json").read_text(encoding="utf-8"):
            raise ValueError(f"{folder} was made by another recipe; name another --out")
        summary = read_run_file(folder / "summary.json")
    else:
        try:
            summary = train(recipe, folder, resume=resume and started, **shared)
        except Interrupted as stop:
            raise Interrupted(stop.step, "the same command and --resume", number=stop.number) from stop
    return float(summary["seconds"])


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.add(name, time.monotonic() - started)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
