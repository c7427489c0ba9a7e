"""Times things against each other: warmed up until they are stable, in rounds in which they take turns."""

import gc
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from videokd.bench.devices import current
from videokd.bench.results import Difference, Measurement, Round, Stage
from videokd.bench.statistics import is_stable
from videokd.interruption import raise_if_stopped

MOST_LATENCIES = 1000
"""Of a measurement; a longer series is thinned out."""
_FAILURES = (ValueError, RuntimeError, NotImplementedError, ImportError)
"""What is recorded with a contender, and the others go on."""
NO_TURN = "the benchmark was stopped before it had a turn"
_AWAITED = 50
"""Calls of a contender on a GPU that are awaited one by one, for their latencies."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What takes turns."""

    party: str
    stage: Stage
    variant: str
    clips: int
    """Of a call."""
    make: Callable[[], Callable[[], object]]
    """Makes what is called; compiling, allocating, starting. On a GPU a call need not wait for its work."""
    difference: Callable[[Callable[[], object]], Difference | None] = lambda call: None
    """What its answers are beside those of the eager network, found once it is warm."""
    shared_bytes: int = 0
    """Memory of the device that it uses and that was there before it was made: weights that it shares with others."""


class Stopped(KeyboardInterrupt):
    """A signal came while contenders were timed.

    Args:
        measurements: of all contenders; those that had no turn yet have an error.
        rounds: how many were done of all contenders.
    """

    def __init__(self, measurements: Sequence[Measurement], rounds: int) -> None:
        super().__init__(f"stopped after {rounds} rounds")
        self.measurements, self.rounds = measurements, rounds


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to measure."""

    rounds: int = 20
    """In each, everything has its turn once; comparisons of many measurements need a dozen."""
    turn_seconds: float = 0.15
    """A turn is as many calls as take this long, at least one."""
    warm_up_seconds: float = 5.0
    """At most, of a contender, after its first call."""

    def __post_init__(self) -> None:
        if self.rounds < 2 or self.turn_seconds <= 0 or self.warm_up_seconds < 0:
            raise ValueError(
                f"rounds are at least 2, turn-seconds above 0 and warm-up-seconds at least 0, got {self.rounds}, "
                f"{self.turn_seconds} and {self.warm_up_seconds}"
            )


class Yardstick:
    """A fixed piece of work, the same for ever: blocks of convolutions, as mobile networks have them. What a contender
    takes is compared with what this takes at the same time, so that comparisons of two runs are of the code, and not of
    what else the machine had to do. Whoever changes it changes the schema.

    One half of its time goes to maps that stay in the caches, the other to maps of 1.6 MB: neighbours slow the two by
    different shares, and networks lie between them. Of eight kinds of work these two followed networks' own pace most
    closely; a pass over memory, a loop of Python and matrix products hardly did (DECISIONS).
    """

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last)

        self._wide, self._deep, self._narrow = drawn(64, 16, 1, 1), drawn(64, 1, 3, 3), drawn(16, 64, 1, 1)
        self.frames = drawn(2, 16, 14, 14), drawn(8, 16, 28, 28)

    @torch.no_grad()
    def __call__(self) -> None:
        """Does it once: some fifteen milliseconds of a core."""
        for frames, times in zip(self.frames, (70, 6), strict=True):
            for _ in range(times):
                wide = F.relu(F.conv2d(frames, self._wide), inplace=True)
                deep = F.relu(F.conv2d(wide, self._deep, padding=1, groups=64), inplace=True)
                F.conv2d(deep, self._narrow)


@dataclass
class _Warm:
    """A contender that is ready for its turns."""

    contender: Contender
    call: Callable[[], object]
    calls: int
    """A turn."""
    measured: Measurement
    rounds: list[Round] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    error: str | None = None


def measure(
    contenders: Sequence[Contender],
    *,
    device: torch.device,
    patience: Patience = Patience(),
    yardstick: Callable[[], object] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Times contenders against each other; one that fails (out of memory, what it can't do) has its error instead.

    Args:
        contenders: what takes turns. All of them are in memory at the same time.
        device: whose work is timed.
        patience: how long.
        yardstick: work done before every turn; None makes a `Yardstick`.
        advance: called after each contender's warm-up, and after each round.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, with what was measured until then.
    """
    found: dict[int, Measurement] = {}
    warm: dict[int, _Warm] = {}
    with current(device):
        try:
            _take_turns(contenders, found, warm, _Watch(device), patience, yardstick or Yardstick(device), advance)
        except KeyboardInterrupt as stop:
            timed = [one for one in warm.values() if one.error is None]
            rounds = min((len(one.rounds) for one in timed), default=0)
            for one in timed:
                del one.rounds[rounds:]  # of a round that not all had: rounds are compared with each other
            raise Stopped(_all_measured(contenders, found, warm), rounds) from stop
    return _all_measured(contenders, found, warm)


