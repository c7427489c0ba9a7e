"""TSM online: channels shifted from the frame before alone, so that it runs frame by frame."""

from dataclasses import replace
from pathlib import Path

from videokd.recipe import load

average = load(Path(__file__).with_name("average.py"))

recipe = replace(average, student=replace(average.student, temporal="shift", causal=True))
