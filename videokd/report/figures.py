"""Plots of a comparison, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from videokd.report.comparison import read_evaluation
from videokd.report.tables import NAMES
from videokd.run_folder import read_metrics

ARMS = ("teacher", "alone", "distilled")
COLOURS = {"teacher": "#444444", "alone": "#d1495b", "distilled": "#00798c"}
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
    figures = {
        "accuracy": accuracy(report),
        "learning_curves": learning_curves(runs),
        "accuracy_over_macs": accuracy_over_macs(report),
        "confusion": confusion(runs, class_order),
        "shuffled": shuffled(report),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def accuracy(report: Mapping[str, Any]) -> Figure:
    """Top-1 of the arms: mean, deviation and every seed."""
    figure, axes = _canvas(width=5.2, height=3.8)
    for place, arm in enumerate(ARMS):
        found = report["arms"][arm]
        mean = 100 * found["top1_mean"]
        axes.bar(place, mean, color=COLOURS[arm], width=0.6, yerr=100 * (found["top1_sd"] or 0), capsize=5, alpha=0.85)
        seeds = [100 * value for value in found["top1_each"]]
        places = place + 0.12 * (np.arange(len(seeds)) - (len(seeds) - 1) / 2)
        axes.plot(places, seeds, "o", color="white", markeredgecolor="black", ms=5)
        # Above the error bar and the highest seed, so that neither crosses the number.
        top = max(max(seeds), mean + 100 * (found["top1_sd"] or 0))
        axes.annotate(f"{mean:.1f}", (place, top), (0, 6), textcoords="offset points", ha="center", weight="bold")
    axes.set_xticks(range(3), [NAMES[arm] for arm in ARMS])
    axes.set_ylabel("top-1 on held-out clips (%)")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    pairs = len(report["arms"]["alone"]["top1_each"])
    axes.set_title(f"{pairs} paired seed{'s' if pairs > 1 else ''}; bars: mean, lines: standard deviation", fontsize=9)
    return figure


def learning_curves(runs: Runs) -> Figure:
    """Validation top-1 over the steps of every run, faint, and the mean of the arm."""
    figure, axes = _canvas(width=6.4, height=3.8)
    for arm in ARMS:
        curves = []
        for run in runs[arm]:
            scored = [(row["step"], 100 * row["val_top1"]) for row in read_metrics(run) if "val_top1" in row]
            if scored:
                steps, values = np.array(scored).T
                axes.plot(steps, values, color=COLOURS[arm], alpha=0.3, linewidth=1)
                curves.append(values)
        if curves:
            axes.plot(steps, np.mean(curves, axis=0), color=COLOURS[arm], linewidth=2.2, label=NAMES[arm])
    axes.set_xlabel("training steps")
    axes.set_ylabel("validation top-1 (%)")
    axes.set_ylim(0, 100)
    if axes.lines:
        axes.legend(loc="lower right", frameon=False)
    return figure


def accuracy_over_macs(report: Mapping[str, Any]) -> Figure:
    """Top-1 over the cost of one clip; the area of a dot is its number of parameters."""
    figure, axes = _canvas(width=5.2, height=3.8)
    largest = max(report["arms"][arm]["params"] for arm in ARMS)
    for arm in ARMS:
        found = report["arms"][arm]
        macs, mean = found["macs"] / 1e6, 100 * found["top1_mean"]
        axes.scatter(macs, mean, s=40 + 400 * found["params"] / largest, color=COLOURS[arm], alpha=0.85)
        axes.annotate(
            f"{NAMES[arm]}\n{found['params'] / 1e3:,.0f} k parameters",
            (macs, mean),
            (14, 0) if arm != "teacher" else (-16, 0),
            textcoords="offset points",
            ha="left" if arm != "teacher" else "right",
            va="center",
            fontsize=9,
        )
    axes.set_xscale("log")
    cheapest, dearest = (pick(report["arms"][arm]["macs"] for arm in ARMS) / 1e6 for pick in (min, max))
    axes.set_xlim(cheapest / 2, dearest * 2)
    axes.set_ylim(0, 105)
    axes.set_xlabel("MMAC per clip (log scale)")
    axes.set_ylabel("top-1 (%)")
    return figure


def confusion(runs: Runs, class_order: Sequence[str] = ()) -> Figure:
    """Which class is taken for which, summed over the seeds of each arm; rows are true classes and sum to 100 %."""
    figure = Figure(figsize=(12.6, 4.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, arm in zip(panels, ARMS, strict=True):
        found = [read_evaluation(run) for run in runs[arm]]
        names = list(class_order) or found[0]["classes"]
        counts = np.sum([_counts(run, names) for run in found], axis=0)
        image = axes.imshow(
            100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), vmin=0, vmax=100, cmap="magma_r"
        )
        axes.set_title(NAMES[arm], color=COLOURS[arm], weight="bold")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlabel("predicted class")
    panels[0].set_ylabel("true class")
    figure.colorbar(image, ax=panels, label="% of the true class", shrink=0.85)
    return figure


def shuffled(report: Mapping[str, Any]) -> Figure:
    """Top-1 with the frames in order and in random order: how much of it comes from motion."""
    figure, axes = _canvas(width=5.6, height=3.8)
    for place, arm in enumerate(ARMS):
        found = report["arms"][arm]
        for shift, key, alpha in ((-0.19, "top1_mean", 0.95), (0.19, "shuffled_top1", 0.4)):
            value = 100 * found[key]
            axes.bar(place + shift, value, width=0.36, color=COLOURS[arm], alpha=alpha)
            axes.annotate(
                f"{value:.1f}", (place + shift, value), (0, 3), textcoords="offset points", ha="center", fontsize=9
            )
    axes.set_xticks(range(3), [NAMES[arm] for arm in ARMS])
    axes.set_ylabel("top-1 (%)")
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_title("frames in order (dark) and shuffled (light)", fontsize=9)
    return figure


def _counts(evaluation: Mapping[str, Any], names: Sequence[str]) -> NDArray[np.float64]:
    """Confusion counts with the classes in the order of `names`, whatever the model's own."""
    order = [evaluation["classes"].index(name) for name in names]
    return np.array(evaluation["confusion"], dtype=np.float64)[np.ix_(order, order)]


def _canvas(*, width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes
