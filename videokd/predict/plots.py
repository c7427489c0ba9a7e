"""A timeline as a picture."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from videokd.disk import whole_file
from videokd.predict.drawing import clock
from videokd.predict.timelines import Timeline
from videokd.text import visible

_OTHER = "#b0b0b0"
_UNSURE = "#e4e4e4"


@matplotlib.rc_context({"text.parse_math": False})  # class names may have dollars
def plot(timeline: Timeline, out: Path, *, top: int = 5) -> None:
    """Writes a PNG: probabilities over time of the classes that matter most, and the segments as a band below them.

    Those are the classes that are on for longest, then those of the highest mean probability; windows as they are seen
    are faint where the curve is smoothed.

    Raises:
        ValueError: if `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: name another file for the plot")
    on = np.zeros(len(timeline.classes))
    for segment in timeline.segments:
        on[timeline.classes.index(segment.likeliest)] += segment.end - segment.start
    mean = np.average(timeline.probabilities, axis=0, weights=np.diff(timeline.edges))
    chosen = np.lexsort((-mean, -on))[:top].tolist()
    palette = matplotlib.colormaps["tab10"]
    colours = {timeline.classes[number]: palette(place % 10) for place, number in enumerate(chosen)}

    figure = Figure(figsize=(10, 4), layout="constrained")
    curves, band = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    lines: list[Line2D] = []
    for number in chosen:
        name, curve = timeline.classes[number], timeline.probabilities[:, number]
        marker = "o" if len(curve) == 1 else ""
        if timeline.probabilities is not timeline.raw:
            curves.plot(timeline.centres, timeline.raw[:, number], color=colours[name], alpha=0.3, linewidth=0.8)
        lines += curves.plot(timeline.centres, curve, color=colours[name], linewidth=1.8, marker=marker)
    curves.set_ylim(-0.02, 1.02)
    curves.set_ylabel("probability")
    curves.spines[["top", "right"]].set_visible(False)
    curves.grid(alpha=0.25)
    curves.legend(
        lines,
        [visible(timeline.classes[number]) for number in chosen],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(top, 5),
        frameon=False,
        fontsize=9,
    )
    for segment in timeline.segments:
        colour = colours.get(segment.likeliest, _OTHER) if segment.is_sure else _UNSURE
        width = segment.end - segment.start
        band.barh(0, width, left=segment.start, height=1, color=colour, edgecolor="white", linewidth=0.8)
        # A name that has no room is said by its colour alone.
        name = visible(segment.name)
        if len(name) * 0.011 * timeline.index.seconds < width:
            colour = "#555555" if not segment.is_sure else "white"
            band.text(segment.start + width / 2, 0, name, ha="center", va="center", color=colour, fontsize=9)
    band.set_xlim(0, timeline.index.seconds)
    band.set_ylim(-0.5, 0.5)
    band.set_yticks([])
    band.spines[["top", "right", "left"]].set_visible(False)
    band.xaxis.set_major_locator(MaxNLocator(steps=[1, 1.5, 2, 3, 6, 10]))
    band.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(max(seconds, 0.0))))
    band.set_xlabel(f"time in {visible(timeline.video.path.name)}")
    with whole_file(out) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # shown as a box
        figure.savefig(file, dpi=120, format="png")
