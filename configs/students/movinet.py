"""MoViNet-A0, causal with stream buffers [Kondratyuk et al. 2021]."""

from dataclasses import replace
from pathlib import Path

from videokd.models import MoViNet
from videokd.recipe import load

average = load(Path(__file__).with_name("average.py"))

recipe = replace(average, student=MoViNet(input=average.student.input, dropout=0.0, drop_path=0.0))
