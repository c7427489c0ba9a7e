"""Whether the code has become slower between two benchmarks.

What is compared is the time of a call over that of the yardstick in the same round (`statistics.relative`), since the
machine's pace differs from run to run. A measurement is "slower" if two things hold. Its interval lies above 1: more
than the rounds' noise. And the ratio itself lies above 1 + max_regress: more than what differs between two runs of the
same code and does not show in their rounds, such as where memory was given. "same" needs the whole interval below
1 + max_regress; where neither is shown, more rounds or a quieter machine are needed, and the verdict is "can't tell".

Of 40 measurements, two of 95 % intervals miss the truth by chance. So the intervals of n measurements are of the level
0.95^(1/n) each [Šidák 1967]: all of them hold together in 95 % of comparisons, if they are independent, and in more if
they are not. 20 measurements make the intervals half as wide again; twenty rounds pay for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from videokd.bench.derived import ENOUGH_CPU, cpu_share
from videokd.bench.results import Measurement, Results
from videokd.bench.statistics import (
    CLOCK_NAMES,
    Clock,
    Interval,
    fewest_rounds,
    relative,
    seconds_a_call,
    unpaired_ratio,
)

Verdict = Literal["slower", "faster", "same", "can't tell", "broken", "mended", "no figure", "only old", "only new"]
"""slower, faster: by more than `max_regress`. same: at most `max_regress` slower. broken: it had figures before, now it
has none; mended: the reverse; no figure: neither has any."""


_MATTERING = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF", "THP_MEM_ALLOC_ENABLE")
"""Variables of the environment, to the times of networks on a CPU: how memory is given out, or by whom."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement of either result or of both."""

    name: str
    verdict: Verdict
    old_seconds: float | None = None
    """A call: the median over rounds, by `clock`, as it was measured."""
    new_seconds: float | None = None
    clock: Clock | None = None
    """By which the seconds are, and the ratio; None where there are none."""
    old_wall: float | None = None
    """A call: the median over rounds, by the wall clock."""
    new_wall: float | None = None
    ratio: Interval | None = None
    """new / old of the seconds a call, the machine's pace taken off by the yardstick; its interval is of the
    comparison's level."""
    note: str = ""
    """Why there is no figure, or why it is to be doubted."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two results beside each other."""

    rows: Sequence[Row]
    """In the old result's order; what only the new one has comes last."""
    max_regress: float
    level: float
    """Of each interval, so that all of them hold together with 95 %."""
    differs: Sequence[str] = ()
    """Sentences on what else is not the same in both: a ratio may come from that."""

    @property
    def regressed(self) -> bool:
        """Whether anything is slower, or has lost its figures."""
        return any(row.verdict in ("slower", "broken") for row in self.rows)


def compare(old: Results, new: Results, *, max_regress: float = 0.05, across_machines: bool = False) -> Comparison:
    """Puts each measurement of the new result beside that of the same name in the old one.

    Args:
        old: the one that is held to be right.
        new: the one that is judged.
        max_regress: how much slower is let pass; 0.05 is 5 %.
        across_machines: compare results of different processors, GPUs, devices or numbers of threads too. The yardstick
            then stands for the whole difference between them, which it does roughly.

    Raises:
        ValueError: if the two were measured by different clocks, or on different machines and that is not asked for.
    """
    if max_regress < 0:
        raise ValueError(f"max_regress must be at least 0 (0.05 is 5 %), got {max_regress}")
    clock: Clock = _same_clock(old, new)
    machines = _differences(_machine(old), _machine(new))
    if machines and not across_machines:
        raise ValueError(f"the results are not of the same machine and setting: {'; '.join(machines)}")
    before, after = _by_name(old), _by_name(new)
    level = 0.95 ** (1 / max(1, sum(_has_figures(before, after, name) for name in before)))
    rows = []
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            row = _lone(name, was, now, clock)
            partial = new.partial if now is None else old.partial
            row = replace(row, note="; ".join(one for one in (row.note, partial and _PARTIAL) if one))
        elif was.rounds and now.rounds:
            row = _compared(was, now, clock, max_regress=max_regress, level=level)
        else:
            row = _failed(was, now, clock)
        few = _starved({"before": (old, was), "now": (new, now)})
        rows.append(_timed(replace(row, note="; ".join(one for one in (row.note, few) if one)), was, now, clock))
    return Comparison(
        rows=rows,
        max_regress=max_regress,
        level=level,
        differs=[
            *(f"the {which} result is partial: {one.partial}." for which, one in _both(old, new) if one.partial),
            *(f"{one}." for one in (*machines, *_differences(_work(old), _work(new)))),
        ],
    )


COLUMNS = (
    *("measurement", "clock", "old ms", "new ms", "new / old", "interval"),
    *("old ms (wall)", "new ms (wall)", "verdict", "note"),
)


