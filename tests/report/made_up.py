"""Studies and runs that nobody trained: their files, in the formats that the commands write, from drawn answers."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Video
from videokd.disk import write_text
from videokd.evaluate import Evaluation, gap_recovered, interval
from videokd.fidelity import against_teacher
from videokd.metrics import calibration, fit_temperature, intervals, scores
from videokd.models import save_model
from videokd.predictions import Predictions
from videokd.recipe import Recipe, dump, load
from videokd.report.comparison import write_evaluation

CLASSES = ("slide_right", "slide_left", "slide_down", "slide_up", "spin_cw", "spin_ccw", "grow", "shrink", "split")
CLASSES = (*CLASSES, "merge", "appear", "vanish")
SKILL = {
    "teacher": 3.4,
    "alone": 1.3,
    "label_smoothing": 1.4,
    "equal_compute": 1.6,
    "distilled": 2.3,
    "self_distilled": 1.5,
    "untrained_teacher": 1.2,
    "shuffled_teacher": 0.9,
}
TITLES = {"alone": "student alone", "distilled": "student distilled"}
TERMS = {"hard": 2.4, "soft": 1.1, "frames": 0.4, "difference": 0.2, "affinity": 0.05}


def predictions(
    arm: str, seed: int, *, clips: int, classes: Sequence[str] = CLASSES, videos: Sequence[Video] = ()
) -> Predictions:
    """Answers of an arm: the more skilled the larger the true class's logit. The clips are the same for all arms."""
    rng = np.random.default_rng([len(arm), sum(map(ord, arm)), seed])
    label = torch.arange(clips) % len(classes)
    if videos:
        label = torch.tensor([classes.index(str(video.label)) for video in videos])
    noise = torch.from_numpy(rng.normal(size=(clips, len(classes)))).float()
    # Clips are hard or easy for all arms alike, and a class is taken for its twin.
    hardness = torch.from_numpy(np.random.default_rng(0).normal(size=(clips, 1))).float()
    true = torch.nn.functional.one_hot(label, len(classes)).float()
    twin = torch.nn.functional.one_hot((label ^ 1) % len(classes), len(classes)).float()
    logits = noise + true * (SKILL.get(arm, 1.5) + 0.8 * hardness) + twin * 1.2
    ids = [f"test/{number:05d}_{classes[k]}.mp4" for number, k in enumerate(label.tolist())]
    return Predictions(
        ids=tuple(ids),
        groups=tuple(f"source {number // 3}" for number in range(clips)),
        paths=tuple(str(video.path) for video in videos) or tuple(f"/videos/{name}" for name in ids),
        label=label,
        logits=1.7 * logits,
        classes=tuple(classes),
    )


def evaluation(said: Predictions, *, teacher: Predictions | None, params: int, macs: int, lines: str) -> dict[str, Any]:
    """What evaluation.json says of these answers."""
    numbers = {**scores(said), **intervals(said)}
    top1, chance = numbers["top1"], 1 / len(said.classes)
    temperature = fit_temperature(said)
    return {
        **numbers,
        "calibration": calibration(said)
        | {
            "temperature": temperature,
            "fitted_on": "120 validation clips of list.jsonl",
            "scaled": calibration(said, temperature=temperature),
        },
        "temporal": {
            "filmed": top1,
            "shuffled": chance + 0.45 * (top1 - chance),
            "reversed": chance + 0.35 * (top1 - chance),
            "frozen": chance + 0.25 * (top1 - chance),
            "half": chance + 0.9 * (top1 - chance),
        },
        "views": {
            "temporal": 4,
            "spatial": 3,
            "average": "probabilities",
        },
        "protocol": None,
        "curve": [
            {"temporal": n, "spatial": m, "macs": n * m * macs, "top1": top1 - 0.06 / (n * m)}
            for n, m in ((1, 1), (2, 1), (4, 1), (4, 3))
        ],
        "against": None if teacher is None else {"teacher": "teacher", **against_teacher(said, teacher)},
        "params": params,
        "macs": macs,
        "list": lines,
        "split": "test",
        "trained_on": 0,
        "skipped": ["test/09999_grow.mp4: decoding fails after 3 frames"],
        "skipped_in_training": 2,
    }


