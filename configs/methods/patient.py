"""Soft labels alone, on mixed clips that both see alike: function matching [Beyer et al. 2022].

It is made for schedules many times as long."""

from dataclasses import replace

from videokd.clips.mixing import Mix
from videokd.distill import Term
from videokd.losses import SoftTargets
from videokd.recipe import TrainedTeacher, load

distilled = load("quickstart/distilled.py")

recipe = replace(
    distilled,
    data=replace(distilled.data, mix=Mix(mixup=0.8)),
    teachers={"teacher": TrainedTeacher(checkpoint="runs/quickstart/teacher")},
    objective={"soft": Term(loss=SoftTargets(temperature=1.0))},
)
