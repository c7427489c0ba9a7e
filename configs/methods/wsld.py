"""Soft labels where the student is worse than its teacher [WSLD, Zhou et al. 2021], with the weights of the paper."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CrossEntropy, SoftTargets
from videokd.recipe import load
from videokd.weighting import WhereStudentIsWorse

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    objective={
        "hard": Term(loss=CrossEntropy()),
        "soft": Term(loss=SoftTargets(temperature=2.0), weight=2.5, clips=WhereStudentIsWorse()),
    },
)
