"""From photographs to an object of a library, without CAD: cut out, cropped as rendered views are, and stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ocdit_core.errors import ConfigError, ImageError, OcditError
from ocdit_core.images import read_image
from ocdit_core.objects.archive import TEMPLATE_SIZE, ObjectTemplates, check_name
from ocdit_core.objects.cutout import Mask, cut_out
from ocdit_core.objects.templates import CROP_MARGIN

CAPTURE_VERSION = 1
"""Raised when the same photographs would give other views."""
MIN_SIDE = 16
"""Pixels: a smaller object shows too little to be known by."""
PREVIEW_SIDE = 320
"""Longest side of a preview in pixels."""

_OUTLINE = (255, 0, 80)
Click = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """One photograph, to be looked at.

    Attributes:
        photo: its file.
        picture: (h, w, 3) uint8 RGB, made smaller, the cut-out's outline drawn on it.
        template: (128, 128, 3) uint8 RGB, the view that came of it; None where the photograph was refused.
    """

    photo: Path
    picture: np.ndarray
    template: np.ndarray | None


@dataclass(frozen=True, kw_only=True, eq=False)
class CapturedObject:
    """What came of some photographs.

    Attributes:
        templates: the object, one view for each photograph that could be used, in their order.
        problems: why the others could not, one for each.
        previews: of all photographs that could be read.
    """

    templates: ObjectTemplates
    problems: tuple[OcditError, ...]
    previews: tuple[Preview, ...]


def capture_object(
    name: str,
    photos: Sequence[str | Path],
    *,
    masks: Sequence[str | Path] | None = None,
    clicks: Sequence[Click] | None = None,
    diameter: float | None = None,
    on_error: Callable[[Path, OcditError], None] | None = None,
) -> CapturedObject:
    """Make an object from photographs of its sides.

    Each photograph's object is found by its mask, if masks are given; else by its transparency, if it has any; else
    by a click; else by its plain background (see `cutout.cut_out`). A photograph that cannot be used is left out.

    Args:
        name: of the object.
        photos: any number of pictures; all that can be used are kept, `ObjectTemplates.best_views` chooses at use.
        masks: a picture for each photograph, of the same size, above 127 on the object. They belong to the
            photographs of the same stem, or, where no stem is shared, come in the same order.
        clicks: x, y of a point on the object in pixels, for each photograph or one for all, in the picture as it is
            shown (after the rotation that EXIF may ask for).
        diameter: of the object in metres, if known.
        on_error: called at once for each photograph that cannot be used.

    Raises:
        ConfigError: a bad name or diameter, no photograph, both masks and clicks, or another number of them.
        ImageError: not one photograph can be used.
    """
    paths = [Path(photo) for photo in photos]
    check_name(name)
    if diameter is not None and not (math.isfinite(diameter) and diameter > 0):
        raise ConfigError(f"diameter: {diameter:g} m is not a length above 0; leave it out if it is not known")
    taken: list[_Taken] = []
    first: dict[bytes, Path] = {}
    for shot in _plan(paths, masks, clicks):
        result = _take(shot, first)
        taken.append(result)
        if result.error is not None and on_error is not None:
            on_error(shot.photo, result.error)
    problems = tuple(result.error for result in taken if result.error is not None)
    used = [(result, result.view) for result in taken if result.view is not None]
    if not used:
        count = f"none of the {len(paths)} photos can be used" if len(paths) > 1 else "the only photo cannot be used"
        raise ImageError(f"{name}: {count}" + ("" if on_error else f"; the first: {problems[0]}"))
    digest = hashlib.sha256()
    for content in (content for result, _ in used for content in result.contents):
        digest.update(content)
    views = [view for _, view in used]
    templates = ObjectTemplates(
        name=name,
        rgb=np.stack([view.rgb for view in views]),
        mask=np.stack([view.mask for view in views]),
        box=np.array([view.box for view in views], np.float32),
        K=np.full((len(views), 3, 3), np.nan),
        pose=np.full((len(views), 4, 4), np.nan),
        points=np.zeros((0, 3), np.float32),
        diameter=math.nan if diameter is None else float(diameter),
        origin="photos",
        unit="",
        sources=tuple(file.name for result, _ in used for file in result.shot.files),
        source_sha256=digest.hexdigest(),
        recipe=f"capture {CAPTURE_VERSION}: " + " ".join(result.shot.way for result, _ in used),
    )
    previews = tuple(result.preview for result in taken if result.preview is not None)
    return CapturedObject(templates=templates, problems=problems, previews=previews)


@dataclass(frozen=True, kw_only=True)
class _Shot:
    """A photograph, and how its object is to be found."""

    photo: Path
    mask: Path | None
    click: Click | None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.photo,) if self.mask is None else (self.photo, self.mask)

    @property
    def way(self) -> str:
        if self.mask is not None:
            return "mask"
        return "background" if self.click is None else f"{self.click[0]:g},{self.click[1]:g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    rgb: NDArray[np.uint8]
    mask: Mask
    box: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taken:
    """What came of one photograph: a view or an error."""

    shot: _Shot
    contents: tuple[bytes, ...]
    view: _View | None
    preview: Preview | None
    error: OcditError | None


def _plan(photos: list[Path], masks: Sequence[str | Path] | None, clicks: Sequence[Click] | None) -> list[_Shot]:
    if not photos:
        raise ConfigError("no photo was given")
    if masks is not None and clicks is not None:
        raise ConfigError("masks and clicks were given; either is enough")
    count = len(photos)
    if clicks is not None and len(clicks) not in (1, count):
        raise ConfigError(f"{len(clicks)} clicks were given for {count} photos; give one for each, or one for all")
    points = [None] * count if clicks is None else list(clicks) * (count if len(clicks) == 1 else 1)
    files = [None] * count if masks is None else pair_masks(photos, [Path(mask) for mask in masks])
    return [_Shot(photo=p, mask=m, click=c) for p, m, c in zip(photos, files, points, strict=True)]


def pair_masks(photos: Sequence[Path], masks: Sequence[Path]) -> list[Path]:
    """Return the mask of each photograph: that of the same stem, or, where no stem is shared, the one at its place.

    Raises:
        ConfigError: there are not as many masks as photographs, or only some share their stems.
    """
    if len(masks) != len(photos):
        raise ConfigError(f"{len(masks)} masks were given for {len(photos)} photos; give one for each")
    by_stem = {mask.stem: mask for mask in masks}
    lonely = [photo for photo in photos if photo.stem not in by_stem]
    unique = len(by_stem) == len(masks) and len({photo.stem for photo in photos}) == len(photos)
    if unique and not lonely:
        return [by_stem[photo.stem] for photo in photos]
    if unique and len(lonely) < len(photos):
        raise ConfigError(f"{lonely[0]}: no mask is called {lonely[0].stem}, though others are called as their photos")
    return list(masks)


def _take(shot: _Shot, first: dict[bytes, Path]) -> _Taken:
    """Make a view of a photograph; `first` holds the photographs so far by their contents."""
    contents: tuple[bytes, ...] = ()
    photo = view = error = None
    mask: Mask | None = None
    try:
        photo = read_image(shot.photo)
        mask = None if shot.mask is None else _read_mask(shot.mask, shot.photo, photo)
        contents = tuple(_read_bytes(file) for file in shot.files)
        earlier = first.setdefault(hashlib.sha256(contents[0]).digest(), shot.photo)
        if earlier is not shot.photo:
            raise ImageError(f"{shot.photo}: is the same picture as {earlier}; each photo is to show another side")
        if mask is None:
            mask = _find_mask(shot, photo)
        view = _crop(shot, photo, mask)
    except OcditError as problem:
        error = problem
    preview = None
    if photo is not None:
        template = None if view is None else view.rgb
        preview = Preview(photo=shot.photo, picture=_outlined(photo, mask), template=template)
    return _Taken(shot=shot, contents=contents, view=view, preview=preview, error=error)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def _read_mask(path: Path, photo_path: Path, photo: np.ndarray) -> Mask:
    values = read_image(path).max(axis=2)
    if values.shape != photo.shape[:2]:
        (h, w), (height, width) = values.shape, photo.shape[:2]
        raise ImageError(f"{path}: is {w} x {h} pixels, its photo {photo_path} {width} x {height}; they have to agree")
    mask = values > 127
    if not mask.any():
        raise ImageError(f"{path}: no pixel is above 127 (the largest is {values.max()}); the object's are to be 255")
    if mask.all():
        raise ImageError(f"{path}: all pixels are above 127; those outside the object are to be 0")
    return mask


def _find_mask(shot: _Shot, photo: np.ndarray) -> Mask:
    if shot.click is None and (opaque := _opaque(shot.photo)) is not None:
        return opaque
    try:
        return cut_out(photo, shot.click)
    except ImageError as error:
        raise ImageError(f"{shot.photo}: {error}") from error


def _opaque(path: Path) -> Mask | None:
    """Return where a picture that `read_image` could read is opaque; None when it is everywhere, or nowhere."""
    with Image.open(path) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return None
        alpha = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3]
    mask = np.asarray(alpha > 127)
    return mask if mask.any() and not mask.all() else None


def _crop(shot: _Shot, photo: np.ndarray, mask: Mask) -> _View:
    """Return the square around the object, with the margin that rendered views have."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if max(width, height) < MIN_SIDE:
        raise ImageError(f"{shot.photo}: the object is only {width} x {height} pixels; come closer to it")
    side = math.ceil(max(width, height) / (1 - 2 * CROP_MARGIN))
    left, top = x - (side - width) // 2, y - (side - height) // 2
    square = np.zeros((side, side, 4), np.float32)
    inside = np.s_[y - top : y - top + height, x - left : x - left + width]
    own = mask[y : y + height, x : x + width, None]
    # Colours are multiplied by coverage, as in rendered views: no background shines through along the rim.
    square[inside] = np.concatenate([photo[y : y + height, x : x + width] * own, own * np.float32(255)], axis=2)
    method = cv2.INTER_AREA if side > TEMPLATE_SIZE else cv2.INTER_LINEAR
    small = cv2.resize(square, (TEMPLATE_SIZE, TEMPLATE_SIZE), interpolation=method)
    covered = small[..., 3] > 127.5
    if not covered.any():
        raise ImageError(f"{shot.photo}: the object, {width} x {height} pixels, is too thin to be seen in a view")
    rgb = np.rint(np.clip(small[..., :3], 0, 255)).astype(np.uint8)
    return _View(rgb=rgb, mask=np.asarray(covered), box=(x, y, width, height))


def _outlined(photo: np.ndarray, mask: Mask | None) -> NDArray[np.uint8]:
    scale = min(1.0, PREVIEW_SIDE / max(photo.shape[:2]))
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    picture = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    if mask is not None:
        small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
        contours, _ = cv2.findContours(small.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, _OUTLINE, 2, cv2.LINE_AA)
    return np.asarray(picture, dtype=np.uint8)
