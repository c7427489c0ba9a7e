"""SIGINT and SIGTERM at random moments of every command: it ends soon and says how to resume; what it leaves is whole.

Commands run in forks of this process, which has imported everything: the moments fall into their work. `TIMES` more of
them: VIDEOKD_SIGNALS=10.
"""

import atexit
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from videokd import recipe as recipes
from videokd.arms import Study, load
from videokd.cli import main
from videokd.recipe import Recipe, TrainedTeacher
from videokd.study import study

TIMES = int(os.environ.get("VIDEOKD_SIGNALS", "2"))
"""Moments for each signal and command."""
SOON = 20.0
"""Seconds after a signal by which a command has ended, on a machine that is busy."""
SAID = ("resume with", "run it again with", "the same command measures", "is finished", "is written")
"""One of them is in what a stopped command says."""
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    """As a shell has it: 128 and the signal's number for what a signal killed."""
    error: str
    seconds: float
    left: Sequence[int]
    """Processes that it left behind."""


def command(arguments: Sequence[object], folder: Path, *, signals: Sequence[tuple[float, int]] = ()) -> Ended:
    """Runs a command in `folder`, as a background job of a shell; sends it signals, each so many seconds after its
    beginning."""
    errors = folder / "stderr.txt"
    child = os.fork()
    if not child:
        code = 99
        try:
            os.setsid()
            os.chdir(folder)
            # Not SIGINT alone: what comes before the command has its handlers, or after it, is not its own.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            for path, number in (("stdout.txt", 1), (errors, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb"), write_through=True) for n in (1, 2))
            code = main([str(one) for one in arguments])
            atexit._run_exitfuncs()
        finally:
            os._exit(code)
    began = time.monotonic()
    for moment, number in signals:
        time.sleep(max(began + moment - time.monotonic(), 0.0))
        os.kill(child, number)  # a zombie at worst: it is waited for below
    sent = time.monotonic()
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if signals and time.monotonic() > sent + SOON:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    ended = time.monotonic()
    code = os.waitstatus_to_exitcode(status[1])
    return Ended(128 - code if code < 0 else code, errors.read_text(), ended - sent, _left(child))


def _left(session: int) -> list[int]:
    """Processes of a session that do not end by themselves within some seconds."""
    until = time.monotonic() + 5
    while True:
        alive = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, its_session, *_ = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(its_session) == session and state not in "ZX":
                alive.append(int(path.parent.name))
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.05)


@dataclass(frozen=True)
class Place:
    folder: Path
    drawn_set: Path


def tiny(drawn_set: Path) -> Study:
    """The quickstart's study in a few steps of narrow students."""
    shipped = load("studies/quickstart.py")
    assert shipped.teacher is not None

    def small(recipe: Recipe) -> Recipe:
        data = replace(recipe.data, path=str(drawn_set), batch_size=6, unlabelled_per_batch=0, in_memory=False)
        student = replace(recipe.student, width=4)  # type: ignore[call-arg]
        optim = replace(recipe.optim, steps=6)
        return replace(recipe, data=data, student=student, optim=optim, preflight=0, validate_every=3)

    return Study(
        teacher=small(shipped.teacher),
        alone=small(shipped.alone),
        distilled=small(shipped.distilled),
        seeds=1,
        arms=("label_smoothing",),
    )


