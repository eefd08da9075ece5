"""Two baselines with the interface of `ocdit_core.Segmenter`: colour back-projection, and CNOS-like feature matching.

Their constants were found by random search on validation scenes of held-out objects. They return all results, for
average precision; `threshold` is the recommended score threshold.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ocdit_core.errors import ConfigError
from ocdit_core.evaluation.region_proposals import lab_unit, propose_regions
from ocdit_core.images import as_rgb8
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box
from ocdit_core.models.checkpoints import pick_device
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.templates import CROP_MARGIN

# Histograms and back-projection
_BINS = (5, 16, 16)  # of the joint histogram over lightness and the two colour axes of CIE Lab
_SPREAD = 1.0  # standard deviation in bins by which histograms are smoothed: tolerance to illumination
_IMAGE_WEIGHT, _RIVAL_WEIGHT = 0.7, 0.1  # of the histograms of the image and of the other targets, against a colour

# Colour baseline
_SIDE = 192  # longer side in pixels to which the image is reduced
_BLUR = 0.008  # standard deviation of the smoothing of the back-projection, as a fraction of the longer side
_LEVELS = (0.2, 0.4)  # thresholds on the back-projection; each gives candidate regions
_CANDIDATES = 4  # largest regions examined at each level
_MIN_AREA = 0.002  # of a region, as a fraction of the image

# Feature baseline. Weights of the cues: found with an earlier, smaller backbone; midpoint: with that of ocdit-small
_WEIGHTS = {"patches": 1.08, "colour": 0.4, "back_projection": 0.33, "contrast": 0.63, "size": 0.24}
_MIDPOINT, _SLOPE = 0.95, 8.0  # of the logistic function from the weighted sum of the cues to the score
_PROPOSALS, _INSTANCES = 300, 40
_BEST_VIEWS = 3  # similarities are averaged over this many most similar templates
_MIN_COVERAGE = 0.3  # fraction of a patch that the object has to cover
_MAX_OVERLAP = 0.53  # of two regions that share more of the smaller one, the lower-scoring one is dropped
_BATCH = 64  # crops in one forward pass


class _Baseline(ABC):
    """Base class: the target objects, their colour histograms, and the conversion of results."""

    threshold: ClassVar[float]

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._histograms: list[np.ndarray] = []

    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> None:
        """Set the target objects.

        Raises:
            UnknownObjectError: the library does not hold one of them; the targets are unchanged.
            ConfigError: `object_ids` is empty.
        """
        if not object_ids:
            raise ConfigError("no target objects were named")
        selected = library.select(object_ids)
        self._encode_templates(selected)
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
        size = (image.shape[0], image.shape[1])
        instances = []
        for number, score, reduced in self._find(image):
            mask = cv2.resize(reduced.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
            if mask.any():
                instances.append(Instance(object_id=self._names[number], score=score, box=tight_box(mask), mask=mask))
        return Segmentation(
            instances=tuple(sorted(instances, key=lambda one: -one.score)),
            image_size=size,
            target_ids=self._names,
            timings={"total": time.perf_counter() - begin},
        )

    def _encode_templates(self, selected: Sequence[ObjectTemplates]) -> None:
        """Compute the features of the targets."""
        self._histograms = [_template_histograms(templates) for templates in selected]

    @abstractmethod
    def _find(self, image: np.ndarray) -> list[tuple[int, float, np.ndarray]]:
        """Return index of the target, score and mask (h, w) at any size of each instance."""


class ColourBackProjection(_Baseline):
    """Histogram back-projection (Swain and Ballard, "Color indexing", IJCV 1991): at most one instance of each target.

    The ratio histogram of a target is laid over the image, smoothed and thresholded; the connected region whose
    histogram is most similar to one of the templates' is the result.
    """

    threshold = 0.6

    def _find(self, image: np.ndarray) -> list[tuple[int, float, np.ndarray]]:
        height, width = image.shape[:2]
        scale = min(1.0, _SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        bins = _colour_bins(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        found = []
        for number, ratio in enumerate(_back_projection(self._histograms, bins)):
            smooth = cv2.GaussianBlur(ratio[bins].astype(np.float32), (0, 0), _BLUR * max(bins.shape))
            score, region = max(_score_regions(bins, smooth, self._histograms[number]), key=lambda one: one[0])
            if score:
                found.append((number, score, _close_gaps(region)))
        return found


class FeatureMatching(_Baseline):
    """Region proposals matched to the templates: any number of instances of each target.

    After Nguyen et al., "CNOS: A Strong Baseline for CAD-based Novel Object Segmentation", ICCV Workshops 2023:
    class-agnostic masks, cut out on black, are compared with rendered templates by a backbone's features. Instead of
    SAM's masks, regions come from selective search. Patch matching in both directions (after SAM-6D, CVPR 2024),
    colours and region saliency make up for a small backbone.

    Args:
        model: model whose backbone is used.
        device: auto, cpu, cuda or cuda:N.
    """

    threshold = 0.5

    def __init__(self, model: OCDiT, *, device: str = "auto") -> None:
        super().__init__()
        self._device = pick_device(device)
        self._backbone = model.backbone.to(self._device).eval()
        self._size = model.config.template_size
        self._templates: list[tuple[Tensor, Tensor]] = []
        self._mean = torch.zeros(0)

    def _encode_templates(self, selected: Sequence[ObjectTemplates]) -> None:
        super()._encode_templates(selected)
        self._templates = [self._encode(templates.rgb, templates.mask) for templates in selected]
        # The mean over all patches does not discriminate between objects.
        self._mean = torch.cat([patches[inside] for patches, inside in self._templates]).mean(0)

    def _find(self, image: np.ndarray) -> list[tuple[int, float, np.ndarray]]:
        masks, contrast = propose_regions(image, _PROPOSALS)
        if not len(masks):
            return []
        total = sum(_WEIGHTS[name] * cue for name, cue in self._cues(image, masks, contrast).items())
        scores = np.asarray(1 / (1 + np.exp(-_SLOPE * (total - _MIDPOINT))))
        best = scores.max(axis=1)
        # Non-maximum suppression. Every second pixel is enough to measure overlaps.
        flat = masks[:, ::2, ::2].reshape(len(masks), -1).astype(np.float32)
        overlaps, areas = flat @ flat.T, flat.sum(axis=1)
        kept: list[int] = []
        for index in np.argsort(-best, kind="stable").tolist():
            if (overlaps[index, kept] <= _MAX_OVERLAP * np.minimum(areas[kept], areas[index])).all():
                kept.append(index)
        return [(int(scores[index].argmax()), float(best[index]), masks[index]) for index in kept[:_INSTANCES]]

    @torch.inference_mode()
    def _encode(self, rgb: np.ndarray, masks: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return patch features (N, T, C), and which patches show the object (N, T), of N images on black."""
        height, width = self._size
        small = np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in rgb])
        cover = [cv2.resize(one.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for one in masks]
        pixels = torch.from_numpy(np.moveaxis(small, -1, 1)).to(self._device).float() / 255
        features = torch.cat([self._backbone(batch) for batch in pixels.split(_BATCH)])
        coverage = F.avg_pool2d(torch.from_numpy(np.stack(cover))[:, None].to(self._device), DOWNSAMPLING).flatten(1)
        inside = (coverage >= _MIN_COVERAGE) | (coverage == coverage.amax(1, keepdim=True))
        return features.flatten(2).transpose(1, 2), inside

    def _cues(self, image: np.ndarray, masks: np.ndarray, contrast: np.ndarray) -> dict[str, np.ndarray]:
        """Return the cues of N regions by name: (N, objects), or (N, 1) if they do not depend on the object."""
        regions = self._encode(*_crop_regions(image, masks, self._size))
        bins = _colour_bins(cv2.resize(image, masks.shape[:0:-1], interpolation=cv2.INTER_AREA))
        roots = np.sqrt(np.stack([_histogram(bins[mask]) for mask in masks]))
        ratios = _back_projection(self._histograms, bins)
        return {
            "patches": np.stack([_best(self._similarity(regions, known)) for known in self._templates], axis=1),
            # Bhattacharyya coefficient
            "colour": np.stack([_best(roots @ np.sqrt(known).T) for known in self._histograms], axis=1),
            "back_projection": np.stack([ratios[:, bins[mask]].mean(axis=1) for mask in masks]),
            "contrast": contrast[:, None],
            "size": np.log10(masks.mean(axis=(1, 2)))[:, None],
        }

    def _similarity(self, regions: tuple[Tensor, Tensor], templates: tuple[Tensor, Tensor]) -> np.ndarray:
        """Return the mean cosine similarity (N, V) of each patch to its best match, in both directions."""
        ours, theirs = (F.normalize(patches - self._mean, dim=-1) for patches, _ in (regions, templates))
        cosines = torch.einsum("npc,voc->nvpo", ours, theirs)
        inside, covered = regions[1][:, None, :, None], templates[1][None, :, None]
        forward = (cosines.masked_fill(~covered, -1).amax(3) * regions[1][:, None]).sum(2) / inside.sum((2, 3))
        backward = (cosines.masked_fill(~inside, -1).amax(2) * templates[1]).sum(2) / covered.sum((2, 3))
        return np.asarray(((forward + backward) / 2).cpu().numpy())


def _best(similarities: np.ndarray) -> np.ndarray:
    """Average (N, V) similarities over the most similar templates: (N,)."""
    return np.asarray(np.sort(similarities, axis=1)[:, -_BEST_VIEWS:].mean(axis=1))


def _colour_bins(rgb: np.ndarray) -> np.ndarray:
    """Return the histogram bin of each pixel of (..., 3) uint8 RGB."""
    bins = np.array(_BINS)
    indices = np.clip((lab_unit(rgb.reshape(-1, 1, 3)).reshape(-1, 3) * bins).astype(np.int64), 0, bins - 1)
    return np.ravel_multi_index(tuple(indices.T), _BINS).reshape(rgb.shape[:-1])


def _histogram(bins: np.ndarray) -> np.ndarray:
    """Return the smoothed histogram (prod(_BINS),) of bin indices; it sums to 1."""
    cube = np.bincount(bins.ravel(), minlength=int(np.prod(_BINS))).astype(np.float32).reshape(_BINS)
    for axis, count in enumerate(_BINS):
        distances = np.subtract.outer(np.arange(count), np.arange(count))
        kernel = np.exp(-0.5 * (distances / _SPREAD) ** 2) * (np.abs(distances) <= 2)
        cube = np.moveaxis(np.tensordot(kernel.astype(np.float32), cube, (1, axis)), 0, axis)
    return (cube / max(float(cube.sum()), 1e-12)).ravel()


def _template_histograms(templates: ObjectTemplates) -> np.ndarray:
    """Return the histograms (V, prod(_BINS)) of an object's templates."""
    histograms = []
    for rgb, mask in zip(templates.rgb, templates.mask, strict=True):
        # The outermost pixels are mixed with the black background.
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        histograms.append(_histogram(_colour_bins(rgb[inner if inner.any() else mask])))
    return np.stack(histograms)


def _back_projection(templates: Sequence[np.ndarray], bins: np.ndarray) -> np.ndarray:
    """Return the ratio histograms (O, bins): how much each colour indicates each object, 0 to 1.

    Args:
        templates: (V, bins) histograms of the templates of each object.
        bins: (h, w) histogram bin of each pixel of the image.
    """
    objects = np.stack([histograms.mean(axis=0) for histograms in templates])
    against = _IMAGE_WEIGHT * _histogram(bins) + _RIVAL_WEIGHT * (objects.sum(axis=0) - objects)
    return np.asarray(objects / (objects + against + 1e-6))


def _score_regions(bins: np.ndarray, ratio: np.ndarray, templates: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Return score and mask of the candidate regions of a back-projection (h, w); the last one is empty."""
    scored = [(0.0, np.zeros(ratio.shape, bool))]
    roots = np.sqrt(templates)
    for level in _LEVELS:
        _, labels, stats, _ = cv2.connectedComponentsWithStats((ratio > level).astype(np.uint8))
        areas = stats[1:, cv2.CC_STAT_AREA]
        for label in 1 + np.argsort(-areas)[:_CANDIDATES]:
            if areas[label - 1] >= max(4.0, _MIN_AREA * ratio.size):
                region = labels == label
                # Bhattacharyya coefficient with the most similar template.
                similarity = float((roots @ np.sqrt(_histogram(bins[region]))).max())
                scored.append((similarity * float(ratio[region].mean()) ** 0.5, region))
    return scored


def _close_gaps(region: np.ndarray) -> np.ndarray:
    """Close gaps and small holes of a region."""
    size = max(3, round(0.02 * max(region.shape)) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    closed = cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - closed)
    small = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] < 0.1 * closed.sum()) + 1
    return closed.astype(bool) | np.isin(labels, small)


def _crop_regions(image: np.ndarray, masks: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Crop regions as templates show objects: on black, in the square around the box.

    Args:
        image: (H, W, 3) uint8.
        masks: (N, h, w) bool at reduced size.
        size: height and width of the crops.

    Returns:
        (N, *size, 3) uint8 and (N, *size) bool.
    """
    height, width = size
    # Twice the resolution of the masks is enough for small regions; more would alias in the crop.
    factor = min(2.0, image.shape[1] / masks.shape[2])
    reduced = (round(factor * masks.shape[2]), round(factor * masks.shape[1]))
    image = cv2.resize(image, reduced, interpolation=cv2.INTER_AREA)
    crops, covers = [], []
    for mask in masks:
        x, y, w, h = tight_box(mask)
        scale = (1 - 2 * CROP_MARGIN) * min(width / w, height / h)
        # Coordinates are those of pixel corners; OpenCV's are those of pixel centres.
        shift = np.array([width, height]) / 2 - scale * np.array([x + w / 2, y + h / 2]) - 0.5
        affines = [np.column_stack([np.eye(2) * zoom, shift + zoom / 2]) for zoom in (scale, scale / factor)]
        cover = cv2.warpAffine(mask.astype(np.float32), affines[0], (width, height), flags=cv2.INTER_LINEAR) > 0.5
        crop = cv2.warpAffine(image, affines[1], (width, height), flags=cv2.INTER_LINEAR)
        crops.append(crop * cover[..., None])
        covers.append(cover)
    return np.stack(crops), np.stack(covers)
