"""TensorBoard for real; W&B and MLflow as modules that write down what they are told."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from videokd import tracking
from videokd.recipe import load
from videokd.tracking import Track, metric_name, require, trackers

CONFIG = {"objective": {"hard": {"weight": 1.0}, "soft": {"weight": 2.0}}, "seed": 3, "names": ["a", "b"]}


def row(step: int) -> dict[str, float]:
    return {"step": step, "hard": 1 / step, "soft": 2.0, "total": 3.0, "lr": 0.1}


def crash_after_step_30_and_resume_from_20(track: Track, folder: Path) -> None:
    """A run that logged 10, 20 and 30, died, and logged 30 and 40 in its second part."""
    with suppress(KeyboardInterrupt), trackers([track], folder, name="runs/x", config=CONFIG) as tracked:
        for step in (10, 20, 30):
            tracked.log(step, row(step))
        raise KeyboardInterrupt
    with trackers([track], folder, name="runs/x", config=CONFIG, resume_step=20) as tracked:
        tracked.log(30, row(30))
        tracked.log(40, row(40))
        tracked.log(40, {"step": 40, "val_top1": 0.5})
        tracked.finish({"steps": 40, "val_top1": 0.5, "skipped": ["x.mp4"], "fast": True, "deep": {"one": 1}})


def test_metrics_are_grouped_by_what_they_are() -> None:
    names = ("hard", "total", "val_top1", "train_top1", "weight.hard", "lr", "val_x")
    assert [metric_name(name, ["hard", "val_x"]) for name in names] == [
        "loss/hard",
        "loss/total",
        "val/top1",
        "train/top1",
        "weight/hard",
        "lr",
        "loss/val_x",
    ]


def test_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    crash_after_step_30_and_resume_from_20("tensorboard", tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss/hard")] == [10, 20, 30, 40]
    assert [event.value for event in found.Scalars("val/top1")] == [0.5]
    assert [(event.step, event.value) for event in found.Scalars("summary/steps")] == [(40, 40.0)]
    assert set(found.Tags()["scalars"]) == {
        *("loss/hard", "loss/soft", "loss/total", "lr", "val/top1"),
        *("summary/steps", "summary/val_top1", "summary/deep.one"),
    }
    (text,) = found.Tensors("recipe/text_summary")
    assert b'"seed": 3' in text.tensor_proto.string_val[0]
    assert not (tmp_path / "tracking.json").exists()


def test_the_same_events_in_two_runs_do_not_share_a_step(tmp_path: Path) -> None:
    """A run that is resumed without a checkpoint starts anew: its old events are hidden."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with trackers(["tensorboard"], tmp_path, name="x", config=CONFIG) as tracked:
        tracked.log(10, {"hard": 5.0})
    with trackers(["tensorboard"], tmp_path, name="x", config=CONFIG, resume_step=0) as tracked:
        tracked.log(10, {"hard": 1.0})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss/hard")] == [(10, 1.0)]


class WandBRun:
    """What `wandb.init` gives: it drops steps that go back, as the real one does."""

    def __init__(self, step: int, said: dict[str, Any]) -> None:
        self.id, self.step, self.said = said["id"] or "made-up", step, said
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, float] = {}
        self.exit_code: int | None = None

    def log(self, values: dict[str, float], *, step: int) -> None:
        assert step >= self.step, "W&B would warn, and drop it"
        self.step = step
        self.rows.append((step, values))

    def finish(self, *, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[WandBRun]:
    """The runs that were opened; one that goes on starts a step behind the last one's, as it does online."""
    runs: list[WandBRun] = []

    def init(**said: Any) -> WandBRun:
        runs.append(WandBRun(runs[-1].step + 1 if runs and said["id"] else 0, said))
        return runs[-1]

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return runs


def test_wandb_goes_on_with_the_same_run_and_gets_each_step_once(wandb_runs: list[WandBRun], tmp_path: Path) -> None:
    crash_after_step_30_and_resume_from_20("wandb", tmp_path)
    first, second = wandb_runs
    assert (first.said["project"], first.said["name"], first.said["dir"]) == ("videokd", "runs/x", str(tmp_path))
    assert first.said["config"] == CONFIG
    assert (first.said["id"], second.said["id"]) == (None, "made-up")
    assert (first.said["resume"], second.said["resume"]) == ("allow", "allow")
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"wandb": "made-up"}
    assert first.rows[0] == (10, {"loss/hard": 0.1, "loss/soft": 2.0, "loss/total": 3.0, "lr": 0.1})
    assert [step for step, _ in first.rows + second.rows] == [10, 20, 30, 40, 40]
    assert second.rows[-1] == (40, {"val/top1": 0.5})
    assert second.summary == {"summary/steps": 40, "summary/val_top1": 0.5, "summary/deep.one": 1}
    assert (first.exit_code, second.exit_code) == (1, 0)


