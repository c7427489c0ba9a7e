"""Worker processes that can be killed: a video that hangs or crashes its decoder costs its own clip, nothing else.

Every worker has two pipes of its own. A queue that workers share would be locked for ever by one that is killed while
it holds the lock.
"""

import atexit
import contextlib
import ctypes
import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.multiprocessing as multiprocessing

from videokd.interruption import deferred, raise_if_stopped

Task = TypeVar("Task")
Result = TypeVar("Result")

FailureKind = Literal["time limit", "crashed", "raised"]
_NAME = "videokd worker"
_MAX_IDLE_DEATHS = 8
"""So many workers may die one after the other without a task in hand before it is the machine's fault."""


@dataclass(frozen=True)
class Failure:
    """Why a task has no result."""

    kind: FailureKind
    reason: str


@dataclass(frozen=True)
class Finished(Generic[Task, Result]):
    """A task that was handed back: with its result, or with the reason why it has none."""

    task: Task
    result: Result | None
    failure: Failure | None


class Workers(Generic[Task, Result]):
    """Processes that work on tasks, each task within a time limit.

    A task that takes longer is handed back, and its worker replaced. A task whose worker dies is tried once more in
    a new one: memory may have run out, which is not the task's fault. Tasks that wait behind it are not lost.

    Args:
        work: from task to result; called in the workers, and pickled where they are not forked.
        workers: how many.
        time_limit: seconds for a task, counted from when a worker begins it.
        ahead: tasks that lie ready at each worker, so that it goes on while the main process is busy.
        start_method: of `multiprocessing`; None is the platform's own, but fork on Linux.
    """

    def __init__(
        self,
        work: Callable[[Task], Result],
        *,
        workers: int,
        time_limit: float,
        ahead: int = 1,
        start_method: str | None = None,
    ) -> None:
        if workers < 1 or time_limit <= 0 or ahead < 0:
            raise ValueError(f"no pool of {workers} workers with {time_limit} s a task and {ahead} ahead")
        # A fork shares what the main process has loaded, and starts in milliseconds.
        method = start_method or ("fork" if sys.platform == "linux" else None)
        self._context: Any = multiprocessing.get_context(method)
        self._work = work
        self._time_limit = time_limit
        self._ahead = ahead
        self._queue: deque[_Ticket[Task]] = deque()
        self._idle_deaths = 0
        self._numbers = 0
        self._workers: list[_Worker[Task]] = []
        try:
            with deferred():
                for _ in range(workers):
                    self._workers.append(_Worker(self._context, self._work, others=self._workers))
        except KeyboardInterrupt:
            self.close()
            raise

    def __enter__(self) -> "Workers[Task, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Tasks submitted and not handed back yet."""
        return len(self._queue) + sum(len(worker.tickets) for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Puts a task at the end of the queue."""
        self._queue.append(_Ticket(self._numbers, task))
        self._numbers += 1
        self._hand_out()

    def wait(self) -> list[Finished[Task, Result]]:
        """Blocks until at least one task can be handed back.

        Raises:
            RuntimeError: if workers keep dying without a task in hand.
        """
        assert self.pending, "nothing was submitted that could come back"
        finished: list[Finished[Task, Result]] = []
        while not finished:
            raise_if_stopped()
            self._hand_out()
            ends = [end for worker in self._workers for end in (worker.results, worker.process.sentinel)]
            wait(ends, timeout=self._seconds_to_deadline())
            for worker in list(self._workers):
                # What has arrived comes first: only then is it known which task is overdue, or died with its worker.
                finished += self._received(worker)
                finished += self._mourned(worker) if worker.is_gone else self._overdue(worker)
        self._hand_out()
        return finished

    @deferred()
    def close(self) -> None:
        """Kills the workers; never waits for one that can't be killed."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.bury()
        self._workers = []
        self._queue.clear()

    def _hand_out(self) -> None:
        """Gives waiting tasks to the workers that have least to do."""
        while self._queue:
            worker = min(self._workers, key=lambda one: len(one.tickets))
            if len(worker.tickets) > self._ahead:
                return
            ticket = self._queue.popleft()
            try:
                worker.tasks.send((ticket.number, ticket.task))
            except (BrokenPipeError, ConnectionError):  # it died: `wait` will see to it
                self._queue.appendleft(ticket)
                return
            worker.tickets.append(ticket)

    def _received(self, worker: "_Worker[Task]") -> list[Finished[Task, Result]]:
        """What a worker has sent."""
        finished: list[Finished[Task, Result]] = []
        worker.is_gone = not worker.process.is_alive()  # asked first: what it sent before it died is there
        try:
            while worker.results.poll():
                number, result, failure = worker.results.recv()
                ticket = worker.tickets.popleft()
                assert ticket.number == number, "a worker does its tasks in order"
                finished.append(Finished(ticket.task, result, failure))
                self._idle_deaths = 0
        except (EOFError, OSError, pickle.UnpicklingError):  # it died, perhaps within a message
            worker.is_gone = True
        return finished

    def _mourned(self, worker: "_Worker[Task]") -> list[Finished[Task, Result]]:
        """Replaces a dead worker; its task is tried again, or handed back."""
        worker.bury()
        how = _how_it_ended(worker.process.exitcode)
        begun = worker.begun()
        finished: list[Finished[Task, Result]] = []
        if begun is not None and worker.tickets and worker.tickets[0].number == begun.number:
            self._idle_deaths = 0
            ticket = worker.tickets.popleft()
            ticket.deaths += 1
            if ticket.deaths > 1:
                failure = Failure("crashed", f"it killed two workers, the last by {how}")
                finished.append(Finished(ticket.task, None, failure))
            else:
                worker.tickets.appendleft(ticket)
        else:
            self._idle_deaths += 1
            if self._idle_deaths > _MAX_IDLE_DEATHS:
                self.close()
                raise RuntimeError(f"worker processes end as soon as they are started ({how})")
        self._replace(worker)
        return finished

    def _overdue(self, worker: "_Worker[Task]") -> list[Finished[Task, Result]]:
        """Ends a worker whose task is beyond the time limit."""
        begun = worker.begun()
        if begun is None or time.monotonic() < begun.since + self._time_limit:
            return []
        if not worker.tickets or worker.tickets[0].number != begun.number:
            return []  # its result is on the way
        worker.kill()
        worker.bury()
        ticket = worker.tickets.popleft()
        self._replace(worker)
        return [Finished(ticket.task, None, Failure("time limit", f"it took longer than {self._time_limit:g} s"))]

    @deferred()
    def _replace(self, worker: "_Worker[Task]") -> None:
        self._queue.extendleft(reversed(worker.tickets))
        self._workers.remove(worker)
        self._workers.append(_Worker(self._context, self._work, others=self._workers))

    def _seconds_to_deadline(self) -> float | None:
        begun = [found for worker in self._workers if (found := worker.begun()) is not None]
        busy = any(worker.tickets for worker in self._workers)
        if not begun:
            return 1.0 if busy else None  # a worker that is just starting has not noted its task yet
        nearest = min(found.since for found in begun) + self._time_limit - time.monotonic()
        # A task behind this one may begin, and be due, before anything is received.
        return min(max(nearest, 0.0), self._time_limit)


@dataclass
class _Ticket(Generic[Task]):
    number: int
    task: Task
    deaths: int = 0


@dataclass(frozen=True)
class _Begun:
    number: int
    since: float  # time.monotonic(), which all processes of a machine share


class _Worker(Generic[Task]):
    """One process, as the main process sees it."""

    def __init__(self, context: Any, work: Callable[[Any], Any], *, others: "list[_Worker[Task]]") -> None:
        self.tickets: deque[_Ticket[Task]] = deque()  # given to it, in its order
        self.is_gone = False
        self._clock = RawArray(ctypes.c_double, 2)  # task number and when it began; -1 between tasks
        self._clock[0] = -1.0
        its_tasks, self.tasks = context.Pipe(duplex=False)
        self.results, its_results = context.Pipe(duplex=False)
        # A fork inherits the main process's ends of all pipes; while it holds one, nobody sees that the other is gone.
        inherited = [end for other in others for end in (other.tasks, other.results)] + [self.tasks, self.results]
        forked = context.get_start_method() == "fork"
        self.process = context.Process(
            target=_live,
            args=(work, its_tasks, its_results, self._clock, inherited if forked else [], os.getpid()),
            daemon=True,
            name=_NAME,
        )
        self.process.start()
        its_tasks.close()
        its_results.close()

    def begun(self) -> _Begun | None:
        """The task that the worker is at; None between tasks."""
        number, since = self._clock
        return None if number < 0 else _Begun(int(number), since)

    def kill(self) -> None:
        """Ends the process, whatever it is doing."""
        self.process.kill()

    def bury(self) -> None:
        """Closes its pipes and reaps it; one that the system can't end is left to the system."""
        self.tasks.close()
        self.results.close()
        self.process.join(timeout=1.0)


def _live(
    work: Callable[[Any], Any],
    tasks: Connection,
    results: Connection,
    clock: Any,
    inherited: list[Connection],
    parent: int,
) -> None:
    """A worker's life: one task after the other, until the main process is gone."""
    for end in inherited:
        end.close()
    _die_with(parent)
    torch.set_num_threads(1)
    # A terminal or a job's supervisor sends signals to all processes. The main process may want to end its step, and
    # needs its workers for that; it kills them when it is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionError):
        while True:
            number, task = tasks.recv()
            # The time first: a number with the time of the task before would be overdue too early.
            clock[1] = time.monotonic()
            clock[0] = number
            result, failure = None, None
            try:
                result = work(task)
                message = pickle.dumps((number, result, None), protocol=pickle.HIGHEST_PROTOCOL)
            except Exception:
                failure = Failure("raised", traceback.format_exc().strip())
                message = pickle.dumps((number, None, failure))
            results.send_bytes(message)
            clock[0] = -1.0


@atexit.register
def _kill_workers() -> None:
    """Kills workers whose pool was never closed: multiprocessing would send them SIGTERM, and wait for ever."""
    for child in multiprocessing.active_children():
        if child.name == _NAME:
            child.kill()


def _die_with(parent: int) -> None:
    """On Linux the system ends a worker when its main process ends, however that comes about."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    with contextlib.suppress(ValueError):
        return f"signal {-exitcode}, {signal.Signals(-exitcode).name}"
    return f"signal {-exitcode}"
