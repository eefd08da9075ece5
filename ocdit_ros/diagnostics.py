"""What /diagnostics says about the node: statuses made from a snapshot."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocdit_ros import pip_home
from ocdit_ros.worker_types import Counters

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from ocdit_ros.worker_types import Result, TargetSet

pip_home.prepare()

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue  # noqa: E402  (needs the prefix)

EVENT_LASTS = 10.0
"""Seconds for which an error of one frame, or a warning, colours the status."""


@dataclass
class CameraMonitor:
    """What is remembered of one camera between two reports; times are time.monotonic() seconds.

    Attributes:
        received_at: when the last image came in; the time of activation before the first one.
        processed_at: when the last frames were done, for the rate.
        last_result: the last frame's result, for its stages.
        publishing: seconds that its publication took.
        age: seconds from its stamp to its publication; None where it had no stamp.
        stale: age in seconds of the last frame that was discarded for it, and when.
    """

    received_at: float = 0.0
    processed_at: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    last_result: Result | None = None
    publishing: float = 0.0
    age: float | None = None
    stale: tuple[float, float] | None = None

    def note(self, result: Result, *, now: float, publishing: float, age: float | None) -> None:
        """Take note of a published frame."""
        self.last_result, self.publishing, self.age = result, publishing, age
        self.processed_at.append(now)

    def rate(self, now: float) -> float:
        """Return processed frames per second over the last 30 frames, falling while none comes."""
        if len(self.processed_at) < 2:
            return 0.0
        return (len(self.processed_at) - 1) / max(
            self.processed_at[-1] - self.processed_at[0],
            now - self.processed_at[0] if now - self.processed_at[-1] > 5.0 else 0.0,
            1e-6,
        )


@dataclass
class Monitor:
    """What is remembered of the node; events come with their time.monotonic().

    Attributes:
        failure: why the last transition failed; it stands until one succeeds.
        last_error: of a frame or a target change.
        last_warning: of the network, such as less memory than it wanted.
    """

    failure: str = ""
    last_error: tuple[str, float] | None = None
    last_warning: tuple[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class CameraReport:
    """One camera at one moment.

    Attributes:
        name: "" for the only one.
        topic: resolved name of its images.
        unheard: tells why none can come in, or "".
        monitor: what has happened.
        counters: of its frames.
    """

    name: str
    topic: str
    unheard: Callable[[], str]
    monitor: CameraMonitor
    counters: Counters


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """The node at one moment.

    Attributes:
        name: fully qualified.
        now: time.monotonic().
        state: label of the lifecycle state.
        monitor: what has happened.
        cameras: none before configure.
        targets: the objects looked for; None before configure.
        device: where the network runs.
        model: its name.
        batch: images that are segmented at once at most.
        stale_after: seconds without an image that call for a warning.
        max_age: seconds after which images are discarded.
    """

    name: str
    now: float
    state: str
    monitor: Monitor
    cameras: Sequence[CameraReport]
    targets: TargetSet | None
    device: str
    model: str
    batch: int
    stale_after: float
    max_age: float


def memory_mib() -> float:
    """Return the process's resident memory in MiB; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError, IndexError):
        return 0.0


def gpu_memory_mib() -> float:
    """Return the MiB that this process's tensors take on all GPUs, cached ones too; 0 without a GPU in use."""
    # While another thread imports torch, the module is there and has no parts yet.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if not getattr(cuda, "is_initialized", bool)():
        return 0.0
    assert cuda is not None
    return float(sum(cuda.memory_reserved(index) for index in range(cuda.device_count()))) / 2**20


