from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from videokd.bench import derived
from videokd.bench.results import Ceiling, Difference, Measurement, Network, Results, Round, Stage

STUDENT = Network(
    party="student",
    architecture="s",
    input="",
    params=100,
    macs=1_000,
    param_bytes=400,
    activation_bytes=50,
    clip_seconds=2.0,
)
CEILINGS = [
    Ceiling(what="matmul fp32", per_second=1e5, unit="MAC"),
    Ceiling(what="matmul bf16", per_second=4e5, unit="MAC"),
    Ceiling(what="memory copy", per_second=1e4, unit="byte"),
]


def timed(
    party: str, stage: Stage, clips: int, walls: Sequence[float], *, variant: str = "eager", **more: Any
) -> Measurement:
    """Rounds of one call, whose CPU seconds are twice the wall's and whose GPU seconds are half."""
    rounds = [Round(calls=1, wall=wall, cpu=2 * wall, device=wall / 2, yardstick=1.0, waited=wall) for wall in walls]
    return Measurement(
        party=party, stage=stage, variant=variant, clips=clips, rounds=rounds, latencies=list(walls), **more
    )


def made(measurements: Sequence[Measurement], **setting: Any) -> Results:
    return Results(subject="s", setting=setting, networks=[STUDENT], measurements=list(measurements), ceilings=CEILINGS)


def test_a_failure_has_no_summary_and_its_row_says_why() -> None:
    failed = Measurement(party="big", stage="inference", variant="eager", clips=8, error="out of memory")
    results = made([failed, timed("student", "inference", 2, [0.5])])
    assert list(derived.summaries(results)) == ["student · inference · eager · 2 clips"]
    rows = derived.speed_rows(results)
    assert rows[0] == ("big · inference · eager · 8 clips", *["not measured: out of memory"] * 13)
    assert {len(row) for row in rows} == {len(derived.SPEED_COLUMNS)}


def test_the_ratio_is_that_of_the_rounds_clip_by_clip() -> None:
    # The machine is half as fast in the second round, for both: 4 s / 1 s = 8 s / 2 s = 4.
    student, teacher = timed("student", "inference", 1, [1.0, 2.0, 1.0]), timed("t", "inference", 1, [4.0, 8.0, 4.0])
    found = derived.speed_up(made([student, teacher]), student, teacher)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((4.0, 4.0, 4.0))
    # Twice the clips in the same time.
    found = derived.speed_up(made([]), timed("student", "inference", 2, [1.0, 2.0, 1.0]), teacher)
    assert found is not None
    assert found.value == pytest.approx(8.0)


def test_there_is_no_ratio_without_rounds_of_both() -> None:
    one = timed("student", "inference", 1, [1.0, 1.0])
    failed = Measurement(party="t", stage="inference", variant="eager", clips=1, error="out of memory")
    for other in (failed, timed("t", "inference", 1, [1.0]), timed("t", "load", 1, [1.0, 1.0])):
        assert derived.speed_up(made([]), one, other) is None


def test_a_network_is_compared_with_the_student_under_the_same_setting() -> None:
    student, teacher = timed("student", "inference", 4, [1.0]), timed("t", "inference", 4, [1.0])
    others = [timed("student", "inference", 2, [1.0]), timed("student", "inference", 4, [1.0], variant="bf16")]
    results = made([*others, student, teacher])
    assert derived.reference_of(results, teacher) is student
    assert derived.reference_of(results, student) is None
    assert derived.reference_of(made([*others, teacher]), teacher) is None


def test_the_first_network_stands_for_a_student_that_is_not_there() -> None:
    first, second = timed("x3d_s", "inference", 4, [1.0]), timed("movinet", "inference", 4, [1.0])
    results = replace(made([timed("", "load", 4, [1.0]), first, second]), networks=[])
    assert derived.parties(results) == ["x3d_s", "movinet"]
    assert derived.reference_of(results, second) is first
    assert derived.reference(replace(results, networks=[replace(STUDENT, party="movinet")])) == "movinet"
    late = replace(made([second, timed("student", "inference", 4, [1.0])]), networks=[])
    assert derived.parties(late) == ["student", "movinet"]
    assert derived.reference(replace(made([]), networks=[])) == ""


