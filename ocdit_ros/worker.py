"""The newest-frame worker: all that the network does, in one thread. No ROS in here.

Whoever submits a frame or asks for new targets gets control back within milliseconds. Between `stop` and the next
`start` nothing of the network is held.
One thread, because on a CPU PyTorch is a quarter slower once a second one has computed anything: docs/performance.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic

import numpy as np

from ocdit_core.errors import ConfigError, OcditError, UnknownObjectError
from ocdit_ros import heap
from ocdit_ros.batching import Batcher
from ocdit_ros.frame_queue import FrameQueue, Job
from ocdit_ros.worker_types import Counters, Frame, LibraryLike, Result, SegmenterLike, TargetSet, describe

TRIM_EVERY = 10.0  # seconds


class Worker(Generic[Frame]):
    """Runs a segmenter on the newest frames.

    Args:
        library: of rendered objects.
        read: makes (H, W, 3) uint8 RGB of a frame, or raises OcditError.
        on_result: called with each frame's result, one at a time.
        on_error: called with one line for what failed.
        on_targets_failed: called when targets that were accepted could not be encoded, with those that stay.
        is_stale: whether a frame of a camera, whose turn has come, is too old to be worth it.

    All of them are called from the worker's thread; what they raise is reported by `on_error` and ends nothing.
    """

    def __init__(
        self,
        *,
        library: LibraryLike,
        read: Callable[[Frame], np.ndarray],
        on_result: Callable[[Result[Frame]], None],
        on_error: Callable[[str], None],
        on_targets_failed: Callable[[TargetSet], None] = lambda targets: None,
        is_stale: Callable[[Frame, str], bool] = lambda frame, source: False,
    ):
        self._library = library
        self._read = read
        self._on_result = on_result
        self._on_error = on_error
        self._on_targets_failed = on_targets_failed
        self._is_stale = is_stale
        self._thread: threading.Thread | None = None
        # One condition guards all that follows.
        self._changed = threading.Condition()
        self._queue: FrameQueue[Frame] = FrameQueue()
        self._targets: TargetSet | None = None
        self._wanted: TargetSet | None = None  # accepted, its features not ready yet
        self._current: tuple[TargetSet, Any] | None = None
        self._versions = 0
        self._epoch = 0
        self._work = 0.0
        self._batch = 1
        self._stopping = True

    def start(self, load: Callable[[], SegmenterLike], *, batch: int = 1) -> None:
        """Start the thread, and return when it has loaded the network; targets that were set are encoded next.

        Args:
            load: makes the network; what it raises, `start` raises.
            batch: the frames of at most so many cameras are segmented at once.

        Raises:
            OcditError: a frame of before the last `stop` is still under way.
        """
        if self._thread is not None and self._thread.is_alive():
            raise OcditError("the last frame has not ended yet; try again after it")
        with self._changed:
            self._stopping = False
            self._batch = batch
            self._wanted = self._targets
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(load, batch, loaded), name="ocdit-network", daemon=True)
        self._thread.start()
        try:
            loaded.result()
        finally:
            del loaded  # it, the error and its traceback would hold each other, and what had been loaded until then

    def stop(self, timeout: float = 30.0) -> bool:
        """End the thread after the frame under way; waiting requests fail, the targets stay for the next start.

        Returns:
            Whether it ended in time (seconds).
        """
        self.flush()
        with self._changed:
            self._stopping = True
            requests = self._queue.take_requests()
            self._changed.notify_all()
        for job in requests:
            assert job.reply is not None
            job.reply.set_exception(OcditError("the node is stopping"))
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        with self._changed:
            self._current = None
        return thread is None or not thread.is_alive()

    def submit(self, frame: Frame, source: str = "", waited: float = 0.0) -> None:
        """Hand in a camera's newest frame, which arrived `waited` seconds ago; the one that still waits is dropped."""
        with self._changed:
            self._queue.put(frame, source, time.monotonic() - waited)
            if self._stopping:
                self._queue.drop(source)
            self._changed.notify_all()

    def flush(self) -> None:
        """Drop what waits, and see to it that the frames under way report nothing (a pause of the streams)."""
        with self._changed:
            self._queue.drop()
            self._epoch += 1

    def request(self, frame: Frame) -> Future[Result[Frame]]:
        """Ask for one given frame, before the streams go on.

        Returns:
            A future of the result; it raises the OcditError of a frame that cannot be done.

        Raises:
            OcditError: too many requests wait already, there are no targets, or the worker does not run.
        """
        with self._changed:
            if self._stopping:
                raise OcditError("the node is stopping")
            if self._targets is None:
                raise ConfigError("no target objects are set: call ~/set_target_objects first")
            reply = self._queue.put_request(frame, time.monotonic())
            self._changed.notify_all()
            return reply

    def set_targets(self, object_ids: Sequence[str]) -> TargetSet:
        """Change what is looked for, all or nothing; returns at once.

        A frame that begins after it uses the new set. If its features fail, the old set stays, under a new version.

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
            self._targets = self._new_version(names)
            if not self._stopping:
                self._wanted = self._targets
            self._changed.notify_all()
            return self._targets

    @property
    def targets(self) -> TargetSet | None:
        """The set that the next frame will use; None before the first."""
        with self._changed:
            return self._targets

    @property
    def counters(self) -> dict[str, Counters]:
        """A snapshot of the frame counters of each camera that has sent a frame."""
        with self._changed:
            return self._queue.counters()

    @property
    def batch(self) -> int:
        """How many frames are segmented at once at most; it falls where memory runs out."""
        with self._changed:
            return self._batch

    def set_fresh_within(self, seconds: float) -> None:
        """A frame that has waited longer gives way to the next one when that is due soon; 0: never."""
        with self._changed:
            self._queue.fresh_within = seconds

    def wait_until_encoded(self, timeout: float) -> bool:
        """Wait for the features of the newest target set; False when they are not there in time (seconds) or failed."""
        with self._changed:
            wanted = self._targets
            self._changed.wait_for(lambda: self._wanted is None or self._stopping, timeout)
            return self._wanted is None and self._current is not None and self._current[0] == wanted

    def _new_version(self, names: tuple[str, ...]) -> TargetSet:
        self._versions += 1
        return TargetSet(version=self._versions, object_ids=names)

    def _run(self, load: Callable[[], SegmenterLike], batch: int, loaded: Future[None]) -> None:
        # The thread alone holds the network, so that its memory is free when it has ended.
        try:
            segmenter = load()
        except BaseException as error:
            loaded.set_exception(error)
            del loaded
            return
        loaded.set_result(None)
        batcher = Batcher(segmenter, limit=batch, on_error=self._on_error)
        trimmed = time.monotonic()
        while True:
            with self._changed:
                wanted, jobs = self._next_work()
                current, epoch = self._current, self._epoch
            if wanted is not None:
                self._encode(wanted, segmenter)
            elif jobs:
                begun = time.monotonic()
                self._process(jobs, batcher, current, epoch)
                with self._changed:
                    self._work = time.monotonic() - begun
                    self._batch = batcher.limit
                if begun - trimmed > TRIM_EVERY:
                    heap.trim()
                    trimmed = begun
            else:
                return
            del current, jobs

    def _next_work(self) -> tuple[TargetSet | None, list[Job[Frame]]]:
        """Wait for targets to encode, or else for frames; there is neither when the worker stops."""
        while not self._stopping:
            if self._wanted is not None:
                return self._wanted, []
            delay = self._queue.delay(time.monotonic(), self._work) if self._queue else None
            if delay == 0.0:
                return None, self._queue.take(self._batch)
            self._changed.wait(delay)
        return None, []

    def _process(
        self, jobs: list[Job[Frame]], batcher: Batcher, current: tuple[TargetSet, Any] | None, epoch: int
    ) -> None:
        begun = time.monotonic()
        ready: list[tuple[Job[Frame], np.ndarray, dict[str, float]]] = []
        for job in jobs:
            try:
                if job.reply is None and self._is_stale(job.frame, job.source):
                    with self._changed:
                        self._queue.count(job.source).stale += 1
                    continue
                started = time.monotonic()
                image = self._read(job.frame)
                timings = {"waiting": begun - job.submitted, "reading": time.monotonic() - started}
                ready.append((job, image, timings))
            except Exception as error:
                self._fail(job, error)
        if not ready:
            return
        try:
            if current is None:
                raise ConfigError("no target objects are encoded")
            sources = [job.source if job.reply is None else None for job, _, _ in ready]
            found = batcher.segment([image for _, image, _ in ready], current[1], sources)
        except Exception as error:
            # Out of memory ...: the next frame may be well, so the thread lives on.
            for job, _, _ in ready:
                self._fail(job, error)
            return
        for (job, image, timings), segmentation in zip(ready, found, strict=True):
            result = Result(
                frame=job.frame,
                source=job.source,
                image=image,
                segmentation=segmentation,
                targets=current[0],
                timings={**timings, **segmentation.timings},
            )
            self._finish(job, result, epoch)

    def _finish(self, job: Job[Frame], result: Result[Frame], epoch: int) -> None:
        if job.reply is not None:
            job.reply.set_result(result)
            return
        with self._changed:
            self._queue.count(job.source).processed += 1
            if epoch != self._epoch:
                return
        try:
            self._on_result(result)
        except Exception as error:
            self._on_error(f"the result could not be published: {describe(error)}")

    def _fail(self, job: Job[Frame], error: Exception) -> None:
        if job.reply is not None:
            job.reply.set_exception(error)
            return
        with self._changed:
            self._queue.count(job.source).failed += 1
        self._on_error(f"a frame could not be segmented: {describe(error)}")

    def _encode(self, wanted: TargetSet, segmenter: SegmenterLike) -> None:
        objects, failure = None, ""
        try:
            objects = segmenter.encode_objects(self._library, list(wanted.object_ids))
        except Exception as error:
            failure = describe(error)
        stay = None
        with self._changed:
            if not failure and not self._stopping:
                self._current = (wanted, objects)
            elif failure and self._current is not None and self._wanted is wanted:
                # The set in force changes once more, so its version does too.
                stay = self._targets = self._new_version(self._current[0].object_ids)
                self._current = (stay, self._current[1])
            if self._wanted is wanted:
                self._wanted = None
            self._changed.notify_all()
        if failure:
            kept = ", the old ones stay" if stay else ""
            self._on_error(f"the targets {', '.join(wanted.object_ids)} could not be encoded{kept}: {failure}")
        if stay:
            try:
                self._on_targets_failed(stay)
            except Exception as error:
                self._on_error(f"the targets' return could not be announced: {describe(error)}")
