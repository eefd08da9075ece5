"""Work shared by processes: results and log records come in order; a process that dies costs one task."""

import logging
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any, Protocol, TypeVar

from ocdit_core.errors import OcditError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[T], R]
Opener = Callable[[], AbstractContextManager[Work[Any, Any]]]

TRIES = 3
"""Attempts at a task during which its process dies."""

_LOG = "ocdit_core"
_GRACE = 20.0  # seconds for a process to end its current task when the work is stopped


@dataclass(frozen=True)
class Died:
    """Result of a task whose process ended during it; `reason` says how."""

    reason: str


def run_tasks(
    opener: Callable[[], AbstractContextManager[Work[T, R]]], tasks: Sequence[T], jobs: int
) -> Generator[R | Died, None, None]:
    """Yield the result of each task, in order.

    Log records of this package are handled in the parent, before the result of their task. When the generator is
    closed or interrupted, processes end their current task and stop.

    Args:
        opener: called once in each process; what its context manager yields is called with each task. It, tasks and
            results must be picklable.
        tasks: given one by one to the next free process.
        jobs: number of processes; each is started with its first task.

    Raises:
        OcditError: one that the work raised; it ends all. What concerns one task only belongs in the result.
        RuntimeError: any other exception that the work raised, with its traceback.
    """
    waiting = deque(enumerate(tasks))
    processes: list[_Process] = []
    done: dict[int, _Answer | Died] = {}
    try:
        for number in range(len(tasks)):
            while number not in done:
                while waiting and len(processes) < jobs:
                    processes.append(_Process(opener))
                    processes[-1].give(*waiting.popleft())
                # A list: processes are removed inside the loop.
                for process in [p for p in processes if p.pipe in connection.wait([p.pipe for p in processes])]:
                    answer = process.answer()
                    done[process.number] = answer
                    if isinstance(answer, Died) or not waiting:
                        processes.remove(process)
                        process.stop()
                    else:
                        process.give(*waiting.popleft())
            answer = done.pop(number)
            yield answer if isinstance(answer, Died) else answer.result()
    finally:
        for process in processes:
            process.pipe.close()
        for process in processes:
            process.stop()


@dataclass(frozen=True)
class _Answer:
    """Result or exception of a task, and the records that were logged meanwhile."""

    value: Any
    records: list[logging.LogRecord]
    error: OcditError | None = None
    trace: str = ""

    def result(self) -> Any:
        for record in self.records:
            logging.getLogger(record.name).handle(record)
        if self.error is not None:
            raise self.error
        if self.trace:
            raise RuntimeError(f"a worker process failed:\n{self.trace}")
        return self.value


class _Process:
    def __init__(self, opener: Opener) -> None:
        # Not fork: threads and the graphics driver of this process do not survive it.
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        level = logging.getLogger(_LOG).getEffectiveLevel()
        self._process = context.Process(target=_serve, args=(theirs, opener, level), daemon=True)
        self._process.start()
        # Only the child holds that end now: when it dies, reading from ours fails.
        theirs.close()
        self.number = -1

    def give(self, number: int, task: Any) -> None:
        self.number = number
        # If the process is dead, reading its answer shows it.
        with suppress(OSError):
            self.pipe.send(task)

    def answer(self) -> _Answer | Died:
        try:
            answer: _Answer = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(_GRACE)
            code = self._process.exitcode
            if code is not None and code < 0:
                memory = "; out of memory?" if -code == signal.SIGKILL else ""
                return Died(f"its process was killed by signal {-code}{memory}")
            return Died(f"its process ended with status {code}")
        return answer

    def stop(self) -> None:
        self.pipe.close()
        self._process.join(_GRACE)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Arguments and exceptions need not be picklable: their text is.
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.records.append(record)

    def take(self) -> list[logging.LogRecord]:
        taken, self.records = self.records, []
        return taken


def _serve(pipe: connection.Connection, opener: Opener, level: int) -> None:
    """Answer tasks until the parent closes the pipe."""
    # A terminal sends Ctrl-C to all processes; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    collector = _Collector()
    log = logging.getLogger(_LOG)
    log.addHandler(collector)
    log.setLevel(level)
    log.propagate = False
    with suppress(EOFError, ConnectionError):
        try:
            with opener() as work:
                while True:
                    task = pipe.recv()
                    pipe.send(_Answer(work(task), collector.take()))
        except (EOFError, ConnectionError):
            raise
        except OcditError as error:
            pipe.send(_Answer(None, collector.take(), error=error))
        except Exception:
            pipe.send(_Answer(None, collector.take(), trace=traceback.format_exc()))


class Engine(Protocol):
    """Distribute tasks to processes."""

    def __call__(self, opener: Opener, tasks: Sequence[T]) -> Generator[tuple[T, Any], None, None]:
        """Yield each task with its result, or with `Died`, in any order; see `run_tasks`."""


class LocalEngine:
    """Processes on this machine; with `jobs` 1, this process alone."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def __call__(self, opener: Opener, tasks: Sequence[T]) -> Generator[tuple[T, Any], None, None]:
        """Yield each task with its result, in order."""
        if self._jobs == 1:
            with opener() as work:
                for task in tasks:
                    yield task, work(task)
            return
        results = run_tasks(opener, tasks, self._jobs)
        try:
            yield from zip(tasks, results, strict=True)
        finally:
            results.close()


def run_all(
    engine: Engine, opener: Opener, tasks: Iterable[T], name: Callable[[T], str]
) -> Generator[tuple[T, Any], None, None]:
    """Yield each task with its result; a task whose process died is repeated.

    Args:
        engine: distributes the tasks.
        opener: see `run_tasks`.
        tasks: tasks to do.
        name: name of a task, for messages.

    Returns:
        Tasks and results; `Died` for a task whose processes died TRIES times.

    Raises:
        OcditError: one that the work raised.
    """
    pending = list(tasks)
    for left in reversed(range(TRIES)):
        lost = []
        for task, result in engine(opener, pending):
            if isinstance(result, Died) and left:
                logger.warning("%s: %s; it is done again", name(task), result.reason)
                lost.append(task)
            else:
                yield task, result
        pending = lost
        if not pending:
            return
