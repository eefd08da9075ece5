"""Cameras that see a scene's objects well, and how long they expose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError
from ocdit_core.objects.viewpoints import TUDL_K, TUDL_SIZE, look_at_poses
from ocdit_core.synthesis.renderer import SceneRenderer
from ocdit_core.synthesis.room import Room

Array = NDArray[np.float64]
_PREVIEW = 4  # the preview has a quarter of the picture's width and height
_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """What cameras there are, and when they are good enough."""

    size: tuple[int, int] = (480, 640)
    """Height and width of the pictures in pixels."""
    focal: tuple[float, float] = (0.8, 1.5)
    """Focal length, against that of TUD-L's camera."""
    elevation: tuple[float, float] = (15.0, 80.0)
    """Degrees over the table."""
    distance: tuple[float, float] = (0.3, 2.0)
    """Metres to what is looked at; the nearer limit gives way to the farther one in small rooms."""
    fill: tuple[float, float] = (0.5, 1.4)
    """How much of the picture's shorter side what is looked at takes."""
    min_pixels: int = 250
    """An object counts as seen from so many pixels of its own on, in a picture of 640 x 480."""
    min_seen: float = 0.5
    """Share of the labelled objects that has to be seen."""

    def __post_init__(self) -> None:
        if min(self.size) < 64:
            raise ConfigError(f"size: {self.size} has to be at least 64 pixels a side")
        for name in ("focal", "elevation", "distance", "fill"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"{name}: {(low, high)} has to be two rising numbers above 0")
        if self.elevation[1] > 90:
            raise ConfigError(f"elevation: {self.elevation} goes over 90 degrees")
        if not 0 <= self.min_seen <= 1:
            raise ConfigError(f"min_seen: {self.min_seen} has to be in 0..1")


@dataclass(frozen=True, kw_only=True)
class SceneCamera:
    """One camera."""

    pose: Array
    """(4, 4) camera-from-world, OpenCV axes, metres."""
    K: Array
    """(3, 3) intrinsics in pixels."""
    exposure: float
    """What linear light is multiplied by before the tone curve."""


def random_camera(
    rng: np.random.Generator, room: Room, objects: Sequence[Array], settings: CameraSettings
) -> tuple[Array, Array] | None:
    """Aims a camera at a few neighbouring objects.

    Args:
        rng: source of randomness.
        room: the camera stays inside it.
        objects: points (n, 3) of each object in the world, metres; at least one object.
        settings: ranges to draw from.

    Returns:
        The pose (4, 4) camera-from-world and K (3, 3); None when the place drawn is in a wall or among the objects.
    """
    height, width = settings.size
    K = TUDL_K.copy()
    K[0] *= width / TUDL_SIZE[1]
    K[1] *= width / TUDL_SIZE[1]
    K[:2, :2] *= np.exp(rng.uniform(*np.log(settings.focal)))
    K[:2, 2] = np.array([width, height]) * (0.5 + rng.uniform(-0.04, 0.04, 2))

    centres = np.array([(points.min(axis=0) + points.max(axis=0)) / 2 for points in objects])
    first = centres[rng.integers(len(objects))]
    near = np.argsort(np.linalg.norm(centres - first, axis=1))[: int(rng.integers(1, len(objects) + 1))]
    group = np.concatenate([objects[i] for i in near])
    middle = (group.min(axis=0) + group.max(axis=0)) / 2
    reach = max(float(np.linalg.norm(group - middle, axis=1).max()), 0.06)
    wanted = 2 * K[0, 0] * reach / (min(height, width) * rng.uniform(*settings.fill))
    distance = float(np.clip(wanted, *settings.distance))
    aim = middle + rng.normal(0, 0.25, 3) * reach * (1, 1, 0.3)

    turn, up = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*settings.elevation))
    towards = np.array([np.cos(turn) * np.cos(up), np.sin(turn) * np.cos(up), np.sin(up)])
    roll = rng.uniform(-np.pi, np.pi) if rng.random() < 0.1 else rng.normal(0, 0.1)
    place = aim + distance * towards
    if (place < room.low + 0.1).any() or (place > room.high - 0.1).any() or place[2] < 0.05:
        return None
    if min(float(np.linalg.norm(points - place, axis=1).min()) for points in objects) < 0.15:
        return None
    return look_at_poses(towards, distance, roll, centre=aim)[0], K


def choose_cameras(
    renderer: SceneRenderer,
    rng: np.random.Generator,
    room: Room,
    objects: Sequence[Array],
    labels: Sequence[int],
    count: int,
    settings: CameraSettings,
) -> list[SceneCamera]:
    """Draws cameras for the scene that is staged, and keeps those that see enough.

    Args:
        renderer: with the scene.
        rng: source of randomness.
        room: of the scene.
        objects: points (n, 3) of each object that may be looked at, metres.
        labels: of the objects that count.
        count: how many cameras are wanted.
        settings: what to draw, and what is enough.

    Returns:
        At most `count` cameras: a few tries are made for each.
    """
    height, width = settings.size
    small = (height // _PREVIEW, width // _PREVIEW)
    scale = np.diag([small[1] / width, small[0] / height, 1.0])
    needed = settings.min_pixels * height * width / (480 * 640) / _PREVIEW**2
    cameras = []
    for _ in range(count):
        for _ in range(_TRIES):
            drawn = random_camera(rng, room, objects, settings)
            if drawn is None:
                continue
            pose, K = drawn
            light, seen = renderer.preview(pose, scale @ K, small)
            if _sees_enough(seen, labels, needed, settings.min_seen):
                cameras.append(SceneCamera(pose=pose, K=K, exposure=automatic_exposure(light, rng)))
                break
    return cameras


def _sees_enough(seen: NDArray[np.uint8], labels: Sequence[int], needed: float, share: float) -> bool:
    pixels = np.bincount(seen.reshape(-1), minlength=256)[list(labels)]
    # One object that fills the picture shows nothing but its paint.
    return bool((pixels >= needed).mean() >= share and pixels.max() < 0.5 * seen.size)


def automatic_exposure(light: NDArray[np.float32], rng: np.random.Generator) -> float:
    """Returns an exposure as a camera would choose it: middle tones in the middle, without white patches.

    Args:
        light: (h, w, 3) linear, of a preview.
        rng: how bright this camera likes its pictures.
    """
    luma = light @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    middle = float(np.exp(np.log(np.maximum(luma, 1e-4)).mean()))
    brightest = max(float(np.percentile(luma, 97)), 1e-4)
    return float(min(rng.uniform(0.13, 0.24) / middle, 0.8 / brightest))
