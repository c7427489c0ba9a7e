"""Soft labels, and the teacher's map generated from a part of the student's [MGD, Yang et al. 2022]."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import MGD
from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(
    kd, objective={**kd.objective, "features": Term(loss=MGD(student_tap="stage3", teacher_tap="stage3"), weight=7e-5)}
)
