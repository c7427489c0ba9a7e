"""The sections of a benchmark's page, each made of what was measured, or named as missing."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from videokd.bench import derived
from videokd.bench.results import Measurement, Results, Stage
from videokd.bench.statistics import CLOCK_NAMES, FEWEST_CALLS, Interval, Summary
from videokd.report.content import (
    Block,
    Cell,
    Column,
    Figures,
    Look,
    Missing,
    Panel,
    Plot,
    Prose,
    Section,
    Span,
    Table,
    shown,
)
from videokd.report.figures import cut
from videokd.report.speed import figures as speed_figures

SAID: Mapping[Stage, str] = {"inference": "inference", "end to end": "from files to logits"}

COMMAND = "videokd bench"
_STEPS: tuple[Stage, ...] = ("training step", "online step", "stored step")
_LARGE = 3
_ANSWERS: tuple[Stage, ...] = ("inference", "end to end", *_STEPS)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A benchmark with what is derived from it."""

    results: Results
    looks: Mapping[str, Look]

    @cached_property
    def found(self) -> Mapping[str, Summary]:
        """Of the measurements that did not fail."""
        return derived.summaries(self.results)

    @cached_property
    def parties(self) -> list[str]:
        """The student first."""
        return derived.parties(self.results)

    def rate(self, one: Measurement) -> float:
        """Clips per second."""
        return self.found[one.name].clips_per_second

    def at(self, stage: Stage) -> list[Measurement]:
        """Those of a stage that did not fail."""
        return [one for one in self.results.measurements if one.stage == stage and one.name in self.found]

    def failed(self, *of: Stage) -> list[str]:
        """Sentences' parts on those that have no figure."""
        return [
            f"{one.name} ({one.error or 'not measured'})"
            for one in self.results.measurements
            if one.name not in self.found and one.stage in of
        ]

    def lead(self) -> Measurement | None:
        """What the page begins with: the fastest inference of the student (or first network), or what there is."""
        tried = ((party, stage) for stage in _ANSWERS for party in self.parties)
        found = (derived.fastest(self.results, self.found, party, stage) for party, stage in tried)
        return next((one for one in found if one is not None), None)

    def speed_ups(self, one: Measurement) -> dict[str, Interval]:
        """Other network -> how many times as fast `one`, the reference's, is under the same setting."""
        found = {}
        for other in self.results.measurements:
            if derived.reference_of(self.results, other) is one:
                factor = derived.speed_up(self.results, one, other)
                if factor is not None:
                    found[other.party] = factor
        return found

    def ahead_of(self, one: Measurement) -> dict[str, tuple[Measurement, Interval]]:
        """Other network -> its fastest, and how many times as fast `one` is."""
        found = {}
        for party in self.parties:
            other = derived.fastest(self.results, self.found, party, one.stage)
            factor = None if other is None else derived.speed_up(self.results, one, other)
            if party != one.party and other is not None and factor is not None:
                found[party] = other, factor
        return found


def answer(bench: Bench) -> Section | Missing:
    """How fast, how many times as fast, and what bounds it."""
    if not bench.found:
        return Missing(title="Rates", why="no measurement has a figure", command=COMMAND)
    blocks: list[Block] = [Figures(items=_large(bench))]
    if bench.results.partial:
        blocks.insert(0, Prose(text=f"This result is partial: {bench.results.partial}.", warns=True))
    if bench.results.notes:
        blocks.append(Prose(items=list(bench.results.notes)))
    of_parties = [one for stage in _ANSWERS for one in bench.results.measurements if one.party and one.stage == stage]
    settings = list(dict.fromkeys((one.stage, one.variant, one.clips) for one in of_parties))
    first, *others = bench.parties or [""]
    columns = [Column(title="stage", kind="name"), Column(title="variant", kind="name")]
    columns += [Column(title="clips a call", kind="count")]
    columns += [Column(title=f"{party}, clips/s (wall)") for party in bench.parties]
    clock = CLOCK_NAMES[bench.results.setting.get("clock", "wall")]
    note = f"how many times the other's clips/s; median of the rounds' ratios by {clock}, 95 % interval"
    columns += [Column(title=f"{first} over {party}", note=note) for party in others]
    rows: list[list[Cell]] = []
    for stage, variant, clips in settings:
        same = {one.party: one for one in of_parties if (one.stage, one.variant, one.clips) == (stage, variant, clips)}
        row: list[Cell] = [stage, variant, clips]
        for party in bench.parties:
            other = same.get(party)
            row.append(None if other is None else bench.rate(other) if other.name in bench.found else why(other))
        factors = bench.speed_ups(same[first]) if first in same else {}
        row += [_span(factors.get(party)) for party in others]
        rows.append(row)
    if rows:
        blocks.append(Table(columns=columns, rows=rows, note="A dash was not measured, or has nothing beside it."))
    return Section(
        name="answer",
        title="Result",
        lead="Clips per second, all work done, and what bounds them.",
        blocks=blocks,
    )


