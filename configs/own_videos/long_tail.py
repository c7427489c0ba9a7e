"""`distilled.py` for classes of which some have many clips and others few.

Labels by balanced softmax [Ren et al. 2020], soft labels by weights of the class [BKD, Zhang et al. 2021].

    videokd train own_videos/long_tail.py --out runs/long_tail --data.path VIDEOS \
        --teachers.teacher.checkpoint runs/teacher

How many clips a class has is counted on the training split. Look at "mean over classes" in `videokd evaluate`.
"""

from dataclasses import replace
from pathlib import Path

from videokd.distill import Term
from videokd.losses import BKD, BalancedSoftmax
from videokd.recipe import load

distilled = load(Path(__file__).with_name("distilled.py"))

recipe = replace(
    distilled,
    objective={
        **distilled.objective,
        "hard": Term(loss=BalancedSoftmax(), weight=0.1),
        "soft": Term(loss=BKD(temperature=2.0), weight=0.9),
    },
)
