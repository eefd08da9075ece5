"""What /diagnostics says about the node."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from ocdit_ros.worker import Counters

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from ocdit_ros.camera import Camera, CameraMonitor
    from ocdit_ros.parameters import Settings
    from ocdit_ros.worker import Worker

EVENT_LASTS = 10.0
"""Seconds for which an error of one frame, or a warning, sets the level of the status."""


@dataclass
class Monitor:
    """State of the node; events come with their time.monotonic().

    Attributes:
        failure: why the last transition failed; stays until one succeeds.
        last_error: error of a frame.
        last_warning: warning of the network, such as memory running out.
    """

    failure: str = ""
    last_error: tuple[str, float] | None = None
    last_warning: tuple[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The node at one moment.

    Attributes:
        name: fully qualified name of the node.
        state: label of the lifecycle state.
        settings: parameters.
        monitor: state of the node.
        cameras: cameras; none before configure.
        worker: worker; None before configure.
        device: device of the network.
        values: further values of the node.
        now: time.monotonic().
    """

    name: str
    state: str
    settings: Settings
    monitor: Monitor
    cameras: Sequence[Camera]
    worker: Worker | None
    device: str
    values: Mapping[str, str]
    now: float = field(default_factory=time.monotonic)

    def to_message(self, stamp: Time) -> DiagnosticArray:
        """Return the node's status, whose level is the worst of all, and one for each camera that has a name."""
        conditions = {camera.name: self._condition(camera) for camera in self.cameras}
        level, text = DiagnosticStatus.OK, self.state
        if self.monitor.failure:
            level, text = DiagnosticStatus.ERROR, self.monitor.failure
        elif error := self._recent(self.monitor.last_error):
            level, text = DiagnosticStatus.ERROR, error
        elif warnings := [condition for condition in conditions.values() if condition]:
            level, text = DiagnosticStatus.WARN, "; ".join(warnings)
        elif warning := self._recent(self.monitor.last_warning):
            level, text = DiagnosticStatus.WARN, warning
        counters = self.worker.counters if self.worker is not None else {}
        values = self._node_values(counters.values())
        if [camera.name for camera in self.cameras] == [""]:
            values |= _last_frame_values(self.cameras[0].monitor)
        statuses = [_status(level, f"{self.name}: segmentation", text, self.device, values)]
        for camera in self.cameras:
            if camera.name:
                condition, topic = conditions[camera.name], camera.topic(self.settings)
                values = {
                    "topic": topic,
                    "rate Hz": f"{camera.monitor.rate(self.now):.2f}",
                    **_counter_values([counters.get(camera.name, Counters())]),
                    **_last_frame_values(camera.monitor),
                }
                level = DiagnosticStatus.WARN if condition else DiagnosticStatus.OK
                name = f"{self.name}: camera {camera.name}"
                statuses.append(_status(level, name, condition or self.state, topic, values))
        message = DiagnosticArray(status=statuses)
        message.header.stamp = stamp
        return message

    def _recent(self, event: tuple[str, float] | None) -> str:
        return event[0] if event is not None and self.now - event[1] < EVENT_LASTS else ""

    def _condition(self, camera: Camera) -> str:
        """Return what is wrong with a camera, or ""."""
        if self.state != "active":
            return ""
        topic, monitor = camera.topic(self.settings), camera.monitor
        silence = self.now - monitor.received_at
        if silence > self.settings.stale_after:
            reason = camera.why_silent(self.settings)
            return f"no image on {topic} for {silence:.1f} s" + (f": {reason}" if reason else "")
        if monitor.stale and self.now - monitor.stale[1] < 2.0:
            return f"discarding images on {topic}: {monitor.stale[0]:.1f} s old, max_age {self.settings.max_age:g} s"
        return ""

    def _node_values(self, counters: Collection[Counters]) -> dict[str, str]:
        monitor, targets = self.monitor, self.worker.targets if self.worker is not None else None
        return {
            "state": self.state,
            "model": self.settings.model,
            "device": self.device,
            "targets": ", ".join(targets.object_ids) if targets else "",
            "targets version": str(targets.version) if targets else "",
            "rate Hz": f"{sum(camera.monitor.rate(self.now) for camera in self.cameras):.2f}",
            "images at once": str(self.worker.batch if self.worker is not None else 0),
            "memory MiB": f"{memory_mib():.0f}",
            "GPU memory MiB": f"{gpu_memory_mib():.0f}",
            "last error": monitor.last_error[0] if monitor.last_error else "",
            "last warning": monitor.last_warning[0] if monitor.last_warning else "",
            **self.values,
            **_counter_values(counters),
        }


def memory_mib() -> float:
    """Return the resident memory of the process in MiB; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError, IndexError):
        return 0.0


def gpu_memory_mib() -> float:
    """Return the memory in MiB that PyTorch has reserved on all GPUs; 0 without a GPU in use."""
    # While another thread imports torch, the module exists without its attributes.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if not getattr(cuda, "is_initialized", bool)():
        return 0.0
    assert cuda is not None
    return float(sum(cuda.memory_reserved(index) for index in range(cuda.device_count()))) / 2**20


def _status(level: bytes, name: str, text: str, hardware_id: str, values: dict[str, str]) -> DiagnosticStatus:
    status = DiagnosticStatus(level=level, name=name, message=text, hardware_id=hardware_id)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return status


def _counter_values(counters: Collection[Counters]) -> dict[str, str]:
    return {
        f"frames {entry.name}": str(sum(getattr(count, entry.name) for count in counters)) for entry in fields(Counters)
    }


def _last_frame_values(monitor: CameraMonitor) -> dict[str, str]:
    result = monitor.last_result
    if result is None:
        return {}
    header = result.frame.message.header
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
