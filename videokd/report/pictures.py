"""The plots of a comparison of three arms, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from videokd.disk import whole_file
from videokd.report import figures
from videokd.report.looks import looks_of
from videokd.report.svg import STYLE
from videokd.run_files import read_evaluation
from videokd.run_folder import read_metrics

Runs = Mapping[str, Sequence[Path]]


def draw_all(report: Mapping[str, Any], runs: Runs, folder: Path, *, class_order: Sequence[str] = ()) -> list[Path]:
    """Writes every plot of a comparison into `folder` and returns their paths.

    Args:
        report: what `comparison.arms` returned.
        runs: arm -> evaluated run folders.
        folder: made if it is not there.
        class_order: order of the classes in the confusion plot; the model's own if empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arms, looks = report["arms"], looks_of(report["arms"])
    held_out = "top-1 on held-out clips (%)"
    order = {
        title: {arm: found[key] for arm, found in arms.items()}
        for title, key in (("frames in order", "top1_mean"), ("frames shuffled", "shuffled_top1"))
    }
    cost = {arm: (found["macs"], found["top1_mean"]) for arm, found in arms.items()}
    drawn = {
        "accuracy": figures.scores({arm: found["top1_each"] for arm, found in arms.items()}, looks, axis=held_out),
        "learning_curves": _learning_curves(runs, looks),
        "accuracy_over_macs": figures.over_cost(cost, looks, axis="multiply-adds for one clip", score=held_out),
        "confusion": _confusion(runs, looks, class_order),
        "shuffled": figures.bars(order, looks, axis=held_out, names=True),
    }
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        with matplotlib.rc_context(STYLE), whole_file(paths[-1]) as file:
            figure.savefig(file, dpi=140, format="png")
    return paths


def _learning_curves(runs: Runs, looks: figures.Looks) -> Figure:
    """Validation top-1 over the steps."""
    lines = {}
    for arm, folders in runs.items():
        scored = [[row for row in read_metrics(run) if "val_top1" in row] for run in folders]
        lines[arm] = [([row["step"] for row in rows], [row["val_top1"] for row in rows]) for rows in scored if rows]
    figure = figures.curves(
        lines, looks, axis="training steps", percent=True, width=figures.WIDE, height=3.3, names=any(lines.values())
    )
    figure.axes[0].set_ylabel("validation top-1 (%)")
    return figure


def _confusion(runs: Runs, looks: figures.Looks, class_order: Sequence[str]) -> Figure:
    """Which class is taken for which, summed over the seeds of each arm; rows are true classes and sum to 100 %."""
    matrices = {}
    for arm, folders in runs.items():
        found = [read_evaluation(run) for run in folders]
        names = list(class_order) or found[0]["classes"]
        counts = np.sum([_counts(one, names) for one in found], axis=0)
        matrices[looks[arm].title] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return figures.heat(
        matrices,
        rows=names,
        columns=names,
        row_axis="true class",
        column_axis="predicted class",
        percent=True,
        width=4.2,
    )


def _counts(evaluation: Mapping[str, Any], names: Sequence[str]) -> NDArray[np.float64]:
    """Confusion counts with the classes in the order of `names`, whatever the model's own."""
    order = [evaluation["classes"].index(name) for name in names]
    return np.array(evaluation["confusion"], dtype=np.float64)[np.ix_(order, order)]
