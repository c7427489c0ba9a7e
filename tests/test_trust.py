"""Opening somebody's run, in whatever command, imports nothing that its JSON names; `--trust` does."""

import dataclasses
import importlib
import inspect
import json
import pkgutil
import shutil
import sys
from abc import ABC
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

import videokd
from videokd import arms
from videokd import recipe as recipes
from videokd.cli import main
from videokd.clips.lists import read_manifest
from videokd.config import code_of, from_plain, import_file, to_plain
from videokd.config_types import CONFIG_TYPES
from videokd.contracts import InputSpec
from videokd.losses import Loss
from videokd.losses.connectors import Connector
from videokd.models import CompactShift, ModelConfig, Own, load_model, save_model
from videokd.models.layouts import Tap
from videokd.optim import Optimizer
from videokd.recipe import Recipe, TrainedTeacher, load
from videokd.weighting import ClipWeights, Weighting

EVIL = """
from dataclasses import dataclass
from pathlib import Path

import torch

from videokd.losses import CrossEntropy

Path(__file__).with_name("ran").touch()


@dataclass(frozen=True, kw_only=True)
class Evil(CrossEntropy):
    pass


class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 2, 3, stride=(1, 8, 8), padding=1)
        self.head = torch.nn.Linear(2, classes)

    def forward(self, video):
        return self.head(self.conv(video).mean(dim=(2, 3, 4)))


def make(classes=12):
    return Net(classes)
"""
MODULE = "an_evil_module"
OWN = Own(
    target=f"{MODULE}:make",
    input=InputSpec(frames=4, size=16),
    taps={"frames": Tap(module="conv", layout="b c t h w")},
)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Python file that leaves the file `ran` beside it when it is imported; it lies in the current folder."""
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(EVIL)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder / f"{MODULE}.py"
    for name in set(sys.modules) - before:
        if MODULE in name:
            del sys.modules[name]


@pytest.fixture(scope="module")
def good(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `taught` (a teacher) and `run` (its student), which are evaluated."""
    folder = tmp_path_factory.mktemp("good")
    classes = read_manifest(drawn_set).classes
    distilled = load("quickstart/distilled.py")
    student = CompactShift(width=4, input=replace(distilled.student.input, frames=4, size=16))  # type: ignore[type-var]
    recipe = replace(
        distilled,
        data=replace(distilled.data, path=str(drawn_set), val_split=None, batch_size=12),
        student=student,
        teachers={"teacher": TrainedTeacher(checkpoint=str(folder / "taught"))},
        optim=replace(distilled.optim, steps=1),
        preflight=0,
    )
    for name in ("taught", "run"):
        torch.manual_seed(0)
        save_model(student.build(classes), folder / name)
        plain = recipe if name == "run" else replace(recipe, teachers={}, objective={"hard": recipe.objective["hard"]})
        (folder / name / "recipe.json").write_text(recipes.dump(plain))
        assert main(["evaluate", str(folder / name)]) == 0
    return folder


@pytest.fixture
def runs(good: Path, tmp_path: Path) -> Path:
    """A copy of `good`, to be spoilt."""
    shutil.copytree(good, tmp_path / "runs")
    taught = {"checkpoint": str(tmp_path / "runs/taught")}
    change(tmp_path / "runs/run/recipe.json", lambda plain: plain["teachers"]["teacher"].update(taught))
    return tmp_path / "runs"


def change(path: Path, how: Any) -> None:
    """Changes a JSON file in place."""
    plain = json.loads(path.read_text())
    how(plain)
    path.write_text(json.dumps(plain))


def unfinished(run: Path) -> Path:
    """A run that `train --resume` takes up."""
    for name in ("model.json", "model.safetensors"):
        (run / name).unlink()
    (run / "metrics.jsonl").write_text("")
    return run


def study(runs: Path) -> Path:
    """A study as JSON."""
    distilled = json.loads((runs / "run/recipe.json").read_text())
    alone = {**distilled, "teachers": {}, "objective": {"hard": distilled["objective"]["hard"]}}
    plain = {
        "type": "videokd.arms:Study",
        "alone": alone,
        "distilled": distilled,
        "trained_teacher": str(runs / "taught"),
        "arms": ["alone"],
        "seeds": 1,
    }
    (runs / "study.json").write_text(json.dumps(plain))
    return runs / "study.json"


