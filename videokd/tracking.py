"""Metrics sent on, besides metrics.jsonl: to TensorBoard, Weights & Biases, MLflow, each through its own library."""

import importlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from videokd.disk import write_text
from videokd.json_files import read_object
from videokd.text import redacted

Track = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "videokd"
"""The W&B project and the MLflow experiment, where WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names no other."""

# Where each library lies, and what must be in it: a folder "wandb" that a run left can be imported, too.
_LIBRARIES: dict[Track, tuple[str, str]] = {
    "tensorboard": ("torch.utils.tensorboard", "SummaryWriter"),
    "wandb": ("wandb", "init"),
    "mlflow": ("mlflow", "MlflowClient"),
}


class Tracked:
    """Where the metrics of a run go; made by `trackers`."""

    def __init__(self, sinks: Sequence["_Sink"], terms: Sequence[str]) -> None:
        self._sinks, self._terms = sinks, terms
        self._step = 0

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Sends a row of metrics.jsonl."""
        self._step = step
        values = {metric_name(column, self._terms): value for column, value in row.items() if column != "step"}
        for sink in self._sinks:
            sink.log(step, values)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Sends the numbers of summary.json, and that the run is finished."""
        values = {f"summary/{name}": value for name, value in _leaves(summary).items() if _is_number(value)}
        for sink in self._sinks:
            sink.finish(self._step, values)


@contextmanager
def trackers(
    track: Sequence[Track], folder: Path, *, name: str, config: Mapping[str, Any], resume_step: int | None = None
) -> Iterator[Tracked]:
    """Opens trackers for a run; one that leaves the context without `finish` is marked as failed there, until resumed.

    Args:
        track: which; none is fine.
        folder: of the run. TensorBoard's events lie in it, W&B's files, and tracking.json with the runs' ids there.
        name: of the run, for people.
        config: the recipe as plain data.
        resume_step: the step of the checkpoint that a run goes on from; None for a new run.

    Raises:
        ValueError: for a tracker whose library is not installed, or that can't be reached.
    """
    ids = _read_ids(folder) if resume_step is not None else {}
    opened: dict[Track, _Sink] = {}
    with ExitStack() as stack:
        for one in track:
            library = require(one)
            run = _Run(folder=folder, name=name, config=config, known=ids.get(one), resume_step=resume_step)
            try:
                sink = _SINKS[one](library, run)
            except Exception as error:  # whatever the library raises: no network, no key, no such run
                raise ValueError(f"{one} can't track the run: {redacted(str(error))}{_ADVICE.get(one, '')}") from None
            opened[one] = sink
            stack.callback(sink.close)
        ids |= {one: sink.id for one, sink in opened.items() if sink.id is not None}
        if ids:
            write_text(folder / "tracking.json", json.dumps(ids, indent=2) + "\n")
        yield Tracked(list(opened.values()), list(config.get("objective", ())))


def require(track: Track) -> ModuleType:
    """The tracker's library.

    Raises:
        ValueError: if it is not installed, with what to install.
    """
    module, entry = _LIBRARIES[track]
    try:
        library = importlib.import_module(module)
        getattr(library, entry)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"track: {track} can't be used here ({error}); pip install 'videokd[{track}]'") from error
    return library


def metric_name(column: str, terms: Sequence[str]) -> str:
    """A column of metrics.jsonl as trackers group it: "loss/hard", "loss/total", "val/top1", "train/top1",
    "weight/hard"; others stay as they are."""
    if column in terms or column == "total":
        return f"loss/{column}"
    for prefix in ("val_", "train_", "weight."):
        if column.startswith(prefix):
            return f"{prefix[:-1]}/{column.removeprefix(prefix)}"
    return column


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a tracker is told of a run when it opens."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    known: str | None
    """Its id there, if it was there before."""
    resume_step: int | None


