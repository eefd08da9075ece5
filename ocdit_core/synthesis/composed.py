"""Composed scenes: sprites pasted on painted backgrounds, with shadows, camera effects and exact masks.

Sprites are RGBA images whose colours are multiplied by coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.painting import random_background
from ocdit_core.errors import ConfigError

Rng = np.random.Generator
Image = NDArray[np.float32]
Sprite = NDArray[np.uint8]

ROTATION = 25.0
"""Standard deviation of a sprite's in-plane rotation, degrees."""
MIN_VISIBLE = 0.3
"""Objects are placed so that this fraction of each stays visible, where there is room."""
CUT_PROBABILITY = 0.12
"""Probability that an object may reach outside the image."""
SHADOW_PROBABILITY = 0.85
"""Probability that a scene has shadows."""
CLUTTER_PROBABILITY = 0.5
"""Probability of flat shapes in the background."""

_EMPTY = -1
_PLACES = 10  # that are tried for a sprite


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How composed scenes look.

    Attributes:
        image_size: height and width in pixels.
        object_size: range of an object's size, relative to the shorter side of the image; drawn log-uniformly.
        effects: strength of light, blur, noise and the like; 0 is a clean image.
    """

    image_size: tuple[int, int] = (144, 192)
    object_size: tuple[float, float] = (0.15, 0.6)
    effects: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.object_size
        if not 0 < low <= high:
            raise ConfigError(f"object_size: {self.object_size} has to be two rising numbers above 0")
        if min(self.image_size) < 16:
            raise ConfigError(f"image_size: {self.image_size} has to be 16 pixels or more a side")


@dataclass(frozen=True)
class Scene:
    """A composed image with its ground truth.

    Attributes:
        image: (H, W, 3) uint8 sRGB.
        masks: (N, H, W) bool, the visible part of each sprite, in the order in which they were given.
        visibility: (N,) visible fraction of each sprite, including its part outside the image.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    visibility: NDArray[np.float32]


def compose_scene(
    rng: Rng,
    sprites: Sequence[Sprite],
    settings: SceneSettings,
    *,
    min_visible: float = MIN_VISIBLE,
    cut_probability: float = CUT_PROBABILITY,
) -> Scene:
    """Put sprites on a background.

    Args:
        rng: source of randomness; the same state gives the same scene.
        sprites: (h, w, 4) uint8 each, tightly cropped; sizes may differ.
        settings: how the scene looks.
        min_visible: see MIN_VISIBLE.
        cut_probability: see CUT_PROBABILITY.
    """
    height, width = settings.image_size
    image = random_background(rng, (height, width), clutter=CLUTTER_PROBABILITY)
    labels = np.full((height, width), _EMPTY, np.int16)
    placed = _Placement(labels, len(sprites))
    shadows = _Shadows.draw(rng) if rng.random() < SHADOW_PROBABILITY else None

    order = rng.permutation(len(sprites))
    # Lower in the image is usually nearer.
    rows = rng.uniform(0, 1, len(sprites))
    if rng.random() < 0.7:
        rows = np.sort(rows)
    for row, index in zip(rows, order, strict=True):
        size = min(height, width) * np.exp(rng.uniform(*np.log(settings.object_size)))
        sprite = _posed(rng, sprites[index], size)
        x, y = placed.choose(rng, sprite, float(row), min_visible, cut_probability)
        if shadows is not None:
            shadows.cast(image, sprite[..., 3], x, y)
        _paste(rng, image, sprite, x, y)
        placed.add(int(index), sprite[..., 3] > 127, x, y)

    masks = labels[None] == np.arange(len(sprites), dtype=np.int16)[:, None, None]
    visibility = placed.seen / np.maximum(placed.area, 1)
    return Scene(photograph(rng, image, strength=settings.effects), masks, visibility.astype(np.float32))


def photograph(rng: Rng, image: Image, *, strength: float = 1.0, blur: float | None = None) -> NDArray[np.uint8]:
    """Add what a camera adds: uneven light, exposure, white balance, contrast, blur, noise, JPEG.

    Args:
        rng: source of randomness.
        image: (H, W, 3) float32 sRGB in 0..255; it is changed.
        strength: 0 leaves the image as it is, 1 is the usual amount.
        blur: standard deviation in pixels of the strongest blur; default: it grows with the image.

    Returns:
        (H, W, 3) uint8.
    """
    if strength <= 0:
        return np.clip(image, 0, 255).astype(np.uint8)
    height, width = image.shape[:2]
    unit = min(height, width) / 144 if blur is None else blur

    gain = np.exp(rng.normal(0, 0.18 * strength)) * np.exp(rng.normal(0, 0.06 * strength, 3))
    if rng.random() < 0.6:  # light falls off towards one side
        corners = np.exp(rng.normal(0, 0.22 * strength, (2, 2))).astype(np.float32)
        image *= cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    image *= gain.astype(np.float32)
    if rng.random() < 0.5:
        grey = image.mean(axis=2, keepdims=True)
        image += np.float32(rng.uniform(-0.5, 0.25) * strength) * (image - grey)
    if rng.random() < 0.5:
        image -= 110
        image *= np.float32(np.exp(rng.normal(0, 0.18 * strength)))
        image += np.float32(110 + rng.normal(0, 8 * strength))

    if rng.random() < 0.35 * strength:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), unit * rng.uniform(0.3, 1.0)), dtype=np.float32)
    elif rng.random() < 0.1 * strength:
        image = _motion_blur(rng, image, unit)
    if rng.random() < 0.75:
        sigma = strength * 8 * rng.random() ** 2
        noise = rng.standard_normal((height, width, 1 if rng.random() < 0.3 else 3), dtype=np.float32)
        image = image + np.float32(sigma) * noise
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.4 * strength:
        quality = int(rng.integers(45, 96))
        _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return pixels