def _take_turns(
    contenders: Sequence[Contender],
    found: dict[int, Measurement],
    warm: dict[int, _Warm],
    watch: "_Watch",
    patience: Patience,
    ruler: Callable[[], object],
    advance: Callable[[], None],
) -> None:
    """Times the contenders; fills `found` with those that failed and `warm` with all others, by place."""
    for _ in range(5):
        ruler()
    for place, contender in enumerate(contenders):
        raise_if_stopped()
        ready = _warmed_up(contender, watch, patience)
        if isinstance(ready, Measurement):
            found[place] = ready
            gc.collect()  # what it had taken before it failed
            if watch.on_gpu:
                torch.cuda.empty_cache()
        else:
            warm[place] = ready
        advance()
    ready_ones = list(warm.values())
    # Once more, for what the others' warm-up undid: an export to ONNX forgets what was compiled.
    for one in ready_ones:
        _tried(one, partial(watch.timed, one.call, 3))
    order = random.Random(1)
    for _ in range(patience.rounds):
        for one in order.sample(ready_ones, k=len(ready_ones)):
            raise_if_stopped()
            _tried(one, partial(_turn, one, watch, ruler))
        advance()
    for one in ready_ones:
        if watch.on_gpu and one.error is None:
            one.latencies = [watch.timed(one.call, 1).wall for _ in range(_AWAITED)]


def _all_measured(
    contenders: Sequence[Contender], found: Mapping[int, Measurement], warm: Mapping[int, "_Warm"]
) -> list[Measurement]:
    """In the order of the contenders; those that had no turn say so."""
    each = []
    for place, one in enumerate(contenders):
        if place in found:
            each.append(found[place])
        elif place in warm:
            each.append(_finished(warm[place]))
        else:
            each.append(replace(_empty(one), error=NO_TURN))
    return each


@dataclass(frozen=True)
class _Lap:
    wall: float
    cpu: float
    device: float | None
    each: list[float]
    waited: float | None


