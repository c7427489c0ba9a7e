"""Soft labels at a temperature that is learned against the student [CTKD, Li et al. 2023]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CrossEntropy, CurriculumSoftTargets
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.1),
        "soft": Term(loss=CurriculumSoftTargets(start=1.0, span=20.0), weight=0.9),
    },
)
