"""`videokd COMMAND`: thin, one function per command."""

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from videokd.interruption import Interruption

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
    except Interruption as stop:
        from videokd.processes import is_first

        if is_first():
            print(f"videokd: {stop}", file=sys.stderr)
        return 128 + stop.number
    except (ValueError, OSError) as error:
        print(f"videokd: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("videokd: stopped", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    words = 2 if arguments[:1] == ["data"] or arguments[:2] in (["bench", "compare"], ["bench", "page"]) else 1
    command, rest = " ".join(arguments[:words]), arguments[words:]
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

        said = f"videokd: no command {command!r}{nearest(command, [*COMMANDS, *RECIPE_COMMANDS])}\n" if command else ""
        print(f"{said}{USAGE}", end="", file=sys.stderr)
        return 2
    return 0


def _imported(address: str) -> Callable[..., None]:
    module, _, function = address.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(f"videokd.cli.{module}"), function)
    return found


def _note(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as a user reads it, without the line of code that it came from."""
    print(f"videokd: note: {message}", file=sys.stderr)
