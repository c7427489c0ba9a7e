"""The same student, taught: hard and soft labels, features frame by frame, and what changes between frames."""

from dataclasses import replace
from pathlib import Path

from videokd.distill import Term
from videokd.losses import CrossEntropy, FrameFeatures, SoftTargets, TemporalAffinity, TemporalDifference
from videokd.recipe import TrainedTeacher, load

alone = load(Path(__file__).with_name("alone.py"))

recipe = replace(
    alone,
    teachers={"teacher": TrainedTeacher(checkpoint="runs/quickstart/teacher", remember=True)},
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.1),
        "soft": Term(loss=SoftTargets(temperature=4.0), weight=0.9),
        "frames": Term(loss=FrameFeatures(distance="smooth_l1"), weight=16.0, warmup=0.1),
        "difference": Term(loss=TemporalDifference(distance="smooth_l1"), weight=8.0, warmup=0.1),
        "affinity": Term(loss=TemporalAffinity(), weight=8.0, warmup=0.1),
    },
)
