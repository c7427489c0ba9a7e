"""A student taught by another of its own kind, trained alone [born-again networks, Furlanello et al. 2018, arXiv
1805.04770]: labels and the teacher's probabilities, alike, from other initial weights.

    videokd quickstart                                                     # the videos
    videokd train quickstart/alone.py  --out runs/chain/alone
    videokd train chains/born_again.py --out runs/chain/born_again

The next generation has this one as its teacher:

    videokd train chains/born_again.py --out runs/chain/born_again2 --seed 2 \
        --teachers.teacher.checkpoint runs/chain/born_again
"""

from dataclasses import replace

from videokd.distill import Term
from videokd.losses import CrossEntropy, SoftTargets
from videokd.recipe import TrainedTeacher, load

alone = load("quickstart/alone.py")

recipe = replace(
    alone,
    teachers={"teacher": TrainedTeacher(checkpoint="runs/chain/alone", remember=True)},
    objective={"hard": Term(loss=CrossEntropy()), "soft": Term(loss=SoftTargets(temperature=1.0))},
    seed=1,
)
