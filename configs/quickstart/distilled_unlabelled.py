"""`distilled.py` where most clips have no label: 8 labelled and 24 unlabelled ones in every batch."""

from dataclasses import replace
from pathlib import Path

from videokd.recipe import load

distilled = load(Path(__file__).with_name("distilled.py"))

recipe = replace(distilled, data=replace(distilled.data, unlabelled_per_batch=24))
