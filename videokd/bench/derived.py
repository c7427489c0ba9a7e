"""What a benchmark's numbers say together: how many times as fast, how much of the limit, where the time goes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from videokd.bench.results import Ceiling, Measurement, Network, Results, Stage
from videokd.bench.statistics import (
    CLOCK_NAMES,
    FEWEST_CALLS,
    Clock,
    Interval,
    Summary,
    ratio,
    seconds_a_call,
    summary,
)

STUDENT = "student"
Summaries = Mapping[str, Summary]
"""By the names of the measurements; those that failed are not among them."""

_WAITING: tuple[Stage, ...] = ("decode", "load", "copy", "end to end", "stored step")
"""They read files, or wait for a device."""
_HALF = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "half": "fp16"}
_UNKNOWN = ("int8", "fp8", "int4")
"""Precisions for which no ceiling is measured."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What a clip takes from a file to its logits, beside what each part of the way takes alone."""

    end: Measurement
    parts: Mapping[Stage, float]
    """Wall seconds a clip, in the order of the way."""
    seconds: float
    """Wall seconds a clip, end to end."""

    @property
    def explained(self) -> float:
        """The parts' sum over what it takes: above 1 they overlap, below it something is in none of them."""
        return sum(self.parts.values()) / self.seconds

    @property
    def longest(self) -> Stage:
        """Where all parts overlap, nothing is faster than this one."""
        return max(self.parts, key=lambda stage: self.parts[stage])


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a clip takes at least."""

    seconds: float
    by: Literal["arithmetic", "memory"]
    """What takes so long."""
    intensity: float | None
    """Multiply-accumulates a byte; None where the bytes are not known."""


def clock_of(results: Results, measurement: Measurement) -> Clock:
    """The seconds that count, here as in comparisons: the benchmark's, or wall time where other processes worked too or
    the device did not."""
    clock: Clock = results.setting.get("clock", "wall")
    elsewhere = clock == "device" and any(one.device is None for one in measurement.rounds)
    return "wall" if elsewhere or any(one.yardstick is None for one in measurement.rounds) else clock


def summaries(results: Results) -> dict[str, Summary]:
    """Of all measurements that have rounds and no error."""
    return {
        one.name: summary(one, clock_of(results, one))
        for one in results.measurements
        if one.rounds and one.error is None
    }


def parties(results: Results) -> list[str]:
    """All networks: the student first, if there is one."""
    named = [one.party for one in results.networks] + [one.party for one in results.measurements]
    return sorted(dict.fromkeys(party for party in named if party), key=lambda party: party != STUDENT)


def reference(results: Results) -> str:
    """The network that all others are compared with: the student, or the first one; "" where there is none."""
    return next(iter(parties(results)), "")


def speed_up(results: Results, measurement: Measurement, other: Measurement) -> Interval | None:
    """How many times as fast `measurement` is as `other`, clip by clip; None where their rounds are not each other's.

    Rounds are paired, so the machine's pace cancels.
    """
    if (
        any(one.error is not None or not one.rounds for one in (measurement, other))
        or len(measurement.rounds) != len(other.rounds)
        or measurement.stage != other.stage
    ):
        return None
    clocks = {clock_of(results, one) for one in (measurement, other)}
    clock = clocks.pop() if len(clocks) == 1 else "wall"
    mine, others = (seconds_a_call(one.rounds, clock) / one.clips for one in (measurement, other))
    return ratio(list(others), list(mine))


def reference_of(results: Results, measurement: Measurement) -> Measurement | None:
    """What the reference did under the same setting, for a measurement of another network; None for what is none."""
    first = reference(results)
    if measurement.party in ("", first):
        return None
    same = results.of(first, measurement.stage, measurement.variant)
    return next((one for one in same if one.clips == measurement.clips), None)


def fastest(results: Results, found: Summaries, party: str, stage: Stage) -> Measurement | None:
    """Of all variants and numbers of clips, the one of most clips per second."""
    of = [one for one in results.measurements if one.party == party and one.stage == stage and one.name in found]
    return max(of, key=lambda one: found[one.name].clips_per_second, default=None)


def stages(results: Results, found: Summaries, end: Measurement) -> Stages | None:
    """The parts of an end to end measurement: loading (or decoding and transforming), copying, inference.

    Inference counts for the same variant and number of clips only. The others count under a name that the end to end
    measurement has ("bf16, 4 workers" was loaded by "4 workers") or else the setting ("format", "backend"), or else as
    they were measured first, and for the nearest number of clips. None where inference or loading was not measured.
    """
    mine = {end.variant, *end.variant.split(", ")}
    names = {str(results.setting[key]) for key in ("format", "backend") if key in results.setting}

    def seconds(stage: Stage) -> float | None:
        of = [one for one in results.measurements if one.stage == stage and one.party in (end.party, "")]
        of = [one for one in of if one.name in found]
        if stage == "inference":
            of = [one for one in of if one.variant in mine and one.clips == end.clips]
        if not of:
            return None

        def distance(one: Measurement) -> tuple[bool, bool, bool, float]:
            named = one.variant not in mine, one.variant not in names
            return not one.party, *named, abs(math.log(one.clips / end.clips))

        best = min(of, key=distance)
        return 1 / found[best.name].clips_per_second

    if end.name not in found:
        return None
    way: tuple[Stage, ...] = ("decode", "transform", "load", "copy", "inference")
    parts = {stage: took for stage in way if (took := seconds(stage)) is not None}
    if "load" in parts:  # it is both of these
        parts = {stage: took for stage, took in parts.items() if stage not in ("decode", "transform")}
    if "inference" not in parts or not {"decode", "load"} & parts.keys():
        return None
    return Stages(end=end, parts=parts, seconds=1 / found[end.name].clips_per_second)


def precision(variant: str) -> str | None:
    """That of a variant's products: "fp32", "bf16" or "fp16"; None for those that have no ceiling here."""
    said = variant.lower()
    if any(name in said for name in _UNKNOWN):
        return None
    return next((found for name, found in _HALF.items() if name in said), "fp32")


