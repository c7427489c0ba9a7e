"""Soft labels, and clip vectors that must satisfy the teacher's own classifier [SRRL, Yang et al. 2021]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import SRRL
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "head": Term(loss=SRRL(beta=5.0))})
