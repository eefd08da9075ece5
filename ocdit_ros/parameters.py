"""The node's parameters: each with its description, its type, its range, and when it can change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ocdit_ros import pip_home

if TYPE_CHECKING:
    from rclpy.node import Node

pip_home.prepare()

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor  # noqa: E402  (needs the prefix)

When = Literal["always", "not active", "unconfigured", "start"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One parameter.

    Attributes:
        default: its value when nobody sets it; gives the type as well.
        description: what it does, in one line.
        when: in which states of the node it can change.
        bounds: smallest and largest value of a number.
        check: returns why a value is refused, or nothing.
    """

    default: Any
    description: str
    when: When
    bounds: tuple[float, float] | None = None
    check: Callable[[Any], str] | None = None

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


def _one_of(*values: str) -> Callable[[str], str]:
    return lambda value: "" if value in values else f"{value!r} is not one of {', '.join(values)}"


def _not_empty(value: str) -> str:
    return "" if value.strip() else "it must not be empty"


def _device(value: str) -> str:
    return "" if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) else f"{value!r} is not auto, cpu, cuda or cuda:N"


def _camera_names(value: list[str]) -> str:
    found = names(value)
    bad = [name for name in found if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)]
    if bad:
        return f"{bad[0]!r} is no part of a topic's name: a letter, then letters, digits and _"
    twice = [name for name in found if found.count(name) > 1]
    return f"{twice[0]!r} is named twice" if twice else ""


_reliability = _one_of("best_effort", "reliable")

SPECS: dict[str, Spec] = {
    "model": Spec(
        default="ocdit-tiny",
        description="An embedded model's name, or a folder with config and weights",
        when="unconfigured",
        check=_not_empty,
    ),
    "device": Spec(
        default="auto",
        description="Where the network runs: auto, cpu, cuda or cuda:N",
        when="unconfigured",
        check=_device,
    ),
    "library": Spec(default="", description="Folder of rendered objects, made by `ocdit render`", when="unconfigured"),
    "preset": Spec(
        default="",
        description="Settings: fast (as the model recommends) or paper (as published); empty: fast",
        when="unconfigured",
    ),
    # [""], because an empty list has no type in ROS 2.
    "inference_settings": Spec(
        default=[""],
        description="Further settings of docs/inference.md, each as 'refine.rounds=1'",
        when="unconfigured",
    ),
    "compute_threads": Spec(
        default=0,
        description="CPU threads of the network; 0: PyTorch's choice, as a rule all cores",
        when="unconfigured",
        bounds=(0, 256),
    ),
    "target_objects": Spec(
        default=[""], description="Names of the objects to look for; empty: all of the library", when="always"
    ),
    "score_threshold": Spec(
        default=-1.0,
        description="Instances with a lower score are not published; below 0: what the model recommends",
        when="always",
        bounds=(-1.0, 1.0),
    ),
    "mask_object": Spec(
        default="", description="The object whose mask is published on ~/mask; empty: none", when="always"
    ),
    "tracking": Spec(
        default=False,
        description="An instance keeps its number from frame to frame",
        when="unconfigured",
    ),
    "cameras": Spec(
        default=[""],
        description="Names of several cameras, with topics NAME/image and ~/NAME/...; empty: one, on image",
        when="unconfigured",
        check=_camera_names,
    ),
    "image_transport": Spec(
        default="raw",
        description="raw (sensor_msgs/Image on image) or compressed (sensor_msgs/CompressedImage on image/compressed)",
        when="not active",
        check=_one_of("raw", "compressed"),
    ),
    "image_reliability": Spec(
        default="best_effort",
        description="Reliability of the image subscription: best_effort (fits every camera) or reliable",
        when="not active",
        check=_reliability,
    ),
    "image_depth": Spec(
        default=1,
        description="Images that the middleware keeps for the node; more than 1 helps reliable images of many parts",
        when="not active",
        bounds=(1, 100),
    ),
    "output_reliability": Spec(
        default="reliable",
        description="Reliability of the results: reliable (fits every listener) or best_effort",
        when="unconfigured",
        check=_reliability,
    ),
    "output_depth": Spec(
        default=5,
        description="Results that the middleware keeps for slow listeners",
        when="unconfigured",
        bounds=(1, 1000),
    ),
    "max_age": Spec(
        default=0.0,
        description="Images are discarded whose stamp is older than this many seconds when their turn comes; 0: none",
        when="always",
        bounds=(0.0, 3600.0),
    ),
    "fresh_within": Spec(
        default=0.003,
        description="An image that has waited for more seconds gives way to the next if that is due soon; 0: never",
        when="always",
        bounds=(0.0, 1.0),
    ),
    "stale_after": Spec(
        default=5.0,
        description="Seconds without an image after which /diagnostics warns",
        when="always",
        bounds=(0.1, 3600.0),
    ),
    "diagnostics_every_frame": Spec(
        default=False,
        description="Publish /diagnostics after every processed frame too, not only once a second",
        when="always",
    ),
    "autostart": Spec(
        default=False,
        description="Configure and activate without being asked; launch files do it by events",
        when="start",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of the parameters above, by the same names."""

    model: str
    device: str
    library: str
    preset: str
    inference_settings: tuple[str, ...]
    compute_threads: int
    target_objects: tuple[str, ...]
    score_threshold: float
    mask_object: str
    tracking: bool
    cameras: tuple[str, ...]
    image_transport: str
    image_reliability: str
    image_depth: int
    output_reliability: str
    output_depth: int
    max_age: float
    fresh_within: float
    stale_after: float
    diagnostics_every_frame: bool
    autostart: bool


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
    """Return parameters' values as `Settings` holds them."""
    return {name: names(value) if isinstance(SPECS[name].default, list) else value for name, value in values.items()}


def names(value: Any) -> tuple[str, ...]:
    """Return names without the empty ones that stand for an empty list."""
    return tuple(name for name in value if name.strip())


def refusal(name: str, value: Any, state: str) -> str:
    """Return why a value cannot be set in a state of the node (its lifecycle label), or "".

    Types and ranges are none of it: rclpy checks them by the descriptor.
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
