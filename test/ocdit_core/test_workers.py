import logging
import os
import signal
import time
from contextlib import contextmanager

import pytest

from ocdit_core.errors import MeshError, RenderingError
from ocdit_core.workers import Died, run_tasks

logger = logging.getLogger("ocdit_core.test")


@contextmanager
def opener():
    """Work that does what its task says."""
    done = []

    def work(task):
        kind, value = task
        done.append(value)
        if kind == "log":
            logger.info("task %s", value)
        if kind == "sleep":
            time.sleep(value)
        if kind == "kill":
            os.kill(os.getpid(), value)
        if kind == "exit":
            os._exit(value)
        if kind == "return an error":
            return MeshError(value)
        if kind == "raise":
            raise value
        return os.getpid(), value

    yield work


@contextmanager
def no_opener():
    raise RenderingError("no EGL")
    yield


def test_results_come_in_order_from_several_processes():
    tasks = [("sleep", 0.4 if number == 0 else 0.02) for number in range(8)]
    results = list(run_tasks(opener, tasks, 2))
    assert [value for _, value in results] == [value for _, value in tasks]
    pids = [pid for pid, _ in results]
    assert len(set(pids)) == 2
    assert os.getpid() not in pids


def test_what_is_logged_comes_before_its_result(caplog):
    caplog.set_level(logging.INFO, "ocdit_core")
    for number, (_, value) in enumerate(run_tasks(opener, [("log", number) for number in range(5)], 2)):
        assert value == number
        assert caplog.messages == [f"task {earlier}" for earlier in range(number + 1)]


def test_a_process_that_dies_costs_its_own_task_only():
    tasks = [("log", 0), ("kill", signal.SIGKILL), ("exit", 3), ("return an error", "bad.glb: empty"), ("log", 4)]
    results = list(run_tasks(opener, tasks, 2))
    assert results[1] == Died("its process was killed by signal 9; out of memory?")
    assert results[2] == Died("its process ended with status 3")
    assert isinstance(results[3], MeshError)
    assert [results[number][1] for number in (0, 4)] == [0, 4]


def test_what_the_work_raises_ends_all():
    with pytest.raises(RenderingError, match="no EGL"):
        list(run_tasks(no_opener, [("log", 0)], 1))
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ZeroDivisionError: by nothing"):
        list(run_tasks(opener, [("raise", ZeroDivisionError("by nothing")), ("log", 0)], 1))


def test_closing_stops_the_processes_after_their_task():
    results = run_tasks(opener, [("log", 0), ("sleep", 0.3), *[("sleep", 5)] * 5], 1)
    pid, _ = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
