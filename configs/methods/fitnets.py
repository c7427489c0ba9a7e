"""Soft labels and a hint from the teacher's middle stage, place by place [FitNets, Romero et al. 2015]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import MapFeatures
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(
    kd,
    objective={
        **kd.objective,
        "hint": Term(loss=MapFeatures(student_tap="stage2", teacher_tap="stage2"), weight=100.0),
    },
)
