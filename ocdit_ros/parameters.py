"""The node's parameters: each with its description, type, range, and when it can change."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

from ocdit_ros.depth import SLOP

if TYPE_CHECKING:
    from rclpy.node import Node

When = Literal["always", "not active", "unconfigured", "start"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One parameter.

    Attributes:
        default: default value, which also gives the type.
        description: one line.
        when: states of the node in which it can change.
        bounds: smallest and largest value of a number.
        check: returns why a value is refused, or "".
        read: converts a value to that of `Settings`; default: a list of names to a tuple.
    """

    default: Any
    description: str
    when: When
    bounds: tuple[float, float] | None = None
    check: Callable[[Any], str] | None = None
    read: Callable[[Any], Any] | None = None

    def descriptor(self) -> ParameterDescriptor:
        """Return the ROS descriptor."""
        changes = {"always": "at any time", "start": "at the start only"}.get(self.when, f"while {self.when}")
        descriptor = ParameterDescriptor(description=f"{self.description} (can change: {changes})")
        descriptor.read_only = self.when == "start"
        if self.bounds is not None:
            low, high = self.bounds
            if isinstance(self.default, float):
                descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
            else:
                descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
        return descriptor


def _parameter(default: Any, when: When, description: str, **more: Any) -> Any:
    return field(metadata={"spec": Spec(default=default, when=when, description=description, **more)})


def _one_of(*values: str) -> Callable[[str], str]:
    return lambda value: "" if value in values else f"{value!r} is not one of {', '.join(values)}"


def _not_empty(value: str) -> str:
    return "" if value.strip() else "must not be empty"


def _device(value: str) -> str:
    return "" if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) else f"{value!r} is not auto, cpu, cuda or cuda:N"


def _camera_names(value: list[str]) -> str:
    found = names(value)
    bad = [name for name in found if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)]
    if bad:
        return f"{bad[0]!r} cannot be part of a topic name: use a letter, then letters, digits and _"
    twice = [name for name in found if found.count(name) > 1]
    return f"{twice[0]!r} is named twice" if twice else ""


def _by_object(value: list[str]) -> dict[str, float]:
    """Return the numbers of ["mug=0.7", ...] by name."""
    return {name: float(number) for name, _, number in (item.rpartition("=") for item in names(value))}


def _numbers_by_object(low: float, high: float, *, whole: bool = False) -> Callable[[list[str]], str]:
    def check(value: list[str]) -> str:
        for item in names(value):
            name, _, text = item.rpartition("=")
            try:
                number = float(text)
            except ValueError:
                number = math.nan
            if not name or not low <= number <= high or (whole and number != int(number)):
                kind = "a whole number" if whole else "a number"
                return f"{item!r} is not OBJECT=NUMBER with {kind} from {low:g} to {high:g}, such as mug=1"
        return ""

    return check