class _Watch:
    """The clocks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, call: Callable[[], object], calls: int) -> _Lap:
        self.wait()
        events: tuple[Any, ...] = ()
        if self.on_gpu:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        each: list[float] = []
        waited = cpu_waited()
        cpu, start = time.process_time(), time.perf_counter()
        before = start
        if events:
            events[0].record()
        for _ in range(calls):
            call()
            now = time.perf_counter()
            each.append(now - before)
            before = now
        if events:
            events[1].record()
        self.wait()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        after = cpu_waited()
        # Threads that ended meanwhile took their count with them.
        waited = None if waited is None or after is None else max(after - waited, 0.0)
        return _Lap(wall, cpu, events[0].elapsed_time(events[1]) / 1e3 if events else None, each, waited)

    def counts(self, lap: _Lap) -> float:
        """Seconds on the clock that counts."""
        return lap.cpu if lap.device is None else lap.device


def _warmed_up(contender: Contender, watch: _Watch, patience: Patience) -> _Warm | Measurement:
    empty = _empty(contender)
    others = 0
    if watch.on_gpu:
        # All contenders are in memory at the same time: what the others hold is not this one's.
        others = torch.cuda.memory_allocated(watch.device)
        torch.cuda.reset_peak_memory_stats(watch.device)
    try:
        started = time.perf_counter()
        call = contender.make()
        call()
        watch.wait()
        first = time.perf_counter() - started
        seconds: list[float] = []
        until = time.perf_counter() + patience.warm_up_seconds
        while not is_stable(seconds) and time.perf_counter() < until:
            seconds.append(watch.timed(call, 1).wall)
        peak = torch.cuda.max_memory_allocated(watch.device) - others if watch.on_gpu else None
        difference = contender.difference(call)  # after the peak: the clips that it is found on are not the contender's
    except _FAILURES as error:
        return replace(empty, error=_said(error))
    a_call = min(seconds, default=first)
    measured = replace(
        empty,
        first_call=first,
        warm_up=1 + len(seconds),
        is_stable=is_stable(seconds),
        peak_device_bytes=None if peak is None else peak + contender.shared_bytes,
        resident_bytes=resident_bytes(),
        difference=difference,
    )
    return _Warm(contender, call, max(1, math.ceil(patience.turn_seconds / max(a_call, 1e-7))), measured)


def _empty(contender: Contender) -> Measurement:
    """Without figures."""
    return Measurement(party=contender.party, stage=contender.stage, variant=contender.variant, clips=contender.clips)


def _tried(one: _Warm, work: Callable[[], object]) -> None:
    """Does the work, if nothing failed before; a video that only now came by can't be read, memory is out after all."""
    try:
        if one.error is None:
            work()
    except _FAILURES as error:
        one.error = _said(error)


def _turn(one: _Warm, watch: _Watch, ruler: Callable[[], object]) -> None:
    # Before and after: what the machine did in between lies between them.
    before = watch.counts(watch.timed(ruler, 1))
    energy = _joules(watch.device)
    lap = watch.timed(one.call, one.calls)
    if energy is not None and (used := _joules(watch.device)) is not None:
        one.joules.append((used - energy) / one.calls)
    after = watch.counts(watch.timed(ruler, 1))
    one.rounds.append(
        Round(
            calls=one.calls,
            wall=lap.wall,
            cpu=lap.cpu,
            device=lap.device,
            yardstick=(before + after) / 2,
            waited=lap.waited,
        )
    )
    if not watch.on_gpu:
        one.latencies += lap.each


def _finished(one: _Warm) -> Measurement:
    if one.error is not None or not one.rounds:
        return replace(one.measured, error=one.error or NO_TURN)
    step = max(1, math.ceil(len(one.latencies) / MOST_LATENCIES))
    return replace(
        one.measured,
        rounds=one.rounds,
        latencies=one.latencies[::step],
        joules=sum(one.joules) / len(one.joules) if one.joules else None,
    )


def _said(error: Exception) -> str:
    """The error in a line; memory that ran out is told from all else."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return "out of memory"
    return next(iter(text.strip().splitlines()), type(error).__name__)


def cpu_waited() -> float | None:
    """Seconds that threads of this process were ready to run and had no CPU, since they began, all together; None where
    the system does not count them."""
    ran, waited = 0, 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):  # a thread that has just ended
            of_thread, of_queue, _ = map(int, path.read_text(encoding="ascii").split())
            ran, waited = ran + of_thread, waited + of_queue
    return waited / 1e9 if ran else None  # kernels without the statistics say 0


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None where the system does not say."""
    listed = Path("/proc/self/statm")
    if sys.platform != "linux" or not listed.is_file():
        return None
    import resource

    return int(listed.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _joules(device: torch.device) -> float | None:
    """What the GPU has used since its driver began; None where nothing says."""
    if device.type != "cuda":
        return None
    with suppress(Exception):  # no pynvml, a GPU that does not count, a part of one
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    return None
