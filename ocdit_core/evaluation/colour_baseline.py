"""Colour baseline: histogram back-projection (Swain and Ballard, "Color indexing", IJCV 1991), without learning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ocdit_core.errors import ConfigError
from ocdit_core.images import as_rgb8
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary

BINS = (5, 16, 16)
"""Bins of the joint histogram over lightness and the two colour axes of CIE Lab."""

# All constants were found by random search on 100 images of procedural objects.
_SPREAD = 1.0  # standard deviation in bins by which histograms are smoothed: tolerance for other light
_IMAGE_WEIGHT = 0.7  # of the image's histogram, which counts against a colour
_THRESHOLDS = (0.2, 0.4)  # on the smoothed back-projection; each gives candidate regions
_MIN_AREA = 0.002  # of a region, as a fraction of the image


def colour_bins(rgb: np.ndarray) -> np.ndarray:
    """Return the histogram bin of each pixel of (..., 3) uint8 RGB."""
    flat = np.ascontiguousarray(rgb.reshape(-1, 1, 3)).astype(np.float32) / 255
    lab = cv2.cvtColor(flat, cv2.COLOR_RGB2Lab).reshape(-1, 3)
    # Lightness is in 0..100; most real colours lie close to the grey axis: the square root gives these finer bins.
    unit = np.empty_like(lab)
    unit[:, 0] = lab[:, 0] / 100
    unit[:, 1:] = 0.5 + 0.5 * np.sign(lab[:, 1:]) * np.sqrt(np.minimum(np.abs(lab[:, 1:]) / 110, 1))
    bins = np.array(BINS)
    indices = np.clip((unit * bins).astype(np.int64), 0, bins - 1)
    return np.ravel_multi_index(tuple(indices.T), BINS).reshape(rgb.shape[:-1])


def histogram(bins: np.ndarray) -> np.ndarray:
    """Return the smoothed histogram (prod(BINS),) of bin indices; it sums to 1."""
    cube = np.bincount(bins.ravel(), minlength=int(np.prod(BINS))).astype(np.float32).reshape(BINS)
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / _SPREAD) ** 2)
    for axis in range(3):
        padded = np.pad(np.moveaxis(cube, axis, 0), ((2, 2), (0, 0), (0, 0)))
        smooth = sum(weight * padded[step : step + len(padded) - 4] for step, weight in enumerate(kernel))
        cube = np.moveaxis(np.asarray(smooth), 0, axis)
    return (cube / max(float(cube.sum()), 1e-12)).ravel()


def template_histograms(templates: ObjectTemplates) -> np.ndarray:
    """Return the histograms (V, prod(BINS)) of an object's templates."""
    # The outermost pixels are mixed with the black background.
    kernel = np.ones((3, 3), np.uint8)
    histograms = []
    for rgb, mask in zip(templates.rgb, templates.mask, strict=True):
        inner = cv2.erode(mask.astype(np.uint8), kernel).astype(bool)
        histograms.append(histogram(colour_bins(rgb[inner if inner.any() else mask])))
    return np.stack(histograms)


def back_projection(objects: np.ndarray, image: np.ndarray, *, rival_weight: float) -> np.ndarray:
    """Return how much each colour indicates each object, (O, bins) in 0 to 1: the ratio histogram.

    Args:
        objects: (O, bins) histograms of the target objects.
        image: (bins,) histogram of the image.
        rival_weight: weight of the other objects' histograms, which count against a colour.
    """
    against = _IMAGE_WEIGHT * image + rival_weight * (objects.sum(axis=0) - objects)
    return np.asarray(objects / (objects + against + 1e-6))


@dataclass(frozen=True, kw_only=True)
class ColourSettings:
    """Settings of the colour baseline.

    Attributes:
        side: longer side in pixels to which the image is reduced.
        blur: standard deviation of the smoothing of the back-projection, as a fraction of the longer side.
        rival_weight: how much the colours of the other target objects count against a colour.
        candidates: regions examined for each threshold, the largest first.
        score_threshold: minimum score of an instance.
    """

    side: int = 192
    blur: float = 0.008
    rival_weight: float = 0.1
    candidates: int = 4
    score_threshold: float = 0.6


