"""X3D-S over the frames of the quickstart [Feichtenhofer 2020]."""

from dataclasses import replace
from pathlib import Path

from videokd.models import X3D
from videokd.optim import AdamW
from videokd.recipe import load

alone = load(Path(__file__).parents[1] / "quickstart" / "alone.py")

recipe = replace(
    alone,
    student=X3D(input=alone.student.input, dropout=0.0),
    optim=AdamW(steps=500, lr=3e-3, weight_decay=0.05, warmup=0.05, clip_norm=5.0),
)
