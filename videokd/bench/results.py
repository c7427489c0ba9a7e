"""What a benchmark leaves: every round of everything that it timed, on which machine, under which settings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from videokd.disk import write_text
from videokd.json_files import read_json

SCHEMA = "videokd.bench/2"
"""Of the JSON; the number goes up when its fields change their meaning."""

Stage = Literal[
    "decode", "transform", "load", "copy", "inference", "end to end", "training step", "online step", "stored step"
]
"""decode: compressed frames to pictures; transform: pictures to the models' squares; load: both, and batches of them;
copy: from main memory to the GPU; end to end: from files to logits. A training step is on labels alone; an online step
runs the teacher, a stored one reads what it said."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """A turn of so many calls in a row; all contenders have theirs once a round, in changing order."""

    calls: int
    wall: float
    """Seconds, until all work is done."""
    cpu: float
    """Seconds that the process computed, all its threads together."""
    device: float | None
    """Seconds between two events in the GPU's stream; None on a CPU."""
    yardstick: float | None
    """Seconds that a fixed piece of work took in the same round, on the clock that counts here: the machine's pace.
    None where other processes worked too, and nothing can be laid beside them."""
    waited: float | None = None
    """Seconds that threads of this process were ready to run and other work had the CPU, all threads together; None
    where the system does not count them."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a variant answers beside the eager network in fp32, on the same clips."""

    clips: int
    largest: float
    """Of the differences of logits."""
    relative: float
    """Root mean square of the differences over that of the logits."""
    top1_agreement: float
    """Share of clips with the same class."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One thing that was timed, under one setting."""

    party: str
    """"student", a teacher's name, or "" for what belongs to no network, such as decoding."""
    stage: Stage
    variant: str
    """"eager" (fp32), "bf16", "compile", "onnx"...; of loaders, how they read."""
    clips: int
    """Clips a call."""
    rounds: Sequence[Round] = ()
    latencies: Sequence[float] = ()
    """Wall seconds of single calls, each awaited; the rounds' are not, where a GPU has a queue."""
    first_call: float | None = None
    """Wall seconds of the first call: what compiling and choosing kernels cost."""
    warm_up: int = 0
    """Calls before the clock ran, the first one included."""
    is_stable: bool = True
    """Whether calls had stopped becoming faster by then."""
    peak_device_bytes: int | None = None
    """Memory of the GPU at its most, of this contender alone: its weights and what it allocated on top of what was
    there before."""
    resident_bytes: int | None = None
    """Of the process, after the measurement."""
    difference: Difference | None = None
    joules: float | None = None
    """Energy of the GPU a call."""
    error: str | None = None
    """Why there is no figure: "out of memory", a variant that this model or machine can't do."""

    @property
    def name(self) -> str:
        """Tells it apart from all others of a result."""
        parts = (self.party, self.stage, self.variant, f"{self.clips} clip{'s' * (self.clips > 1)}")
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that was looked at."""

    party: str
    architecture: str
    input: str
    """In words: frames, size, sampling."""
    params: int | None
    macs: int | None
    """Multiply-accumulates for a clip."""
    param_bytes: int | None
    activation_bytes: int | None = None
    """What its layers read and write for a clip, weights not counted: a lower bound of the traffic, in fp32."""
    views: int = 1
    """A video is scored by so many clips, for the cost of one."""
    clip_seconds: float | None = None
    """Of video that a clip spans; None where that hangs on the video."""
    accuracy: float | None = None
    """Top-1 on its run's test, if that is known."""
    accuracy_views: int | None = None
    """Clips that a video was scored by there."""


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What this machine can do at best, measured in the same run."""

    what: Literal["matmul fp32", "matmul bf16", "matmul fp16", "memory copy", "copy to device", "bare decode"]
    per_second: float
    unit: Literal["MAC", "byte", "frame"]
    rounds: Sequence[float] = ()
    """Each round's."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All of a benchmark."""

    subject: str
    """What was asked for."""
    setting: Mapping[str, Any]
    """"environment" (see `videokd.environment`), "device", "clock" (of comparisons: "cpu", "wall" or "device"),
    "clocks" (by which clock each kind of figure is), "tf32", "threads", "rounds", "workers", "list", "format"..."""
    networks: Sequence[Network] = ()
    measurements: Sequence[Measurement] = ()
    ceilings: Sequence[Ceiling] = ()
    noise: Sequence[float] = ()
    """Ratios, round by round, of one contender to itself: what this machine can't tell apart."""
    notes: Sequence[str] = field(default_factory=list)
    """What bounds it and what would lift it; what was left out, and why."""
    partial: str = ""
    """What is missing of a benchmark that was stopped or is not finished, in a sentence; "" of a whole one."""

    def of(self, party: str, stage: Stage, variant: str = "eager") -> list[Measurement]:
        """Measurements by rising number of clips; those that failed are among them."""
        found = [
            one for one in self.measurements if one.party == party and one.stage == stage and one.variant == variant
        ]
        return sorted(found, key=lambda one: one.clips)


def write_results(path: Path, results: Results) -> None:
    """Writes the JSON."""
    write_text(path, json.dumps({"schema": SCHEMA, **asdict(results)}, indent=1) + "\n")


def read_results(path: str | Path) -> Results:
    """Reads it back.

    Raises:
        ValueError: if it is no such file, or one of another version.
        OSError: if it is not there.
    """
    plain = read_json(Path(path))
    schema = plain.pop("schema", None) if isinstance(plain, dict) else None
    if schema != SCHEMA:
        said = "is no result of videokd bench" if schema is None else f"has the schema {schema!r}"
        raise ValueError(f"{path} {said}; this videokd reads {SCHEMA!r}: measure again with videokd bench")
    try:
        return Results(
            **{
                **plain,
                "networks": [Network(**one) for one in plain["networks"]],
                "ceilings": [Ceiling(**one) for one in plain["ceilings"]],
                "measurements": [_measurement(one) for one in plain["measurements"]],
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not whole: {error}; measure again with videokd bench") from error


def _measurement(plain: Mapping[str, Any]) -> Measurement:
    difference = plain["difference"]
    return Measurement(
        **{
            **plain,
            "rounds": [Round(**one) for one in plain["rounds"]],
            "difference": None if difference is None else Difference(**difference),
        }
    )
