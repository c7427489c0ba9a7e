"""The teacher's classifier on the student's projected features, and no other loss [SimKD, Chen et al. 2022].

The student that is shipped has the projector: count it."""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import FrameFeatures
from videokd.models import SimKD
from videokd.recipe import load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    student=SimKD(student=distilled.student, width=64),
    objective={"features": Term(loss=FrameFeatures(distance="mse", targets="raw", connector=None))},
)
