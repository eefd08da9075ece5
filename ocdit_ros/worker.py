"""The newest-frame worker: loading, encoding and inference in one thread. No ROS in here.

Callers get control back within milliseconds. Between `stop` and the next `start` no reference to the network is kept.
One thread, because PyTorch on a CPU becomes a quarter slower once a second thread has computed: docs/performance.md.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import OcditError, UnknownObjectError
from ocdit_core.inference.results import Segmentation
from ocdit_ros.depth import Depth

if TYPE_CHECKING:
    from ocdit_core.inference.depth import Pose
    from ocdit_core.inference.prompts import Prompt

MAX_WAITING_REQUESTS = 4
"""Single-frame requests that may wait at a time."""

TRIM_EVERY = 10.0  # seconds
WARM_UP_SIZE = (480, 640, 3)


class StaleFrameError(OcditError):
    """A frame was too old when its turn came."""


@dataclass(kw_only=True)
class Counters:
    """Frame counts of a camera: received = processed + dropped + stale + failed + at most two in progress.

    Attributes:
        received: all frames that came in.
        processed: segmented frames.
        dropped: frames replaced by a newer one, or discarded by a stop.
        stale: frames that were too old when their turn came.
        failed: frames that could not be read or segmented.
    """

    received: int = 0
    processed: int = 0
    dropped: int = 0
    stale: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A waiting frame; `reply` receives the result of a single-frame request, and is None for a frame of a stream.

    A request may name targets of its own, and prompts.
    """

    frame: Any
    source: str = ""
    submitted: float
    uncertainty: bool = False
    reply: Future[Any] | None = None
    targets: tuple[str, ...] = ()
    prompts: tuple[Prompt, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TargetSet:
    """Names of target objects; `version` grows with every change of the set in force or of the library, from 1."""

    version: int
    object_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One processed frame.

    Attributes:
        frame: the submitted frame.
        source: camera name.
        image: (H, W, 3) uint8 RGB, the segmented image.
        depth: its depth; None where there is none.
        poses: approximate poses of instances, by the `id()` of the instance.
        segmentation: instances and timings.
        targets: the target set in force when processing began.
        timings: seconds: "waiting" (arrival -> begin), "reading" (frame -> RGB), and the segmenter's own stages, which
            frames of one batch share.
    """

    frame: Any
    source: str
    image: np.ndarray
    segmentation: Segmentation
    targets: TargetSet
    timings: dict[str, float]
    depth: Depth | None = None
    poses: Mapping[int, Pose] = field(default_factory=dict)


@dataclass
class _Loaded:
    """The network and the features of the targets in force; only the worker's thread refers to them."""

    network: Any
    objects: Any


class Worker:
    """Runs a network on the newest frames. The callbacks run in its thread.

    Args:
        library: object library; its `object_ids` are the names that can be targets.
        read: converts a frame to (H, W, 3) uint8 RGB; raises StaleFrameError for a frame that is too old, another
            OcditError for one that cannot be read.
        read_depth: returns the depth of a frame whose image has the size (H, W); None: it has none.
        on_result: called with the Result of each frame of a stream.
        on_error: called with one line about each failure, of `on_result` too.
    """

    def __init__(
        self,
        *,
        library: Any,
        read: Callable[[Any], np.ndarray],
        on_result: Callable[[Result], None],
        on_error: Callable[[str], None],
        read_depth: Callable[[Any, tuple[int, ...]], Depth | None] = lambda frame, size: None,
    ):
        self._library = library
        self._read = read
        self._read_depth = read_depth
        self._on_result = on_result
        self._on_error = on_error
        self._thread: threading.Thread | None = None
        # This condition guards everything below.
        self._changed = threading.Condition()
        self._waiting: dict[str, _Job] = {}  # the newest frame of each camera
        self._requests: deque[_Job] = deque()
        self._counters: dict[str, Counters] = {}
        self._turns = itertools.count(1)
        self._last_turn: dict[str, int] = {}  # of each camera
        self._targets: TargetSet | None = None
        self._wanted: tuple[tuple[str, ...], Future[TargetSet]] | None = None  # not yet encoded
        self._tasks: deque[tuple[Callable[[_Loaded], Any], Future[Any]]] = deque()
        self._batch = 1
        self._stopping = True

    def start(self, load: Callable[[], Any], *, batch: int = 1) -> None:
        """Start the thread; return after it has loaded the network, encoded the targets and run once.

        Args:
            load: loads the network, a `segmentation_node.Network`.
            batch: maximum number of cameras whose frames are segmented at once.

        Raises:
            OcditError: a frame from before the last `stop` is still in progress.
            Exception: whatever loading, encoding or the first run raises; the thread has ended then.
        """
        if self._thread is not None and self._thread.is_alive():
            raise OcditError("the last frame has not finished yet; try again later")
        with self._changed:
            self._stopping = False
            self._batch = batch
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(load, ready), name="ocdit-network", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self.stop()
            raise
        finally:
            del ready  # a cycle of future, error and traceback would keep the partially loaded network alive

    def stop(self, timeout: float = 30.0) -> bool:
        """End the thread after the frame in progress and free its memory.

        Waiting requests fail, the frame in progress is not reported, the targets stay.

        Returns:
            Whether the thread ended within `timeout` seconds.
        """
        with self._changed:
            self._stopping = True
            self._drop_waiting()
            replies: list[Future[Any]] = [job.reply for job in self._requests if job.reply is not None]
            self._requests.clear()
            replies += [reply for _, reply in self._tasks]
            self._tasks.clear()
            if self._wanted is not None:
                replies.append(self._wanted[1])
                self._wanted = None
            self._changed.notify_all()
        for reply in replies:
            if reply.set_running_or_notify_cancel():
                reply.set_exception(OcditError("the node is stopping"))
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        free_memory()
        return thread is None or not thread.is_alive()

    def submit(self, frame: Any, source: str = "", *, uncertainty: bool = False) -> None:
        """Hand in a camera's newest frame, with or without uncertainty map; the one that still waits is dropped."""
        job = _Job(frame=frame, source=source, submitted=time.monotonic(), uncertainty=uncertainty)
        with self._changed:
            counters = self._counters.setdefault(source, Counters())
            counters.received += 1
            counters.dropped += source in self._waiting
            self._waiting[source] = job
            if self._stopping:
                self._drop_waiting()
            self._changed.notify_all()

    def drop(self, source: str = "") -> None:
        """Count a frame of a camera that is not to be processed."""
        with self._changed:
            counters = self._counters.setdefault(source, Counters())
            counters.received += 1
            counters.dropped += 1

    def drop_waiting(self, source: str = "") -> None:
        """Drop the frame of a camera that waits."""
        with self._changed:
            if self._waiting.pop(source, None) is not None:
                self._counters[source].dropped += 1

    def request(self, frame: Any, object_ids: Sequence[str] = (), prompts: Sequence[Prompt] = ()) -> Future[Result]:
        """Ask for a single frame, which is processed before the streams; an error comes out of the future.

        Args:
            frame: the frame.
            object_ids: targets of this frame alone; default: the set in force.
            prompts: where targets are.

        Raises:
            OcditError: too many requests wait already, or the worker does not run.
            UnknownObjectError: the library does not hold one of the objects.
        """
        targets = tuple(dict.fromkeys(object_ids))
        self._require(targets)
        reply: Future[Result] = Future()
        with self._changed:
            if self._stopping:
                raise OcditError("the node is stopping")
            # The caller has stopped waiting for those that are cancelled.
            self._requests = deque(job for job in self._requests if job.reply and not job.reply.cancelled())
            if len(self._requests) >= MAX_WAITING_REQUESTS:
                raise OcditError(f"{MAX_WAITING_REQUESTS} requests wait already; ask again after their replies")
            self._requests.append(
                _Job(frame=frame, submitted=time.monotonic(), reply=reply, targets=targets, prompts=tuple(prompts))
            )
            self._changed.notify_all()
            return reply

    def call(self, task: Callable[[Any], Any]) -> Future[Any]:
        """Call `task(network)` in the worker's thread between two frames; its result comes out of the future.

        Raises:
            OcditError: the worker does not run.
        """
        with self._changed:
            if self._stopping:
                raise OcditError("the network is not loaded")
            return self._later(lambda loaded: task(loaded.network))

    def label(self, task: Callable[[Any, Any], Any]) -> Future[Any]:
        """Call `task(network, objects)` with the features of the targets in force; see `call`."""
        with self._changed:
            if self._stopping:
                raise OcditError("the network is not loaded")
            return self._later(lambda loaded: task(loaded.network, loaded.objects))

    def change_library(self, library: Any, choose: Callable[[Sequence[str]], Sequence[str]]) -> Future[TargetSet]:
        """Use another library, and the targets that `choose` returns for those in force, from the next frame on.

        All its targets are encoded anew; if that fails, or `choose` raises, the library and the targets in force stay.
        A stopped worker encodes them at the next `start`.

        Returns:
            A future of the set in force, whose version grows; it raises OcditError.
        """

        def change(loaded: _Loaded | None) -> TargetSet:
            names = tuple(choose(self._targets.object_ids if self._targets else ()))
            if loaded is not None:
                loaded.objects = loaded.network.encode_objects(library, list(names))
            with self._changed:
                self._library = library
                return self._put_in_force(names, anew=True)

        with self._changed:
            if not self._stopping:
                return self._later(change)
            reply: Future[TargetSet] = Future()
            reply.set_result(change(None))
            return reply

    @property
    def library(self) -> Any:
        """The object library."""
        return self._library

    @property
    def running(self) -> bool:
        """Whether a network is loaded, or being loaded."""
        return not self._stopping

    def _later(self, task: Callable[[_Loaded], Any]) -> Future[Any]:
        reply: Future[Any] = Future()
        self._tasks.append((task, reply))
        self._changed.notify_all()
        return reply

    def set_targets(self, object_ids: Sequence[str]) -> Future[TargetSet]:
        """Change the target set; empty: all objects of the library. Returns at once.

        The set is in force when its template features are encoded; until then, and if that fails, the old one is. A
        stopped worker accepts the set and encodes it at the next `start`. Where two calls come before the first was
        encoded, the later one counts.

        Returns:
            A future of the set in force; it raises OcditError when the set cannot be encoded, or was superseded.

        Raises:
            UnknownObjectError: the library does not hold one of them.
        """
        names = tuple(dict.fromkeys(object_ids)) or tuple(self._library.object_ids)
        self._require(names)
        reply: Future[TargetSet] = Future()
        with self._changed:
            if self._wanted is not None and self._wanted[0] == names:
                return self._wanted[1]
            superseded, self._wanted = self._wanted, None
            if self._stopping:
                reply.set_result(self._put_in_force(names))
            else:
                self._wanted = (names, reply)
                self._changed.notify_all()
        if superseded is not None:
            superseded[1].set_exception(OcditError(f"superseded by a later request for {', '.join(names)}"))
        return reply

    @property
    def targets(self) -> TargetSet | None:
        """The set in force, which the next frame will use; None before the first."""
        return self._targets

    @property
    def counters(self) -> dict[str, Counters]:
        """A snapshot of the frame counters of each camera that has sent a frame."""
        with self._changed:
            return {source: replace(counters) for source, counters in self._counters.items()}

    @property
    def batch(self) -> int:
        """Maximum number of frames segmented at once; it is halved when memory runs out."""
        return self._batch

    def _require(self, names: Sequence[str]) -> None:
        known = self._library.object_ids
        if unknown := [name for name in names if name not in known]:
            raise UnknownObjectError(unknown, list(known))

    def _drop_waiting(self) -> None:
        for source in self._waiting:
            self._counters[source].dropped += 1
        self._waiting.clear()

    def _take(self) -> list[_Job]:
        """Return the next request alone, or else the newest frames of at most `batch` cameras, which take turns."""
        while self._requests:
            job = self._requests.popleft()
            assert job.reply is not None
            if job.reply.set_running_or_notify_cancel():
                return [job]
        jobs = sorted(self._waiting.values(), key=lambda job: (self._last_turn.get(job.source, 0), job.submitted))
        for job in jobs[: self._batch]:
            del self._waiting[job.source]
            self._last_turn[job.source] = next(self._turns)
        return jobs[: self._batch]

    def _put_in_force(self, names: tuple[str, ...], *, anew: bool = False) -> TargetSet:
        if anew or self._targets is None or self._targets.object_ids != names:
            self._targets = TargetSet(version=self._targets.version + 1 if self._targets else 1, object_ids=names)
        return self._targets

    def _run(self, load: Callable[[], Any], ready: Future[None]) -> None:
        # Only this thread references the network, so its memory is free when the thread has ended.
        try:
            network = load()
            targets = self.targets
            assert targets is not None
            loaded = _Loaded(network, network.encode_objects(self._library, list(targets.object_ids)))
            # The first run is many times slower (memory, kernels): do it before the first frame.
            network.segment_batch([np.zeros(WARM_UP_SIZE, np.uint8)], loaded.objects, [None], uncertainty=False)
        except BaseException as error:
            ready.set_exception(error)
            del ready
            return
        ready.set_result(None)
        trimmed = time.monotonic()
        frame_is_next = False
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._wanted or self._tasks or self._requests or self._waiting
                )
                if self._stopping:
                    return
                wanted, self._wanted = self._wanted, None
                # Regions may come as fast as frames: they take turns.
                skipped = wanted is not None or (frame_is_next and (self._requests or self._waiting))
                call = self._tasks.popleft() if self._tasks and not skipped else None
                frame_is_next = call is not None
                jobs = [] if wanted is not None or call is not None else self._take()
                targets = self._targets
            assert targets is not None
            if wanted is not None:
                loaded.objects = self._encode(network, wanted, targets, loaded.objects)
            elif call is not None:
                task, reply = call
                try:
                    reply.set_result(task(loaded))
                except Exception as error:
                    # As text: the traceback references what has been allocated.
                    reply.set_exception(OcditError(describe(error)))
            if not jobs:
                continue
            self._process(network, jobs, targets, loaded.objects)
            if time.monotonic() - trimmed > TRIM_EVERY:
                trim_heap()
                trimmed = time.monotonic()
            del jobs

    def _encode(
        self, network: Any, wanted: tuple[tuple[str, ...], Future[TargetSet]], targets: TargetSet, objects: Any
    ) -> Any:
        """Put the wanted set in force; return its features, or the old ones on failure."""
        names, reply = wanted
        try:
            if names != targets.object_ids:
                objects = network.encode_objects(self._library, list(names))
        except Exception as error:
            # As text: the traceback references what has been allocated.
            text = f"{', '.join(names)} could not be encoded: {describe(error)}; still looking for "
            reply.set_exception(OcditError(text + ", ".join(targets.object_ids)))
            return objects
        with self._changed:
            in_force = self._put_in_force(names)
        reply.set_result(in_force)
        return objects

    def _process(self, network: Any, jobs: list[_Job], targets: TargetSet, objects: Any) -> None:
        begun = time.monotonic()
        ready: list[tuple[_Job, np.ndarray, Depth | None, dict[str, float]]] = []
        for job in jobs:
            try:
                started = time.monotonic()
                image = self._read(job.frame)
                depth = self._read_depth(job.frame, image.shape[:2])
                timings = {"waiting": begun - job.submitted, "reading": time.monotonic() - started}
                ready.append((job, image, depth, timings))
            except StaleFrameError:
                with self._changed:
                    self._counters[job.source].stale += 1
            except Exception as error:
                self._fail(job, error)
        if not ready:
            return
        try:
            sources = [job.source if job.reply is None else None for job, *_ in ready]
            uncertainty = any(job.uncertainty for job, *_ in ready)
            if own := ready[0][0].targets:  # a request is processed alone
                targets = replace(targets, object_ids=own)
                objects = network.encode_objects(self._library, list(own))
            images, depths = [image for _, image, _, _ in ready], [depth for _, _, depth, _ in ready]
            prompts = ready[0][0].prompts
            found = self._segment(network, images, depths, objects, sources, uncertainty, prompts)
            poses: list[Mapping[int, Pose]] = []
            for (_, image, depth, timings), segmentation in zip(ready, found, strict=True):
                started = time.monotonic()
                poses.append({} if depth is None else network.poses(image, segmentation, depth, objects))
                if depth is not None:
                    timings["poses"] = time.monotonic() - started
        except Exception as error:
            # The next frame may succeed, so the thread goes on.
            for job, *_ in ready:
                self._fail(job, error)
            return
        for (job, image, depth, timings), segmentation, estimated in zip(ready, found, poses, strict=True):
            result = Result(
                frame=job.frame,
                source=job.source,
                image=image,
                segmentation=segmentation,
                targets=targets,
                timings={**timings, **segmentation.timings},
                depth=depth,
                poses=estimated,
            )
            self._finish(job, result)

    def _segment(
        self,
        network: Any,
        images: Sequence[np.ndarray],
        depths: Sequence[Depth | None],
        objects: Any,
        sources: Sequence[str | None],
        uncertainty: bool,
        prompts: Sequence[Prompt],
    ) -> list[Segmentation]:
        """Segment images at once; when memory runs out, in smaller batches from then on, and a single image again."""
        found: list[Segmentation] = []
        while len(found) < len(images):
            part = images[len(found) :][: self._batch]
            of, deep = (list(each[len(found) :][: self._batch]) for each in (sources, depths))
            options: dict[str, Any] = {"depths": deep} if any(deep) else {}
            options |= {"prompts": [prompts]} if prompts else {}
            try:
                found += network.segment_batch(part, objects, of, uncertainty=uncertainty, **options)
                continue
            except Exception as error:
                # By its name on a GPU: torch is not imported here.
                if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                    raise
            # Not in the except clause: the traceback references what is to be freed.
            free_memory()
            if len(part) == 1:
                found += network.segment_batch(part, objects, of, uncertainty=uncertainty, **options)
                self._on_error("out of memory on a frame; it was repeated after freeing unused memory")
            else:
                with self._changed:
                    self._batch = len(part) // 2
                self._on_error(f"out of memory with {len(part)} images at once: from now on {self._batch} at a time")
        return found

    def _finish(self, job: _Job, result: Result) -> None:
        if job.reply is not None:
            job.reply.set_result(result)
            return
        with self._changed:
            self._counters[job.source].processed += 1
            if self._stopping:
                return
        try:
            self._on_result(result)
        except Exception as error:
            self._on_error(f"the result could not be published: {describe(error)}")

    def _fail(self, job: _Job, error: Exception) -> None:
        if job.reply is not None:
            job.reply.set_exception(error)
            return
        with self._changed:
            self._counters[job.source].failed += 1
        self._on_error(f"a frame could not be segmented: {describe(error)}")


def describe(error: BaseException) -> str:
    """Return an error as one line without object addresses; foreign errors are preceded by their type."""
    text = re.sub(r"<([\w.]+) object at 0x[0-9a-fA-F]+>", r"\1", " ".join(str(error).split()))
    return text if isinstance(error, OcditError) and text else f"{type(error).__name__}: {text}"


def free_memory() -> None:
    """Return unused memory to the system, on the GPU too."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return the heap's unused pages to the system (glibc); takes about 6 ms."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
