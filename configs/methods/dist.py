"""Correlation in place of divergence [DIST, Huang et al. 2022], with the weights of the paper."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import DIST, CrossEntropy
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    objective={"hard": Term(loss=CrossEntropy()), "soft": Term(loss=DIST(temperature=1.0), weight=2.0)},
)