def test_the_clock_is_the_wall_s_where_others_work_too() -> None:
    on_cpu, on_gpu = made([], clock="cpu"), made([], clock="device")
    inference, load = timed("student", "inference", 1, [1.0]), timed("", "load", 1, [1.0])
    undeviced = Measurement(
        party="",
        stage="decode",
        variant="av",
        clips=1,
        rounds=[Round(calls=1, wall=1, cpu=1, device=None, yardstick=1)],
    )
    assert derived.clock_of(on_cpu, inference) == "cpu"
    assert derived.clock_of(on_gpu, inference) == "device"
    assert derived.clock_of(on_cpu, load) == "cpu"  # as in comparisons
    with_workers = replace(load, rounds=[replace(one, yardstick=None) for one in load.rounds])
    assert derived.clock_of(on_cpu, with_workers) == "wall"
    assert derived.clock_of(on_gpu, undeviced) == "wall"


def test_the_limit_is_the_slower_of_products_and_bytes() -> None:
    # 1000 MAC at 1e5 a second are 10 ms. Bytes: 400 of weights over 1 clip + 50 = 450, at 1e4 a second 45 ms.
    alone = derived.limit(STUDENT, timed("student", "inference", 1, [1.0]), CEILINGS)
    assert alone is not None
    assert (alone.seconds, alone.by) == (pytest.approx(0.045), "memory")
    assert alone.intensity == pytest.approx(1000 / 450)
    # Of 16 clips the weights are 25 bytes each: 75 bytes, 7.5 ms; the products take longer.
    many = derived.limit(STUDENT, timed("student", "inference", 16, [1.0]), CEILINGS)
    assert many is not None
    assert (many.seconds, many.by) == (pytest.approx(0.01), "arithmetic")
    # In bf16 half the bytes, 3.75 ms, and 1000 / 4e5 = 2.5 ms.
    half = derived.limit(STUDENT, timed("student", "inference", 16, [1.0], variant="bf16, compile"), CEILINGS)
    assert half is not None
    assert (half.seconds, half.by) == (pytest.approx(0.00375), "memory")


def test_no_limit_where_no_ceiling_was_measured() -> None:
    for variant, ceilings in (("int8", CEILINGS), ("eager", [])):
        one = timed("student", "inference", 1, [1.0], variant=variant)
        assert derived.limit(STUDENT, one, ceilings) is None
    one = timed("student", "inference", 1, [1.0], variant="int8")
    assert derived.share_of_limit(made([one]), derived.summaries(made([one])), one) is None


def test_share_of_the_limit_and_real_time_are_worked_out_by_hand() -> None:
    # 16 clips in 0.8 s are 20 clips/s: 50 ms a clip, of which 10 ms are needed; each shows 2 s of video.
    one, load = timed("student", "inference", 16, [0.8]), timed("student", "load", 16, [0.8])
    results = made([one, load])
    found = derived.summaries(results)
    assert derived.share_of_limit(results, found, one) == pytest.approx(0.2)
    assert derived.real_time(results, found, one) == pytest.approx(40.0)
    assert derived.share_of_limit(results, found, load) is None
    assert derived.real_time(results, found, load) is None


def test_stages_are_those_of_the_same_way() -> None:
    end = timed("student", "end to end", 4, [0.4], variant="bf16")  # 100 ms a clip
    results = made(
        [
            timed("", "decode", 4, [0.04], variant="av"),  # part of loading
            timed("", "load", 4, [0.04], variant="shards"),
            timed("", "load", 4, [0.12], variant="av"),  # 30 ms
            timed("", "copy", 1, [0.5], variant="pinned"),
            timed("", "copy", 8, [0.16], variant="pinned"),  # 20 ms; 8 is nearer to 4 than 1 is
            timed("student", "inference", 4, [4.0]),
            timed("student", "inference", 4, [0.16], variant="bf16"),  # 40 ms
            timed("other", "inference", 4, [4.0], variant="bf16"),
            end,
        ],
        format="av",
    )
    found = derived.stages(results, derived.summaries(results), end)
    assert found is not None
    assert found.parts == pytest.approx({"load": 0.03, "copy": 0.02, "inference": 0.04})
    assert found.seconds == pytest.approx(0.1)
    assert found.explained == pytest.approx(0.9)
    assert found.longest == "inference"
    assert derived.stage_rows(results) == [
        ("student · end to end · bf16 · 4 clips", "100", "load 30.0, copy 20.0, inference 40.0", "90")
    ]


