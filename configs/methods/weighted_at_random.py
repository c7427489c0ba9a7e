"""A control: the quickstart's terms, weighted at random [RLW, Lin et al. 2022]."""

from dataclasses import replace

from videokd.recipe import load
from videokd.weighting import RandomWeights

default = load("quickstart/distilled.py")

recipe = replace(default, weighting=RandomWeights())
