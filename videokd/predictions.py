"""A model's predictions for every video of a list, in memory and as a parquet file."""

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videokd.contracts import UNLABELLED
from videokd.disk import write_bytes
from videokd.json_files import parse_json

PREDICTIONS, VALIDATION = "predictions.parquet", "validation.parquet"
FORMAT = 2
"""Of the file; 1 has no format in it, and paths as they were given."""
MAX_DECODED_BYTES = 8 * 2**30
"""A file whose columns take more memory than this is refused before they are read."""
_MAX_TEXT = 2**16
_NAMES = ("id", "group", "path")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model said of every clip of a list that could be read, over all its views."""

    ids: tuple[str, ...]  # (N,)
    groups: tuple[str, ...]  # (N,), the source of each clip; its id where that is unknown
    paths: tuple[str, ...]  # (N,)
    label: Tensor  # int64 (N,), UNLABELLED where unknown; of several-label sets float32 (N, K), -1 where unknown
    logits: Tensor  # float32 (N, K)
    classes: tuple[str, ...]  # (K,)
    skipped: tuple[str, ...] = ()  # one sentence for each clip that could not be read
    folder: str | None = None  # where they were written, absolute; None if they were not

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def several_labels(self) -> bool:
        """Whether a clip may have several classes."""
        return self.label.ndim == 2

    @property
    def predicted(self) -> Tensor:
        """Most likely class, int64 (N,)."""
        return self.logits.argmax(dim=1)

    @property
    def probabilities(self) -> Tensor:
        """float32 (N, K); of several-label sets, each class's own."""
        return self.logits.sigmoid() if self.several_labels else self.logits.softmax(dim=1)

    @property
    def is_labelled(self) -> Tensor:
        """bool (N,)."""
        return (self.label if self.label.ndim == 1 else self.label[:, 0]) != UNLABELLED

    def rows(self, rows: Tensor) -> "Predictions":
        """Some of the clips: int64 (M,), or bool (N,)."""
        numbers = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).tolist()
        return Predictions(
            ids=tuple(self.ids[row] for row in numbers),
            groups=tuple(self.groups[row] for row in numbers),
            paths=tuple(self.paths[row] for row in numbers),
            label=self.label[numbers],
            logits=self.logits[numbers],
            classes=self.classes,
            skipped=self.skipped,
            folder=self.folder,
        )

    def of(self, ids: Sequence[str], classes: Sequence[str]) -> "Predictions":
        """The same clips in the order of `ids`, and the same classes in the order of `classes`.

        Raises:
            ValueError: if the clips, or the classes, are not the same ones.
        """
        for kind, mine, theirs in (("clip", self.ids, ids), ("class", self.classes, classes)):
            if differing := sorted(set(mine) ^ set(theirs)):
                those = f"{len(differing)} {kind}{'e' * (kind == 'class')}s"
                raise ValueError(f"{those} were known to one of two models alone, such as {differing[0]!r}")
        place = {name: row for row, name in enumerate(self.ids)}
        found = self.rows(torch.tensor([place[name] for name in ids], dtype=torch.long))
        order = [self.classes.index(name) for name in classes]
        number = torch.tensor([classes.index(name) for name in self.classes] + [UNLABELLED])
        label = found.label[:, order] if self.several_labels else number[found.label]
        return Predictions(
            ids=found.ids,
            groups=found.groups,
            paths=found.paths,
            label=label,
            logits=found.logits[:, order],
            classes=tuple(classes),
            skipped=self.skipped,
            folder=self.folder,
        )


