"""The quickstart's own student, seeing only the frames before."""

from dataclasses import replace
from pathlib import Path

from videokd.recipe import load

alone = load(Path(__file__).parents[1] / "quickstart" / "alone.py")

recipe = replace(alone, student=replace(alone.student, causal=True), optim=replace(alone.optim, steps=500))
