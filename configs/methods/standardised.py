"""Soft labels of logits at unit scale [LS, Sun et al. 2024], with the weights of the paper."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CrossEntropy, StandardisedSoftTargets
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.1),
        "soft": Term(loss=StandardisedSoftTargets(temperature=2.0), weight=9.0),
    },
)