class _Sink(Protocol):
    id: str | None
    """The run's name there, to go on with; None where the folder is enough."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    id: str | None = None

    def __init__(self, library: ModuleType, run: _Run) -> None:
        events = run.folder / "tensorboard"
        is_new = not events.exists()
        # What was logged after the checkpoint is hidden: it is logged again.
        purge = None if run.resume_step is None else run.resume_step + 1
        self._writer = library.SummaryWriter(str(events), purge_step=purge, flush_secs=30)
        if is_new:
            self._writer.add_text("recipe", f"```\n{json.dumps(run.config, indent=2)}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, step: int, values: Mapping[str, float]) -> None:
        self.log(step, values)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases. WANDB_MODE=offline keeps it in the run's folder, for `wandb sync`."""

    def __init__(self, library: ModuleType, run: _Run) -> None:
        self._run = library.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=run.known,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            allow_val_change=True,  # what may change when a run goes on: device, workers
            reinit="create_new",  # beside a run that the caller may have open
        )
        self.id: str | None = self._run.id
        self._finished = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # Steps only go up there. Those between the checkpoint and where the run was killed are there, and are the same.
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def finish(self, step: int, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))
        self._finished = True

    def close(self) -> None:
        self._run.finish(exit_code=0 if self._finished else 1)


class _MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says. Metrics are sent beside the training, which a slow server does
    not hold up; those that can't be sent wait and are tried again."""

    _PAUSE_SECONDS = 60.0
    _METRICS_AT_ONCE, _PARAMETERS_AT_ONCE = 1000, 100  # MLflow takes no more

    def __init__(self, library: ModuleType, run: _Run) -> None:
        self._entities, self._client = library.entities, library.MlflowClient()
        self._waiting: list[Any] = []
        self._sender = ThreadPoolExecutor(max_workers=1)
        self._sending: Future[None] | None = None
        self._wait_until = 0.0
        self._finished = False
        if run.known is not None:
            self._client.update_run(run.known, status="RUNNING")
            self.id: str | None = run.known
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(title)
        number = self._client.create_experiment(title) if experiment is None else experiment.experiment_id
        self.id = self._client.create_run(number, run_name=run.name).info.run_id
        parameters = [self._entities.Param(key, str(value)) for key, value in _leaves(run.config).items()]
        for at in range(0, len(parameters), self._PARAMETERS_AT_ONCE):
            self._client.log_batch(self.id, params=parameters[at : at + self._PARAMETERS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        idle = self._sending is None or self._sending.done()
        if idle and time.monotonic() >= self._wait_until:
            self._sending = self._sender.submit(self._send)

    def finish(self, step: int, values: Mapping[str, float]) -> None:
        self.log(step, values)
        self._finished = True

    def close(self) -> None:
        self._sender.shutdown()
        self._send()
        try:
            self._client.set_terminated(self.id, status="FINISHED" if self._finished else "FAILED")
        except Exception as error:
            warnings.warn(f"MLflow was not told that the run ended: {redacted(str(error))}", stacklevel=2)
        if self._waiting:
            left = f"{len(self._waiting)} metrics never reached MLflow; metrics.jsonl has them"
            warnings.warn(left, stacklevel=2)

    def _send(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[: self._METRICS_AT_ONCE]
                self._client.log_batch(self.id, metrics=batch)
                del self._waiting[: len(batch)]
        except Exception as error:  # no reason to end a run
            self._wait_until = time.monotonic() + self._PAUSE_SECONDS
            warnings.warn(f"MLflow can't be reached, metrics wait: {redacted(str(error))}", stacklevel=2)


_SINKS: dict[Track, Callable[[ModuleType, _Run], _Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}
_ADVICE: dict[Track, str] = {
    "wandb": "; WANDB_MODE=offline keeps it on this machine, for `wandb sync` later",
    "mlflow": "; MLFLOW_TRACKING_URI=sqlite:///mlflow.db keeps it in a file",
}


def _read_ids(folder: Path) -> dict[str, str]:
    path = folder / "tracking.json"
    return read_object(path, dict[str, str]) if path.is_file() else {}


def _leaves(plain: Any, path: str = "") -> dict[str, Any]:
    """Dotted name -> value, of nested dicts."""
    if not isinstance(plain, Mapping):
        return {path: plain}
    return {
        name: value
        for key, item in plain.items()
        for name, value in _leaves(item, f"{path}.{key}" if path else str(key)).items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
