"""A small set of real clips on two processor cores: does a teacher that sees motion help a student that sees frames?

    videokd data folds LIST --k 3 --out folds
    videokd study studies/small_real_set.py --list folds/*.jsonl --out runs/studies/small_real_set

For some hundred clips of a few seconds, of which the frames fit in memory. Two seeds on each of three lists make six
pairs; a few hundred clips tell gains of five points from none, not of one.
"""

from dataclasses import replace

from videokd.arms import Study
from videokd.clips.views import Augment, RandomResizedCrop
from videokd.contracts import InputSpec, Timed
from videokd.distill import Term
from videokd.losses import CrossEntropy, FrameFeatures, SoftTargets, TemporalDifference
from videokd.models import CompactShift, Conv3d, Motion
from videokd.optim import AdamW
from videokd.recipe import Data, Recipe, TrainedTeacher

# Frame rates of real clips differ: seconds, not numbers of frames.
student_input = InputSpec(frames=8, size=64, sampling=Timed(fps=5), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
teacher_input = replace(student_input, frames=16, sampling=Timed(fps=10), std=(0.1, 0.1, 0.1))

alone = Recipe(
    data=Data(
        path="folds/fold1.jsonl",
        val_split="val",
        batch_size=16,
        augment=Augment(crop=RandomResizedCrop(scale=(0.4, 1.0)), flip=0.5),
        views=10,
        in_memory=True,
    ),
    student=CompactShift(width=16, input=student_input),
    objective={"hard": Term(loss=CrossEntropy())},
    optim=AdamW(steps=300, lr=3e-3, weight_decay=0.05, warmup=0.1, clip_norm=5.0),
)

study = Study(
    # Differences of neighbouring frames: what moves, and nothing of what it looks like.
    teacher=replace(alone, student=Motion(of=Conv3d(width=12, input=teacher_input))),
    alone=alone,
    distilled=replace(
        alone,
        teachers={"teacher": TrainedTeacher(checkpoint="runs/teacher", remember=True)},
        objective={
            "hard": Term(loss=CrossEntropy(), weight=0.5),
            "soft": Term(loss=SoftTargets(temperature=2.0), weight=0.5),
            "frames": Term(loss=FrameFeatures(), weight=1.0, warmup=0.1),
            "difference": Term(loss=TemporalDifference(), weight=1.0, warmup=0.1),
        },
    ),
    arms=("label_smoothing", "untrained_teacher", "shuffled_teacher"),
    seeds=2,
)
