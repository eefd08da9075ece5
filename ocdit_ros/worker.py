"""The newest-frame worker: inference in one thread, the encoding of new targets in another. No ROS in here.

A camera is faster than the network. The worker keeps one waiting frame, the newest; those that it replaces are counted
and dropped. Whoever submits a frame or asks for new targets gets control back within milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from ocdit_core.errors import ConfigError, OcditError, UnknownObjectError
from ocdit_ros.worker_types import Counters, Frame, LibraryLike, Result, SegmenterLike, TargetSet, describe

MAX_WAITING_REQUESTS = 4
"""Requests for one given frame that may wait at a time."""


@dataclass
class _Job(Generic[Frame]):
    frame: Frame
    reply: Future[Result[Frame]] | None = None
    submitted: float = field(default_factory=time.monotonic)


class Worker(Generic[Frame]):
    """Runs a segmenter on the newest frame.

    `on_result` and `on_error` are called from the worker's threads, one at a time for frames; what they raise is
    reported through `on_error` and ends nothing.
    """

    def __init__(
        self,
        *,
        segmenter: SegmenterLike,
        library: LibraryLike,
        read: Callable[[Frame], np.ndarray],
        on_result: Callable[[Result[Frame]], None],
        on_error: Callable[[str], None],
    ):
        self._segmenter = segmenter
        self._library = library
        self._read = read
        self._on_result = on_result
        self._on_error = on_error
        # One condition guards all that follows.
        self._changed = threading.Condition()
        self._waiting: _Job[Frame] | None = None
        self._requests: deque[_Job[Frame]] = deque()
        self._wanted: TargetSet | None = None  # accepted, its features not ready yet
        self._current: tuple[TargetSet, Any] | None = None
        self._versions = 0
        self._epoch = 0
        self._stopping = False
        self._received = self._processed = self._dropped = self._failed = 0
        self._threads = [
            threading.Thread(target=self._run_frames, name="ocdit-frames", daemon=True),
            threading.Thread(target=self._run_encoding, name="ocdit-encoding", daemon=True),
        ]

    def start(self) -> None:
        """Start the two threads; once in a worker's life."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 30.0) -> bool:
        """End both threads after the frame under way; waiting requests fail. True when they ended in time (seconds)."""
        with self._changed:
            self._stopping = True
            self._drop_waiting()
            requests, self._requests = self._requests, deque()
            self._changed.notify_all()
        for job in requests:
            assert job.reply is not None
            job.reply.set_exception(OcditError("the node is stopping"))
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def submit(self, frame: Frame) -> None:
        """Hand in the newest frame; one that still waits is dropped in its favour."""
        with self._changed:
            self._drop_waiting()
            self._received += 1
            if self._stopping:
                self._dropped += 1
                return
            self._waiting = _Job(frame)
            self._changed.notify_all()

    def flush(self) -> None:
        """Drop the waiting frame, and see to it that the frame under way reports nothing (a pause of the stream)."""
        with self._changed:
            self._drop_waiting()
            self._epoch += 1

    def request(self, frame: Frame) -> Future[Result[Frame]]:
        """Ask for one given frame, before the stream goes on.

        Returns:
            A future of the result; it raises the OcditError of a frame that cannot be done.

        Raises:
            OcditError: too many requests wait already, there are no targets, or the worker stops.
        """
        with self._changed:
            if self._stopping:
                raise OcditError("the node is stopping")
            if self._current is None and self._wanted is None:
                raise ConfigError("no target objects are set: call ~/set_target_objects first")
            if len(self._requests) >= MAX_WAITING_REQUESTS:
                raise OcditError(f"{MAX_WAITING_REQUESTS} requests wait already; ask again after their replies")
            job: _Job[Frame] = _Job(frame, Future())
            self._requests.append(job)
            self._changed.notify_all()
            assert job.reply is not None
            return job.reply

    def set_targets(self, object_ids: Sequence[str]) -> TargetSet:
        """Change what is looked for, all or nothing; returns at once.

        The features are computed in a thread of their own. A frame that begins after the return uses the new set: it
        waits for its features. If these fail, that is reported through `on_error` and the old set stays.

        Raises:
            ConfigError: no name was given.
            UnknownObjectError: the library lacks one of them.
        """
        names = tuple(dict.fromkeys(object_ids))
        known = self._library.object_ids
        if not names:
            raise ConfigError(f"no target objects were given; the library holds {', '.join(known)}")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UnknownObjectError(unknown, list(known))
        with self._changed:
            self._versions += 1
            self._wanted = TargetSet(version=self._versions, object_ids=names)
            self._changed.notify_all()
            return self._wanted

    @property
    def targets(self) -> TargetSet | None:
        """The set that the next frame will use; None before the first."""
        with self._changed:
            return self._wanted or (self._current[0] if self._current else None)

    @property
    def counters(self) -> Counters:
        """A snapshot of the frame counters."""
        with self._changed:
            return Counters(
                received=self._received, processed=self._processed, dropped=self._dropped, failed=self._failed
            )

    def wait_until_encoded(self, timeout: float) -> bool:
        """Wait for the features of the newest target set; False when they are not there in time (seconds) or failed."""
        with self._changed:
            wanted = self.targets
            self._changed.wait_for(lambda: self._wanted is None or self._stopping, timeout)
            return self._wanted is None and self._current is not None and self._current[0] == wanted

    def _drop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting = None
            self._dropped += 1

    def _run_frames(self) -> None:
        while True:
            with self._changed:
                # The frame is taken after the wait for features: it is the newest one then, not the one of before.
                self._changed.wait_for(self._may_begin)
                if self._stopping:
                    return
                job = self._requests.popleft() if self._requests else self._waiting
                assert job is not None
                if job.reply is None:
                    self._waiting = None
                current, epoch = self._current, self._epoch
            if current is None:
                self._finish_without_targets(job)
            else:
                self._process(job, *current, epoch)

    def _may_begin(self) -> bool:
        has_job = self._waiting is not None or bool(self._requests)
        return self._stopping or (has_job and self._wanted is None)

    def _finish_without_targets(self, job: _Job[Frame]) -> None:
        if job.reply is not None:
            job.reply.set_exception(ConfigError("no target objects are set: call ~/set_target_objects first"))
            return
        with self._changed:
            self._dropped += 1

    def _process(self, job: _Job[Frame], targets: TargetSet, objects: Any, epoch: int) -> None:
        begun = time.monotonic()
        try:
            image = self._read(job.frame)
            read = time.monotonic()
            segmentation = self._segmenter.segment(image, objects)
            timings = {"waiting": begun - job.submitted, "reading": read - begun, **segmentation.timings}
            result = Result(frame=job.frame, image=image, segmentation=segmentation, targets=targets, timings=timings)
        except Exception as error:
            # Out of memory, a damaged image ...: the next frame may be well, so the thread lives on.
            self._fail(job, error)
            return
        if job.reply is not None:
            job.reply.set_result(result)
            return
        with self._changed:
            self._processed += 1
            if epoch != self._epoch:
                return
        try:
            self._on_result(result)
        except Exception as error:
            self._on_error(f"the result could not be published: {describe(error)}")

    def _fail(self, job: _Job[Frame], error: Exception) -> None:
        if job.reply is not None:
            job.reply.set_exception(error)
            return
        with self._changed:
            self._failed += 1
        self._on_error(f"a frame could not be segmented: {describe(error)}")

    def _run_encoding(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._wanted is not None)
                if self._stopping:
                    return
                wanted = self._wanted
                assert wanted is not None
            objects, failure = None, None
            try:
                objects = self._segmenter.encode_objects(self._library, list(wanted.object_ids))
            except Exception as error:
                failure = error
            with self._changed:
                if failure is None:
                    self._current = (wanted, objects)
                if self._wanted is wanted:
                    self._wanted = None
                self._changed.notify_all()
            if failure is not None:
                names = ", ".join(wanted.object_ids)
                self._on_error(f"the targets {names} could not be encoded, the old ones stay: {describe(failure)}")
