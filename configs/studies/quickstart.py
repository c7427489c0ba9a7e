"""Does the quickstart's distillation help, and is it the teacher? All arms, five pairs, where few labels are known.

    videokd data synth runs/quickstart/data --train 1200 --val 120 --test 1200 --labelled 360
    videokd study studies/quickstart.py --out runs/studies/quickstart

The teacher is trained on all labels; the students see 360 of them, and the distilled ones the other clips without.
"""

from dataclasses import replace

from videokd.arms import Study
from videokd.recipe import Recipe, load


def _with_few_labels(recipe: Recipe) -> Recipe:
    return replace(recipe, data=replace(recipe.data, path="runs/quickstart/data/few_labels.jsonl"))


study = Study(
    teacher=load("quickstart/teacher.py"),
    alone=_with_few_labels(load("quickstart/alone.py")),
    distilled=_with_few_labels(load("quickstart/distilled_unlabelled.py")),
    seeds=5,
)
