"""The quickstart's teacher: a residual 3D network, trained on every labelled clip of the synthetic set."""

from videokd.contracts import Dense, InputSpec
from videokd.distill import Term
from videokd.losses import CrossEntropy
from videokd.models import Conv3d
from videokd.optim import AdamW
from videokd.recipe import Data, Recipe

recipe = Recipe(
    data=Data(
        path="runs/quickstart/data/manifest.jsonl",
        train_split="train",
        val_split="val",
        batch_size=32,
        views=9,
        in_memory=True,
    ),
    student=Conv3d(
        width=16,
        input=InputSpec(
            frames=16,
            size=32,
            sampling=Dense(stride=1),
            crop_fraction=32 / 36,
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
        ),
    ),
    objective={"hard": Term(loss=CrossEntropy())},
    optim=AdamW(steps=700, lr=8e-3, weight_decay=0.05, warmup=0.05, clip_norm=None),
)
