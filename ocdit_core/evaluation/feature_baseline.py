"""Feature baseline: region proposals matched to the templates by the features of any backbone.

After Nguyen et al., "CNOS: A Strong Baseline for CAD-based Novel Object Segmentation", ICCV Workshops 2023:
class-agnostic masks, cut out on black, are compared with rendered templates by a backbone's features, averaged over the
most similar templates. Instead of SAM's masks, regions come from selective search (`region_proposals`). Patch matching
(after SAM-6D, CVPR 2024, in both directions), colours and region saliency make up for a small backbone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ocdit_core.errors import ConfigError
from ocdit_core.evaluation.colour_baseline import back_projection, colour_bins, histogram, template_histograms
from ocdit_core.evaluation.region_proposals import propose_regions
from ocdit_core.images import as_rgb8
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.settings import find_weights
from ocdit_core.masks import tight_box
from ocdit_core.models.backbones import ViTBackbone
from ocdit_core.models.checkpoints import pick_device
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.templates import CROP_MARGIN

CUE_WEIGHTS = {
    "global": 0.05,
    "patches": 1.08,
    "colour": 0.4,
    "back_projection": 0.33,
    "contrast": 0.63,
    "border": 0.11,
    "size": 0.24,
}
"""Weights of the cues, found by search on validation scenes of held-out objects with the backbone of ocdit-small.

