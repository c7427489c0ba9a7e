"""What the README says must run."""

import os
import re
from pathlib import Path

import pytest
import torch

from videokd.cli import USAGE, main
from videokd.clips.lists import read_manifest
from videokd.contracts import Dense, InputSpec
from videokd.models import Conv3d, load_model, save_model
from videokd.recipe import configs_folder, load
from videokd.run_folder import read_metrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_trains_and_saves_a_student(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    quickstart = tmp_path / "runs" / "quickstart"
    quickstart.mkdir(parents=True)
    os.symlink(drawn_set.parent, quickstart / "data")
    torch.manual_seed(0)
    teacher = Conv3d(width=4, input=InputSpec(frames=16, size=32, sampling=Dense(stride=1)))
    save_model(teacher.build(read_manifest(drawn_set).classes), quickstart / "teacher")
    monkeypatch.chdir(tmp_path)
    assert "range(300)" in example
    exec(example.replace("range(300)", "range(2)"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1
    assert load_model(tmp_path / "runs" / "minimal").classes == read_manifest(drawn_set).classes


def test_every_command_and_recipe_that_the_readme_names_is_there() -> None:
    commands = set(
        re.findall(r"videokd (quickstart|train|evaluate|compare|taps|models|losses|data synth|doctor)", README)
    )
    assert {"quickstart", "train", "evaluate", "compare"} <= commands
    assert all(command in USAGE for command in commands)
    recipes = set(re.findall(r"\b(?:quickstart|own_videos|methods|chains)/\w+\.py", README))
    assert recipes
    assert all((configs_folder() / recipe).is_file() for recipe in recipes)


def test_every_file_and_picture_that_the_pages_link_is_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    for page in (*pages, *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name} links {link}"
        for path in re.findall(r"`((?:videokd|configs|tests|benchmarks|data|docs)/[\w/.]+\.(?:py|md))`", text):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_loss_of_ones_own_trains_and_is_saved_with_its_run(drawn_set: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    (loss,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "class Sureness" in block
    ]
    teacher = Conv3d(width=4, input=InputSpec(frames=16, size=32, sampling=Dense(stride=1)))
    save_model(teacher.build(read_manifest(drawn_set).classes), tmp_path / "teacher")
    recipe = (
        f"{loss}\n"
        "from dataclasses import replace\n"
        "from videokd.distill import Term\n"
        "from videokd.recipe import load\n"
        'kd = load("methods/kd.py")\n'
        'recipe = replace(kd, objective={**kd.objective, "sure": Term(loss=Sureness(), weight=2.0)})\n'
    )
    (tmp_path / "mine.py").write_text(recipe, encoding="utf-8")
    shared = ["--data.path", str(drawn_set), "--data.val-split", "None", "--optim.steps", "2", "--preflight", "0"]
    shared += ["--teachers.teacher.checkpoint", str(tmp_path / "teacher"), "--objective.sure.loss.power", "1"]
    assert main(["train", str(tmp_path / "mine.py"), "--out", str(tmp_path / "run"), *shared]) == 0
    (row,) = [row for row in read_metrics(tmp_path / "run") if "total" in row]
    assert 0 < row["sure"] < 1
    assert load(tmp_path / "run" / "recipe.json").objective["sure"].loss.power == 1.0  # type: ignore[attr-defined]


def test_the_whole_recipe_of_the_page_on_losses_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    (recipe,) = [block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "recipe = " in block]
    (tmp_path / "mine.py").write_text(recipe, encoding="utf-8")
    assert list(load(tmp_path / "mine.py").objective) == ["hard", "soft", "frames", "relations"]