def _large(bench: Bench) -> list[tuple[str, str, str]]:
    """The first few networks; the table has them all."""
    best = bench.lead()
    items = []
    for party in bench.parties[:_LARGE]:
        if best is None:
            break
        mine = derived.fastest(bench.results, bench.found, party, best.stage)
        if mine is not None:
            what = f"clips/s (wall) of {party}, {SAID.get(best.stage, best.stage)}"
            items.append((shown(bench.rate(mine), "number"), what, f"at its fastest: {under(mine)}"))
    if best is None:
        return items
    single = derived.single_clip(bench.results, best.party)
    if single is not None and single.name in bench.found and math.isfinite(bench.found[single.name].p50):
        ms = shown(1000 * bench.found[single.name].p50, "number")
        items.append((f"{ms} ms", f"for one clip, {best.party}, median (wall)", under(single)))
    for party, (_, factor) in list(bench.ahead_of(best).items())[: _LARGE - 1]:
        sure = f"95 % interval {shown(factor.low, 'number')} to {shown(factor.high, 'number')}, each at its fastest"
        items.append((f"{shown(factor.value, 'number')}×", f"the rate of {party}", sure))
    end = derived.fastest(bench.results, bench.found, best.party, "end to end")
    if best.stage == "inference" and end is not None:
        what = f"clips/s (wall) of {best.party}, {SAID['end to end']}"
        items.append((shown(bench.rate(end), "number"), what, under(end)))
    video = derived.real_time(bench.results, bench.found, end or best)
    if video is not None:
        how = f"seconds of video a second, {best.party}, {SAID[(end or best).stage]}"
        items.append((f"{shown(video, 'number')}×", "real time", how))
    return items


def throughput(bench: Bench) -> Section | None:
    """Clips per second over clips a call."""
    panels, drawn = [], []
    of_stages: tuple[Stage, ...] = ("inference", "end to end", "load")
    for stage in of_stages:
        series = []
        keys = dict.fromkeys((one.party, one.variant) for one in bench.at(stage))
        for party, variant in keys:
            each = sorted(
                (one for one in bench.at(stage) if (one.party, one.variant) == (party, variant)),
                key=lambda one: one.clips,
            )
            series.append(
                speed_figures.Series(
                    arm=party, variant=variant, x=[one.clips for one in each], y=[bench.rate(one) for one in each]
                )
            )
        if len({x for one in series for x in one.x}) < 2:
            continue
        said = "; ".join(
            f"{one.arm} {one.variant} {shown(one.y[0], 'number')} at {one.x[0]:g} to {shown(one.y[-1], 'number')} at "
            f"{one.x[-1]:g}"
            for one in series
        )
        panels.append(
            Panel(
                figure=speed_figures.over_clips(series, bench.looks, title=stage),
                said=f"{stage}, clips/s: {said}",
                wide=True,
            )
        )
        drawn.append(stage)
    if not panels:
        return None
    failed = bench.failed(*drawn)
    left = f" Not drawn: {'; '.join(failed)}." if failed else ""
    return Section(
        name="throughput",
        title="Rate over clips a call",
        lead="Whether a larger batch would still help.",
        blocks=[
            Plot(
                name="throughput",
                caption="Higher is better. Where a line is flat, the machine is busy and a larger batch only makes its "
                f"clips wait; where it still rises, each call has a price of its own.{left}",
                panels=panels,
                arms=[party for party in bench.parties if party in bench.looks],
            )
        ],
    )


