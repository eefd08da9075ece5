"""Videos composed of sprites that move over a background, with the exact mask of each in every frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.painting import photograph, random_background
from ocdit_core.errors import ConfigError
from ocdit_core.objects.renderer import MeshHandle, Renderer
from ocdit_core.objects.templates import zoom_cameras
from ocdit_core.objects.viewpoints import TUDL_K, fitting_distance, look_at_poses

Sprite = NDArray[np.uint8]


def render_sprite(renderer: Renderer, handle: MeshHandle, rng: np.random.Generator, size: int) -> Sprite:
    """Render an object from a random direction: (size, size, 4) RGBA, colours multiplied by coverage."""
    surface = handle.surface
    distance = fitting_distance(surface.radius) * 2
    direction = rng.normal(size=(1, 3))
    direction /= np.linalg.norm(direction)
    poses = look_at_poses(direction, distance, rng.normal(0, 0.25), centre=surface.centre)
    _, K = zoom_cameras(surface.vertices, poses, TUDL_K, size=size, margin=0.02)
    return renderer.render(handle, poses[0], K[0], (size, size)).rgba[0]


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How a video looks.

    Attributes:
        frames: length.
        image_size: height and width in pixels.
        object_size: smallest and largest size of an object as a fraction of the image's shorter side.
        speed: mean displacement per frame, as a fraction of the image's shorter side.
        gone: probability for each object to be gone for a fifth of the video.
        effects: strength of light, blur, noise and the like, the same in all frames.
    """

    frames: int = 60
    image_size: tuple[int, int] = (480, 640)
    object_size: tuple[float, float] = (0.25, 0.5)
    speed: float = 0.015
    gone: float = 0.0
    effects: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.object_size
        if not 0 < low <= high <= 1:
            raise ConfigError(f"object_size: {self.object_size} must be two ascending numbers in (0, 1]")
        if self.frames < 1 or min(self.image_size) < 16:
            raise ConfigError(f"frames: {self.frames} must be 1 or more, image_size: {self.image_size} 16 or more")


@dataclass(frozen=True)
class VideoFrame:
    """A frame and its ground truth.

    Attributes:
        image: (H, W, 3) sRGB.
        masks: (N, H, W) visible part of each sprite (modal), in the order in which they were given.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def compose_video(
    rng: np.random.Generator, sprites: Sequence[Sprite], settings: VideoSettings, gone: Sequence[range] | None = None
) -> Iterator[VideoFrame]:
    """Let sprites glide over a background; a later one covers an earlier one.

    Args:
        rng: source of randomness; the same state gives the same video.
        sprites: RGBA (h, w, 4) uint8, colours multiplied by coverage.
        settings: how the video looks.
        gone: the frames in which each sprite is not there; by default they are drawn.
    """
    background = random_background(rng, settings.image_size, clutter=0.3)
    paths = [_Path.draw(rng, sprite, settings) for sprite in sprites]
    away = [_gone(rng, settings) for _ in sprites]
    seed = int(rng.integers(2**31))
    for frame in range(settings.frames):
        image = background.copy()
        labels = np.full(settings.image_size, -1, np.int16)
        for number, (path, out) in enumerate(zip(paths, away if gone is None else gone, strict=True)):
            if frame not in out:
                layer = path.draw_at(frame, settings.image_size)
                image = image * (1 - layer[..., 3:] / np.float32(255)) + layer[..., :3]
                labels[layer[..., 3] > 127] = number
        masks = labels[None] == np.arange(len(sprites), dtype=np.int16)[:, None, None]
        photo = photograph(np.random.default_rng(seed), image.astype(np.float32), strength=settings.effects)
        noisy = photo + rng.normal(0, 3 * settings.effects, photo.shape)
        yield VideoFrame(np.clip(noisy, 0, 255).astype(np.uint8), masks)


def _gone(rng: np.random.Generator, settings: VideoSettings) -> range:
    length = settings.frames // 5
    begin = int(rng.integers(length, settings.frames - length + 1))
    return range(begin, begin + length) if rng.random() < settings.gone else range(0)


@dataclass(frozen=True)
class _Path:
    """Back and forth along both axes, a little turning and a little nearer and further, each in its own time.

    Attributes:
        centre: (2,) x, y in pixels.
        reach: (4,) of x, y in pixels, of the turn in degrees, of the size as a fraction.
        speed: (4,) radians a frame.
        phase: (4,) radians.
    """

    sprite: Sprite
    centre: NDArray[np.float64]
    reach: NDArray[np.float64]
    speed: NDArray[np.float64]
    phase: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, sprite: Sprite, settings: VideoSettings) -> _Path:
        height, width = settings.image_size
        size = min(height, width) * np.exp(rng.uniform(*np.log(settings.object_size)))
        scale = size / max(sprite.shape[:2])
        to = (max(2, round(sprite.shape[1] * scale)), max(2, round(sprite.shape[0] * scale)))
        small = cv2.resize(sprite, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        free = np.maximum(np.array([width, height]) - size, 0)
        reach = free / 2 * rng.uniform(0.2, 0.6, 2)
        centre = size / 2 + reach + rng.random(2) * (free - 2 * reach)
        # A sine's mean speed is 2 / pi of its largest; two of them add as the sides of a right angle do.
        speed = settings.speed * min(height, width) / np.sqrt(2) * np.pi / 2 / np.maximum(reach, 1)
        slow = rng.uniform(0.02, 0.06, 2)
        return cls(
            sprite=np.asarray(small, np.uint8),
            centre=centre,
            reach=np.array([*reach, rng.uniform(0, 20), rng.uniform(0, 0.1)]),
            speed=np.array([*speed, *slow]),
            phase=rng.uniform(0, 2 * np.pi, 4),
        )

    def draw_at(self, frame: int, image_size: tuple[int, int]) -> NDArray[np.float32]:
        """(H, W, 4) float32, the sprite where it is in a frame."""
        x, y, turn, nearer = self.reach * np.sin(self.speed * frame + self.phase)
        middle = (self.sprite.shape[1] / 2 - 0.5, self.sprite.shape[0] / 2 - 0.5)
        matrix = np.asarray(cv2.getRotationMatrix2D(middle, float(turn), 1 + float(nearer)), np.float64)
        matrix[:, 2] += self.centre + np.array([x, y]) - middle
        layer = cv2.warpAffine(self.sprite, matrix, image_size[::-1], flags=cv2.INTER_LINEAR)
        return np.asarray(layer, np.float32)
