"""A depthwise convolution over the pooled frames."""

from dataclasses import replace
from pathlib import Path

from videokd.models import TimmVideo
from videokd.optim import AdamW
from videokd.recipe import load

alone = load(Path(__file__).parents[1] / "quickstart" / "alone.py")

recipe = replace(
    alone,
    student=TimmVideo(
        backbone="mobilenetv3_small_050",
        temporal="conv",
        input=alone.student.input,
        dropout=0.0,
    ),
    optim=AdamW(steps=500, lr=3e-3, weight_decay=0.05, warmup=0.05, clip_norm=5.0),
)
