"""The true class, which the teacher names, as a soft label, and the others normalised [NKD, Yang et al. 2023]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import NKD, CrossEntropy
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled, objective={"hard": Term(loss=CrossEntropy()), "soft": Term(loss=NKD(gamma=1.5, target="teacher"))}
)
