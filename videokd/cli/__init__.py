"""`videokd COMMAND`: thin, one function per command."""

import importlib
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from videokd.interruption import (
    Handled,
    Interruption,
    StopSignal,
    files_written,
    raise_if_stopped,
    stop_requested,
)
from videokd.text import for_terminal, to_stderr

COMMANDS: Mapping[str, str] = {
    "quickstart": "runs:quickstart",
    "evaluate": "evaluation:evaluate",
    "predict": "predicting:predict",
    "compare": "runs:compare",
    "bench": "benching:bench",
    "bench compare": "benching:compare",
    "bench page": "benching:page",
    "inside": "looking:inside",
    "report": "reporting:report",
    "models": "looks:models",
    "losses": "looks:losses",
    "doctor": "looks:doctor",
    "data check": "lists:check",
    "data pack": "lists:pack",
    "data synth": "lists:synth",
    "data folds": "lists:folds",
}
"""Name -> module:function. They are imported when they are chosen: torch takes seconds."""


RECIPE_COMMANDS: Mapping[str, str] = {
    "preflight": "checking:preflight",
    "train": "runs:train",
    "study": "studies:study",
    "label": "labelling:label",
    "taps": "looks:taps",
}
"""They take a recipe (or a study), and any of its fields after it."""


USAGE = """\
usage: videokd COMMAND

  quickstart            draw videos, train teacher, student alone and student distilled, compare them
  preflight RECIPE      check a recipe on its first batches: teacher, classes, losses, time, memory, disk
  train RECIPE          run a recipe (train --resume RUN goes on with an interrupted one)
  label RECIPE          store what a recipe's teachers say of its clips, for many runs to train on
  evaluate MODEL [LIST] score a run, a saved model or a published one on held-out videos
  predict RUN VIDEO...  the likeliest classes of videos, or what happens when in long ones
  study STUDY           alone, distilled and controls over paired seeds: did it help, and was it the teacher
  compare RUN...        runs beside each other: scores, gains, and what differs
  bench MODEL...        clips a second of a model, recipe, run or exported file, stage by stage, and what bounds it
  bench compare OLD NEW two results of bench: what became slower, with intervals and an exit code
  bench page RESULT...  several results of bench on one page: accuracy over clips a second
  inside RUN...|STUDY   features and saliency of students beside their teacher's
  report RUN|STUDY...   one page that shows it all: scores, gains, mistakes, videos won and lost, how runs differ
  taps RECIPE           what a recipe's student and teachers hand out, for losses to compare
  losses [NAME]         the losses and weightings, with papers and defaults
  models                the built-in architectures: parameters and cost
  data check LIST       read every video of a list, say what is wrong, write a manifest
  data pack LIST        pack a list's videos into tar shards that are faster to read
  data folds LIST       make k lists of a list, for cross-validation
  data synth OUT        draw the synthetic set
  doctor                what works on this machine

videokd COMMAND --help says more.
"""


_KEPT: Mapping[str, str] = {
    "quickstart": "finished runs are kept",
    "train": "no further step was done, and what an earlier start saved is kept",
    "study": "finished runs are kept",
    "label": "records that were stored before are kept",
    "data pack": "whole shards are kept",
}
"""What a command leaves where it is stopped, if it does not say so itself; of others, the files that it wrote."""
_MOST_FILES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code. SIGINT and SIGTERM end it at any point, with 130 and 143.

    Args:
        arguments: of the command line; None for those that the program was started with, after which the signals have
            the system's own handlers, which end the process.
    """
    is_program = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with Handled():
            return _caught(arguments)
    except KeyboardInterrupt:  # once more, while the first one was reported
        return 130
    finally:
        if is_program:
            # What Python still does until the process is gone is not worth a traceback.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)


def _caught(arguments: list[str]) -> int:
    """Runs a command; errors and signals become a line and an exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return _run(arguments)
    except BrokenPipeError:
        # Whoever read the output has read enough (`| head`); Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Interruption as stop:
        return _stopped(str(stop), stop.number)
    except (ValueError, OSError) as error:
        if (number := _signal_behind(error)) is not None:
            return _stopped(_kept(arguments), number)
        to_stderr(f"error: {error}")
        # C libraries turn a signal's exception into an error of their own, without a link to it.
        return 1 if (number := stop_requested()) is None else _stopped(_kept(arguments), number)
    except (Exception, KeyboardInterrupt) as error:
        # A signal may have cut something in two that then failed in its own way, such as an import.
        number = _signal_behind(error) or stop_requested()
        if number is None:
            if not isinstance(error, KeyboardInterrupt):
                sys.excepthook = _traceback
                raise
            number = signal.SIGINT
        return _stopped(_kept(arguments), number)


def _stopped(message: str, number: int) -> int:
    # The variable, not `videokd.processes`: torch may not be loaded yet, and takes seconds.
    if os.environ.get("RANK", "0") == "0":
        to_stderr(message)
    return 128 + number


def _kept(arguments: list[str]) -> str:
    """What is kept of a command that was stopped, and how to resume."""
    command, _ = _split(arguments)
    again = shlex.join(["videokd", *arguments])
    if command == "quickstart" and "--resume" not in arguments:
        again += " --resume"
    if command in _KEPT:
        return f"stopped; {_KEPT[command]}; resume with: {again}"
    files = files_written()
    written = ", ".join(files[-_MOST_FILES:]) + (f" and {len(files) - _MOST_FILES} more" * (len(files) > _MOST_FILES))
    kept = f"written before that: {written}" if files else "no result was written"
    return f"stopped; {kept}; run it again with: {again}"


def _signal_behind(error: BaseException) -> int | None:
    """The number of the signal that an error comes from, directly or through other errors."""
    for one in _chain(error):
        if isinstance(one, StopSignal | Interruption):
            return one.number
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from, or while they were handled."""
    seen: set[int] = set()
    coming: BaseException | None = error
    while coming is not None and id(coming) not in seen:
        seen.add(id(coming))
        yield coming
        coming = coming.__cause__ or coming.__context__


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name, and the arguments after it."""
    words = 2 if arguments[:1] == ["data"] or arguments[:2] in (["bench", "compare"], ["bench", "page"]) else 1
    return " ".join(arguments[:words]), arguments[words:]


def _run(arguments: list[str]) -> int:
    command, rest = _split(arguments)
    if command in RECIPE_COMMANDS:
        chosen = _imported(RECIPE_COMMANDS[command])
        from videokd.cli.options import spelled_out

        chosen(rest if command == "study" else spelled_out(rest))
    elif command in COMMANDS:
        import tyro

        tyro.cli(_imported(COMMANDS[command]), args=rest, prog=f"videokd {command}")
    elif command in ("-h", "--help"):
        print(USAGE, end="")
    else:
        from videokd.config import nearest

        if command:
            to_stderr(f"no command {command!r}{nearest(command, [*COMMANDS, *RECIPE_COMMANDS])}")
        print(USAGE, end="", file=sys.stderr)
        return 2
    return 0


def _imported(address: str) -> Callable[..., None]:
    module, _, function = address.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(f"videokd.cli.{module}"), function)
    raise_if_stopped()  # an import may lose the exception, and do without what it cut in two
    return found


def _note(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as a user reads it, without the line of code that it came from."""
    to_stderr(f"note: {message}")


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a fault of the program itself as Python does, but that names in it do nothing to the terminal."""
    lines = traceback.format_exception(kind, error, trace)
    print(for_terminal("".join(lines).rstrip(), keep="\n"), file=sys.stderr)