def test_the_wandb_project_is_the_users(
    wandb_runs: list[WandBRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with trackers(["wandb"], tmp_path, name="x", config={}):
        pass
    assert wandb_runs[0].said["project"] == "mine"


class MLflow:
    """A server, its client and its module in one: it takes what the real one takes, and may be gone."""

    def __init__(self) -> None:
        self.parameters: dict[str, str] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.experiments: dict[str, str] = {}
        self.runs: list[str] = []
        self.status: list[str] = []
        self.gone = False

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        assert name not in self.experiments, "MLflow would refuse it"
        self.experiments[name] = f"experiment {name}"
        return self.experiments[name]

    def create_run(self, experiment: str, *, run_name: str) -> Any:
        assert experiment in self.experiments.values()
        self.runs.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run {len(self.runs)}"))

    def log_batch(self, run: str, *, metrics: Any = (), params: Any = ()) -> None:
        assert run == f"run {len(self.runs)}"
        assert len(metrics) <= 1000
        assert len(params) <= 100
        if self.gone:
            raise ConnectionError("no route")
        self.metrics += [(one.key, one.value, one.step) for one in metrics]
        self.parameters |= {one.key: one.value for one in params}

    def update_run(self, run: str, *, status: str) -> None:
        if self.gone:
            raise ConnectionError("no route")
        assert run == f"run {len(self.runs)}"
        self.status.append(status)

    def set_terminated(self, run: str, *, status: str) -> None:
        self.update_run(run, status=status)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MLflow:
    server = MLflow()
    module: Any = ModuleType("mlflow")
    module.MlflowClient = lambda: server
    module.entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return server


def test_mlflow_goes_on_with_the_same_run(mlflow: MLflow, tmp_path: Path) -> None:
    crash_after_step_30_and_resume_from_20("mlflow", tmp_path)
    assert list(mlflow.experiments) == ["videokd"]
    assert mlflow.runs == ["runs/x"]
    assert mlflow.status == ["FAILED", "RUNNING", "FINISHED"]
    assert mlflow.parameters["objective.soft.weight"] == "2.0"
    assert mlflow.parameters["names"] == "['a', 'b']"
    assert [step for name, _, step in mlflow.metrics if name == "loss/hard"] == [10, 20, 30, 30, 40]
    assert ("val/top1", 0.5, 40) in mlflow.metrics
    assert ("summary/steps", 40, 40) in mlflow.metrics
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"mlflow": "run 1"}


def test_the_mlflow_experiment_is_the_users_and_its_limits_are_kept(
    mlflow: MLflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    mlflow.create_experiment("mine")
    config = {str(number): number for number in range(250)}
    with trackers(["mlflow"], tmp_path, name="x", config=config) as tracked:
        tracked.log(1, {str(number): number for number in range(2500)})
    assert list(mlflow.experiments) == ["mine"]
    assert len(mlflow.parameters) == 250
    assert [value for _, value, _ in mlflow.metrics] == list(range(2500))


@contextmanager
def notes() -> Iterator[list[str]]:
    """The warnings of the context, filled in at its end. They may come from another thread."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in warned]


def test_metrics_wait_while_mlflow_is_gone(mlflow: MLflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking._MLflow, "_PAUSE_SECONDS", 1e9)
    with trackers(["mlflow"], tmp_path, name="x", config={}) as tracked:
        mlflow.gone = True
        with notes() as said:
            tracked.log(1, {"lr": 1.0})
            sink: Any = tracked._sinks[0]
            failed = sink._sending
            failed.result()
        assert said == ["MLflow can't be reached, metrics wait: no route"]
        tracked.log(2, {"lr": 2.0})
        assert sink._sending is failed, "it was tried again at once"
        mlflow.gone = False
    assert mlflow.metrics == [("lr", 1.0, 1), ("lr", 2.0, 2)]


def test_metrics_that_never_reach_mlflow_are_counted(mlflow: MLflow, tmp_path: Path) -> None:
    with notes() as said, trackers(["mlflow"], tmp_path, name="x", config={}) as tracked:
        mlflow.gone = True
        tracked.log(1, {"lr": 1.0, "total": 2.0})
    assert "MLflow was not told that the run ended: no route" in said
    assert "2 metrics never reached MLflow; metrics.jsonl has them" in said


def test_trackers_that_are_added_or_left_out_on_the_way_keep_their_runs(
    mlflow: MLflow, wandb_runs: list[WandBRun], tmp_path: Path
) -> None:
    steps: list[tuple[list[Track], int | None]] = [
        (["wandb"], None),
        (["mlflow"], 10),
        (["wandb", "mlflow"], 20),
    ]
    for track, resume_step in steps:
        with trackers(track, tmp_path, name="x", config={}, resume_step=resume_step):
            pass
    assert [run.said["id"] for run in wandb_runs] == [None, "made-up"]
    assert mlflow.runs == ["x"]


def test_a_tracker_that_can_not_be_opened_says_why_and_closes_the_others(
    wandb_runs: list[WandBRun], mlflow: MLflow, tmp_path: Path
) -> None:
    mlflow.gone = True
    with (
        pytest.raises(ValueError, match=r"mlflow can't track the run: no route; MLFLOW_TRACKING_URI=sqlite"),
        trackers(["wandb", "mlflow"], tmp_path, name="x", config={"seed": 1}),
    ):
        pass
    assert wandb_runs[0].exit_code == 1


@pytest.mark.parametrize("track", ["tensorboard", "wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_with_its_extra(
    track: Track, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, track, None)  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match=rf"track: {track} can't be used here \(.*pip install 'videokd\[{track}\]'"),
        trackers([track], tmp_path, name="x", config={}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_librarys_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # W&B leaves folders "wandb" that Python takes for packages.
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match=r"pip install 'videokd\[wandb\]'"):
        require("wandb")
    sys.modules.pop("wandb", None)


def test_no_tracker_leaves_nothing(tmp_path: Path) -> None:
    with trackers([], tmp_path, name="x", config={}) as tracked:
        tracked.log(1, {"lr": 1.0})
        tracked.finish({})
    assert not list(tmp_path.iterdir())


def test_a_recipe_names_known_trackers_once() -> None:
    recipe = load("quickstart/alone.py")
    assert replace(recipe, track=("tensorboard", "wandb")).track == ("tensorboard", "wandb")
    with pytest.raises(ValueError, match="tracker twice: wandb, wandb"):
        replace(recipe, track=("wandb", "wandb"))
    with pytest.raises(ValueError, match=r"track = \('wandbee',\)"):
        replace(recipe, track=("wandbee",))  # type: ignore[arg-type]
