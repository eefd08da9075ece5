"""Location prompts that are drawn from the ground truth, as a person would give them; the same for every method."""

import cv2
import numpy as np

from ocdit_core.data.frame import Frame
from ocdit_core.inference.prompts import Prompt
from ocdit_core.masks import tight_box

KINDS = ("point", "scribble", "box", "mask")
"""point: a pixel at least half as far from the edge of the visible mask as the innermost one. scribble: the longest of
twenty straight lines between such pixels that stay in the mask. box: the tight box. mask: dilated by a twentieth of the
box, as a person or another detector would draw it."""

_SEED = 21
_LINES = 20
_DILATION = 0.05


def draw_prompt(kind: str, frame: Frame, index: int, object_id: str) -> Prompt:
    """Return a prompt for an object of a frame, drawn from its visible mask, which is not empty.

    Args:
        kind: one of KINDS.
        frame: the frame.
        index: index of the object in `annotations`.
        object_id: name of the object in the library.
    """
    mask = frame.mask(index)
    if kind == "point":
        return Prompt(object_id=object_id, points=[drawn_point(frame, index, mask)])
    if kind == "scribble":
        return Prompt(object_id=object_id, scribble=_line(mask, _generator(frame, index)))
    box = tight_box(mask)
    if kind == "box":
        return Prompt(object_id=object_id, box=box)
    side = 2 * round(_DILATION * (box[2] * box[3]) ** 0.5) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return Prompt(object_id=object_id, mask=cv2.dilate(mask.astype(np.uint8), kernel).astype(bool))


def drawn_point(frame: Frame, index: int, mask: np.ndarray) -> tuple[int, int]:
    """Return the point (x, y) that is drawn for an object of a frame, in its mask (H, W)."""
    return _points(mask, _generator(frame, index), 1)[0]


def _generator(frame: Frame, index: int) -> np.random.Generator:
    return np.random.default_rng([_SEED, max(frame.scene_id, 0), max(frame.image_id, 0), index])


def _points(mask: np.ndarray, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Return pixels (x, y) well inside a mask, any of them with equal probability."""
    left, top, width, height = tight_box(mask)
    # The outside of the image is no edge of the object, but the mask ends there.
    inner = np.pad(mask[top : top + height, left : left + width], 1).astype(np.uint8)
    distance = cv2.distanceTransform(inner, cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(distance >= distance.max() / 2)
    return [(int(columns[one]) + left, int(rows[one]) + top) for one in rng.integers(len(rows), size=count)]


def _line(mask: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    points = _points(mask, rng, 2 * _LINES)
    best = [points[0]]
    for begin, end in zip(points[::2], points[1::2], strict=True):
        drawn = cv2.line(np.zeros(mask.shape, np.uint8), begin, end, 1).astype(bool)
        if mask[drawn].all() and np.hypot(*np.subtract(begin, end)) > np.hypot(*np.subtract(best[0], best[-1])):
            best = [begin, end]
    return best
