"""A teacher for your own videos: R(2+1)D-18 from Kinetics-400, fine-tuned on your classes.

    videokd train own_videos/teacher.py --out runs/teacher --data.path VIDEOS

VIDEOS is a folder with one folder per class, a .csv (path,label[,split][,group]) or a .jsonl manifest.
"""

from videokd.clips.views import Augment, RandomResizedCrop
from videokd.distill import Term
from videokd.losses import CrossEntropy
from videokd.models import VideoResNet
from videokd.optim import AdamW
from videokd.recipe import Data, Recipe

recipe = Recipe(
    data=Data(
        path="videos",
        train_split="train",
        batch_size=16,
        # Most sets gain from --data.augment.flip 0.5; it knows "left" and "right" by their words alone.
        augment=Augment(crop=RandomResizedCrop(scale=(0.4, 1.0))),
        workers=2,
    ),
    student=VideoResNet(
        name="r2plus1d_18",
        weights="R2Plus1D_18_Weights.KINETICS400_V1",
        # 16 frames at stride 2, 112 px: its published input.
    ),
    objective={"hard": Term(loss=CrossEntropy())},
    optim=AdamW(steps=2000, lr=3e-4, weight_decay=0.05, warmup=0.05, clip_norm=5.0),
)