def limit(network: Network, measurement: Measurement, ceilings: Sequence[Ceiling]) -> Limit | None:
    """What inference of a clip takes at least: the longer of its products at the pace of large matrix products, and
    its bytes at the pace of a copy [roofline; Williams et al. 2009]. None where neither is known.

    Bytes are the weights, once a call, and what layers read and write; half of both where the precision is.
    """
    kind = precision(measurement.variant)
    if kind is None:
        return None
    matmul, copy = _pace(ceilings, f"matmul {kind}"), _pace(ceilings, "memory copy")
    moved = bytes_a_clip(network, measurement)
    intensity = network.macs / moved if network.macs and moved else None
    arithmetic = network.macs / matmul if network.macs and matmul else 0.0
    memory = moved / copy if moved and copy else 0.0
    if not (arithmetic or memory):
        return None
    return Limit(
        seconds=max(arithmetic, memory), by="arithmetic" if arithmetic >= memory else "memory", intensity=intensity
    )


def bytes_a_clip(network: Network, measurement: Measurement) -> float | None:
    """What inference reads and writes for a clip at least; None where it is not known."""
    kind = precision(measurement.variant)
    if kind is None or (network.param_bytes is None and network.activation_bytes is None):
        return None
    size = 1.0 if kind == "fp32" else 0.5
    return size * ((network.param_bytes or 0) / measurement.clips + (network.activation_bytes or 0))


def share_of_limit(results: Results, found: Summaries, measurement: Measurement) -> float | None:
    """The least time that inference of a clip takes over the time that it took; None for other stages."""
    network = network_of(results, measurement.party)
    if network is None or measurement.stage != "inference" or measurement.name not in found:
        return None
    least = limit(network, measurement, results.ceilings)
    return None if least is None else least.seconds * found[measurement.name].clips_per_second


def real_time(results: Results, found: Summaries, measurement: Measurement) -> float | None:
    """Seconds of video a second, of inference and of the way from files to logits; None where a clip has no length."""
    network = network_of(results, measurement.party)
    if network is None or network.clip_seconds is None or measurement.name not in found:
        return None
    if measurement.stage not in ("inference", "end to end"):
        return None
    return found[measurement.name].clips_per_second * network.clip_seconds


