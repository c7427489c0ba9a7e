import json
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from videokd import recipe as recipes
from videokd.clips.mixing import Mix
from videokd.distill import check_terms
from videokd.losses import CrossEntropy, FrameFeatures
from videokd.models import ModelConfig
from videokd.optim import SGD, AdamW, Optimizer
from videokd.recipe import Data, Recipe, configs_folder, dump, load
from videokd.weighting import RandomWeights

CONFIGS = sorted(path for path in configs_folder().rglob("*.py") if path.parent.name != "studies")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(configs_folder()).as_posix())
def test_every_recipe_loads_and_comes_back_from_json_equal(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    (tmp_path / "recipe.json").write_text(dump(recipe))
    again = load(tmp_path / "recipe.json")
    assert again == recipe
    assert dump(again) == dump(recipe)
    check_terms(recipe.objective, list(recipe.teachers))
    assert isinstance(recipe.student, ModelConfig)


def test_the_quickstarts_arms_differ_in_what_they_say_they_do() -> None:
    alone, distilled = load("quickstart/alone.py"), load("quickstart/distilled.py")
    assert replace(alone, teachers=distilled.teachers, objective=distilled.objective) == distilled
    few = load("quickstart/distilled_unlabelled.py")
    assert replace(few, data=replace(few.data, unlabelled_per_batch=0)) == distilled
    assert set(distilled.objective) == {"hard", "soft", "frames", "difference", "affinity"}


def test_fields_are_overridden_from_the_command_line() -> None:
    recipe = tyro.cli(
        Recipe,
        default=load("quickstart/distilled.py"),
        args=["--optim.lr", "1e-3", "--objective.soft.loss.temperature", "3", "--student.input.sampling.stride", "4"],
        config=(tyro.conf.AvoidSubcommands,),
    )
    assert recipe.optim.lr == 1e-3
    assert recipe.objective["soft"].loss.temperature == 3  # type: ignore[attr-defined]
    assert recipe.student.input.sampling.stride == 4  # type: ignore[union-attr]
    assert isinstance(recipe.objective["frames"].loss, FrameFeatures)


@pytest.mark.parametrize("optim", [AdamW(steps=5), SGD(steps=5)])
def test_either_optimiser_is_overridden_field_by_field_and_reloads(optim: Optimizer, tmp_path: Path) -> None:
    args = ["--optim.schedule", "step", "--optim.milestones", "0.5", "0.9", "--optim.layer-decay", "0.75"]
    args += ["--optim.freeze", "stem", "stages.0", "--optim.ema", "0.99", "--data.class-balance", "0.5"]
    args += ["--optim.betas", "0.9", "0.98"] if isinstance(optim, AdamW) else ["--optim.momentum", "0.8"]
    recipe = tyro.cli(
        Recipe,
        default=replace(load("quickstart/alone.py"), optim=optim),
        args=args,
        config=(tyro.conf.AvoidSubcommands,),
    )
    own = {"betas": (0.9, 0.98)} if isinstance(optim, AdamW) else {"momentum": 0.8}
    assert recipe.optim == replace(
        optim, schedule="step", milestones=(0.5, 0.9), layer_decay=0.75, freeze=("stem", "stages.0"), ema=0.99, **own
    )
    assert recipe.data.class_balance == 0.5
    (tmp_path / "recipe.json").write_text(dump(recipe))
    assert load(tmp_path / "recipe.json") == recipe


def test_a_recipe_written_before_a_field_was_there_loads(tmp_path: Path) -> None:
    recipe = load("quickstart/distilled.py")
    plain = json.loads(dump(recipe))
    first = {"type", "steps", "lr", "weight_decay", "warmup", "clip_norm"}
    plain["optim"] = {name: value for name, value in plain["optim"].items() if name in first}
    del plain["data"]["class_balance"]
    (tmp_path / "recipe.json").write_text(json.dumps(plain))
    assert load(tmp_path / "recipe.json") == recipe


def test_the_links_of_a_chain_fit() -> None:
    kd, assistant, last = (
        load(name) for name in ("methods/kd.py", "chains/assistant.py", "chains/student_of_assistant.py")
    )
    assert replace(assistant, student=kd.student) == replace(last, teachers=kd.teachers) == kd
    assert last.teachers["teacher"].checkpoint == "runs/chain/assistant"  # type: ignore[union-attr]
    assert "--out runs/chain/assistant\n" in (configs_folder() / "chains/assistant.py").read_text()
    alone, again = load("quickstart/alone.py"), load("chains/born_again.py")
    assert replace(again, teachers={}, objective=alone.objective, seed=alone.seed) == alone
    assert again.seed != alone.seed  # or the teacher's initial weights would be its own
    assert "--out runs/chain/alone\n" in (configs_folder() / "chains/born_again.py").read_text()


def test_an_unknown_recipe_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no recipe at nowhere\.py; .*: .*quickstart/alone\.py"):
        load("nowhere.py")


def test_a_file_without_a_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("recipe = 3\n")
    with pytest.raises(ValueError, match="does not define `recipe = Recipe"):
        load(tmp_path / "empty.py")


def test_a_recipe_file_can_bring_its_own_loss(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass, replace\n"
        "from videokd.distill import Term\n"
        "from videokd.losses import CrossEntropy\n"
        "from videokd.recipe import load\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(CrossEntropy):\n"
        "    strength: float = 2.0\n"
        "recipe = replace(load('quickstart/alone.py'), objective={'mine': Term(loss=Mine(strength=3.0))})\n"
    )
    recipe = load(file)
    (tmp_path / "recipe.json").write_text(dump(recipe))
    assert load(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val_split": "train"}, "both 'train'"),
        ({"val_split": "test"}, "neither trains nor selects"),
        ({"train_split": "test"}, "neither trains nor selects"),
        ({"in_memory": True, "workers": 2}, "set workers to 0"),
        ({"class_balance": 1.5}, r"class_balance lies in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_data_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Data(path="x", **wrong)  # type: ignore[arg-type]


def test_impossible_runs_are_refused() -> None:
    recipe = load("quickstart/distilled.py")
    with pytest.raises(ValueError, match="at least 1"):
        replace(recipe, validate_every=0)
    with pytest.raises(ValueError, match="called 'student'"):
        replace(recipe, teachers={"student": recipe.teachers["teacher"]})
    with pytest.raises(ValueError, match="would remember endless views"):
        replace(recipe, data=replace(recipe.data, views=None))
    with pytest.raises(ValueError, match="would remember clips that are mixed anew"):
        replace(recipe, data=replace(recipe.data, mix=Mix(mixup=0.2)))
    with pytest.raises(ValueError, match="seeds are not negative"):
        replace(recipe, seed=-1)
    for data in (replace(recipe.data, batch_size=30), replace(recipe.data, unlabelled_per_batch=6)):
        with pytest.raises(ValueError, match=r"optim\.accumulate=4 has to divide data\.batch_size=3"):
            replace(recipe, data=data, optim=replace(recipe.optim, accumulate=4))


def test_a_misspelt_field_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    head = "from dataclasses import replace\nfrom videokd.optim import AdamW\nfrom videokd.recipe import load\n"
    for line in ("optim = AdamW(stepz=3)", "recipe = replace(load('quickstart/alone.py').optim, stepz=3)"):
        file.write_text(head + line)
        with pytest.raises(ValueError, match=r"mine\.py:\d+: .*unexpected keyword argument 'stepz'"):
            load(file)
    file.write_text(head + "optim = AdamW(stepz=3)")
    with pytest.raises(ValueError, match=r"did you mean 'steps'\?"):
        load(file)


def test_an_anchored_recipe_is_good_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipes.anchored(load("quickstart/distilled.py"))
    assert recipe.data.path == str(tmp_path / "runs/quickstart/data/manifest.jsonl")
    assert recipe.teachers["teacher"].checkpoint == str(tmp_path / "runs/quickstart/teacher")
    assert recipes.anchored(recipe) == recipe


def test_shipped_recipes_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.load("quickstart/teacher.py").optim.steps == 700


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "student=replace(alone.student, input=replace(alone.student.input, sampling=2))",
            r"student\.input\.sampling = 2",
        ),
        (
            "objective={'hard': CrossEntropy()}",
            r"objective\['hard'\] is a loss: write Term",
        ),
        (
            "objective={'frames': Term(loss=FrameFeatures(distance='cosinus'))}",
            r"objective\.frames\.loss\.distance = 'cosi",
        ),
        ("student=TimmVideo(temporal='shft')", r"student\.temporal = 'shft'"),
        ("data=replace(alone.data, on_bad_video='ignore')", r"data\.on_bad_video = 'ignore'"),
        ("teachers={'mine': Own(target='a:b', input=alone.student.input)}", r"teachers = \{'mine': Own\("),
        ("data=replace(alone.data, batch_size='8')", r":9: '<' not supported"),
        ("sede=3", r":9: .*'sede'"),
        ("seed=1 +", r":9: SyntaxError"),
        ("seed=nothing", r":9: NameError: name 'nothing'"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_field_or_line(written: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from videokd.distill import Term\n"
        "from videokd.losses import CrossEntropy, FrameFeatures\n"
        "from videokd.models import Own, TimmVideo\n"
        "from videokd.recipe import load\n\n"
        "alone = load('quickstart/alone.py')\n\n"
        f"recipe = replace(alone, {written})\n"
    )
    with pytest.raises(ValueError, match=said):
        load(file)


def test_a_loss_in_place_of_a_term_and_a_class_in_place_of_a_weighting_are_told() -> None:
    kd = load("methods/kd.py")
    with pytest.raises(ValueError, match=r"objective\['hard'\] is a loss: write Term\(loss=CrossEntropy"):
        replace(kd, objective={"hard": CrossEntropy()})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"weighting: write RandomWeights\(\)"):
        replace(kd, weighting=RandomWeights)  # type: ignore[arg-type]
