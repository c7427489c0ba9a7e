import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from videokd.distill import Term
from videokd.losses import CrossEntropy, SoftTargets
from videokd.recipe import Recipe, TrainedTeacher, dump, load
from videokd.report.differences import difference_rows, differing, read_run

ALONE = load("quickstart/alone.py")
ENVIRONMENT = {
    "date": "2030-01-01T00:00:00+00:00",
    "command": ["videokd", "train"],
    "git": {"folder": {"revision": "a" * 40, "changed": False}, "package": None},
    "packages": {"torch": "2.11.0"},
    "gpu": None,
    "processes": 1,
    "variables": {"SLURM_JOB_ID": "1"},
}
ROWS = [
    {"step": 10, "hard": 2.0, "total": 2.0, "lr": 0.1, "grad_norm": 1.0},
    {"step": 10, "val_top1": 0.25},
    {"step": 20, "hard": 1.5, "total": 1.5, "lr": 0.1, "grad_norm": 1.0, "train_top1": 0.5},
    {"step": 20, "val_top1": 0.5},
    {"step": 30, "val_top1": 0.4},
]


def write(
    folder: Path,
    *,
    recipe: Recipe | None = ALONE,
    environment: dict[str, Any] | None = ENVIRONMENT,
    rows: list[dict[str, float]] = ROWS,
    summary: dict[str, Any] | None = None,
) -> Path:
    folder.mkdir()
    if recipe is not None:
        (folder / "recipe.json").write_text(dump(recipe))
    if environment is not None:
        (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "model.json").write_text("{}")
    return folder


def compared(*folders: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    sections = difference_rows([read_run(folder) for folder in folders])
    return {section: {name: tuple(texts) for name, *texts in rows} for section, rows in sections.items()}


def test_a_run_says_its_last_losses_and_its_best_and_last_validation(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "x"))
    assert run.results == {
        "steps": 30,
        "last loss: hard": 1.5,
        "last loss: total": 1.5,
        "validation top-1: best": 0.5,
        "step of the best": 20,
        "validation top-1: last": 0.4,
    }
    assert not run.finished
    assert run.steps == f"30 of {ALONE.optim.steps} steps"
    (found,) = (compared(tmp_path / "x")["results"],)
    assert list(found) == list(run.results)
    assert found["validation top-1: best"] == ("50.0 %",)


def test_runs_differ_in_what_differs_and_in_nothing_else(tmp_path: Path) -> None:
    one = write(tmp_path / "one", summary={"steps": 30, "seconds": 12345.6, "clips_per_second": 84.27, "skipped": []})
    moved = {
        **ENVIRONMENT,
        "date": "2031",
        "git": {"folder": {"revision": "b" * 40, "changed": False}, "package": None},
        "packages": {"torch": "2.12.0", "timm": "1"},
        "gpu": {"names": ["H100", "H100"], "driver": "550"},
        "variables": {"SLURM_JOB_ID": "2"},
    }
    other = write(
        tmp_path / "other",
        recipe=replace(ALONE, optim=replace(ALONE.optim, lr=0.5)),
        environment=moved,
        rows=[*ROWS, {"step": 40, "val_top1": 0.6}],
        summary={"steps": 40, "seconds": 50.0, "clips_per_second": 84.27, "skipped": ["a.mp4: broken"]},
    )
    assert compared(one, other) == {
        "recipe": {"optim.lr": (f"{ALONE.optim.lr:.4g}", "0.5")},
        "environment": {
            "git.folder.revision": ("a" * 12, "b" * 12),
            "packages.torch": ("2.11.0", "2.12.0"),
            "packages.timm": ("none", "1"),
            "gpu": ("none", "names H100, H100, driver 550"),
        },
        "results": {
            "steps": ("30", "40"),
            "validation top-1: best": ("50.0 %", "60.0 %"),
            "step of the best": ("20", "40"),
            "validation top-1: last": ("40.0 %", "60.0 %"),
            "videos skipped": ("", "1"),
        },
        "speed": {"seconds": ("12345.6", "50")},
    }


