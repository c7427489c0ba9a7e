"""Attention over the pooled frames, by their seconds."""

from dataclasses import replace
from pathlib import Path

from videokd.recipe import load

average = load(Path(__file__).with_name("average.py"))

recipe = replace(average, student=replace(average.student, temporal="attention"))
