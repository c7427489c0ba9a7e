"""What the JSON files of runs and studies hold, checked when they are read: they may be somebody else's, or damaged."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from videokd.json_files import as_object, read_object


@dataclass(frozen=True, kw_only=True)
class _Object:
    """An object, of whose fields some are known; others may be there."""

    fields: Mapping[str, Any]
    """Name -> type, or `_Object`, `_List` or `_Dict` of one."""
    needed: tuple[str, ...] = ()
    or_null: bool = False


@dataclass(frozen=True)
class _Dict:
    """An object whose names are free."""

    of: _Object


@dataclass(frozen=True)
class _List:
    of: _Object
    or_null: bool = False


def read_run_file(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a run or study holds, whose types are checked by its name.

    Raises:
        ValueError: if it is not what videokd writes, naming the field.
        OSError: if it can't be read.
    """
    found = read_object(path)
    if path.name in _FILES:
        _check(found, _FILES[path.name], f"{path}", "")
    return found


def _check(value: Any, wanted: Any, source: str, name: str) -> None:
    where = f"{name!r} of {source}" if name else source
    if isinstance(wanted, _Object):
        if value is None and wanted.or_null:
            return
        found = as_object(value, source=where)
        if missing := [one for one in wanted.needed if found.get(one) is None]:
            raise ValueError(f"{where} lacks {missing[0]!r}: make the file again")
        for one, kind in wanted.fields.items():
            if one in found:
                _check(found[one], kind, source, f"{name}.{one}" if name else one)
    elif isinstance(wanted, _Dict):
        for one, inner in as_object(value, source=where).items():
            _check(inner, wanted.of, source, f"{name}.{one}")
    elif isinstance(wanted, _List):
        if value is None and wanted.or_null:
            return
        for place, inner in enumerate(_checked_type(value, list[Any], where)):
            _check(inner, wanted.of, source, f"{name}.{place}")
    else:
        _checked_type(value, wanted, where)


def _checked_type(value: Any, kind: Any, where: str) -> Any:
    try:
        return check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        raise ValueError(f"{where} is not what videokd writes there: {' '.join(str(error).split())}") from error


_Scores = dict[str, float | None]
_CALIBRATION: Mapping[str, Any] = {
    "nll": float,
    "brier": float,
    "ece": float,
    "bins": _List(
        _Object(
            fields={"low": float, "high": float, "clips": int, "confidence": float | None, "accuracy": float | None},
            needed=("low", "high", "clips"),
        )
    ),
    "temperature": float | None,
    "fitted_on": str | None,
}
_CALIBRATED = ("nll", "brier", "ece", "bins")
_EVALUATION = _Object(
    fields={
        "top1": float | None,
        "top5": float | None,
        "map": float | None,
        "mean_class_accuracy": float | None,
        "average_precision": _Scores,
        "per_class": dict[str, _Scores],
        "confusion": list[list[int]] | None,
        "classes": list[str],
        "clips": int,
        "groups": int,
        "unlabelled": int,
        "skipped": list[str],
        "intervals": dict[str, list[float] | None],
        "calibration": _Object(
            fields={**_CALIBRATION, "scaled": _Object(fields=_CALIBRATION, needed=_CALIBRATED, or_null=True)},
            needed=_CALIBRATED,
            or_null=True,
        ),
        "temporal": dict[str, float],
        "views": _Object(
            fields={"temporal": int, "spatial": int, "average": str}, needed=("temporal", "spatial", "average")
        ),
        "curve": _List(
            _Object(
                fields={"temporal": int, "spatial": int, "macs": float, "top1": float},
                needed=("temporal", "spatial", "macs", "top1"),
            ),
            or_null=True,
        ),
        "against": _Object(
            fields={
                name: float | None
                for name in ("agreement", "retention", "agreement_where_teacher_wrong", "kl", "clips")
            },
            or_null=True,
        ),
        "skipped_in_training": int | None,
        "list": str,
        "split": str | None,
        "protocol": _Object(
            fields={"name": str, "said": str, "fold": int | None}, needed=("name", "said"), or_null=True
        ),
        "model": str,
        "trained_on": int | None,
        "params": int,
        "macs": int,
    },
    needed=("classes", "clips", "skipped", "temporal", "params", "macs"),
)
_DIFFERENCE = _Object(
    fields={
        "mean": float,
        "low": float | None,
        "high": float | None,
        "each": list[float],
        "positive": int,
        "verdict": str,
    },
    needed=("mean", "each"),
)
_ARM = {
    "title": str,
    "runs": list[str],
    "pairs": list[list[int]],
    "top1_each": list[float],
    "top1_mean": float,
    "top1_sd": float | None,
    "seconds_each": list[float],
    "seconds_per_step": float,
    "steps": int,
    "params": int,
    "macs": int,
    "clips": int,
    "skipped": int,
    "differs": list[str],
}
_STUDY = _Object(
    fields={
        "study": dict[str, Any],
        "lists": list[str],
        "list": str,
        "split": str,
        "chance": float,
        "not_compared": list[int],
        "teacher": _Object(fields=_ARM, or_null=True),
        "arms": _Dict(_Object(fields=_ARM)),
        "differences": _Dict(_DIFFERENCE),
        "gap_recovered": _Dict(
            _Object(fields={"mean": float, "low": float | None, "high": float | None}, needed=("mean",), or_null=True)
        ),
        "against": dict[str, _Scores],
        "per_class": dict[str, _Scores],
        "verdict": str,
        "notes": list[str],
    },
)
_SUMMARY = _Object(
    fields={
        "steps": int,
        "seconds": float,
        "clips_per_second": float,
        "params": int,
        "macs": int,
        "val_top1": float | None,
        "val_map": float | None,
        "weights_of_step": int,
        "losses": dict[str, float],
        "seconds_per_step": dict[str, float] | None,
        "skipped": list[str],
        "device": str,
        "processes": int,
        "clips_without_sound": dict[str, int],
    },
)
_RECIPE = _Object(
    fields={
        "seed": int,
        "data": _Object(
            fields={
                "path": str,
                "root": str | None,
                "fold": int | None,
                "class_names": str | None,
                "train_split": str | None,
                "val_split": str | None,
                "unlabelled_per_batch": int | None,
            }
        ),
        "student": dict[str, Any],
        "optim": dict[str, Any],
        "machine": dict[str, Any],
        "objective": dict[str, dict[str, Any]],
        "teachers": _Dict(_Object(fields={"checkpoint": str | None})),
    }
)
_ENVIRONMENT = _Object(fields={"earlier": list[dict[str, Any]], "packages": dict[str, Any]})
_FILES: Mapping[str, _Object] = {
    "recipe.json": _RECIPE,
    "evaluation.json": _EVALUATION,
    "study.json": _STUDY,
    "summary.json": _SUMMARY,
    "environment.json": _ENVIRONMENT,
}