def test_a_way_with_workers_is_made_of_their_loading() -> None:
    end = timed("student", "end to end", 4, [0.4], variant="bf16, 2 workers")
    parts = [
        timed("", "load", 4, [0.8], variant="this process"),
        timed("", "load", 4, [0.36], variant="2 workers"),
        timed("student", "inference", 4, [4.0]),
        timed("student", "inference", 4, [0.2], variant="bf16"),
    ]
    results = made([*parts, end])
    found = derived.stages(results, derived.summaries(results), end)
    assert found is not None
    assert found.parts == pytest.approx({"load": 0.09, "inference": 0.05})
    assert (found.longest, found.explained) == ("load", pytest.approx(1.4))
    alone = replace(end, variant="bf16")
    results = made([*parts, alone])
    found = derived.stages(results, derived.summaries(results), alone)
    assert found is not None
    assert found.parts["load"] == pytest.approx(0.2)


def test_decoding_and_transforming_stand_in_for_loading() -> None:
    end = timed("student", "end to end", 1, [1.0])
    inference = timed("student", "inference", 1, [0.5])
    results = made([timed("", "decode", 1, [0.2]), timed("", "transform", 1, [0.1]), inference, end])
    found = derived.stages(results, derived.summaries(results), end)
    assert found is not None
    assert found.parts == pytest.approx({"decode": 0.2, "transform": 0.1, "inference": 0.5})
    load = timed("", "load", 1, [0.2])
    of_others = [timed("student", "inference", 8, [0.5]), timed("student", "inference", 1, [0.5], variant="bf16")]
    for lacking in ([inference, end], [load, end], [load, *of_others, end]):
        assert derived.stages(made(lacking), derived.summaries(made(lacking)), end) is None


def test_rows_hold_numbers_worked_out_by_hand() -> None:
    walls = [0.2, 0.2, 0.2]
    student = timed("student", "inference", 2, walls, peak_device_bytes=3 * 2**20, is_stable=False)
    teacher = timed(
        "t",
        "inference",
        2,
        [0.5, 0.5, 0.5],
        resident_bytes=2**30,
        difference=Difference(clips=10, largest=1.0, relative=0.1, top1_agreement=0.9),
    )
    first, second = derived.speed_rows(made([student, teacher]))
    # 10 clips/s. Of the limit: 400 / 2 + 50 = 250 bytes at 1e4 a second are 25 ms, of 100 ms.
    calls = [f"not measured: fewer than {fewest} calls were timed" for fewest in (20, 100)]
    # 2 s of CPU for each second that threads waited for one.
    assert first == (
        *("student · inference · eager · 2 clips", "10.0", "200", *calls, "0.0, warming up", "200", "wall"),
        *("not measured: it is what others are compared with", "67", "3 MiB", "not measured: it is the eager network"),
        *("25.0", "20.0"),
    )
    assert second == (
        *("t · inference · eager · 2 clips", "4.00", "500", *calls, "0.0", "500", "wall"),
        *("2.50 (2.50 to 2.50)", "67", "1,024 MiB", "90.0", "not measured: the network's arithmetic is not known"),
        "not measured: how much video a clip spans is not known without a list",
    )


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = {
        "slow best": (1.0, 0.9),
        "beaten": (2.0, 0.6),
        "middle": (3.0, 0.8),
        "fast": (9.0, 0.5),
        "tie": (3.0, 0.7),
        "no better, slower": (2.5, 0.8),
    }
    assert derived.front(points) == ["slow best", "middle", "fast"]


