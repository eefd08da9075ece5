"""From photographs to an object of a library, without CAD: cut out, cropped as rendered views are, and stored."""

import hashlib
import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdit_core.errors import ConfigError, ImageError, OcditError
from ocdit_core.images import decode_image, decode_pixels, read_bytes, shrunk
from ocdit_core.masks import Box, tight_box
from ocdit_core.objects.archive import TEMPLATE_SIZE, ObjectTemplates, check_name
from ocdit_core.objects.cutout import Mask, cut_out
from ocdit_core.objects.templates import CROP_MARGIN

logger = logging.getLogger(__name__)

CAPTURE_VERSION = 1  # raised when the same photographs would give other views
MIN_SIDE = 16  # pixels: a smaller object is refused
PREVIEW_SIDE = 320  # longest side of a preview in pixels
_OUTLINE = (255, 0, 80)
_ORIENTATION = 0x0112  # EXIF tag
Click = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """One photograph, reduced, with the outline of the cut-out, (h, w, 3) uint8 RGB; no template if it was refused."""

    photo: Path
    image: np.ndarray
    template: np.ndarray | None


@dataclass(frozen=True, kw_only=True, eq=False)
class CapturedObject:
    """Result of `capture_object`: a view of each usable photograph, why others were refused, and all that were read."""

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

    In each photograph the object is found by its mask, if masks are given; else by its transparency, if it has any;
    else by a click; else by its plain background (see `cutout.cut_out`). Unusable photographs are left out.

    Args:
        name: name of the object.
        photos: image files; all usable ones are kept, `ObjectTemplates.best_views` chooses later.
        masks: an image of the same size for each photograph, above 127 on the object; see `pair_masks`.
        clicks: x, y of a point on the object in pixels, for each photograph or one for all, in the image as displayed
            (after EXIF rotation).
        diameter: diameter of the object in metres, if known.
        on_error: called at once for each photograph that cannot be used.

    Raises:
        ConfigError: a bad name or diameter, no photograph, both masks and clicks, a wrong number of them, or masks
            whose names do not tell their photographs.
        ImageError: not one photograph can be used.
    """
    check_name(name)
    if diameter is not None and not (math.isfinite(diameter) and diameter > 0):
        raise ConfigError(f"diameter: {diameter:g} m is not a length above 0; leave it out if it is not known")
    shots = _shots([Path(photo) for photo in photos], masks, clicks)
    problems: list[OcditError] = []
    previews: list[Preview] = []
    used: list[_Shot] = []
    first: dict[bytes, Path] = {}
    for shot in shots:
        image = mask = template = None
        try:
            contents = [read_bytes(file) for file in shot.files]
            image = decode_image(contents[0], str(shot.photo))
            earlier = first.setdefault(hashlib.sha256(contents[0]).digest(), shot.photo)
            if earlier is not shot.photo:
                raise ImageError(f"{shot.photo}: is the same image as {earlier}; each photo must show another side")
            mask = _mask_of(shot, contents, image)
            template, shot.mask, shot.box = _crop(shot.photo, image, mask)
            shot.rgb, shot.content = template, b"".join(contents)
            used.append(shot)
        except OcditError as error:
            problems.append(error)
            if on_error is not None:
                on_error(shot.photo, error)
        if image is not None:
            previews.append(Preview(photo=shot.photo, image=_outlined(image, mask), template=template))
    if not used:
        count = f"none of the {len(shots)} photos can be used" if len(shots) > 1 else "the only photo cannot be used"
        raise ImageError(f"{name}: {count}" + ("" if on_error else f"; the first: {problems[0]}"))
    templates = ObjectTemplates(
        name=name,
        rgb=np.stack([shot.rgb for shot in used]),
        mask=np.stack([shot.mask for shot in used]),
        box=np.array([shot.box for shot in used], np.float32),
        K=np.full((len(used), 3, 3), np.nan),
        pose=np.full((len(used), 4, 4), np.nan),
        points=np.zeros((0, 3), np.float32),
        diameter=math.nan if diameter is None else float(diameter),
        origin="photos",
        unit="",
        sources=tuple(file.name for shot in used for file in shot.files),
        source_sha256=hashlib.sha256(b"".join(shot.content for shot in used)).hexdigest(),
        recipe=f"capture {CAPTURE_VERSION}: " + " ".join(shot.method for shot in used),
    )
    return CapturedObject(templates=templates, problems=tuple(problems), previews=tuple(previews))


@dataclass(eq=False)
class _Shot:
    """A photograph, how its object is found, and then its contents and its view."""

    photo: Path
    mask_file: Path | None
    click: Click | None
    content: bytes = b""
    rgb: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    mask: Mask = field(default_factory=lambda: np.zeros(0, bool))
    box: Box = (0, 0, 0, 0)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.photo,) if self.mask_file is None else (self.photo, self.mask_file)

    @property
    def method(self) -> str:
        if self.mask_file is not None:
            return "mask"
        return "background" if self.click is None else f"{self.click[0]:g},{self.click[1]:g}"


def _shots(photos: list[Path], masks: Sequence[str | Path] | None, clicks: Sequence[Click] | None) -> list[_Shot]:
    count = len(photos)
    if not photos:
        raise ConfigError("no photo was given")
    if masks is not None and clicks is not None:
        raise ConfigError("masks and clicks were given; either is enough")
    if clicks is not None and len(clicks) not in (1, count):
        raise ConfigError(f"{len(clicks)} clicks were given for {count} photos; give one for each, or one for all")
    points = [None] * count if clicks is None else list(clicks) * (count if len(clicks) == 1 else 1)
    files = [None] * count if masks is None else pair_masks(photos, [Path(mask) for mask in masks])
    for photo, mask in zip(photos, files if masks is not None else [], strict=False):
        logger.info("%s: mask %s", photo, mask)
    return [_Shot(*row) for row in zip(photos, files, points, strict=True)]


def pair_masks(photos: Sequence[Path], masks: Sequence[Path]) -> list[Path]:
    """Return the mask of each photograph, by their names.

    Names are compared without what all photographs, or all masks, have in common: 1.jpg belongs to 1.png, 1_mask.png,
    mask_0001.png or 1.jpg.png. Numbers count by their value. Where file names are not enough, whole paths are compared.

    Raises:
        ConfigError: there are not as many masks as photographs, or the names do not tell.
    """
    if len(masks) != len(photos):
        raise ConfigError(f"{len(masks)} masks were given for {len(photos)} photos; give one for each")
    for name_of in (lambda path: path.stem, lambda path: str(path.with_suffix(""))):
        photo_keys, mask_keys = _keys([name_of(path) for path in photos]), _keys([name_of(path) for path in masks])
        by_key = dict(zip(mask_keys, masks, strict=True))
        if len(by_key) == len(masks) and set(photo_keys) == by_key.keys():
            return [by_key[key] for key in photo_keys]
    raise ConfigError(
        f"the masks are not named after the photos, such as {photos[0].stem}_mask.png for {photos[0].name}; rename them"
    )


def _keys(names: list[str]) -> list[tuple[str | int, ...]]:
    """Return the words and numbers of each name without those at its start and end that all names share."""
    found = [re.findall(r"\d+|[^\W\d_]+", name) for name in names]
    words = [[int(word) if word.isdecimal() else word.lower() for word in row] for row in found]
    for end in (0, -1):
        while all(words) and len({(type(word[end]), word[end]) for word in words}) == 1 and len(words) > 1:
            for word in words:
                word.pop(end)
    # A single photograph and a single mask belong together.
    return [tuple(word) for word in words] if len(words) > 1 else [()]


def _mask_of(shot: _Shot, contents: list[bytes], image: np.ndarray) -> Mask:
    if shot.mask_file is not None:
        return _given_mask(shot, contents, image)
    pixels = decode_pixels(contents[0], str(shot.photo), upright=True)
    if shot.click is None and pixels.ndim == 3 and pixels.shape[2] == 4:
        largest = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        opaque = np.asarray(pixels[..., 3] > largest / 2)
        if not opaque.all():
            return opaque
    try:
        return cut_out(image, shot.click)
    except ImageError as error:
        raise ImageError(f"{shot.photo}: {error}") from error


def _given_mask(shot: _Shot, contents: list[bytes], image: np.ndarray) -> Mask:
    values = decode_image(contents[1], str(shot.mask_file)).max(axis=2)
    (h, w), (height, width) = values.shape, image.shape[:2]
    turned = _orientation(contents[0])
    if (h, w) != (height, width):
        hint = f"; the photo is rotated by its EXIF orientation {turned}, the mask is not" if turned != 1 else ""
        raise ImageError(f"{shot.mask_file}: is {w} x {h} pixels, its photo {shot.photo} {width} x {height}{hint}")
    # Orientations 5 to 8 swap width and height: there, equal sizes show that the mask is as the photo is displayed.
    if turned != 1 and _orientation(contents[1]) == 1 and (turned < 5 or width == height):
        hint = "if the object is missed in the sheet, rotate the mask as the photo is displayed"
        reason = f"is rotated by its EXIF orientation {turned}, its mask {shot.mask_file} has none"
        logger.warning("%s: %s: %s", shot.photo, reason, hint)
    mask = values > 127
    if not mask.any():
        reason = f"no pixel is above 127 (the largest is {values.max()}); those of the object must"
        raise ImageError(f"{shot.mask_file}: {reason}")
    if mask.all():
        raise ImageError(f"{shot.mask_file}: all pixels are above 127; those outside the object must be 0")
    return mask


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation of an image that could be decoded, 1 if it has none."""
    with Image.open(io.BytesIO(data)) as image:
        return int(image.getexif().get(_ORIENTATION, 1))


