"""What a run leaves on disk, and how it goes on from there."""

import contextlib
import json
import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from videokd.checkpoint import State
from videokd.config import differing_fields, from_plain, to_plain
from videokd.disk import open_to_append, write_text
from videokd.interruption import deferred
from videokd.json_files import as_object, parse_json
from videokd.run_files import read_run_file

_STEP = "step"
_OPERATION = ("audit", "preflight", "weak_teacher", "track", "checkpoint_every")
_OPERATION_ON_MACHINE = ("device", "compile")
_OPERATION_ON_DATA = ("on_bad_video", "workers", "time_limit", "max_pixels")


class RunFolder:
    """A folder with recipe.json, fitted.json, metrics.jsonl, checkpoint.safetensors, and at the end the model and its
    scores; nothing is written before `begin`.

    Args:
        path: of the folder.
        recipe: as JSON.
        trust: modules and recipe files that the recipe's own classes are from.
        resume: whether it goes on with the run that the folder holds.
        finished: whether that one may be finished.

    Raises:
        ValueError: if a new run would overwrite what the folder holds, or there is no run to resume.
    """

    def __init__(
        self, path: str | Path, *, recipe: str, trust: Collection[str], resume: bool = False, finished: bool = False
    ) -> None:
        self.path = Path(path)
        written = self.path / "recipe.json"
        go_on = resume_command(self.path, trust)
        if resume:
            if not written.is_file():
                raise ValueError(f"{self.path} holds no run to resume (no recipe.json)")
            if self.is_finished and not finished:
                raise ValueError(f"{self.path} is finished: nothing to resume")
            if fields := _differing(written, recipe, trust):
                named = ", ".join(f"{name} was {before!r} and is {now!r}" for name, (before, now) in fields.items())
                raise ValueError(
                    f"{written} is another recipe ({named}); resume with the same one, or start a new folder"
                )
        elif self.is_finished:
            raise ValueError(f"{self.path} already holds a finished run; name another --out")
        elif self.is_begun:
            raise ValueError(f"{self.path} already holds a run; go on with {go_on}, or name another --out")
        elif self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - {written}):
            raise ValueError(f"{self.path} already holds something else; name another --out")
        there = next(one for one in (self.path, *self.path.absolute().parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            what = "can't be written" if there.is_dir() else "is a file"
            raise OSError(f"{self.path} can't be made: {there} {what}; name another --out")
        self._recipe = recipe

    def begin(self) -> None:
        """Writes the recipe into the folder, which is there."""
        write_text(self.path / "recipe.json", self._recipe)

    def note_environment(self, now: Mapping[str, Any]) -> None:
        """Writes environment.json; what the run's parts before this one ran in is kept under "earlier"."""
        path = self.path / "environment.json"
        earlier: list[Any] = []
        if path.is_file():
            before = read_run_file(path)
            earlier = [*before.pop("earlier", []), before]
        write_text(path, json.dumps({**now, **({"earlier": earlier} if earlier else {})}, indent=2) + "\n")

    @property
    def fitted_path(self) -> Path:
        """What losses took from the data before the first step, so that a resumed run takes the same."""
        return self.path / "fitted.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """All that the run needs to go on."""
        return self.path / "checkpoint.safetensors"

    @property
    def is_begun(self) -> bool:
        """Whether a run began here: a recipe alone is none yet."""
        recipe = self.path / "recipe.json"
        return recipe.is_file() and bool(set(self.path.iterdir()) - {recipe})

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "model.json").is_file()

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl."""
        try:
            with deferred(), open_to_append(self.metrics_path) as file:
                file.write(f"{json.dumps(row)}\n".encode())
        except OSError as error:
            raise OSError(error.errno, f"{self.metrics_path} can't be written: {error.strerror}") from error

    def save(self, state: State) -> None:
        """Writes a checkpoint; the last one stays until this one is whole."""
        if self.metrics_path.is_file():
            # What is best is told from the log: it is to be on the disk before what was learned is.
            with self.metrics_path.open("rb+") as file:
                os.fsync(file.fileno())
        state.save(self.checkpoint_path)

    def restore(self, state: State) -> None:
        """Loads the last checkpoint, if there is one."""
        if self.checkpoint_path.is_file():
            state.load(self.checkpoint_path)

    def cut_log(self, step: int) -> None:
        """Takes back what was logged after a step: it is made again."""
        rows = [row for row in read_metrics(self.path) if row[_STEP] <= step]
        if rows:
            write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            self.metrics_path.unlink(missing_ok=True)


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, up to a row that a killed run did not finish.

    Raises:
        ValueError: for a row that no run writes.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            json.loads(line)
        except json.JSONDecodeError:
            break  # What follows is made again.
        except (ValueError, RecursionError):
            pass  # named below
        row = as_object(parse_json(line, source=f"{path}:{number}"), source=f"{path}:{number}")
        if not isinstance(row.get(_STEP), int) or not all(isinstance(value, int | float) for value in row.values()):
            raise ValueError(f"{path}:{number} has to hold numbers, one of them {_STEP!r}")
        rows.append(row)
    return rows


def read_recipe(run: str | Path) -> dict[str, Any]:
    """Return a run's recipe.json as data alone: nothing is imported. What names its list and teachers is checked.

    Raises:
        ValueError: if it is not JSON, or not what `videokd train` writes.
        OSError: if it can't be read.
    """
    path = Path(run) / "recipe.json"
    recipe = read_run_file(path)
    if not isinstance(recipe.get("data"), dict) or not isinstance(recipe["data"].get("path"), str):
        raise ValueError(f"{path} names no list: it has no 'data.path'")
    return recipe


def resume_command(run: str | Path, trust: Iterable[str]) -> str:
    """Return the command that resumes a run whose recipe uses code of these modules and files."""
    parts = ["videokd", "train", "--resume", str(run), *(word for name in sorted(trust) for word in ("--trust", name))]
    return shlex.join(parts)


def _differing(written: Path, recipe: str, trust: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """The fields in which a run's recipe is another, apart from what may change between its parts: where it runs, how
    often it is saved, and what it does with bad videos."""
    before, now = read_recipe(written.parent), json.loads(recipe)
    with contextlib.suppress(ValueError):  # classes of other code, or that are no more: compared as written
        # A field that came with a later version has its default there.
        before = to_plain(from_plain(before, trust=trust))
    return differing_fields(essential(before), essential(now))


def essential(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A plain recipe without what may change while it runs: where that is, how often it is saved, bad videos, and whose
    code teachers may run."""
    found = {name: part for name, part in recipe.items() if name not in _OPERATION}
    for part, names in (("data", _OPERATION_ON_DATA), ("machine", _OPERATION_ON_MACHINE)):
        if part in found:
            found[part] = {name: value for name, value in found[part].items() if name not in names}
    teachers = recipe.get("teachers", {})
    found["teachers"] = {
        name: {one: value for one, value in teacher.items() if one != "trust"} for name, teacher in teachers.items()
    }
    return found