def test_the_fastest_is_over_variants_and_clips() -> None:
    fast = timed("student", "inference", 8, [0.1], variant="bf16")
    results = made([timed("student", "inference", 1, [0.1]), fast, timed("student", "end to end", 8, [0.01])])
    assert derived.fastest(results, derived.summaries(results), "student", "inference") is fast
    assert derived.fastest(results, derived.summaries(results), "nobody", "inference") is None


def test_networks_stand_with_what_a_video_costs() -> None:
    half = Network(party="t", architecture="T", input="in", params=None, macs=None, param_bytes=None)
    costly = replace(STUDENT, params=1_500_000, macs=2_000_000_000, views=30, accuracy=0.5)
    results = replace(made([]), networks=[costly, half])
    assert derived.network_rows(results) == [
        ("student", "s", "", *["not measured: one clip a call was not timed"] * 2, "1.50", "2.00", "60.0", "50.0"),
        (
            *("t", "T", "in"),
            *["not measured: it was exported for calls of more clips"] * 2,
            *["not measured: an exported file does not say"] * 3,
            "not measured: no test scores (videokd evaluate RUN)",
        ),
    ]
    assert len(derived.NETWORK_COLUMNS) == 9


def test_the_latency_of_one_clip_stands_with_its_network() -> None:
    failed = Measurement(party="t", stage="inference", variant="eager", clips=1, error="out of memory")
    results = made([timed("student", "inference", 8, [1.0]), timed("student", "inference", 1, [0.02] * 20), failed])
    other = replace(STUDENT, party="t")
    rows = derived.network_rows(replace(results, networks=[STUDENT, other]))
    assert [row[3:5] for row in rows] == [("20.0", "20.0"), ("not measured: out of memory",) * 2]


def test_reasons_become_numbers_under_the_table() -> None:
    rows = [("a", "1.0", "not measured: x"), ("b", "not measured: y", "not measured: x")]
    short, notes = derived.footnotes(rows)
    assert short == [("a", "1.0", "(1)"), ("b", "(2)", "(1)")]
    assert notes == ["(1) not measured: x", "(2) not measured: y"]


@pytest.mark.parametrize(
    ("stage", "cpu", "waited", "threads", "yardstick", "share"),
    [
        ("inference", 1.0, 0.25, 2, 1.0, 0.8),  # counted by the system: 1 of 1.25 s
        ("load", 0.1, 0.0, 2, 1.0, 1.0),  # it waits for the disk, not for a CPU
        ("inference", 0.6, None, 1, 1.0, 0.6),
        ("inference", 1.2, None, 2, 1.0, 0.6),
        ("transform", 1.1, None, 1, 1.0, 1.0),
        ("load", 0.1, None, 1, 1.0, None),  # the disk, or the CPU: not known
        ("end to end", 0.1, None, 1, 1.0, None),
        ("load", 0.1, 0.0, 1, None, None),  # other processes worked
    ],
)
def test_the_share_of_the_cpu(
    stage: Stage, cpu: float, waited: float | None, threads: int, yardstick: float | None, share: float | None
) -> None:
    rounds = [Round(calls=1, wall=1.0, cpu=cpu, device=None, yardstick=yardstick, waited=waited)] * 2
    one = Measurement(party="student", stage=stage, variant="eager", clips=1, rounds=rounds)
    assert derived.cpu_share(made([one], threads=threads), one) == (None if share is None else pytest.approx(share))


def test_too_little_of_the_cpu_is_a_warning() -> None:
    def had(share: float, clips: int) -> Measurement:
        rounds = [Round(calls=1, wall=1.0, cpu=share, device=None, yardstick=1.0, waited=1 - share)]
        return Measurement(party="student", stage="inference", variant="eager", clips=clips, rounds=rounds)

    assert derived.starved(made([had(0.8, 1), had(0.9, 2)])) == []
    (said,) = derived.starved(made([had(0.7, 1), had(0.3, 2)]))
    assert said.startswith(
        "Warning: this process had 30 % of the CPU time that it wanted in student · inference · eager · 2 clips, and "
        "less than 80 % in 1 more: other work was on the machine"
    )
