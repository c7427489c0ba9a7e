"""Where a run happens: device, precision, seeds."""

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What to compute on; the defaults work everywhere."""

    device: str = "auto"
    """"auto" is the GPU where there is one; else "cpu", "cuda", "cuda:1"..."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the networks under autocast; the losses stay in fp32."""

    def find(self) -> torch.device:
        """The device.

        Raises:
            ValueError: if it is not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        return torch.autocast(device.type, torch.bfloat16)


def terminal() -> Console:
    """Where to report. Names of files are printed as they are: a bracket in one is no markup."""
    # A pipe or a file has no width: tables are as wide as they need to be there, instead of cut to 80 columns.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 240
    return Console(markup=False, highlight=False, soft_wrap=True, width=width)


def seed_step(seed: int, step: int) -> None:
    """Makes dropout and the like a function of (seed, step), so that a resumed run draws the same."""
    torch.manual_seed(seed * 1_000_003 + step)