def network_of(results: Results, party: str) -> Network | None:
    """What is known of a party's network."""
    return next((one for one in results.networks if one.party == party), None)


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other one beats in both of their values, the larger the better, by the first."""
    best, found = -math.inf, []
    for name, (_, second) in sorted(points.items(), key=lambda point: (-point[1][0], -point[1][1])):
        if second > best:
            found.append(name)
            best = second
    return found[::-1]


NOT_MEASURED = "not measured: "
"""What a cell begins with that has no figure; the reason follows."""

SPEED_COLUMNS = (
    "what",
    "clips/s (wall)",
    "p50 ms (wall)",
    "p95 ms (wall)",
    "p99 ms (wall)",
    "± % (wall)",
    "ms/call",
    "clock of it",
    "× slower",
    "of the CPU %",
    "RSS (GPU: peak)",
    "same top-1 %",
    "of limit % (wall)",
    "× real time (wall)",
)
"""Milliseconds a call and "× slower" are by the clock that counts: of `clock_of`, which stands beside them."""
WALL = tuple(number for number, column in enumerate(SPEED_COLUMNS) if not number or "(wall)" in column)
"""Of these columns, those by the wall clock alone, with the first."""


def speed_rows(results: Results) -> list[tuple[str, ...]]:
    """One row for each measurement, under `SPEED_COLUMNS`; a cell without a figure says why.

    "× slower" is how many times as long a clip takes as it takes the student (or the first network).
    """
    found = summaries(results)
    rows = []
    for one in results.measurements:
        if one.name not in found:
            why = f"{NOT_MEASURED}{one.error or 'nothing was timed'}"
            rows.append((one.name, *[why] * (len(SPEED_COLUMNS) - 1)))
            continue
        said = found[one.name]
        memory = one.resident_bytes if one.peak_device_bytes is None else one.peak_device_bytes
        share = cpu_share(results, one)
        rows.append(
            (
                one.name,
                _figures(said.clips_per_second),
                *(_tail(one, said, name) for name in ("p50", "p95", "p99")),
                f"{100 * said.spread:.1f}{'' if one.is_stable else ', warming up'}",
                _figures(1000 * said.seconds.value),
                CLOCK_NAMES[clock_of(results, one)],
                _slower(results, one),
                _NO_SHARE if share is None else f"{100 * share:.0f}",
                f"{NOT_MEASURED}the system does not say" if memory is None else f"{memory / 2**20:,.0f} MiB",
                _same_top1(one),
                _of_limit(results, found, one),
                _times_real_time(results, found, one),
            )
        )
    return rows


_NO_SHARE = f"{NOT_MEASURED}the system does not count what waits for a CPU, and this waits for files or processes too"


def _tail(one: Measurement, said: Summary, name: Literal["p50", "p95", "p99"]) -> str:
    seconds: float = getattr(said, name)
    if not math.isnan(seconds):
        return _figures(1000 * seconds)
    if not one.latencies:
        return f"{NOT_MEASURED}single calls were not timed"
    return f"{NOT_MEASURED}fewer than {FEWEST_CALLS[name]} calls were timed"


def _slower(results: Results, one: Measurement) -> str:
    first = reference(results)
    if one.party in ("", first):
        return f"{NOT_MEASURED}{'it is what others are compared with' if one.party else 'it belongs to no network'}"
    other = reference_of(results, one)
    if other is None:
        return f"{NOT_MEASURED}{first} was not timed under this setting"
    factor = speed_up(results, other, one)
    if factor is None:
        return f"{NOT_MEASURED}its rounds and those of {first} are not the same"
    return f"{factor.value:.2f} ({factor.low:.2f} to {factor.high:.2f})"


def _same_top1(one: Measurement) -> str:
    if one.difference is not None:
        return f"{100 * one.difference.top1_agreement:.1f}"
    if one.stage != "inference":
        return f"{NOT_MEASURED}only inference is compared with the eager network"
    if one.variant == "eager":
        return f"{NOT_MEASURED}it is the eager network"
    return f"{NOT_MEASURED}there is no trained network of the same input and classes to compare with"


def _of_limit(results: Results, found: Summaries, one: Measurement) -> str:
    share = share_of_limit(results, found, one)
    if share is not None:
        return f"{100 * share:.1f}"
    if one.stage != "inference":
        return f"{NOT_MEASURED}only inference has a limit"
    if precision(one.variant) is None:
        return f"{NOT_MEASURED}no ceiling is measured in {one.variant}"
    if not results.ceilings:
        return f"{NOT_MEASURED}the ceilings of this machine were not"
    return f"{NOT_MEASURED}the network's arithmetic is not known"


def _times_real_time(results: Results, found: Summaries, one: Measurement) -> str:
    video = real_time(results, found, one)
    if video is not None:
        return _figures(video)
    if one.stage not in ("inference", "end to end"):
        return f"{NOT_MEASURED}it does not take clips to logits"
    return f"{NOT_MEASURED}how much video a clip spans is not known without a list"


def footnotes(rows: Sequence[Sequence[str]]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows with a number in the place of each reason for an empty cell, and the reasons by these numbers."""
    reasons: dict[str, int] = {}
    short = [
        tuple(
            f"({reasons.setdefault(cell, len(reasons) + 1)})" if cell.startswith(NOT_MEASURED) else cell for cell in row
        )
        for row in rows
    ]
    return short, [f"({number}) {reason}" for reason, number in reasons.items()]


ENOUGH_CPU = 0.8
"""Where a process had less of the CPU than that, its wall time is that of a busy machine."""


