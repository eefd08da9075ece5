"""Class-agnostic region proposals by selective search, without learning.

After Uijlings et al., "Selective search for object recognition", IJCV 2013: superpixels are merged step by step, and
every union of the hierarchy is a proposal.
"""

from __future__ import annotations

import heapq
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
_BINS = 16  # of each Lab channel
_STRONG_EDGE = 20.0  # gradient in Lab units per pixel
_CONTRAST_WEIGHT = 2.0  # of the contrast over the common border in the similarity of two regions


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
    if min(size) < 2 * _STEP:
        return np.zeros((0, size[1], size[0]), bool), np.zeros(0, np.float32)
    pixels = find_superpixels(np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), _STEP)
    members = _merge(pixels)
    areas = members @ pixels.areas / (size[0] * size[1])
    members = members[(areas >= _MIN_AREA) & (areas <= _MAX_AREA)]
    saliency = _saliency(pixels, members)
    kept = _suppress(members, pixels.areas, saliency, count)
    return members[kept][:, pixels.labels], saliency[kept]


def lab_unit(rgb: NDArray[np.uint8] | Array) -> Array:
    """Return CIE Lab, each channel in [0, 1], of (h, w, 3) RGB: uint8, or float32 in [0, 1].

    Most real colours lie close to the grey axis, which the square root of the colour axes spreads.
    """
    unit = np.asarray(rgb, np.float32) / np.float32(255 if rgb.dtype == np.uint8 else 1)
    lab = np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2Lab), np.float32)
    colour = lab[..., 1:]
    lab[..., 1:] = 0.5 + 0.5 * np.sign(colour) * np.sqrt(np.minimum(np.abs(colour) / 110, 1))
    lab[..., 0] /= 100
    return lab


@dataclass(frozen=True, kw_only=True, eq=False)
class Superpixels:
    """Superpixels of an image, and their adjacency graph.

    Attributes:
        labels: (h, w) index of each pixel's superpixel.
        areas: (n,) pixels.
        boxes: (n, 4) left, top, -right, -bottom, so that the box of a union is the minimum; right and bottom are
            exclusive.
        colours: (n, 3 * bins) pixels in each bin of the three Lab channels.
        edges: (e, 2) indices of adjacent superpixels, the smaller one first.
        lengths: (e,) length of the common border in pixels.
        contrasts: (e,) mean colour gradient over the border, 0 to 1.
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
    smooth = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 0.8), np.uint8)
    lab = np.asarray(cv2.cvtColor(smooth.astype(np.float32) / 255, cv2.COLOR_RGB2Lab), np.float32)
    across, down = (cv2.Sobel(lab, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    gradient = np.asarray(np.sqrt((across**2 + down**2).sum(axis=2)), np.float32)
    height, width = gradient.shape
    markers = np.zeros((height, width), np.int32)
    for top in range(0, height - step // 2, step):
        for left in range(0, width - step // 2, step):
            cell = gradient[top : top + step, left : left + step]
            y, x = np.unravel_index(cell.argmin(), cell.shape)
            markers[top + y, left + x] = markers.max() + 1
    cv2.watershed(smooth, markers)
    # Pixels of the watershed lines join an adjacent superpixel.
    while (lines := markers < 1).any():
        markers[lines] = cv2.dilate(np.maximum(markers, 0).astype(np.float32), np.ones((3, 3)))[lines]
    labels = np.unique(markers, return_inverse=True)[1].reshape(height, width).astype(np.int32)
    flat, count = labels.ravel(), int(labels.max()) + 1
    bins = np.minimum((lab_unit(smooth) * _BINS).astype(np.int64), _BINS - 1).reshape(-1, 3)
    colours = [np.bincount(flat * _BINS + bins[:, k], minlength=count * _BINS).reshape(count, _BINS) for k in range(3)]
    rows, columns = np.indices(labels.shape).reshape(2, -1)
    boxes = np.full((count, 4), max(labels.shape))
    np.minimum.at(boxes, flat, np.stack([columns, rows, -columns - 1, -rows - 1], axis=1))
    pairs, steps = [], []
    for before, after in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = labels[before] != labels[after]
        pairs.append(np.stack([labels[before][border], labels[after][border]], axis=1))
        steps.append((gradient[before][border] + gradient[after][border]) / 2)
    edges, place = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0, return_inverse=True)
    place = place.ravel()
    lengths = np.bincount(place, minlength=len(edges)).astype(np.float32)
    contrast = np.minimum(np.concatenate(steps) / _STRONG_EDGE, 1.0)
    return Superpixels(
        labels=labels,
        areas=np.bincount(flat).astype(np.float32),
        boxes=boxes,
        colours=np.concatenate(colours, axis=1).astype(np.float32),
        edges=edges.astype(np.int64),
        lengths=lengths,
        contrasts=(np.bincount(place, weights=contrast, minlength=len(edges)) / lengths).astype(np.float32),
    )


def _merge(pixels: Superpixels) -> Bools:
    """Merge the most similar neighbours until one region is left; return the superpixels (R, n) of every region.

    The similarity is the sum of the colour, size and fill similarities of selective search, less the contrast over the
    common border.
    """
    count = len(pixels.areas)
    total = pixels.areas.sum()
    members = np.zeros((2 * count - 1, count), bool)
    members[:count] = np.eye(count, dtype=bool)
    areas, boxes, colours = (
        np.concatenate([rows, np.zeros((count - 1, *rows.shape[1:]), rows.dtype)])
        for rows in (pixels.areas, pixels.boxes, pixels.colours)
    )
    # Neighbours of each unmerged region: length of the border, and contrast summed over it.
    borders: list[dict[int, tuple[float, float]]] = [{} for _ in range(count)]
    for (a, b), length, contrast in zip(pixels.edges.tolist(), pixels.lengths, pixels.contrasts, strict=True):
        borders[a][b] = borders[b][a] = (float(length), float(length * contrast))
    heap: list[tuple[float, int, int]] = []

    def push(one: int) -> None:
        others = np.array([other for other in borders[one] if other < one], np.int64)
        contrasts = np.array([borders[one][int(other)][1] / borders[one][int(other)][0] for other in others])
        low_x, low_y, high_x, high_y = np.minimum(boxes[one], boxes[others]).T
        intersections = np.minimum(colours[one] / areas[one], colours[others] / areas[others, None]).sum(axis=1) / 3
        similarities = intersections - (high_x + low_x) * (high_y + low_y) / total - _CONTRAST_WEIGHT * contrasts
        for other, similarity in zip(others.tolist(), similarities.tolist(), strict=True):
            heapq.heappush(heap, (-similarity, other, one))

    for one in range(count):
        push(one)
    while heap:
        _, a, b = heapq.heappop(heap)
        if b not in borders[a]:
            continue  # one of them is merged already
        new = len(borders)
        areas[new], colours[new] = areas[a] + areas[b], colours[a] + colours[b]
        boxes[new], members[new] = np.minimum(boxes[a], boxes[b]), members[a] | members[b]
        borders.append({})
        for old in (a, b):
            for other, (length, contrast) in borders[old].items():
                del borders[other][old]
                if other not in (a, b):
                    known = borders[new].get(other, (0.0, 0.0))
                    borders[new][other] = borders[other][new] = (known[0] + length, known[1] + contrast)
            borders[old] = {}
        push(new)
    return members[: len(borders)]


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
        common = inside[kept] @ (inside[index] * areas)
        if not (common > _MAX_IOU * (sizes[kept] + sizes[index] - common)).any():
            kept.append(int(index))
            if len(kept) == count:
                break
    return np.array(kept, np.int64)
