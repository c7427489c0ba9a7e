"""What a model said of every video of a list, in memory and as a parquet file."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videokd.contracts import UNLABELLED
from videokd.disk import write_bytes
from videokd.json_files import parse_json

PREDICTIONS = "predictions.parquet"


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
        )


def write_predictions(folder: str | Path, predictions: Predictions) -> Path:
    """Writes predictions.parquet: a row per video with id, group, path, label, predicted, confidence and logits.

    `label` is a class name, or null; of several-label sets a list of names. The classes, in the order of the logits,
    are in the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    table = pa.table(
        {
            "id": pa.array(predictions.ids, pa.string()),
            "group": pa.array(predictions.groups, pa.string()),
            "path": pa.array(predictions.paths, pa.string()),
            "label": pa.array(label, kind),
            "predicted": pa.array([names[k] for k in best.tolist()], pa.string()),
            "confidence": pa.array(confidence.numpy(), pa.float32()),
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(predictions.logits.contiguous().numpy().reshape(-1), pa.float32()), len(names)
            ),
        }
    )
    said = {"classes": json.dumps(names), "skipped": json.dumps(predictions.skipped)}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(said), buffer)
    path = Path(folder) / PREDICTIONS
    write_bytes(path, buffer.getvalue())
    return path


def read_predictions(folder: str | Path) -> Predictions:
    """What `write_predictions` left in a folder.

    Raises:
        ValueError: if there is none, or another kind of file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / PREDICTIONS
    if not path.is_file():
        raise ValueError(f"{folder} has no {PREDICTIONS}; make it with: videokd evaluate {folder}")
    try:
        table = pq.read_table(path)
        said = {name.decode(): parse_json(value, source=path) for name, value in (table.schema.metadata or {}).items()}
        classes = tuple(said["classes"])
        labels = table["label"].to_pylist()
        logits = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    except (pa.ArrowException, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of predictions: {error}") from error
    number = {name: k for k, name in enumerate(classes)}
    if pa.types.is_list(table.schema.field("label").type):
        label = torch.zeros(len(labels), len(classes))
        for row, names in enumerate(labels):
            if names is None:
                label[row] = UNLABELLED
            else:
                label[row, [number[name] for name in names]] = 1.0
    else:
        label = torch.tensor([UNLABELLED if name is None else number[name] for name in labels], dtype=torch.long)
    return Predictions(
        ids=tuple(table["id"].to_pylist()),
        groups=tuple(table["group"].to_pylist()),
        paths=tuple(table["path"].to_pylist()),
        label=label,
        logits=torch.from_numpy(logits.copy()).view(len(labels), len(classes)),
        classes=classes,
        skipped=tuple(said.get("skipped", ())),
    )