def cpu_share(results: Results, measurement: Measurement) -> float | None:
    """How much of the CPU time that it wanted this process had, from 0 to 1; None where that can't be told.

    Where the system counts how long threads were ready to run and had no CPU (Linux), it is what they ran over both;
    what they waited for files, for other processes or for each other plays no part. Elsewhere it is the process's CPU
    time over wall time and threads, of stages that compute in this process alone, where nothing waits but for a CPU.
    """
    rounds = measurement.rounds
    ran, wall = sum(one.cpu for one in rounds), sum(one.wall for one in rounds)
    waited = [one.waited for one in rounds if one.waited is not None]
    if not rounds or not wall or any(one.yardstick is None for one in rounds):
        return None  # other processes worked too
    if len(waited) == len(rounds):
        return ran / max(ran + sum(waited), 1e-9)
    if measurement.stage in _WAITING:
        return None
    # A GPU is driven by one thread.
    threads = int(results.setting.get("threads", 1)) if results.setting.get("device", "cpu") == "cpu" else 1
    return min(ran / (wall * threads), 1.0)


def starved(results: Results) -> list[str]:
    """A warning, if measurements had less than `ENOUGH_CPU` of the CPU."""
    shares = {one.name: share for one in results.measurements if (share := cpu_share(results, one)) is not None}
    few = {name: share for name, share in shares.items() if share < ENOUGH_CPU}
    if not few:
        return []
    worst = min(few, key=lambda name: few[name])
    more = f", and less than {100 * ENOUGH_CPU:.0f} % in {len(few) - 1} more" if len(few) > 1 else ""
    counted = any(turn.waited is not None for one in results.measurements for turn in one.rounds)
    what = "of the CPU time that it wanted" if counted else "of the CPU time of its threads"
    or_else = "" if counted or results.setting.get("threads", 1) == 1 else " (or the network is too small for them)"
    return [
        f"Warning: this process had {100 * few[worst]:.0f} % {what} in {worst}{more}: other work was on the "
        f"machine{or_else}, and figures by the wall clock are slower than on a quiet one."
    ]


NETWORK_COLUMNS = (
    "network",
    "architecture",
    "input",
    "1 clip, p50 ms (wall)",
    "1 clip, p95 ms (wall)",
    "params, M",
    "GMAC/clip",
    "GMAC x views",
    "top-1 %",
)


def network_rows(results: Results) -> list[tuple[str, ...]]:
    """One row for each network, under `NETWORK_COLUMNS`; a cell without a figure says why."""
    found = summaries(results)
    unknown = f"{NOT_MEASURED}an exported file does not say"
    return [
        (
            one.party,
            one.architecture,
            one.input,
            *_latency(results, found, one.party),
            unknown if one.params is None else _figures(one.params / 1e6),
            unknown if one.macs is None else _figures(one.macs / 1e9),
            unknown if one.macs is None else _figures(one.views * one.macs / 1e9),
            f"{NOT_MEASURED}no test scores (videokd evaluate RUN)"
            if one.accuracy is None
            else f"{100 * one.accuracy:.1f}",
        )
        for one in results.networks
    ]


def single_clip(results: Results, party: str) -> Measurement | None:
    """Inference of one clip a call, of the variant that was timed first; one that failed, where none has figures."""
    of = [one for one in results.measurements if (one.party, one.stage, one.clips) == (party, "inference", 1)]
    return next((one for one in of if one.rounds and one.error is None), next(iter(of), None))


def _latency(results: Results, found: Summaries, party: str) -> tuple[str, str]:
    one = single_clip(results, party)
    if one is None:
        network = network_of(results, party)
        exported = network is not None and network.params is None
        why = "it was exported for calls of more clips" if exported else "one clip a call was not timed"
    elif one.name not in found:
        why = one.error or "nothing was timed"
    else:
        return _tail(one, found[one.name], "p50"), _tail(one, found[one.name], "p95")
    return f"{NOT_MEASURED}{why}", f"{NOT_MEASURED}{why}"


STAGE_COLUMNS = ("measurement", "ms/clip (wall)", "parts, ms/clip (wall)", "parts / whole %")


def stage_rows(results: Results) -> list[tuple[str, ...]]:
    """One row for each end to end measurement whose parts were measured too, under `STAGE_COLUMNS`."""
    found = summaries(results)
    each = [stages(results, found, one) for one in results.measurements if one.stage == "end to end"]
    return [
        (
            one.end.name,
            _figures(1000 * one.seconds),
            ", ".join(f"{stage} {_figures(1000 * took)}" for stage, took in one.parts.items()),
            f"{100 * one.explained:.0f}",
        )
        for one in each
        if one is not None
    ]


def _pace(ceilings: Sequence[Ceiling], what: str) -> float | None:
    return next((one.per_second for one in ceilings if one.what == what), None)


def _figures(value: float) -> str:
    """Three figures; empty where it is not known."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