@pytest.fixture(scope="module")
def place(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished study, and a recipe with its teacher."""
    folder = tmp_path_factory.mktemp("signals")
    plan = tiny(drawn_set)
    study(plan, folder / "study", console=QUIET)
    (folder / "mine.py").write_text(
        "import sys\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_signals import tiny\n"
        f"study = tiny(Path({str(drawn_set)!r}))\n"
    )
    teacher = TrainedTeacher(checkpoint=str(folder / "study" / "teacher"))
    recipe = replace(plan.distilled, teachers={"teacher": teacher}, preflight=1, validate_every=4)
    recipe = replace(recipe, data=replace(recipe.data, workers=1, views=2), optim=replace(recipe.optim, steps=12))
    (folder / "recipe.json").write_text(recipes.dump(recipe))
    return Place(folder, drawn_set)


def seconds_of(arguments: Sequence[object], folder: Path) -> float:
    """What the command takes, undisturbed."""
    began = time.monotonic()
    done = command(arguments, folder)
    assert done.code == 0, done.error
    assert done.left == []
    return time.monotonic() - began


def check_stopped(ended: Ended, number: int) -> bool:
    """Whether it was stopped: it ended as it should, or had finished already."""
    assert ended.left == []
    assert "Traceback" not in ended.error
    assert "Exception ignored" not in ended.error
    assert ended.code in (0, 128 + number), ended.error
    assert ended.seconds < SOON
    if ended.code:
        (line,) = [one for one in ended.error.splitlines() if one.startswith("videokd: stopped")]
        assert any(one in line for one in SAID), line
    return ended.code != 0


def moments(seconds: float, seed: int) -> list[tuple[float, int]]:
    """When to send what, earlier from turn to turn: a command may take less time than it took undisturbed."""
    drawn = random.Random(seed)
    turns = 2 * TIMES
    return [
        (drawn.uniform(0, seconds * (turns - turn) / turns), (signal.SIGINT, signal.SIGTERM)[turn % 2])
        for turn in range(turns)
    ]


def half_files(folder: Path) -> list[str]:
    """Files that are not whole, apart from those to resume from."""
    resumable = (".bin.partial", ".partial-check")
    found = [str(one) for one in folder.rglob("*partial*") if not one.name.endswith(resumable)]
    for one in folder.rglob("*.json"):
        json.loads(one.read_text())
    return found


RESUMED = {
    "train": (["train", "../recipe.json", "--out", "run", "--or-resume"], ["run/model.safetensors"]),
    "label": (["label", "../recipe.json", "--out", "stored", "--views", "4"], ["stored/shard-1-of-1.bin"]),
    "data check": (["data", "check", "LIST", "--workers", "2"], ["manifest.checked.jsonl", "manifest.checked.frames"]),
    "study": (
        ["study", "../mine.py", "--out", "out"],
        [f"out/{run}/model.safetensors" for run in ("teacher", "alone-seed0", "distilled-seed0")],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_command_that_is_stopped_again_and_again_ends_as_if_nothing_had_happened(
    name: str, place: Place, tmp_path: Path
) -> None:
    del tmp_path
    arguments, results = RESUMED[name]
    arguments = [str(place.drawn_set) if one == "LIST" else one for one in arguments]
    whole, parts = (place.folder / f"{name}-{one}" for one in ("whole", "parts"))
    whole.mkdir()
    parts.mkdir()
    seconds = seconds_of(arguments, whole)
    stops = 0
    for moment, number in moments(seconds, seed=len(name)):
        stopped = check_stopped(command(arguments, parts, signals=[(moment, number)]), number)
        assert half_files(parts) == []
        stops += stopped
        if all((parts / one).is_file() for one in results):
            if stops:
                break  # what is finished, `data check` refuses to do again
            shutil.rmtree(parts)
            parts.mkdir()
    else:
        assert command(arguments, parts).code == 0
    assert stops
    for one in results:
        assert (parts / one).read_bytes() == (whole / one).read_bytes(), one


_SHORT = ["--rounds", "2", "--turn-seconds", "0.01", "--warm-up-seconds", "0.1"]
_SHORT += ["--batch-size", "2", "--step-batch-size", "4"]
AGAIN = {
    "evaluate": (["evaluate", "../study/alone-seed0", "--out", "OUT"], ["evaluation.json", "predictions.parquet"]),
    "bench": (
        ["bench", "../study/distilled-seed0", "--out", "OUT", "--variants", "eager", "--clips", "4", *_SHORT],
        [],
    ),
    "preflight": (["preflight", "../recipe.json", "--batches", "1", "--out", "OUT"], []),
    "predict": (
        ["predict", "../study/alone-seed0", "VIDEO", "--timeline", "--plot", "OUT.png", "--out", "OUT.json"],
        [],
    ),
    "inside": (["inside", "../study", "--clips", "8"], []),
    "report": (["report", "../study", "--out", "OUT/report.html"], []),
    "data pack": (["data", "pack", "LIST", "--out", "OUT", "--format", "jpeg", "--workers", "2"], []),
    "data synth": (["data", "synth", "OUT", "--train", "24", "--val", "0", "--test", "0"], []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAIN)
def test_a_command_that_is_stopped_leaves_a_whole_result_or_none(name: str, place: Place) -> None:
    given, results = AGAIN[name]
    folder = place.folder / f"{name}-stopped"
    folder.mkdir()
    video = next((place.drawn_set.parent / "test").glob("*.mp4"))

    def spelled(out: str) -> list[str]:
        named = {"LIST": str(place.drawn_set), "VIDEO": str(video)}
        return [named.get(one, one.replace("OUT", out)) for one in given]

    seconds = seconds_of(spelled("whole"), folder)
    stops = 0
    for turn, (moment, number) in enumerate(moments(seconds, seed=len(name))):
        ended = command(spelled(f"out{turn}"), folder, signals=[(moment, number)])
        stops += check_stopped(ended, number)
        assert half_files(folder) == []
        there = [one for one in results if (folder / f"out{turn}" / one).is_file()]
        assert there in ([], results)
    assert stops


@pytest.mark.slow
def test_two_signals_in_a_row_end_a_command_without_a_traceback(place: Place) -> None:
    folder = place.folder / "twice"
    folder.mkdir()
    drawn = random.Random(0)
    for turn in range(2 * TIMES):
        moment, number = drawn.uniform(0, 1), (signal.SIGINT, signal.SIGTERM)[turn % 2]
        signals = [(moment, number), (moment + drawn.choice([0, 0.001, 0.02]), signal.SIGINT)]
        ended = command(["train", "../recipe.json", "--out", f"run{turn}"], folder, signals=signals)
        assert "Traceback" not in ended.error
        assert (ended.left, ended.code in (0, 130, 143)) == ([], True), ended.error
