"""Soft labels, and how fast features change [Su et al. 2020]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import TemporalSpectrum
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "spectrum": Term(loss=TemporalSpectrum(), weight=16.0, warmup=0.1)})
