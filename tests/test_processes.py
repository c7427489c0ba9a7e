"""Several processes, as torchrun starts them: the same as one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from videokd import recipe as recipes
from videokd.clips.lists import read_manifest
from videokd.clips.manifest import write_manifest
from videokd.clips.views import ViewGrid
from videokd.distill import Term
from videokd.evaluate import evaluate
from videokd.losses import CRD, DIST, CrossEntropy, FrameFeatures, SoftTargets, TemporalAffinity
from videokd.machine import Machine
from videokd.models import CompactShift, save_model
from videokd.predictions import read_predictions
from videokd.processes import joined
from videokd.recipe import Recipe, TrainedTeacher, load
from videokd.report.comparison import read_evaluation
from videokd.run_folder import read_metrics
from videokd.train import train
from videokd.weighting import FixedWeights, ScaleNormalised

QUIET = Console(quiet=True)
SCRIPT = Path(__file__).with_name("in_processes.py")


@pytest.fixture(scope="module")
def distilled(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Losses of every kind: means over clips, over frames, and between the clips of a batch."""
    recipe = load("quickstart/distilled.py")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    teacher = replace(load("quickstart/teacher.py").student, width=4)  # type: ignore[call-arg]
    save_model(teacher.build(read_manifest(drawn_set).classes), folder)
    return replace(
        recipe,
        data=replace(recipe.data, path=str(drawn_set), batch_size=8, val_split="val"),
        student=CompactShift(width=4, input=recipe.student.input),  # type: ignore[arg-type]
        objective={
            "hard": Term(loss=CrossEntropy()),
            "soft": Term(loss=SoftTargets()),
            "frames": Term(loss=FrameFeatures()),
            "affinity": Term(loss=TemporalAffinity()),
            "dist": Term(loss=DIST()),
            "crd": Term(loss=CRD(queue=16)),
        },
        weighting=ScaleNormalised(),
        teachers={"teacher": TrainedTeacher(checkpoint=str(folder))},
        # Sums of other parts round otherwise. Where that turns a ReLU off that is at zero, gradients differ by a
        # thousandth: it does not happen with this seed, and with small steps losses hardly notice.
        optim=replace(recipe.optim, steps=10, lr=2e-3),
        seed=1,
        validate_every=4,
        checkpoint_every=3,
    )


