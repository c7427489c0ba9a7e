"""What paired arms say, on made-up numbers: helped, did not help, hurt, a control as good."""

from typing import Any

import pytest

from videokd.report.paired import besides, difference, not_compared, paired, study_rows

ALONE = [0.50, 0.52, 0.54, 0.50]


def arms(**gains: list[float]) -> dict[str, list[float]]:
    """Scores by what the arms gain over the student alone."""
    return {"alone": ALONE} | {
        arm: [one + gain for one, gain in zip(ALONE, each, strict=True)] for arm, each in gains.items()
    }


def said(**gains: list[float]) -> str:
    return str(paired(arms(**gains), teacher=[0.8] * 4, folds=[1] * 4)["verdict"])


GAIN = [0.10, 0.11, 0.09, 0.10]
NONE = [0.01, -0.01, 0.02, -0.02]


@pytest.mark.parametrize(
    ("gains", "wanted", "unwanted"),
    [
        ({"distilled": GAIN}, ["Distillation helped: +10.0 points, 95 % interval +8.7 to +11.3."], ["not the teacher"]),
        ({"distilled": NONE}, ["Distillation did not help: +0.0 points"], ["helped"]),
        ({"distilled": [0.01, 0.05, -0.02, 0.03]}, ["Distillation was not shown to help: +1.8 points"], []),
        ({"distilled": [-one for one in GAIN]}, ["Distillation hurt: -10.0 points"], ["helped"]),
        (
            {"distilled": GAIN, "label_smoothing": NONE, "equal_compute": NONE, "shuffled_teacher": NONE},
            ["helped", "It is better than label smoothing (+10.0", "It is better than alone at equal compute (+10.0"],
            ["huffled", "not the teacher"],
        ),
        (
            {"distilled": GAIN, "label_smoothing": [0.10, 0.12, 0.10, 0.10]},
            ["Label smoothing reaches as far (distillation - this: -0.5 points", "the gain is not the teacher's."],
            ["better than"],
        ),
        (
            {"distilled": GAIN, "equal_compute": [0.05, 0.13, 0.08, 0.10]},
            ["It is not shown to be better than alone at equal compute (+1.0 points", "may not be the teacher's."],
            [],
        ),
        (
            {"distilled": GAIN, "untrained_teacher": GAIN, "shuffled_teacher": [0.12] * 4, "self_distilled": GAIN},
            [
                "An untrained teacher does as well (distillation - this: +0.0 points",
                "what helped is not what the teacher was trained for.",
                "A shuffled teacher does as well (distillation - this: -2.0 points",
                "Teaching itself does as well",
            ],
            [],
        ),
        (
            {"distilled": GAIN, "untrained_teacher": [0.04, 0.05, 0.04, 0.05]},
            ["An untrained teacher moves the student too, by +4.5 points", "so much is not the teacher's."],
            ["does as well"],
        ),
        (
            {"distilled": GAIN, "untrained_teacher": [0.05, 0.13, 0.08, 0.10]},
            ["Distillation is not shown to be better than with an untrained teacher (+1.0 points"],
            ["does as well", "moves the student"],
        ),
        # What is not shown to help is compared with nothing else.
        (
            {"distilled": [0.01, 0.05, -0.02, 0.03], "label_smoothing": NONE, "untrained_teacher": NONE},
            ["Distillation was not shown to help"],
            ["better than", "does as well"],
        ),
        # A control that helps where distillation does not.
        (
            {"distilled": NONE, "shuffled_teacher": GAIN},
            ["Distillation did not help", "A shuffled teacher moves the student too, by +10.0 points"],
            [],
        ),
    ],
)
def test_the_verdict_is_what_the_numbers_say(
    gains: dict[str, list[float]], wanted: list[str], unwanted: list[str]
) -> None:
    verdict = said(**gains)
    for words in wanted:
        assert words in verdict
    for words in unwanted:
        assert words not in verdict