def test_runs_that_are_the_same_have_no_rows(tmp_path: Path) -> None:
    later = {**ENVIRONMENT, "date": "2031", "command": ["python"], "variables": {"SLURM_JOB_ID": "2"}}
    one, other = write(tmp_path / "one"), write(tmp_path / "other", environment=later)
    assert not any(compared(one, other).values())


def test_what_is_not_known_of_a_run_is_not_made_up(tmp_path: Path) -> None:
    changed = {**ENVIRONMENT, "processes": 8}
    recipes = [ALONE, None, replace(ALONE, seed=7)]
    environments = [ENVIRONMENT, None, changed]
    folders = []
    for number, (recipe, environment) in enumerate(zip(recipes, environments, strict=True)):
        folders.append(write(tmp_path / str(number), recipe=recipe, environment=environment))
        (folders[-1] / "evaluation.json").write_text("{}")
    found = compared(*folders)
    assert found["recipe"] == {"seed": ("0", "?", "7")}
    assert found["environment"] == {"processes": ("1", "?", "8")}
    found = compared(*folders[:2])
    assert (found["recipe"], found["environment"]) == ({}, {})


def test_fields_that_only_later_runs_have_are_compared_among_them(tmp_path: Path) -> None:
    source = {"teacher": TrainedTeacher(checkpoint="runs/teacher")}
    soft = [
        replace(
            ALONE,
            teachers=source,
            objective={"hard": Term(loss=CrossEntropy()), "soft": Term(loss=SoftTargets(temperature=temperature))},
        )
        for temperature in (2.0, 4.0)
    ]
    folders = [write(tmp_path / str(number), recipe=recipe) for number, recipe in enumerate((ALONE, *soft))]
    found = compared(*folders)["recipe"]
    assert found["objective.soft"] == ("None", "SoftTargets", "SoftTargets")
    assert found["objective.soft.loss.temperature"] == ("None", "2", "4")


def test_values_are_short_but_never_look_the_same_when_they_are_not(tmp_path: Path) -> None:
    long = "/data/" + "x" * 100
    paths = [f"{long}/one.csv", f"{long}/two.csv", f"/other{long}/one.csv"]
    folders = [
        write(tmp_path / str(number), recipe=replace(ALONE, data=replace(ALONE.data, path=path)))
        for number, path in enumerate(paths)
    ]
    one, two = compared(*folders[:2])["recipe"]["data.path"]
    assert (len(one), len(two)) == (48, 48)
    assert one.startswith("…")
    assert one.endswith("/one.csv")
    assert compared(folders[0], folders[2])["recipe"]["data.path"] == (paths[0], paths[2])


def test_losses_that_differ_late_are_told_in_full(tmp_path: Path) -> None:
    one = write(tmp_path / "one", rows=[{"step": 10, "hard": 1.00001, "total": 1.00001}])
    other = write(tmp_path / "other", rows=[{"step": 10, "hard": 1.00002, "total": 1.00002}])
    assert compared(one, other)["results"]["last loss: hard"] == ("1.00001", "1.00002")


def test_names_may_have_dots() -> None:
    assert differing([{"a": {"b.c": {"d": 1}}}, {"a": {"b.c": {"d": 2}}}]) == {"a.b.c.d": [1, 2]}
    assert differing([{"a": {"b.c": 1}}, {"a": {"b.c": 2}}]) == {"a.b.c": [1, 2]}


def test_results_keep_their_order_whichever_runs_differ(tmp_path: Path) -> None:
    worse = [{"step": 30, "hard": 2.0, "total": 1.5}]
    later = [{"step": 40, "hard": 1.5, "total": 1.5}]
    rows = [[{"step": 30, "hard": 1.5, "total": 1.5}], worse, later]
    folders = [write(tmp_path / str(number), rows=one) for number, one in enumerate(rows)]
    assert list(compared(*folders)["results"]) == ["steps", "last loss: hard"]


def test_a_folder_without_a_run_and_a_file_that_is_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match=r"recipe\.json is not JSON"):
        read_run(tmp_path)