def to_message(report: NodeReport, stamp: Time) -> DiagnosticArray:
    """Return the node's status, whose level is the worst of all, and one for each camera that has a name."""
    conditions = {camera.name: _condition(report, camera) for camera in report.cameras}
    level, text = DiagnosticStatus.OK, report.state
    if report.monitor.failure:
        level, text = DiagnosticStatus.ERROR, report.monitor.failure
    elif _recent(report.monitor.last_error, report.now):
        level, text = DiagnosticStatus.ERROR, report.monitor.last_error[0]  # type: ignore[index]
    elif warnings := [condition for condition in conditions.values() if condition]:
        level, text = DiagnosticStatus.WARN, "; ".join(warnings)
    elif _recent(report.monitor.last_warning, report.now):
        level, text = DiagnosticStatus.WARN, report.monitor.last_warning[0]  # type: ignore[index]
    values = _of_node(report)
    if [camera.name for camera in report.cameras] == [""]:
        values |= _of_last_frame(report.cameras[0].monitor)
    statuses = [_status(level, f"{report.name}: segmentation", text, report.device, values)]
    for camera in report.cameras:
        if camera.name:
            level = DiagnosticStatus.WARN if conditions[camera.name] else DiagnosticStatus.OK
            text = conditions[camera.name] or report.state
            values = {**_of_camera(camera, report.now), **_of_last_frame(camera.monitor)}
            statuses.append(_status(level, f"{report.name}: camera {camera.name}", text, camera.topic, values))
    message = DiagnosticArray(status=statuses)
    message.header.stamp = stamp
    return message


def _recent(event: tuple[str, float] | None, now: float) -> bool:
    return event is not None and now - event[1] < EVENT_LASTS


def _condition(report: NodeReport, camera: CameraReport) -> str:
    """What is wrong with a camera, or ""."""
    if report.state != "active":
        return ""
    silence = report.now - camera.monitor.received_at
    if silence > report.stale_after:
        reason = camera.unheard()
        return f"no image on {camera.topic} for {silence:.1f} s" + (f": {reason}" if reason else "")
    if camera.monitor.stale and report.now - camera.monitor.stale[1] < 2.0:
        return (
            f"images on {camera.topic} are discarded: {camera.monitor.stale[0]:.1f} s old, max_age {report.max_age:g} s"
        )
    return ""


def _status(level: bytes, name: str, text: str, hardware_id: str, values: dict[str, str]) -> DiagnosticStatus:
    status = DiagnosticStatus(level=level, name=name, message=text, hardware_id=hardware_id)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return status


def _of_node(report: NodeReport) -> dict[str, str]:
    monitor, targets = report.monitor, report.targets
    values = {
        "state": report.state,
        "model": report.model,
        "device": report.device,
        "targets": ", ".join(targets.object_ids) if targets else "",
        "targets version": str(targets.version) if targets else "",
        "rate Hz": f"{sum(camera.monitor.rate(report.now) for camera in report.cameras):.2f}",
        "images at once": str(report.batch),
        "memory MiB": f"{memory_mib():.0f}",
        "GPU memory MiB": f"{gpu_memory_mib():.0f}",
        "last error": monitor.last_error[0] if monitor.last_error else "",
        "last warning": monitor.last_warning[0] if monitor.last_warning else "",
    }
    return values | _counts(sum((camera.counters for camera in report.cameras), Counters()))


def _of_camera(camera: CameraReport, now: float) -> dict[str, str]:
    return {"topic": camera.topic, "rate Hz": f"{camera.monitor.rate(now):.2f}", **_counts(camera.counters)}


def _counts(counters: Counters) -> dict[str, str]:
    return {f"frames {name}": str(count) for name, count in vars(counters).items()}


def _of_last_frame(monitor: CameraMonitor) -> dict[str, str]:
    result = monitor.last_result
    if result is None:
        return {}
    header = result.frame.header
    timings = {**result.timings, "publishing": monitor.publishing}
    if monitor.age is not None:
        timings["age"] = monitor.age
    return {
        "frame id": header.frame_id,
        "frame stamp": f"{header.stamp.sec}.{header.stamp.nanosec:09d}",
        "frame targets": ", ".join(result.targets.object_ids),
        "frame targets version": str(result.targets.version),
        **{f"{stage} ms": f"{1000 * seconds:.1f}" for stage, seconds in timings.items()},
    }
