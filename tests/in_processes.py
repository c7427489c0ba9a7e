"""Trains a recipe in every process that torchrun starts; with `die`, one of them is killed the first time."""

import os
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console

from videokd import train as loop
from videokd.processes import rank
from videokd.recipe import load

recipe, folder, die = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
torch.set_num_threads(1)
loop.LOG_EVERY = 1
seed_step = loop.seed_step


def seed_or_die(seed: int, step: int) -> None:
    if die and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and rank() == 1 and step == int(die):
        os.kill(os.getpid(), signal.SIGKILL)
    seed_step(seed, step)


loop.seed_step = seed_or_die
loop.train(load(recipe), folder, or_resume=True, console=Console(quiet=True))
