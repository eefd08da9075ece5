"""Drawings: masks and names over an image, contact sheets of an object library, and of captured photographs."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ocdit_core.colours import Colour, object_colours
from ocdit_core.errors import ImageError
from ocdit_core.images import as_rgb8, write_image
from ocdit_core.masks import Box, box_iou
from ocdit_core.objects.gallery import length

if TYPE_CHECKING:
    from ocdit_core.inference.results import Segmentation
    from ocdit_core.objects.archive import ObjectTemplates
    from ocdit_core.objects.capture import Preview

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_OPACITY = 0.45  # of masks
_SHEET_GREY = 32
_SHEET_TITLE = 22
_VIEWS, _VIEW = 12, 96  # most views of an object, and their side in pixels


def overlay(image: np.ndarray, segmentation: Segmentation) -> np.ndarray:
    """Draw every instance over an image: a translucent mask, its outline, and a label with name and score.

    Args:
        image: (H, W, 3) uint8 RGB, the one that was segmented; it is not changed.
        segmentation: its result.

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
        tint = np.array(colour, np.float32) * _OPACITY
        canvas[instance.mask] = np.rint(canvas[instance.mask] * (1 - _OPACITY) + tint).astype(np.uint8)
        contours, _ = cv2.findContours(instance.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, (0, 0, 0), thickness + 2, cv2.LINE_AA)
        cv2.drawContours(canvas, contours, -1, colour, thickness, cv2.LINE_AA)
    placed: list[Box] = []
    for instance in segmentation.instances:
        text = f"{instance.object_id} {instance.score:.2f}"
        placed.append(_label(canvas, text, instance.box, colours[instance.object_id], placed))
    return canvas