def run(
    folder: Path,
    recipe: Recipe,
    said: Predictions,
    *,
    teacher: Predictions | None = None,
    params: int = 27_000,
    macs: int = 2_100_000,
    steps: int = 800,
    log_every: int = 10,
) -> Path:
    """A finished, scored run that has no weights."""
    folder.mkdir(parents=True)
    write_text(folder / "recipe.json", dump(recipe))
    lines = str(folder.parent / "list.jsonl")
    numbers = evaluation(said, teacher=teacher, params=params, macs=macs, lines=lines)
    write_evaluation(folder, Evaluation(numbers, said))
    rows: list[dict[str, float]] = []
    for step in range(log_every, steps + 1, log_every):
        fallen = math.exp(-3 * step / steps) * (1 + 0.1 * math.sin(step + recipe.seed))
        losses = {name: TERMS.get(name, 1.0) * (0.1 + fallen) for name in recipe.objective}
        right = numbers["top1"] * (1 - math.exp(-4 * step / steps))
        rows.append(
            {"step": step, **losses, "total": sum(losses.values()), "lr": 1e-3, "train_top1": min(1.0, right * 1.2)}
        )
        if step % (10 * log_every) == 0:
            rows.append({"step": step, "val_top1": right, "val_mean_class_accuracy": right})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    summary = {"steps": steps, "seconds": 61.5 + recipe.seed, "clips_per_second": 412.0, "skipped": ["a", "b"]}
    write_text(folder / "summary.json", json.dumps(summary))
    environment = {
        "date": "2025-11-26T01:00:00+00:00",
        "videokd": "0.1.0",
        "git": {"folder": None, "package": {"revision": "84da7e5c0ffee" * 3, "changed": False}},
        "python": "3.13.5",
        "platform": "Linux-6.1-x86_64",
        "packages": {"torch": "2.11.0", "av": "17.0.0"},
        "cpu": {"model": "Some CPU", "cores": 2},
        "gpu": None,
    }
    write_text(folder / "environment.json", json.dumps(environment))
    write_text(folder / "model.json", "{}")
    return folder


def recipes(teacher: Path) -> tuple[Recipe, Recipe, Recipe]:
    """Of the teacher, the student alone, the student distilled."""
    taught, alone, distilled = (load(f"quickstart/{name}.py") for name in ("teacher", "alone", "distilled"))
    source = replace(distilled.teachers["teacher"], checkpoint=str(teacher))
    return taught, alone, replace(distilled, teachers={"teacher": source})


def study(
    folder: Path,
    *,
    arms: Sequence[str] = (
        "alone",
        "label_smoothing",
        "equal_compute",
        "distilled",
        "self_distilled",
        "untrained_teacher",
        "shuffled_teacher",
    ),
    seeds: int = 5,
    clips: int = 1200,
    classes: Sequence[str] = CLASSES,
    videos: Path | None = None,
    inside: bool = True,
) -> Path:
    """A finished study. With `videos`, a manifest, the clips are its test clips, and two arms have small nets."""
    folder.mkdir(parents=True)
    shown: Sequence[Video] = ()
    if videos is not None:
        manifest = read_manifest(videos)
        shown = manifest.split("test").videos
        clips, classes = len(shown), manifest.classes
    write_text(folder / "list.jsonl", "{}\n")
    taught, alone, distilled = recipes(folder / "teacher")
    teacher = predictions("teacher", 0, clips=clips, classes=classes, videos=shown)
    run(folder / "teacher", taught, teacher, params=466_000, macs=290_000_000)
    said: dict[str, list[Predictions]] = {}
    runs: dict[str, list[str]] = {}
    for arm in arms:
        for seed in range(seeds):
            recipe = replace(distilled if "istilled" in arm or "teacher" in arm else alone, seed=seed)
            answers = predictions(arm, seed, clips=clips, classes=classes, videos=shown)
            one = run(folder / f"{arm}-seed{seed}", recipe, answers, teacher=teacher)
            if videos is not None and arm in ("alone", "distilled"):
                torch.manual_seed(seed)
                save_model(recipe.student.build(classes), one)
            said.setdefault(arm, []).append(answers)
            runs.setdefault(arm, []).append(one.name)
    write_text(folder / "study.json", json.dumps(_study(folder, said, runs, teacher)))
    if inside:
        write_text(folder / "inside.json", json.dumps(_inside(arms)))
    return folder


