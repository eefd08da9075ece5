"""What waits for the worker: the newest frame of each camera, and requests for given frames. No ROS, no threads.

A camera is faster than the network: frames that a newer one replaces are counted and dropped.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Generic

from ocdit_core.errors import OcditError
from ocdit_ros.worker_types import Counters, Frame, Result

MAX_WAITING_REQUESTS = 4
"""Requests for one given frame that may wait at a time."""

WAITING_SHARE = 0.25
"""Of the work on a frame: longer than this it does not wait for a fresher one."""


LOST = 2
"""After so many frames that were due and did not come, a camera's next one is not waited for."""


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Frame]):
    """One frame that waits; times are time.monotonic() seconds.

    Attributes:
        frame: what was submitted.
        source: its camera.
        submitted: when it came in.
        reply: where the result goes to, if somebody asked for this frame; else it is one of a stream.
    """

    frame: Frame
    source: str
    submitted: float
    reply: Future[Result[Frame]] | None = None


@dataclass
class _Stream:
    """When a camera's frames come, and when one was taken last."""

    last: float
    period: float = 0.0
    taken: int = 0

    def note(self, now: float) -> None:
        interval = now - self.last
        # A gap is a pause, not a slower camera.
        if self.period == 0.0 or interval < 3 * self.period:
            self.period = interval if self.period == 0.0 else 0.8 * self.period + 0.2 * interval
        self.last = now

    def next(self, now: float) -> tuple[float, float]:
        """When the next frame should come, and until when it is waited for; in the past where none is known to come."""
        due = end = self.last
        for _ in range(1 + LOST):
            if end <= now:
                due += self.period
                # Cameras are not on time to the millisecond.
                end = due + 0.25 * self.period
        return due, end


class FrameQueue(Generic[Frame]):
    """Waiting frames and their counts; whoever uses it from several threads guards it by a lock."""

    def __init__(self) -> None:
        self.fresh_within = 0.0
        """Seconds: a frame that has waited longer gives way to the next one when that is due soon; 0: never."""
        self._waiting: dict[str, Job[Frame]] = {}
        self._requests: deque[Job[Frame]] = deque()
        self._streams: dict[str, _Stream] = {}
        self._counters: dict[str, Counters] = {}
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._requests)

    def put(self, frame: Frame, source: str, now: float) -> None:
        """Take a camera's newest frame, which came in `now`; the one that still waits is dropped."""
        self.drop(source)
        self.count(source).received += 1
        self._waiting[source] = Job(frame=frame, source=source, submitted=now)
        if source in self._streams:
            self._streams[source].note(now)
        else:
            self._streams[source] = _Stream(now)

    def put_request(self, frame: Frame, now: float) -> Future[Result[Frame]]:
        """Take a given frame, which comes before the streams.

        Raises:
            OcditError: too many wait already.
        """
        if len(self._requests) >= MAX_WAITING_REQUESTS:
            raise OcditError(f"{MAX_WAITING_REQUESTS} requests wait already; ask again after their replies")
        reply: Future[Result[Frame]] = Future()
        self._requests.append(Job(frame=frame, source="", submitted=now, reply=reply))
        return reply

    def delay(self, now: float, work: float) -> float:
        """Return for how many seconds to wait for a fresher frame; 0: begin.

        Args:
            now: time.monotonic().
            work: seconds that the last frames took.
        """
        if self._requests or not self._waiting or not self.fresh_within:
            return 0.0
        if now - max(job.submitted for job in self._waiting.values()) <= self.fresh_within:
            return 0.0
        coming = [stream.next(now) for stream in self._streams.values()]
        due, end = min(((due, end) for due, end in coming if end > now), default=(now, now))
        return end - now if due - now <= WAITING_SHARE * work else 0.0

    def take(self, limit: int) -> list[Job[Frame]]:
        """Return the next request alone, or else the newest frames of at most `limit` cameras.

        The cameras take turns: those come first that were taken from the longest ago.
        """
        if self._requests:
            return [self._requests.popleft()]
        chosen = sorted(self._waiting.values(), key=lambda job: (self._streams[job.source].taken, job.submitted))
        for job in chosen[:limit]:
            del self._waiting[job.source]
            self._turn += 1
            self._streams[job.source].taken = self._turn
        return chosen[:limit]

    def take_requests(self) -> list[Job[Frame]]:
        """Return all requests; none waits any more."""
        requests, self._requests = list(self._requests), deque()
        return requests

    def drop(self, source: str | None = None) -> None:
        """Drop what waits of a camera, or of all."""
        for name in list(self._waiting) if source is None else [source] * (source in self._waiting):
            del self._waiting[name]
            self.count(name).dropped += 1

    def count(self, source: str) -> Counters:
        """Return a camera's counters, to be changed."""
        return self._counters.setdefault(source, Counters())

    def counters(self) -> dict[str, Counters]:
        """Return a copy of the counters of each camera."""
        return {source: replace(counters) for source, counters in self._counters.items()}
