"""Where a run happens: device, precision, seeds."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.segment import Segment

from videokd.processes import local_rank, rank
from videokd.text import for_terminal


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What to compute on; the defaults work everywhere."""

    device: str = "auto"
    """"auto" is the GPU where there is one; else "cpu", "cuda", "cuda:1"..."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run the networks under autocast; the losses stay in fp32. fp16 scales them, so that small gradients
    are not lost, and is for GPUs without bf16."""
    channels_last: bool = False
    """Weights of convolutions with the channels last in memory: faster on most GPUs."""
    compile: Literal["no", "default", "cuda-graphs"] = "no"
    """Compile teachers and student (`torch.compile`): minutes at first, then faster steps. "cuda-graphs" also replays
    them without launching each kernel; for small models on a GPU."""
    synchronise_norms: bool = True
    """With several processes, batch normalisation over the clips of all of them: the same results as on one. Without,
    steps are a little faster, and a process sees its own clips alone."""

    def find(self) -> torch.device:
        """The device; of several processes on a machine with GPUs, each has its own.

        Raises:
            ValueError: if it is not there, or can't do what is asked of it.
        """
        device = self._found()
        if device.type != "cuda" and (self.precision == "fp16" or self.compile == "cuda-graphs"):
            what = "precision fp16" if self.precision == "fp16" else "compile cuda-graphs"
            raise ValueError(f"{what} is for GPUs, and this runs on {device}: take bf16 or fp32, and compile default")
        return device

    def _found(self) -> torch.device:
        if self.device in ("auto", "cuda") and torch.cuda.is_available():
            if local_rank() >= torch.cuda.device_count():
                raise ValueError(
                    f"process {local_rank()} of this machine has no GPU of its own: there are "
                    f"{torch.cuda.device_count()}; start as many processes (torchrun --nproc-per-node)"
                )
            return torch.device("cuda", local_rank())
        if self.device == "auto":
            return torch.device("cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"no device {self.device!r} here: {str(error).splitlines()[0]}") from error
        return device

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """The context in which networks run."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


def terminal() -> Console:
    """Where to report. Names of files are printed as they are: a bracket in one is no markup."""
    # A pipe or a file has no width: tables are as wide as they need to be there, instead of cut to 80 columns.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 240
    return _Terminal(markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


class _Terminal(Console):
    """A console on which text from outside does nothing but stand there: names of files and classes, messages of other
    programs."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints each text on one line; tables see to their cells themselves."""
        super().print(*(for_terminal(one) if isinstance(one, str) else one for one in objects), **options)

    def render(self, *renderable: Any, **options: Any) -> Iterator[Segment]:
        """What goes to the terminal in the end: what came by another way than `print` (bars, titles) is safe too."""
        for segment in super().render(*renderable, **options):
            yield segment if segment.control else segment._replace(text=for_terminal(segment.text, keep="\n"))


def seed_step(seed: int, step: int) -> None:
    """Makes dropout and the like a function of (seed, step), so that a resumed run draws the same; each process has
    its own."""
    number = seed * 1_000_003 + step + rank() * 2**40
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # seeding devices that are not there as well takes a hundred times as long
        torch.default_generator.manual_seed(number)
