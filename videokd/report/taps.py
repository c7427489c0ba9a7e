"""What models hand out, as tables."""

from typing import Any

import torch

from videokd.contracts import Dense, InputSpec, Segments, Timed, ViewSpec
from videokd.models import Model, SoundModel
from videokd.models.own import OwnModel

TAP_COLUMNS = ("tap", "T' x H' x W'", "width", "steps centred on", "where")
MODULE_COLUMNS = ("module", "output of two clips", "layout")


@torch.no_grad()
def tap_rows(model: Model[Any]) -> list[tuple[str, ...]]:
    """One row a tap, by a dry run over one clip of nothing: its grid, its width, and the middle of its steps.

    Steps are in frames of the video, counted from the clip's first, so that parties of different strides can be
    compared; in frames of the clip where it has no stride; in seconds of a sound. Of a network of the user's own, where
    each is too.
    """
    features = model(model.blank(), model.taps).features
    sampling = model.input.sampling if isinstance(model.input, InputSpec) else None
    stride = sampling.stride if isinstance(sampling, Dense) else 1
    rows: list[tuple[str, ...]] = []
    for tap in model.taps:
        found = features[tap]
        _, steps, height, width, channels = found.values.shape
        times = (found.times[0] * stride).tolist()
        shown = times if len(times) <= 4 else [*times[:3], None, times[-1]]
        unit = " s" if isinstance(model, SoundModel) else ""
        centres = ", ".join("..." if one is None else f"{one:.4g}{unit}" for one in shown)
        where: tuple[str, ...] = ()
        if isinstance(model, OwnModel):
            where = (f"{model.places[tap]}: {model.layouts[tap].said()}" if tap in model.places else "mean of frames",)
        rows.append((tap, f"{steps} x {height} x {width}", str(channels), centres, *where))
    return rows


def module_rows(model: OwnModel) -> list[tuple[str, str, str]]:
    """Every module of a foreign network that puts out a tensor, and how its axes lie, where that can be told."""
    probe = model.dry_run()
    rows = []
    for module, (layouts, sure) in probe.several(list(probe.shapes)):
        said = [f"{one.said()} (T' = {one.steps})" for one in layouts]
        where = ("" if sure else "write it: " + " or ".join(said)) if said else "none that is known"
        rows.append((module, " x ".join(map(str, probe.shapes[module])), where or said[0]))
    return rows


def describe_input(spec: ViewSpec | None) -> str:
    """What a model wants of a clip, in a few words."""
    if spec is None:
        return "labels"
    if not isinstance(spec, InputSpec):
        return f"{spec.seconds:g} s at {spec.sample_rate / 1000:g} kHz"
    how = {Dense: "at stride {0.stride}", Timed: "at {0.fps:g} a second", Segments: "of as many segments"}
    said = how.get(type(spec.sampling), "spread evenly").format(spec.sampling)
    return f"{spec.frames} frames {said}, {spec.size} px"