def test_one_pair_has_no_interval_and_no_judgement() -> None:
    found = paired({"alone": [0.5], "distilled": [0.6], "label_smoothing": [0.6]}, teacher=[0.8], folds=[1])
    assert found["verdict"].startswith("One pair: +10.0 points for distillation; run more seeds")
    assert "teacher's" not in found["verdict"]
    assert found["differences"]["distilled"]["low"] is None
    assert found["gap_recovered"]["distilled"] == {"mean": pytest.approx(1 / 3), "low": None, "high": None}


def test_differences_by_hand() -> None:
    found = difference([0.6, 0.7, 0.4, 0.5], [0.5, 0.5, 0.5, 0.5], folds=[1, 1, 2, 2])
    # Mean .05; deviations .05 .15 -.15 -.05, variance (.0025 + .0225) * 2 / 3 = 1/60; t(3) = 3.1824.
    half = 3.1824463 * (1 / 60) ** 0.5 / 2
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    assert found["each"] == pytest.approx([0.1, 0.2, -0.1, 0.0])
    assert found["positive"] == 2
    # One fold gains, the other does not: the reader is to see that.
    assert found["folds"] == pytest.approx([0.15, -0.05])
    assert (
        "Fold by fold: +15.0, -5.0."
        in paired({"alone": [0.5] * 4, "distilled": [0.6, 0.7, 0.4, 0.5]}, teacher=[0.9] * 4, folds=[1, 1, 2, 2])[
            "verdict"
        ]
    )


def test_gap_recovered_of_pairs_with_teachers_of_their_own() -> None:
    top1 = {"alone": [0.4, 0.4, 0.6, 0.6], "distilled": [0.5, 0.5, 0.7, 0.7]}
    found = paired(top1, teacher=[0.6, 0.6, 0.8, 0.8], folds=[1, 1, 2, 2])["gap_recovered"]["distilled"]
    # Every pair gains .1 of its gap of .2, whatever the others' teachers.
    assert found == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    # With one teacher for all the gaps would be .3 and .1.
    assert paired(top1, teacher=[0.62] * 4, folds=[1, 1, 2, 2])["gap_recovered"]["distilled"]["low"] != found["low"]


def test_rows_of_the_table() -> None:
    scored = arms(distilled=GAIN)
    study: dict[str, Any] = paired(scored, teacher=[0.8] * 4, folds=[1] * 4)
    study["teacher"] = {"top1_each": [0.8]}
    study["arms"] = {
        arm: {"title": arm, "top1_each": each, "steps": 300, "seconds_per_step": 0.25} for arm, each in scored.items()
    }
    assert study_rows(study) == [
        ("teacher", "80.0", "", "", "", "", "", ""),
        ("alone", "51.5 ± 1.9", "", "", "", "", "300", "0.250"),
        ("distilled", "61.5 ± 1.7", "+10.0", "+8.7 to +11.3", "4 of 4", "35", "300", "0.250"),
    ]


def test_what_else_arms_differ_in_is_said_once_for_those_that_differ_alike() -> None:
    arms = {
        "alone": {"title": "student alone", "differs": []},
        "equal_compute": {"title": "alone at equal compute", "differs": ["optim.steps"]},
        "distilled": {"title": "student distilled", "differs": ["data.views", "data.unlabelled_per_batch"]},
        "shuffled_teacher": {"title": "shuffled teacher", "differs": ["data.views", "data.unlabelled_per_batch"]},
        "mine": {"title": "mine", "differs": ["optim.steps"]},
    }
    assert besides({"arms": arms}) == [
        "Not as for the student alone: data.views and data.unlabelled_per_batch of student distilled and "
        "shuffled teacher.",
        "Not as for the student alone: optim.steps of mine.",
    ]
    assert besides({"arms": {"alone": arms["alone"]}}) == []


def test_clips_that_are_not_compared_are_counted() -> None:
    assert not_compared({"not_compared": [0, 0]}) is None
    assert "up to 1 clip is not compared" in str(not_compared({"not_compared": [0, 1]}))
    assert "up to 1,200 clips are not compared" in str(not_compared({"not_compared": [1200, 1]}))
