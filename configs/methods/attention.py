"""Soft labels, and where and when the networks are active [AT, Zagoruyko and Komodakis 2017]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import SpatialAttention, TemporalAttention
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(
    kd,
    objective={
        **kd.objective,
        "where": Term(loss=SpatialAttention(student_tap="stage2", teacher_tap="stage2"), weight=1000.0),
        "when": Term(loss=TemporalAttention(student_tap="stage2", teacher_tap="stage2"), weight=1000.0),
    },
)
