"""Where the frames of a whole data set are: one memory-mapped file beside the manifest, so that no video is scanned."""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from videokd.clips.reading import Access, VideoIndex
from videokd.disk import write_bytes
from videokd.json_files import MAX_BYTES, parse_json

Row = Mapping[str, NDArray[np.int64]]  # column -> (n,), as long as it needs to be
_FORMAT = "videokd frame table 2"
_FORMER_FORMAT = "videokd frame table 1"
"""Written before damaged frames, contradicting times and mirrored display were looked for."""


class FrameTable:
    """Rows of whole numbers by the id of a video; a process maps the file when it first asks for a row.

    Raises:
        ValueError: for a file that is no frame table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np") as file:
                header = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no frame table ({error}): make it again with `videokd data check`") from error
        self._is_former = header.get("format") == _FORMER_FORMAT
        if not self._is_former and header.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a {_FORMAT!r}: make it again with `videokd data check`")
        try:
            self._columns = [str(column) for column in parse_json(header["columns"], source="columns")]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not name its columns: make it again with `videokd data check`") from error
        self._places: dict[str, int] | None = None
        self._file: Any = safe_open(path, "np")

    @staticmethod
    def beside(manifest: Path) -> "FrameTable | None":
        """The table of this manifest, if it has one."""
        path = table_path(manifest)
        return FrameTable(path) if path.is_file() else None

    def row(self, video_id: str) -> dict[str, NDArray[np.int64]] | None:
        """The columns of one video; None if it has no row."""
        if self._places is None:
            ids = self._file.get_tensor("ids").tobytes().decode("utf-8", "surrogateescape")
            self._places = {name: place for place, name in enumerate(ids.split("\0"))}
        place = self._places.get(video_id)
        if place is None:
            return None
        found = {}
        for column in self._columns:
            start, end = self._file.get_slice(f"{column}.ends")[place : place + 2].tolist()
            found[column] = self._file.get_slice(column)[start:end]
        return found

    def index(self, video_id: str, *, num_bytes: int, packed: bool = False) -> VideoIndex | None:
        """Where a video's frames are; None if that is not known of a file of this size.

        A table of the former format is right for packed videos alone: others have to be scanned again.
        """
        row = None if self._is_former and not packed else self.row(video_id)
        return None if row is None or row["facts"][-1] != num_bytes else index_of(row)

    def __reduce__(self) -> tuple[type["FrameTable"], tuple[Path]]:
        return FrameTable, (self.path,)


def write_table(path: Path, rows: Iterable[tuple[str, Row]]) -> None:
    """Writes (video id, columns) in one go; the file appears whole or not at all."""
    rows = list(rows)
    columns = sorted({column for _, row in rows for column in row})
    nothing = np.empty(0, dtype=np.int64)
    tensors = {"ids": np.frombuffer("\0".join(name for name, _ in rows).encode("utf-8", "surrogateescape"), np.uint8)}
    for column in columns:
        values = [row.get(column, nothing) for _, row in rows]
        tensors[column] = np.concatenate([nothing, *values])
        tensors[f"{column}.ends"] = np.cumsum([0, *map(len, values)])
    # Not `save_file`, whose files only their owner may read.
    write_bytes(path, save(tensors, {"format": _FORMAT, "columns": json.dumps(columns)}))


def table_path(manifest: Path) -> Path:
    """`videos.jsonl` has its table in `videos.frames`."""
    return manifest.with_suffix(".frames")


def row_of(index: VideoIndex, *, num_bytes: int) -> Row:
    """An index as columns; the size of its file tells later whether it still is that file."""
    facts = [index.last_ticks, index.time_base.numerator, index.time_base.denominator]
    facts += [
        index.height,
        index.width,
        index.rotation,
        get_args(Access).index(index.access),
        index.mirrored,
        num_bytes,
    ]
    return {
        "pts": index.pts,
        "packets": index.packets,
        "key_pts": index.key_pts,
        "key_packets": index.key_packets,
        "facts": np.array(facts, dtype=np.int64),
    }


def index_of(row: Row) -> VideoIndex:
    """The index that `row_of` wrote."""
    last_ticks, numerator, denominator, height, width, rotation, access, *mirrored, _ = row["facts"].tolist()
    return VideoIndex(
        pts=row["pts"],
        packets=row["packets"],
        key_pts=row["key_pts"],
        key_packets=row["key_packets"],
        last_ticks=last_ticks,
        time_base=Fraction(numerator, denominator),
        height=height,
        width=width,
        rotation=rotation,
        access=get_args(Access)[access],
        mirrored=any(mirrored),  # the former format did not know of it
    )


def to_text(row: Row) -> dict[str, str]:
    """Columns as text for a JSON line; differences of frame times are small and alike, and pack well."""
    return {
        name: base64.b64encode(zlib.compress(np.diff(values, prepend=0).tobytes())).decode()
        for name, values in row.items()
    }


def from_text(text: Mapping[str, str]) -> Row:
    """The columns that `to_text` wrote."""
    return {
        name: np.cumsum(np.frombuffer(_decompressed(base64.b64decode(packed)), dtype=np.int64))
        for name, packed in text.items()
    }


def _decompressed(data: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(data, MAX_BYTES)
    if not decompressor.eof:
        raise ValueError(f"a column of frame times is cut off, or has more than {MAX_BYTES // 2**20} MiB")
    return content