def _study(
    folder: Path, said: dict[str, list[Predictions]], runs: dict[str, list[str]], teacher: Predictions
) -> dict[str, Any]:
    top1 = {arm: [scores(one)["top1"] for one in each] for arm, each in said.items()}
    top = scores(teacher)["top1"]
    differences = {}
    for arm, each in top1.items():
        if arm != "alone":
            found = [after - before for before, after in zip(top1["alone"], each, strict=True)]
            over = interval(found)
            differences[arm] = {
                **vars(over),
                "each": found,
                "positive": sum(value > 0 for value in found),
                "verdict": f"{arm} moved the student by {100 * over.mean:+.1f} points.",
            }
    recovered = {arm: gap_recovered(teacher=top, alone=top1["alone"], distilled=top1[arm]) for arm in differences}
    against = {
        arm: {
            key: fmean(values)
            for key in against_teacher(said[arm][0], teacher, said["alone"][0])
            if (
                values := [
                    v
                    for before, after in zip(said["alone"], said[arm], strict=True)
                    if (v := against_teacher(after, teacher, before)[key]) is not None
                ]
            )
        }
        for arm in differences
    }
    per_class = {
        name: {
            arm: fmean(scores(one)["per_class"][name]["accuracy"] for one in each)
            for arm, each in {"teacher": [teacher], **said}.items()
        }
        for name in teacher.classes
        if name in scores(teacher)["per_class"]
    }
    return {
        "study": {"seeds": len(top1["alone"])},
        "videokd": "0.1.0",
        "list": str(folder / "list.jsonl"),
        "split": "test",
        "chance": 1 / len(teacher.classes),
        "teacher": {"runs": ["teacher"], "top1_each": [top]},
        "arms": {
            arm: {
                "title": TITLES.get(arm, arm.replace("_", " ")),
                "runs": runs[arm],
                "pairs": [[0, seed] for seed in range(len(each))],
                "top1_each": each,
                "top1_mean": fmean(each),
                "top1_sd": stdev(each) if len(each) > 1 else None,
                "steps": 800,
                "seconds_each": [61.0] * len(each),
                "params": 27_000,
                "macs": 2_100_000,
            }
            for arm, each in top1.items()
        },
        "differences": differences,
        "gap_recovered": {arm: None if one is None else vars(one) for arm, one in recovered.items()},
        "beyond": {
            arm: vars(interval([one - other for one, other in zip(top1["distilled"], each, strict=True)]))
            for arm, each in top1.items()
            if "distilled" in top1 and arm not in ("alone", "distilled")
        },
        "against": against,
        "per_class": per_class,
        "verdict": "Distillation helped: +17.4 points, 95 % interval +15.6 to +19.2. "
        "It is better than label smoothing (+15.9 points, 95 % interval +14.0 to +17.9).",
    }


def _inside(arms: Sequence[str]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    high = {"alone": 0.35, "distilled": 0.8}
    few = [arm for arm in arms if arm in high]
    factors = {"speed": 0.9, "heading": 0.8, "position": 0.7, "shape": 0.95}
    return {
        "clips": 240,
        "seeds": {arm: 5 for arm in few},
        "skipped": [],
        "notes": ["the tap 'stage9' is the same for all clips"],
        "cka": {
            "taps": {
                "student": ["stage1", "stage2", "stage3", "frames", "clip"],
                "teacher": ["stage1", "stage2", "frames", "clip"],
            },
            "arms": {arm: (high[arm] * rng.uniform(0.3, 1, (5, 4))).tolist() for arm in few},
        },
        "saliency": {
            "method": "grad-cam",
            "agreement": {arm: {"spearman": high[arm] - 0.1, "iou": high[arm] / 2} for arm in few},
            "on_object": {"teacher": 0.62, **{arm: high[arm] * 0.7 for arm in few}},
            "object_area": 0.11,
            "chance_iou": 0.111,
        },
        "probes": {
            factor: {
                "score": "accuracy" if factor == "shape" else "R^2",
                "chance": 0.25 if factor == "shape" else 0.0,
                "teacher": top,
                **{arm: high[arm] * top for arm in few},
                "gap_recovered": {"distilled": 0.69},
            }
            for factor, top in factors.items()
        },
    }
