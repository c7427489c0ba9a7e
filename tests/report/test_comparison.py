import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from videokd.evaluate import Evaluation
from videokd.predictions import Predictions
from videokd.recipe import dump, load
from videokd.report.comparison import arms, trios, verdict, write_evaluation
from videokd.report.pictures import _counts, draw_all
from videokd.report.tables import COLUMNS, arm_rows, gain_lines, markdown_table
from videokd.run_files import read_evaluation


def evaluation(top1: float, *, clips: int = 20, agrees: int = 10, params: int = 1000) -> Evaluation:
    """A made-up score in which the first `agrees` clips are predicted as class 0, the others as class 1."""
    numbers = {
        "top1": top1,
        "temporal": {"filmed": top1, "shuffled": top1 / 2},
        "per_class": {name: {"clips": 10, "accuracy": top1} for name in ("a", "b")},
        "mean_class_accuracy": top1,
        "confusion": [[8, 2], [3, 7]],
        "classes": ["a", "b"],
        "clips": clips,
        "unlabelled": 0,
        "skipped": ["x.mp4: broken"],
        "list": "list.jsonl",
        "split": "test",
        "params": params,
        "macs": 1000 * params,
    }
    ids = tuple(map(str, range(clips)))
    logits = torch.tensor([[0.0, 1.0] if number >= agrees else [1.0, 0.0] for number in range(clips)])
    label = torch.zeros(clips, dtype=torch.long)
    said = Predictions(ids=ids, groups=ids, paths=ids, label=label, logits=logits, classes=("a", "b"))
    return Evaluation(numbers, said)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Path]]:
    """A teacher, two students alone and two distilled: .9, (.5, .6), (.8, .84)."""
    teacher_recipe, alone, distilled = (load(f"quickstart/{name}.py") for name in ("teacher", "alone", "distilled"))
    source = replace(distilled.teachers["teacher"], checkpoint=str(tmp_path / "teacher"))
    distilled = replace(distilled, teachers={"teacher": source})
    made = {
        "teacher": [(teacher_recipe, evaluation(0.9, params=9000))],
        "alone": [(replace(alone, seed=k), evaluation(top1, agrees=6)) for k, top1 in enumerate((0.5, 0.6))],
        "distilled": [(replace(distilled, seed=k), evaluation(top1, agrees=9)) for k, top1 in enumerate((0.8, 0.84))],
    }
    folders: dict[str, list[Path]] = {}
    for arm, found in made.items():
        for number, (recipe, scored) in enumerate(found):
            folder = tmp_path / (arm if arm == "teacher" else f"{arm}{number}")
            folder.mkdir()
            (folder / "recipe.json").write_text(dump(recipe))
            rows = [{"step": step, "val_top1": scored.numbers["top1"] * step / 800} for step in (400, 800)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            write_evaluation(folder, scored)
            folders.setdefault(arm, []).append(folder)
    return folders


def report(runs: dict[str, list[Path]]) -> dict[str, Any]:
    return arms(runs["teacher"][0], runs["alone"], runs["distilled"])


def test_arms_match_numbers_computed_by_hand(runs: dict[str, list[Path]]) -> None:
    found = report(runs)
    assert found["arms"]["alone"]["top1_mean"] == pytest.approx(0.55)
    assert found["arms"]["alone"]["top1_sd"] == pytest.approx(0.1 / 2**0.5)
    assert found["arms"]["teacher"]["top1_sd"] is None
    # The teacher calls the first 10 of 20 clips class 0, the student alone 6 of them: 16 agree.
    assert found["arms"]["alone"]["agreement_with_teacher"] == pytest.approx(16 / 20)
    assert found["arms"]["distilled"]["agreement_with_teacher"] == pytest.approx(19 / 20)
    # Differences .30 and .24: mean .27, standard error .03.
    assert found["paired_difference"]["mean"] == pytest.approx(0.27)
    assert found["paired_difference"]["se"] == pytest.approx(0.03)
    assert found["gap_recovered"]["mean"] == pytest.approx(0.27 / 0.35)
    # t(1) = 12.706: 27 -+ 38.1 points. Two seeds show little.
    assert found["verdict"] == "Distillation was not shown to help: +27.0 points, 95 % interval -11.1 to +65.1."
    assert found["arms"]["distilled"]["skipped"] == 2


def test_a_paired_run_is_found_by_its_recipe(runs: dict[str, list[Path]]) -> None:
    every = [*runs["distilled"], *runs["alone"], *runs["teacher"]]
    ((teacher, alone, distilled),) = trios(every)
    assert teacher == runs["teacher"][0]
    assert (alone, distilled) == (runs["alone"], runs["distilled"])
    assert trios(runs["alone"]) == []


def test_runs_of_other_settings_are_not_paired(runs: dict[str, list[Path]]) -> None:
    every = [*runs["distilled"], *runs["alone"]]
    wider = load(runs["alone"][1] / "recipe.json")
    wider = replace(wider, student=replace(wider.student, width=8))  # type: ignore[call-arg]
    (runs["alone"][1] / "recipe.json").write_text(dump(wider))
    ((_, alone, distilled),) = trios(every)
    assert (alone, distilled) == (runs["alone"][:1], runs["distilled"][:1])


def test_where_the_metrics_went_keeps_no_pairs_apart(runs: dict[str, list[Path]]) -> None:
    tracked = replace(load(runs["distilled"][1] / "recipe.json"), track=("wandb",))
    (runs["distilled"][1] / "recipe.json").write_text(dump(tracked))
    assert len(trios([*runs["distilled"], *runs["alone"]])) == 1


def test_two_candidates_for_a_pair_are_refused(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "recipe.json").write_text((runs["alone"][0] / "recipe.json").read_text())
    with pytest.raises(ValueError, match="could both be paired with"):
        trios([*runs["distilled"], *runs["alone"], twin])


def test_confusion_counts_follow_the_names_and_not_the_numbers() -> None:
    assert _counts(evaluation(0.5).numbers, ["b", "a"]).tolist() == [[7, 3], [2, 8]]


@pytest.mark.parametrize(
    ("differences", "gap", "said"),
    [
        # Mean .10, standard error .01, t(2) = 4.303.
        ([0.08268, 0.1, 0.11732], 0.2, "Distillation helped: +10.0 points, 95 % interval +5.7 to +14.3."),
        # Two standard errors from zero are not enough for three seeds.
        ([0.0, 0.02, 0.04], 0.2, "Distillation was not shown to help: +2.0 points, 95 % interval -3.0 to +7.0."),
        ([-0.08268, -0.1, -0.11732], 0.2, "Distillation hurt: -10.0 points"),
        ([0.1], 0.2, "One pair: +10.0 points for distillation; run more seeds"),
        ([0.01, 0.02], 0.05, "The teacher is 5.0 points above the student alone: too little"),
        ([0.0, 0.0], 0.2, "Distillation did not help"),
        # Half a point at most.
        ([0.001, 0.003, 0.002], 0.2, "Distillation did not help: +0.2 points, 95 % interval -0.0 to +0.4."),
        ([0.01, 0.02], -0.1, "The teacher is 10.0 points below the student alone: train a better one first."),
    ],
)
def test_the_verdict_says_what_the_numbers_say(differences: list[float], gap: float, said: str) -> None:
    assert said in verdict(differences, gap=gap)


def test_a_run_without_scores_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"make it with: videokd evaluate {tmp_path}"):
        read_evaluation(tmp_path)


