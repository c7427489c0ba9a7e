"""Predictions and timelines as JSON and CSV, with every digit.

JSON keeps names exactly. In CSV they are text for a spreadsheet: see `for_csv_cell`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from videokd.clips.views import ViewGrid
from videokd.predict.timelines import Timeline, TimelineOptions
from videokd.predict.videos import VideoPrediction, VideoPredictions
from videokd.text import for_csv_cell


def predictions_json(found: VideoPredictions, *, model: str, grid: ViewGrid, top_k: int) -> dict[str, Any]:
    """Plain values: model, classes, views, the likeliest classes of each video, and what was skipped."""
    return {
        "model": model,
        "classes": list(found.classes),
        "views": {"temporal": grid.temporal, "spatial": grid.spatial, "average": "probabilities"},
        "videos": [
            {
                **_facts(one),
                "top": [{"class": name, "probability": value} for name, value in one.top(found.classes, top_k)],
            }
            for one in found.videos
        ],
        "skipped": list(found.skipped),
    }


def predictions_csv(found: VideoPredictions, *, top_k: int) -> str:
    """`path,rank,class,probability`: a row for each video and rank."""
    rows = [
        (str(one.video.path), rank, name, value)
        for one in found.videos
        for rank, (name, value) in enumerate(one.top(found.classes, top_k), start=1)
    ]
    return _csv(("path", "rank", "class", "probability"), rows)


def timelines_json(
    timelines: Sequence[Timeline],
    *,
    model: str,
    classes: Sequence[str],
    options: TimelineOptions,
    skipped: Sequence[str],
) -> dict[str, Any]:
    """Plain values: model, classes, how timelines were made, segments and curve of each video, and what was skipped.

    Seconds count from a video's first frame. Of a curve, "probabilities" holds a row of all classes for the centre of
    each window, and "smoothed" the same after smoothing, null where there was none.
    """
    return {
        "model": model,
        "classes": list(classes),
        "timeline": asdict(options),
        "videos": [
            {
                **_facts(one),
                "window": one.window,
                "segments": [
                    {
                        "start": segment.start,
                        "end": segment.end,
                        "class": segment.name,
                        "confidence": segment.confidence,
                        "likeliest": segment.likeliest,
                    }
                    for segment in one.segments
                ],
                "curve": {
                    "times": one.centres.tolist(),
                    "probabilities": one.raw.tolist(),
                    "smoothed": one.probabilities.tolist() if options.smooth else None,
                },
            }
            for one in timelines
        ],
        "skipped": list(skipped),
    }


def timelines_csv(timelines: Sequence[Timeline]) -> str:
    """`path,start,end,class,confidence`: a row for each segment."""
    rows = [
        (str(one.video.path), segment.start, segment.end, segment.name, segment.confidence)
        for one in timelines
        for segment in one.segments
    ]
    return _csv(("path", "start", "end", "class", "confidence"), rows)


def _facts(one: VideoPrediction | Timeline) -> Mapping[str, Any]:
    return {"path": str(one.video.path), "seconds": one.index.seconds, "fps": one.index.fps}


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([map(for_csv_cell, row) for row in (columns, *rows)])
    return text.getvalue()
