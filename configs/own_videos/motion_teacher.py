"""A teacher that sees motion alone: R(2+1)D-18 over differences of frames.

    videokd train own_videos/motion_teacher.py --out runs/motion_teacher --data.path VIDEOS

`--student.signal dis` gives it optical flow instead (the extra `flow`).
"""

from dataclasses import replace
from pathlib import Path

from videokd.models import Motion
from videokd.recipe import load

teacher = load(Path(__file__).with_name("teacher.py"))

recipe = replace(
    teacher,
    student=Motion(
        of=replace(teacher.student, input=replace(teacher.student.input, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1)))
    ),
)
