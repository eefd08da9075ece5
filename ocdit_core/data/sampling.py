"""Training samples from annotated frames: objects, crops, masks and templates (paper 4.1, A.3).

A coarse sample shows a large part of a frame and asks for several objects, most of which are present. A refine sample
shows the surroundings of one instance and asks for one object, which may be absent: refinement has to reject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocdit_core.data.augment import Crop, Rectangle, Size, augment_image, random_crop, replace_background, tight_crop
from ocdit_core.data.frame import Frame
from ocdit_core.data.painting import random_background
from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import ConfigError, DataError

Rng = np.random.Generator
Mask = NDArray[np.bool_]
Mode = Literal["coarse", "refine"]

MIN_VISIBLE, MIN_BOX = 0.1, 6
"""Instances with a smaller visible fraction, or a visible box with a shorter side in pixels, are not asked for."""
MIN_PIXELS = 12
"""An object of which a sample shows fewer pixels counts as absent."""

BACKGROUND_PROBABILITY = 0.05
"""Probability that all that belongs to no annotated object is replaced by a painted background."""
RANDOM_CROP_PROBABILITY = 0.75
"""Probability that a coarse sample shows a random crop, not a tight one around the chosen objects."""
MARGIN: dict[Mode, tuple[float, float]] = {"coarse": (0.02, 0.5), "refine": (0.15, 0.8)}
"""Range of the border on each side of a tight crop, relative to the objects' box."""
SHIFT: dict[Mode, float] = {"coarse": 0.15, "refine": 0.2}
"""Largest shift of a tight crop, relative to the objects' box."""
ELSEWHERE_PROBABILITY = 0.5
"""Probability that a negative asks for an object elsewhere in the frame; else for one that the frame does not have."""

