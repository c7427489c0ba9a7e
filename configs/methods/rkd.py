"""Soft labels, and how far clips are from each other, and at what angles [RKD, Park et al. 2019]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import RKDAngle, RKDDistance
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(
    kd,
    objective={
        **kd.objective,
        "distance": Term(loss=RKDDistance(), weight=25.0),
        "angle": Term(loss=RKDAngle(), weight=50.0),
    },
)