def comparison_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row for each measurement, under `COLUMNS`: milliseconds a call by the clock that is compared, and by the wall
    clock, by which rates are. The ratio is not that of the two times beside it, where the machine's pace has changed,
    which the yardstick takes off. A dash has no figure, and the note says why."""
    rows: list[tuple[str, ...]] = []
    for row in comparison.rows:
        ratio = ("-", "-") if row.ratio is None else (f"{row.ratio.value:.3f}", _range(row.ratio))
        clock = "-" if row.clock is None else CLOCK_NAMES[row.clock]
        compared, wall = (_ms(row.old_seconds), _ms(row.new_seconds)), (_ms(row.old_wall), _ms(row.new_wall))
        rows.append((row.name, clock, *compared, *ratio, *wall, row.verdict, row.note))
    return rows


_PARTIAL = "the other result is partial"


def _both(old: Results, new: Results) -> list[tuple[str, Results]]:
    return [("old", old), ("new", new)]


def _timed(row: Row, was: Measurement | None, now: Measurement | None, clock: Clock) -> Row:
    """The row with the clock of its seconds, and with those by the wall clock."""
    of = next((one for one in (now, was) if one is not None and one.rounds), None)
    return replace(
        row,
        clock=None if of is None else _clock_of(of, clock),
        old_wall=_seconds(was, "wall"),
        new_wall=_seconds(now, "wall"),
    )


def _starved(each: Mapping[str, tuple[Results, Measurement | None]]) -> str:
    """Which of the two had too little of the CPU; "" if neither."""
    few = {
        when: share
        for when, (results, one) in each.items()
        if one is not None and (share := cpu_share(results, one)) is not None and share < ENOUGH_CPU
    }
    return ", ".join(f"had {100 * share:.0f} % of the CPU {when}" for when, share in few.items())


def _same_clock(old: Results, new: Results) -> Clock:
    """A yardstick by one clock says nothing of seconds by another."""
    was, now = old.setting["clock"], new.setting["clock"]
    if was != now:
        raise ValueError(f"the results are not by the same clock: {was!r} before and {now!r} now")
    clock: Clock = was
    return clock


def _machine(results: Results) -> dict[str, Any]:
    environment = results.setting["environment"]
    return {
        "device": results.setting["device"],
        "threads": results.setting["threads"],
        "processor": environment["cpu"]["model"],
        "GPU": ", ".join((environment["gpu"] or {"names": ["none"]})["names"]),
    }


def _work(results: Results) -> dict[str, Any]:
    """What was measured, besides names; what is not known is left out."""
    asked = {"subject": results.subject} | {
        name: results.setting[name] for name in ("list", "format", "workers", "tf32") if name in results.setting
    }
    environment = results.setting["environment"]
    packages, variables = environment.get("packages", {}), environment.get("variables", {})
    return (
        asked
        | {f"{name}'s version": packages[name] for name in ("torch", "av") if name in packages}
        | {f"${name}": variables.get(name, "") for name in _MATTERING}
        | {f"the {one.party}'s network": f"{one.architecture}, {one.input}" for one in results.networks}
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {old[name]!r} before and {new[name]!r} now" for name in old if name in new and old[name] != new[name]
    ]


def _by_name(results: Results) -> dict[str, Measurement]:
    found = {one.name: one for one in results.measurements}
    if len(found) < len(results.measurements):
        names = [one.name for one in results.measurements]
        raise ValueError(f"measurements of one name: {sorted({name for name in names if names.count(name) > 1})}")
    return found


def _has_figures(before: Mapping[str, Measurement], after: Mapping[str, Measurement], name: str) -> bool:
    return bool(before[name].rounds and name in after and after[name].rounds)


def _compared(was: Measurement, now: Measurement, clock: Clock, *, max_regress: float, level: float) -> Row:
    if any(one.yardstick is None for one in (*was.rounds, *now.rounds)):
        # Its pace can't be told from that of the machine.
        return Row(
            name=now.name,
            verdict="can't tell",
            old_seconds=_seconds(was, "wall"),
            new_seconds=_seconds(now, "wall"),
            note="other processes worked too, so there is no yardstick",
        )
    ratio = unpaired_ratio(relative(now.rounds, clock), relative(was.rounds, clock), level=level)
    rounds = min(len(was.rounds), len(now.rounds))
    needed = fewest_rounds(level)
    notes = [f"{rounds} rounds, at least {needed} are needed"] if rounds < needed else []
    notes += ["was still becoming faster when it was timed"] if not (was.is_stable and now.is_stable) else []
    return Row(
        name=now.name,
        verdict="can't tell" if rounds < needed else _verdict(ratio, max_regress),
        old_seconds=_seconds(was, clock),
        new_seconds=_seconds(now, clock),
        ratio=ratio,
        note="; ".join(notes),
    )


def _verdict(ratio: Interval, max_regress: float) -> Verdict:
    limit = 1 + max_regress
    if ratio.low > 1 and ratio.value > limit:
        return "slower"
    if ratio.high < 1 and ratio.value < 1 / limit:
        return "faster"
    return "same" if ratio.high <= limit else "can't tell"


def _lone(name: str, was: Measurement | None, now: Measurement | None, clock: Clock) -> Row:
    return Row(
        name=name,
        verdict="only old" if now is None else "only new",
        old_seconds=_seconds(was, clock),
        new_seconds=_seconds(now, clock),
        note=next((one.error or "" for one in (was, now) if one is not None), ""),
    )


def _failed(was: Measurement, now: Measurement, clock: Clock) -> Row:
    verdict: Verdict = "broken" if was.rounds else "mended" if now.rounds else "no figure"
    return Row(
        name=now.name,
        verdict=verdict,
        old_seconds=_seconds(was, clock),
        new_seconds=_seconds(now, clock),
        note=f"before: {was.error}" if verdict == "mended" else now.error or "nothing was timed",
    )


def _seconds(measurement: Measurement | None, clock: Clock) -> float | None:
    if measurement is None or not measurement.rounds:
        return None
    return float(np.median(seconds_a_call(measurement.rounds, _clock_of(measurement, clock))))


def _clock_of(measurement: Measurement, clock: Clock) -> Clock:
    """The wall clock, where other processes worked too."""
    return "wall" if any(one.yardstick is None for one in measurement.rounds) else clock


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.4g}"


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"
