"""What waits for the worker: the newest frame of each camera, and requests for single frames. No ROS, no threads."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from ocdit_core.errors import OcditError

MAX_WAITING_REQUESTS = 4
"""Single-frame requests that may wait at a time."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One waiting frame.

    Attributes:
        frame: the submitted frame.
        source: camera name.
        submitted: time.monotonic() of its arrival.
        uncertainty: whether its uncertainty map is wanted.
        reply: receives the result of a single-frame request; None for a frame of a stream.
    """

    frame: Any
    source: str = ""
    submitted: float
    uncertainty: bool = False
    reply: Future[Any] | None = None


@dataclass(kw_only=True)
class Counters:
    """Frame counts of a camera: received = processed + dropped + stale + failed + at most two in progress.

    Attributes:
        received: all frames that came in.
        processed: segmented frames.
        dropped: frames replaced by a newer one, or discarded by a pause of the stream.
        stale: frames that were too old when their turn came.
        failed: frames that could not be read or segmented.
    """

    received: int = 0
    processed: int = 0
    dropped: int = 0
    stale: int = 0
    failed: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(**{name: value + vars(other)[name] for name, value in vars(self).items()})


class FrameQueue:
    """Waiting frames and their counts. Not thread-safe: the worker guards it by its lock."""

    def __init__(self) -> None:
        self._waiting: dict[str, Job] = {}
        self._requests: deque[Job] = deque()
        self._counters: dict[str, Counters] = {}
        self._taken: dict[str, int] = {}
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._requests)

    def put(self, job: Job) -> None:
        """Add a camera's newest frame; the one that still waits is dropped and counted."""
        self.drop(job.source)
        self.count(job.source).received += 1
        self._waiting[job.source] = job

    def put_request(self, job: Job) -> None:
        """Add a single-frame request, which is served before the streams.

        Raises:
            OcditError: too many requests wait already.
        """
        if len(self._requests) >= MAX_WAITING_REQUESTS:
            raise OcditError(f"{MAX_WAITING_REQUESTS} requests wait already; ask again after their replies")
        self._requests.append(job)

    def take(self, limit: int) -> list[Job]:
        """Return the next request alone, or else the newest frames of at most `limit` cameras.

        Cameras take turns: those served longest ago come first.
        """
        if self._requests:
            return [self._requests.popleft()]
        chosen = sorted(self._waiting.values(), key=lambda job: (self._taken.get(job.source, 0), job.submitted))
        for job in chosen[:limit]:
            del self._waiting[job.source]
            self._turn += 1
            self._taken[job.source] = self._turn
        return chosen[:limit]

    def take_requests(self) -> list[Job]:
        """Remove and return all waiting requests."""
        requests, self._requests = list(self._requests), deque()
        return requests

    def drop(self, source: str | None = None) -> None:
        """Drop the waiting frame of one camera, or of all."""
        for name in list(self._waiting) if source is None else [source] * (source in self._waiting):
            del self._waiting[name]
            self.count(name).dropped += 1

    def count(self, source: str) -> Counters:
        """Return a camera's counters for modification."""
        return self._counters.setdefault(source, Counters())

    def counters(self) -> dict[str, Counters]:
        """Return a copy of the counters of each camera."""
        return {source: replace(counters) for source, counters in self._counters.items()}
