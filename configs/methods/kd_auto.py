"""Soft labels at the temperature that the teacher's confidence asks for."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CrossEntropy, SoftTargets
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.1),
        "soft": Term(loss=SoftTargets(temperature="auto"), weight=0.9),
    },
)