def _crop(photo: Path, image: np.ndarray, mask: Mask) -> tuple[NDArray[np.uint8], Mask, Box]:
    """Return the square around the object, with the margin that rendered views have: colours, mask; and its box."""
    x, y, width, height = box = tight_box(mask)
    if max(width, height) < MIN_SIDE:
        raise ImageError(f"{photo}: the object is only {width} x {height} pixels; take the photo closer to it")
    side = math.ceil(max(width, height) / (1 - 2 * CROP_MARGIN))
    left, top = x - (side - width) // 2, y - (side - height) // 2
    square = np.zeros((side, side, 4), np.float32)
    inside = np.s_[y - top : y - top + height, x - left : x - left + width]
    own = mask[y : y + height, x : x + width, None]
    # Colours are multiplied by coverage, as in rendered views: no background shows along the rim.
    square[inside] = np.concatenate([image[y : y + height, x : x + width] * own, own * np.float32(255)], axis=2)
    method = cv2.INTER_AREA if side > TEMPLATE_SIZE else cv2.INTER_LINEAR
    small = cv2.resize(square, (TEMPLATE_SIZE, TEMPLATE_SIZE), interpolation=method)
    covered = np.asarray(small[..., 3] > 127.5)
    if not covered.any():
        raise ImageError(f"{photo}: the object, {width} x {height} pixels, is too thin to be seen in a view")
    return np.rint(np.clip(small[..., :3], 0, 255)).astype(np.uint8), covered, box


def _outlined(image: np.ndarray, mask: Mask | None) -> NDArray[np.uint8]:
    image = shrunk(image, PREVIEW_SIDE).copy()
    if mask is not None:
        small = cv2.resize(mask.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_AREA) > 0.5
        contours, _ = cv2.findContours(small.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, contours, -1, _OUTLINE, 2, cv2.LINE_AA)
    return image