def denoising_strips(crops: np.ndarray, masks: Mapping[float, np.ndarray], object_ids: Sequence[str]) -> np.ndarray:
    """Draw what `Segmenter.steps` returns: a row for each crop and member, a column for each noise level.

    Args:
        crops: (A + 1, h, w, 3) uint8 RGB.
        masks: by noise level, probabilities ((A + 1) E, O, h', w').
        object_ids: names of the O targets.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rows, _, height, width = next(iter(masks.values())).shape
    colours = np.array([object_colours(object_ids)[name] for name in object_ids], np.float32)
    small = np.stack([cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA) for crop in crops])
    base = small.repeat(rows // len(crops), axis=0).astype(np.float32)
    columns = [base]
    for found in masks.values():
        drawn = base * 0.5
        for colour, mask in zip(colours, np.moveaxis(found, 1, 0), strict=True):
            drawn += mask[..., None] * (colour - drawn)
        columns.append(drawn)
    title = np.full((_SHEET_TITLE, len(columns) * width, 3), _SHEET_GREY, np.uint8)
    for column, sigma in enumerate(masks, start=1):
        text = f"sigma {sigma:.3g}"
        cv2.putText(title, text, (column * width + 6, 16), _FONT, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([title, *np.concatenate(columns, axis=2).clip(0, 255).astype(np.uint8)])


class ContactSheets:
    """Contact sheets of any number of objects: a row of views for each, under its name and size.

    Objects are added one by one, and a page is written as soon as it is full. Up to 40 objects make one file, `path`
    itself; more make NAME_01.png, NAME_02.png ... of 40 each. Beyond 20 objects a page has two columns.

    Args:
        path: image file.
        count: number of objects that will be added, at most.
    """

    ROWS = 20

    def __init__(self, path: str | Path, count: int) -> None:
        self.written: list[Path] = []
        """The files, as they are written."""
        self._path = Path(path)
        self._columns = 1 if count <= self.ROWS else 2
        self._digits = max(2, len(str(-(-count // (2 * self.ROWS))))) if count > 2 * self.ROWS else 0
        self._rows: list[np.ndarray] = []

    def add(self, templates: ObjectTemplates) -> None:
        """Draw an object; raises ImageError if a page cannot be written."""
        self._rows.append(_sheet_row(templates))
        if len(self._rows) == self.ROWS * self._columns:
            self.finish()

    def finish(self) -> None:
        """Write the last page; raises ImageError if it cannot be written."""
        if not self._rows:
            return
        width, height, gap = max(row.shape[1] for row in self._rows), _SHEET_TITLE + _VIEW, 12
        columns = -(-len(self._rows) // self.ROWS)
        size = (min(len(self._rows), self.ROWS) * height, columns * (width + gap) - gap, 3)
        page = np.full(size, _SHEET_GREY, np.uint8)
        for at, row in enumerate(self._rows):
            left, top = at // self.ROWS * (width + gap), at % self.ROWS * height
            page[top : top + height, left : left + row.shape[1]] = row
        number = f"_{len(self.written) + 1:0{self._digits}d}" if self._digits else ""
        path = self._path.with_name(f"{self._path.stem}{number}{self._path.suffix}")
        write_image(path, page)
        self.written.append(path)
        self._rows = []


def capture_sheet(previews: Iterable[Preview]) -> np.ndarray:
    """Draw each photograph with the outline of its mask, beside the view that was made of it.

    Args:
        previews: previews of `capture_object`.

    Returns:
        (H, W, 3) uint8 RGB; a photograph that was refused has "not used" in place of its view.

    Raises:
        ImageError: there is no photograph to show.
    """
    tiles = [_capture_tile(preview) for preview in previews]
    if not tiles:
        raise ImageError("there is no photo to show on a sheet")
    columns = min(3, len(tiles))
    tiles += [np.full_like(tiles[0], _SHEET_GREY)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def _capture_tile(preview: Preview) -> np.ndarray:
    cell, wide, gap = 160, 213, 8
    tile = np.full((_SHEET_TITLE + cell + gap, wide + cell + 2 * gap, 3), _SHEET_GREY, np.uint8)
    height, width = preview.image.shape[:2]
    scale = min(wide / width, cell / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = cv2.resize(preview.image, size, interpolation=cv2.INTER_AREA)
    tile[_SHEET_TITLE : _SHEET_TITLE + size[1], wide - size[0] : wide] = shown
    right = np.s_[_SHEET_TITLE : _SHEET_TITLE + cell, wide + gap : wide + gap + cell]
    colour = (235, 235, 235)
    if preview.template is not None:
        tile[right] = cv2.resize(preview.template, (cell, cell), interpolation=cv2.INTER_AREA)
    else:
        colour = (255, 110, 100)
        cv2.putText(tile, "not used", (wide + 3 * gap, _SHEET_TITLE + cell // 2), _FONT, 0.5, colour, 1, cv2.LINE_AA)
    cv2.putText(tile, _ascii(preview.photo.name), (6, 16), _FONT, 0.45, colour, 1, cv2.LINE_AA)
    return tile


def _sheet_row(templates: ObjectTemplates) -> np.ndarray:
    """Return an object's views in a row, under its name and size."""
    shown = templates.best_views(_VIEWS)
    text = _ascii(f"{templates.name}   {length(templates.diameter)}")
    (wide, _), _ = cv2.getTextSize(text, _FONT, 0.45, 1)
    row = np.full((_SHEET_TITLE + _VIEW, max(len(shown) * _VIEW, wide + 12), 3), _SHEET_GREY, np.uint8)
    cv2.putText(row, text, (6, 16), _FONT, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    for column, view in enumerate(shown.rgb):
        image = cv2.resize(view, (_VIEW, _VIEW), interpolation=cv2.INTER_AREA)
        row[_SHEET_TITLE:, column * _VIEW : (column + 1) * _VIEW] = image
    return row


def _ascii(text: str) -> str:
    # OpenCV's fonts have no other letters: é becomes e, what has no such form a question mark.
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode()


def _label(canvas: np.ndarray, text: str, box: Box, colour: Colour, placed: list[Box]) -> Box:
    """Write a label at a box, inside the image and clear of those placed already; returns its own rectangle."""
    height, width = canvas.shape[:2]
    text = _ascii(text)
    scale = float(np.clip(min(height, width) / 800, 0.4, 2.0))
    stroke = max(1, round(scale * 1.4))
    (wide, high), below = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = max(2, round(3 * scale))
    if wide + 2 * pad > width:
        # A long name in a small image is written smaller rather than cut.
        scale, stroke = max(scale * (width - 2 * pad) / wide, 0.2), 1
        (wide, high), below = cv2.getTextSize(text, _FONT, scale, stroke)
    size = (wide + 2 * pad, high + below + 2 * pad)
    left = int(np.clip(box[0], 0, max(0, width - size[0])))
    lowest = max(0, height - size[1])
    # Above the box, just inside its top, under it; then whatever row near it is free.
    near = (box[1] + step * size[1] for step in (1, -2, 2, -3, 3, -4, 4))
    wishes = [box[1] - size[1], box[1], box[1] + box[3], *near]
    rows = [int(np.clip(wish, 0, lowest)) for wish in wishes]
    top = next((row for row in rows if not any(box_iou((left, row, *size), other) for other in placed)), rows[0])
    cv2.rectangle(canvas, (left, top), (left + size[0] - 1, top + size[1] - 1), colour, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
    cv2.putText(canvas, text, (left + pad, top + pad + high), _FONT, scale, ink, stroke, cv2.LINE_AA)
    return (left, top, *size)