global: cosine similarity of the global features (class tokens, or the mean over the object's patches); patches: mean
similarity of each patch to its best match, in both directions; colour: Bhattacharyya coefficient of colour histograms;
back_projection: mean ratio histogram; contrast: saliency of the region; border: minus the region's pixels on the image
border over the square root of its area; size: logarithm of its fraction of the image."""

_MIN_COVERAGE = 0.3  # fraction of a patch that the object has to cover
_SLOPE = 8.0  # of the logistic function from the sum of the cues to the score
_RIVAL_WEIGHT = 0.1  # of the back-projection
_MAX_OVERLAP = 0.53  # of two regions that share more of the smaller one, the lower-scoring one is dropped
_BATCH = 64  # crops in one forward pass


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Settings of the feature baseline.

    Attributes:
        weights: weights of the cues, see CUE_WEIGHTS; cues that are not named have weight 0. {"global": 1} is CNOS.
        midpoint: weighted sum of the cues that gives a score of 0.5.
        proposals: number of region proposals.
        best_views: similarities are averaged over this many most similar templates.
        instances: maximum number of results in an image.
        score_threshold: minimum score of an instance.
    """

    weights: dict[str, float] = field(default_factory=lambda: dict(CUE_WEIGHTS))
    midpoint: float = 1.38
    proposals: int = 300
    best_views: int = 3
    instances: int = 40
    score_threshold: float = 0.5

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(CUE_WEIGHTS))
        if unknown:
            raise ConfigError(f"weights.{unknown[0]}: unknown cue; known are {', '.join(CUE_WEIGHTS)}")
        for name in ("proposals", "best_views", "instances"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Crops:
    """Features of N crops.

    Attributes:
        patches: (N, T, C) features of all T patches.
        inside: (N, T) bool, patches that show the object; at least one in each crop.
        coverage: (N, T) fraction of each patch that the object covers.
        class_tokens: (N, C); None if the backbone has none.
    """

    patches: Tensor
    inside: Tensor
    coverage: Tensor
    class_tokens: Tensor | None


class FeatureMatching:
    """Find any number of instances of each target, with the interface of `ocdit_core.Segmenter`.

    Args:
        model: model whose backbone is used.
        settings: settings of the baseline.
        device: auto, cpu, cuda or cuda:N.
    """

    def __init__(self, model: OCDiT, *, settings: FeatureSettings | None = None, device: str = "auto") -> None:
        self.settings = settings or FeatureSettings()
        self._device = pick_device(device)
        self._backbone = model.backbone.to(self._device).eval()
        self._size = model.config.template_size
        self._names: tuple[str, ...] = ()
        self._templates: list[_Crops] = []
        self._histograms: list[np.ndarray] = []
        self._mean = torch.zeros(0)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, settings: FeatureSettings | None = None, device: str = "auto"
    ) -> FeatureMatching:
        """Use the backbone of a model: an embedded model's name, a folder or a hub id; raises as `Segmenter` does."""
        return cls(OCDiT.from_pretrained(find_weights(name_or_path)), settings=settings, device=device)

    @torch.inference_mode()
    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> None:
        """Set the target objects.

        Raises:
            UnknownObjectError: the library does not hold one of them; the targets are unchanged.
            ConfigError: `object_ids` is empty.
        """
        if not object_ids:
            raise ConfigError("no target objects were named")
        selected = library.select(object_ids)
        self._templates = [self._encode(templates.rgb, templates.mask) for templates in selected]
        self._histograms = [template_histograms(templates) for templates in selected]
        # The mean over all patches does not discriminate between objects.
        self._mean = torch.cat([crops.patches[crops.inside] for crops in self._templates]).mean(0)
        self._names = tuple(object_ids)

    @torch.inference_mode()
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
        masks, contrast = propose_regions(image, self.settings.proposals)
        timings = {"proposals": time.perf_counter() - begin}
        instances: list[Instance] = []
        if len(masks):
            cues = self._cues(image, masks, contrast)
            total = sum(self.settings.weights.get(name, 0.0) * cue for name, cue in cues.items())
            scores = np.asarray(1 / (1 + np.exp(-_SLOPE * (total - self.settings.midpoint))))
            instances = self._select(masks, scores, size)
        return Segmentation(
            instances=tuple(instances),
            image_size=size,
            target_ids=self._names,
            timings=timings | {"total": time.perf_counter() - begin},
        )

    def _encode(self, rgb: np.ndarray, masks: np.ndarray) -> _Crops:
        """Return the features of N images (N, s, s, 3) uint8 on black with masks (N, s, s)."""
        height, width = self._size
        small = np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in rgb])
        cover = [cv2.resize(one.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for one in masks]
        pixels = torch.from_numpy(np.moveaxis(small, -1, 1)).to(self._device).float() / 255
        encoded = [self._backbone.with_global_feature(batch) for batch in pixels.split(_BATCH)]
        coverage = F.avg_pool2d(torch.from_numpy(np.stack(cover))[:, None].to(self._device), DOWNSAMPLING).flatten(1)
        has_token = isinstance(self._backbone, ViTBackbone)
        return _Crops(
            patches=torch.cat([features for features, _ in encoded]).flatten(2).transpose(1, 2),
            inside=(coverage >= _MIN_COVERAGE) | (coverage == coverage.amax(1, keepdim=True)),
            coverage=coverage,
            class_tokens=torch.cat([tokens for _, tokens in encoded]) if has_token else None,
        )

    def _cues(self, image: np.ndarray, masks: np.ndarray, contrast: np.ndarray) -> dict[str, np.ndarray]:
        """Return the cues of N regions by name: (N, objects), or (N, 1) if they do not depend on the object."""
        regions = self._encode(*_crop_regions(image, masks, self._size))
        bins = colour_bins(cv2.resize(image, masks.shape[:0:-1], interpolation=cv2.INTER_AREA))
        roots = np.sqrt(np.stack([histogram(bins[mask]) for mask in masks]))
        objects = np.stack([templates.mean(axis=0) for templates in self._histograms])
        ratios = back_projection(objects, histogram(bins), rival_weight=_RIVAL_WEIGHT)
        similarities = [self._similarities(regions, templates) for templates in self._templates]
        areas = masks.sum(axis=(1, 2))
        edges = np.concatenate((masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]), axis=1)
        return {
            "global": np.stack([self._best(whole) for whole, _ in similarities], axis=1),
            "patches": np.stack([self._best(patches) for _, patches in similarities], axis=1),
            "colour": np.stack([self._best(roots @ np.sqrt(known).T) for known in self._histograms], axis=1),
            "back_projection": np.stack([ratios[:, bins[mask]].mean(axis=1) for mask in masks]),
            "contrast": contrast[:, None],
            "border": -(edges.sum(axis=1) / np.sqrt(areas))[:, None],
            "size": np.log10(areas / masks[0].size)[:, None],
        }

    def _similarities(self, regions: _Crops, templates: _Crops) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosine similarities (N, V) of N regions and V templates: of global features, and of patches."""
        whole = F.normalize(self._global_feature(regions)) @ F.normalize(self._global_feature(templates)).T
        ours, theirs = (F.normalize(crops.patches - self._mean, dim=-1) for crops in (regions, templates))
        cosines = torch.einsum("npc,voc->nvpo", ours, theirs)
        inside, covered = regions.inside[:, None, :, None], templates.inside[None, :, None]
        forward = (cosines.masked_fill(~covered, -1).amax(3) * regions.inside[:, None]).sum(2) / inside.sum((2, 3))
        backward = (cosines.masked_fill(~inside, -1).amax(2) * templates.inside).sum(2) / covered.sum((2, 3))
        return whole.cpu().numpy(), ((forward + backward) / 2).cpu().numpy()

    def _global_feature(self, crops: _Crops) -> Tensor:
        """Return (N, C): the class token, or the mean over the object's patches."""
        if crops.class_tokens is not None:
            return crops.class_tokens
        return ((crops.patches - self._mean) * crops.coverage[..., None]).sum(1)

    def _best(self, similarities: np.ndarray) -> np.ndarray:
        """Average (N, V) similarities over the most similar templates: (N,)."""
        return np.sort(similarities, axis=1)[:, -self.settings.best_views :].mean(axis=1)

    def _select(self, masks: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> list[Instance]:
        """Return the instances of regions (N, h, w) with scores (N, objects) after non-maximum suppression."""
        objects, best = scores.argmax(axis=1), scores.max(axis=1)
        # Every second pixel is enough to measure overlaps.
        flat = masks[:, ::2, ::2].reshape(len(masks), -1).astype(np.float32)
        overlaps, areas = flat @ flat.T, flat.sum(axis=1)
        kept: list[int] = []
        for index in np.argsort(-best, kind="stable").tolist():
            if best[index] < self.settings.score_threshold or len(kept) == self.settings.instances:
                break
            if (overlaps[index, kept] <= _MAX_OVERLAP * np.minimum(areas[kept], areas[index])).all():
                kept.append(index)
        instances = []
        for index in kept:
            mask = cv2.resize(masks[index].astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
            if mask.any():
                name = self._names[int(objects[index])]
                instances.append(Instance(object_id=name, score=float(best[index]), box=tight_box(mask), mask=mask))
        return instances


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
    # The image has more detail of small regions than the reduced one; far more detail than the crop would alias.
    limit = (2 * masks.shape[2], 2 * masks.shape[1])
    if image.shape[1] > limit[0]:
        image = cv2.resize(image, limit, interpolation=cv2.INTER_AREA)
    reduction = np.array(image.shape[1::-1]) / masks.shape[:0:-1]
    crops, covers = [], []
    for mask in masks:
        x, y, w, h = tight_box(mask)
        scale = (1 - 2 * CROP_MARGIN) * min(width / w, height / h)
        centre = np.array([x + w / 2, y + h / 2])
        affines = []
        for factor in (np.ones(2), 1 / reduction):
            # Coordinates are those of pixel corners; OpenCV's are those of pixel centres.
            shift = np.array([width, height]) / 2 - scale * centre - 0.5 + scale * factor / 2
            affines.append(np.column_stack([np.diag(scale * factor), shift]))
        cover = cv2.warpAffine(mask.astype(np.float32), affines[0], (width, height), flags=cv2.INTER_LINEAR) > 0.5
        crop = cv2.warpAffine(image, affines[1], (width, height), flags=cv2.INTER_LINEAR)
        crops.append(crop * cover[..., None])
        covers.append(cover)
    return np.stack(crops), np.stack(covers)
