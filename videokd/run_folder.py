"""What a run leaves on disk, and how it goes on from there."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_STEP = "step"


class RunFolder:
    """A folder with recipe.json, fitted.json, metrics.jsonl, checkpoint.safetensors, and at the end the model and its
    scores; nothing is written before `begin`.

    Raises:
        ValueError: if a new run would overwrite what the folder holds, or there is no run to resume.
    """

    def __init__(self, path: str | Path, *, recipe: str, resume: bool = False) -> None:
        self.path = Path(path)
        written = self.path / "recipe.json"
        go_on = f"videokd train --resume {shlex.quote(str(self.path))}"
        if resume:
            if not written.is_file():
                raise ValueError(f"{self.path} holds no run to resume (no recipe.json)")
            if self.is_finished:
                raise ValueError(f"{self.path} is finished: nothing to resume")
            if _without_operation(written.read_text(encoding="utf-8")) != _without_operation(recipe):
                raise ValueError(f"{written} is another recipe; resume with the same one, or start a new folder")
        elif self.is_finished:
            raise ValueError(f"{self.path} already holds a finished run; name another --out")
        elif written.is_file() and (self.checkpoint_path.is_file() or self.metrics_path.is_file()):
            raise ValueError(f"{self.path} already holds a run; go on with {go_on}, or name another --out")
        elif self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - {written}):
            raise ValueError(f"{self.path} already holds something else; name another --out")
        self._recipe = recipe

    def begin(self) -> None:
        """Makes the folder, and writes the recipe into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "recipe.json", self._recipe)

    @property
    def fitted_path(self) -> Path:
        """What losses took from the data before the first step, so that a resumed run takes the same."""
        return self.path / "fitted.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """Weights and optimiser state of the last checkpoint."""
        return self.path / "checkpoint.safetensors"

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "model.json").is_file()

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Writes a checkpoint after `step` steps; the last one stays until this one is whole."""
        tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
        state = optimizer.state_dict()["state"]
        for number, slots in state.items():
            tensors |= {f"optimizer.{number}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        partial = self.checkpoint_path.with_suffix(".partial")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {_STEP: str(step)})
        partial.replace(self.checkpoint_path)

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads the last checkpoint, cuts the log back to it, and returns its step; 0 where there is none."""
        if not self.checkpoint_path.is_file():
            self.metrics_path.unlink(missing_ok=True)
            return 0
        step = _read_step(self.checkpoint_path)
        tensors = load_file(self.checkpoint_path)
        module.load_state_dict(_under(tensors, "module."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, "optimizer.").items():
            number, _, slot = name.partition(".")
            state.setdefault(int(number), {})[slot] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        rows = [row for row in read_metrics(self.path) if row[_STEP] <= step]
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
        return step


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # A run that was killed while it wrote; what follows is made again.
    return rows


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _without_operation(recipe: str) -> Any:
    """A recipe without what may change between the parts of a run: where it runs, and what it does with bad videos."""
    plain = json.loads(recipe)
    plain.pop("machine", None)
    for name in ("on_bad_video", "workers"):
        plain.get("data", {}).pop(name, None)
    return plain


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_step(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return int(file.metadata()[_STEP])
