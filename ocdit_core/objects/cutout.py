"""Cutting an object out of a photograph: before a plain background by itself, before any other with one click.

Several first guesses of where the object is are each settled by GrabCut (Rother et al., 2004, OpenCV's); where they
differ, the one that the others agree with most is taken. All guesses are made at a small size, the rim at a larger one.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ImageError
from ocdit_core.images import as_rgb8, shrunk
from ocdit_core.masks import Box, mask_iou

Mask = NDArray[np.bool_]
FloatImage = NDArray[np.float32]

SEARCH_SIDE, RIM_SIDE = 280, 640  # longest side in pixels at which the object is looked for, and its rim settled
MIN_FRACTION, MAX_FRACTION = 0.002, 0.9  # fractions of the photograph that a cut-out covers
MIN_LARGEST = 0.5  # fraction of the cut-out that its largest part covers; an object seldom looks like islands
_BORDER = 0.05  # width, as a fraction of the shorter side, of the border that shows the background
_SHADE = 0.62  # fraction of the background's brightness in shadows; what is darker is a dark object
_PLAIN_LIMIT, _PALETTE_LIMIT = 5.0, 3.0  # standard deviations of the background's colours; beyond is the object
_PALETTE = 8
# Fractions of the shorter side: radii of discs around the click, and of the spot that is the object for certain.
_DISCS, _SPOT = (0.12, 0.2, 0.3), 0.03
_HOLE = 0.01  # fraction of the object: smaller holes are noise; larger ones stay if they show the background
_PART = 0.1  # fraction of the largest part: smaller ones are dropped


def cut_out(image: np.ndarray, click: tuple[float, float] | None = None, box: Box | None = None) -> Mask:
    """Return which pixels (H, W) of a photograph show the object.

    Without a click the background has to be plain: one colour, with uneven light and soft shadows. With one, any
    background will do, the better the more the object differs from it. A box around it serves as well.

    Args:
        image: (H, W, 3) uint8 RGB.
        click: x, y of a point on the object, in pixels from the upper left corner.
        box: x, y, width, height around the whole object in pixels, instead of a click.

    Raises:
        ImageError: it is no image, the click is outside it, or no object can be told from the background: nothing is
            found, nearly all is, or what is found reaches the border or falls into pieces.
    """
    image = as_rgb8(image)
    height, width = image.shape[:2]
    if box is not None:
        return _boxed_cut(image, box)
    if click is not None and not (0 <= click[0] < width and 0 <= click[1] < height):
        raise ImageError(f"the click {click[0]:g},{click[1]:g} is outside the image of {width} x {height} pixels")
    # GrabCut starts its colour models by k-means on OpenCV's own random numbers: the same photograph, the same cut.
    cv2.setRNGSeed(0)
    small = shrunk(image, SEARCH_SIDE)
    if min(small.shape[:2]) < 16:
        raise ImageError(f"an image of {width} x {height} pixels is too small, or too narrow, to cut an object out of")
    scene = _Scene(small)
    if click is None:
        mask = _plain_cut(scene)
    else:
        to_small = np.array([small.shape[1] / width, small.shape[0] / height])
        column, row = np.minimum(np.array(click) * to_small, [small.shape[1] - 1, small.shape[0] - 1]).astype(int)
        mask = _clicked_cut(scene, int(column), int(row))
    # Before and after: the rim of a doubtful cut-out may move far.
    _check(mask, plain=click is None)
    settled = _settle_rim(image, mask)
    _check(settled, plain=click is None)
    return settled


class _Scene:
    """A small photograph in Lab, and what its border says of the background."""

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        soft = cv2.GaussianBlur(rgb, (0, 0), 0.65)
        self.rgb: FloatImage = (soft / np.float32(255)).astype(np.float32)
        self.lab: FloatImage = cv2.cvtColor(self.rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
        self.shape = (rgb.shape[0], rgb.shape[1])
        self.border = _frame(self.shape, max(2, round(_BORDER * min(self.shape))))
        self.surface, self.spread = self._fit_surface()

    def _fit_surface(self) -> tuple[FloatImage, FloatImage]:
        """Return the background as a smooth surface of colour (H, W, 3) Lab, and the border's spread about it (3,)."""
        y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in self.shape), indexing="ij")
        terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
        a, colours = terms[self.border], self.lab[self.border]
        weight: FloatImage = np.ones(len(colours), np.float32)
        # Iteratively reweighted: an object or a shadow on a part of the border is not to bend the surface.
        for _ in range(8):
            root = np.sqrt(weight)[:, None]
            fit = np.linalg.lstsq(a * root, colours * root, rcond=None)[0]
            residual = np.abs(colours - a @ fit)
            spread = 1.4826 * np.median(residual, axis=0) + 0.3
            weight = (1 / (1 + ((residual / spread) ** 2).sum(axis=1) / 2.5**2)).astype(np.float32)
        return (terms @ fit).astype(np.float32), np.maximum(spread, [1.2, 0.8, 0.8]).astype(np.float32)

    def distance(self, background: FloatImage, spread: FloatImage, shade: float = _SHADE) -> FloatImage:
        """Return (H, W): how far each pixel is from a background colour (..., 3) Lab, in the shade down to `shade`."""
        colour = cv2.cvtColor(np.broadcast_to(background, self.lab.shape).astype(np.float32), cv2.COLOR_LAB2RGB)
        colour = np.clip(colour, 0.02, 1)
        light = np.clip((self.rgb * colour).sum(axis=-1) / (colour * colour).sum(axis=-1), shade, 1)
        shaded = cv2.cvtColor((colour * light[..., None]).astype(np.float32), cv2.COLOR_RGB2LAB)
        return np.asarray(np.sqrt((((self.lab - shaded) / (spread + 1)) ** 2).sum(axis=-1)), dtype=np.float32)

    def flattened(self) -> NDArray[np.uint8]:
        """Return the image without the background's fall of light, lightness counting half: shadows matter less."""
        return np.clip((self.lab - self.surface) * [0.5, 1, 1] + 128, 0, 255).astype(np.uint8)

    def plain_seed(self) -> Mask:
        """Return what differs from the background's surface of colour."""
        return self.distance(self.surface, self.spread) > _PLAIN_LIMIT

    def palette_seed(self) -> Mask:
        """Return what differs from every colour that the border shows."""
        samples = self.lab[self.border]
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.5)
        count = min(_PALETTE, len(samples))
        _, labels, centres = cv2.kmeans(samples, count, np.empty((0, 1), np.int32), stop, 2, cv2.KMEANS_PP_CENTERS)
        nearest = np.full(self.shape, np.inf, np.float32)
        for index, centre in enumerate(centres):
            own = samples[labels[:, 0] == index]
            if len(own):
                spread = (1.4826 * np.median(np.abs(own - centre), axis=0) + 2).astype(np.float32)
                nearest = np.minimum(nearest, self.distance(centre, spread))
        return nearest > _PALETTE_LIMIT


