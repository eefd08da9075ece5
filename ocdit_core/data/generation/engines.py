"""Who does the work: this process, several on this machine, or a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from ocdit_core.workers import Died, Work, run_tasks

logger = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 3
"""So often a task is given out before it is held to blame for the end of its processes."""

Opener = Callable[[], AbstractContextManager[Work[Any, Any]]]


class Engine(Protocol):
    """Gives tasks to processes."""

    def __call__(self, opener: Opener, tasks: Sequence[T]) -> Generator[tuple[T, Any], None, None]:
        """Yield each task with its result, in any order; `Died` stands for that of one whose process ended.

        Args:
            opener: called once in each process; what its context manager yields is called with each task. It, tasks and
                results must be picklable.
            tasks: given out one by one to whoever is free.

        Raises:
            OcditError: one that the work raised; it ends all.
        """


class LocalEngine:
    """Processes on this machine.

    Args:
        jobs: how many; 1: this process alone.
    """

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
    """Yield each task with its result; one whose process ended in the middle of it is done again.

    Args:
        engine: gives the tasks out.
        opener: see `Engine`.
        tasks: what is to be done.
        name: of a task, for messages.

    Returns:
        `Died` stands for the result of a task at which processes ended TRIES times.

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
