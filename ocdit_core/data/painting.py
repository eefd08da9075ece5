"""Painted textures (palettes, paints, smooth noise, backgrounds) and the effects of a camera."""

import string
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray


def smooth_noise(
    rng: np.random.Generator, size: tuple[int, int], *, cells: float = 4.0, octaves: int = 3, persistence: float = 0.5
) -> NDArray[np.float32]:
    """Return multi-octave value noise (H, W): zero mean, values mostly in -1..1.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        cells: features of the coarsest octave along the longer side.
        octaves: number of octaves, each with twice the detail of the one before.
        persistence: amplitude of an octave, relative to the one before.
    """
    height, width = size
    longer = max(height, width)
    total = np.zeros((height, width), np.float32)
    weight, norm = 1.0, 0.0
    for octave in range(octaves):
        n = min(cells * 2**octave, longer)
        shape = (max(2, round(n * height / longer) + 1), max(2, round(n * width / longer) + 1))
        small = rng.random(shape, dtype=np.float32) * 2 - 1
        total += np.float32(weight) * cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        norm += weight**2
        weight *= persistence
    return total / np.float32(norm**0.5)


Colours = NDArray[np.float64]
Texture = NDArray[np.uint8]


class Photographs(Protocol):
    """(H, W, 3) sRGB uint8 images by number, such as a `TexturePool`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Texture: ...


PLAIN_PROBABILITY = 0.2
PHOTOGRAPH_PROBABILITY = 0.6
MAX_BLUR = 1.4
"""Standard deviation in pixels of the strongest blur of `photograph`."""
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX)


def random_colour(rng: np.random.Generator) -> Colours:
    """Draw an sRGB colour (3,) in 0..255: mostly hues, often muted, sometimes white, grey, black, metal or wood."""
    kind = rng.random()
    if kind < 0.12:
        return np.full(3, rng.uniform(205, 250)) + rng.uniform(-8, 5, 3)
    if kind < 0.22:
        return np.full(3, rng.uniform(20, 55)) + rng.uniform(-5, 8, 3)
    if kind < 0.34:
        return np.full(3, rng.uniform(70, 190)) + rng.uniform(-12, 12, 3)
    if kind < 0.42:
        return np.array([150, 105, 62]) * rng.uniform(0.6, 1.5) + rng.uniform(-12, 12, 3)
    hsv = np.array([[[rng.uniform(0, 180), 255 * rng.uniform(0.35, 1.0), 255 * rng.uniform(0.35, 1.0)]]])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)


def random_palette(rng: np.random.Generator) -> Colours:
    """Draw two to four distinguishable sRGB colours (n, 3) in 0..255."""
    palette = [random_colour(rng)]
    wanted = int(rng.integers(2, 5))
    for _ in range(12):
        if len(palette) == wanted:
            break
        colour = random_colour(rng)
        if min(float(np.abs(colour - other).sum()) for other in palette) > 110:
            palette.append(colour)
    if len(palette) == 1:
        palette.append(255 - palette[0])
    return np.clip(np.array(palette), 5, 250)


def random_paint(
    rng: np.random.Generator,
    palette: Colours,
    size: int,
    *,
    plain: float = 0.25,
    photographs: Photographs | None = None,
) -> Texture:
    """Return a random texture.

    Args:
        rng: source of randomness.
        palette: (n, 3) sRGB colours in 0..255 that it is painted in.
        size: side in pixels.
        plain: probability of a single colour.
        photographs: (H, W, 3) sRGB images, of which a random crop is taken with probability PHOTOGRAPH_PROBABILITY.

    Returns:
        (size, size, 3) sRGB.
    """
    if photographs is not None and rng.random() < PHOTOGRAPH_PROBABILITY:
        return _photograph(rng, photographs, size)
    colours = palette[rng.permutation(len(palette))]
    if rng.random() < plain:
        return _fill(size, colours[0])
    kinds = (_stripes, _checks, _dots, _marble, _gradient, _bands, _shapes, _label, _label, _camouflage)
    texture = kinds[rng.integers(len(kinds))](rng, colours, size)
    if rng.random() < 0.3:  # wear and print grain
        grain = smooth_noise(rng, (size, size), cells=6, octaves=3)
        texture = _clip(texture * (1 + rng.uniform(0.03, 0.15) * grain[..., None]))
    return texture


def _photograph(rng: np.random.Generator, photographs: Photographs, size: int) -> Texture:
    """Return a crop of a photograph, turned, mirrored and tinted at random."""
    image = photographs[int(rng.integers(len(photographs)))]
    side = max(16, int(min(image.shape[:2]) * rng.uniform(0.25, 1.0)))
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    crop = np.rot90(image[top : top + side, left : left + side], int(rng.integers(4)))
    crop = np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    crop = np.asarray(cv2.resize(crop, (size, size), interpolation=interpolation), np.uint8)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 180)) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.5, 2.0), 0, 255)
        crop = np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)
    return _clip(crop * rng.uniform(0.6, 1.2) * rng.uniform(0.85, 1.1, 3))


def _clip(values: NDArray[np.floating]) -> Texture:
    return np.clip(values, 0, 255).astype(np.uint8)


def _fill(size: int, colour: Colours) -> Texture:
    return np.broadcast_to(_clip(colour), (size, size, 3)).copy()


def _mix(weight: NDArray[np.floating], first: Colours, second: Colours) -> Texture:
    """Blend two colours by a weight (H, W) in 0..1."""
    weight = weight.astype(np.float32)[..., None]
    return _clip(first.astype(np.float32) * (1 - weight) + second.astype(np.float32) * weight)


def _axes(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    t = np.linspace(0, 1, size, dtype=np.float32)
    return np.broadcast_to(t, (size, size)), np.broadcast_to(t[:, None], (size, size))


def _stripes(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    x, y = _axes(size)
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    # Whole numbers of stripes close up around a body of revolution.
    phase = rng.integers(2, 11) * (np.cos(angle) * x + np.sin(angle) * y) + rng.random()
    index = np.floor(phase % 1 * len(colours)).astype(int) % len(colours)
    if rng.random() < 0.5:
        index = (phase % 1 < rng.uniform(0.2, 0.7)).astype(int)
    return _clip(colours[index])


def _checks(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    x, y = _axes(size)
    nx, ny = rng.integers(1, 7, 2)
    even = (np.floor(x * 2 * nx) + np.floor(y * 2 * ny)) % 2
    if rng.random() < 0.3:  # plaid
        return _mix(((x * nx) % 1 < 0.3) * 0.5 + ((y * ny) % 1 < 0.3) * 0.5, colours[0], colours[1])
    return _mix(even, colours[0], colours[1])


def _dots(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    x, y = _axes(size)
    n, radius = rng.integers(3, 9), rng.uniform(0.18, 0.42)
    row = np.floor(y * n)
    dx, dy = (x * n + 0.5 * (row % 2)) % 1 - 0.5, (y * n) % 1 - 0.5
    return _mix((dx**2 + dy**2 < radius**2), colours[0], colours[1])


def _marble(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    noise = smooth_noise(rng, (size, size), cells=rng.uniform(2, 8), octaves=4)
    if rng.random() < 0.5:  # veins, wood
        x, _ = _axes(size)
        noise = np.sin(6.3 * (rng.integers(1, 7) * x + rng.uniform(0.3, 1.2) * noise))
    return _mix(np.clip(0.5 + 0.7 * noise, 0, 1), colours[0], colours[1])


def _gradient(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    x, y = _axes(size)
    weight = y if rng.random() < 0.6 else 0.5 + 0.5 * np.cos(2 * np.pi * x)
    return _mix(weight, colours[0], colours[1])


def _bands(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    """Paint two or three zones above one another: lids, grips, dipped paint."""
    texture = _fill(size, colours[0])
    cuts = np.sort(rng.uniform(0.1, 0.9, rng.integers(1, 4))) * size
    for index, cut in enumerate(cuts):
        texture[int(cut) :] = _clip(colours[(index + 1) % len(colours)])
    return texture


def _camouflage(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    noise = smooth_noise(rng, (size, size), cells=rng.uniform(3, 9), octaves=2)
    index = np.clip(((noise + 0.7) / 1.4 * len(colours)).astype(int), 0, len(colours) - 1)
    return _clip(colours[index])


def _shapes(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    texture = _fill(size, colours[0])
    for index in range(int(rng.integers(2, 9))):
        colour = colours[1 + index % (len(colours) - 1)].tolist()
        centre = rng.integers(0, size, 2)
        reach = size * rng.uniform(0.08, 0.28)
        if rng.random() < 0.4:
            cv2.circle(texture, centre.tolist(), int(reach), colour, -1 if rng.random() < 0.7 else 3, cv2.LINE_AA)
        else:
            n = rng.integers(3, 6)
            angle = np.sort(rng.uniform(0, 2 * np.pi, n))
            corners = centre + reach * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            cv2.fillPoly(texture, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    return texture


def _label(rng: np.random.Generator, colours: Colours, size: int) -> Texture:
    """Paint packaging: a field with printed words, bars or an emblem on a base colour."""
    texture = _fill(size, colours[0])
    paper, ink = colours[1], colours[-1 if len(colours) > 2 else 0]
    for start in (0.05, 0.55) if rng.random() < 0.6 else (0.1,):
        left, wide = int(size * start), int(size * (0.4 if start != 0.1 else 0.8))
        top, bottom = int(size * rng.uniform(0.1, 0.35)), int(size * rng.uniform(0.6, 0.92))
        cv2.rectangle(texture, (left, top), (left + wide, bottom), paper.tolist(), -1)
        y = top
        while True:
            word = "".join(rng.choice(list(string.ascii_uppercase + string.digits), rng.integers(2, 8)))
            font = _FONTS[rng.integers(len(_FONTS))]
            thick = int(rng.integers(1, 4))
            (w, h), _ = cv2.getTextSize(word, font, 1.0, thick)
            scale = wide * rng.uniform(0.6, 0.95) / w
            y += int(h * scale) + max(3, size // 40)
            if y > bottom - 2:
                break
            cv2.putText(texture, word, (left + 2, y), font, scale, ink.tolist(), thick, cv2.LINE_AA)
            if rng.random() < 0.3:
                y += max(4, size // 20)
                cv2.line(texture, (left + 3, y), (left + wide - 3, y), ink.tolist(), thick)
    if rng.random() < 0.4:
        at = (int(size * rng.uniform(0.2, 0.8)), int(size * rng.uniform(0.2, 0.8)))
        cv2.circle(texture, at, int(size * rng.uniform(0.06, 0.16)), ink.tolist(), -1, cv2.LINE_AA)
    return texture


Image = NDArray[np.float32]
Rng = np.random.Generator
Size = tuple[int, int]


def random_background(rng: Rng, size: Size, *, clutter: float = 0.5) -> Image:
    """Draw a background.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        clutter: probability that flat shapes lie on it.

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
    ends = {_noise: 0.30, _wood: 0.45, _tiles: 0.58, _pattern: 0.70, _paint: 0.80}
    return next((paint for paint, end in ends.items() if kind < end), _plain)(rng, size)


