"""The quickstart's terms, weighted by learned uncertainties [Kendall et al. 2018]."""

from dataclasses import replace

from videokd.recipe import load
from videokd.weighting import Uncertainty

default = load("quickstart/distilled.py")

recipe = replace(default, weighting=Uncertainty())
