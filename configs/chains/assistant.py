"""A teacher assistant: a network between teacher and student in size, taught by the one to teach the other [TAKD,
Mirzadeh et al. 2020, arXiv 1902.03393].

    videokd quickstart                                                     # the videos, and their teacher
    videokd train chains/assistant.py            --out runs/chain/assistant
    videokd train chains/student_of_assistant.py --out runs/chain/student_of_assistant
    videokd train methods/kd.py                  --out runs/chain/kd         # straight from the teacher, to compare

Teacher, assistant and student have 229, 161 and 41 thousand parameters, and 72, 28 and 7 million multiply-accumulates.
"""

from dataclasses import replace

from videokd.recipe import load

kd = load("methods/kd.py")

recipe = replace(kd, student=replace(kd.student, width=32))
