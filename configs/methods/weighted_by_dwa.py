"""The quickstart's terms, weighted by how slowly they fall [DWA, Liu et al. 2019]."""

from dataclasses import replace

from videokd.recipe import load
from videokd.weighting import DWA

default = load("quickstart/distilled.py")

recipe = replace(default, weighting=DWA(interval=50))
