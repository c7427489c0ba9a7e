import json
from dataclasses import replace
from pathlib import Path

import made_up
import pytest

from videokd.recipe import dump, load
from videokd.report.subject import of_runs, of_study, subjects


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.study(tmp_path_factory.mktemp("study") / "s", arms=("alone", "distilled"), seeds=2, clips=36)


def test_a_study_has_its_teacher_first_and_its_runs_paired(study: Path) -> None:
    found = of_study(study)
    assert list(found.arms) == ["teacher", "alone", "distilled"]
    assert (found.baseline, found.main) == ("alone", "distilled")
    pairs = found.pairs("alone", "distilled")
    assert [(one.path.name, other.path.name) for one, other in pairs] == [
        ("alone-seed0", "distilled-seed0"),
        ("alone-seed1", "distilled-seed1"),
    ]
    assert found.arms["alone"].scores == json.loads((study / "study.json").read_text())["arms"]["alone"]["top1_each"]
    assert found.arms["teacher"].fact("macs") == 290_000_000


def test_runs_become_the_arms_of_a_study(study: Path) -> None:
    said = json.loads((study / "study.json").read_text())
    found = of_runs([study / name for arm in ("alone", "distilled") for name in said["arms"][arm]["runs"]])
    assert list(found.arms) == ["teacher", "alone", "distilled"]  # the teacher is that of the recipe
    assert [run.pair for run in found.arms["alone"].runs] == [(0, 0), (0, 1)]
    # What a study says of the same runs, said again from their files.
    for key in ("mean", "low", "high", "each", "positive"):
        assert found.compared["differences"]["distilled"][key] == pytest.approx(said["differences"]["distilled"][key])
    assert found.compared["gap_recovered"]["distilled"] == pytest.approx(said["gap_recovered"]["distilled"])
    assert found.compared["against"]["distilled"] == pytest.approx(said["against"]["distilled"])
    assert found.compared["per_class"]["grow"] == pytest.approx(said["per_class"]["grow"])


def test_a_single_run_says_its_score_with_its_interval(study: Path) -> None:
    found = of_runs([study / "alone-seed1"])
    assert list(found.arms) == ["alone"]
    assert (found.baseline, found.main, found.shown) == (None, None, ["alone"])
    top1 = found.evaluation["top1"]
    low, high = found.evaluation["intervals"]["top1"]
    assert found.compared["verdict"] == (
        f"Top-1 {100 * top1:.1f} % on 36 clips of split 'test', 95 % interval {100 * low:.1f} to {100 * high:.1f}."
    )


def test_the_same_recipe_twice_is_no_second_seed(study: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    said = made_up.predictions("alone", 7, clips=36)
    made_up.run(again, load(study / "alone-seed0" / "recipe.json"), said)
    found = of_runs([study / "alone-seed0", again])
    assert list(found.arms) == ["alone", "again"]


def test_runs_on_other_clips_are_not_compared(study: Path, tmp_path: Path) -> None:
    other = tmp_path / "distilled-seed0"
    recipe = load(study / "distilled-seed0" / "recipe.json")
    made_up.run(other, recipe, made_up.predictions("distilled", 0, clips=24))
    found = of_runs([study / "alone-seed0", other])
    assert found.compared["differences"] == {}
    assert "distilled is not compared: they were scored on different list" in found.compared["notes"][0]


def test_runs_that_could_be_paired_in_two_ways_say_so(study: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    made_up.run(twin, load(study / "alone-seed0" / "recipe.json"), made_up.predictions("alone", 3, clips=36))
    found = of_runs([study / "alone-seed0", twin, study / "distilled-seed0"])
    assert found.compared["differences"] == {}
    assert "could both be paired with" in found.compared["notes"][0]


def test_studies_are_apart_and_runs_together(study: Path) -> None:
    found = subjects([study, study / "alone-seed0", study / "alone-seed1"])
    assert [one.is_study for one in found] == [True, False]
    assert [run.path.name for run in found[1].runs] == ["alone-seed0", "alone-seed1"]


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds neither a run"):
        subjects([tmp_path])
    with pytest.raises(ValueError, match="name at least one folder"):
        subjects([])
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study\.json is not JSON"):
        subjects([tmp_path])


def test_a_user_s_arms_keep_their_names(tmp_path: Path) -> None:
    folder = made_up.study(tmp_path / "s", arms=("alone", "my way"), seeds=1, clips=24, inside=False)
    found = of_study(folder)
    assert found.main == "my way"
    assert found.looks["my way"].title == "my way"
    # A colour that no other arm has.
    assert len({look.light for look in found.looks.values()}) == 3


def test_one_teacher_for_each_fold(tmp_path: Path) -> None:
    folder = made_up.study(tmp_path / "s", arms=("alone", "distilled"), seeds=2, clips=24)
    said = json.loads((folder / "study.json").read_text())
    said["teacher"] = {"runs": ["teacher", "teacher"], "top1_each": [0.9, 0.8]}
    for arm in said["arms"].values():
        arm["pairs"] = [[0, 5], [1, 5]]
    (folder / "study.json").write_text(json.dumps(said))
    found = of_study(folder)
    assert found.arms["teacher"].scores == [0.9, 0.8]
    assert [one.pair for one, _ in found.pairs("alone", "distilled")] == [(0, 5), (1, 5)]


def test_a_recipe_s_seed_alone_makes_no_arm(study: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-seed9"
    recipe = load(study / "alone-seed0" / "recipe.json")
    changed = replace(recipe, seed=9, optim=replace(recipe.optim, lr=0.5))
    made_up.run(other, changed, made_up.predictions("alone", 9, clips=36))
    assert (other / "recipe.json").read_text() == dump(changed)
    found = of_runs([study / "alone-seed0", study / "alone-seed1", other])
    assert {name: len(arm.runs) for name, arm in found.arms.items()} == {"alone": 2, "other": 1}