def test_runs_scored_on_other_clips_are_refused(runs: dict[str, list[Path]]) -> None:
    write_evaluation(runs["alone"][0], evaluation(0.5, clips=19))
    with pytest.raises(ValueError, match="they were scored on different clips"):
        report(runs)


def test_tables_print_every_arm_and_hide_a_ratio_to_nothing(runs: dict[str, list[Path]]) -> None:
    text = markdown_table(COLUMNS, arm_rows(report(runs)))
    assert "| student distilled | 82.0 ± 2.8 | 41.0 | 95.0 | 1,000 | 1.00 |" in text
    assert "77 % (95 % interval" in gain_lines(report(runs))[1]
    write_evaluation(runs["teacher"][0], evaluation(0.6))
    assert "not given" in gain_lines(report(runs))[1]


def test_every_plot_is_drawn(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    paths = draw_all(report(runs), runs, tmp_path / "figures", class_order=("b", "a"))
    assert [path.name for path in paths] == [
        "accuracy.png",
        "learning_curves.png",
        "accuracy_over_macs.png",
        "confusion.png",
        "shuffled.png",
    ]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000


def test_scores_of_other_views_are_refused(runs: dict[str, list[Path]]) -> None:
    other = evaluation(0.5)
    views = {"temporal": 10, "spatial": 3, "average": "probabilities"}
    write_evaluation(runs["alone"][0], Evaluation({**other.numbers, "views": views}, other.predictions))
    one = evaluation(0.6)
    single = {"temporal": 1, "spatial": 1, "average": "probabilities"}
    write_evaluation(runs["alone"][1], Evaluation({**one.numbers, "views": single}, one.predictions))
    with pytest.raises(ValueError, match="they were scored on different views"):
        report(runs)