def stages(bench: Bench) -> Section | Missing:
    """Where the time of the way from files to logits goes."""
    ends = bench.at("end to end")
    found = [one for end in ends if (one := derived.stages(bench.results, bench.found, end)) is not None]
    if not found:
        why = "it takes the whole way from files to logits, loading and inference under the same setting"
        return Missing(title="Stages", why=why, command=COMMAND)
    by_party = [[one for one in found if one.end.party == party] for party in bench.parties]
    fastest = [min(of, key=lambda one: one.seconds) for of in by_party if of]
    panels = []
    for best in fastest:
        party = best.end.party
        parts = {str(stage): 1000 * seconds for stage, seconds in best.parts.items()}
        figure = speed_figures.waterfall(
            parts, 1000 * best.seconds, bench.looks[party], title=f"{cut(party, 14)}, {best.end.variant}"
        )
        said = ", ".join(f"{stage} {shown(ms, 'number')}" for stage, ms in parts.items())
        whole = f"end to end {shown(1000 * best.seconds, 'number')}"
        panels.append(Panel(figure=figure, said=f"ms a clip of {party}: {said}, {whole}", wide=True))
    every = list(dict.fromkeys(stage for one in found for stage in one.parts))
    columns = [
        Column(title="party", kind="arm"),
        Column(title="variant", kind="name"),
        Column(title="clips a call", kind="count"),
        *(Column(title=f"{stage}, ms (wall)") for stage in every),
        Column(title="end to end, ms (wall)"),
        Column(title="parts / whole %", kind="share", note="above 100 they overlap"),
        Column(title="longest / whole %", kind="share", note="at 100 this part alone bounds the rate"),
    ]
    rows: list[list[Cell]] = [
        [
            one.end.party,
            one.end.variant,
            one.end.clips,
            *(1000 * one.parts[stage] if stage in one.parts else None for stage in every),
            1000 * one.seconds,
            one.explained,
            one.parts[one.longest] / one.seconds,
        ]
        for one in found
    ]
    return Section(
        name="stages",
        title="Stages",
        lead="What each part of the way takes alone, beside what the whole way takes.",
        blocks=[
            Plot(
                name="stages",
                caption="Milliseconds a clip, of each party's fastest setting; the parts were measured alone. Parts "
                "that reach as far as the whole explain it. Where the whole is shorter than their sum, they overlap, "
                "and the longest part bounds the rate; where it is longer, something is in none of them.",
                panels=panels,
            ),
            Prose(items=[_explained(one) for one in fastest]),
            Table(title="All settings", folded=True, columns=columns, rows=rows),
        ],
    )


def _explained(one: derived.Stages) -> str:
    parts = f"{begun(one.end.party)}, {under(one.end)}: the parts' sum is {shown(one.explained, 'ratio')} of the whole"
    longest = f"the longest, {one.longest}, is {shown(one.parts[one.longest] / one.seconds, 'ratio')}"
    return f"{parts}; {longest}."


def latency(bench: Bench) -> Section | Missing:
    """How long single calls take, tails and all."""
    timed = [one for one in bench.at("inference") + bench.at("end to end") if one.latencies]
    if not timed:
        return Missing(title="Latency", why="no single calls were timed", command=COMMAND)
    panels, shown_of = [], []
    for stage in ("inference", "end to end"):
        of = [one for one in timed if one.stage == stage]
        if not of:
            continue
        # The one of most variants; a sweep has other numbers of clips for few of them.
        counts = Counter(one.clips for one in of)
        fewest = min(clips for clips, count in counts.items() if count == max(counts.values()))
        for size in sorted({fewest, 1} & counts.keys()):  # one clip: who waits for an answer has no batch
            each = [
                (one.party, one.variant, [1000 * seconds for seconds in one.latencies])
                for one in of
                if one.clips == size
            ]
            clips = f"{size} clip{'s' * (size > 1)} a call"
            said = "; ".join(
                f"{party} {variant} {shown(float(np.median(ms)), 'number')}, 99 % below "
                f"{shown(float(np.percentile(ms, 99)), 'number')}"
                for party, variant, ms in each
            )
            figure = speed_figures.calls(each, bench.looks, title=f"{stage}, {clips}")
            panels.append(Panel(figure=figure, said=f"{stage}, ms a call (wall), {clips}: medians {said}", wide=True))
            shown_of += [one.party for one in of if one.clips == size]
    return Section(
        name="latency",
        title="Latency",
        lead="How long one waits for an answer. A mean hides the slow calls: here they are, one by one.",
        blocks=[
            Plot(
                name="latency",
                caption="Further left is better, and narrower. Each dot is a call that was awaited; the thick mark is "
                "the median, the thin ones are the times that 95 % and 99 % of the calls stay below. Of many calls, "
                "some are drawn, the fastest and the slowest among them.",
                panels=panels,
                arms=[party for party in bench.parties if party in shown_of],
            )
        ],
    )