def _colours(rng: Rng) -> tuple[Image, Image]:
    """Draw two colours (3,), mostly similar: real surfaces have less contrast than toys."""
    first = random_colour(rng)
    if rng.random() < 0.5:  # greyer
        first = first.mean() + (first - first.mean()) * 0.35
    second = first * rng.uniform(0.6, 1.3) + rng.normal(0, 12, 3) if rng.random() < 0.7 else random_colour(rng)
    return first.astype(np.float32), second.astype(np.float32)


def _blend(weight: NDArray[np.float32], first: Image, second: Image) -> Image:
    return first + weight[..., None] * (second - first)


def _plain(rng: Rng, size: Size) -> Image:
    first, second = _colours(rng)
    y, x = _centred_axes(size)
    angle = rng.uniform(0, 2 * np.pi)
    weight = 0.5 + 0.5 * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    grain = smooth_noise(rng, size, cells=rng.uniform(20, 60), octaves=1)
    return _blend(weight + np.float32(rng.uniform(0, 0.15)) * grain, first, second)


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


def _centred_axes(size: Size) -> tuple[Image, Image]:
    """Return rows (H, 1) and columns (1, W) from -1 to 1."""
    height, width = size
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return y, np.linspace(-1, 1, width, dtype=np.float32)[None]


