"""What differs between runs, finished or not: fields of their recipes, where they ran, what came out."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videokd.config import differing_fields
from videokd.run_files import read_run_file
from videokd.run_folder import read_metrics

_NOISE = ("date", "command", "variables.SLURM_JOB_ID")
"""What differs between the environments of any two runs."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run folder says, as data alone: looking at somebody's run imports none of their code."""

    path: Path
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    """Empty where the run left none."""
    results: Mapping[str, Any]
    """Steps, last losses, best and last validation."""
    speed: Mapping[str, Any]
    """Clips per second and seconds of a finished run."""
    finished: bool

    @property
    def steps(self) -> str:
        """How many are done, as far as it was logged, and of how many."""
        return f"{self.results.get('steps', 0)} of {_at(self.recipe, 'optim.steps') or '?'} steps"


def read_run(run: str | Path) -> RunRecord:
    """What a run folder says.

    Raises:
        ValueError: if there is no run, or a file of it is no JSON.
    """
    path = Path(run)
    if not any((path / name).is_file() for name in ("recipe.json", "evaluation.json", "summary.json")):
        raise ValueError(f"{path} holds no run: no recipe.json, no evaluation.json")
    recipe, summary = _read(path / "recipe.json"), _read(path / "summary.json")
    rows = read_metrics(path)
    losses: dict[str, Any] = next((row for row in reversed(rows) if "total" in row), {})
    terms = [name for name in (*recipe.get("objective", {}), "total") if name in losses]
    scores = [(row["val_top1"], row["step"]) for row in rows if "val_top1" in row]
    results: dict[str, Any] = {}
    if rows or summary:
        results["steps"] = summary.get("steps", max((row["step"] for row in rows), default=0))
    results |= {f"last loss: {name}": losses[name] for name in terms}
    if scores:
        best, step = max(scores, key=lambda score: score[0])
        results |= {"validation top-1: best": best, "step of the best": step, "validation top-1: last": scores[-1][0]}
    if summary.get("skipped"):
        results["videos skipped"] = len(summary["skipped"])
    speed = {name: summary[key] for name, key in _SPEED.items() if key in summary}
    return RunRecord(
        path=path,
        recipe=recipe,
        environment=_with_parts(_read(path / "environment.json")),
        results=results,
        speed=speed,
        finished=(path / "model.json").is_file(),
    )


def difference_rows(runs: Sequence[RunRecord]) -> dict[str, list[tuple[str, ...]]]:
    """Rows of a table with a column for each run, by section: "recipe", "environment", "results", "speed".

    Each row is a field in which the runs differ. A run that left no recipe, or no environment, has a "?" there, and a
    single run is shown with all of its results.
    """
    environments = _rows([run.environment for run in runs], missing="none")
    rows = {
        "recipe": _rows([run.recipe for run in runs], missing="None"),
        "environment": [row for row in environments if row[0] not in _NOISE],
    }
    for section in ("results", "speed"):
        found = [getattr(run, section) for run in runs]
        shown = _rows(found) if len(runs) > 1 else [(name, *_texts(name, [v])) for name, v in found[0].items()]
        order = list(dict.fromkeys(name for one in found for name in one))
        rows[section] = sorted(shown, key=lambda row: order.index(row[0]))
    return rows


def differing(plain: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted field name -> its value in each of these, None where there is none, for the fields in which any differ."""
    pairs = itertools.combinations(plain, 2)
    names = dict.fromkeys(name for one, other in pairs for name in differing_fields(one, other))
    return {name: [_at(one, name) for one in plain] for name in names}


_SPEED = {"clips/s": "clips_per_second", "seconds": "seconds"}


def _rows(plain: Sequence[Mapping[str, Any]], *, missing: str = "") -> list[tuple[str, ...]]:
    """The fields in which those that are not empty differ, with a text for each."""
    rows = []
    for name, values in differing([one for one in plain if one]).items():
        texts = iter(_texts(name, values, missing=missing))
        rows.append((name, *(next(texts) if one else "?" for one in plain)))
    return rows


def _texts(name: str, values: Sequence[Any], *, missing: str = "") -> list[str]:
    """Values as they are shown: short, but never so short that two that differ look the same."""
    whole = [missing if value is None else _whole(value) for value in values]
    # Six columns beside each other leave little room.
    limit = max(16, 96 // len(values))
    short = [_short(name, value, limit=limit) if value is not None else missing for value in values]
    return short if len(set(short)) == len(set(whole)) else whole


def _whole(value: Any) -> str:
    if isinstance(value, Mapping) and "loss" in value:  # a term
        value = value["loss"]
    if isinstance(value, Mapping) and "type" in value:
        return str(value["type"]).rpartition(":")[2]  # where two are of a type, their fields have rows of their own
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_whole(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_whole, value))
    return str(value)


def _short(name: str, value: Any, *, limit: int) -> str:
    if name.startswith("validation"):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"
    text, last = _whole(value), name.rpartition(".")[2]
    if last == "type":
        text = text.rpartition(":")[2]
    if last == "revision":
        text = text[:12]
    if len(text) <= limit:
        return text
    # Paths differ at their ends, sentences at their beginnings.
    return f"…{text[1 - limit :]}" if "/" in text else f"{text[: limit - 1]}…"


def _at(plain: Any, name: str) -> Any:
    """The value at a dotted name, whose parts may have dots of their own; None where there is none."""
    if not isinstance(plain, Mapping) or name in plain:
        return plain.get(name) if isinstance(plain, Mapping) else None
    inside = (_at(item, name.removeprefix(f"{key}.")) for key, item in plain.items() if name.startswith(f"{key}."))
    return next((value for value in inside if value is not None), None)


def _with_parts(environment: dict[str, Any]) -> dict[str, Any]:
    """The environment of a run's last part, and how many parts it has."""
    earlier = environment.pop("earlier", [])
    return {**environment, "parts": 1 + len(earlier)} if environment else environment


def _read(path: Path) -> dict[str, Any]:
    return read_run_file(path) if path.is_file() else {}
