"""Pictures for people: masks and names over the image, and the views by which each object is known."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ocdit_core.errors import ImageError
from ocdit_core.images import as_rgb8

if TYPE_CHECKING:
    from ocdit_core.inference.results import Segmentation
    from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary

Colour = tuple[int, int, int]

# Far apart in hue and lightness, none near black, grey or white, which pictures are full of.
PALETTE: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40), (255, 250, 200),
    (128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 160), (110, 80, 255),
)  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def object_colours(names: Iterable[str]) -> dict[str, Colour]:
    """Return an RGB colour for each name: no two alike up to 20 names, the same for the same set of names always.

    A name keeps its colour in other sets too, unless an alphabetically earlier name there claims the same one.
    """
    colours: dict[str, Colour] = {}
    taken: set[int] = set()
    for name in sorted(set(names)):
        if len(taken) == len(PALETTE):
            taken.clear()
        index = zlib.crc32(name.encode()) % len(PALETTE)
        while index in taken:
            index = (index + 1) % len(PALETTE)
        taken.add(index)
        colours[name] = PALETTE[index]
    return colours


def overlay(image: np.ndarray, segmentation: Segmentation, *, opacity: float = 0.45) -> np.ndarray:
    """Draw every instance over the image: a translucent mask, a crisp outline, and "name score" in a label.

    Args:
        image: (H, W, 3) uint8 RGB, the one that was segmented; it is not changed.
        segmentation: its result.
        opacity: of the masks, 0 to 1.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the image has another size than the one that was segmented.
    """
    canvas = as_rgb8(image).copy()
    if canvas.shape[:2] != tuple(segmentation.image_size):
        height, width = segmentation.image_size
        raise ImageError(f"the result is for an image of {width} x {height}, not {canvas.shape[1]} x {canvas.shape[0]}")
    colours = object_colours([*segmentation.target_ids, *(i.object_id for i in segmentation.instances)])
    thickness = max(1, round(min(canvas.shape[:2]) / 300))
    # The best instance is drawn last, on top.
    for instance in reversed(segmentation.instances):
        colour = colours[instance.object_id]
        tint = np.array(colour, np.float32) * opacity
        canvas[instance.mask] = np.rint(canvas[instance.mask] * (1 - opacity) + tint).astype(np.uint8)
        contours, _ = cv2.findContours(instance.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, (0, 0, 0), thickness + 2, cv2.LINE_AA)
        cv2.drawContours(canvas, contours, -1, colour, thickness, cv2.LINE_AA)
    placed: list[tuple[int, int, int, int]] = []
    for instance in segmentation.instances:
        text = f"{instance.object_id} {instance.score:.2f}"
        placed.append(_label(canvas, text, instance.box, colours[instance.object_id], placed))
    return canvas


def contact_sheet(objects: ObjectLibrary | Iterable[ObjectTemplates], *, views: int = 12, cell: int = 96) -> np.ndarray:
    """Draw a row of views for each object, under its name and size.

    Args:
        objects: a library, or some of its objects.
        views: at most so many for each object, those that cover it best.
        cell: side of one view in pixels.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: there is no object to show.
        LibraryError: an object's archive is damaged.
    """
    from ocdit_core.objects.library import ObjectLibrary

    chosen = [objects[name] for name in objects] if isinstance(objects, ObjectLibrary) else list(objects)
    if not chosen:
        raise ImageError("there is no object to show on a contact sheet")
    title = 22
    shown = [templates.best_views(views) for templates in chosen]
    columns = max(len(templates) for templates in shown)
    sheet = np.full((len(shown) * (cell + title), columns * cell, 3), 32, np.uint8)
    for row, templates in enumerate(shown):
        top = row * (cell + title)
        text = f"{templates.name}   {_length(templates.diameter)}"
        cv2.putText(sheet, _ascii(text), (6, top + 16), _FONT, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
        for column, view in enumerate(templates.rgb):
            picture = cv2.resize(view, (cell, cell), interpolation=cv2.INTER_AREA)
            sheet[top + title : top + title + cell, column * cell : (column + 1) * cell] = picture
    return sheet


def _length(metres: float) -> str:
    return f"{metres * 100:.1f} cm" if metres < 1 else f"{metres:.2f} m"


def _ascii(text: str) -> str:
    # OpenCV's fonts have no other letters: é becomes e, what has no such form a question mark.
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode()


def _label(
    canvas: np.ndarray,
    text: str,
    box: tuple[int, int, int, int],
    colour: Colour,
    placed: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Write a label at a box, inside the picture and clear of those placed already; returns its own rectangle."""
    height, width = canvas.shape[:2]
    text = _ascii(text)
    scale = float(np.clip(min(height, width) / 800, 0.4, 2.0))
    stroke = max(1, round(scale * 1.4))
    (wide, high), below = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = max(2, round(3 * scale))
    if wide + 2 * pad > width:
        # A long name in a small picture is written smaller rather than cut.
        scale, stroke = max(scale * (width - 2 * pad) / wide, 0.2), 1
        (wide, high), below = cv2.getTextSize(text, _FONT, scale, stroke)
    size = (wide + 2 * pad, high + below + 2 * pad)
    left = int(np.clip(box[0], 0, max(0, width - size[0])))
    lowest = max(0, height - size[1])
    # Above the box, just inside its top, under it; then whatever row near it is free.
    wishes = [
        box[1] - size[1],
        box[1],
        box[1] + box[3],
        *(box[1] + step * size[1] for step in (1, -2, 2, -3, 3, -4, 4)),
    ]
    rows = [int(np.clip(wish, 0, lowest)) for wish in wishes]
    top = next((row for row in rows if not any(_meet((left, row, *size), other) for other in placed)), rows[0])
    cv2.rectangle(canvas, (left, top), (left + size[0] - 1, top + size[1] - 1), colour, cv2.FILLED)
    light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    ink = (0, 0, 0) if light else (255, 255, 255)
    cv2.putText(canvas, text, (left + pad, top + pad + high), _FONT, scale, ink, stroke, cv2.LINE_AA)
    return (left, top, *size)


def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
