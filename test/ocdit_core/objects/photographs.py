"""Photographs of a made-up toy with their truth, for tests of capturing: no mesh, no renderer."""

import cv2
import numpy as np

from ocdit_core.data.painting import photograph, random_background


def toy(seed, size=(240, 320), scale=0.5):
    """(H, W, 3) float32 colours and (H, W) float32 coverage: a red body with yellow dots and a blue handle, turned."""
    rng = np.random.default_rng(seed)
    fine = 4
    height, width = size[0] * fine, size[1] * fine
    colours = np.zeros((height, width, 3), np.float32)
    cover = np.zeros((height, width), np.uint8)
    centre = np.array([width, height]) * (0.5 + rng.uniform(-0.05, 0.05, 2))
    reach = scale * min(width, height) / 2
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])

    def spot(x, y):
        return tuple(int(v) for v in np.rint(centre + reach * (x * along + y * across)))

    handle = np.array([spot(0.4, -0.15), spot(1.3, -0.15), spot(1.3, 0.15), spot(0.4, 0.15)])
    for canvas, colour in ((colours, (30, 60, 200)), (cover, 255)):
        cv2.fillPoly(canvas, [handle], colour)
    axes = (int(reach * 0.9), int(reach * 0.6))
    for canvas, colour in ((colours, (205, 40, 45)), (cover, 255)):
        cv2.ellipse(canvas, spot(0, 0), axes, float(np.degrees(angle)), 0, 360, colour, -1)
    for x, y in ((-0.4, 0.1), (0.3, -0.2), (0.1, 0.25)):
        cv2.circle(colours, spot(x, y), int(reach * 0.13), (240, 210, 40), -1)
    shrink = {"dsize": (size[1], size[0]), "interpolation": cv2.INTER_AREA}
    return cv2.resize(colours, **shrink), cv2.resize(cover, **shrink).astype(np.float32) / 255


def photo(seed, *, size=(240, 320), textured=False, scale=0.5):
    """(H, W, 3) uint8 and the truth (H, W) bool: the toy with a soft shadow, before a wall or a texture."""
    rng = np.random.default_rng([seed, 1])
    colours, cover = toy(seed, size, scale)
    if textured:
        image = random_background(rng, size, clutter=0.0)
    else:
        y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
        light = 1 + 0.15 * rng.normal() * x + 0.15 * rng.normal() * y
        image = (rng.uniform(110, 170) + rng.normal(0, 12, 3)) * light[..., None]
    shift = np.float32([[1, 0, 0.03 * size[1]], [0, 1, 0.04 * size[0]]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, shift, size[::-1]), (0, 0), 0.03 * size[0])
    image = image * (1 - 0.35 * shadow[..., None])
    image = image * (1 - cover[..., None]) + colours * cover[..., None]
    return photograph(rng, image.astype(np.float32), strength=0.5), cover > 0.5


def inner_point(mask):
    """x, y of the point farthest from the mask's rim."""
    away = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(away.argmax(), away.shape)
    return int(x), int(y)
