"""The true class and the others apart [DKD, Zhao et al. 2022], with the weights of the paper.

The teacher says which class is the true one, so that clips without labels count too."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import DKD, CrossEntropy
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    objective={
        "hard": Term(loss=CrossEntropy()),
        "soft": Term(loss=DKD(alpha=1.0, beta=8.0, temperature=4.0, target="teacher"), warmup=0.1),
    },
)
