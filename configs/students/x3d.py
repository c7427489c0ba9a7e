"""X3D-S over the frames of the quickstart [Feichtenhofer 2020]."""

from dataclasses import replace
from pathlib import Path

from videokd.models import X3D
from videokd.recipe import load

average = load(Path(__file__).with_name("average.py"))

recipe = replace(average, student=X3D(input=average.student.input, dropout=0.0))
