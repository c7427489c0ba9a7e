"""No teacher: label smoothing [Szegedy et al. 2016], the control for what any softening of the labels gives."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CrossEntropy
from videokd.recipe import load

alone = load("quickstart/alone.py")

recipe = replace(alone, objective={"hard": Term(loss=CrossEntropy(label_smoothing=0.1))})
