"""Soft labels, and how much clips change when their frames are shuffled."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import ShuffleRelation
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "order": Term(loss=ShuffleRelation(number_of_pieces=4), weight=10.0)})
