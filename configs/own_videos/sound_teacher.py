"""A teacher that listens: MobileNetV3-Small over the log-mel spectrogram of the clips' own sound.

    videokd train own_videos/sound_teacher.py --out runs/sound_teacher --data.path VIDEOS

Clips without sound are left out of its losses and its scores, and counted.
"""

from dataclasses import replace
from pathlib import Path

from videokd.contracts import SoundSpec
from videokd.models import MelNetwork
from videokd.optim import AdamW
from videokd.recipe import load

teacher = load(Path(__file__).with_name("teacher.py"))

recipe = replace(
    teacher,
    student=MelNetwork(input=SoundSpec(seconds=2.0), weights="timm"),
    optim=AdamW(steps=4000, lr=1e-3, weight_decay=0.05, warmup=0.05, clip_norm=5.0),
)