_REACH = 0.05  # distance, relative to the frame's diagonal, at which an object is half as probable as at the point
_BACKGROUND_PROBABILITY = 0.3  # of a negative crop that is not laid around another object
_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Content and sampling of a training sample.

    Attributes:
        objects: objects that a sample asks for (O); refine: 1.
        views: templates of an object (V).
        crops: images in a sample (S): crops of one frame, which share objects and templates.
        crop_scale: coarse: range of the size of a random crop, relative to the largest that fits into the frame.
        absent_probability: coarse: probability for each object to be absent. Frames with too few objects are filled up
            with absent ones in any case.
        negative_probability: refine: probability that the image does not show the object asked for.
        hard_negatives: refine: number of absent objects of which the one is asked for whose colours are most like
            those of the object in the crop; 1: any.
        flip_probability: probability that the images and templates of a sample are mirrored, all of them.
    """

    objects: int = 4
    views: int = 6
    crops: int = 1
    crop_scale: tuple[float, float] = (0.35, 0.95)
    absent_probability: float = 0.1
    negative_probability: float = 0.3
    hard_negatives: int = 1
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        if min(self.objects, self.views, self.crops, self.hard_negatives) < 1:
            raise ConfigError("objects, views, crops and hard_negatives must be at least 1")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale: {self.crop_scale} must be two ascending numbers above 0 and up to 1")
        for name in ("absent_probability", "negative_probability", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in 0..1")


def make_sample(
    frame: Frame,
    templates: TemplateCache,
    settings: SampleSettings,
    rng: Rng,
    *,
    mode: Mode,
    size: Size,
    augment: bool = True,
) -> dict[str, Tensor] | None:
    """Draw a sample from a frame; the same state of `rng` gives the same sample.

    Where an object has several instances in the frame, a coarse mask holds all of them; a refine mask holds the one
    that the crop was laid around.

    Args:
        frame: an annotated image; only what is needed of it is decoded.
        templates: templates of the dataset's objects.
        settings: what the sample holds.
        rng: source of randomness.
        mode: coarse or refine.
        size: height and width in pixels of the images.
        augment: change colours, focus and background of the images.

    Returns:
        See `pack_sample`; None when no object of the frame is visible enough.

    Raises:
        DataError: the frame is damaged, or none of its objects has templates.
        LibraryError: an object's archive is damaged.
    """
    scene = _Scene(frame, templates, settings, size)
    if not scene.instances:
        return None
    object_ids, crops, shown = (_draw_coarse if mode == "coarse" else _draw_refine)(scene, rng)

    # A reduction that still leaves every crop at least as large as the sample is cheaper to decode.
    factor = next(f for f in (8, 4, 2, 1) if f == 1 or all(c.height >= f * size[0] for c in crops))
    crops = [crop.aligned(factor) for crop in crops]
    reduced = frame.image(reduction=factor)
    images, masks = [], []
    for crop, instances in zip(crops, shown, strict=True):
        image = crop.reduced(factor).image(reduced, size)
        if augment:
            if rng.random() < BACKGROUND_PROBABILITY:
                image = replace_background(image, scene.foreground(crop), random_background(rng, size).astype(np.uint8))
            image = augment_image(rng, image)
        images.append(image)
        masks.append(np.stack([scene.union(indices, crop) for indices in instances]))
    views = [templates.draw(rng, i, settings.views) for i in object_ids]
    if settings.flip_probability and rng.random() < settings.flip_probability:
        # Together: a mirrored object is another object, which only its mirrored templates show.
        images, masks = [image[:, ::-1] for image in images], [mask[..., ::-1] for mask in masks]
        views = [view[:, :, ::-1] for view in views]
    return pack_sample(images, masks, views, object_ids)


def pack_sample(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[Mask],
    views: Sequence[NDArray[np.uint8]],
    object_ids: Sequence[int],
) -> dict[str, Tensor]:
    """Return a sample as tensors.

    Args:
        images: S images (H, W, 3), sRGB.
        masks: for each, the visible pixels of each object (O, H, W).
        views: for each of O objects, its templates (V, h, w, 4): RGB on black, and the mask.
        object_ids: numbers of the objects.

    Returns:
        images (S, 3, H, W) uint8 sRGB; templates (O, V, 3, h, w) uint8 on black; template_masks (O, V, h, w) uint8,
        0 or 255; masks (S, O, H, W) uint8, 0 or 1; present (S, O) bool: at least MIN_PIXELS are visible, else the mask
        is empty; object_ids (O,) int64.
    """
    seen = np.stack(masks)
    present = seen.sum(axis=(2, 3)) >= MIN_PIXELS
    seen = seen & present[..., None, None]
    stacked = np.stack(views)
    return {
        "images": _channels_first(np.stack(images)),
        "templates": _channels_first(stacked[..., :3]),
        "template_masks": torch.from_numpy(np.where(stacked[..., 3] > 127, np.uint8(255), np.uint8(0))),
        "masks": torch.from_numpy(seen.view(np.uint8)),
        "present": torch.from_numpy(present),
        "object_ids": torch.tensor([int(number) for number in object_ids], dtype=torch.int64),
    }


def nearest_objects(
    rng: Rng, point: tuple[float, float], boxes: Mapping[int, Sequence[Rectangle]], count: int, *, reach: float
) -> list[int]:
    """Draw at most `count` objects, those near a point (x, y) with greater probability (paper 4.1).

    Args:
        rng: source of randomness.
        point: x, y in pixels.
        boxes: boxes of each object's instances, by object number.
        count: how many to draw.
        reach: the distance in pixels at which an object is half as probable as at the point itself.
    """
    ids = list(boxes)
    if len(ids) <= count:
        return [ids[i] for i in rng.permutation(len(ids))]
    near = np.array([min(distance(point, box) for box in boxes[number]) for number in ids])
    weights = 1 / (1 + near / reach)
    return [ids[i] for i in rng.choice(len(ids), count, replace=False, p=weights / weights.sum())]


def distance(point: tuple[float, float], box: Rectangle) -> float:
    """Return the distance in pixels from a point to the nearest point of a box; 0 inside."""
    x, y, width, height = box
    right = max(x - point[0], 0.0, point[0] - (x + width))
    down = max(y - point[1], 0.0, point[1] - (y + height))
    return float(np.hypot(right, down))


def random_point(rng: Rng, mask: Mask) -> tuple[float, float] | None:
    """Return x, y of a random pixel of a mask (H, W), or None where it is empty."""
    seen = np.flatnonzero(mask)
    if not seen.size:
        return None
    row, column = divmod(int(seen[rng.integers(seen.size)]), mask.shape[1])
    return float(column), float(row)


def union_box(boxes: Sequence[Rectangle]) -> Rectangle:
    """Return the smallest box that holds all the given ones."""
    corners = np.array([(x, y, x + width, y + height) for x, y, width, height in boxes])
    left, top = corners[:, :2].min(axis=0)
    right, bottom = corners[:, 2:].max(axis=0)
    return float(left), float(top), float(right - left), float(bottom - top)


@dataclass(frozen=True)
class _Instance:
    index: int
    object_id: int
    box: Rectangle


# Object numbers (O); for each of S crops, for each object, the indices of the instances that its mask holds.
_Drawn = tuple[list[int], list[Crop], list[list[list[int]]]]


class _Scene:
    """A frame for sampling: its instances with templates, and masks that are decoded at most once."""

    def __init__(self, frame: Frame, templates: TemplateCache, settings: SampleSettings, size: Size) -> None:
        self.frame, self.templates, self.settings, self.size = frame, templates, settings, size
        self._masks: dict[int, Mask] = {}
        annotations = frame.annotations
        self.ids = {a.object_id for a in annotations}
        known = [i for i, a in enumerate(annotations) if templates.has(a.object_id, frame.where)]
        if annotations and not known:
            missing = ", ".join(str(i) for i in sorted(self.ids))
            raise DataError(
                f"{frame.where}: none of its objects ({missing}) has templates in {templates.library.path}",
                kind="no templates",
            )
        # All visible instances, and those that are visible enough to be asked for.
        boxes = [(i, frame.visible_box(i)) for i in known]
        self.seen = [_Instance(i, annotations[i].object_id, box) for i, box in boxes if box is not None]
        self.instances = [
            instance
            for instance in self.seen
            # NaN, which is "not known", passes.
            if not annotations[instance.index].visible_fraction < MIN_VISIBLE and min(instance.box[2:]) >= MIN_BOX
        ]

    def mask(self, index: int) -> Mask:
        if index not in self._masks:
            self._masks[index] = self.frame.mask(index)
        return self._masks[index]

    def union(self, indices: list[int], crop: Crop) -> Mask:
        """Return the visible pixels of some instances in a crop, at the sample's size."""
        total = np.zeros(self.size, bool)
        for index in indices:
            total |= crop.mask(self.mask(index), self.size)
        return total

    def foreground(self, crop: Crop) -> Mask:
        """Return the visible pixels of all annotated objects in a crop, including those without templates."""
        boxes = [annotation.box_visible for annotation in self.frame.annotations]
        return self.union([i for i, box in enumerate(boxes) if box is None or crop.meets(box)], crop)

    def of(self, object_id: int, crop: Crop) -> list[int]:
        """Return the object's instances that a crop may show."""
        return [i.index for i in self.seen if i.object_id == object_id and crop.meets(i.box)]

    def tight_crop(self, rng: Rng, box: Rectangle, mode: Mode) -> Crop:
        """Draw a crop around a box of the frame."""
        return tight_crop(rng, box, self.frame.size, self.size, margin=MARGIN[mode], shift=SHIFT[mode])

    def absent(self, rng: Rng, count: int) -> list[int]:
        """Draw at most `count` objects of the library that the frame does not have."""
        free = [i for i in self.templates.object_ids if i not in self.ids]
        return [free[i] for i in rng.choice(len(free), min(count, len(free)), replace=False)]


