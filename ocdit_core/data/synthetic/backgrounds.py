"""Backgrounds for composed scenes: tables, walls, tiles, wood, patterns, and clutter that is no object."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.synthetic.noise import smooth_noise
from ocdit_core.data.synthetic.painting import random_colour, random_paint, random_palette

Image = NDArray[np.float32]
Rng = np.random.Generator
Size = tuple[int, int]


def random_background(rng: Rng, size: Size, *, clutter: float = 0.5) -> Image:
    """Draws a background.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        clutter: chance that flat shapes lie on it.

    Returns:
        (H, W, 3) float32 sRGB in 0..255.
    """
    height, width = size
    image = _texture(rng, size)
    if rng.random() < 0.4:  # a table before a wall
        wall = _texture(rng, size)
        line = height * rng.uniform(0.1, 0.6)
        tilt = rng.normal(0, 0.05) * height
        edge = np.linspace(line - tilt, line + tilt, width, dtype=np.float32)
        above = np.clip(edge[None] - np.arange(height, dtype=np.float32)[:, None], 0, 1)[..., None]
        image += above * (wall - image)
    if rng.random() < clutter:
        image = _scatter(rng, image)
    return np.clip(image, 0, 255)


def _texture(rng: Rng, size: Size) -> Image:
    kind = rng.random()
    if kind < 0.30:
        return _noise(rng, size)
    if kind < 0.45:
        return _wood(rng, size)
    if kind < 0.58:
        return _tiles(rng, size)
    if kind < 0.70:
        return _pattern(rng, size)
    if kind < 0.80:
        return _paint(rng, size)
    return _plain(rng, size)


def _colours(rng: Rng) -> tuple[Image, Image]:
    """Two colours (3,), mostly near each other: real surfaces have less contrast than toys."""
    first = random_colour(rng)
    if rng.random() < 0.5:  # greyer
        first = first.mean() + (first - first.mean()) * 0.35
    second = first * rng.uniform(0.6, 1.3) + rng.normal(0, 12, 3) if rng.random() < 0.7 else random_colour(rng)
    return first.astype(np.float32), second.astype(np.float32)


def _blend(share: NDArray[np.float32], first: Image, second: Image) -> Image:
    return first + share[..., None] * (second - first)


def _plain(rng: Rng, size: Size) -> Image:
    first, second = _colours(rng)
    y, x = _axes(size)
    angle = rng.uniform(0, 2 * np.pi)
    share = 0.5 + 0.5 * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    grain = smooth_noise(rng, size, cells=rng.uniform(20, 60), octaves=1)
    return _blend(share + np.float32(rng.uniform(0, 0.15)) * grain, first, second)


def _noise(rng: Rng, size: Size) -> Image:
    first, second = _colours(rng)
    noise = smooth_noise(rng, size, cells=rng.uniform(2, 16), octaves=4, persistence=rng.uniform(0.4, 0.9))
    sharp = np.float32(rng.choice([0.8, 0.8, 4.0]))
    return _blend(np.clip(0.5 + sharp * noise, 0, 1), first, second)


def _wood(rng: Rng, size: Size) -> Image:
    base = np.array([150, 108, 66]) * rng.uniform(0.5, 1.5) + rng.normal(0, 12, 3)
    height, width = size
    # Grain is noise stretched along the planks.
    tall = smooth_noise(rng, (height, max(8, width // 12)), cells=rng.uniform(20, 60), octaves=3)
    grain = cv2.resize(tall, (width, height), interpolation=cv2.INTER_LINEAR)
    planks = rng.integers(1, 9)
    y = np.arange(height, dtype=np.float32) * planks / height + rng.random()
    tone = rng.uniform(0.8, 1.15, planks + 2).astype(np.float32)[y.astype(int)]
    gap = np.where(y % 1 < planks * 1.5 / height, np.float32(0.6), np.float32(1)) if planks > 1 else np.float32(1)
    image = base.astype(np.float32) * ((1 + np.float32(0.18) * grain) * (tone * gap)[:, None])[..., None]
    if rng.random() < 0.5 and height > 8:  # planks up and down
        turned = np.ascontiguousarray(image.transpose(1, 0, 2))
        return np.asarray(cv2.resize(turned, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    return image


def _axes(size: Size) -> tuple[Image, Image]:
    """Rows (H, 1) and columns (1, W) from -1 to 1."""
    height, width = size
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return y, np.linspace(-1, 1, width, dtype=np.float32)[None]


def _turned(rng: Rng, size: Size) -> tuple[Image, Image]:
    """Two axes (H, W) at a random angle, of unit length along the picture's longer side."""
    height, width = size
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y, x = _axes(size)
    x, y = x * np.float32(0.5 * width / max(size)), y * np.float32(0.5 * height / max(size))
    return c * x + s * y, c * y - s * x


def _tiles(rng: Rng, size: Size) -> Image:
    first, second = _colours(rng)
    x, y = _turned(rng, size)
    n = np.float32(rng.uniform(3, 12))
    x, y = x * n + 20, y * n * np.float32(rng.uniform(0.6, 1.6)) + 20
    column, row = x.astype(np.int32), y.astype(np.int32)
    tones = rng.normal(0, 1, (64, 64)).astype(np.float32)
    image = _blend(np.float32(0.15) * tones[row % 64, column % 64], first, second)
    gap = np.float32(rng.uniform(0.03, 0.1))
    joint = ((x - column < gap) | (y - row < gap)).astype(np.float32)
    return image + joint[..., None] * (second - image)


def _pattern(rng: Rng, size: Size) -> Image:
    """Stripes or checks, like cloth."""
    first, second = _colours(rng)
    x, y = _turned(rng, size)
    n = np.float32(rng.uniform(4, 20))
    share = (x * n) % 1 < rng.uniform(0.3, 0.7)
    if rng.random() < 0.5:
        share = share ^ ((y * n) % 1 < 0.5)
    grain = smooth_noise(rng, size, cells=40, octaves=1)
    return _blend(share.astype(np.float32) + np.float32(0.1) * grain, first, second)


def _paint(rng: Rng, size: Size) -> Image:
    """Posters and mats: what also lies on objects must not give them away."""
    picture = random_paint(rng, random_palette(rng), 96, plain=0.0)
    if rng.random() < 0.5:
        picture = np.tile(picture, (2, 2, 1))
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _scatter(rng: Rng, image: Image) -> Image:
    """Lays flat polygons, ellipses and lines on the image."""
    height, width = image.shape[:2]
    canvas = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(1, 13))):
        colour = np.clip(random_colour(rng), 0, 255).tolist()
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        reach = min(height, width) * rng.uniform(0.03, 0.25)
        kind = rng.random()
        if kind < 0.4:
            angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            radius = reach * rng.uniform(0.5, 1.0, len(angle))
            corners = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
            cv2.fillPoly(canvas, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        elif kind < 0.65:
            axes = (max(1, int(reach)), max(1, int(reach * rng.uniform(0.2, 1))))
            cv2.ellipse(canvas, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        elif kind < 0.85:  # sheets of paper, books
            box = ((x, y), (reach * 2, reach * rng.uniform(0.5, 2)), float(rng.uniform(0, 90)))
            cv2.fillPoly(canvas, [cv2.boxPoints(box).astype(np.int32)], colour, cv2.LINE_AA)
        else:  # cables, cracks
            to = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
            cv2.line(
                canvas, (x, y), to, colour, max(1, int(min(height, width) * rng.uniform(0.005, 0.03))), cv2.LINE_AA
            )
    return canvas.astype(np.float32)
