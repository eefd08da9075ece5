"""Training samples from annotated frames: objects, crops, masks and templates (paper 4.1, A.3).

A coarse sample shows a large part of a frame and asks for several objects, most of which are there. A refine sample
shows the surroundings of one instance and asks for one object, which may not be there: refinement has to reject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocdit_core.data.augment import (
    AugmentSettings,
    Backgrounds,
    Box,
    CropSettings,
    Window,
    augment_rgb,
    augment_templates,
    random_window,
    replace_background,
    tight_window,
)
from ocdit_core.data.frame import Frame
from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import ConfigError, DataError

Rng = np.random.Generator
Mask = NDArray[np.bool_]
# Objects at this share of the frame's diagonal from the foreground point are half as probable as those at it.
_REACH = 0.05
_ATTEMPTS = 8


def nearest_objects(
    rng: Rng, point: tuple[float, float], boxes: Mapping[int, Sequence[Box]], count: int, *, reach: float
) -> list[int]:
    """Draw objects, those near a point with greater chance (paper 4.1).

    Args:
        rng: source of randomness.
        point: x, y in pixels.
        boxes: of each object's instances, by object number.
        count: how many to draw.
        reach: the distance in pixels at which an object is half as probable as at the point itself.

    Returns:
        At most `count` different numbers, in the order drawn.
    """
    ids = list(boxes)
    if len(ids) <= count:
        return [ids[i] for i in rng.permutation(len(ids))]
    near = np.array([min(distance(point, box) for box in boxes[number]) for number in ids])
    weights = 1 / (1 + near / reach)
    return [ids[i] for i in rng.choice(len(ids), count, replace=False, p=weights / weights.sum())]


def distance(point: tuple[float, float], box: Box) -> float:
    """Return the distance in pixels from a point to the nearest point of a box; 0 inside."""
    x, y, width, height = box
    right = max(x - point[0], 0.0, point[0] - (x + width))
    down = max(y - point[1], 0.0, point[1] - (y + height))
    return float(np.hypot(right, down))


def random_point(rng: Rng, mask: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return x, y of a random pixel of a mask (H, W), or None where it is empty."""
    seen = np.flatnonzero(mask)
    if not seen.size:
        return None
    row, column = divmod(int(seen[rng.integers(seen.size)]), mask.shape[1])
    return float(column), float(row)


