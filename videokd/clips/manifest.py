"""A list of videos: one row per video, whatever the form in which the list was found."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

from videokd.clips.pictures import MAX_PIXELS
from videokd.clips.splits import same_split
from videokd.config import nearest
from videokd.disk import write_text

PackedFormat = Literal["mp4", "jpeg", "raw"]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Where a video lies in a packed set."""

    shard: str
    """Path or URL of its tar file."""
    shard_bytes: int
    """Size of the whole shard: a file of another size is not the one that was packed."""
    format: PackedFormat
    offset: int
    """Of its first byte in the shard."""
    size: int
    """Its bytes, from the first to the last."""
    table: str
    """The frame table that knows it, a local file."""

    def __post_init__(self) -> None:
        for name in ("shard_bytes", "offset", "size"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} of a packed video is a number of bytes, 0 or more, not {value!r}")
        if self.offset + self.size > self.shard_bytes:
            raise ValueError(
                f"a packed video of {self.size} bytes from byte {self.offset} on does not lie in its shard of "
                f"{self.shard_bytes} bytes"
            )
        if self.format not in get_args(PackedFormat):
            raise ValueError(f"no packed format {self.format!r}; there are {', '.join(get_args(PackedFormat))}")


@dataclass(frozen=True, kw_only=True)
class Video:
    """One row of a list."""

    id: str
    """The path as the list writes it: a stable name, whatever the folder that holds the set."""
    path: Path
    """The file, or the folder of pictures."""
    label: str | None = None
    """Class name; None where it is unknown, or where there are several."""
    labels: tuple[str, ...] = ()
    """Class names, in sets of several a video."""
    split: str | None = None
    group: str | None = None
    """Source of the clip: clips of one group must not be spread over training and test."""
    frames: int | None = None
    """How many there are, where the list says so."""
    error: str | None = None
    """Why it can't be read, where `videokd data check` found out."""
    packed: Packed | None = None
    """Where it lies in a packed set; None for a file of its own."""
    factors: Mapping[str, Any] | None = None
    """What is known of the content, in synthetic sets."""
    facts: Mapping[str, Any] | None = None
    """What else the list says, kept as it is: fps, seconds, width, height, rotation, hash..."""

    def __hash__(self) -> int:
        return hash((self.id, self.path))

    @property
    def names(self) -> tuple[str, ...]:
        """All its class names."""
        return self.labels or (() if self.label is None else (self.label,))

    def is_there(self) -> bool:
        """Whether its file is; a shard at a URL is taken to be."""
        if self.packed is not None:
            return is_url(self.packed.shard) or Path(self.packed.shard).is_file()
        return self.path.exists()


@dataclass(frozen=True)
class Manifest:
    """A list of videos with the class names in order: a class's number is its place in `classes`."""

    source: Path
    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    has_splits: bool = True
    """False where the list names no splits, and a fifth of its groups (or videos) was made the test split."""
    max_pixels: int = MAX_PIXELS
    """Pixels of a frame above which a video is refused when it is read."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is at least 1, got {self.max_pixels}")

    @property
    def multi_label(self) -> bool:
        """Whether videos may have several classes."""
        return any(video.labels for video in self.videos)

    def split(self, name: str | None) -> "Manifest":
        """The videos of one split, under the same class numbers; all of them where `name` is None.

        A usual word for a split ("validation") finds the split that lists call by another ("val").

        Raises:
            ValueError: if no video is in that split.
        """
        if name is None:
            return self
        videos = tuple(video for video in self.videos if same_split(video.split, name))
        if not videos:
            splits = sorted({video.split for video in self.videos if video.split is not None})
            raise ValueError(f"{self.source} has no video in split {name!r}{nearest(name, splits)}")
        return replace(self, videos=videos)

    def with_classes(self, classes: Sequence[str], *, of: str) -> "Manifest":
        """The same videos under a model's class numbers.

        Raises:
            ValueError: if a video is of a class that `classes`, those `of` the model named, do not have.
        """
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise ValueError(
                f"{self.source} has classes that {of} was not trained for: {', '.join(unknown[:5])}"
                f"{nearest(unknown[0], classes)}"
            )
        return replace(self, classes=tuple(classes))


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Writes JSON lines that `read_manifest` reads back; paths are made relative to the new file's folder."""
    write_rows([row_of(video, folder=path.parent) for video in manifest.videos], path)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes JSON lines; the file appears whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def row_of(video: Video, *, folder: Path) -> dict[str, Any]:
    """A video as an object of a manifest that lies in `folder`.

    Raises:
        ValueError: for a packed video whose shard does not lie in `folder`: it could not be read back.
    """
    row: dict[str, Any] = {"path": video.id if video.packed else relative(video.path, folder)}
    row["label"] = list(video.labels) if video.labels else video.label
    row |= {"split": video.split, "group": video.group}
    if video.frames is not None:
        row["frames"] = video.frames
    row |= video.facts or {}
    if video.packed is not None:
        row["packed"] = asdict(video.packed)
        del row["packed"]["table"]  # it lies beside the manifest
        row["packed"]["shard"] = shard_in(folder, video.packed.shard)
    if video.factors is not None:
        row["factors"] = video.factors
    return row


def shard_in(folder: Path, shard: str) -> str:
    """The name under which a list in `folder` can name a shard.

    Raises:
        ValueError: if it lies elsewhere.
    """
    name = "" if is_url(shard) else relative(Path(shard), folder)
    if is_url(shard) or name.startswith("../"):
        raise ValueError(
            f"a list names no shard outside of its own folder: write the list of a packed set into {Path(shard).parent}"
            + (", on a copy of the set on this machine" if is_url(shard) else "")
        )
    return name


def shard_name(name: object) -> str:
    """The name of a shard as an index writes it: a file in the index's own folder, or in a folder of that.

    Names are judged as they are written. Links in the folder are followed: its owner made them, and download caches
    keep sets as links.

    Raises:
        ValueError: for a name that leads elsewhere: a URL, an absolute path, `..`, also in percent-encoding.
    """
    if not isinstance(name, str):
        raise ValueError(f"a shard is named by a text, not {name!r}")
    decoded = name
    while (once_more := unquote(decoded)) != decoded:
        decoded = once_more
    parts = decoded.split("/")
    if set(parts) & {"", ".", ".."} or re.search(r"[\\:?#\x00-\x1f\x7f]", decoded) or len(decoded) > 1000:
        raise ValueError(f"{name!r} is not the name of a shard in the folder of its index, such as 000000.tar")
    return name


def relative(path: Path, folder: Path) -> str:
    """The path as seen from a folder, with forward slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


def is_test(split: str | None) -> bool:
    """Whether a split is one to test on, by its name: "test", "Test", "testing", "test1"..."""
    return split is not None and split.lower().startswith("test")


def is_url(path: str | Path) -> bool:
    """Whether it names something to be fetched, such as s3://bucket/set/index.jsonl."""
    return "://" in str(path)
