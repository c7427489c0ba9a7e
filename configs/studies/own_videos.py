"""Does distillation help on your own videos, and is it the teacher? Three pairs of arms.

    videokd study studies/own_videos.py --list VIDEOS --out runs/studies/own_videos

VIDEOS is a folder with one folder per class, or a list; a fifth of one without splits becomes the test split. With
folds (`videokd data folds VIDEOS --k 3 --out folds`), name them all: `--list folds/*.jsonl`. For a teacher that you
have: `--trained-teacher runs/teacher`. The teacher's weights, and the student's, are downloaded at the first run.

Not the arm equal_compute: this teacher costs a hundred times its student, and a student alone would have to train as
many times longer. With a cheaper teacher, add it: `--arms label_smoothing equal_compute ...`.
"""

from videokd.arms import Study
from videokd.recipe import load

study = Study(
    teacher=load("own_videos/teacher.py"),
    alone=load("own_videos/alone.py"),
    distilled=load("own_videos/distilled.py"),
    arms=("label_smoothing", "self_distilled", "untrained_teacher", "shuffled_teacher"),
    seeds=3,
)
