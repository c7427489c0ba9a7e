"""Soft labels beside hard ones [Hinton et al. 2015]: what every other method has to beat."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CrossEntropy, SoftTargets
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.1),
        "soft": Term(loss=SoftTargets(temperature=4.0), weight=0.9),
    },
)
