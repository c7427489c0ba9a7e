"""What rates rest on: the machine's limits, its noise, what speaks against the numbers, the setting."""

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from videokd.bench import derived
from videokd.bench.results import Measurement
from videokd.report.content import Block, Cell, Code, Column, Missing, Panel, Plot, Prose, Section, Table, shown
from videokd.report.speed import figures as speed_figures
from videokd.report.speed.sections import COMMAND, Bench, known, under, why
from videokd.report.subject import at

UNEVEN = 0.05
"""A larger spread of the rounds is said aloud."""


def limits(bench: Bench) -> Section | Missing:
    """How much of what the machine can do is used."""
    results = bench.results
    rows: list[list[Cell]] = []
    points = []
    for one in bench.at("inference"):
        network = derived.network_of(results, one.party)
        if network is None:
            continue
        least = derived.limit(network, one, results.ceilings)
        end = next((e for e in results.of(one.party, "end to end", one.variant) if e.clips == one.clips), None)
        macs, moved = network.macs, derived.bytes_a_clip(network, one)
        rows.append(
            [
                one.party,
                one.variant,
                one.clips,
                moved,
                None if least is None else 1000 * least.seconds,
                1000 / bench.rate(one),
                None if least is None else least.by,
                derived.share_of_limit(results, bench.found, one),
                None if macs is None else macs * bench.rate(one),
                derived.real_time(results, bench.found, one),
                None if end is None else derived.real_time(results, bench.found, end),
            ]
        )
        if macs and least is not None and least.intensity is not None:
            points.append((one, least.intensity, macs * bench.rate(one)))
    if not rows:
        why = "it takes the inference of a network whose cost is known"
        return Missing(title="Against the limit", why=why, command=COMMAND)
    blocks: list[Block] = [_networks(bench)]
    used = {f"matmul {derived.precision(one.variant)}" for one, *_ in points}
    roofs = {str(one.what): one.per_second for one in results.ceilings if one.what in used}
    slope = next((one.per_second for one in results.ceilings if one.what == "memory copy"), None)
    if points and roofs and slope:
        # One mark for each variant: where it comes nearest to what the machine can do.
        best: dict[tuple[str, str], tuple[Measurement, float, float]] = {}
        for point in points:
            key = (point[0].party, point[0].variant)
            if key not in best or point[2] > best[key][2]:
                best[key] = point
        drawn = [(one.party, one.variant, intensity, pace) for one, intensity, pace in best.values()]
        said = "; ".join(
            f"{one.party}, {under(one)}: {shown(pace, 'size')}MAC/s at {shown(intensity, 'number')} MAC a byte"
            for one, intensity, pace in best.values()
        )
        blocks.append(
            Plot(
                name="roofline",
                caption="Higher is better; the grey lines are what large matrix products (flat) and copies of memory "
                "(slanted) reach on this machine in the same run. Below the slanted part bytes are the limit, below "
                "the flat part products are. Each mark is a variant at its fastest number of clips. Bytes are the "
                "weights and what layers read and write; fused layers move fewer, and caches hide some.",
                panels=[
                    Panel(
                        figure=speed_figures.roofline(drawn, bench.looks, roofs=roofs, slope=slope),
                        said=f"pace over intensity: {said}",
                        wide=True,
                    )
                ],
                arms=[party for party in bench.parties if any(arm == party for arm, *_ in drawn)],
            )
        )
    columns = [
        Column(title="party", kind="arm"),
        Column(title="variant", kind="name"),
        Column(title="clips a call", kind="count"),
        Column(title="bytes/clip", kind="size", note="weights, once a call, and what layers read and write"),
        Column(title="at least, ms/clip", note="the longer of products and bytes at the machine's best pace"),
        Column(title="measured, ms/clip (wall)"),
        Column(title="bound by", kind="name", note="which of the two takes longer"),
        Column(title="of the limit %", kind="share", note="at least / measured"),
        Column(title="MAC/s", kind="size"),
        Column(title="× real time, inference", note="seconds of video a second: clips/s times what a clip spans"),
        Column(title="× real time, end to end"),
    ]
    columns, rows = known(columns, rows)
    blocks.append(Table(columns=columns, rows=rows, note="A dash is not known, or was not measured."))
    if results.ceilings:
        blocks.append(_ceilings(bench))
    return Section(
        name="limits",
        title="Against the limit",
        lead="What the arithmetic and the bytes of a clip would take at the best pace of this machine.",
        blocks=blocks,
    )


