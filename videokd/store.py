"""What teachers said of every view of every clip, on disk: records of one size, written by shards, mapped into memory.

header.json         what the outputs were made from, and where in a record everything lies
clips.jsonl         one row per clip, in the order of the records
shard-1-of-2.bin    the records of the first half of the clips: row = clip x views + view
shard-1-of-2.json   who made them, which of them are of videos that couldn't be read, and a checksum
content_hashes.jsonl   hashes of the videos, kept so that an unchanged file is read once
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videokd.clips.dataset import VIEWS, ClipDataset, file_bytes
from videokd.clips.hashes import ContentHashes
from videokd.config import differing_fields, nearest, to_plain
from videokd.contracts import FeatureMap, Grid, Outputs
from videokd.disk import whole_file
from videokd.json_files import parse_json, read_lines, read_object
from videokd.models import Model
from videokd.records import Contents, StoredType, spread
from videokd.stored_shards import HEADER, check_shards, facts_path, mapped, missing_shards, shard_clips, shard_path

FORMAT = 2
CLIPS, HASHES = "clips.jsonl", "content_hashes.jsonl"
_GRIDS: tuple[Grid, ...] = ("clip", "frames", "map")  # from coarse to fine


def fingerprint(dataset: ClipDataset, models: Mapping[str, Model[Any]]) -> dict[str, Any]:
    """What stored outputs depend on, as plain data: the teachers, what every party sees (they are placed jointly), how
    views are drawn, and who reads them. The same on every machine.

    Args:
        dataset: with the views of all parties.
        models: the teachers whose outputs are stored.
    """
    specs = {party: _plain(spec) for party, spec in (dataset.specs | dataset.sounds).items()}
    for part in ("mean", "std"):  # what the student does at its own door changes no view
        specs.get("student", {}).pop(part, None)
    teachers = {
        # Where weights come from is no matter: they are compared themselves.
        name: {"weights": weights_hash(model), "model": _plain(model.config, without=("weights", "source"))}
        for name, model in models.items()
    }
    return {
        "teachers": teachers,
        "view_of": specs,
        "augment": _plain(dataset.augment),
        "view_seed": dataset.seed,
        "classes": list(dataset.classes),
        "reader": {"backend": dataset.backend, "in_memory": dataset.memory is not None, "convention": VIEWS},
    }


def weights_hash(model: Model[Any]) -> str:
    """Of names, types, shapes and values of a model's weights; the same on every device."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def clip_rows(dataset: ClipDataset, hashes: ContentHashes) -> list[dict[str, Any]]:
    """What tells whether a clip is the one whose outputs were stored, one row each. All processes must call it."""
    return [
        {"id": video.id, "bytes": file_bytes(video), "hash": found, "may_flip": dataset.may_flip(index)}
        for index, (video, found) in enumerate(zip(dataset.videos, hashes.of(dataset.videos), strict=True))
    ]


def _plain(value: object, without: Sequence[str] = ()) -> Any:
    """A configuration with its classes by their bare names, wherever they are defined, and without some fields."""

    def cut(one: Any) -> Any:
        if isinstance(one, list):
            return [cut(part) for part in one]
        if not isinstance(one, Mapping):
            return one
        kept = {key: cut(part) for key, part in one.items() if key not in without}
        return kept | ({"type": kept["type"].rpartition(":")[2]} if "type" in kept else {})

    return cut(to_plain(value))


def make_header(
    *,
    made_from: Mapping[str, Any],
    contents: Mapping[str, Contents],
    layout: np.dtype[np.void],
    clips: Sequence[Mapping[str, Any]],
    views: int,
    shards: int,
    dtype: StoredType,
    top_k: int | None,
    pieces: int,
) -> dict[str, Any]:
    """What header.json says: the same for every shard.

    Args:
        made_from: see `fingerprint`.
        contents: of a record, by teacher.
        layout: of a record.
        clips: see `clip_rows`.
        views: of a clip.
        shards: how many.
        dtype: of logits and features.
        top_k: how many classes are kept; None for all.
        pieces: of time that are shuffled; 0 for none.
    """
    assert layout.fields is not None
    assert layout.names is not None
    fields = []
    for name in layout.names:
        kind, offset = layout.fields[name][:2]
        fields.append({"name": name, "dtype": kind.base.str, "shape": list(kind.shape), "offset": offset})
    return {
        "format": FORMAT,
        "clips": {"count": len(clips), "sha256": hashlib.sha256(_lines(clips)).hexdigest()},
        "views": views,
        "shards": shards,
        "dtype": dtype,
        "top_k": top_k,
        "pieces": pieces,
        "teachers": {
            name: {"classes": one.classes, "may_be_silent": one.may_be_silent, "taps": dict(one.taps)}
            for name, one in contents.items()
        },
        "record_bytes": layout.itemsize,
        "fields": fields,
        "made_from": dict(made_from),
    }


