"""`distilled.py` for clips that have several labels: every class by itself, there or not [MLD, Yang et al. 2023].

    videokd train own_videos/several_labels.py --out runs/several --data.path LIST \
        --teachers.teacher.checkpoint runs/teacher

Its teacher is trained with `BinaryCrossEntropy` in place of `CrossEntropy`. Scored by mean average precision:
with a validation split, --data.val-split val --metric map.
"""

from dataclasses import replace
from pathlib import Path

from videokd.distill import Term
from videokd.losses import BinaryCrossEntropy, BinarySoftTargets
from videokd.recipe import load

distilled = load(Path(__file__).with_name("distilled.py"))

recipe = replace(
    distilled,
    objective={
        **distilled.objective,
        "hard": Term(loss=BinaryCrossEntropy()),
        "soft": Term(loss=BinarySoftTargets(temperature=1.0), weight=10.0),
    },
)
