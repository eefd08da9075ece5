"""What /diagnostics says about the node."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from ocdit_ros.worker import Counters

if TYPE_CHECKING:
    from ocdit_ros.camera import Camera, CameraMonitor
    from ocdit_ros.parameters import Settings
    from ocdit_ros.worker import Worker

EVENT_LASTS = 10.0
"""Seconds for which an error of one frame, or a warning, sets the level of the status."""


@dataclass
class Monitor:
    """State of the node: why the last transition failed, and the last error and warning, with time.monotonic().

    `seen` holds when each object was last found since activation.
    """

    failure: str = ""
    last_error: tuple[str, float] | None = None
    last_warning: tuple[str, float] | None = None
    seen: dict[str, float] = field(default_factory=dict)


def report(
    name: str,
    state: str,
    settings: Settings,
    monitor: Monitor,
    cameras: Sequence[Camera],
    worker: Worker | None,
    values: Mapping[str, str],
) -> list[DiagnosticStatus]:
    """Return the node's status, whose level is the worst of all, and one for each camera that has a name.

    Args:
        name: fully qualified name of the node.
        state: label of the lifecycle state, or paused.
        settings: parameters.
        monitor: state of the node.
        cameras: cameras; none before configure.
        worker: worker; None before configure.
        values: further values of the node, "device" among them.
    """
    now = time.monotonic()
    conditions = {camera.name: _condition(camera, settings, now) if state == "active" else "" for camera in cameras}
    error, warning = (
        event[0] if event is not None and now - event[1] < EVENT_LASTS else ""
        for event in (monitor.last_error, monitor.last_warning)
    )
    level, text = DiagnosticStatus.OK, state
    if monitor.failure or error:
        level, text = DiagnosticStatus.ERROR, monitor.failure or error
    elif wrong := "; ".join(filter(None, conditions.values())) or warning:
        level, text = DiagnosticStatus.WARN, wrong
    targets = worker.targets if worker is not None else None
    counters = worker.counters if worker is not None else {}
    own = {
        "state": state,
        "model": settings.model,
        "targets": ", ".join(targets.object_ids) if targets else "",
        "targets version": str(targets.version) if targets else "",
        # Whoever looks for an object sees here that it has not been found for long.
        "last seen s": ", ".join(
            f"{name} {f'{now - monitor.seen[name]:.1f}' if name in monitor.seen else 'never'}"
            for name in (targets.object_ids if targets else ())
        ),
        "rate Hz": f"{sum(camera.monitor.rate(now) for camera in cameras):.2f}",
        "images at once": str(worker.batch if worker is not None else 0),
        "memory MiB": f"{memory_mib():.0f}",
        "GPU memory MiB": f"{gpu_memory_mib():.0f}",
        "last error": monitor.last_error[0] if monitor.last_error else "",
        "last warning": monitor.last_warning[0] if monitor.last_warning else "",
        **values,
        **_counter_values(counters.values()),
    }
    if [camera.name for camera in cameras] == [""]:
        own |= _last_frame_values(cameras[0].monitor)
    statuses = [_status(level, f"{name}: segmentation", text, values["device"], own)]
    for camera in cameras:
        if camera.name:
            condition, topic = conditions[camera.name], camera.topic()
            own = {
                "topic": topic,
                "rate Hz": f"{camera.monitor.rate(now):.2f}",
                **_counter_values([counters.get(camera.name, Counters())]),
                **_last_frame_values(camera.monitor),
            }
            level = DiagnosticStatus.WARN if condition else DiagnosticStatus.OK
            statuses.append(_status(level, f"{name}: camera {camera.name}", condition or state, topic, own))
    return statuses


def _condition(camera: Camera, settings: Settings, now: float) -> str:
    """Return what is wrong with a camera of an active node, or ""."""
    topic, monitor = camera.topic(), camera.monitor
    silence = now - monitor.received_at
    if silence > settings.stale_after:
        reason = camera.why_silent()
        return f"no image on {topic} for {silence:.1f} s" + (f": {reason}" if reason else "")
    if monitor.stale and now - monitor.stale[1] < 2.0:
        return f"discarding images on {topic}: {monitor.stale[0]:.1f} s old, max_age {settings.max_age:g} s"
    return monitor.calibration or monitor.depth


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
    if monitor.lifting is not None:
        timings["3D"] = monitor.lifting
    return {
        "frame id": header.frame_id,
        "frame stamp": f"{header.stamp.sec}.{header.stamp.nanosec:09d}",
        "frame targets": ", ".join(result.targets.object_ids),
        "frame targets version": str(result.targets.version),
        "valid depth": ", ".join(f"{name} {fraction:.2f}" for name, fraction in monitor.valid_depth.items()),
        **{f"{stage} ms": f"{1000 * seconds:.1f}" for stage, seconds in timings.items()},
    }