def torchrun(recipe: Recipe, folder: Path, *more: str, processes: int = 2, restarts: int = 0) -> None:
    path = folder.with_suffix(".json")
    path.write_text(recipes.dump(recipe))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *(f"--max-restarts={restarts}", str(SCRIPT), str(path), str(folder), *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr


def said_when_refused(recipe: Recipe, folder: Path) -> str:
    """What both processes say before they end."""
    path = folder.with_suffix(".json")
    path.write_text(recipes.dump(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(path), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "gloo" not in done.stderr.lower()  # nobody was left waiting
    return done.stderr


def assert_alike(one: Path, other: Path, *, within: float) -> None:
    """The same losses at every step, the same validation, the same weights."""
    left, right = read_metrics(one), read_metrics(other)
    assert [row.keys() for row in left] == [row.keys() for row in right]
    for mine, theirs in zip(left, right, strict=True):
        for name, value in mine.items():
            allowed = 1e-2 if name == "grad_norm" else within
            assert theirs[name] == pytest.approx(value, rel=allowed, abs=within), (mine["step"], name)
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(load_file(other / "model.safetensors")[name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videokd.train.LOG_EVERY", 1)
    one = train(distilled, tmp_path / "one", console=QUIET)
    torchrun(distilled, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two", within=1e-4)
    assert one["processes"] == 1


@pytest.mark.slow
def test_parts_of_batches_and_parameters_that_no_loss_reaches_are_the_same_too(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has no gradient: only features are compared."""
    recipe = replace(
        distilled,
        objective={"frames": Term(loss=FrameFeatures()), "affinity": Term(loss=TemporalAffinity())},
        weighting=FixedWeights(),
        optim=replace(distilled.optim, steps=6, accumulate=2, ema=0.9),  # later, rounding has grown
    )
    monkeypatch.setattr("videokd.train.LOG_EVERY", 1)
    # Batch normalisation sees a part of a batch at a time: over both processes, the same as in one.
    train(recipe, tmp_path / "one", console=QUIET)
    torchrun(recipe, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two", within=1e-4)


@pytest.mark.slow
def test_when_a_process_dies_torchrun_goes_on_from_the_last_checkpoint(distilled: Recipe, tmp_path: Path) -> None:
    torchrun(distilled, tmp_path / "whole")
    torchrun(distilled, tmp_path / "died", "8", restarts=1)
    steps = [row["step"] for row in read_metrics(tmp_path / "died") if "total" in row]
    assert steps == list(range(1, 11))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "died")
    whole, died = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "died"))
    assert all(torch.equal(whole[name], died[name]) for name in whole)


def test_a_store_that_outlives_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "MAX_RESTARTS": "1", "USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name if name == "WORLD_SIZE" else f"TORCHELASTIC_{name}", value)
    with (
        pytest.raises(ValueError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before"),
        joined(torch.device("cpu")),
    ):
        pass


@pytest.mark.slow
def test_videos_that_one_process_cannot_read_weigh_on_no_other_clip(
    distilled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a batch that are not equal are weighed by their clips."""
    manifest = read_manifest(distilled.data.path)
    training = [video for video in manifest.videos if video.split == "train"]
    videos = list(manifest.videos)
    for number, video in enumerate(training[:5]):
        path = tmp_path / f"broken{number}.mp4"
        path.write_bytes(b"not a video")
        videos[videos.index(video)] = replace(video, path=path)
    write_manifest(replace(manifest, videos=tuple(videos)), tmp_path / "list.jsonl")
    data = replace(distilled.data, path=str(tmp_path / "list.jsonl"), on_bad_video="skip")
    # Not the queue: which clips it drops first is another matter of their order.
    objective = {name: term for name, term in distilled.objective.items() if name in ("hard", "soft", "frames", "dist")}
    optim = replace(distilled.optim, steps=4)
    recipe = replace(distilled, data=data, objective=objective, optim=optim, weighting=FixedWeights())
    monkeypatch.setattr("videokd.train.LOG_EVERY", 1)
    one = train(recipe, tmp_path / "one", console=QUIET)
    torchrun(recipe, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two", within=1e-4)
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert len(one["skipped"]) == 5
    assert sorted(one["skipped"]) == sorted(two["skipped"])
    assert two["processes"] == 2


@pytest.mark.slow
def test_evaluation_of_an_uneven_list_is_that_of_one_process(
    distilled: Recipe, drawn_set: Path, tmp_path: Path
) -> None:
    """Seven clips over two processes."""
    torch.manual_seed(0)
    save_model(distilled.student.build(read_manifest(drawn_set).classes), tmp_path / "model")
    test = read_manifest(drawn_set).split("test")
    videos = replace(test, videos=test.videos[:7])
    write_manifest(videos, tmp_path / "seven.jsonl")
    script = tmp_path / "score.py"
    script.write_text(
        "import sys, torch\n"
        "from videokd.clips.lists import read_manifest\n"
        "from videokd.clips.views import ViewGrid\n"
        "from videokd.evaluate import evaluate\n"
        "from videokd.report.comparison import write_evaluation\n"
        "from videokd.machine import Machine\n"
        "from videokd.processes import joined, rank\n"
        "with joined(torch.device('cpu')):\n"
        "    videos = read_manifest(sys.argv[2]).split('test')\n"
        "    grid = ViewGrid(temporal=2, spatial=3)\n"
        "    found = evaluate(sys.argv[1], videos, machine=Machine(), batch_size=2, grid=grid)\n"
        "    write_evaluation(f'{sys.argv[3]}/{rank()}', found)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*command, tmp_path / "model", tmp_path / "seven.jsonl", tmp_path], check=True, capture_output=True)
    videos, grid = read_manifest(tmp_path / "seven.jsonl").split("test"), ViewGrid(temporal=2, spatial=3)
    alone = evaluate(tmp_path / "model", videos, machine=Machine(), grid=grid, workers=2)
    for number in ("0", "1"):
        found, said = read_evaluation(tmp_path / number), read_predictions(tmp_path / number)
        assert said.ids == alone.predictions.ids
        torch.testing.assert_close(said.logits, alone.predictions.logits)
        # Six views in parts of two, or all at once: the same up to rounding.
        assert found.pop("calibration")["nll"] == pytest.approx(alone.numbers["calibration"]["nll"], rel=1e-5)
        assert found == {name: value for name, value in alone.numbers.items() if name != "calibration"}


@pytest.mark.slow
@pytest.mark.parametrize("preflight", [0, 1])
def test_a_video_that_one_process_cannot_read_ends_all_with_its_name(
    distilled: Recipe, tmp_path: Path, preflight: int
) -> None:
    manifest = read_manifest(distilled.data.path)
    videos = list(manifest.videos)
    number = next(number for number, video in enumerate(videos) if video.split == "train")
    (tmp_path / "torn.mp4").write_bytes(videos[number].path.read_bytes()[:300])
    videos[number] = replace(videos[number], path=tmp_path / "torn.mp4")
    write_manifest(replace(manifest, videos=tuple(videos)), tmp_path / "list.jsonl")
    data = replace(distilled.data, path=str(tmp_path / "list.jsonl"))
    steps = replace(distilled.optim, steps=3)  # all of the training videos
    said = said_when_refused(replace(distilled, data=data, optim=steps, preflight=3 * preflight), tmp_path / "run")
    assert "torn.mp4" in said
    assert "another process could not go on" in said


def test_batches_that_can_not_be_parted_alike_are_refused(distilled: Recipe, tmp_path: Path) -> None:
    optim = replace(distilled.optim, accumulate=3)
    with pytest.raises(ValueError, match=r"3"):
        train(replace(distilled, optim=optim), tmp_path / "run", console=QUIET)
