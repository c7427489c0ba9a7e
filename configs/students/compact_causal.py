"""The quickstart's own student, seeing only the frames before."""

from dataclasses import replace
from pathlib import Path

from videokd.models import CompactShift
from videokd.optim import AdamW
from videokd.recipe import load

alone = load(Path(__file__).parents[1] / "quickstart" / "alone.py")

recipe = replace(
    alone,
    student=CompactShift(input=alone.student.input, causal=True),
    optim=AdamW(steps=500, lr=8e-3, weight_decay=0.05, warmup=0.05, clip_norm=None),
)
