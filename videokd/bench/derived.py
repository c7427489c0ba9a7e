"""What a benchmark's numbers say together: how many times as fast, how much of the limit, where the time goes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from videokd.bench.results import Ceiling, Measurement, Network, Results, Stage
from videokd.bench.statistics import Clock, Interval, Summary, ratio, seconds_a_call, summary

STUDENT = "student"
Summaries = Mapping[str, Summary]
"""By the names of the measurements; those that failed are not among them."""

_WORKERS: tuple[Stage, ...] = ("load", "end to end")
"""Others than this process may do the work: its own seconds don't count there."""
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
    """The seconds that count: the benchmark's, or wall time where other processes work too or the device does not."""
    clock: Clock = results.setting.get("clock", "wall")
    elsewhere = clock == "device" and any(one.device is None for one in measurement.rounds)
    return "wall" if elsewhere or measurement.stage in _WORKERS else clock


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


SPEED_COLUMNS = (
    "what",
    "clips/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "± %",
    "RSS (GPU: peak)",
    "same top-1 %",
    "× slower",
    "of limit %",
    "× real time",
)


def speed_rows(results: Results) -> list[tuple[str, ...]]:
    """One row for each measurement, under `SPEED_COLUMNS`; of one that failed, why.

    "× slower" is how many times as long a clip takes as it takes the student (or the first network).
    """
    found = summaries(results)
    rows = []
    for one in results.measurements:
        if one.name not in found:
            rows.append((one.name, one.error or "not measured", *[""] * (len(SPEED_COLUMNS) - 2)))
            continue
        said, first = found[one.name], reference_of(results, one)
        factor = None if first is None else speed_up(results, first, one)
        share, video = share_of_limit(results, found, one), real_time(results, found, one)
        memory = one.resident_bytes if one.peak_device_bytes is None else one.peak_device_bytes
        rows.append(
            (
                one.name,
                _figures(said.clips_per_second),
                *(_figures(1000 * seconds) for seconds in (said.p50, said.p95, said.p99)),
                f"{100 * said.spread:.1f}{'' if one.is_stable else ', warming up'}",
                "" if memory is None else f"{memory / 2**20:,.0f} MiB",
                "" if one.difference is None else f"{100 * one.difference.top1_agreement:.1f}",
                "" if factor is None else f"{factor.value:.2f} ({factor.low:.2f} to {factor.high:.2f})",
                "" if share is None else f"{100 * share:.1f}",
                "" if video is None else _figures(video),
            )
        )
    return rows


NETWORK_COLUMNS = ("network", "architecture", "input", "params, M", "GMAC/clip", "GMAC x views", "top-1 %")


def network_rows(results: Results) -> list[tuple[str, ...]]:
    """One row for each network, under `NETWORK_COLUMNS`."""
    return [
        (
            one.party,
            one.architecture,
            one.input,
            "" if one.params is None else _figures(one.params / 1e6),
            "" if one.macs is None else _figures(one.macs / 1e9),
            "" if one.macs is None else _figures(one.views * one.macs / 1e9),
            "" if one.accuracy is None else f"{100 * one.accuracy:.1f}",
        )
        for one in results.networks
    ]


STAGE_COLUMNS = ("measurement", "ms/clip", "parts, ms/clip", "parts / whole %")


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
