"""A compact student for your own videos, without a teacher: MobileNetV3-Small over 8 frames with temporal shift.

videokd train own_videos/alone.py --out runs/alone --data.path VIDEOS
"""

from dataclasses import replace
from pathlib import Path

from videokd.contracts import Dense, InputSpec
from videokd.models import TimmVideo
from videokd.optim import AdamW
from videokd.recipe import load

teacher = load(Path(__file__).with_name("teacher.py"))

recipe = replace(
    teacher,
    student=TimmVideo(
        backbone="mobilenetv3_small_100",
        temporal="shift",
        weights="timm",
        # Every second frame of the teacher's clip.
        input=InputSpec(frames=8, size=112, sampling=Dense(stride=4), crop_fraction=0.875),
    ),
    optim=AdamW(steps=4000, lr=1e-3, weight_decay=0.05, warmup=0.05, clip_norm=5.0),
)
