"""How contenders are timed, on stand-ins: who has a turn when, and what happens to those that fail."""

import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from videokd.bench.contenders import Contender, Patience, Yardstick, measure
from videokd.bench.results import Difference, Measurement
from videokd.bench.statistics import ratio, seconds_a_call

CPU = torch.device("cpu")
QUICK = Patience(rounds=5, turn_seconds=0.002, warm_up_seconds=0.2)


def spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def contender(variant: str, call: Callable[[], object], **more: object) -> Contender:
    return Contender(party="student", stage="inference", variant=variant, clips=2, make=lambda: call, **more)  # type: ignore[arg-type]


def run(*contenders: Contender, patience: Patience = QUICK) -> list[Measurement]:
    return measure(contenders, device=CPU, patience=patience, yardstick=lambda: None)


def test_every_contender_has_a_turn_before_any_has_its_next() -> None:
    turns: list[str] = []

    def called(name: str) -> None:
        turns.append(name)
        spin(0.004)  # longer than a turn: one call each

    found = run(*(contender(name, lambda name=name: called(name)) for name in "abc"))  # type: ignore[misc]
    rounds = turns[-15:]
    assert [Counter(rounds[first : first + 3]) for first in range(0, 15, 3)] == [Counter("abc")] * 5
    assert len({tuple(rounds[first : first + 3]) for first in range(0, 15, 3)}) > 1  # in changing order
    assert [len(one.rounds) for one in found] == [5, 5, 5]
    assert [one.variant for one in found] == ["a", "b", "c"]
    assert all(timed.calls == 1 for one in found for timed in one.rounds)


def test_what_a_later_warm_up_undoes_is_made_good_before_the_rounds() -> None:
    compiled = False

    def first() -> None:
        nonlocal compiled
        spin(0.001 if compiled else 0.05)
        compiled = True

    def exports() -> Callable[[], object]:
        nonlocal compiled
        compiled = False
        return lambda: spin(0.001)

    undoing = Contender(party="student", stage="inference", variant="onnx", clips=2, make=exports)
    (timed, _) = run(contender("compile", first), undoing)
    assert max(seconds_a_call(timed.rounds, "cpu")) < 0.02


def test_twice_the_work_takes_twice_the_time() -> None:
    one, other = run(contender("one", lambda: spin(0.003)), contender("other", lambda: spin(0.006)))
    assert ratio(list(seconds_a_call(other.rounds, "cpu")), list(seconds_a_call(one.rounds, "cpu"))).value == (
        pytest.approx(2, rel=0.1)
    )
    assert min(one.latencies) >= 0.003
    assert min(other.latencies) >= 0.006


def test_a_turn_has_as_many_calls_as_fill_it() -> None:
    (found,) = run(contender("short", lambda: spin(0.001)), patience=Patience(rounds=2, turn_seconds=0.02))
    assert all(4 <= one.calls <= 20 for one in found.rounds)
    assert len(found.latencies) == sum(one.calls for one in found.rounds)


def test_the_first_call_is_apart_with_what_it_takes_to_make_it() -> None:
    calls = 0

    def make() -> Callable[[], object]:
        spin(0.05)  # compiling

        def call() -> None:
            nonlocal calls
            calls += 1
            spin(0.001 if calls > 1 else 0.03)

        return call

    (found,) = run(Contender(party="", stage="load", variant="compiled", clips=1, make=make))
    assert found.first_call is not None
    assert found.first_call >= 0.08
    assert min(found.latencies) < 0.01
    assert found.warm_up >= 6
    assert calls == found.warm_up + 3 + sum(one.calls for one in found.rounds)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (ValueError("this network\nand more"), "this network"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_one_that_fails_says_why_and_the_others_go_on(error: Exception, said: str) -> None:
    def fails() -> None:
        raise error

    broken, fine = run(contender("broken", fails), contender("fine", lambda: spin(0.001)))
    assert broken.error == said
    assert broken.rounds == ()
    assert fine.error is None
    assert len(fine.rounds) == 5


def test_one_that_fails_in_its_turn_has_no_figures_and_the_others_go_on() -> None:
    calls = 0

    def fails_late() -> None:
        nonlocal calls
        calls += 1
        spin(0.004)
        if calls > 9:  # warmed up by then
            raise ValueError("broken.mp4: decoding fails after 3 frames")

    late, fine = run(contender("late", fails_late), contender("fine", lambda: spin(0.001)))
    assert late.error == "broken.mp4: decoding fails after 3 frames"
    assert late.rounds == ()
    assert len(fine.rounds) == 5


def test_a_variant_says_how_it_differs_once_it_is_warm() -> None:
    difference = Difference(clips=4, largest=0.5, relative=0.01, top1_agreement=0.75)
    (found,) = run(contender("bf16", lambda: None, difference=lambda call: difference))
    assert found.difference == difference


def test_the_yardstick_is_laid_on_before_and_after_every_turn() -> None:
    laid = 0

    def ruler() -> None:
        nonlocal laid
        laid += 1
        spin(0.002)

    (found,) = measure([contender("one", lambda: None)], device=CPU, patience=QUICK, yardstick=ruler)
    assert laid == 5 + 2 * 5  # warmed up, then a round's two
    assert all(0.002 <= one.yardstick < 0.02 for one in found.rounds)


def test_the_yardstick_does_the_same_work_again() -> None:
    yardstick = Yardstick(CPU)
    before = [one.clone() for one in yardstick.frames]
    yardstick()
    assert all(torch.equal(one, other) for one, other in zip(yardstick.frames, before, strict=True))


@pytest.mark.parametrize("wrong", [{"rounds": 1}, {"turn_seconds": 0.0}, {"warm_up_seconds": -1.0}])
def test_patience_that_measures_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rounds are at least 2"):
        Patience(**wrong)  # type: ignore[arg-type]
