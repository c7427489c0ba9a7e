"""Two results beside each other: verdicts, how often they are right, and what is not compared."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up_rounds import rounds

from videokd.bench.comparing import COLUMNS, Comparison, compare, comparison_rows
from videokd.bench.results import Measurement, Network, Results, Round

SETTING: dict[str, Any] = {
    "environment": {"cpu": {"model": "Processor A"}, "gpu": None, "packages": {"torch": "2.11.0"}},
    "device": "cpu",
    "clock": "cpu",
    "threads": 1,
    "list": "clips.csv",
}


def exact(*relative: float, calls: int = 2) -> list[Round]:
    """Rounds of so many yardsticks a call, by CPU time."""
    return [
        Round(calls=calls, wall=99, cpu=0.01 * calls * one, device=None, yardstick=0.01, waited=0.0) for one in relative
    ]


def measured(rounds: Sequence[Round] = (), *, clips: int = 8, **fields: Any) -> Measurement:
    return Measurement(party="student", stage="inference", variant="eager", clips=clips, rounds=rounds, **fields)


def results(*measurements: Measurement, **setting: Any) -> Results:
    return Results(subject="student.py", setting={**SETTING, **setting}, measurements=measurements)


def verdict(old: Sequence[Round], new: Sequence[Round], *, max_regress: float = 0.05) -> str:
    (row,) = compare(results(measured(old)), results(measured(new)), max_regress=max_regress).rows
    return row.verdict


STILL = exact(*[1.0] * 8)
RESTLESS = exact(0.5, 2.0, 0.6, 1.7, 0.9, 1.1, 0.8, 1.3)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (STILL, STILL, "same"),
        (STILL, exact(*[1.04] * 8), "same"),  # surely slower, and surely within 5 %
        (STILL, exact(*[1.06] * 8), "slower"),
        (STILL, exact(*[0.96] * 8), "same"),
        (STILL, exact(*[0.90] * 8), "faster"),
        (STILL, exact(1.02, 1.02, 1.02, 1.08, 1.08, 1.08, 1.09, 1.09), "slower"),  # surely slower, by 8 % at the median
        (STILL, RESTLESS, "can't tell"),
        (STILL, exact(0.8, 0.9, 0.9, 1.2, 1.2, 1.3, 1.4, 1.5), "can't tell"),  # by 20 %, if it is slower
        (STILL, exact(1.02, 1.02, 1.02, 1.03, 1.03, 1.08, 1.08, 1.08), "can't tell"),  # slower, but by how much?
        (STILL[:5], exact(*[1.5] * 8), "can't tell"),  # five rounds carry no interval
        (STILL[:6], exact(*[1.5] * 8), "slower"),
    ],
)
def test_verdict(old: list[Round], new: list[Round], wanted: str) -> None:
    assert verdict(old, new) == wanted


def test_what_is_let_pass_is_for_the_caller_to_say() -> None:
    assert verdict(STILL, exact(*[1.06] * 8), max_regress=0.1) == "same"
    assert verdict(STILL, exact(*[1.01] * 8), max_regress=0.0) == "slower"
    with pytest.raises(ValueError, match=r"at least 0 .* got -0\.1"):
        verdict(STILL, STILL, max_regress=-0.1)


def test_only_the_slower_one_regresses() -> None:
    old = results(measured(STILL), measured(STILL, clips=1))
    assert not compare(old, results(measured(exact(*[0.5] * 8)), measured(STILL, clips=1))).regressed
    found = compare(old, results(measured(STILL), measured(exact(*[2.0] * 20), clips=1)))
    assert found.regressed
    assert [(row.name, row.verdict) for row in found.rows] == [
        ("student · inference · eager · 8 clips", "same"),
        ("student · inference · eager · 1 clip", "slower"),
    ]


def test_seconds_and_ratio_match_hand_computed_values() -> None:
    # A yardstick of sixteen times its seconds is a machine of an eighth of its pace: calls take sixteen times as long,
    # of which eight are the machine's.
    old = exact(*[1.0] * 8)
    new = [replace(one, calls=1, cpu=0.16, yardstick=0.16) for one in old]
    (row,) = compare(results(measured(old)), results(measured(new))).rows
    assert row.old_seconds == pytest.approx(0.01)
    assert row.new_seconds == pytest.approx(0.16)
    assert row.ratio is not None
    assert row.ratio.value == pytest.approx(2)


def simulated(*, slower: float, noise: float, seed: int) -> Comparison:
    """Runs of four measurements at other hours, each of which drifts; one of them is planted to be slower."""
    rng = np.random.default_rng(seed)

    def run(slower: float, hour: float) -> Results:
        pace = hour * np.exp(np.cumsum(rng.normal(0, 0.03, 20)))
        factors = (slower, 1, 1, 1)
        each = [rounds(rng, slower=factor, noise=noise, pace=pace) for factor in factors]
        return results(*(measured(one, clips=2**number) for number, one in enumerate(each)))

    return compare(run(1, 1), run(slower, 1.4))


SEEDS = range(60)


@pytest.mark.parametrize("noise", [0.01, 0.02, 0.03])
def test_of_20_slow_downs_of_10_percent_19_are_found(noise: float) -> None:
    verdicts = [simulated(slower=1.1, noise=noise, seed=seed).rows[0].verdict for seed in SEEDS]
    assert verdicts.count("slower") >= 0.95 * len(SEEDS)


@pytest.mark.parametrize("noise", [0.01, 0.02, 0.04])
def test_of_20_comparisons_of_the_same_code_at_most_1_is_a_false_alarm(noise: float) -> None:
    alarms = sum(simulated(slower=1, noise=noise, seed=seed).regressed for seed in SEEDS)
    assert alarms <= 0.05 * len(SEEDS)


def test_at_much_noise_it_says_that_it_cannot_tell_rather_than_same() -> None:
    verdicts = [simulated(slower=1.1, noise=0.15, seed=seed).rows[0].verdict for seed in SEEDS]
    assert verdicts.count("same") <= 0.05 * len(SEEDS)
    assert verdicts.count("can't tell") > 0.5 * len(SEEDS)


def test_many_measurements_of_the_same_code_raise_no_more_alarms_than_one() -> None:
    """Twenty at a time, at a limit that leaves it to the intervals alone."""
    rng = np.random.default_rng(5)
    alarms, times = 0, 20
    for _ in range(times):
        old, new = (results(*(measured(rounds(rng), clips=clips) for clips in range(1, 21))) for _ in range(2))
        alarms += compare(old, new, max_regress=0).regressed
    assert alarms <= 0.1 * times


def test_the_level_of_many_intervals_is_that_of_all_together() -> None:
    several = results(*(measured(STILL, clips=clips) for clips in (1, 2, 4)), measured(clips=8, error="out of memory"))
    assert compare(several, several).level ** 3 == pytest.approx(0.95)


def test_figures_that_are_gone_regress_and_new_ones_do_not() -> None:
    failed = measured(error="out of memory")
    old, new = results(measured(STILL)), results(failed)
    broken, mended = compare(old, new), compare(new, old)
    assert broken.regressed
    assert (broken.rows[0].verdict, broken.rows[0].note) == ("broken", "out of memory")
    assert not mended.regressed
    assert (mended.rows[0].verdict, mended.rows[0].note) == ("mended", "before: out of memory")
    assert compare(new, new).rows[0].verdict == "no figure"
    assert not compare(new, new).regressed


def test_what_only_one_has_is_listed() -> None:
    old, new = results(measured(STILL, clips=1), measured(STILL)), results(measured(STILL), measured(STILL, clips=64))
    found = compare(old, new)
    assert [(row.name.split(" · ")[-1], row.verdict) for row in found.rows] == [
        ("1 clip", "only old"),
        ("8 clips", "same"),
        ("64 clips", "only new"),
    ]
    assert not found.regressed


ELSEWHERE = {
    "device": ({"device": "cuda"}, "device: 'cpu' before and 'cuda' now"),
    "threads": ({"threads": 8}, "threads: 1 before and 8 now"),
    "processor": (
        {"environment": {"cpu": {"model": "Processor B"}, "gpu": None}},
        "processor: 'Processor A' before and 'Processor B' now",
    ),
    "graphics": (
        {"environment": {"cpu": {"model": "Processor A"}, "gpu": {"names": ["GPU C"]}}},
        "GPU: 'none' before and 'GPU C' now",
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_another_machine_is_refused_unless_asked_for(case: str) -> None:
    setting, said = ELSEWHERE[case]
    old, new = results(measured(STILL)), results(measured(STILL), **setting)
    with pytest.raises(ValueError, match=said):
        compare(old, new)
    assert compare(old, new, across_machines=True).differs == [f"{said}."]


def test_another_clock_is_refused_always() -> None:
    old, new = results(measured(STILL)), results(measured(STILL), clock="wall")
    with pytest.raises(ValueError, match=r"'cpu' before and 'wall' now"):
        compare(old, new, across_machines=True)


def test_other_work_is_named() -> None:
    seen = Network(party="student", architecture="X3D", input="8 frames", params=None, macs=None, param_bytes=None)
    old = replace(results(measured(STILL)), networks=[seen])
    new = replace(results(measured(STILL), list="other.csv"), networks=[replace(seen, input="16 frames")])
    assert compare(old, new).differs == [
        "list: 'clips.csv' before and 'other.csv' now.",
        "the student's network: 'X3D, 8 frames' before and 'X3D, 16 frames' now.",
    ]


def test_another_way_to_give_out_memory_is_named() -> None:
    tuned = {**SETTING["environment"], "variables": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
    found = compare(results(measured(STILL)), results(measured(STILL), environment=tuned))
    assert found.differs == ["$GLIBC_TUNABLES: '' before and 'glibc.malloc.hugetlb=1' now."]


def test_measurements_of_one_name_are_refused() -> None:
    twice = results(measured(STILL), measured(STILL))
    with pytest.raises(ValueError, match=r"of one name: \['student · inference · eager · 8 clips'\]"):
        compare(twice, twice)


def test_rows_of_the_table_match_hand_written_ones() -> None:
    old = results(measured(STILL), measured(STILL, clips=1), measured(STILL, clips=2))
    new = results(
        measured(exact(*[1.25] * 20), is_stable=False),
        measured(clips=1, error="out of memory"),
        measured(exact(*[1.25] * 4), clips=2),
    )
    rows = comparison_rows(compare(old, new))
    name = "student · inference · eager"
    unstable = "was still becoming faster when it was timed"
    few = "4 rounds, at least 7 are needed"
    wall = "4.95e+04"
    assert rows == [
        (f"{name} · 8 clips", "process CPU", "10", "12.5", "1.250", "1.250 to 1.250", wall, wall, "slower", unstable),
        (f"{name} · 1 clip", "process CPU", "10", "-", "-", "-", wall, "-", "broken", "out of memory"),
        (f"{name} · 2 clips", "process CPU", "10", "12.5", "1.250", "1.250 to 1.250", wall, wall, "can't tell", few),
    ]
    assert {len(row) for row in rows} == {len(COLUMNS)}


def test_without_a_yardstick_nothing_is_said_of_the_code() -> None:
    def loaded(seconds: float) -> Measurement:
        each = [Round(calls=2, wall=2 * seconds, cpu=0.001, device=None, yardstick=None)] * 20
        return Measurement(party="", stage="load", variant="4 workers", clips=8, rounds=each)

    found = compare(results(loaded(0.1)), results(loaded(0.2)))
    (row,) = found.rows
    assert (row.verdict, row.old_seconds, row.new_seconds) == ("can't tell", 0.1, 0.2)  # by the wall clock
    assert "other processes worked too" in row.note
    assert not found.regressed
