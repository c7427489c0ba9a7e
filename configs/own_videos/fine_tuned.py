"""A stronger teacher for your own videos: a published VideoMAE, fine-tuned on your classes.

videokd train own_videos/fine_tuned.py --out runs/teacher --data.path VIDEOS

The new head learns alone at first; then all of it, the more slowly the nearer to the input, at the layer decay that
VideoMAE is fine-tuned with [Tong et al. 2022]. What is kept is a running mean of the weights. Students can be trained
like this, too (`docs/training.md`). The extra `hf` is needed.
"""

from dataclasses import replace
from pathlib import Path

from videokd.models import HuggingFaceVideo
from videokd.optim import AdamW
from videokd.recipe import load

teacher = load(Path(__file__).with_name("teacher.py"))

recipe = replace(
    teacher,
    student=HuggingFaceVideo(source="MCG-NJU/videomae-base-finetuned-kinetics"),
    optim=AdamW(
        steps=2000,
        lr=3e-4,
        weight_decay=0.05,
        layer_decay=0.75,
        freeze=("network.videomae",),
        freeze_until=0.1,
        ema=0.999,
        accumulate=4,  # memory for 4 clips of 16
    ),
)
