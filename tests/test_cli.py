"""The command line as a stranger would use it."""

import importlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import heed_ctrl_c

import videokd
from videokd.cli import COMMANDS, RECIPE_COMMANDS, USAGE, main
from videokd.clips.lists import read_manifest


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def trained(drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run of three steps."""
    small = ("--data.path", drawn_set, "--optim.steps", "3", "--student.width", "4", "--data.val-split", "None")
    assert run("train", "quickstart/alone.py", "--out", tmp_path / "alone", *small) == 0
    assert "3 steps in" in capsys.readouterr().out
    return tmp_path / "alone"


def test_without_a_command_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert run("--help") == 0
    assert run("data") == 2
    captured = capsys.readouterr()
    for command in ("quickstart", "train RECIPE", "evaluate MODEL", "compare RUN...", "data synth OUT", "doctor"):
        assert command in captured.out
        assert command in captured.err


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evalute", "runs/x") == 2
    assert "no command 'evalute'; did you mean 'evaluate'?" in capsys.readouterr().err
    assert run("data", "sinth") == 2
    assert "did you mean 'data synth'?" in capsys.readouterr().err


def test_train_evaluate_compare(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained) == 0
    said = capsys.readouterr().out
    assert "on 12 clips (12 sources) of" in said.replace("\n", " ")
    assert "slide_left" in said
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["clips"] == 12
    assert "Careful" not in said
    assert (trained / "predictions.parquet").is_file()
    assert run("evaluate", trained, "--split", "train") == 1
    assert "holds scores of another split (test, now train): name an --out" in capsys.readouterr().err
    assert run("evaluate", trained, "--split", "train", "--out", trained / "on-train") == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "trained on 24 of these 24 clips, or others of their sources" in said
    assert run("evaluate", trained, "--temporal", "2") == 1
    assert "scores of another views ([1, 1, 'probabilities'], now [2, 1, 'probabilities'])" in capsys.readouterr().err
    assert run("evaluate", trained) == 0
    assert run("compare", trained, trained) == 0
    said = capsys.readouterr().out
    assert "MMAC/clip" in said
    assert "No difference in recipe." in said
    assert "No difference in results." in said
    assert ("No difference in environment." in said) == (trained / "environment.json").is_file()


def test_compare_pairs_the_arms(
    trained: Path, drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--data.path", drawn_set, "--optim.steps", "3", "--student.width", "4", "--data.val-split", "None")
    assert run("train", "quickstart/teacher.py", "--out", tmp_path / "teacher", *shared) == 0
    checkpoint = ("--teachers.teacher.checkpoint", tmp_path / "teacher")
    assert run("train", "quickstart/distilled.py", "--out", tmp_path / "distilled", *shared, *checkpoint) == 0
    runs = [tmp_path / name for name in ("teacher", "alone", "distilled")]
    for folder in runs:
        assert run("evaluate", folder) == 0
    capsys.readouterr()
    assert run("compare", *runs) == 0
    said = capsys.readouterr().out
    assert "student distilled" in said
    assert "Distilled - alone, paired by seed" in said
    assert re.search(r"what differs +┃ teacher +┃ alone +┃ distilled", said)
    assert re.search(r"objective\.soft +│ None +│ None +│ SoftTargets ", said)
    assert re.search(r"last loss: soft +│ \? ", said) is None
    assert re.search(r"last loss: soft +│ +│ +│ [0-9.]+ ", said)
    # What is inside them is looked at once, and shown of these runs alone.
    assert run("inside", *runs, "--clips", "8") == 0
    assert "saliency against the teacher's" in capsys.readouterr().out
    looked = json.loads((tmp_path / "distilled" / "inside.json").read_text())
    assert list(looked["cka"]["arms"]) == ["alone", "distilled"]
    named = {(tmp_path / "distilled" / name).resolve() for name in looked["runs"]}
    assert named == {folder.resolve() for folder in runs}
    assert run("report", *runs, "--out", tmp_path / "page.html") == 0
    assert "distilled" in (tmp_path / "page.html").read_text()
    assert run("inside", tmp_path / "alone") == 1
    assert "features are compared with one trained teacher's" in capsys.readouterr().err


def test_compare_takes_runs_that_are_not_finished_or_not_evaluated(
    trained: Path, drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ("--data.path", drawn_set, "--optim.steps", "20", "--student.width", "4", "--data.val-split", "None")
    assert run("train", "quickstart/alone.py", "--out", tmp_path / "other", *longer) == 0
    for name in ("model.json", "summary.json"):
        (tmp_path / "other" / name).unlink()
    rows = (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "other" / "metrics.jsonl").write_text(rows[0] + "\n")
    capsys.readouterr()
    assert run("compare", trained, tmp_path / "other") == 0
    said = capsys.readouterr().out
    assert f"No test scores (videokd evaluate RUN makes them): {trained}\n" in said
    assert f"{tmp_path / 'other'} is not finished: 10 of 20 steps\n" in said
    assert re.search(r"optim\.steps +│ 3 +│ 20 ", said)
    assert re.search(r"steps +│ 3 +│ 10 ", said)
    assert "MMAC/clip" not in said


def test_runs_scored_on_different_clips_are_compared_all_the_same(
    trained: Path, drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ("--data.path", drawn_set, "--optim.steps", "3", "--student.width", "8", "--data.val-split", "None")
    assert run("train", "quickstart/alone.py", "--out", tmp_path / "other", *other) == 0
    assert run("evaluate", trained) == 0
    assert run("evaluate", tmp_path / "other", "--split", "train") == 0
    capsys.readouterr()
    assert run("compare", trained, tmp_path / "other") == 0
    said = capsys.readouterr().out
    assert "The runs are not compared, no scores shown: they were scored on different split" in said.replace("\n", " ")
    assert "MMAC/clip" not in said
    assert re.search(r"student\.width +│ 4 +│ 8 ", said)


def test_gains_that_can_not_be_told_do_not_hide_the_rest(
    trained: Path, drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--data.path", drawn_set, "--optim.steps", "3", "--student.width", "4", "--data.val-split", "None")
    checkpoint = ("--teachers.teacher.checkpoint", trained, "--preflight", "0")  # three steps taught it nothing
    assert run("train", "quickstart/distilled.py", "--out", tmp_path / "distilled", *shared, *checkpoint) == 0
    shutil.copytree(trained, tmp_path / "twin")
    runs = [trained, tmp_path / "twin", tmp_path / "distilled"]
    for folder in runs:
        assert run("evaluate", folder) == 0
    capsys.readouterr()
    assert run("compare", *runs) == 0
    said = capsys.readouterr().out
    assert "What distillation gained is not shown: " in said
    assert "could both be paired" in said
    assert re.search(r"objective\.soft +│ None +│ None +│ SoftTargets ", said)


def test_train_resumes_by_its_folder_alone(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--resume", trained) == 1
    assert "is finished: nothing to resume" in capsys.readouterr().err
    (trained / "model.json").unlink()
    assert run("train", "--resume", trained, "--optim.lr", "0.5") == 1
    assert "is another recipe" in capsys.readouterr().err
    assert run("train", "--resume", trained, "--on-bad-video", "skip", "--machine.device", "cpu") == 0
    assert (trained / "model.json").is_file()


def test_data_synth_draws_a_set(tmp_path: Path) -> None:
    counts = ("--train", "12", "--val", "0", "--test", "0", "--workers", "1")
    assert run("data", "synth", tmp_path / "set", *counts) == 0
    assert len(read_manifest(tmp_path / "set" / "manifest.jsonl").videos) == 12


def test_losses_prints_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("losses") == 0
    said = capsys.readouterr().out
    for part in ("losses on logits", "weights between terms", "Hinton et al. 2015", "queue=1024", "methods/crd.py"):
        assert part in said
    assert run("losses", "DKD") == 0
    assert "  beta=8" in capsys.readouterr().out


def test_doctor_says_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    said = capsys.readouterr().out
    for line in ("videokd", "torch", "FFmpeg libraries", "decord", "GPU"):
        assert line in said


def test_the_doctor_names_the_way_to_a_faster_cpu_to_who_has_not_taken_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    for taken in (False, True):
        monkeypatch.delenv("LD_PRELOAD", raising=False)
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if taken:
            monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        assert run("doctor") == 0
        assert ("Memory on a CPU" in " ".join(capsys.readouterr().out.split())) is not taken


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "usage: videokd train RECIPE"),
        (["train", "nowhere.py"], "no recipe at nowhere.py"),
        (["train", "--resume", "nowhere"], "holds no run to resume"),
        (["train", "own_videos/alone.py", "--out", "{tmp}/run"], "no list or folder of videos at "),
        (["data", "synth", "/proc/nothing"], "No such file"),
        (["evaluate", "nowhere"], "no folder nowhere"),
        (["evaluate", "{tmp}"], "has no recipe.json"),
        (["evaluate", "{tmp}", "{set}"], "holds no trained model"),
        (["evaluate", "hf/nowhere", "{set}"], "name a folder for the results of hf/nowhere with --out"),
        (["evaluate", "torchvision/r3d_19", "{set}", "--out", "{tmp}/o"], "did you mean 'r3d_18'?"),
        (["evaluate", "{tmp}", "{set}", "--protocol", "ucf101"], "UCF101 has 101 classes"),
        (["evaluate", "{tmp}", "{set}", "--split", "tset"], "has no video in split 'tset'; did you mean 'test'?"),
        (["losses", "SoftTarget"], "did you mean 'SoftTargets'?"),
        (["models", "--clips", "0"], "at least 1, got 0 and 3"),
        (["train", "own_videos/alon.py"], "did you mean 'own_videos/alone.py'?"),
        (["compare"], "name at least one run"),
        (["compare", "nowhere"], "nowhere holds no run"),
    ],
)
def test_a_wrong_command_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, drawn_set: Path
) -> None:
    assert run(*[argument.format(tmp=tmp_path, set=drawn_set) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("videokd: error: ")
    assert message in said
    assert "Traceback" not in said


def test_an_unknown_field_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("train", "quickstart/distilled.py", "--objective.soft.loss.temprature", "3")
    assert stopped.value.code == 2
    assert "--objective.soft.loss.temperature" in capsys.readouterr().err


def test_a_bad_video_can_be_skipped_by_its_plain_flag(
    drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = drawn_set.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["path"] = str(drawn_set.parent / row["path"])
    gone = {**rows[0], "path": "gone.mp4"}
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in [gone, *rows]))
    small = ("--data.path", listed, "--optim.steps", "2", "--student.width", "4", "--data.val-split", "None")
    assert run("train", "quickstart/alone.py", "--out", tmp_path / "a", *small) == 1
    assert "--on-bad-video skip" in capsys.readouterr().err
    assert run("train", "quickstart/alone.py", "--out", tmp_path / "b", *small, "--on-bad-video", "skip") == 0
    said = capsys.readouterr().out
    assert "gone.mp4: the file is missing" in said.replace("\n", "")
    assert "1 videos skipped" in said


def test_the_installed_command_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "videokd.cli", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: videokd COMMAND")


def test_help_waits_for_no_import() -> None:
    code = "import sys; from videokd.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", [*COMMANDS, *RECIPE_COMMANDS])
def test_every_command_is_where_it_is_said_to_be(name: str) -> None:
    module, _, function = {**COMMANDS, **RECIPE_COMMANDS}[name].partition(":")
    assert callable(getattr(importlib.import_module(f"videokd.cli.{module}"), function))
    assert f"\n  {name}" in USAGE


def test_ctrl_c_while_a_command_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(videokd.__file__).parents[1])])}
    command = [sys.executable, "-m", "videokd.cli", "losses"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, preexec_fn=heed_ctrl_c, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    stopped = "videokd: stopped; no result was written; run it again with: videokd losses\n"
    assert (process.returncode, said) == (130, stopped)


def test_a_set_is_checked_and_packed_and_trained_on(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = tmp_path / "videos"
    for number, video in enumerate(read_manifest(drawn_set).split("train").videos):
        folder = videos / str(video.label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.mp4").write_bytes(video.path.read_bytes())
    (videos / "jump").mkdir()
    (videos / "jump" / "broken.mp4").write_bytes(b"nothing")
    assert run("data", "check", videos, "--workers", "2") == 0
    said = capsys.readouterr().out
    assert "24 of 25 videos are readable" in said
    assert "jump/broken.mp4" in said
    assert "classes know left from right" in said
    checked = tmp_path / "videos.checked.jsonl"
    assert json.loads((tmp_path / "videos.checked.report.json").read_text())["faults"] == {"unreadable": 1}
    assert (tmp_path / "videos.checked.frames").is_file()
    assert not list(tmp_path.glob("*.partial*"))
    assert run("data", "check", videos) == 1
    assert "is there already" in capsys.readouterr().err

    small = ("--optim.steps", "2", "--student.width", "4", "--data.val-split", "None")
    train = ("train", "quickstart/alone.py", "--data.no-in-memory", *small)
    assert run(*train, "--out", "a", "--data.path", checked) == 1
    assert "FFmpeg cannot read it" in capsys.readouterr().err
    assert run(*train, "--out", "b", "--data.path", checked, "--on-bad-video", "skip") == 0
    assert "1 videos skipped" in capsys.readouterr().out

    assert run("data", "pack", checked, "--out", "packed", "--format", "jpeg") == 1
    assert "--on-bad-video skip" in capsys.readouterr().err
    assert run("data", "pack", checked, "--out", "packed", "--format", "jpeg", "--on-bad-video", "skip") == 0
    assert "24 videos in 1 shards" in capsys.readouterr().out
    assert run(*train, "--out", "c", "--data.path", "packed", "--data.workers", "1") == 0
    capsys.readouterr()
    assert run("evaluate", "c") == 0
    assert "0 videos skipped" in capsys.readouterr().out


def test_the_doctor_says_who_reads_videos(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "reads videos: pyav" in said
    assert "torchcodec can't be used here" in " ".join(said.replace("│", " ").split())


def test_taps_prints_what_every_party_hands_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(OWN_TEACHER)
    assert main(["taps", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "student: CompactShift, 8 frames at stride 1, 32 px" in said
    assert "net: Own, 8 frames at stride 1, 32 px" in said
    assert re.search(r"mid +│ 4 x 8 x 8 +│ 128 +│ 0, 2, 4, 6 +│ layer2: b c t h w", said)
    assert re.search(r"frames +│ 8 x 1 x 1 +│ 48 +│ 0, 1, 2, \.\.\., 7", said)
    assert "layer1.0.conv1" not in said
    assert main(["taps", str(recipe), "--modules", "--student.input.frames", "4"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"layer1\.0\.conv1 +│ 2 x 64 x 8 x 16 x 16 +│ b c t h w \(T' = 8\)", said)
    assert "CompactShift, 4 frames" in said


OWN_TEACHER = """
from videokd.contracts import InputSpec
from videokd.distill import Term
from videokd.losses import CrossEntropy
from videokd.models import CompactShift, Own, Tap
from videokd.optim import AdamW
from videokd.recipe import Data, PublishedTeacher, Recipe

small = InputSpec(frames=8, size=32)
recipe = Recipe(
    data=Data(path="not there yet"),
    student=CompactShift(input=small),
    teachers={
        "net": PublishedTeacher(
            model=Own(target="torchvision.models.video:r3d_18", input=small, taps={"mid": Tap(module="layer2")})
        )
    },
    objective={"hard": Term(loss=CrossEntropy())},
    optim=AdamW(steps=1),
)
"""


OWN_TRAINED = """
from dataclasses import replace
from videokd.contracts import InputSpec
from videokd.distill import Term
from videokd.losses import FrameFeatures, SoftTargets
from videokd.models import Own
from videokd.recipe import TrainedTeacher, load

alone = load("quickstart/alone.py")
recipe = replace(
    alone,
    student=Own(target="my_net:make", arguments={"classes": 12}, input=InputSpec(frames=8, size=32)),
    optim=replace(alone.optim, steps=2),
)
taught = replace(
    alone,
    teachers={"mine": TrainedTeacher(checkpoint="runs/mine", trust=("my_net",))},
    objective={"soft": Term(loss=SoftTargets(), teacher="mine"), "frames": Term(loss=FrameFeatures(), teacher="mine")},
    optim=replace(alone.optim, steps=2),
)
"""

MY_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 3, stride=(2, 4, 4), padding=1)
        self.head = nn.Linear(6, classes)

    def forward(self, video):
        return self.head(self.conv(video).mean(dim=(2, 3, 4)))

def make(classes):
    return Net(classes)
"""


@pytest.mark.slow
def test_a_network_of_ones_own_learns_is_scored_and_teaches(drawn_set: Path, tmp_path: Path) -> None:
    # As the command, in a process of its own, from a folder in which the user's files lie.
    (tmp_path / "my_net.py").write_text(MY_NET)
    (tmp_path / "own.py").write_text(OWN_TRAINED)
    (tmp_path / "taught.py").write_text("from own import taught\nrecipe = taught\n")
    command = [str(Path(sys.executable).with_name("videokd"))]
    if not Path(command[0]).is_file():
        command = [sys.executable, "-P", "-m", "videokd.cli"]
    data = ("--data.path", str(drawn_set), "--data.val-split", "None")

    def said(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, text = said("taps", "own.py", *data)
    assert code == 0, text
    assert re.search(r"frames +│ 4 x 8 x 8 +│ 6 +│ 0, 2, 4, 6 +│ conv: b c t h w", text)
    code, text = said("train", "own.py", "--out", "runs/mine", *data)
    assert code == 0, text
    code, text = said("evaluate", "runs/mine")
    assert code == 1
    assert "to open it would run that code: if you trust it, add --trust my_net " in text
    code, text = said("evaluate", "runs/mine", "--trust", "my_net")
    assert code == 0, text
    assert "on 12 clips (12 sources) of" in text.replace("\n", " ")
    # Two steps taught it nothing.
    code, text = said("train", "taught.py", "--out", "runs/taught", *data, "--preflight", "0")
    assert code == 0, text


def test_taps_without_a_recipe_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", "--modules"]) == 1
    assert "usage: videokd taps RECIPE" in capsys.readouterr().err


@pytest.mark.slow
def test_models_prints_what_every_architecture_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--clips", "2", "--crops", "1"]) == 0
    said = capsys.readouterr().out
    # torchvision publishes 33.37 M parameters and 40.70 GFLOPs.
    assert re.search(r"R3D-18 +│ +16 frames at stride 2, 112 px +│ +33\.37 +│ +40\.70 +│ +81\.4", said)
    for name in ("X3D-S", "MoViNet-A0", "Video Swin-B", "VideoMAE-B", "V-JEPA 2 L", "AST", "MobileNetV3-S + GRU"):
        assert name in said, name