def noise(bench: Bench) -> Section | Missing:
    """What this machine can't tell apart."""
    ratios = [value for value in bench.results.noise if math.isfinite(value)]
    if not ratios:
        return Missing(title="Noise", why="nothing was timed against itself", command=COMMAND)
    off = np.asarray(ratios) - 1
    low, high = (float(value) for value in np.percentile(off, [2.5, 97.5]))
    middle = float(np.median(off))
    paces = [
        max(each) / min(each)
        for one in bench.results.measurements
        if (each := [turn.yardstick for turn in one.rounds if turn.yardstick])
    ]
    items = [
        f"Median {_signed(middle)} %, middle 95 % from {_signed(low)} to {_signed(high)} %, over {len(ratios)} rounds."
    ]
    if paces:
        items.append(
            f"A fixed piece of work took up to {shown(max(paces), 'number')} times as long in one round as in another "
            "of the same measurement."
        )
    return Section(
        name="noise",
        title="Noise",
        lead="One contender against itself: a ratio of two others that is as near to 1 says nothing.",
        blocks=[
            Plot(
                name="noise",
                caption="Each dot is a round; at zero the same thing took the same time twice. The band holds the "
                "middle 95 % of the rounds. The median over rounds is surer than a round.",
                panels=[
                    Panel(
                        figure=speed_figures.noise(ratios),
                        said=f"ratios of one contender to itself: {items[0]}",
                        wide=True,
                    )
                ],
            ),
            Prose(items=items),
        ],
    )


def caveats(bench: Bench) -> Section | None:
    """What speaks against the numbers."""
    items = []
    for one in bench.results.measurements:
        said = bench.found.get(one.name)
        if said is None:
            items.append(f"{one.name} has no figure: {why(one)}.")
            continue
        share = derived.cpu_share(bench.results, one)
        if share is not None and share < derived.ENOUGH_CPU:
            items.append(f"{one.name}: this process had {shown(share, 'ratio')} of the CPU time that it wanted.")
        if not one.is_stable:
            items.append(f"{one.name} still became faster when the clock started.")
        if said.spread > UNEVEN:
            items.append(f"{one.name}: half of the rounds are over {shown(said.spread, 'ratio')} off their median.")
    if not items:
        return None
    return Section(
        name="caveats", title="Notes", lead="What to keep in mind with these numbers.", blocks=[Prose(items=items)]
    )


def card(bench: Bench) -> Section:
    """Setting and environment."""
    setting = dict(bench.results.setting)
    environment = setting.pop("environment", None) or {}
    rows: list[list[Cell]] = [["asked for", bench.results.subject]]
    rows += [[str(name), _text(value)] for name, value in setting.items() if value is not None]
    if command := at(environment, "command"):
        rows.append(["command", shlex.join(command)])
    rows += [[name, _text(value)] for name, path in _ENVIRONMENT.items() if (value := at(environment, *path))]
    versions = at(environment, "packages") or {}
    if versions:
        rows.append(["packages", ", ".join(f"{name} {version}" for name, version in versions.items())])
    plain = [Column(title="", kind="text"), Column(title="", kind="text")]
    blocks: list[Block] = [Table(columns=plain, rows=rows)]
    if environment:
        blocks.append(Code(title="Environment", text=json.dumps(environment, indent=2, ensure_ascii=False)))
    return Section(name="card", title="Run card", lead="All that it takes to measure this again.", blocks=blocks)


_ENVIRONMENT = {
    "date": ("date",),
    "videokd": ("videokd",),
    "revision": ("git", "package", "revision"),
    "Python": ("python",),
    "processor": ("cpu", "model"),
    "usable cores": ("cpu", "usable_cores"),
    "GPU": ("gpu", "names"),
    "driver": ("gpu", "driver"),
    "system": ("platform",),
}


def _networks(bench: Bench) -> Table:
    columns = [
        Column(title="party", kind="arm"),
        Column(title="architecture", kind="name"),
        Column(title="input", kind="name"),
        Column(title="parameters", kind="size"),
        Column(title="GMAC/clip", note="multiply-accumulates"),
        Column(title="views", kind="count", note="a video is scored by so many clips"),
        Column(title="GMAC × views"),
        Column(title="weights, bytes", kind="size"),
        Column(title="activations, bytes/clip", kind="size", note="what layers read and write for a clip, in fp32"),
        Column(title="clip, s of video"),
        Column(title="top-1 %", kind="share"),
    ]
    rows: list[list[Cell]] = [
        [
            one.party,
            one.architecture,
            one.input,
            one.params,
            None if one.macs is None else one.macs / 1e9,
            one.views,
            None if one.macs is None else one.macs * one.views / 1e9,
            one.param_bytes,
            one.activation_bytes,
            one.clip_seconds,
            one.accuracy,
        ]
        for one in bench.results.networks
    ]
    columns, rows = known(columns, rows)
    return Table(columns=columns, rows=rows)


def _ceilings(bench: Bench) -> Table:
    columns = [
        Column(title="ceiling", kind="name"),
        Column(title="a second", kind="size"),
        Column(title="of", kind="name"),
        Column(title="slowest round", kind="size"),
        Column(title="fastest round", kind="size"),
    ]
    rows: list[list[Cell]] = [
        [one.what, one.per_second, one.unit, *((min(one.rounds), max(one.rounds)) if one.rounds else (None, None))]
        for one in bench.results.ceilings
    ]
    return Table(
        title="Ceilings",
        columns=columns,
        rows=rows,
        note="What this machine did in the same run: the median of rounds.",
    )


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
