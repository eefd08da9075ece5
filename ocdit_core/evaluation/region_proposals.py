"""Class-agnostic region proposals by selective search, without learning.

After Uijlings et al., "Selective search for object recognition", IJCV 2013: superpixels are merged step by step, every
union of the hierarchy is a proposal, and two similarity measures give two hierarchies.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Bools = NDArray[np.bool_]

_SIDE = 320  # longer side in pixels to which the image is reduced
_STEP = 8  # distance of the superpixels' seeds in pixels of the reduced image
_MIN_AREA, _MAX_AREA = 0.0006, 0.5  # of a region, as fractions of the image
_MAX_IOU = 0.85  # of two regions with a larger IoU, the less salient one is dropped
_BINS = 16
_STRONG_EDGE = 20.0  # gradient in Lab units per pixel


def propose_regions(image: NDArray[np.uint8], count: int) -> tuple[Bools, Array]:
    """Return region proposals.

    Args:
        image: (H, W, 3) uint8 RGB.
        count: maximum number of proposals N.

    Returns:
        Masks (N, h, w) at reduced size, by descending saliency, and the saliency (N,).
    """
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    if min(size) < 2 * _STEP:
        return np.zeros((0, size[1], size[0]), bool), np.zeros(0, np.float32)
    pixels = find_superpixels(small, _STEP)
    members = np.concatenate([_hierarchy(pixels, similarity) for similarity in (_appearance, _border)])
    members = np.concatenate([np.eye(len(pixels.areas), dtype=bool), members])
    areas = members @ pixels.areas
    total = pixels.areas.sum()
    members = members[(areas >= _MIN_AREA * total) & (areas <= _MAX_AREA * total)]
    saliency = _saliency(pixels, members)
    kept = _suppress(members, pixels.areas, saliency, count)
    return members[kept][:, pixels.labels], saliency[kept]


@dataclass(frozen=True, kw_only=True, eq=False)
class Superpixels:
    """Superpixels of an image, and their adjacency graph.

    Attributes:
        labels: (h, w) index of each pixel's superpixel.
        areas: (n,) pixels.
        boxes: (n, 4) left, top, right, bottom; right and bottom are exclusive.
        colours: (n, 3 * bins) pixels in each bin of the three Lab channels.
        edges: (e, 2) indices of adjacent superpixels, the smaller one first.
        lengths: (e,) length of the common border in pixels.
        contrasts: (e,) mean colour gradient over the border, 0 to about 1.
    """

    labels: NDArray[np.int32]
    areas: Array
    boxes: NDArray[np.int64]
    colours: Array
    edges: NDArray[np.int64]
    lengths: Array
    contrasts: Array


def find_superpixels(rgb: NDArray[np.uint8], step: int) -> Superpixels:
    """Return the superpixels of an image, by a watershed from the pixel with the lowest gradient of each square.

    Args:
        rgb: (h, w, 3) uint8.
        step: side of the squares in pixels.
    """
    smooth = cv2.GaussianBlur(rgb, (0, 0), 0.8)
    lab = np.asarray(cv2.cvtColor(smooth.astype(np.float32) / 255, cv2.COLOR_RGB2Lab), np.float32)
    across, down = (cv2.Sobel(lab, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    gradient = np.asarray(np.sqrt((across**2 + down**2).sum(axis=2)), np.float32)
    height, width = gradient.shape
    markers = np.zeros((height, width), np.int32)
    number = 0
    for top in range(0, height - step // 2, step):
        for left in range(0, width - step // 2, step):
            cell = gradient[top : top + step, left : left + step]
            y, x = np.unravel_index(cell.argmin(), cell.shape)
            number += 1
            markers[top + y, left + x] = number
    cv2.watershed(smooth, markers)
    # Pixels of the watershed lines join an adjacent superpixel.
    lines = markers < 1
    while lines.any():
        markers[lines] = cv2.dilate(np.maximum(markers, 0).astype(np.float32), np.ones((3, 3)))[lines]
        lines = markers < 1
    labels = np.unique(markers, return_inverse=True)[1].reshape(height, width).astype(np.int32)
    return _describe(labels, lab, gradient)


def _describe(labels: NDArray[np.int32], lab: Array, gradient: Array) -> Superpixels:
    flat, count = labels.ravel(), int(labels.max()) + 1
    unit = np.stack([lab[..., 0] / 100, 0.5 + lab[..., 1] / 200, 0.5 + lab[..., 2] / 200], axis=-1)
    # Most real colours lie close to the grey axis.
    unit[..., 1:] = 0.5 + 0.5 * np.sign(unit[..., 1:] - 0.5) * np.sqrt(np.abs(2 * unit[..., 1:] - 1))
    bins = np.clip((unit * _BINS).astype(np.int64), 0, _BINS - 1).reshape(-1, 3)
    colours = np.concatenate(
        [np.bincount(flat * _BINS + bins[:, k], minlength=count * _BINS).reshape(count, _BINS) for k in range(3)],
        axis=1,
    )
    rows, columns = np.indices(labels.shape).reshape(2, -1)
    boxes = np.empty((count, 4), np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    boxes[:, 2:] = 0
    for axis, values in enumerate((columns, rows)):
        np.minimum.at(boxes[:, axis], flat, values)
        np.maximum.at(boxes[:, axis + 2], flat, values + 1)
    pairs, steps = [], []
    for before, after in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = labels[before] != labels[after]
        pairs.append(np.stack([labels[before][border], labels[after][border]], axis=1))
        steps.append((gradient[before][border] + gradient[after][border]) / 2)
    pair, place = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0, return_inverse=True)
    place = place.ravel()
    lengths = np.bincount(place, minlength=len(pair)).astype(np.float32)
    contrast = np.minimum(np.concatenate(steps) / _STRONG_EDGE, 1.0)
    return Superpixels(
        labels=labels,
        areas=np.bincount(flat).astype(np.float32),
        boxes=boxes,
        colours=colours.astype(np.float32),
        edges=pair.astype(np.int64),
        lengths=lengths,
        contrasts=(np.bincount(place, weights=contrast, minlength=len(pair)) / lengths).astype(np.float32),
    )


class _Regions:
    """Superpixels and the regions merged from them; one row each."""

    def __init__(self, pixels: Superpixels) -> None:
        count = len(pixels.areas)
        more = np.zeros(count - 1)
        self.total = float(pixels.areas.sum())
        self.areas = np.concatenate([pixels.areas, more])
        self.boxes = np.concatenate([pixels.boxes, np.zeros((count - 1, 4), np.int64)])
        self.colours = np.concatenate([pixels.colours, np.zeros((count - 1, pixels.colours.shape[1]))])
        self.members = np.zeros((2 * count - 1, count), bool)
        self.members[:count] = np.eye(count, dtype=bool)
        # Neighbours of each unmerged region: length of the border, and contrast summed over it.
        self.borders: list[dict[int, tuple[float, float]]] = [{} for _ in range(count)]
        for (a, b), length, contrast in zip(pixels.edges.tolist(), pixels.lengths, pixels.contrasts, strict=True):
            self.borders[a][b] = self.borders[b][a] = (float(length), float(length * contrast))

    def merge(self, a: int, b: int) -> int:
        """Merge two adjacent regions and return the index of the new one."""
        new = len(self.borders)
        for rows in (self.areas, self.colours):
            rows[new] = rows[a] + rows[b]
        self.boxes[new, :2] = np.minimum(self.boxes[a, :2], self.boxes[b, :2])
        self.boxes[new, 2:] = np.maximum(self.boxes[a, 2:], self.boxes[b, 2:])
        self.members[new] = self.members[a] | self.members[b]
        border: dict[int, tuple[float, float]] = {}
        for old in (a, b):
            for other, (length, contrast) in self.borders[old].items():
                del self.borders[other][old]
                if other not in (a, b):
                    known = border.get(other, (0.0, 0.0))
                    border[other] = (known[0] + length, known[1] + contrast)
            self.borders[old] = {}
        for other, values in border.items():
            self.borders[other][new] = values
        self.borders.append(border)
        return new


_Similarity = Callable[[_Regions, int, NDArray[np.int64]], NDArray[np.float64]]


def _appearance(regions: _Regions, one: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the colour, size and fill similarities of selective search."""
    mine = regions.colours[one] / regions.areas[one] / 3
    theirs = regions.colours[others] / regions.areas[others, None] / 3
    common: NDArray[np.float64] = np.minimum(mine, theirs).sum(axis=1)
    return common + _compactness(regions, one, others)


