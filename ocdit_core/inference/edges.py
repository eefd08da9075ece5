"""Edges: moves the borders of masks to edges of the image."""

import cv2
import numpy as np

# Longest side in pixels at which the borders are computed: the time grows with the number of pixels.
_SIDE = 192
# Standard deviation of the colours below which an image shows no edges. In a uniform one all borders cost the same, and
# GrabCut may take seconds.
_LEAST_CONTRAST = 3.0


def snap(image: np.ndarray, mask: np.ndarray, certain: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Return a mask (h, w) bool whose border lies on edges of the image, as near as possible to that of a given one.

    GrabCut (Rother et al., SIGGRAPH 2004), one iteration: a border costs less where neighbouring pixels differ, and a
    pixel costs less on the side whose colours it has.

    Args:
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) bool, the given mask.
        certain: (h, w) bool, pixels of the object, whatever the image shows.
        excluded: (h, w) bool, pixels that are not of the object.
    """
    height, width = mask.shape
    scale = min(_SIDE / max(height, width), 1)
    size = max(round(scale * width), 1), max(round(scale * height), 1)
    small, inside = cv2.resize(image, size, interpolation=cv2.INTER_AREA), _resized(mask, size, cv2.INTER_AREA)
    labels = np.where(inside, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_PR_BGD))
    labels[_resized(certain, size, cv2.INTER_NEAREST)] = cv2.GC_FGD
    labels[_resized(excluded, size, cv2.INTER_NEAREST)] = cv2.GC_BGD
    found = labels % 2 == 1  # both kinds of foreground
    if (
        found.all() or not found.any() or small.std(axis=(0, 1)).max() < _LEAST_CONTRAST
    ):  # it needs pixels of both kinds
        return mask
    cv2.setRNGSeed(0)
    # The rectangle is not used with GC_INIT_WITH_MASK.
    cv2.grabCut(small, labels, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 1, cv2.GC_INIT_WITH_MASK)
    found = (_resized(labels % 2 == 1, (width, height), cv2.INTER_LINEAR) | certain) & ~excluded
    return found if found.any() else mask


def _resized(mask: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Return a bool mask of another size (width, height)."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=interpolation) >= 0.5
