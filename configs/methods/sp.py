"""Soft labels, and which clips resemble which [SP, Tung and Mori 2019]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import SP
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "similarity": Term(loss=SP(), weight=3000.0)})
