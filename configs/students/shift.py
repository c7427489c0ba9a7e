"""TSM: channels shifted between neighbouring frames inside the backbone [Lin et al. 2019]."""

from dataclasses import replace
from pathlib import Path

from videokd.recipe import load

average = load(Path(__file__).with_name("average.py"))

recipe = replace(average, student=replace(average.student, temporal="shift"))
