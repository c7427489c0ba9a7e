"""What the words after `videokd bench` stand for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from videokd import recipe as recipes
from videokd.bench.subjects import subject, without_published_weights
from videokd.clips.lists import read_manifest
from videokd.models import CompactShift, Model, TimmVideo, VideoResNet, save_model
from videokd.models.named import TORCHVISION
from videokd.recipe import TrainedTeacher, load


@pytest.fixture
def run(drawn_set: Path, tmp_path: Path) -> Path:
    """A run's folder, with that of its teacher."""
    classes = read_manifest(drawn_set).classes
    distilled = load("quickstart/distilled.py")
    student = replace(distilled.student, width=4)  # type: ignore[call-arg]
    teacher = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    save_model(teacher.build(classes), tmp_path / "taught")
    torch.manual_seed(1)
    save_model(student.build(classes), tmp_path / "run")
    recipe = replace(
        distilled,
        data=replace(distilled.data, path=str(drawn_set)),
        student=student,
        teachers={"teacher": TrainedTeacher(checkpoint=str(tmp_path / "taught"))},
    )
    (tmp_path / "run" / "recipe.json").write_text(recipes.dump(recipe))
    return tmp_path / "run"


def made(build: object) -> Model[object]:
    model: Model[object] = build()  # type: ignore[operator]
    return model


def test_a_run_brings_its_trained_student_and_its_teacher(run: Path) -> None:
    found = subject([str(run)])
    assert [one.name for one in found.parties] == ["student", "teacher"]
    assert found.recipe is not None
    assert [one.folder for one in found.parties] == [run, run.parent / "taught"]
    torch.manual_seed(1)
    trained = replace(load("quickstart/distilled.py").student, width=4).build(None or [*"abcdefghijkl"])  # type: ignore[call-arg]
    student = made(found.parties[0].build)
    assert torch.equal(next(student.parameters()), next(trained.parameters()))


def test_a_folder_of_transformers_is_told_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"looks like a model of Hugging Face transformers: call it hf/{tmp_path}"):
        subject([str(tmp_path)])


def test_a_recipe_brings_networks_that_nobody_trained(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"from videokd.recipe import load\nrecipe = load({str(run / 'recipe.json')!r})\n")
    found = subject([str(path)])
    assert [one.name for one in found.parties] == ["student", "teacher"]
    assert len(made(found.parties[0].build).classes) == 12


def test_a_saved_model_an_architecture_and_a_file_stand_for_themselves(run: Path, tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(b"")
    found = subject([str(run.parent / "taught"), "CompactShift (quickstart)", str(tmp_path / "student.onnx")])
    assert [one.name for one in found.parties] == ["taught", "CompactShift (quickstart)", "student.onnx"]
    assert found.recipe is None
    assert isinstance(made(found.parties[1].build).config, CompactShift)
    assert len(made(found.parties[1].build).classes) == 400
    assert found.parties[2].build is None


def test_nobody_has_to_fetch_weights_to_time_an_architecture() -> None:
    assert TORCHVISION["r3d_18"].is_published
    config = without_published_weights(TORCHVISION["r3d_18"])
    assert isinstance(config, VideoResNet)
    assert not config.is_published
    assert without_published_weights(TimmVideo(backbone="resnet18")) == TimmVideo(backbone="resnet18", weights=None)
    assert subject(["torchvision/r3d_18"]).parties[0].name == "torchvision/r3d_18"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "name a model, a recipe"),
        (["ResNet-18 + shfit"], r"no recipe, run, exported file or model 'ResNet-18 \+ shfit'.*ResNet-18 \+ shift"),
        (["torchvision/r3d_81"], r"torchvision has no video model 'r3d_81'.*r3d_18"),
        (["nowhere.onnx"], "no file nowhere.onnx"),
        (["X3D-S", "X3D-S"], "the same network twice"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        subject(names)


def test_two_recipes_at_a_time_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="one recipe or run at a time"):
        subject([str(run), str(run)])
