"""The way from files to logits in its parts, and the steps that a recipe makes, on drawn videos."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from videokd.averaging import WeightAverage
from videokd.bench import stages
from videokd.bench.contenders import Contender, Patience, measure
from videokd.bench.results import Measurement
from videokd.bench.steps import step_contenders
from videokd.clips import reading
from videokd.clips.dataset import ClipDataset
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import Manifest
from videokd.clips.packing import Packing, pack
from videokd.contracts import InputSpec
from videokd.distill import Student
from videokd.models import save_model
from videokd.recipe import PublishedTeacher, Recipe, TrainedTeacher, load

CPU = torch.device("cpu")
SPEC = InputSpec(frames=4, size=24)
QUICK = Patience(rounds=2, turn_seconds=0.001, warm_up_seconds=0.0)


@pytest.fixture(scope="module")
def clips(drawn_set: Path) -> Manifest:
    return stages.chosen(read_manifest(drawn_set), split="train", clips=6)


def names(contenders: list[Contender]) -> list[str]:
    return [one.stage for one in contenders]


def run(*contenders: Contender) -> list[Measurement]:
    return measure(contenders, device=CPU, patience=QUICK, yardstick=lambda: None)


def test_clips_are_spread_over_the_split(drawn_set: Path) -> None:
    whole = read_manifest(drawn_set)
    train = whole.split("train").videos
    assert stages.chosen(whole, split="train", clips=6).videos == train[::4]
    assert stages.chosen(whole, split="train", clips=100).videos == train
    gone = replace(whole, videos=tuple(replace(one, path=Path("nowhere.mp4")) for one in train))
    with pytest.raises(ValueError, match=r"no video of .* \(split train\) is there"):
        stages.chosen(gone, split="train", clips=6)


def test_the_list_comes_again_and_again() -> None:
    batches = [batch for (batch,) in islice(stages.Endless(3, 2).blocks(), 4)]
    assert batches == [[(0, 0), (1, 0)], [(2, 0), (0, 0)], [(1, 0), (2, 0)], [(0, 0), (1, 0)]]
    assert len(list(stages.Endless(3, 2, batches=5).blocks())) == 5


def test_decoding_and_painting_are_the_two_halves_of_reading(clips: Manifest) -> None:
    dataset = ClipDataset(clips, {"student": SPEC})
    for number in range(len(dataset)):
        wanted = dataset.read_of(number)
        decoded = reading.decode(wanted.video.path, wanted.cuts, index=wanted.index)
        assert len(decoded) == len(set(wanted.cuts[0].numbers))
        (pictures,) = reading.paint(wanted.cuts, decoded, index=wanted.index)
        sample = dataset[number]["clips"]["student"]
        assert torch.equal(pictures, sample["frames"])  # type: ignore[typeddict-item]


def test_stages_of_files_are_timed_apart_and_those_of_a_packed_set_together(clips: Manifest, tmp_path: Path) -> None:
    dataset = ClipDataset(clips, {"student": SPEC})
    contenders = stages.loading(dataset, clips=3, device=CPU)
    assert names(contenders) == ["decode", "transform", "load"]
    found = run(*contenders)
    assert all(one.error is None and len(one.rounds) == 2 for one in found)
    pack(clips, tmp_path / "packed", Packing(format="raw", short_side=32), workers=1)
    packed = read_manifest(tmp_path / "packed" / "index.jsonl")
    assert names(stages.loading(ClipDataset(packed, {"student": SPEC}), clips=3, device=CPU)) == ["load"]


def test_the_whole_way_shows_a_network_every_clip_of_the_list(clips: Manifest) -> None:
    dataset = ClipDataset(clips, {"student": SPEC})
    shown: Counter[tuple[int, ...]] = Counter()

    def look(view: object) -> torch.Tensor:
        shown[tuple(view.frames.shape)] += 1  # type: ignore[attr-defined]
        return torch.zeros(3, 2)

    contender = stages.end_to_end(dataset, lambda: look, party="student", variant="eager", clips=3, device=CPU)
    (found,) = run(contender)
    assert found.name == "student · end to end · eager · 3 clips"
    assert set(shown) == {(3, 4, 3, 24, 24)}


def test_with_workers_the_loader_is_timed_by_itself_and_with_the_network(clips: Manifest) -> None:
    dataset = ClipDataset(clips, {"student": SPEC})
    seen: list[int] = []

    def look(view: object) -> torch.Tensor:
        seen.append(len(view.frames))  # type: ignore[attr-defined]
        return torch.zeros(1)

    for run_it, stage, variant in ((None, "load", "1 worker"), (look, "end to end", "eager, 1 worker")):
        found = stages.with_workers(
            dataset, run_it, party="student", variant="eager", workers=1, clips=2, seconds=0.2, device=CPU
        )
        assert (found.stage, found.variant, found.clips) == (stage, variant, 2)
        assert len(found.rounds) >= 4
        assert all(one.calls >= 1 and one.wall > 0 for one in found.rounds)
    assert set(seen) == {2}


@pytest.fixture
def recipe(drawn_set: Path, tmp_path: Path) -> Recipe:
    found = load("quickstart/distilled.py")
    teacher = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    save_model(teacher.build(read_manifest(drawn_set).classes), tmp_path / "teacher")
    return replace(
        found,
        data=replace(found.data, path=str(drawn_set)),
        student=replace(found.student, width=4),  # type: ignore[call-arg]
        teachers={"teacher": TrainedTeacher(checkpoint=str(tmp_path / "teacher"), remember=True)},
    )


def test_a_recipe_makes_steps_alone_with_its_teacher_and_on_what_it_said(
    recipe: Recipe, clips: Manifest, tmp_path: Path
) -> None:
    found = run(*step_contenders(recipe, clips, folder=tmp_path / "work", clips=4))
    assert [one.stage for one in found] == ["training step", "online step", "stored step"]
    assert [one.error for one in found] == [None, None, None]
    assert {(one.party, one.variant, one.clips) for one in found} == {("student", "eager", 4)}
    assert list((tmp_path / "work" / "stored").iterdir())  # a real store


def test_a_step_learns(recipe: Recipe, clips: Manifest, tmp_path: Path) -> None:
    online = step_contenders(recipe, clips, folder=tmp_path / "work", clips=4)[1]
    step = online.make()
    made = step.__closure__  # type: ignore[attr-defined]
    student = next(cell.cell_contents for cell in made if isinstance(cell.cell_contents, Student))
    before = [one.detach().clone() for one in student.parameters()]
    step()
    assert any(not torch.equal(one, other) for one, other in zip(before, student.parameters(), strict=True))
    assert all(one.grad is None for one in student.parameters())


@pytest.mark.parametrize("until", [1.0, 0.5])
def test_frozen_parameters_and_statistics_stay_in_the_steps_that_are_timed(
    recipe: Recipe, clips: Manifest, tmp_path: Path, until: float
) -> None:
    frozen = ("stem", "stages.0")
    recipe = replace(recipe, optim=replace(recipe.optim, freeze=frozen, freeze_until=until, ema=0.9))
    for contender in step_contenders(recipe, clips, folder=tmp_path / "work", clips=4):
        step = contender.make()
        closed = step.__closure__  # type: ignore[attr-defined]
        student = next(one.cell_contents for one in closed if isinstance(one.cell_contents, Student))
        (average,) = (one.cell_contents for one in closed if isinstance(one.cell_contents, WeightAverage))
        before = {name: one.clone() for name, one in student.model.state_dict().items()}
        step()
        moved = {name for name, one in student.model.state_dict().items() if not torch.equal(one, before[name])}
        assert moved
        assert not any(name.startswith(tuple(f"{one}." for one in frozen)) for name in moved)
        assert average.steps == 1


def test_teachers_that_would_be_fetched_are_built_with_random_weights(
    recipe: Recipe, clips: Manifest, tmp_path: Path
) -> None:
    teacher = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    published = replace(recipe, teachers={"teacher": PublishedTeacher(model=teacher)})
    found = run(*step_contenders(published, clips, folder=tmp_path / "work", clips=4))
    assert [one.error for one in found] == [None, None, None]


def test_a_teacher_that_is_not_there_is_the_error_of_its_steps_alone(
    recipe: Recipe, clips: Manifest, tmp_path: Path
) -> None:
    gone = replace(recipe, teachers={"teacher": TrainedTeacher(checkpoint=str(tmp_path / "gone"))})
    alone, online, stored = run(*step_contenders(gone, clips, folder=tmp_path / "work", clips=4))
    assert alone.error is None
    assert "holds no trained model" in str(online.error)
    assert "holds no trained model" in str(stored.error)


def test_without_a_label_there_is_no_step(recipe: Recipe, clips: Manifest, tmp_path: Path) -> None:
    unlabelled = replace(clips, videos=tuple(replace(one, label=None) for one in clips.videos))
    with pytest.raises(ValueError, match=r"no clip of .* has a label"):
        step_contenders(recipe, unlabelled, folder=tmp_path, clips=4)