def everything(bench: Bench) -> Section | Missing:
    """All measurements, those that failed among them."""
    results = bench.results
    if not results.measurements:
        return Missing(title="All measurements", why="nothing was measured", command=COMMAND)
    columns = [
        Column(title="party", kind="arm", note="a dash belongs to no network"),
        Column(title="stage", kind="name"),
        Column(title="variant", kind="name"),
        Column(title="clips a call", kind="count"),
        Column(title="clips/s (wall)", note="all clips over all wall seconds"),
        Column(title="p50 ms (wall)", note="of single calls, each awaited; so are p95 and p99"),
        Column(title="p95 ms (wall)", note=f"of at least {FEWEST_CALLS['p95']} calls"),
        Column(title="p99 ms (wall)", note=f"of at least {FEWEST_CALLS['p99']} calls"),
        Column(title="spread % (wall)", kind="share", note="median absolute deviation of the rounds over their median"),
        Column(title="ms/call", note="median over rounds, by the clock that is compared: the next column"),
        Column(title="clock of it", kind="name"),
        Column(title="of the CPU %", kind="share", note="CPU time that this process had, of what it wanted"),
        Column(title="peak of GPU, bytes", kind="size"),
        Column(title="of process, bytes", kind="size", note="resident after the measurement"),
        Column(title="first call, s (wall)"),
        Column(title="warm-up calls", kind="count"),
        Column(title="same top-1 %", kind="share", note="clips with the same class as in fp32"),
        Column(title="off fp32 %", kind="share", note="root mean square of the logits' differences over theirs"),
        Column(title="J/clip", note="energy of the GPU"),
        Column(title="no figure, since", kind="name"),
    ]
    rows: list[list[Cell]] = []
    for one in results.measurements:
        said = bench.found.get(one.name)
        numbers: list[Cell] = [None] * 8
        if said is not None:
            tails = [_known_ms(seconds) for seconds in (said.p50, said.p95, said.p99)]
            clock = CLOCK_NAMES[derived.clock_of(results, one)]
            numbers = [said.clips_per_second, *tails, said.spread, 1000 * said.seconds.value, clock]
            numbers.append(derived.cpu_share(results, one))
        rows.append(
            [
                one.party or None,
                one.stage,
                one.variant,
                one.clips,
                *numbers,
                one.peak_device_bytes,
                one.resident_bytes,
                one.first_call,
                one.warm_up or None,
                None if one.difference is None else one.difference.top1_agreement,
                None if one.difference is None else one.difference.relative,
                None if one.joules is None else one.joules / one.clips,
                None if said is not None else why(one),
            ]
        )
    columns, rows = known(columns, rows)
    return Section(
        name="measurements",
        title="All measurements",
        lead="Everything that was timed, and what could not be.",
        blocks=[Table(columns=columns, rows=rows, note="A dash was not measured."), *_reasons(results)],
    )


def _reasons(results: Results) -> list[Block]:
    """Why figures of the table are missing."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in derived.speed_rows(results):
        for column, cell in zip(derived.SPEED_COLUMNS, row, strict=True):
            if cell.startswith(derived.NOT_MEASURED) and column in _EXPLAINED:
                reasons.setdefault((column, cell.removeprefix(derived.NOT_MEASURED)), []).append(row[0])
    items = []
    for (column, why), names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        items.append(f"{column}, of {cut(', '.join(names[:3]), 160)}{more}: {why}.")
    return [Prose(text="Why figures are missing:"), Prose(items=items)] if items else []


_EXPLAINED = ("clips/s (wall)", "p95 ms (wall)", "p99 ms (wall)", "of the CPU %", "RSS (GPU: peak)", "same top-1 %")
"""Columns of the terminal's table that the page has too."""


def under(one: Measurement) -> str:
    """The setting of a measurement, in words."""
    return f"{one.variant}, {one.clips} clip{'s' * (one.clips > 1)} a call"


def known(columns: list[Column], rows: list[list[Cell]]) -> tuple[list[Column], list[list[Cell]]]:
    """Without the columns that have nothing."""
    kept = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _known_ms(seconds: float) -> float | None:
    return 1000 * seconds if math.isfinite(seconds) else None


def why(one: Measurement) -> str:
    """Why there is no figure."""
    return one.error or "not measured"


def _span(found: Interval | None) -> Span | None:
    return None if found is None else Span(found.value, found.low, found.high)


def begun(party: str) -> str:
    """A party as the beginning of a sentence."""
    return "The student" if party == derived.STUDENT else party
