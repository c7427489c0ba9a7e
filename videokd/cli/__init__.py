"""`videokd COMMAND`: thin, one function per command."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from videokd.cli import checking, evaluation, labelling, lists, looking, looks, predicting, reporting, runs, studies
from videokd.cli.options import spelled_out
from videokd.config import nearest
from videokd.label import Stopped
from videokd.processes import is_first
from videokd.train import Interrupted

COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": runs.quickstart,
    "evaluate": evaluation.evaluate,
    "compare": runs.compare,
    "predict": predicting.predict,
    "report": reporting.report,
    "inside": looking.inside,
    "models": looks.models,
    "losses": looks.losses,
    "doctor": looks.doctor,
}


RECIPE_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "preflight": checking.preflight,
    "train": runs.train,
    "study": studies.study,
    "label": labelling.label,
    "taps": looks.taps,
}
"""They take a recipe (or a study), and any of its fields after it."""


DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "check": lists.check,
    "pack": lists.pack,
    "synth": lists.synth,
    "folds": lists.folds,
}


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return _run(arguments)
    except BrokenPipeError:
        # Whoever read has read enough (`| head`); Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Interrupted as stop:
        if is_first():
            print(f"videokd: {stop}", file=sys.stderr)
        return 128 + stop.number
    except Stopped as stop:
        print(f"videokd: {stop}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"videokd: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("videokd: stopped", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in RECIPE_COMMANDS:
        RECIPE_COMMANDS[command](rest if command == "study" else spelled_out(rest))
    elif command in COMMANDS:
        tyro.cli(COMMANDS[command], args=rest, prog=f"videokd {command}")
    elif command == "data" and rest and rest[0] in DATA_COMMANDS:
        tyro.cli(DATA_COMMANDS[rest[0]], args=rest[1:], prog=f"videokd data {rest[0]}")
    elif command in ("-h", "--help"):
        print(USAGE, end="")
    else:
        known = [*COMMANDS, *RECIPE_COMMANDS, *(f"data {name}" for name in DATA_COMMANDS)]
        wrong = " ".join(arguments[:2] if command == "data" else arguments[:1])
        said = f"videokd: no command {wrong!r}{nearest(wrong, known)}\n" if command else ""
        print(f"{said}{USAGE}", end="", file=sys.stderr)
        return 2
    return 0


def _note(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as a user reads it, without the line of code that it came from."""
    print(f"videokd: note: {message}", file=sys.stderr)
