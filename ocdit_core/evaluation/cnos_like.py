"""A strong baseline without a learned mask: proposals of regions, each matched to the objects' views by features.

After Nguyen et al., "CNOS: A Strong Baseline for CAD-based Novel Object Segmentation", ICCV Workshops 2023: masks of
anything, cut out on black, compared with rendered views by a backbone's features, the best views averaged. Instead of
SAM's masks there are regions, merged as selective search does; matches of single cells both ways (one way in SAM-6D,
CVPR 2024), colours, and how much a region stands out make up for a small backbone.
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
from ocdit_core.evaluation.colour_histograms import ColourHistograms
from ocdit_core.evaluation.region_proposals import ProposalSettings, propose_regions
from ocdit_core.images import as_rgb8
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.weights import find_weights
from ocdit_core.masks import tight_box
from ocdit_core.models.backbones import ViTBackbone
from ocdit_core.models.checkpoints import pick_device
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.templates import CROP_MARGIN

_INSIDE = 0.3  # share of a cell that shows the object, from which on it counts
_SLOPE = 8.0  # from the sum of the cues to a score
_IMAGE_WEIGHT, _RIVAL_WEIGHT = 0.7, 0.1  # of the back-projection, as in ColourSettings


@dataclass(frozen=True, kw_only=True)
class CnosSettings:
    """Settings of the baseline.

    The weights were found by search on validation scenes of held-out objects, with the backbone of ocdit-tiny. For
    CNOS's own way with DINOv2, set all but `summary` to 0.

    Attributes:
        proposals: the candidates.
        summary: weight of the similarity of whole crops: of class tokens, where the backbone has them.
        patches: weight of the mean similarity of each cell to its best match, from region to view and back.
        colour: weight of the Bhattacharyya coefficient of colour histograms.
        back_projection: weight of how much the region's colours speak for the object, rather than for the image.
        contrast: weight of how much a region stands out.
        border: weight against regions at the picture's border, by their pixels there over the root of their area.
        size: weight of the logarithm of the region's share of the image: parts look like the whole.
        best_views: so many best views of an object are averaged.
        max_overlap: of two regions that share more than this of the smaller one, the worse is dropped.
        instances: most results of an image.
        midpoint: sum of the cues that gives a score of 0.5.
        score_threshold: instances that score less are not reported.
        batch: crops that go through the backbone at once.
    """

    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    summary: float = 0.05
    patches: float = 1.08
    colour: float = 0.4
    back_projection: float = 0.33
    contrast: float = 0.63
    border: float = 0.11
    size: float = 0.24
    best_views: int = 3
    max_overlap: float = 0.53
    instances: int = 40
    midpoint: float = 1.38
    score_threshold: float = 0.5
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("best_views", "instances", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} has to be at least 1")
        for name in ("max_overlap", "score_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Crops:
    """Features of N cut-outs.

    Attributes:
        cells: (N, T, C), of all T cells.
        inside: (N, T) bool, cells that show the object, at least one of each.
        summaries: (N, C), class tokens; None where the backbone has none.
        shares: (N, T), how much of each cell shows the object.
    """

    cells: Tensor
    inside: Tensor
    summaries: Tensor | None
    shares: Tensor


class CnosLike:
    """Finds any number of instances of each object, with the facade of `ocdit_core.Segmenter`.

    Args:
        model: whose backbone is used.
        settings: of the baseline.
        device: auto, cpu, cuda or cuda:N.
    """

    def __init__(self, model: OCDiT, *, settings: CnosSettings | None = None, device: str = "auto") -> None:
        self.settings = settings or CnosSettings()
        self._device = pick_device(device)
        self._backbone = model.backbone.to(self._device).eval()
        self._size = model.config.template_size
        self._histograms = ColourHistograms()
        self._names: tuple[str, ...] = ()
        self._views: list[_Crops] = []
        self._colours: list[np.ndarray] = []
        self._mean = torch.zeros(0)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, settings: CnosSettings | None = None, device: str = "auto"
    ) -> CnosLike:
        """Take the backbone of an embedded model, of a folder's, or of a hub id's; raises as `Segmenter` does."""
        return cls(OCDiT.from_pretrained(find_weights(name_or_path)), settings=settings, device=device)

    @torch.inference_mode()
    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> None:
        """Look for these objects from now on.

        Raises:
            UnknownObjectError: the library does not hold one of them; nothing has changed then.
            ConfigError: none was named.
        """
        if not object_ids:
            raise ConfigError("no target objects were named")
        chosen = library.select(object_ids)
        self._views = [self._encode(templates.rgb, templates.mask) for templates in chosen]
        self._colours = [self._histograms.of_views(templates) for templates in chosen]
        # What all cells have in common tells no object from another.
        self._mean = torch.cat([views.cells[views.inside] for views in self._views]).mean(0)
        self._names = tuple(object_ids)

    @torch.inference_mode()
    def segment(self, image: np.ndarray) -> Segmentation:
        """Find the targets.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ConfigError: no objects were set.
            ImageError: the image is of another shape or type.
        """
        if not self._names:
            raise ConfigError("no target objects were set; call set_objects first")
        begin = time.perf_counter()
        image = as_rgb8(image)
        masks, contrast = propose_regions(image, self.settings.proposals)
        timings = {"proposals": time.perf_counter() - begin}
        found: list[Instance] = []
        if len(masks):
            scores = self._scores(image, masks, contrast)
            found = [
                Instance(object_id=self._names[index], score=score, box=tight_box(mask), mask=mask)
                for index, score, mask in self._chosen(masks, scores, (image.shape[0], image.shape[1]))
            ]
        return Segmentation(
            instances=tuple(found),
            image_size=(image.shape[0], image.shape[1]),
            target_ids=self._names,
            timings=timings | {"total": time.perf_counter() - begin},
        )

    def _encode(self, rgb: np.ndarray, masks: np.ndarray) -> _Crops:
        """Features of N pictures (N, s, s, 3) uint8 on black, and their masks (N, s, s)."""
        height, width = self._size
        small = np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in rgb])
        cover = [cv2.resize(one.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for one in masks]
        pixels = torch.from_numpy(np.moveaxis(small, -1, 1)).to(self._device).float() / 255
        parts = [self._backbone.with_global_feature(part) for part in pixels.split(self.settings.batch)]
        shares = F.avg_pool2d(torch.from_numpy(np.stack(cover))[:, None].to(self._device), DOWNSAMPLING).flatten(1)
        return _Crops(
            cells=torch.cat([features for features, _ in parts]).flatten(2).transpose(1, 2),
            inside=(shares >= _INSIDE) | (shares == shares.amax(1, keepdim=True)),
            summaries=torch.cat([tokens for _, tokens in parts]) if isinstance(self._backbone, ViTBackbone) else None,
            shares=shares,
        )

    def _scores(self, image: np.ndarray, masks: np.ndarray, contrast: np.ndarray) -> np.ndarray:
        """(N, objects) scores in 0 to 1 of the regions (N, h, w)."""
        cues = self._cues(image, masks, contrast)
        total = sum(getattr(self.settings, name) * cue for name, cue in cues.items())
        return np.asarray(1 / (1 + np.exp(-_SLOPE * (total - self.settings.midpoint))))

    def _cues(self, image: np.ndarray, masks: np.ndarray, contrast: np.ndarray) -> dict[str, np.ndarray]:
        """What speaks for regions, by the names of the weights: (N, objects), or (N, 1) where objects do not matter."""
        regions = self._encode(*_cut_out(image, masks, self._size))
        colours = self._histograms.index(cv2.resize(image, masks.shape[:0:-1], interpolation=cv2.INTER_AREA))
        histograms = np.stack([self._histograms.histogram(colours[mask]) for mask in masks])
        ratios = self._histograms.ratios(
            np.stack([known.mean(axis=0) for known in self._colours]),
            self._histograms.histogram(colours),
            image_weight=_IMAGE_WEIGHT,
            rival_weight=_RIVAL_WEIGHT,
        )
        speaking = np.stack([ratios[:, colours[mask]].mean(axis=1) for mask in masks])
        similar = [self._similarities(regions, views) for views in self._views]
        areas = masks.sum(axis=(1, 2))
        edges = (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1])
        return {
            "summary": np.stack([self._best(whole) for whole, _ in similar], axis=1),
            "patches": np.stack([self._best(cells) for _, cells in similar], axis=1),
            "colour": np.stack([self._best(np.sqrt(histograms) @ np.sqrt(known).T) for known in self._colours], axis=1),
            "back_projection": speaking,
            "contrast": contrast[:, None],
            "border": -(np.concatenate(edges, axis=1).sum(axis=1) / np.sqrt(areas))[:, None],
            "size": np.log10(areas / masks[0].size)[:, None],
        }

    def _similarities(self, regions: _Crops, views: _Crops) -> tuple[np.ndarray, np.ndarray]:
        """(N, V) cosines of N regions and V views: of the whole, and of the cells."""
        whole = F.normalize(self._summary(regions)) @ F.normalize(self._summary(views)).T
        ours, theirs = (F.normalize(crops.cells - self._mean, dim=-1) for crops in (regions, views))
        cosines = torch.einsum("npc,voc->nvpo", ours, theirs)
        inside, covered = regions.inside[:, None, :, None], views.inside[None, :, None]
        there = (cosines.masked_fill(~covered, -1).amax(3) * regions.inside[:, None]).sum(2) / inside.sum((2, 3))
        back = (cosines.masked_fill(~inside, -1).amax(2) * views.inside).sum(2) / covered.sum((2, 3))
        return whole.cpu().numpy(), ((there + back) / 2).cpu().numpy()

    def _summary(self, crops: _Crops) -> Tensor:
        """(N, C): the class token; without one the mean of the object's cells."""
        if crops.summaries is not None:
            return crops.summaries
        return ((crops.cells - self._mean) * crops.shares[..., None]).sum(1)

    def _best(self, similarities: np.ndarray) -> np.ndarray:
        """(N, V) -> (N,): the mean of the best views."""
        return np.sort(similarities, axis=1)[:, -self.settings.best_views :].mean(axis=1)

    def _chosen(
        self, masks: np.ndarray, scores: np.ndarray, size: tuple[int, int]
    ) -> list[tuple[int, float, np.ndarray]]:
        """Objects, scores and masks (H, W) of regions that hardly overlap, the best first."""
        objects, best = scores.argmax(axis=1), scores.max(axis=1)
        # Every other pixel says enough of overlaps.
        flat = masks[:, ::2, ::2].reshape(len(masks), -1).astype(np.float32)
        areas = flat.sum(axis=1)
        taken = np.empty((min(self.settings.instances, len(masks)), flat.shape[1]), np.float32)
        kept: list[int] = []
        for index in np.argsort(-best, kind="stable").tolist():
            if best[index] < self.settings.score_threshold or len(kept) == self.settings.instances:
                break
            common = taken[: len(kept)] @ flat[index]
            if (common <= self.settings.max_overlap * np.minimum(areas[kept], areas[index])).all():
                taken[len(kept)] = flat[index]
                kept.append(index)
        chosen = []
        for index in kept:
            mask = cv2.resize(masks[index].astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
            if mask.any():
                chosen.append((int(objects[index]), float(best[index]), mask))
        return chosen


def _cut_out(image: np.ndarray, masks: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut regions out of an image as templates show objects: on black, in the square around the box.

    Args:
        image: (H, W, 3) uint8.
        masks: (N, h, w) bool, of a reduced image.
        size: height and width of the crops.

    Returns:
        (N, *size, 3) uint8 and (N, *size) bool.
    """
    height, width = size
    # Small regions are seen better in the image itself, but much more of it would only alias.
    most = (2 * masks.shape[2], 2 * masks.shape[1])
    if image.shape[1] > most[0]:
        image = cv2.resize(image, most, interpolation=cv2.INTER_AREA)
    reduction = np.array(image.shape[1::-1]) / masks.shape[:0:-1]
    crops, covers = [], []
    for mask in masks:
        x, y, across, down = tight_box(mask)
        scale = (1 - 2 * CROP_MARGIN) * min(width / across, height / down)
        middle = np.array([x + across / 2, y + down / 2])
        maps = []
        for factor in (np.ones(2), 1 / reduction):
            # From the outer corner of the first pixel, while OpenCV counts from its centre.
            turn = np.diag(scale * factor)
            shift = np.array([width, height]) / 2 - scale * middle - 0.5 + scale * factor / 2
            maps.append(np.column_stack([turn, shift]))
        cover = cv2.warpAffine(mask.astype(np.float32), maps[0], (width, height), flags=cv2.INTER_LINEAR) > 0.5
        crop = cv2.warpAffine(image, maps[1], (width, height), flags=cv2.INTER_LINEAR)
        crops.append(crop * cover[..., None])
        covers.append(cover)
    return np.stack(crops), np.stack(covers)