def _region(value: list[int]) -> str:
    if len(value) == 4 and (not any(value) or (min(value) >= 0 and min(value[2:]) > 0)):
        return ""
    return f"{list(value)} is not x, y, width, height in pixels; [0, 0, 0, 0] is the whole image"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of all parameters."""

    model: str = _parameter(
        "ocdit-small",
        "unconfigured",
        "Name of an embedded model, or a folder with config and weights",
        check=_not_empty,
    )
    device: str = _parameter("auto", "unconfigured", "Device of the network: auto, cpu, cuda or cuda:N", check=_device)
    library: str = _parameter("", "unconfigured", "Object library: folder made by `ocdit render`")
    preset: str = _parameter(
        "", "unconfigured", "Inference preset: fast (the model's recommendation) or paper (as published); empty: fast"
    )
    # [""], because an empty list has no type in ROS 2.
    inference_settings: tuple[str, ...] = _parameter(
        [""], "unconfigured", "Further settings of docs/inference.md, each as 'refine.rounds=1'"
    )
    compute_threads: int = _parameter(
        0,
        "unconfigured",
        "CPU threads of the network; 0: one for each core, less one where there are three or more",
        bounds=(0, 256),
    )
    target_objects: tuple[str, ...] = _parameter(
        [""], "always", "Names of the objects to look for; empty: all objects of the library"
    )
    score_threshold: float = _parameter(
        -1.0, "always", "Minimum score of an instance; below 0: the model's recommendation", bounds=(-1.0, 1.0)
    )
    object_thresholds: Mapping[str, float] = _parameter(
        [""],
        "always",
        "Minimum scores of single objects, instead of score_threshold, each as 'mug=0.7'",
        check=_numbers_by_object(0, 1),
        read=_by_object,
    )
    object_limits: Mapping[str, float] = _parameter(
        [""],
        "always",
        "Maximum numbers of instances of single objects, each as 'mug=1'",
        check=_numbers_by_object(0, 1000, whole=True),
        read=_by_object,
    )
    region_of_interest: tuple[int, int, int, int] | None = _parameter(
        [0, 0, 0, 0],
        "always",
        "Part of each camera's image to segment: x, y, width, height in pixels; zeros: all of it",
        check=_region,
        read=lambda value: tuple(value) if any(value) else None,
    )
    max_rate: float = _parameter(
        0.0, "always", "Maximum number of frames of each camera per second; 0: no limit", bounds=(0, 1000)
    )
    depth_slop: float = _parameter(
        SLOP, "always", "Largest difference of the stamps of an image and its depth (s)", bounds=(0, 10)
    )
    estimate_poses: bool = _parameter(
        False,
        "always",
        "With depth, estimate approximate poses, which complete the 3D boxes and initialise a pose refiner; takes time",
    )
    organized_points: bool = _parameter(
        False, "always", "~/points has a point for each pixel of the image, not only those of the instances"
    )
    publish_tf: bool = _parameter(
        False, "unconfigured", "Publish the frame object_<id> of each instance on /tf; use it with tracking"
    )
    target_frame: str = _parameter(
        "", "unconfigured", "Frame of the 3D results, by tf2; empty: the camera's, as without tf2 or its transform"
    )
    mask_object: str = _parameter("", "always", "Object whose mask is published on ~/mask; empty: none")
    tracking: bool = _parameter(False, "unconfigured", "Track instances: an instance keeps its id from frame to frame")
    cameras: tuple[str, ...] = _parameter(
        [""], "unconfigured", "Several cameras, with topics NAME/image and ~/NAME/...; empty: one", check=_camera_names
    )
    image_transport: str = _parameter(
        "raw",
        "not active",
        "raw (topic image) or compressed (topic image/compressed)",
        check=_one_of("raw", "compressed"),
    )
    image_reliability: str = _parameter(
        "best_effort",
        "not active",
        "Reliability of the image subscription: best_effort (fits every camera) or reliable",
        check=_one_of("best_effort", "reliable"),
    )
    max_age: float = _parameter(
        0.0, "always", "Discard images with a stamp older than this (s) at their turn; 0: never", bounds=(0, 3600)
    )
    stale_after: float = _parameter(
        5.0, "always", "Seconds without an image after which /diagnostics warns", bounds=(0.1, 3600)
    )
    autostart: bool = _parameter(
        False, "start", "Configure and activate without being asked; the launch files do it by events"
    )


SPECS: dict[str, Spec] = {entry.name: entry.metadata["spec"] for entry in fields(Settings)}
PATHS = ("model", "library")


def declare(node: Node) -> None:
    """Declare every parameter.

    Raises:
        rclpy.exceptions.ParameterException: a value given at the start has another type or is out of range.
    """
    for name, spec in SPECS.items():
        node.declare_parameter(name, spec.default, spec.descriptor())


def read(node: Node) -> Settings:
    """Return the present values."""
    return Settings(**typed({name: node.get_parameter(name).value for name in SPECS}))


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """Return parameter values as `Settings` holds them: tuples of names, and paths with ~ expanded."""
    converted = dict(values)
    for name, value in values.items():
        read = SPECS[name].read
        if read is not None:
            converted[name] = read(value)
        elif isinstance(SPECS[name].default, list):
            converted[name] = names(value)
        elif name in PATHS:
            converted[name] = os.path.expanduser(value)
    return converted


def names(value: Any) -> tuple[str, ...]:
    """Return names without the empty ones that stand for an empty list."""
    return tuple(name for name in value if name.strip())


def refusal(name: str, value: Any, state: str) -> str:
    """Return why a value cannot be set in a lifecycle state of the node, or "".

    rclpy checks types and ranges by the descriptor.
    """
    spec = SPECS.get(name)
    if spec is None:
        return ""
    allowed = {"unconfigured": ("unconfigured",), "not active": ("unconfigured", "inactive")}.get(spec.when)
    if allowed and state not in allowed:
        way = "deactivate it" if spec.when == "not active" else "deactivate and clean it up"
        return f"{name} cannot change while the node is {state}: {way} first"
    reason = spec.check(value) if spec.check else ""
    return f"{name}: {reason}" if reason else ""
