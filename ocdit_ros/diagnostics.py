"""What /diagnostics says about the node: one status, made from a snapshot."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocdit_ros import pip_home

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from ocdit_ros.worker_types import Counters, Result, TargetSet

pip_home.prepare()

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue  # noqa: E402  (needs the prefix)

ERROR_LASTS = 10.0
"""Seconds for which an error of one frame colours the status."""


@dataclass
class Monitor:
    """What the node remembers between two reports; times are time.monotonic() seconds.

    Attributes:
        processed_at: when the last frames were done, for the rate.
        received_at: when the last image came in; the time of activation before the first one.
        last_error: text and time of the last error of a frame or a target change.
        failure: why the last transition failed; it stands until one succeeds.
        last_result: the last frame's result, for its stages.
    """

    processed_at: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    received_at: float = 0.0
    last_error: tuple[str, float] | None = None
    failure: str = ""
    last_result: Result | None = None

    def rate(self, now: float) -> float:
        """Return processed frames per second over the last 30 frames, falling while none comes."""
        if len(self.processed_at) < 2:
            return 0.0
        return (len(self.processed_at) - 1) / max(
            self.processed_at[-1] - self.processed_at[0],
            now - self.processed_at[0] if now - self.processed_at[-1] > 5.0 else 0.0,
            1e-6,
        )


def memory_mib() -> float:
    """Return the process's resident memory in MiB; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError, IndexError):
        return 0.0


def report(
    *,
    name: str,
    stamp: Time,
    now: float,
    state: str,
    monitor: Monitor,
    counters: Counters | None,
    targets: TargetSet | None,
    device: str,
    model: str,
    stale_after: float,
    image_topic: str,
    publishers: int,
) -> DiagnosticArray:
    """Return the diagnostics of one moment.

    Args:
        name: the node's fully qualified name.
        stamp: ROS time of the report.
        now: time.monotonic().
        state: label of the lifecycle state.
        monitor: what has happened.
        counters: of the worker; None before configure.
        targets: the objects looked for; None before configure.
        device: where the network runs.
        model: its name.
        stale_after: seconds without an image that call for a warning.
        image_topic: resolved name of the input.
        publishers: how many publish it.
    """
    level, message = DiagnosticStatus.OK, state
    age = now - monitor.received_at
    if monitor.failure:
        level, message = DiagnosticStatus.ERROR, monitor.failure
    elif monitor.last_error is not None and now - monitor.last_error[1] < ERROR_LASTS:
        level, message = DiagnosticStatus.ERROR, monitor.last_error[0]
    elif state == "active" and age > stale_after:
        level = DiagnosticStatus.WARN
        hint = "" if publishers else ": nobody publishes it"
        message = f"no image on {image_topic} for {age:.1f} s{hint}"
    values = {
        "state": state,
        "model": model,
        "device": device,
        "targets": ", ".join(targets.object_ids) if targets else "",
        "rate Hz": f"{monitor.rate(now):.2f}",
        "memory MiB": f"{memory_mib():.0f}",
        "last error": monitor.last_error[0] if monitor.last_error else "",
    }
    if counters is not None:
        values |= {
            "frames received": str(counters.received),
            "frames processed": str(counters.processed),
            "frames dropped": str(counters.dropped),
            "frames failed": str(counters.failed),
        }
    if monitor.last_result is not None:
        values |= _of_frame(monitor.last_result)
    status = DiagnosticStatus(level=level, name=f"{name}: segmentation", message=message, hardware_id=device)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    message_out = DiagnosticArray(status=[status])
    message_out.header.stamp = stamp
    return message_out


def _of_frame(result: Result) -> dict[str, str]:
    header = result.frame.header
    return {
        "frame id": header.frame_id,
        "frame stamp": f"{header.stamp.sec}.{header.stamp.nanosec:09d}",
        "frame targets": ", ".join(result.targets.object_ids),
        "frame targets version": str(result.targets.version),
        **{f"{stage} ms": f"{1000 * seconds:.1f}" for stage, seconds in result.timings.items()},
    }
