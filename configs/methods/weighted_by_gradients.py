"""The quickstart's terms, with gradients half as long as that of the hard labels."""

from dataclasses import replace

from videokd.recipe import load
from videokd.weighting import GradientRatio

default = load("quickstart/distilled.py")

terms = {name: replace(term, weight=1.0) for name, term in default.objective.items()}
recipe = replace(default, objective=terms, weighting=GradientRatio(reference="hard", target=0.5))
