"""Superpixels: small regions of one colour that follow the edges of a picture, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_BINS = 16
_STRONG = 20.0  # Lab units a pixel: the edge of an object


@dataclass(frozen=True, kw_only=True, eq=False)
class Superpixels:
    """The superpixels of a picture.

    Attributes:
        labels: (h, w) number of each pixel's superpixel.
        areas: (n,) pixels.
        boxes: (n, 4) left, top, right, bottom; the latter two beyond the last pixel.
        colours: (n, 3 * bins) pixels in each bin of the three Lab channels.
        edges: (e, 2) numbers of neighbours, the smaller one first.
        lengths: (e,) pixels of their common border.
        contrasts: (e,) mean step of colour over that border, 0 to about 1.
    """

    labels: NDArray[np.int32]
    areas: Array
    boxes: NDArray[np.int64]
    colours: Array
    edges: NDArray[np.int64]
    lengths: Array
    contrasts: Array


def find_superpixels(rgb: NDArray[np.uint8], step: int) -> Superpixels:
    """Return the superpixels of a picture, by a watershed from the most even place of each square.

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
    # The watershed's own lines belong to whichever side is next to them.
    lines = markers < 1
    while lines.any():
        markers[lines] = cv2.dilate(np.maximum(markers, 0).astype(np.float32), np.ones((3, 3)))[lines]
        lines = markers < 1
    labels = np.unique(markers, return_inverse=True)[1].reshape(height, width).astype(np.int32)
    return _described(labels, lab, gradient)


def _described(labels: NDArray[np.int32], lab: Array, gradient: Array) -> Superpixels:
    flat, count = labels.ravel(), int(labels.max()) + 1
    unit = np.stack([lab[..., 0] / 100, 0.5 + lab[..., 1] / 200, 0.5 + lab[..., 2] / 200], axis=-1)
    # The two colour axes of real pictures are mostly near grey.
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
    contrast = np.minimum(np.concatenate(steps) / _STRONG, 1.0)
    return Superpixels(
        labels=labels,
        areas=np.bincount(flat).astype(np.float32),
        boxes=boxes,
        colours=colours.astype(np.float32),
        edges=pair.astype(np.int64),
        lengths=lengths,
        contrasts=(np.bincount(place, weights=contrast, minlength=len(pair)) / lengths).astype(np.float32),
    )
