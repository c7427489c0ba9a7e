"""Soft labels, and the teacher's last map at several scales [HCL of ReviewKD, Chen et al. 2021]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import MultiScale
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(
    kd,
    objective={
        **kd.objective,
        "maps": Term(loss=MultiScale(student_tap="stage3", teacher_tap="stage3"), weight=5.0, warmup=0.1),
    },
)