def command(name: str, runs: Path) -> list[str]:
    """A command line that reads the run in `runs`."""
    run = str(runs / "run")
    match name:
        case "train --resume":
            return ["train", "--resume", str(unfinished(runs / "run"))]
        case "train":
            return ["train", f"{run}/recipe.json", "--out", str(runs / "new")]
        case "label":
            return ["label", f"{run}/recipe.json", "--out", str(runs / "stored"), "--views", "1"]
        case "preflight":
            return ["preflight", f"{run}/recipe.json", "--out", str(runs / "new"), "--batches", "1"]
        case "taps":
            return ["taps", f"{run}/recipe.json"]
        case "study":
            return ["study", str(study(runs)), "--out", str(runs / "studied")]
        case "bench":
            quick = ["--rounds", "2", "--turn-seconds", "0.001", "--warm-up-seconds", "0", "--variants", "eager"]
            return ["bench", run, "--out", str(runs / "bench"), "--parts", "inference", *quick]
        case "predict":
            return ["predict", run, "--list", plain_list(runs), "--split", "test"]
        case "evaluate":
            return ["evaluate", run, "--out", str(runs / "scores")]
        case "inside":
            return ["inside", run, "--clips", "8"]
        case "report":
            return ["report", run, "--out", str(runs / "report.html")]
        case _:
            return ["compare", run, str(runs / "taught")]


def plain_list(runs: Path) -> str:
    return str(json.loads((runs / "run/recipe.json").read_text())["data"]["path"])


COMMANDS = (
    *("train --resume", "train", "label", "preflight", "taps", "study", "bench", "predict", "evaluate", "inside"),
    *("report", "compare"),
)


def spoilt(runs: Path, evil: Path, how: str) -> None:
    """Makes the run's JSON name the evil code."""
    recipe, model = runs / "run/recipe.json", runs / "run/model.json"
    own = to_plain(OWN)
    match how:
        case "recipe":
            change(recipe, lambda plain: plain.update(type=f"{evil}:Evil"))
        case "loss":
            change(recipe, lambda plain: plain["objective"]["hard"]["loss"].update(type=f"{evil}:Evil"))
        case "module":
            change(recipe, lambda plain: plain["objective"]["hard"]["loss"].update(type=f"{MODULE}:Evil"))
        case "file module":
            kind = f"videokd_recipe_file:{evil}:Evil"
            change(recipe, lambda plain: plain["objective"]["hard"]["loss"].update(type=kind))
        case "connector":
            kind = {"type": f"{evil}:Evil"}
            change(recipe, lambda plain: plain["objective"]["frames"]["loss"].update(connector=kind))
        case "list":
            change(recipe, lambda plain: plain["data"]["augment"].update(crop=[[{"type": f"{MODULE}:Evil"}]]))
        case "student":
            change(recipe, lambda plain: plain.update(student=own))
            change(model, lambda plain: plain.update(model=own))
        case "teacher":
            trusted = {"trust": [MODULE, "/"]}
            change(recipe, lambda plain: plain["teachers"]["teacher"].update(trusted))
            change(runs / "taught/model.json", lambda plain: plain.update(model=own))
        case "published":
            kind = {"type": "videokd.recipe:PublishedTeacher", "model": own, "remember": False}
            change(recipe, lambda plain: plain["teachers"].update(teacher=kind))
        case "cli":
            change(recipe, lambda plain: plain["objective"]["hard"]["loss"].update(type="videokd.cli.__main__:x"))
            change(model, lambda plain: plain.update(model={"type": "videokd.cli.__main__:x"}))
        case "os":
            change(recipe, lambda plain: plain["objective"]["hard"]["loss"].update(type="os:system"))
            change(model, lambda plain: plain.update(model={"type": "subprocess:Popen", "args": ["touch", "ran"]}))
        case "model":
            change(model, lambda plain: plain.update(model={"type": f"{evil}:Evil"}))
        case _:
            raise AssertionError(how)


