"""Soft labels, and the likelihood of the teacher's features [VID, Ahn et al. 2019]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import VID
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "features": Term(loss=VID())})