def _plain_cut(scene: _Scene) -> Mask:
    seed = scene.plain_seed()
    cut = _grab_cut(scene.flattened(), _trimap(seed), 3)
    if cut is None:
        return np.zeros(scene.shape, bool)
    cut = cv2.morphologyEx(cut.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    # In the full light only: a dark inside of a cup is no hole in it.
    foreign = scene.distance(scene.surface, scene.spread - 1, shade=1.0)
    return _without_false_holes(_central_parts(cut), foreign > 4)


def _clicked_cut(scene: _Scene, column: int, row: int) -> Mask:
    height, width = scene.shape
    y, x = np.ogrid[:height, :width]
    away = np.hypot(x - column, y - row)
    side = min(scene.shape)
    spot = away <= max(2.0, _SPOT * side)
    image = np.clip(scene.lab * [1, 1, 1] + [30, 128, 128], 0, 255).astype(np.uint8)
    guesses = [(image, away <= r * side, away > (2.2 * r + 0.1) * side) for r in _DISCS]
    nowhere = np.zeros(scene.shape, bool)
    guesses += [(image, scene.palette_seed(), nowhere), (scene.flattened(), scene.plain_seed(), nowhere)]
    cuts = []
    for colours, seed, beyond in guesses:
        trimap = _trimap(seed)
        trimap[beyond | _frame(scene.shape, 1)] = cv2.GC_BGD
        trimap[spot] = cv2.GC_FGD
        cut = _grab_cut(colours, trimap, 5)
        if cut is not None:
            cuts.append(_part_at(cut, column, row))
    if not cuts:
        return nowhere
    # The guess that the others agree with most: a leak or a missing part seldom happens twice in the same place.
    agreement = [sum(float(mask_iou(one, other)) for other in cuts) for one in cuts]
    best = cuts[int(np.argmax(agreement))]
    return _without_false_holes(best, nowhere)


def _boxed_cut(image: NDArray[np.uint8], box: Box) -> Mask:
    x, y, w, h = box
    if min(x, y) < 0 or min(w, h) < 16 or x + w > image.shape[1] or y + h > image.shape[0]:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise ImageError(
            f"the box {box} (x, y, width, height) is not inside the image of {size} pixels, or below 16 pixels"
        )
    # Half of the box around it shows what the background is like.
    part = np.s_[max(0, y - h // 2) : y + h + h // 2, max(0, x - w // 2) : x + w + w // 2]
    inside = np.zeros(image.shape[:2], bool)
    inside[y : y + h, x : x + w] = True
    small = shrunk(np.ascontiguousarray(image[part]), SEARCH_SIDE)
    own = cv2.resize(inside[part].astype(np.uint8), small.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    cv2.setRNGSeed(0)
    cut = _grab_cut(small, np.where(own, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8), 5)
    if cut is None:
        raise ImageError(f"the box {box} leaves no background around the object; take the photo from farther away")
    mask = _without_false_holes(_central_parts(cut), np.zeros_like(cut))
    _check(mask, plain=False)
    whole = np.zeros(image.shape[:2], bool)
    whole[part] = _settle_rim(np.ascontiguousarray(image[part]), mask)
    return whole


def _grab_cut(image: NDArray[np.uint8], trimap: NDArray[np.uint8], rounds: int) -> Mask | None:
    """Return GrabCut's foreground; None when there is no foreground or no background to start from."""
    front = (trimap & 1) > 0
    if front.sum() < 20 or (~front).sum() < 20:
        return None
    trimap = trimap.copy()
    back_model, front_model = np.zeros((1, 65)), np.zeros((1, 65))
    # The rectangle is not looked at in this mode.
    cv2.grabCut(image, trimap, (0, 0, 1, 1), back_model, front_model, rounds, cv2.GC_INIT_WITH_MASK)
    return np.asarray((trimap & 1) > 0)


def _settle_rim(image: NDArray[np.uint8], mask: Mask) -> Mask:
    """Return a small mask at the size of the image, its rim settled by the image's own edges and smoothed."""
    height, width = image.shape[:2]
    medium = shrunk(image, RIM_SIDE)
    grown = cv2.resize(mask.astype(np.float32), medium.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    rough = (cv2.GaussianBlur(grown, (0, 0), 1.0) > 0.5).astype(np.uint8)
    scale = max(1.0, medium.shape[1] / mask.shape[1])
    reach = 2 * round(2 * scale) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    core, hull = cv2.erode(rough, kernel), cv2.dilate(rough, kernel)
    trimap = _trimap(rough > 0)
    trimap[core > 0], trimap[hull == 0] = cv2.GC_FGD, cv2.GC_BGD
    x, y, w, h = cv2.boundingRect(hull)
    pad = 3 * reach
    window = np.s_[max(0, y - pad) : y + h + pad, max(0, x - pad) : x + w + pad]
    cut = _grab_cut(np.ascontiguousarray(medium[window]), np.ascontiguousarray(trimap[window]), 1)
    if cut is not None:
        rough[window] = cut
    smooth = cv2.GaussianBlur(rough.astype(np.float32), (0, 0), 1.2)
    return np.asarray(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5)


def _check(mask: Mask, *, plain: bool) -> None:
    other = "click on the object or give its mask" if plain else "click elsewhere on it or give its mask"
    fraction = float(mask.mean())
    if fraction < MIN_FRACTION:
        raise ImageError(f"no object is found; {other}" + (" (a plain background needs neither)" if plain else ""))
    if fraction > MAX_FRACTION:
        raise ImageError(f"the cut-out covers {fraction:.0%} of the image, which is the background as well; {other}")
    if (mask & _frame(mask.shape, 2)).any():
        reason = "the object does, or the background is not plain" if plain else "the object does, or it blends in"
        raise ImageError(f"the cut-out reaches the image's border: {reason}; show all of the object, or {other}")
    areas = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    if areas.max() < MIN_LARGEST * areas.sum():
        reason = "the background is too much like the object; choose another one"
        raise ImageError(f"the cut-out falls into {len(areas)} parts: {reason}, or {other}")


def _trimap(seed: Mask) -> NDArray[np.uint8]:
    return np.where(seed, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)


def _frame(shape: tuple[int, ...], width: int) -> Mask:
    frame = np.ones(shape, bool)
    frame[width:-width, width:-width] = False
    return frame


def _central_parts(mask: Mask) -> Mask:
    """Return the largest part near the centre, and the parts that are not much smaller."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    middle = np.array([mask.shape[1], mask.shape[0]]) / 2
    off = np.linalg.norm((centres[1:] - middle) / middle, axis=1)
    weight = stats[1:, cv2.CC_STAT_AREA] * np.exp(-(off**2))
    return np.concatenate([[False], weight >= _PART * weight.max()])[labels]


def _part_at(mask: Mask, column: int, row: int) -> Mask:
    """Return the part that holds a point; threads thinner than three pixels do not bind parts together."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(opened)
    if not labels[row, column]:
        _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    return labels == labels[row, column] if labels[row, column] else np.zeros_like(mask)


def _without_false_holes(mask: Mask, foreign: Mask) -> Mask:
    """Return the mask with those holes filled that are small, or mostly `foreign` to the background."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    outside = set(np.unique(labels[_frame(mask.shape, 1)]))
    filled = mask.copy()
    for index in set(range(1, count)) - outside:
        hole = labels == index
        if stats[index, cv2.CC_STAT_AREA] < _HOLE * mask.sum() or foreign[hole].mean() > 0.5:
            filled |= hole
    return filled
