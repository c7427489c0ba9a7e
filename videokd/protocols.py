"""How published numbers were measured, by name: so that a number can be put beside a paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from videokd.clips.manifest import Manifest
from videokd.clips.views import ViewGrid
from videokd.config import nearest


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Views, split and folds under which a data set's numbers are published."""

    dataset: str
    grid: ViewGrid
    split: str
    num_classes: tuple[int, ...]
    """Of the data set's versions."""
    folds: int = 1
    """Official splits, over which the number is a mean."""
    used_by: str

    def __str__(self) -> str:
        views = f"{self.grid.temporal} x {self.grid.spatial} views (time x space), probabilities averaged"
        folds = f", mean over {self.folds} official splits" if self.folds > 1 else ""
        return f"{self.dataset}, {self.split} split, {views}{folds}; as in {self.used_by}"

    def check(self, videos: Manifest) -> None:
        """Raises a `ValueError` for a list that is not of this data set: its number of classes is another."""
        if len(videos.classes) not in self.num_classes:
            wanted = " or ".join(map(str, self.num_classes))
            raise ValueError(
                f"{self.dataset} has {wanted} classes, and {videos.source} {len(videos.classes)}: its numbers can't be "
                "put beside that protocol's. Views alone are set by --temporal and --spatial"
            )


def _kinetics(temporal: int, used_by: str) -> Protocol:
    return Protocol(
        dataset="Kinetics",
        grid=ViewGrid(temporal=temporal, spatial=3),
        split="val",
        num_classes=(400, 600, 700, 710),
        used_by=used_by,
    )


def _something(temporal: int, spatial: Any, used_by: str) -> Protocol:
    return Protocol(
        dataset="Something-Something V2",
        grid=ViewGrid(temporal=temporal, spatial=spatial),
        split="val",
        num_classes=(174,),
        used_by=used_by,
    )


def _three_splits(dataset: str, num_classes: int, grid: ViewGrid, used_by: str) -> Protocol:
    return Protocol(dataset=dataset, grid=grid, split="test", num_classes=(num_classes,), folds=3, used_by=used_by)


PROTOCOLS: Mapping[str | None, Protocol] = {
    "kinetics-10x3": _kinetics(10, "SlowFast (arXiv 1812.03982), X3D (2004.04730)"),
    "kinetics-5x3": _kinetics(5, "VideoMAE (2203.12602)"),
    "kinetics-4x3": _kinetics(4, "Video Swin (2106.13230)"),
    "ucf101": _three_splits("UCF101", 101, ViewGrid(), "many papers, whose views differ: say yours"),
    "ucf101-5x3": _three_splits("UCF101", 101, ViewGrid(temporal=5, spatial=3), "VideoMAE (2203.12602)"),
    "hmdb51": _three_splits("HMDB51", 51, ViewGrid(), "many papers, whose views differ: say yours"),
    "hmdb51-10x3": _three_splits("HMDB51", 51, ViewGrid(temporal=10, spatial=3), "VideoMAE (2203.12602)"),
    "ssv2-1x1": _something(1, 1, "TSM (1811.08383), its efficient setting"),
    "ssv2-1x3": _something(1, 3, "Video Swin (2106.13230)"),
    "ssv2-2x3": _something(2, 3, "VideoMAE (2203.12602)"),
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: if there is none.
    """
    known = [one for one in PROTOCOLS if one]
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return PROTOCOLS[name]


def mean_over_folds(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The published number of a data set with several official splits: the mean of its folds' scores, with the
    protocol; None unless `evaluations` are exactly the folds of one protocol.

    Each was trained and scored on its own fold.
    """
    said = [one.get("protocol") for one in evaluations]
    names = {one["name"] if one else None for one in said}
    name = names.pop() if len(names) == 1 else None
    if name not in PROTOCOLS or PROTOCOLS[name].folds == 1:
        return None
    if sorted(one["fold"] for one in said if one) != list(range(1, PROTOCOLS[name].folds + 1)):
        return None
    scores = ("top1", "mean_class_accuracy")
    return {"protocol": str(PROTOCOLS[name]), **{score: fmean(one[score] for one in evaluations) for score in scores}}
