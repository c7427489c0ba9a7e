"""Soft labels and what happens between frames, without the frames themselves."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import TemporalAffinity, TemporalDifference
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(
    kd,
    objective={
        **kd.objective,
        "difference": Term(loss=TemporalDifference(distance="smooth_l1"), weight=8.0, warmup=0.1),
        "affinity": Term(loss=TemporalAffinity(), weight=8.0, warmup=0.1),
    },
)