def _draw_coarse(scene: _Scene, rng: Rng) -> _Drawn:
    settings = scene.settings
    areas = np.array([instance.box[2] * instance.box[3] for instance in scene.instances])
    first = scene.instances[int(rng.choice(len(areas), p=areas / areas.sum()))]
    point = random_point(rng, scene.mask(first.index))
    if point is None:
        raise DataError(f"{scene.frame.where}: the mask of object {first.index} is empty, its box is not", kind="mask")
    present = max(settings.objects - int(rng.binomial(settings.objects, settings.absent_probability)), 1)
    boxes: dict[int, list[Rectangle]] = {}
    for instance in scene.instances:
        boxes.setdefault(instance.object_id, []).append(instance.box)
    reach = _REACH * float(np.hypot(*scene.frame.size))
    chosen = nearest_objects(rng, point, boxes, present, reach=reach)
    box = union_box([box for i in chosen for box in boxes[i]])
    chosen += scene.absent(rng, settings.objects - len(chosen))
    if len(chosen) < settings.objects:  # a small library: any others
        chosen += [i for i in scene.templates.object_ids if i not in chosen][: settings.objects - len(chosen)]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    crops = [
        random_crop(rng, scene.frame.size, scene.size, settings.crop_scale, point)
        if rng.random() < RANDOM_CROP_PROBABILITY
        else scene.tight_crop(rng, box, "coarse")
        for _ in range(settings.crops)
    ]
    return chosen, crops, [[scene.of(i, crop) for i in chosen] for crop in crops]


