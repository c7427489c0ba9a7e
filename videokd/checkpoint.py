"""All that a run must remember to go on to the same weights, in one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from videokd.averaging import WeightAverage
from videokd.disk import write_bytes
from videokd.json_files import as_object, parse_json


@dataclass
class State:
    """What changes from step to step. Schedules, the order of the clips and random numbers are functions of the step,
    and need no memory."""

    student: nn.Module
    """With connectors, queues and what losses learn."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None = None
    best: dict[str, Tensor] | None = None
    """The model's weights at its best validation, where these are what is kept."""
    step: int = 0
    """Steps that are done."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Plain data: what was left out so far, and how long it took."""

    def save(self, path: Path) -> None:
        """Writes it; what is at `path` stays until this is whole, on the disk and not only on its way.

        Raises:
            OSError: if it can't be written; what was there is still there.
        """
        plain = {"step": self.step, "notes": self.notes, "scaler": self.scaler.state_dict()}
        if self.average is not None:
            plain["averaged"] = self.average.steps
        # Not `save_file`: it leaves a file of its own behind when it is killed, which only its owner may read.
        data = save({name: one.contiguous() for name, one in self._tensors().items()}, {"state": json.dumps(plain)})
        try:
            write_bytes(path, data)
        except OSError as error:
            kept = f"the last one, of step {read_step(path)}, is kept" if path.is_file() else "there is none before it"
            raise OSError(error.errno, f"{error.strerror}; {kept}") from error

    def load(self, path: Path) -> None:
        """Takes up what `save` wrote.

        Raises:
            ValueError: if it is damaged, or of another student or optimizer.
        """
        try:
            self._load(path)
        except ValueError:
            raise
        except Exception as error:  # of the wrong names, shapes or types
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{path} is not a checkpoint of this run: {said}") from error

    def _load(self, path: Path) -> None:
        plain, tensors = _read(path), load_file(path)
        self.step, self.notes = plain["step"], plain["notes"]
        self.student.load_state_dict(_under(tensors, "student."))
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        for name, tensor in _under(tensors, "optimizer.").items():
            number, _, slot = name.partition(".")
            like = parameters[int(number)]
            if tensor.shape == like.shape:  # the same layout in memory as the parameter's
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            slots.setdefault(int(number), {})[slot] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.scaler.is_enabled() and plain["scaler"]:
            self.scaler.load_state_dict(plain["scaler"])
        if self.average is not None:
            self.average.load(_under(tensors, "average."), steps=plain["averaged"])
        self.best = _under(tensors, "best.") or None

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"student.{name}": one for name, one in self.student.state_dict().items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{slot}": torch.as_tensor(one) for slot, one in slots.items() if one is not None
            }
        tensors |= {f"average.{name}": one for name, one in (self.average.values if self.average else {}).items()}
        return tensors | {f"best.{name}": one for name, one in (self.best or {}).items()}


def read_step(path: Path) -> int:
    """How many steps are done in a checkpoint."""
    step: int = _read(path)["step"]
    return step


def _read(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            plain = as_object(parse_json(file.metadata()["state"], source=path), source=path)
        if not isinstance(plain.get("step"), int) or not isinstance(plain.get("notes"), dict):
            raise TypeError("it does not say of which step it is")
        return plain
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of this version of videokd, or is damaged: {error}") from error


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
