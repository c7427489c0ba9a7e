import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from videokd.clips.workers import Finished, Workers

ACTIONS: dict[str, Callable[[], object]] = {
    "sleep": lambda: time.sleep(1000),
    "hold the GIL": lambda: ctypes.PyDLL(None).sleep(1000),  # PyDLL keeps the lock: no Python thread runs meanwhile
    "exit": lambda: os._exit(3),
    "abort": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": lambda: 1 / 0,
    "unpicklable": lambda: lambda: None,
    "big": lambda: bytes(5_000_000),
    "nap": lambda: time.sleep(0.2),
}


def work(task: tuple[int, str]) -> object:
    number, action = task
    return ACTIONS[action]() if action in ACTIONS else number * number


def done(tasks: list[tuple[int, str]], **options: object) -> dict[int, Finished[tuple[int, str], object]]:
    """Everything that comes back, by the task's number; each once."""
    found: dict[int, Finished[tuple[int, str], object]] = {}
    with Workers(work, **{"workers": 2, "time_limit": 20.0, **options}) as workers:  # type: ignore[arg-type]
        for task in tasks:
            workers.submit(task)
        while workers.pending:
            for finished in workers.wait():
                assert finished.task[0] not in found
                found[finished.task[0]] = finished
    assert found.keys() == {number for number, _ in tasks}
    return found


def kinds(found: dict[int, Finished[tuple[int, str], object]]) -> dict[int, str]:
    return {number: one.failure.kind for number, one in found.items() if one.failure is not None}


@pytest.mark.parametrize("ahead", [0, 1, 20])
def test_every_task_comes_back_once(ahead: int) -> None:
    found = done([(number, "") for number in range(50)], ahead=ahead)
    assert [found[number].result for number in range(50)] == [number * number for number in range(50)]
    assert kinds(found) == {}


def test_workers_can_be_spawned() -> None:
    assert done([(3, "")], workers=1, start_method="spawn")[3].result == 9


@pytest.mark.parametrize("hang", ["sleep", "hold the GIL"])
def test_a_task_that_hangs_is_handed_back_and_the_others_are_done(hang: str) -> None:
    tasks = [(number, hang if number in (2, 5) else "") for number in range(12)]
    found = done(tasks, time_limit=0.5, ahead=4)
    assert kinds(found) == {2: "time limit", 5: "time limit"}
    assert "longer than 0.5 s" in found[2].failure.reason  # type: ignore[union-attr]
    assert all(found[number].result == number * number for number in range(12) if number not in (2, 5))


@pytest.mark.parametrize(("death", "said"), [("exit", "exit code 3"), ("abort", "SIGKILL")])
def test_a_task_that_kills_its_worker_is_tried_twice(death: str, said: str, tmp_path: Path) -> None:
    log = tmp_path / "tried"

    def noted(task: tuple[int, str]) -> object:
        with log.open("a") as file:
            file.write(f"{task[0]}\n")
        return work(task)

    with Workers(noted, workers=2, time_limit=20, ahead=5) as workers:
        for number in range(10):
            workers.submit((number, death if number == 4 else ""))
        found = {}
        while workers.pending:
            found |= {one.task[0]: one for one in workers.wait()}
    assert kinds(found) == {4: "crashed"}
    assert said in found[4].failure.reason
    tried = log.read_text().split()
    assert tried.count("4") == 2
    assert {number: tried.count(str(number)) for number in range(10) if number != 4} == dict.fromkeys(
        (number for number in range(10) if number != 4), 1
    )


def test_a_worker_killed_from_outside_loses_nothing() -> None:
    with Workers(work, workers=2, time_limit=20, ahead=3) as workers:
        for number in range(20):
            workers.submit((number, "nap" if number < 2 else ""))
        time.sleep(0.1)  # both are at their nap
        victim = workers._workers[0].process.pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        found: list[int] = []
        while workers.pending:
            for one in workers.wait():
                assert one.failure is None
                found.append(one.task[0])
    assert sorted(found) == list(range(20))


def test_an_idle_worker_that_dies_is_replaced() -> None:
    with Workers(work, workers=1, time_limit=20) as workers:
        for round_ in range(3):
            os.kill(workers._workers[0].process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            time.sleep(0.05)
            workers.submit((round_, ""))
            assert [one.result for one in workers.wait()] == [round_ * round_]


def test_what_a_task_raises_comes_back_as_text() -> None:
    found = done([(0, "raise"), (1, "unpicklable"), (2, "big"), (3, "")])
    assert kinds(found) == {0: "raised", 1: "raised"}
    assert "ZeroDivisionError" in found[0].failure.reason  # type: ignore[union-attr]
    assert found[2].result == bytes(5_000_000)


def test_a_busy_main_process_does_not_make_finished_tasks_overdue() -> None:
    with Workers(work, workers=1, time_limit=0.4, ahead=3) as workers:
        for number in range(4):
            workers.submit((number, "nap" if number == 1 else ""))
        time.sleep(1.0)  # a long step of training
        found = []
        while workers.pending:
            found += workers.wait()
    assert [one.failure for one in found] == [None] * 4


def test_workers_go_on_while_the_main_process_is_busy() -> None:
    with Workers(work, workers=1, time_limit=20, ahead=7) as workers:
        for number in range(8):
            workers.submit((number, "nap" if number == 0 else ""))
        time.sleep(1.0)
        assert len(workers.wait()) == 8


def test_workers_that_never_live_are_reported(tmp_path: Path) -> None:
    with Workers(work, workers=1, time_limit=20) as workers:
        workers.submit((0, "nap"))
        workers.wait()

        def dying(*_: object) -> None:
            os._exit(1)

        patch = pytest.MonkeyPatch()
        patch.setattr("videokd.clips.workers._live", dying)
        try:
            os.kill(workers._workers[0].process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            workers.submit((1, ""))
            with pytest.raises(RuntimeError, match=r"end as soon as they are started \(exit code 1\)"):
                workers.wait()
        finally:
            patch.undo()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"time_limit": 0.0}, {"ahead": -1}])
def test_an_impossible_pool_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no pool of"):
        Workers(work, **{"workers": 1, "time_limit": 1.0, **wrong})  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_closing_leaves_no_process_behind() -> None:
    workers = Workers(work, workers=2, time_limit=20)
    pids = [worker.process.pid for worker in workers._workers]
    workers.submit((0, "hold the GIL"))
    workers.close()
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends orphans on Linux alone")
def test_workers_go_when_the_main_process_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import ctypes, time
        from videokd.clips.workers import Workers
        with Workers(lambda task: ctypes.PyDLL(None).sleep(task), workers=3, time_limit=1000) as workers:
            workers.submit(1000)
            workers.submit(0)
            workers.wait()
            print(*[worker.process.pid for worker in workers._workers], flush=True)
            time.sleep(1000)
    """)
    main = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    pids = [int(pid) for pid in main.stdout.readline().split()]
    assert len(pids) == 3
    assert not any(gone(pid) for pid in pids)
    main.kill()
    main.wait()
    main.stdout.close()
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their main process"
        time.sleep(0.05)
