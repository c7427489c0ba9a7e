"""Soft labels, and whom each clip takes for its neighbour [PKT, Passalis and Tefas 2018]; 30000 / 32 clips a batch."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import PKT
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, objective={**kd.objective, "neighbours": Term(loss=PKT(), weight=940.0)})
