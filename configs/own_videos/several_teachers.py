"""The same student, taught by three that were trained here: one that looks, one that sees motion, one that listens.

    videokd train own_videos/several_teachers.py --out runs/several --data.path VIDEOS

Their probabilities are averaged, each by how sure it is of the clip's class; features come from the first alone.
"""

from dataclasses import replace
from pathlib import Path

from videokd.distill import Term
from videokd.losses import CrossEntropy, FrameFeatures, SoftTargets
from videokd.recipe import TrainedTeacher, load
from videokd.teachers import Mixture

alone = load(Path(__file__).with_name("alone.py"))

recipe = replace(
    alone,
    teachers={
        "looks": TrainedTeacher(checkpoint="runs/teacher"),
        "moves": TrainedTeacher(checkpoint="runs/motion_teacher"),
        "listens": TrainedTeacher(checkpoint="runs/sound_teacher"),
        "together": Mixture(of=("looks", "moves", "listens"), weights="confidence"),
    },
    objective={
        "hard": Term(loss=CrossEntropy(), weight=0.1),
        "soft": Term(loss=SoftTargets(temperature=2.0), weight=0.9, teacher="together"),
        "frames": Term(loss=FrameFeatures(), weight=1.0, warmup=0.1, teacher="looks"),
    },
)