def claim(folder: Path, header: Mapping[str, Any], clips: Sequence[Mapping[str, Any]]) -> None:
    """Writes header and clips into `folder`, or finds that they are there already; any number of shards may.

    Raises:
        ValueError: if the folder holds outputs of something else, naming the fields that differ, or other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HEADER
    if not path.is_file():
        others = [file.name for file in folder.iterdir() if not file.name.startswith(f"{HEADER}.")]
        if others and not path.is_file():
            raise ValueError(f"{folder} already holds something else ({others[0]}); name another --out")
        _write_if_new(path, json.dumps(header, indent=1) + "\n")
    _refuse_differences(folder, read_header(folder), json.loads(json.dumps(header)), clips)
    text = _lines(clips)
    if not (folder / CLIPS).is_file() or (folder / CLIPS).read_bytes() != text:
        _write_if_new(folder / CLIPS, text.decode(), replace=True)


def read_header(folder: Path) -> dict[str, Any]:
    """The header of stored outputs.

    Raises:
        ValueError: if there is none that this version reads.
    """
    path = folder / HEADER
    if not path.is_file():
        raise ValueError(f"{folder} holds no stored outputs (no {HEADER}): make them with `videokd label`")
    header = read_object(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} has format {header.get('format')}, this version reads {FORMAT}: label again")
    if fault := _fault(header):
        raise ValueError(f"{path} is not what `videokd label` writes: {fault}")
    return header


def _fault(header: Mapping[str, Any]) -> str | None:
    """What is wrong with a header, in so far as files are read by it."""
    for name, most in (("views", 2**31), ("shards", 2**20), ("record_bytes", 2**31), ("pieces", 2**31)):
        if not isinstance(header.get(name), int) or not 0 <= header[name] < most:
            return f"{name!r} is {header.get(name)!r}"
    for name in ("clips", "made_from", "teachers"):
        if not isinstance(header.get(name), dict):
            return f"{name!r} is not an object"
    fields = header.get("fields")
    if not isinstance(fields, list) or not all(isinstance(field, dict) for field in fields):
        return "'fields' is not a list of objects"
    for field in fields:
        try:
            kind = np.dtype((np.dtype(field["dtype"]), tuple(field["shape"])))
            inside = 0 <= field["offset"] <= header["record_bytes"] - kind.itemsize
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            return f"the field {field!r}: {error}"
        # Bytes of a file that are read as Python objects are addresses of code.
        if kind.base.kind not in "biuf" or not inside or not isinstance(field.get("name"), str):
            return f"the field {field!r}"
    return None


class StoredOutputs:
    """What lies in a folder of stored outputs, mapped into memory.

    Args:
        folder: that `videokd label` made.

    Raises:
        ValueError: if there is none, shards are missing or damaged, or are those of another store.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.views: int = self.header["views"]
        """Of every clip."""
        shards: int = self.header["shards"]
        if missing := missing_shards(self.folder, shards):
            named = ", ".join(f"{number}/{shards}" for number in missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {shards} shards: {named}. Run `videokd label` with --shard for "
                "each of them"
            )
        text = (self.folder / CLIPS).read_bytes()
        if hashlib.sha256(text).hexdigest() != self.header["clips"]["sha256"]:
            raise ValueError(f"{self.folder / CLIPS} is not the one that was written: label again, into another folder")
        self.clips: list[dict[str, Any]] = [parse_json(line, source=self.folder / CLIPS) for line in text.splitlines()]
        """One row per clip."""
        self._places = {row["id"]: place for place, row in enumerate(self.clips)}
        fields = self.header["fields"]
        layout: np.dtype[np.void] = np.dtype(
            {
                "names": [field["name"] for field in fields],
                "formats": [(field["dtype"], tuple(field["shape"])) for field in fields],
                "offsets": [field["offset"] for field in fields],
                "itemsize": self.header["record_bytes"],
            }
        )
        ranges = [shard_clips(len(self.clips), number, shards) for number in range(1, shards + 1)]
        paths = [shard_path(self.folder, number, shards) for number in range(1, shards + 1)]
        self._starts = np.array([clips.start * self.views for clips in ranges])
        self._shards = [mapped(path, layout, len(clips) * self.views) for path, clips in zip(paths, ranges)]
        check_shards(paths)
        made = [read_object(facts_path(path)) for path in paths]
        self.invalid: frozenset[int] = frozenset(
            int(start) + row for one, start in zip(made, self._starts) for row in one["invalid"]
        )
        """Rows of views of videos that couldn't be read."""
        self.precisions: frozenset[str] = frozenset(one["precision"] for one in made)
        """In which the shards were computed."""

    def rows(self, ids: Sequence[str], views: Sequence[int]) -> NDArray[np.int64]:
        """Where the records of these views of clips are.

        Raises:
            ValueError: for a clip or a view that is not there.
        """
        for one, view in zip(ids, views):
            if one not in self._places or not 0 <= view < self.views:
                raise ValueError(
                    f"{self.folder} has nothing of view {view} of clip {one} (views are 0 to {self.views - 1})"
                )
        return np.array([self._places[one] for one in ids], dtype=np.int64) * self.views + np.array(views, np.int64)

    def read(self, field: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """One field of some records, (N, ...), copied."""
        places = np.searchsorted(self._starts, rows, side="right") - 1
        parts = {int(place): self._shards[place][field] for place in np.unique(places)}
        some = next(iter(parts.values()))
        found = np.empty((len(rows), *some.shape[1:]), dtype=some.dtype)
        for place, part in parts.items():
            mine = places == place
            found[mine] = part[rows[mine] - self._starts[place]]
        return found

    def outputs(
        self, teacher: str, ids: Sequence[str], views: Tensor, device: torch.device, *, taps: Mapping[str, Grid]
    ) -> Outputs:
        """What a teacher said of these views of clips, fp32.

        Args:
            teacher: its name.
            ids: names of the clips.
            views: (B,), their view numbers.
            device: where the outputs are wanted.
            taps: those that are wanted, at least as finely as they are kept.
        """
        rows, header = self.rows(ids, views.tolist()), self.header["teachers"][teacher]

        def read(field: str) -> Tensor:
            found = torch.from_numpy(self.read(f"{teacher}/{field}", rows)).to(device)
            return found.float() if found.dtype == torch.float16 else found

        logits = None
        if header["classes"] is not None and self.header["top_k"] is None:
            logits = read("logits")
        elif header["classes"] is not None:
            logits = spread(read("top"), read("top classes"), read("rest"), num_classes=header["classes"])
        features = {
            tap: FeatureMap(read(f"features/{tap}"), read(f"times/{tap}")).pooled(grid) for tap, grid in taps.items()
        }
        known = read("known").bool() if header["may_be_silent"] else None
        if self.invalid:
            valid = torch.tensor([row not in self.invalid for row in rows.tolist()]).to(device)
            known = valid if known is None else known & valid
        return Outputs(logits, features, known)

    def teacher(
        self, name: str, taps: Mapping[str, Grid], *, shuffled: bool, needs_raw_logits: bool
    ) -> "partial[Outputs]":
        """What stands in for a teacher: see `outputs`.

        Args:
            name: of the teacher.
            taps: that are wanted of it, and how finely.
            shuffled: whether they are wanted of shuffled clips too.
            needs_raw_logits: whether probabilities are not enough.

        Raises:
            ValueError: if something that is wanted was not stored.
        """
        if name not in self.header["teachers"]:
            raise ValueError(f"{self.folder} holds nothing of teacher {name!r}{nearest(name, self.header['teachers'])}")
        kept = self.header["teachers"][name]["taps"]
        wanted = {**taps, **({f"shuffled {tap}": grid for tap, grid in taps.items()} if shuffled else {})}
        for tap, grid in wanted.items():
            if tap not in kept or _GRIDS.index(kept[tap]) < _GRIDS.index(grid):
                there = f"only as {kept[tap]!r}" if tap in kept else f"not{nearest(tap, kept)}"
                raise ValueError(
                    f"a term wants tap {tap!r} of teacher {name!r} as {grid!r}, which {self.folder} holds {there}: "
                    "label with the recipe that is trained"
                )
        if needs_raw_logits and self.header["top_k"] is not None:
            raise ValueError(
                f"a term looks at more of teacher {name!r} than its probabilities, and {self.folder} holds the "
                f"likeliest {self.header['top_k']} classes: label without --top-k"
            )
        return partial(self.outputs, name, taps=wanted)

    def check(
        self,
        dataset: ClipDataset,
        made_from: Mapping[str, Any],
        *,
        views: int,
        pieces: int,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Raises a `ValueError` that names what differs, if a run would see other views or other teachers than those
        whose outputs are stored. Videos are compared by their content; all processes must call this.

        Args:
            dataset: what is trained on; a part of what is stored will do.
            made_from: see `fingerprint`.
            views: of a clip that are trained on.
            pieces: of time that are shuffled; 0 for none.
            notify: called with a sentence before videos are read for long.
        """
        found = json.loads(json.dumps(made_from))
        if differing := differing_fields(self.header["made_from"], found):
            raise ValueError(f"{self.folder} holds outputs of something else: {_described(differing)}")
        if pieces and pieces != self.header["pieces"]:
            raise ValueError(
                f"{self.folder} holds outputs of clips shuffled in {self.header['pieces']} pieces, and terms want "
                f"{pieces}"
            )
        if views > self.views:
            raise ValueError(
                f"{self.folder} holds {self.views} views of a clip: set data.views to at most that, not {views}"
            )
        hashes = ContentHashes(self.folder / HASHES, notify)
        wrong = other_clips(self.clips, clip_rows(dataset, hashes))
        hashes.save()
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(
                f"{self.folder} holds outputs of other clips: {'; '.join(wrong[:5])}{more}. "
                "Label the set again, into another folder, or leave these clips out of the list"
            )

    def unreadable(self, dataset: ClipDataset) -> list[str]:
        """The clips of which the outputs of some view are missing, because they couldn't be read."""
        bad = {self.clips[row // self.views]["id"] for row in self.invalid}
        return [video.id for video in dataset.videos if video.id in bad]


def other_clips(stored: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each clip of now that was not stored as it is."""
    known = {row["id"]: row for row in stored}
    wrong = []
    for row in now:
        before = known.get(row["id"])
        if before is None:
            wrong.append(f"{row['id']} is not among them")
        elif before["bytes"] != row["bytes"]:
            wrong.append(f"{row['id']} has {row['bytes']} bytes, and had {before['bytes']}")
        elif None not in (now_hash := row.get("hash"), hash_before := before.get("hash")) and now_hash != hash_before:
            wrong.append(f"the content of {row['id']} has changed, at the same size")
        elif before["may_flip"] != row["may_flip"]:
            wrong.append(f"{row['id']} may {'' if row['may_flip'] else 'not '}be flipped now, by its class")
    return wrong


def _refuse_differences(
    folder: Path, stored: Mapping[str, Any], now: Mapping[str, Any], clips: Sequence[Mapping[str, Any]]
) -> None:
    differing = differing_fields({**stored, "fields": None}, {**now, "fields": None})
    if not differing and stored["fields"] == now["fields"]:
        return
    said = _described(differing or {"fields": (stored["fields"], now["fields"])})
    if "clips.sha256" in differing and (folder / CLIPS).is_file():
        before = read_lines(folder / CLIPS)
        said += "".join(f"; clip {one}" for one in other_clips(before, clips)[:3])
    raise ValueError(f"{folder} holds outputs of something else: {said}. Name another --out")


def _described(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Fields that differ, with both values."""

    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 40 else f"{text[:37]}..."

    named = [f"{name} was {short(before)} and is {short(now)}" for name, (before, now) in list(differing.items())[:5]]
    return "; ".join(named) + (f"; and {len(differing) - 5} more" if len(differing) > 5 else "")


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _write_if_new(path: Path, text: str, *, replace: bool = False) -> None:
    """Writes a file whole, while others may be doing the same. One that is there stays, unless it is to be replaced."""
    with whole_file(path, shared=True, keep=not replace) as file:
        file.write(text.encode())