def _motion_blur(rng: Rng, image: Image, unit: float) -> Image:
    length = max(2, round(unit * rng.uniform(2, 4)))
    kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    low, high = np.round(length - reach).astype(int), np.round(length + reach).astype(int)
    cv2.line(kernel, low.tolist(), high.tolist(), 1.0, 1)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), dtype=np.float32)


def random_recolouring(rng: Rng) -> NDArray[np.float32]:
    """Draw a colour map (3, 3): channel permutation, hue rotation, saturation and gains; black stays black.

    Applied to all templates and sprites of an object (`recolour`), it makes another object.
    """
    matrix = np.eye(3)
    if rng.random() < 0.5:
        matrix = matrix[rng.permutation(3)]
    if rng.random() < 0.7:  # rotate about the grey axis
        angle = rng.uniform(-np.pi, np.pi)
        c, s = np.cos(angle), np.sin(angle) / 3**0.5
        a, b = c + (1 - c) / 3, (1 - c) / 3
        matrix = np.array([[a, b - s, b + s], [b + s, a, b - s], [b - s, b + s, a]]) @ matrix
    saturation = rng.uniform(0.5, 1.2)
    matrix = (saturation * np.eye(3) + (1 - saturation) / 3) @ matrix
    gains = rng.uniform(0.75, 1.15) * rng.uniform(0.88, 1.12, 3)
    return np.asarray(gains[:, None] * matrix, dtype=np.float32)


def recolour(rgba: NDArray[np.uint8], matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Apply a colour map (3, 3) to RGBA images (..., h, w, 4) with colours multiplied by coverage; coverage stays."""
    flat = np.ascontiguousarray(rgba).reshape(-1, rgba.shape[-2], 4)
    full = np.zeros((4, 4), np.float32)
    full[:3, :3] = matrix
    full[3, 3] = 1
    out = cv2.transform(flat, full)
    np.minimum(out[..., :3], out[..., 3:], out=out[..., :3])  # stays premultiplied
    return np.asarray(out, dtype=np.uint8).reshape(rgba.shape)


def _posed(rng: Rng, sprite: Sprite, size: float) -> Sprite:
    """Resize a sprite to `size` pixels (its longer side), rotate it, and crop it to what is covered."""
    scale = size / max(sprite.shape[:2])
    to = (max(2, round(sprite.shape[1] * scale)), max(2, round(sprite.shape[0] * scale)))
    out = cv2.resize(sprite, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if scale > 1:  # cubic filtering overshoots
        np.minimum(out[..., :3], out[..., 3:], out=out[..., :3])
    if ROTATION > 0:
        angle = float(rng.normal(0, ROTATION))
        side = int(np.ceil(np.hypot(*to))) + 2
        rotation = cv2.getRotationMatrix2D((to[0] / 2 - 0.5, to[1] / 2 - 0.5), angle, 1.0)
        matrix = np.asarray(rotation, dtype=np.float64)
        matrix[:, 2] += (side - np.array(to)) / 2
        out = cv2.warpAffine(out, matrix, (side, side), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect(np.ascontiguousarray(out[..., 3]))
    if w == 0 or h == 0:
        return np.zeros((1, 1, 4), np.uint8)
    return np.asarray(out[y : y + h, x : x + w], dtype=np.uint8)


def _overlap(shape: tuple[int, ...], x: int, y: int, w: int, h: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of an image that a w x h patch at (x, y) covers, and the part of the patch that is inside."""
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, shape[1]), min(y + h, shape[0])
    x1, y1 = max(x0, x1), max(y0, y1)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def _paste(rng: Rng, image: Image, sprite: Sprite, x: int, y: int) -> None:
    """Paste a sprite on the image, lit a little differently each time."""
    there, inside = _overlap(image.shape, x, y, sprite.shape[1], sprite.shape[0])
    part = sprite[inside].astype(np.float32)
    h, w = part.shape[:2]
    if h == 0 or w == 0:
        return
    light = np.float32(np.exp(rng.normal(0, 0.12)))
    corners = light * np.exp(rng.normal(0, 0.12, (2, 2))).astype(np.float32)
    part[..., :3] *= cv2.resize(corners, (w, h), interpolation=cv2.INTER_LINEAR)[..., None]
    part[..., 3:] *= np.float32(-1 / 255)
    part[..., 3:] += 1
    region = image[there]
    region *= part[..., 3:]
    region += part[..., :3]