def _turned(rng: Rng, size: Size) -> tuple[Image, Image]:
    """Return two axes (H, W) at a random angle, of unit length along the image's longer side."""
    height, width = size
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y, x = _centred_axes(size)
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
    """Paint stripes or checks, like cloth."""
    first, second = _colours(rng)
    x, y = _turned(rng, size)
    n = np.float32(rng.uniform(4, 20))
    weight = (x * n) % 1 < rng.uniform(0.3, 0.7)
    if rng.random() < 0.5:
        weight = weight ^ ((y * n) % 1 < 0.5)
    grain = smooth_noise(rng, size, cells=40, octaves=1)
    return _blend(weight.astype(np.float32) + np.float32(0.1) * grain, first, second)


def _paint(rng: Rng, size: Size) -> Image:
    """Paint a poster or mat with the paints of objects, which must not identify objects by themselves."""
    texture = random_paint(rng, random_palette(rng), 96, plain=0.0)
    if rng.random() < 0.5:
        texture = np.tile(texture, (2, 2, 1))
    return np.asarray(cv2.resize(texture, size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _scatter(rng: Rng, image: Image) -> Image:
    """Lay flat polygons, ellipses and lines on the image."""
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
            thick = max(1, int(min(height, width) * rng.uniform(0.005, 0.03)))
            cv2.line(canvas, (x, y), to, colour, thick, cv2.LINE_AA)
    return canvas.astype(np.float32)


def photograph(rng: Rng, image: Image, *, strength: float = 1.0) -> NDArray[np.uint8]:
    """Simulate a camera: uneven light, exposure, white balance, contrast, blur, noise, JPEG.

    Args:
        rng: source of randomness.
        image: (H, W, 3) float32 sRGB in 0..255; it is changed.
        strength: 0 leaves the image as it is, 1 is the usual amount.

    Returns:
        (H, W, 3) uint8.
    """
    if strength <= 0:
        return np.clip(image, 0, 255).astype(np.uint8)
    height, width = image.shape[:2]
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
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), MAX_BLUR * rng.uniform(0.3, 1.0)), dtype=np.float32)
    elif rng.random() < 0.1 * strength:
        image = _motion_blur(rng, image)
    if rng.random() < 0.75:
        sigma = strength * 8 * rng.random() ** 2
        noise = rng.standard_normal((height, width, 1 if rng.random() < 0.3 else 3), dtype=np.float32)
        image = image + np.float32(sigma) * noise
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.4 * strength:
        _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))])
        pixels = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return pixels


def _motion_blur(rng: Rng, image: Image) -> Image:
    length = max(2, round(MAX_BLUR * rng.uniform(2, 4)))
    kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    low, high = np.round(length - reach).astype(int), np.round(length + reach).astype(int)
    cv2.line(kernel, low.tolist(), high.tolist(), 1.0, 1)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), dtype=np.float32)