ATTACKS = (
    *("recipe", "loss", "module", "file module", "connector", "list", "student", "teacher", "published", "cli"),
    *("os", "model"),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_imports_what_a_run_names(
    name: str, runs: Path, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(name, runs)
    kept = runs.with_name("kept")
    runs.rename(kept)
    for how in ATTACKS:
        if how in ("model", "student", "cli", "os") and not (kept / "run/model.json").is_file():
            continue
        shutil.copytree(kept, runs)
        spoilt(runs, evil, how)
        if name == "study":
            study(runs)
        before = set(sys.modules)
        code = main(arguments)
        said = capsys.readouterr()
        assert not evil.with_name("ran").exists(), how
        assert not {MODULE, "videokd.cli.__main__"} & (set(sys.modules) - before), how
        assert "Traceback" not in said.err
        # What reads nothing of it but data does its work, and all else says what to pass.
        if code:
            assert said.err.count("\n") == 1, said.err
            if how not in ("cli", "list") and (name, how) != ("inside", "published"):
                assert "--trust" in said.err, (how, said.err)
        shutil.rmtree(runs)


@pytest.mark.parametrize("how", ["file", "module"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_what_is_trusted(name: str, how: str, runs: Path, evil: Path) -> None:
    kind = f"{evil}:Evil" if how == "file" else f"{MODULE}:Evil"
    change(runs / "run/recipe.json", lambda plain: plain["objective"]["hard"]["loss"].update(type=kind))
    trust = ["--trust", str(evil) if how == "file" else MODULE]
    arguments = command(name, runs)
    if name in ("evaluate", "predict", "report", "inside"):
        # They read the model alone.
        save_model(OWN.build(json.loads((runs / "run/model.json").read_text())["classes"]), runs / "run")
        evil.with_name("ran").unlink()
        del sys.modules[MODULE]
        trust = ["--trust", MODULE]
    assert main([*arguments, *trust]) == 0
    if name != "report":  # which looks at videos of pairs alone
        assert evil.with_name("ran").exists()


RECIPE = """
from dataclasses import dataclass, replace

from videokd.losses import CrossEntropy
from videokd.recipe import load


@dataclass(frozen=True, kw_only=True)
class Mine(CrossEntropy):
    pass


shipped = load("quickstart/alone.py")
hard = replace(shipped.objective["hard"], loss=Mine())
recipe = replace(
    shipped,
    data=replace(shipped.data, path=LIST, val_split=None, batch_size=12),
    student=replace(shipped.student, width=4, input=replace(shipped.student.input, frames=4, size=16)),
    objective={"hard": hard},
    optim=replace(shipped.optim, steps=1),
    preflight=0,
)
"""


def test_a_run_of_ones_own_recipe_file_is_resumed_by_the_file_or_by_trust(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "my recipe.py", tmp_path / "run"
    file.write_text(RECIPE.replace("LIST", repr(str(drawn_set))))
    assert main(["train", str(file), "--out", str(run)]) == 0
    unfinished(run)
    assert main(["train", str(file), "--out", str(run), "--or-resume"]) == 0
    unfinished(run)
    assert main(["train", str(file), "--out", str(run)]) == 1
    resume = f"videokd train --resume {run} --trust '{file}'"
    assert resume in capsys.readouterr().err
    # In another process, which has not run the file.
    monkeypatch.delitem(sys.modules, f"videokd_recipe_file:{file}")
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 1
    said = capsys.readouterr().err
    assert f"the type '{file}:Mine' is not part of videokd" in said
    assert f"--trust '{file}'" in said
    assert main(["train", "--resume", str(run), "--trust", str(file)]) == 0


def test_what_a_recipe_of_others_trusts_counts_for_nothing(runs: Path, evil: Path) -> None:
    spoilt(runs, evil, "teacher")
    with pytest.raises(ValueError, match=r"TrainedTeacher uses '/'"):
        load(runs / "run/recipe.json", trust=[MODULE])
    change(runs / "run/recipe.json", lambda plain: plain["teachers"]["teacher"].update(trust=[]))
    assert load(runs / "run/recipe.json", trust=[MODULE]).teachers["teacher"].trust == (MODULE,)  # type: ignore[union-attr]
    assert not evil.with_name("ran").exists()


def test_a_module_that_is_imported_already_is_not_trusted_for_that(evil: Path) -> None:
    importlib.import_module(MODULE)
    with pytest.raises(ValueError, match=f"add --trust {MODULE} "):
        from_plain({"type": f"{MODULE}:Evil"}, trust=[f"{MODULE}.deeper", "an_evil"])
    assert from_plain({"type": f"{MODULE}:Evil"}, trust=[MODULE]).__class__.__name__ == "Evil"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("videokd.cli.__main__:x", "is not a configuration class of videokd"),
        ("videokd.bench.benchmark:Plan", "is not a configuration class of videokd"),  # a dataclass
        ("videokd.recipe:Path", "is not a configuration class of videokd"),
        ("videokd.losses:SoftTargets", "is not a configuration class of videokd"),  # that of another module
        ("videokd.losses.loss:Loss", "is not a configuration class of videokd"),  # none that can be made
        ("videokd.contracts:InputSpec.x", "a type is written as"),
        ("SoftTargets", "a type is written as"),
        ("", "a type is written as"),
        ("..videokd.recipe:Data", "a type is written as"),
        (None, "a type is written as"),
        (["os:system"], "a type is written as"),
        ("evil\n.py:C", "is no module and no file"),
        ("os:system", "add --trust os "),
        ("a b/c.py:C", "a type|--trust '.*/a b/c.py'"),
    ],
)
def test_only_listed_classes_of_the_package_can_be_named(address: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain({"type": address}, trust=["videokd", "videokd.cli"])


def test_every_configuration_class_is_listed_under_a_name_of_its_own() -> None:
    names = [name for many in CONFIG_TYPES.values() for name in many]
    assert len(names) == len(set(names))
    for module in pkgutil.walk_packages(videokd.__path__, "videokd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: set[type] = set()
    for root in (Recipe, arms.Study, *(subclass(Loss, Connector, ModelConfig, Optimizer, Weighting, ClipWeights))):
        reach(root, found)
    wanted = {f"{one.__module__}:{one.__name__}" for one in found}
    assert {f"{module}:{name}" for module, many in CONFIG_TYPES.items() for name in many} == wanted


def subclass(*kinds: type) -> Iterator[type]:
    """All classes of the package that are of these kinds and can be made."""
    for kind in kinds:
        for one in kind.__subclasses__():
            if one.__module__.startswith("videokd."):
                yield from subclass(one)
                if not inspect.isabstract(one) and ABC not in one.__bases__ and not one.__name__.startswith("_"):
                    yield one


def reach(kind: Any, found: set[type]) -> None:
    """Adds to `found` the dataclasses that a field of `kind` can hold."""
    for inner in get_args(kind):
        reach(inner, found)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind) or kind in found:
        return
    if not inspect.isabstract(kind) and ABC not in kind.__bases__:
        found.add(kind)
    for hint in get_type_hints(kind).values():
        reach(hint, found)


def test_code_of_a_configuration_is_what_its_json_needs(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RECIPE.replace("LIST", "'list.csv'"))
    recipe = replace(
        import_file(file).recipe,
        teachers={"a": TrainedTeacher(checkpoint="x", trust=("b.c",))},
        student=OWN,
    )
    assert code_of(recipe) == {str(file), "b.c", MODULE}
    plain = json.loads(recipes.dump(recipe))
    assert from_plain(plain, trust=code_of(recipe)) == recipe
    assert code_of(load("quickstart/distilled.py")) == set()


DEEP = "[" * 100_000 + "]" * 100_000
NOT_RUNS = {
    "deep": DEEP,
    "deep object": '{"data":' * 5000 + "1" + "}" * 5000,
    "text": '"hello"',
    "list": "[1, 2]",
    "null": "null",
    "number": "1" * 5000,
    "empty": "",
    "torn": '{"type": "videokd.recipe:Recipe", "data"',
    "bytes": b"\xff\xfe\x00{",
}
WRONG = {
    "huge": {"seed": 10**100},
    "data is a list": {"data": [1]},
    "path is a number": {"data": {"type": "videokd.recipe:Data", "path": 5}},
    "path is a list": {"data": {"type": "videokd.recipe:Data", "path": ["a", "b"]}},
    "split is an object": {"data": {"type": "videokd.recipe:Data", "path": "a", "train_split": {"a": 1}}},
    "teachers is a list": {"teachers": [1]},
    "teacher is text": {"teachers": {"teacher": "x"}},
    "checkpoint is a number": {"teachers": {"teacher": {"type": "videokd.recipe:TrainedTeacher", "checkpoint": 5}}},
    "objective is text": {"objective": "x"},
    "machine is null": {"machine": None},
    "seed is text": {"seed": "x"},
    "student is a loss": {"student": {"type": "videokd.losses.logits:SoftTargets"}},
}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "study"])
def test_a_damaged_file_of_a_run_is_an_error_in_a_line(
    name: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(name, runs)
    for file in ("recipe.json", "model.json", "evaluation.json", "summary.json", "metrics.jsonl", "environment.json"):
        path = runs / "run" / file
        kept = path.read_bytes() if path.is_file() else None
        for how, text in NOT_RUNS.items():
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            check_one_line(main(arguments), capsys, f"{file}: {how}")
        for how, wrong in WRONG.items() if file == "recipe.json" and kept is not None else ():
            path.write_text(json.dumps(json.loads(kept) | wrong))
            check_one_line(main(arguments), capsys, f"{file}: {how}")
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
        for made in ("new", "stored"):
            shutil.rmtree(runs / made, ignore_errors=True)


def check_one_line(code: int, capsys: pytest.CaptureFixture[str], how: str) -> None:
    said = capsys.readouterr().err
    assert "Traceback" not in said, how
    lines = [line for line in said.splitlines() if not line.startswith("videokd: note:")]
    assert code == 0 or (len(lines) == 1 and lines[0].startswith("videokd: error:")), (how, said)


def test_a_run_that_names_itself_as_its_teacher_ends(runs: Path) -> None:
    change(runs / "run/recipe.json", lambda plain: plain["teachers"]["teacher"].update(checkpoint=str(runs / "run")))
    assert main(["evaluate", str(runs / "run"), "--out", str(runs / "scores")]) == 0


def test_a_model_whose_sizes_make_no_sense_is_an_error(runs: Path) -> None:
    for width in (-1, 10**12, "x", None, 1.5, 2**70):
        change(runs / "run/model.json", lambda plain: plain["model"].update(width=width))  # noqa: B023
        with pytest.raises(ValueError, match=r"model\.json"):
            load_model(runs / "run")
