"""Soft labels, and contrast with past clips [CRD, Tian et al. 2020], as InfoNCE with a queue."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CRD
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "contrast": Term(loss=CRD(queue=256), weight=0.8)})
