"""A depthwise convolution over the pooled frames."""

from dataclasses import replace
from pathlib import Path

from videokd.recipe import load

average = load(Path(__file__).with_name("average.py"))

recipe = replace(average, student=replace(average.student, temporal="conv"))