class _Placement:
    """Which sprite covers each pixel, and how much of each is still visible."""

    def __init__(self, labels: NDArray[np.int16], count: int):
        self.labels = labels
        self.area = np.zeros(count)
        self.seen = np.zeros(count)

    def choose(
        self, rng: Rng, sprite: Sprite, row: float, min_visible: float, cut_probability: float
    ) -> tuple[int, int]:
        """Return the top left corner for a sprite: the first of some draws that hides nothing too much, or the best."""
        height, width = self.labels.shape
        h, w = sprite.shape[:2]
        cut = rng.random() < cut_probability
        mask = sprite[..., 3] > 127
        area = max(1, int(mask.sum()))
        present = self.area > 0
        best, best_fraction = (0, 0), -1.0
        for attempt in range(_PLACES):
            if cut:
                x = round(rng.uniform(-0.6 * w, width - 0.4 * w))
                y = round(rng.uniform(-0.6 * h, height - 0.4 * h))
            else:
                at = np.clip(row + rng.normal(0, 0.05 + 0.05 * attempt), 0, 1)
                x = round(rng.uniform(0, max(0, width - w)))
                y = round(float(at) * max(0, height - h))
            there, inside = _overlap(self.labels.shape, x, y, w, h)
            own = mask[inside]
            hidden = np.bincount(self.labels[there][own] + 1, minlength=len(self.area) + 1)[1:]
            fraction = float(own.sum()) / area
            if present.any():
                fraction = min(fraction, float(((self.seen - hidden)[present] / self.area[present]).min()))
            if fraction > best_fraction:
                best, best_fraction = (x, y), fraction
            if fraction >= min_visible:
                break
        return best

    def add(self, index: int, mask: NDArray[np.bool_], x: int, y: int) -> None:
        """Put a sprite over those that are there."""
        there, inside = _overlap(self.labels.shape, x, y, mask.shape[1], mask.shape[0])
        own = mask[inside]
        covered = self.labels[there]
        self.seen -= np.bincount(covered[own] + 1, minlength=len(self.area) + 1)[1:]
        covered[own] = index
        self.area[index] = mask.sum()
        self.seen[index] = own.sum()


@dataclass(frozen=True)
class _Shadows:
    """The shadows of one scene: the same lights for every object.

    Attributes:
        casts: for each light, shift right and down and blur, all relative to the object's size, and strength.
        contact: strength of the dark line where an object stands.
    """

    casts: tuple[tuple[float, float, float, float], ...]
    contact: float

    @classmethod
    def draw(cls, rng: Rng) -> _Shadows:
        casts = []
        for strength in (rng.uniform(0.25, 0.65), rng.uniform(0.15, 0.35))[: int(rng.integers(1, 3))]:
            angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.22)
            # Seen from above the ground, shadows fall downwards in the image more often than up.
            shift = (length * np.cos(angle), length * (0.7 * np.sin(angle) + 0.3))
            casts.append((*shift, rng.uniform(0.03, 0.14), strength))
        return cls(tuple(casts), rng.uniform(0.2, 0.6) if rng.random() < 0.7 else 0.0)

    def cast(self, image: Image, alpha: NDArray[np.uint8], x: int, y: int) -> None:
        """Darken what lies behind an object whose coverage (h, w) will be pasted at (x, y)."""
        h, w = alpha.shape
        size = max(h, w)
        for right, down, blur, strength in self.casts:
            _darken(image, alpha, x + round(right * size), y + round(down * size), blur * size, strength)
        if self.contact > 0:
            foot = alpha[h - max(1, h // 3) :]
            _darken(image, foot, x, y + h - foot.shape[0] + max(1, round(0.03 * size)), 0.03 * size, self.contact)


def _darken(image: Image, alpha: NDArray[np.uint8], x: int, y: int, blur: float, strength: float) -> None:
    """Multiply the image by a blurred shadow."""
    pad = int(np.ceil(2 * blur)) + 1
    soft = cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    kernel = 2 * max(1, round(blur * 0.9)) + 1
    soft = cv2.blur(cv2.blur(soft, (kernel, kernel)), (kernel, kernel))  # close to a Gaussian, and cheap
    there, inside = _overlap(image.shape, x - pad, y - pad, soft.shape[1], soft.shape[0])
    image[there] *= 1 - np.float32(strength / 255) * soft[inside][..., None]