def around(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that holds all the given ones."""
    corners = np.array([(x, y, x + width, y + height) for x, y, width, height in boxes])
    left, top = corners[:, :2].min(axis=0)
    right, bottom = corners[:, 2:].max(axis=0)
    return float(left), float(top), float(right - left), float(bottom - top)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What a sample holds and how it is drawn.

    Attributes:
        mode: coarse or refine.
        image_size: height and width in pixels of what a sample shows.
        template_size: side of a template in pixels.
        objects: objects that a sample asks for (O); refine: 1.
        views: templates of an object (V).
        crops: windows of one frame in a sample (S); they share objects and templates.
        absent_share: coarse: chance for each object to be one that is not in the frame. Where the frame has too few
            objects, such ones fill the rest in any case.
        negative_share: refine: chance that the window does not show the object asked for.
        elsewhere_share: refine: of these, the share that asks for an object of the frame that is elsewhere in it; the
            others ask for one that the frame does not have.
        hard_negatives: refine: of so many objects that the frame does not have, the one is asked for whose colours are
            most like those of what the window shows, which the coarse stage is likely to take for it; 1: any.
        min_visible: instances of which less is seen are not looked for, nor are windows laid around them; a share.
        min_box: nor are those whose visible box has a side below this, in pixels of the frame.
        min_visible_pixels: an object of which a sample shows fewer pixels counts as absent.
        crop: how windows are drawn.
        augment: how samples are changed.
    """

    mode: Literal["coarse", "refine"] = "coarse"
    image_size: tuple[int, int] = (240, 320)
    template_size: int = 128
    objects: int = 4
    views: int = 6
    crops: int = 1
    absent_share: float = 0.1
    negative_share: float = 0.3
    elsewhere_share: float = 0.5
    hard_negatives: int = 1
    min_visible: float = 0.1
    min_box: int = 6
    min_visible_pixels: int = 12
    crop: CropSettings = field(default_factory=CropSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self) -> None:
        if self.mode not in ("coarse", "refine"):
            raise ConfigError(f"mode: {self.mode!r} is neither coarse nor refine")
        if min(self.objects, self.views, self.crops, self.hard_negatives) < 1:
            raise ConfigError("objects, views, crops and hard_negatives have to be at least 1")
        if self.mode == "refine" and self.objects != 1:
            raise ConfigError(f"objects: a refine sample asks for 1 object, not {self.objects}")
        if min(self.image_size) < 16:
            raise ConfigError(f"image_size: {self.image_size} has to be 16 pixels or more a side")
        for name in ("absent_share", "negative_share", "elsewhere_share", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in 0..1")


def make_sample(
    frame: Frame, templates: TemplateCache, settings: SampleSettings, rng: Rng, backgrounds: Backgrounds | None = None
) -> dict[str, Tensor] | None:
    """Draw a sample from a frame; the same state of `rng` gives the same sample.

    Where an object has several instances in the frame, a coarse mask holds all of them; a refine mask holds the one
    that the window was laid around.

    Args:
        frame: an annotated picture; only what is needed of it is decoded.
        templates: of the data set's objects.
        settings: what the sample holds.
        rng: source of randomness.
        backgrounds: for replaced backgrounds; None draws them.

    Returns:
        images (S, 3, H, W) uint8 sRGB; templates (O, V, 3, h, w) uint8 on black; template_masks (O, V, h, w) uint8,
        0 or 255; masks (S, O, H, W) uint8, 0 or 1, what is seen of each object; present (S, O) bool; object_ids (O,)
        int64. None when the frame has no object that is seen enough.

    Raises:
        DataError: the frame is damaged, or none of its objects has templates.
        LibraryError: an object's archive is damaged.
    """
    scene = _Scene(frame, templates, settings)
    if not scene.instances:
        return None
    object_ids, windows, own = (_draw_coarse if settings.mode == "coarse" else _draw_refine)(scene, rng)

    # A multiple that still leaves every window at least as large as the sample is cheaper to decode.
    factor = next(f for f in (8, 4, 2, 1) if f == 1 or all(w.height >= f * settings.image_size[0] for w in windows))
    windows = [window.aligned(factor) for window in windows]
    picture = frame.image(reduction=factor)
    images, masks = [], []
    for window, instances in zip(windows, own, strict=True):
        image = window.reduced(factor).image(picture, settings.image_size)
        if rng.random() < settings.augment.background_share:
            background = (backgrounds or Backgrounds()).draw(rng, settings.image_size)
            image = replace_background(image, scene.foreground(window), background)
        images.append(augment_rgb(rng, image, settings.augment))
        masks.append(np.stack([scene.union(indices, window) for indices in instances]))
    seen = np.stack(masks)
    present = seen.sum(axis=(2, 3)) >= settings.min_visible_pixels
    seen &= present[..., None, None]
    views = np.stack(
        [augment_templates(rng, templates.draw(rng, i, settings.views), settings.augment) for i in object_ids]
    )
    return {
        "images": _channels_first(np.stack(images)),
        "templates": _channels_first(views[..., :3]),
        "template_masks": torch.from_numpy(np.ascontiguousarray(views[..., 3])),
        "masks": torch.from_numpy(seen.view(np.uint8)),
        "present": torch.from_numpy(present),
        "object_ids": torch.tensor(object_ids, dtype=torch.int64),
    }


@dataclass(frozen=True)
class _Instance:
    index: int
    object_id: int
    box: Box


# Object numbers (O); for each of S windows, for each object, the indices of the instances that its mask holds.
_Drawn = tuple[list[int], list[Window], list[list[list[int]]]]


class _Scene:
    """A frame as samples see it: its instances with templates, and masks that are decoded at most once."""

    def __init__(self, frame: Frame, templates: TemplateCache, settings: SampleSettings) -> None:
        self.frame, self.templates, self.settings = frame, templates, settings
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
        # All instances that are seen at all, and those that are worth being looked for.
        boxes = [(i, frame.visible_box(i)) for i in known]
        self.seen = [_Instance(i, annotations[i].object_id, box) for i, box in boxes if box is not None]
        self.instances = [
            instance
            for instance in self.seen
            # NaN, which is "not known", passes.
            if not annotations[instance.index].visible_fraction < settings.min_visible
            and min(instance.box[2:]) >= settings.min_box
        ]

    def mask(self, index: int) -> Mask:
        if index not in self._masks:
            self._masks[index] = self.frame.mask(index)
        return self._masks[index]

    def union(self, indices: list[int], window: Window) -> Mask:
        """What a window shows of some instances, at the sample's size."""
        total = np.zeros(self.settings.image_size, bool)
        for index in indices:
            total |= window.mask(self.mask(index), self.settings.image_size)
        return total

    def foreground(self, window: Window) -> Mask:
        """What a window shows of all annotated objects, those without templates as well."""
        boxes = [annotation.box_visible for annotation in self.frame.annotations]
        return self.union([i for i, box in enumerate(boxes) if box is None or window.meets(box)], window)

    def of(self, object_id: int, window: Window) -> list[int]:
        """The object's instances that a window may show."""
        return [i.index for i in self.seen if i.object_id == object_id and window.meets(i.box)]

    def strangers(self, rng: Rng, count: int) -> list[int]:
        """At most `count` objects of the library that the frame does not have."""
        free = [i for i in self.templates.object_ids if i not in self.ids]
        return [free[i] for i in rng.choice(len(free), min(count, len(free)), replace=False)]


def _draw_coarse(scene: _Scene, rng: Rng) -> _Drawn:
    settings, size = scene.settings, scene.settings.image_size
    areas = np.array([instance.box[2] * instance.box[3] for instance in scene.instances])
    first = scene.instances[int(rng.choice(len(areas), p=areas / areas.sum()))]
    point = random_point(rng, scene.mask(first.index))
    if point is None:
        raise DataError(f"{scene.frame.where}: the mask of object {first.index} is empty, its box is not", kind="mask")
    there = max(settings.objects - int(rng.binomial(settings.objects, settings.absent_share)), 1)
    boxes: dict[int, list[Box]] = {}
    for instance in scene.instances:
        boxes.setdefault(instance.object_id, []).append(instance.box)
    reach = _REACH * float(np.hypot(*scene.frame.size))
    chosen = nearest_objects(rng, point, boxes, there, reach=reach)
    tight_box = around([box for i in chosen for box in boxes[i]])
    chosen += scene.strangers(rng, settings.objects - len(chosen))
    if len(chosen) < settings.objects:  # a small library: any others
        chosen += [i for i in scene.templates.object_ids if i not in chosen][: settings.objects - len(chosen)]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    windows = [
        random_window(rng, scene.frame.size, size, settings.crop.random_scale, point)
        if rng.random() < settings.crop.random_share
        else tight_window(rng, tight_box, scene.frame.size, size, settings.crop)
        for _ in range(settings.crops)
    ]
    return chosen, windows, [[scene.of(i, window) for i in chosen] for window in windows]


def _draw_refine(scene: _Scene, rng: Rng) -> _Drawn:
    settings = scene.settings
    first = scene.instances[int(rng.integers(len(scene.instances)))]
    frame_size = scene.frame.size

    def around_instance(instance: _Instance) -> Window:
        return tight_window(rng, instance.box, frame_size, settings.image_size, settings.crop)

    strange = settings.negative_share * (1 - settings.elsewhere_share)
    elsewhere = (settings.negative_share - strange) / max(1 - strange, 1e-9)
    wants_stranger = rng.random() < strange
    windows: list[Window] = []
    shown: list[list[list[int]]] = []
    own = [instance for instance in scene.instances if instance.object_id == first.object_id]
    while len(windows) < settings.crops and not wants_stranger:
        window = None
        if rng.random() < elsewhere:
            window = _window_elsewhere(scene, rng, first.object_id)
            # In a crowded frame the object is everywhere: a stranger keeps up the share of negatives.
            wants_stranger = window is None and settings.crops == 1
        instance = own[int(rng.integers(len(own)))]
        shown.append([[instance.index]] if window is None else [[]])
        windows.append(window or around_instance(instance))
    strangers = scene.strangers(rng, settings.hard_negatives) if wants_stranger else []
    if strangers:
        picked = [scene.instances[i] for i in rng.integers(len(scene.instances), size=settings.crops)]
        if len(strangers) > 1:
            strangers.sort(key=lambda i: -scene.templates.alike(i, picked[0].object_id))
        return strangers[:1], [around_instance(instance) for instance in picked], [[[]]] * settings.crops
    if not windows:  # the frame has all objects of the library
        windows, shown = [around_instance(first)] * settings.crops, [[[first.index]]] * settings.crops
    return [first.object_id], windows, shown


def _window_elsewhere(scene: _Scene, rng: Rng, target: int) -> Window | None:
    """A window around another object or around nothing, in which no part of the target is seen; None if none is found.

    Both are what the coarse stage proposes wrongly.
    """
    frame_size = scene.frame.size
    own = [instance.box for instance in scene.seen if instance.object_id == target]
    others = [instance.box for instance in scene.instances if instance.object_id != target]
    for _ in range(_ATTEMPTS):
        x, y, width, height = others[int(rng.integers(len(others)))] if others else own[int(rng.integers(len(own)))]
        if not others or rng.random() < 0.3:
            x, y = rng.uniform(0, max(frame_size[1] - width, 1)), rng.uniform(0, max(frame_size[0] - height, 1))
        window = tight_window(rng, (x, y, width, height), frame_size, scene.settings.image_size, scene.settings.crop)
        if not any(window.meets(box) for box in own):
            return window
    return None


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    """(..., h, w, 3) to a tensor (..., 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, -1, -3)))