def _border(regions: _Regions, one: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Regions without an edge between them are similar; small ones are merged first."""
    means = [regions.borders[one][int(other)] for other in others]
    return 0.5 * _compactness(regions, one, others) - 4 * np.array([total / length for length, total in means])


def _compactness(regions: _Regions, one: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    areas = regions.areas[one] + regions.areas[others]
    low = np.minimum(regions.boxes[one, :2], regions.boxes[others, :2])
    high = np.maximum(regions.boxes[one, 2:], regions.boxes[others, 2:])
    gap = (high - low).prod(axis=1) - areas
    return (2 * regions.total - areas - gap) / regions.total


def _hierarchy(pixels: Superpixels, similarity: _Similarity) -> Bools:
    """Merge the most similar neighbours until one region is left; return the superpixels of each union."""
    regions = _Regions(pixels)
    heap = [
        (-float(value), one, int(other))
        for one, border in enumerate(regions.borders)
        for other, value in zip(border, similarity(regions, one, np.array(list(border), np.int64)), strict=True)
        if one < other
    ]
    heapq.heapify(heap)
    while heap:
        _, a, b = heapq.heappop(heap)
        if b not in regions.borders[a]:
            continue  # one of them is merged already
        new = regions.merge(a, b)
        others = np.array(list(regions.borders[new]), np.int64)
        for other, value in zip(others.tolist(), similarity(regions, new, others).tolist(), strict=True):
            heapq.heappush(heap, (-value, other, new))
    return regions.members[len(pixels.areas) : len(regions.borders)]


def _saliency(pixels: Superpixels, members: Bools) -> Array:
    """Return how much regions differ from their surroundings, by border contrast and colour, 0 to 1."""
    a, b = pixels.edges.T
    unit = pixels.colours / pixels.areas[:, None]
    strong = pixels.lengths * pixels.contrasts
    lengths, edge = np.zeros(len(members), np.float32), np.zeros(len(members), np.float32)
    around = np.zeros((len(members), unit.shape[1]), np.float32)
    for mine, theirs in ((a, b), (b, a)):
        crossing = (members[:, mine] & ~members[:, theirs]).astype(np.float32)
        lengths += crossing @ pixels.lengths
        edge += crossing @ strong
        # Adjacent superpixels are weighted by the length of the common border.
        around += crossing @ (pixels.lengths[:, None] * unit[theirs])
    inside = members.astype(np.float32)
    own = inside @ pixels.colours / (inside @ pixels.areas)[:, None]
    lengths = np.maximum(lengths, 1)
    colour = 1 - np.minimum(own, around / lengths[:, None]).sum(axis=1) / 3
    return np.asarray(np.sqrt(edge / lengths * colour), dtype=np.float32)


def _suppress(members: Bools, areas: Array, saliency: Array, count: int) -> NDArray[np.int64]:
    """Return the indices of at most `count` most salient regions after non-maximum suppression."""
    kept: list[int] = []
    inside = members.astype(np.float32)
    sizes = inside @ areas
    for index in np.argsort(-saliency, kind="stable"):
        if kept:
            common = inside[kept] @ (inside[index] * areas)
            if (common > _MAX_IOU * (sizes[kept] + sizes[index] - common)).any():
                continue
        kept.append(int(index))
        if len(kept) == count:
            break
    return np.array(kept, np.int64)