def write_predictions(folder: str | Path, predictions: Predictions, *, name: str = PREDICTIONS) -> Path:
    """Write a parquet file: a row per video with id, group, path, label, predicted, confidence and logits.

    `label` is a class name, or null; of several-label sets a list of names. Paths are absolute. The classes, in the
    order of the logits, and the folder that the file is written to are in its metadata.

    Raises:
        ValueError: if the outputs of a clip are not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_finite(predictions)
    names = predictions.classes
    confidence, best = predictions.probabilities.max(dim=1)
    label: list[Any]
    if predictions.several_labels:
        label = [
            [names[k] for k in (row == 1).nonzero().flatten().tolist()] if row[0] != UNLABELLED else None
            for row in predictions.label
        ]
    else:
        label = [names[k] if k != UNLABELLED else None for k in predictions.label.tolist()]
    kind = pa.list_(pa.string()) if predictions.several_labels else pa.string()
    # In a packed set at a URL the double slash is lost: "s3:/...".
    paths = [path if re.match("[a-z][a-z0-9+.-]+:/", path) else os.path.abspath(path) for path in predictions.paths]
    table = pa.table(
        {
            "id": pa.array(predictions.ids, pa.string()),
            "group": pa.array(predictions.groups, pa.string()),
            "path": pa.array(paths, pa.string()),
            "label": pa.array(label, kind),
            "predicted": pa.array([names[k] for k in best.tolist()], pa.string()),
            "confidence": pa.array(confidence.numpy(), pa.float32()),
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(predictions.logits.contiguous().numpy().reshape(-1), pa.float32()), len(names)
            ),
        }
    )
    metadata = {
        "classes": json.dumps(names),
        "skipped": json.dumps(predictions.skipped),
        "folder": json.dumps(str(Path(folder).resolve())),
        "format": json.dumps(FORMAT),
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    path = Path(folder) / name
    write_bytes(path, buffer.getvalue())
    return path


def read_predictions(folder: str | Path, *, name: str = PREDICTIONS) -> Predictions:
    """Return what `write_predictions` left in a folder.

    Raises:
        ValueError: if there is no such file, or it is damaged, of another format or inconsistent: naming the file,
            what is wrong and how to make it again.
    """
    import pyarrow as pa

    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}; make it with: videokd evaluate {folder}")
    try:
        return _read(path)
    except (ValueError, KeyError, OSError, MemoryError, RecursionError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is not a file of predictions, or a damaged one: {str(error) or type(error).__name__}; "
            f"make it again with: videokd evaluate {folder}"
        ) from error


def find_video(predictions: Predictions, row: int, run: str | Path) -> Path | None:
    """Return where a video is now, or None if it is not found.

    It may be where it was when it was scored, or at the same place relative to the run's folder: a run that was moved
    together with its videos still finds them.

    Args:
        predictions: of the run.
        row: number of the clip.
        run: the folder that the predictions were read from.
    """
    stored = predictions.paths[row]
    places = [Path(stored)]
    if predictions.folder is not None and Path(stored).is_absolute():
        places.append(Path(run).resolve() / os.path.relpath(stored, predictions.folder))
    elif not Path(stored).is_absolute():
        places.append(Path(run) / stored)
    return next((place for place in places if place.exists()), None)


def distinct_names(names: Any, what: str) -> tuple[str, ...]:
    """Return a list of names as a tuple.

    Raises:
        ValueError: if it is empty, is no list of texts, or names one twice.
    """
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its {what} are {str(names)[:60]}, and should be a list of names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its {what} name {twice!r} twice")
    return tuple(names)


def _read(path: Path) -> Predictions:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        stored = {key: value for key, value in (schema.metadata or {}).items() if key in _METADATA}
        metadata = {key.decode(): parse_json(value, source=path) for key, value in stored.items()}
        if (version := metadata.get("format", 1)) not in (1, FORMAT):
            raise ValueError(f"it has format {version!r}, and this version reads up to {FORMAT}: update videokd")
        if missing := [name for name in (*_NAMES, "label", "logits") if name not in schema.names]:
            raise ValueError(f"it has no column {', '.join(missing)}; there are: {', '.join(schema.names)}")
        if "classes" not in metadata:
            raise ValueError("its metadata do not name the classes")
        classes = distinct_names(metadata["classes"], "classes")
        _check_columns(schema)
        _check_size(file, len(classes))
    # A text that is in many rows is kept once, so that a small file stays small.
    once = [name for name in (*_NAMES, "label") if not _is_list(schema.field(name).type)]
    batches, decoded = [], 0
    with pq.ParquetFile(path, read_dictionary=once) as file:
        for batch in file.iter_batches(batch_size=4096, columns=[*_NAMES, "label", "logits"]):
            decoded += batch.nbytes
            if decoded > MAX_DECODED_BYTES:
                raise ValueError(f"its columns take more than {MAX_DECODED_BYTES // 2**30} GiB of memory")
            _check_lengths(batch, len(classes))
            batches.append(batch)
    if not sum(batch.num_rows for batch in batches):
        raise ValueError("it has no row")
    table = pa.Table.from_batches(batches)
    columns = {name: table[name].to_pylist() for name in (*_NAMES, "label")}
    for name in _NAMES:
        if None in columns[name]:
            raise ValueError(f"column {name} has no value in row {columns[name].index(None)}")
    if len(set(columns["id"])) < table.num_rows:
        raise ValueError("an id is there twice")
    values = [batch["logits"].flatten().to_numpy(zero_copy_only=False) for batch in batches]
    skipped, folder = metadata.get("skipped", []), metadata.get("folder")
    if not isinstance(skipped, list) or not all(isinstance(one, str) for one in skipped):
        raise ValueError(f"its metadata name the skipped videos as {str(skipped)[:60]}, and should be a list of texts")
    found = Predictions(
        ids=tuple(columns["id"]),
        groups=tuple(columns["group"]),
        paths=tuple(columns["path"]),
        label=_label_numbers(columns["label"], columns["id"], classes, several=_is_list(schema.field("label").type)),
        logits=torch.cat([torch.tensor(part, dtype=torch.float32) for part in values]).view(-1, len(classes)),
        classes=classes,
        skipped=tuple(skipped),
        folder=folder if isinstance(folder, str) else None,
    )
    _check_finite(found)
    return found


_METADATA = (b"classes", b"skipped", b"folder", b"format")


def _check_size(file: Any, num_classes: int) -> None:
    """Refuse a file that says to be larger than memory, before it is decoded: a few bytes can stand for many rows."""
    metadata = file.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    stored = sum(group.total_byte_size for group in groups)
    decoded = max(stored, 4 * values, 4 * metadata.num_rows * num_classes)
    if decoded > MAX_DECODED_BYTES:
        raise ValueError(
            f"it says to have {metadata.num_rows:,} rows of {num_classes} classes, {decoded / 2**30:,.0f} GiB, and at "
            f"most {MAX_DECODED_BYTES // 2**30} GiB are read"
        )


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _check_columns(schema: Any) -> None:
    import pyarrow as pa

    def is_text(kind: Any) -> bool:
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner))

    for name in (*_NAMES, "label"):
        kind = schema.field(name).type
        if not is_text(kind) and not (name == "label" and _is_list(kind) and is_text(kind.value_type)):
            raise ValueError(f"column {name} is {kind}, and should be text{' or lists of it' * (name == 'label')}")
    kind = schema.field("logits").type
    of_numbers = _is_list(kind) or pa.types.is_fixed_size_list(kind)
    if not of_numbers or not pa.types.is_floating(kind.value_type):
        raise ValueError(f"column logits is {kind}, and should be lists of numbers")


def _check_lengths(batch: Any, num_classes: int) -> None:
    """Refuse logits of another number of classes, and texts that nobody writes, before they are made Python's."""
    import pyarrow.compute as pc

    column = batch["logits"]
    lengths = pc.list_value_length(column)
    if column.null_count or (len(batch) and not pc.all(pc.equal(lengths, num_classes)).as_py()):
        raise ValueError(f"a row has not one logit for each of the {num_classes} classes")
    if column.flatten().null_count:
        raise ValueError("a logit has no value")
    for name in (*_NAMES, "label"):
        texts = batch[name]
        texts = texts.flatten() if _is_list(texts.type) else texts
        texts = texts.dictionary if hasattr(texts, "dictionary") else texts
        if len(texts) and (longest := pc.max(pc.binary_length(texts)).as_py() or 0) > _MAX_TEXT:
            raise ValueError(f"a text in column {name} has {longest:,} bytes")


def _label_numbers(labels: list[Any], ids: list[str], classes: tuple[str, ...], *, several: bool) -> Tensor:
    number = {name: k for k, name in enumerate(classes)}
    rows = [row if several else None if row is None else [row] for row in labels]
    strange = {name: ids[place] for place, row in enumerate(rows) for name in row or () if name not in number}
    if strange:
        name, video = next(iter(strange.items()))
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise ValueError(
            f"{len(strange)} of its labels are not among its {len(classes)} classes ({shown}): {name!r}, of {video}"
        )
    if not several:
        return torch.tensor([UNLABELLED if row is None else number[row[0]] for row in rows], dtype=torch.long)
    label = torch.zeros(len(rows), len(classes))
    for place, row in enumerate(rows):
        label[place] = UNLABELLED if row is None else label[place]
        label[place, [number[name] for name in row or ()]] = 1.0
    return label


def _check_finite(predictions: Predictions) -> None:
    """Raise a `ValueError` for outputs from which no probabilities follow."""
    bad = (~predictions.probabilities.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the logits of {len(bad)} of {len(predictions)} clips are NaN or infinite, such as of "
            f"{predictions.ids[bad[0]]}: the model diverged, or its precision is too low (--machine.precision fp32)"
        )
