"""A study of a few steps: its arms are paired, it goes on, and it says what its numbers say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from videokd.arms import Study, load
from videokd.models import CompactShift, Conv3d
from videokd.recipe import Recipe
from videokd.study import study

QUIET = Console(quiet=True)


def tiny(drawn_set: Path, **fields: Any) -> Study:
    """The quickstart's study with three steps, on 24 training clips that all have labels."""
    shipped = load("studies/quickstart.py")
    assert shipped.teacher is not None

    def small(recipe: Recipe) -> Recipe:
        data = replace(recipe.data, path=str(drawn_set), batch_size=6, unlabelled_per_batch=0, val_split=None)
        student = replace(recipe.student, width=4)  # type: ignore[call-arg]
        return replace(recipe, data=data, student=student, optim=replace(recipe.optim, steps=3), preflight=0)

    made = Study(
        teacher=small(shipped.teacher), alone=small(shipped.alone), distilled=small(shipped.distilled), seeds=2
    )
    return replace(made, **fields)


@pytest.fixture(scope="module")
def done(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all arms and two pairs."""
    out = tmp_path_factory.mktemp("study") / "out"
    study(tiny(drawn_set), out, console=QUIET)
    return out


def test_it(done: Path) -> None:
    found = json.loads((done / "study.json").read_text())
    print(json.dumps({k: v for k, v in found.items() if k != "study"}, indent=1))
