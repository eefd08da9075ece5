"""An engine that runs tasks on a Ray cluster (https://docs.ray.io)."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.workers import Died, Opener

T = TypeVar("T")
LOCAL = "local"


class RayEngine:
    """Actors of a Ray cluster, one per core; a context manager.

    The dataset's folder must be at the same path on all machines, and this package installed on them.

    Args:
        address: address of the cluster, as `ray start --head` prints it; "auto" finds the one of this machine;
            "local" starts a temporary one.
        jobs: actors; 0: one for each core of the cluster.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at this address.
    """

    def __init__(self, address: str = LOCAL, jobs: int = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("ray: --ray needs the package ray: pip install ray") from error
        self._ray: Any = ray
        _check_reachable(address)
        options: dict[str, Any] = {"num_cpus": jobs or len(os.sched_getaffinity(0))} if address == LOCAL else {}
        try:
            ray.init(
                address, include_dashboard=False if address == LOCAL else None, logging_level=logging.WARNING, **options
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"ray: no cluster at {address} ({' '.join(str(error).split())[:200]})") from error
        self._jobs = jobs or int(ray.cluster_resources().get("CPU", 1))

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def __call__(self, opener: Opener, tasks: Sequence[T]) -> Generator[tuple[T, Any], None, None]:
        """Yield each task with its result, in the order of completion; an actor that dies is replaced.

        Raises:
            ConfigError: actors cannot start, as where this package is not installed.
            OcditError: one that the work raised.
        """
        waiting = deque(tasks)
        running: dict[Any, tuple[Any, T]] = {}
        remote = self._ray.remote(num_cpus=1)(_Actor)
        # As bytes: what cannot be read there is then reported by an actor, and does not keep it from starting.
        packed = self._ray.cloudpickle.dumps(opener)

        def give(actor: Any) -> None:
            task = waiting.popleft()
            running[actor.work.remote(task)] = actor, task

        try:
            for _ in range(min(self._jobs, len(tasks))):
                give(remote.remote(packed))
            while running:
                ready, _ = self._ray.wait(list(running), num_returns=1)
                actor, task = running.pop(ready[0])
                try:
                    result = self._ray.get(ready[0])
                except self._ray.exceptions.RayActorError as error:
                    reason = " ".join(str(error).split())
                    if "creation task" in reason:
                        raise ConfigError(
                            f"ray: actors cannot start; is this package installed on all machines? ({reason[-300:]})"
                        ) from error
                    # The machine, or the process alone; a new one is started where there is room.
                    result, actor = Died(f"its actor died ({reason[:200]})"), None
                if isinstance(result, OcditError):
                    raise result
                if waiting:
                    give(actor or remote.remote(packed))
                yield task, result
        finally:
            for actor, _ in running.values():
                self._ray.kill(actor)


def _check_reachable(address: str) -> None:
    """Raise ConfigError if an address cannot be reached; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"ray: no cluster at {address} ({error})") from error


class _Actor:
    """Actor that keeps its renderer from task to task."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._stack = ExitStack()
        self._work: Any = None

    def work(self, task: Any) -> Any:
        """Return the result, or an error that ends the run: if it were raised, Ray would wrap it."""
        try:
            if self._work is None:
                self._work = self._stack.enter_context(pickle.loads(self._packed)())
            return self._work(task)
        except OcditError as error:
            return error
