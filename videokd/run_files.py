"""The JSON files of runs and studies, each with the fields that are read and their types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from videokd.json_files import Count, Share, read_object
from videokd.predictions import distinct_names

EVALUATION, STUDY, INSIDE = "evaluation.json", "study.json", "inside.json"
RECIPE, SUMMARY, ENVIRONMENT = "recipe.json", "summary.json", "environment.json"


class _ClassScore(TypedDict):
    clips: Count
    accuracy: NotRequired[Share | None]
    precision: NotRequired[Share | None]
    f1: NotRequired[Share | None]


class _Bin(TypedDict):
    clips: Count
    confidence: Share | None
    accuracy: Share | None


class _Scaled(TypedDict):
    nll: float
    brier: float
    ece: Share
    bins: list[_Bin]


class _Calibration(_Scaled):
    temperature: float | None
    fitted_on: str | None
    scaled: _Scaled | None


class _Views(TypedDict):
    temporal: Count
    spatial: Count
    average: str


class _ViewBudget(TypedDict):
    temporal: Count
    spatial: Count
    macs: float
    top1: Share


class _Protocol(TypedDict):
    name: str | None
    said: str
    fold: int


class _Evaluation(TypedDict):
    classes: list[str]
    clips: Count
    skipped: list[str]
    temporal: dict[str, Share]
    params: Count
    macs: float
    top1: NotRequired[Share]
    top5: NotRequired[Share | None]
    mean_class_accuracy: NotRequired[Share]
    map: NotRequired[Share]
    average_precision: NotRequired[dict[str, Share]]
    unlabelled: NotRequired[Count]
    groups: NotRequired[Count]
    per_class: NotRequired[dict[str, _ClassScore]]
    confusion: NotRequired[list[list[Count]]]
    intervals: NotRequired[dict[str, list[Share] | None]]
    calibration: NotRequired[_Calibration | None]
    views: NotRequired[_Views]
    curve: NotRequired[list[_ViewBudget] | None]
    against: NotRequired[dict[str, Any] | None]
    protocol: NotRequired[_Protocol | None]
    list: NotRequired[str]
    split: NotRequired[str | None]
    trained_on: NotRequired[Count | None]
    skipped_in_training: NotRequired[Count | None]


class _Mean(TypedDict):
    mean: float
    low: float | None
    high: float | None


class _Difference(_Mean):
    each: NotRequired[list[float]]
    positive: NotRequired[Count]
    folds: NotRequired[list[float] | None]
    verdict: NotRequired[str]


class _Arm(TypedDict):
    runs: list[str]
    pairs: NotRequired[list[list[int]]]
    title: NotRequired[str]
    top1_each: NotRequired[list[Share]]
    params: NotRequired[Count]
    macs: NotRequired[float]
    steps: NotRequired[Count]
    seconds_each: NotRequired[list[float]]
    seconds_per_step: NotRequired[float]
    clips: NotRequired[Count]


class _Study(TypedDict):
    arms: dict[str, _Arm]
    teacher: NotRequired[_Arm | None]
    differences: NotRequired[dict[str, _Difference]]
    beyond: NotRequired[dict[str, _Difference]]
    gap_recovered: NotRequired[dict[str, _Mean | None]]
    against: NotRequired[dict[str, dict[str, float | None]]]
    per_class: NotRequired[dict[str, dict[str, float | None]]]
    chance: NotRequired[Share]
    split: NotRequired[str]
    list: NotRequired[str]
    verdict: NotRequired[str]
    not_compared: NotRequired[list[Count]]


class _Taps(TypedDict):
    student: list[str]
    teacher: list[str]


class _Cka(TypedDict):
    taps: _Taps
    arms: dict[str, list[list[float | None]]]
    clips: NotRequired[Count]


class _Saliency(TypedDict):
    method: str
    agreement: dict[str, dict[str, float | None] | None]
    chance_iou: float | None
    on_object: dict[str, float | None] | None


class _Inside(TypedDict):
    clips: Count
    cka: _Cka | None
    saliency: _Saliency | None
    probes: dict[str, dict[str, Any]] | None
    notes: list[str]
    skipped: NotRequired[list[str]]
    runs: NotRequired[list[str]]


class _Data(TypedDict):
    path: str
    root: NotRequired[str | None]
    fold: NotRequired[int | None]
    class_names: NotRequired[str | None]
    train_split: NotRequired[str | None]
    val_split: NotRequired[str | None]
    unlabelled_per_batch: NotRequired[int | None]
    max_pixels: NotRequired[int]


class _Teacher(TypedDict):
    checkpoint: NotRequired[str | None]


class _Recipe(TypedDict):
    data: _Data
    seed: NotRequired[int]
    student: NotRequired[dict[str, Any]]
    optim: NotRequired[dict[str, Any]]
    machine: NotRequired[dict[str, Any]]
    objective: NotRequired[dict[str, dict[str, Any]]]
    teachers: NotRequired[dict[str, _Teacher]]


class _Summary(TypedDict, total=False):
    steps: Count
    seconds: float
    clips_per_second: float
    params: Count
    macs: float
    val_top1: Share | None
    val_map: Share | None
    weights_of_step: Count
    losses: dict[str, float]
    seconds_per_step: dict[str, float] | None
    skipped: list[str]
    device: str
    processes: Count
    clips_without_sound: dict[str, Count]


class _Environment(TypedDict, total=False):
    earlier: list[dict[str, Any]]
    packages: dict[str, Any]


_FORMS: Mapping[str, Any] = {RECIPE: _Recipe, SUMMARY: _Summary, ENVIRONMENT: _Environment}


def read_run_file(path: Path) -> dict[str, Any]:
    """Return what recipe.json, summary.json or environment.json of a run holds, as data alone: nothing is imported.

    Raises:
        ValueError: if it can't be read or is not what videokd writes, naming the field.
    """
    return read_object(path, _FORMS[path.name], remedy="restore the file, or make the run again")


def read_evaluation(run: str | Path) -> dict[str, Any]:
    """Return a run's scores.

    Raises:
        ValueError: if it has none, or the file is damaged: naming the file, what is wrong and how to make it again.
    """
    path, remedy = Path(run) / EVALUATION, f"make it again with: videokd evaluate {run}"
    if not path.is_file():
        if not Path(run).is_dir():
            raise ValueError(f"there is no folder {run}, seen from {Path.cwd()}")
        raise ValueError(f"{run} has no {EVALUATION}; make it with: videokd evaluate {run}")
    found = read_object(path, _Evaluation, remedy=remedy)
    try:
        _check_scores(found)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from error
    return found


def read_study(folder: Path) -> dict[str, Any]:
    """Return what a study's study.json says.

    Raises:
        ValueError: if there is none, it is damaged, or it names runs outside of the folder.
    """
    path, remedy = folder / STUDY, f"make it again with: videokd study STUDY --out {folder}"
    found = read_object(path, _Study, remedy=remedy)
    for name, arm in {"teacher": found.get("teacher") or {}, **found["arms"]}.items():
        for run in arm.get("runs", ()):
            if Path(run).is_absolute() or ".." in Path(run).parts:
                raise ValueError(f"{path} names a run of {name} outside of its folder: {run!r}; {remedy}")
        if any(len(pair) != 2 for pair in arm.get("pairs", ())):
            raise ValueError(f"{path} is damaged: a pair of {name} is a fold and a seed, got {arm['pairs']}; {remedy}")
    return found


def read_inside(folder: Path) -> dict[str, Any]:
    """Return what `videokd inside` left in a folder; empty where there is none.

    Raises:
        ValueError: if the file is damaged.
    """
    path, remedy = folder / INSIDE, f"make it again with: videokd inside {folder}"
    if not path.is_file():
        return {}
    found = read_object(path, _Inside, remedy=remedy)
    cka = found["cka"] or {"taps": {"student": [], "teacher": []}, "arms": {}}
    rows, columns = (len(cka["taps"][who]) for who in ("student", "teacher"))
    for arm, matrix in cka["arms"].items():
        if len(matrix) != rows or any(len(row) != columns for row in matrix):
            raise ValueError(f"{path} is damaged: cka.arms.{arm} has not {rows} rows of {columns}; {remedy}")
    return found


def _check_scores(found: dict[str, Any]) -> None:
    """What the types can't tell: whether an evaluation's parts fit each other."""
    classes = found["classes"]
    distinct_names(classes, "classes")
    if "top1" not in found and "map" not in found:
        raise ValueError("it has neither top1 nor map")
    for part in ("per_class", "average_precision"):
        if strange := sorted(set(found.get(part) or ()) - set(classes)):
            raise ValueError(f"{part} has {strange[0]!r}, which is not among its {len(classes)} classes")
    confusion = found.get("confusion")
    if confusion is not None and any(len(row) != len(classes) for row in (confusion, *confusion)):
        raise ValueError(f"confusion has not {len(classes)} rows and columns, one for each class")
    for score, ends in (found.get("intervals") or {}).items():
        if ends is not None and (len(ends) != 2 or ends[0] > ends[1]):
            raise ValueError(f"intervals.{score} is {ends}, and should be its lower and upper end")
