import contextlib
import io
import re

import pytest
from rich.console import Console

from videokd.progress import Display


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    said = io.StringIO()
    # COLUMNS would win over a width that is not given.
    return Console(file=said, force_terminal=terminal, width=200, markup=False, highlight=False), said


def test_a_line_gives_rate_and_time_left_and_one_comes_every_half_minute() -> None:
    console, said = shown()
    clock = Clock()
    with Display(console, "runs/x", 100, clock=clock) as display:
        for step in range(1, 9):
            clock.now += 10
            display.step(step, clips=32, loss=1.5 - step / 10)
    # 32 clips and one step in 10 s; 97 steps are left after step 3. The end of the context is a line, too.
    assert said.getvalue().splitlines() == [
        "runs/x: step 3/100, loss 1.200, 3.2 clips/s, 16 min left",
        "runs/x: step 6/100, loss 0.900, 3.2 clips/s, 16 min left",
        "runs/x: step 8/100, loss 0.700, 3.2 clips/s, 15 min left",
    ]


def test_the_last_step_is_said_once_and_has_nothing_left() -> None:
    console, said = shown()
    clock = Clock()
    with Display(console, "x", 2, clock=clock) as display:
        for step in (1, 2):
            clock.now += 1
            display.step(step, clips=50)
        display.validated(0.8125)
    assert said.getvalue() == "x: step 2/2, 50 clips/s, validation top-1 81.2%\n"


def test_a_validation_is_a_line_and_its_time_counts_for_no_rate() -> None:
    console, said = shown()
    clock = Clock()
    with Display(console, "x", 4, clock=clock) as display:
        clock.now += 2
        display.step(1, clips=40, loss=1.0)
        with display.stopped():
            clock.now += 1000
        display.validated(0.5)
        clock.now += 2
        display.step(2, clips=40)
        assert display.seconds == 4
        assert display.clips_per_second == 20
    assert said.getvalue().splitlines() == [
        "x: step 1/4, loss 1.000, 20 clips/s, 6 s left, validation top-1 50.0%",
        "x: step 2/4, loss 1.000, 20 clips/s, 4 s left, validation top-1 50.0%",
    ]


def test_rates_are_of_the_last_minute() -> None:
    console, said = shown()
    clock = Clock()
    with Display(console, "x", 10, clock=clock) as display:
        clock.now += 600  # a first step that compiles
        display.step(1, clips=60)
        for step in (2, 3, 4):
            clock.now += 30
            display.step(step, clips=60)
        assert display.clips_per_second == pytest.approx(240 / 690)
    assert said.getvalue().splitlines()[-1] == "x: step 4/10, 2.0 clips/s, 3 min left"


def test_a_resumed_run_counts_its_rate_from_where_it_went_on() -> None:
    console, said = shown()
    clock = Clock()
    with Display(console, "x", 1000, done=900, clock=clock) as display:
        clock.now += 1
        display.step(901, clips=10)
    assert said.getvalue() == "x: step 901/1000, 10 clips/s, 2 min left\n"


def test_a_run_that_fails_says_how_far_it_came() -> None:
    console, said = shown()
    clock = Clock()
    with contextlib.suppress(ValueError), Display(console, "x", 9, clock=clock) as display:
        clock.now += 1
        display.step(1, clips=10)
        raise ValueError("not finite")
    assert said.getvalue().startswith("x: step 1/9, ")


def test_a_run_that_has_nothing_left_to_do_says_nothing() -> None:
    console, said = shown()
    with Display(console, "x", 9, done=9):
        pass
    assert said.getvalue() == ""


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    console, said = shown(terminal=True)
    clock = Clock()
    with Display(console, "[runs]/x", 4, clock=clock) as display:
        clock.now += 60
        display.step(1, clips=40, loss=1.0)
        display.validated(0.5)
    text = re.sub(r"\x1b\[[0-9;?]*[a-z]", "", said.getvalue(), flags=re.IGNORECASE)
    assert "1/4 loss 1.000, 0.7 clips/s, 3 min left, validation top-1 50.0%" in text
    assert "[runs]/x" in text
    assert "step 1/4" not in text
