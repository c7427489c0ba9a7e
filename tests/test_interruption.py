# ruff: noqa: PT012, SIM105  # what would follow the signal is part of the test
"""Signals: raised at once, or kept until a part that must not be cut in two is over; never dropped."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from videokd.interruption import Handled, StopSignal, at_once, deferred, raise_if_stopped, stop_requested

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _as_in_a_background_job() -> Iterator[None]:
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        assert signal.signal(number, handler) == signal.SIG_IGN  # what it was is there again


@BOTH
def test_a_signal_is_raised_where_it_comes_even_if_it_was_ignored_before(number: int) -> None:
    with Handled(), pytest.raises(StopSignal) as stop:
        send(number)
        pytest.fail("it went on")
    assert (stop.value.number, stop_requested()) == (number, None)


@BOTH
def test_a_deferred_signal_is_raised_at_the_end_of_the_part(number: int) -> None:
    done = []
    with pytest.raises(StopSignal) as stop:
        with deferred():
            send(number)
            with deferred():
                done.append(stop_requested())
            done.append("outer")
        pytest.fail("it was dropped")
    assert (stop.value.number, done) == (number, [number, "outer"])


def test_a_function_can_be_deferred_as_a_whole_and_calls_itself() -> None:
    done = []

    @deferred()
    def write(depth: int) -> None:
        if depth:
            send(signal.SIGINT)
            write(depth - 1)
        done.append(depth)

    with Handled(), pytest.raises(StopSignal):
        write(1)
    assert done == [0, 1]
    with Handled(), pytest.raises(KeyboardInterrupt):
        write(2)
    assert done == [0, 1]  # the second Ctrl-C was raised at once


def test_a_second_ctrl_c_is_raised_at_once_and_a_second_sigterm_is_not() -> None:
    with pytest.raises(KeyboardInterrupt) as stop, deferred():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        pytest.fail("it went on")
    assert not isinstance(stop.value, StopSignal)  # who saves on the first one must not save here


def test_one_of_several_processes_waits_for_the_end_however_often_a_signal_comes() -> None:
    done = []
    with pytest.raises(StopSignal), deferred(is_patient=True):
        for _ in range(3):
            send(signal.SIGINT)
        with at_once():
            done.append(1)
    assert done == [1]


def test_an_error_of_a_deferred_part_is_not_replaced_by_the_signal() -> None:
    with Handled():
        with pytest.raises(ValueError, match="the disk is full"), deferred():
            send(signal.SIGINT)
            raise ValueError("the disk is full")
        with pytest.raises(StopSignal):
            raise_if_stopped()


def test_at_once_raises_what_comes_in_it_and_what_came_before_it() -> None:
    for before in (True, False):
        with deferred():
            if before:
                send(signal.SIGTERM)
            with pytest.raises(StopSignal), at_once():
                send(signal.SIGTERM)
                pytest.fail("it went on")
            raise_if_stopped()  # deferred again


def test_a_signal_whose_exception_is_lost_in_a_callback_is_sent_again() -> None:
    class Lost:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    with Handled(), pytest.raises(StopSignal) as stop:
        Lost()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            time.sleep(0.01)
    assert stop.value.number == signal.SIGTERM


def test_a_signal_that_was_swallowed_is_raised_again_by_the_next_check() -> None:
    with Handled():
        raise_if_stopped()
        try:
            send(signal.SIGINT)
        except BaseException:
            pass
        with pytest.raises(StopSignal):
            raise_if_stopped()


def test_a_fork_leaves_ctrl_c_to_its_parent_and_ends_on_sigterm() -> None:
    with Handled():
        for number, code in ((signal.SIGINT, 7), (signal.SIGTERM, 143)):
            child = os.fork()
            if not child:
                try:
                    send(number)
                finally:
                    os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