def _draw_refine(scene: _Scene, rng: Rng) -> _Drawn:
    settings = scene.settings
    first = scene.instances[int(rng.integers(len(scene.instances)))]

    def around_instance(instance: _Instance) -> Crop:
        return scene.tight_crop(rng, instance.box, "refine")

    absent = settings.negative_probability * (1 - ELSEWHERE_PROBABILITY)
    elsewhere = (settings.negative_probability - absent) / max(1 - absent, 1e-9)
    wants_absent = rng.random() < absent
    crops: list[Crop] = []
    shown: list[list[list[int]]] = []
    own = [instance for instance in scene.instances if instance.object_id == first.object_id]
    while len(crops) < settings.crops and not wants_absent:
        crop = None
        if rng.random() < elsewhere:
            crop = _crop_elsewhere(scene, rng, first.object_id)
            # In a crowded frame the object is everywhere: an absent one keeps up the fraction of negatives.
            wants_absent = crop is None and settings.crops == 1
        instance = own[int(rng.integers(len(own)))]
        shown.append([[instance.index]] if crop is None else [[]])
        crops.append(crop or around_instance(instance))
    candidates = scene.absent(rng, settings.hard_negatives) if wants_absent else []
    if candidates:
        picked = [scene.instances[i] for i in rng.integers(len(scene.instances), size=settings.crops)]
        if len(candidates) > 1:
            candidates.sort(key=lambda i: -scene.templates.similarity(i, picked[0].object_id))
        return candidates[:1], [around_instance(instance) for instance in picked], [[[]]] * settings.crops
    if not crops:  # the frame has all objects of the library
        crops, shown = [around_instance(first)] * settings.crops, [[[first.index]]] * settings.crops
    return [first.object_id], crops, shown


def _crop_elsewhere(scene: _Scene, rng: Rng, target: int) -> Crop | None:
    """Draw a crop around another object or around background that shows no part of the target; None if none is found.

    The coarse stage proposes both wrongly.
    """
    frame_size = scene.frame.size
    own = [instance.box for instance in scene.seen if instance.object_id == target]
    others = [instance.box for instance in scene.instances if instance.object_id != target]
    for _ in range(_ATTEMPTS):
        x, y, width, height = others[int(rng.integers(len(others)))] if others else own[int(rng.integers(len(own)))]
        if not others or rng.random() < _BACKGROUND_PROBABILITY:
            x, y = rng.uniform(0, max(frame_size[1] - width, 1)), rng.uniform(0, max(frame_size[0] - height, 1))
        crop = scene.tight_crop(rng, (x, y, width, height), "refine")
        if not any(crop.meets(box) for box in own):
            return crop
    return None


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    """Return images (..., h, w, 3) as a tensor (..., 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))
