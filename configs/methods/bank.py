"""Soft labels, and how a clip lies to past ones [TinyCLIP's affinity, Wu et al. 2023]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import BankAffinity
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "affinity": Term(loss=BankAffinity(queue=256))})