class ColourBackProjection:
    """Find at most one instance of each target by its colours, with the interface of `ocdit_core.Segmenter`.

    The ratio histogram of a target is laid over the image, smoothed and thresholded; the connected region whose
    histogram is most similar to one of the templates' is the result.
    """

    def __init__(self, settings: ColourSettings | None = None) -> None:
        self.settings = settings or ColourSettings()
        self._names: tuple[str, ...] = ()
        self._templates: list[np.ndarray] = []

    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> None:
        """Set the target objects.

        Raises:
            UnknownObjectError: the library does not hold one of them; the targets are unchanged.
            ConfigError: `object_ids` is empty.
        """
        if not object_ids:
            raise ConfigError("no target objects were named")
        self._templates = [template_histograms(templates) for templates in library.select(object_ids)]
        self._names = tuple(object_ids)

    def segment(self, image: np.ndarray) -> Segmentation:
        """Find the targets in a (H, W, 3) uint8 RGB image.

        Raises:
            ConfigError: no objects were set.
            ImageError: the image is of another shape or type.
        """
        if not self._names:
            raise ConfigError("no target objects were set; call set_objects first")
        begin = time.perf_counter()
        image = as_rgb8(image)
        height, width = image.shape[:2]
        scale = min(1.0, self.settings.side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        bins = colour_bins(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        ratios = back_projection(
            np.stack([templates.mean(axis=0) for templates in self._templates]),
            histogram(bins),
            rival_weight=self.settings.rival_weight,
        )
        sigma = self.settings.blur * max(bins.shape)
        instances = []
        for name, ratio, templates in zip(self._names, ratios, self._templates, strict=True):
            smooth = cv2.GaussianBlur(ratio[bins].astype(np.float32), (0, 0), sigma)
            region = self._best_region(bins, smooth, templates)
            if region is None or region[1] < self.settings.score_threshold:
                continue
            enlarged = cv2.resize(region[0].astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
            mask = enlarged > 0.5
            if mask.any():
                instances.append(Instance(object_id=name, score=region[1], box=tight_box(mask), mask=mask))
        return Segmentation(
            instances=tuple(sorted(instances, key=lambda one: -one.score)),
            image_size=(height, width),
            target_ids=self._names,
            timings={"total": time.perf_counter() - begin},
        )

    def _best_region(
        self, bins: np.ndarray, ratio: np.ndarray, templates: np.ndarray
    ) -> tuple[np.ndarray, float] | None:
        """Return the region (h, w) bool that is most similar to a template, and its score; None without any."""
        best: tuple[np.ndarray, float] | None = None
        smallest = max(4.0, _MIN_AREA * ratio.size)
        roots = np.sqrt(templates)
        for threshold in _THRESHOLDS:
            _, labels, stats, _ = cv2.connectedComponentsWithStats((ratio > threshold).astype(np.uint8))
            areas = stats[1:, cv2.CC_STAT_AREA]
            for label in 1 + np.argsort(-areas)[: self.settings.candidates]:
                if areas[label - 1] < smallest:
                    break
                region = labels == label
                # Bhattacharyya coefficient with the most similar template.
                similarity = float((roots @ np.sqrt(histogram(bins[region]))).max())
                score = similarity * float(ratio[region].mean()) ** 0.5
                if best is None or score > best[1]:
                    best = (_fill_holes(region), score)
        return best


def _fill_holes(region: np.ndarray) -> np.ndarray:
    """Close gaps and small holes of a region."""
    size = max(3, round(0.02 * max(region.shape)) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    closed = cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - closed)
    small = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] < 0.1 * closed.sum()) + 1
    return closed.astype(bool) | np.isin(labels, small)
