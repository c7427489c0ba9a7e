"""Soft labels and features frame by frame, at the same seconds."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import FrameFeatures
from videokd.recipe import load

kd = load("methods/kd.py")

frames = Term(loss=FrameFeatures(distance="smooth_l1"), weight=16.0, warmup=0.1)
recipe = replace(kd, objective={**kd.objective, "frames": frames})
