"""SIGINT (Ctrl-C) and SIGTERM: raised at any point of a command, except where work must not be cut in two.

`Handled` makes both signals raise `StopSignal` wherever the main thread is, also in a process that was started with
SIGINT ignored, as shells start background jobs. Within `deferred` a signal is kept, and raised on leaving: it is never
dropped. A second Ctrl-C is raised at once there too.

An exception that a signal raised can be lost: Python only prints what is raised in a `__del__` or in a callback of a
C library. Such a signal is sent again, and `raise_if_stopped` raises one that was lost in any other way.
"""

import os
import signal
import sys
import threading
from contextlib import ContextDecorator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_AFTER = 0.05
"""Seconds after which a signal is sent again whose exception was lost."""


class StopSignal(KeyboardInterrupt):
    """SIGINT or SIGTERM came. A KeyboardInterrupt, so that no `except Exception` takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Interruption(Exception):
    """A command was stopped by SIGINT or SIGTERM: the message says what is kept and how to resume."""

    number: int = signal.SIGINT

    def __init__(self, message: str, *, number: int | None = None) -> None:
        super().__init__(message)
        self.number = number or stop_requested() or signal.SIGINT


@dataclass
class _State:
    """Of this process."""

    contexts: int = 0
    """How many contexts want the handlers; they are installed by the first and removed with the last."""
    replaced: dict[int, Any] = field(default_factory=dict)
    """Signal -> the handler from before."""
    unraisable_hook: Any = None
    requested: int | None = None
    """The signal that came first."""
    is_pending: bool = False
    """Whether it came in a deferred part, and was not raised yet."""
    deferred: int = 0
    """How many deferred parts the main thread is in."""
    is_patient: bool = False
    written: list[str] = field(default_factory=list)
    """Files, in the order in which they became whole."""
    process: int = 0
    """The one that installed the handlers; those that it forked have them too."""


_state = _State()


def stop_requested() -> int | None:
    """The number of the signal that came, if one did."""
    return _state.requested


def raise_if_stopped() -> None:
    """Raises `StopSignal` if a signal came before and its exception was lost on its way.

    For loops that may run for long. In a deferred part, and in other threads than the main one, it does nothing.
    """
    if _state.requested is not None and not _state.deferred and _is_main_thread():
        _state.is_pending = False
        raise StopSignal(_state.requested)


def note_written(path: str) -> None:
    """Notes that a file is whole, for `files_written`."""
    if _state.contexts and path not in _state.written:
        _state.written.append(path)


def files_written() -> list[str]:
    """Files that were noted since the signals are handled."""
    return list(_state.written)


class Handled:
    """While this context lasts, SIGINT and SIGTERM raise `StopSignal` in the main thread."""

    def __enter__(self) -> "Handled":
        _install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove()


class deferred(ContextDecorator):  # used like a function, as contextlib's are
    """A part that no signal cuts in two: one that comes meanwhile is raised on leaving. A context, or a decorator.

    Args:
        is_patient: a second Ctrl-C is not raised either. For one of several processes: the others would wait for it,
            and torchrun sends a signal twice.
    """

    def __init__(self, *, is_patient: bool = False) -> None:
        self._is_patient = is_patient

    def __enter__(self) -> "deferred":
        if _is_main_thread():
            _state.deferred += 1
            _install()
            _state.is_patient |= self._is_patient
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not _is_main_thread():
            return
        if _state.deferred == 1:
            _state.is_patient = False
        number = _state.requested
        is_due = _state.is_pending and _state.deferred == 1 and kind is None
        if is_due:
            _state.is_pending = False
        _remove()
        _state.deferred -= 1
        if is_due and number is not None:
            raise StopSignal(number)


class at_once:
    """Part of a deferred part in which a signal is raised where it comes, and one that came before on entering. In a
    patient one it changes nothing."""

    def __enter__(self) -> "at_once":
        self._before = _state.deferred
        if not _state.is_patient and _is_main_thread():
            _state.deferred = 0
            try:
                raise_if_stopped()
            except StopSignal:
                _state.deferred = self._before
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _state.deferred = self._before


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _install() -> None:
    if not _is_main_thread():
        return
    _state.contexts += 1
    if _state.contexts == 1:
        _state.process = os.getpid()
        _state.unraisable_hook, sys.unraisablehook = sys.unraisablehook, _send_again
        for number in _SIGNALS:
            _state.replaced[number] = signal.signal(number, _on_signal)


def _remove() -> None:
    if not _is_main_thread():
        return
    _state.contexts -= 1
    if _state.contexts == 0:
        for number, handler in _state.replaced.items():
            # None: it was installed by something other than Python, and can't be installed again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = _state.unraisable_hook
        _state.replaced = {}
        _state.requested, _state.is_pending, _state.written = None, False, []


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.process:  # a fork: what to do on Ctrl-C is for the main process to say
        if number == signal.SIGTERM:
            os._exit(128 + number)
        return
    is_first = _state.requested is None
    if is_first:
        _state.requested = number
    if not _state.deferred:
        raise StopSignal(number)
    if is_first:
        _state.is_pending = True
    elif number == signal.SIGINT and not _state.is_patient:
        raise KeyboardInterrupt  # not a StopSignal: what is cut in two here must not be saved


def _send_again(lost: "sys.UnraisableHookArgs") -> None:
    if not isinstance(lost.exc_value, StopSignal) or not _state.contexts:
        _state.unraisable_hook(lost)
        return
    number, _state.requested = lost.exc_value.number, None
    timer = threading.Timer(_AGAIN_AFTER, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
