"""The same student, taught by the teacher that `teacher.py` trained.

    videokd train own_videos/distilled.py --out runs/distilled --data.path VIDEOS \
        --teachers.teacher.checkpoint runs/teacher
"""

from dataclasses import replace
from pathlib import Path

from videokd.distill import Term
from videokd.losses import (
    ClipFeatures,
    CrossEntropy,
    FrameFeatures,
    SoftTargets,
    TemporalAffinity,
    TemporalDifference,
)
from videokd.recipe import TrainedTeacher, load

alone = load(Path(__file__).with_name("alone.py"))

recipe = replace(
    alone,
    teachers={"teacher": TrainedTeacher(checkpoint="runs/teacher")},
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.1),
        "soft": Term(loss=SoftTargets(temperature=2.0), weight=0.9),
        "frames": Term(loss=FrameFeatures(), weight=1.0, warmup=0.1),
        "difference": Term(loss=TemporalDifference(), weight=0.5, warmup=0.1),
        "affinity": Term(loss=TemporalAffinity(), weight=0.5, warmup=0.1),
        "clip": Term(loss=ClipFeatures(distance="cosine"), weight=0.5, warmup=0.1),
    },
)
