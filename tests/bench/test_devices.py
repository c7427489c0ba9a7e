"""Which GPU is asked, on a stand-in for two of them: no GPU is needed."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from videokd.bench import benchmark as benchmarks
from videokd.bench import ceilings as ceiling_module
from videokd.bench.benchmark import Plan, Stopped, benchmark
from videokd.bench.ceilings import ceilings
from videokd.bench.contenders import NO_TURN, Contender, Patience, cpu_waited, measure
from videokd.bench.contenders import Stopped as OutOfTurn
from videokd.bench.devices import current, fp32_arithmetic
from videokd.bench.results import Ceiling, Results, read_results, write_results
from videokd.bench.subjects import subject
from videokd.cli import main
from videokd.interruption import Handled, StopSignal
from videokd.machine import Machine

SECOND = torch.device("cuda:1")
QUICK = Patience(rounds=3, turn_seconds=0.001, warm_up_seconds=0.0)


class TwoGpus:
    """What `torch.cuda` would do: which device is current, and how many bytes are taken on each."""

    def __init__(self) -> None:
        self.current = 0
        self.events: list[int] = []
        self.bytes, self.peak = {0: 0, 1: 0}, {0: 0, 1: 0}
        self.reset: list[int] = []

    def take(self, number: int, size: int) -> None:
        self.bytes[number] += size
        self.peak[number] = max(self.peak[number], self.bytes[number])

    def number(self, device: torch.device | None = None) -> int:
        return self.current if device is None or device.index is None else device.index

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, self.number(device)
        yield
        self.current = before

    def reset_peak(self, device: torch.device | None = None) -> None:
        number = self.number(device)
        self.reset.append(number)
        self.peak[number] = self.bytes[number]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> TwoGpus:
    fake = TwoGpus()

    class Event:
        def __init__(self, **_: Any) -> None: ...

        def record(self) -> None:
            fake.events.append(fake.current)

        def elapsed_time(self, other: "Event") -> float:
            return 1.0

    monkeypatch.setattr(torch.cuda, "device", fake.device)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", fake.reset_peak)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: fake.bytes[fake.number(device)])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: fake.peak[fake.number(device)])
    return fake


def contender(name: str, make: Callable[[], Callable[[], object]], **more: Any) -> Contender:
    return Contender(party="student", stage="inference", variant=name, clips=1, make=make, **more)


def test_events_are_recorded_on_the_gpu_that_is_timed(gpus: TwoGpus) -> None:
    measure([contender("eager", lambda: lambda: None)], device=SECOND, patience=QUICK, yardstick=lambda: None)
    assert set(gpus.events) == {1}
    assert gpus.current == 0  # as before


def test_the_peak_of_a_contender_is_without_the_others(gpus: TwoGpus) -> None:
    gpus.take(1, 1000)  # the network that all of them share

    def makes(kept: int, most: int) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            gpus.take(1, kept)

            def call() -> None:
                gpus.take(1, most)
                gpus.take(1, -most)

            return call

        return make

    def compared(call: Callable[[], object]) -> None:
        gpus.take(1, 5000)  # clips that its answers are compared on

    found = measure(
        [
            contender("eager", makes(kept=0, most=30), shared_bytes=1000, difference=compared),
            contender("compile", makes(kept=1000, most=20)),
            contender("bf16", makes(kept=10, most=50), shared_bytes=1000),
        ],
        device=SECOND,
        patience=QUICK,
        yardstick=lambda: None,
    )
    assert [one.peak_device_bytes for one in found] == [1030, 1020, 1060]
    assert set(gpus.reset) == {1}


def test_ceilings_are_those_of_the_gpu_that_is_timed(gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def taken(*_: object) -> Ceiling:
        seen.append(gpus.current)
        return Ceiling(what="memory copy", per_second=1.0, unit="byte")

    for name in ("_products", "_copies", "_copies_there"):
        monkeypatch.setattr(ceiling_module, name, taken)
    ceilings(SECOND, precisions=["fp32"], files=[])
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("tf32", [False, True])
def test_matrix_products_and_convolutions_have_one_arithmetic(gpus: TwoGpus, tf32: bool) -> None:
    def said() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = said()
    with current(SECOND), fp32_arithmetic(SECOND, tf32=tf32):
        assert (said(), gpus.current) == ((tf32, tf32), 1)
    assert said() == before
    with fp32_arithmetic(torch.device("cpu"), tf32=tf32):
        assert said() == before


def test_a_benchmark_makes_its_device_current_once_and_says_its_arithmetic(
    gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    monkeypatch.setattr(Machine, "find", lambda self: SECOND)

    class Job:
        def __init__(self, plan: Plan, device: torch.device, say: object) -> None:
            seen.append((gpus.current, torch.backends.cudnn.allow_tf32))

        def parts(self) -> list[tuple[str, Callable[[], None]]]:
            return [("a", lambda: seen.append((gpus.current, torch.backends.cuda.matmul.allow_tf32)))]

        def results(self, partial: str = "") -> Results:
            return Results(subject="s", setting={})

    monkeypatch.setattr(benchmarks, "_Job", Job)
    benchmark(Plan(subject=subject(["CompactShift (quickstart)"]), tf32=True))
    assert seen == [(1, True), (1, True)]


@pytest.mark.gpu
def test_memory_and_events_of_a_real_gpu() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    held: list[torch.Tensor] = []

    def make(size: int) -> Callable[[], object]:
        held.append(torch.ones(size, dtype=torch.uint8, device=device))
        return lambda: held[-1].add_(1)

    many, few = measure(
        [contender("many", lambda: make(1 << 28)), contender("few", lambda: make(1 << 20))],
        device=device,
        patience=QUICK,
    )
    assert many.peak_device_bytes is not None
    assert few.peak_device_bytes is not None
    assert few.peak_device_bytes < 1 << 26 < many.peak_device_bytes
    assert all(one.device and one.device > 0 for one in few.rounds)


def test_waiting_for_a_cpu_is_counted_over_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for thread, line in (("1", "2000000000 500000000 9"), ("2", "1000000000 250000000 7"), ("3", "")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(line)
    from videokd.bench import contenders

    monkeypatch.setattr(contenders, "Path", lambda path: tmp_path)
    assert cpu_waited() == pytest.approx(0.75)
    for thread in ("1", "2"):
        (tmp_path / thread / "schedstat").write_text("0 0 1")  # a kernel that does not count
    assert cpu_waited() is None


def stopping(after: int, number: int = signal.SIGINT) -> Callable[[], Callable[[], object]]:
    """A contender in whose call of that number a signal comes."""
    calls = [0]

    def call() -> None:
        calls[0] += 1
        if calls[0] == after:
            os.kill(os.getpid(), number)

    return lambda: call


def test_what_was_measured_before_a_signal_is_kept() -> None:
    slow = Patience(rounds=50, turn_seconds=1e-9, warm_up_seconds=0.0)
    fine = contender("fine", lambda: lambda: sum(range(10_000)))
    # A call, three against what others undid, and 20 turns.
    with Handled(), pytest.raises(OutOfTurn) as stop:
        measure(
            [fine, contender("stopping", stopping(24))],
            device=torch.device("cpu"),
            patience=slow,
            yardstick=lambda: None,
        )
    assert stop.value.rounds == 19
    assert [(len(one.rounds), one.error) for one in stop.value.measurements] == [(19, None), (19, None)]
    with Handled(), pytest.raises(OutOfTurn) as stop:
        measure(
            [fine, contender("stopping", stopping(1)), contender("later", lambda: lambda: None)],
            device=torch.device("cpu"),
            patience=slow,
            yardstick=lambda: None,
        )
    assert [(len(one.rounds), one.error) for one in stop.value.measurements] == [(0, NO_TURN)] * 3


TINY = ["--batch-size", "2", "--variants", "eager", "--rounds", "2", "--turn-seconds", "0.001"]
TINY += ["--warm-up-seconds", "0", "--device", "cpu"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_benchmark_keeps_its_results_and_marks_them_partial(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "CompactShift (quickstart)", *TINY]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(benchmarks, "ceilings", lambda *_, **__: os.kill(os.getpid(), number))
    out = tmp_path / "stopped"
    capsys.readouterr()
    assert main([*command, "--out", str(out)]) == 128 + number
    said = capsys.readouterr()
    assert f"what was measured is kept in {out / 'bench.json'}, marked partial" in said.err
    assert "Partial: the benchmark was stopped in ceilings of this machine." in said.out
    found = read_results(out / "bench.json")
    assert found.partial == "the benchmark was stopped in ceilings of this machine"
    assert [one.error for one in found.measurements] == [None, None]
    assert "This result is partial: the benchmark was stopped in" in (out / "page.html").read_text(encoding="utf-8")
    main(["bench", "compare", str(tmp_path / "whole"), str(out), "--max-regress", "900%"])
    assert "the new result is partial: the benchmark was stopped" in " ".join(capsys.readouterr().out.split())
    assert main(["bench", "page", str(out), "--out", str(tmp_path / "page.html")]) == 0


def test_a_benchmark_that_is_stopped_before_it_measured_anything_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(subject=subject(["CompactShift (quickstart)"]), parts=("inference",), patience=QUICK, batch_size=2)
    monkeypatch.setattr(benchmarks, "measure", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with Handled(), pytest.raises(StopSignal):
        benchmark(replace(plan, machine=Machine(device="cpu")))


def test_what_is_measured_is_handed_over_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Results] = []
    plan = Plan(
        subject=subject(["CompactShift (quickstart)"]),
        variants=("eager",),
        patience=replace(QUICK, rounds=2),
        batch_size=2,
        machine=Machine(device="cpu"),
    )
    unfinished = "the benchmark did not come to its end"
    with Handled():
        whole = benchmark(plan, keep=kept.append)
        assert [(len(one.measurements), one.partial) for one in kept] == [
            (1, f"{unfinished}; not measured: inference of 1 clip a call, ceilings of this machine"),
            (2, f"{unfinished}; not measured: ceilings of this machine"),
        ]
        assert (len(whole.measurements), whole.partial) == (2, "")
        monkeypatch.setattr(benchmarks._Job, "_ceilings", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped) as stop:
            benchmark(plan)
    assert (stop.value.number, len(stop.value.results.measurements)) == (signal.SIGTERM, 2)


def test_partial_results_are_read_back(tmp_path: Path) -> None:
    results = Results(subject="s", setting={}, partial="it was stopped")
    write_results(tmp_path / "bench.json", results)
    assert read_results(tmp_path / "bench.json").partial == "it was stopped"
