"""The quickstart's compact student without a teacher: what the distilled one is compared with."""

from dataclasses import replace
from pathlib import Path

from videokd.contracts import Dense
from videokd.models import CompactShift
from videokd.optim import AdamW
from videokd.recipe import load

teacher = load(Path(__file__).with_name("teacher.py"))

recipe = replace(
    teacher,
    # Every second of the teacher's 16 frames, at the same size.
    student=CompactShift(width=16, input=replace(teacher.student.input, frames=8, sampling=Dense(stride=2))),
    optim=AdamW(steps=800, lr=8e-3, weight_decay=0.05, warmup=0.05, clip_norm=None),
)
