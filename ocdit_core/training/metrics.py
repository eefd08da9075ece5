"""Figures of a validation."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocdit_core.masks import encode_mask, mask_iou

RunLengths = dict[str, Any]


class MaskResult(NamedTuple):
    """What became of one target in one picture.

    Attributes:
        truth: run lengths of its mask; None where it is absent.
        found: of the mask that was found; None where there is none.
        score: of that mask.
        iou: of both; 0 where either is missing.
        prior_iou: of the matching prior's own draft, where there is one.
    """

    truth: RunLengths | None
    found: RunLengths | None
    score: float
    iou: float
    prior_iou: float | None = None


def mask_results(
    probabilities: Tensor, truth: Tensor, present: Tensor, prior_iou: Tensor | None = None, *, speck: int = 64
) -> list[MaskResult]:
    """Return one result for each mask.

    Args:
        probabilities: (N, H, W), a pixel belongs to the mask from 0.5 on.
        truth: (N, H, W) bool.
        present: (N,) bool.
        prior_iou: (N,), of the matching prior.
        speck: masks of fewer pixels are none: a quarter of a latent cell by default.
    """
    masks = probabilities > 0.5
    areas = masks.sum((1, 2))
    scores = (probabilities * masks).sum((1, 2)) / areas.clamp(min=1)
    overlaps = mask_iou(masks, truth)
    pixels, true_pixels = masks.cpu().numpy(), truth.cpu().numpy()
    results = []
    for i, (area, there) in enumerate(zip(areas.tolist(), present.tolist(), strict=True)):
        results.append(
            MaskResult(
                truth=encode_mask(true_pixels[i]) if there else None,
                found=encode_mask(pixels[i]) if area >= speck else None,
                score=float(scores[i]),
                iou=float(overlaps[i]) if there else 0.0,
                prior_iou=float(prior_iou[i]) if prior_iou is not None and there else None,
            )
        )
    return results


def summarise(results: Sequence[MaskResult]) -> dict[str, float]:
    """Return mean IoU over present targets, AP, and the share of absent targets that got a mask."""
    present = [r for r in results if r.truth is not None]
    absent = [r for r in results if r.truth is None]
    prior = [r.prior_iou for r in present if r.prior_iou is not None]
    figures: dict[str, float] = {}
    if present:
        figures["iou"] = sum(r.iou for r in present) / len(present)
        figures["ap"] = average_precision(results)
    if prior:
        figures["prior_iou"] = sum(prior) / len(prior)
    if absent:
        figures["false_masks"] = sum(r.found is not None for r in absent) / len(absent)
    return figures


def average_precision(results: Sequence[MaskResult]) -> float:
    """Return COCO's AP, mean over IoU 0.5 to 0.95, with each target in each picture as an image of its own.

    All targets are one class, so it tells how well the scores sort right masks from wrong ones, absent targets' too.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, result in enumerate(results, start=1):
        size = (result.truth or result.found or {"size": [1, 1]})["size"]
        images.append({"id": number, "height": size[0], "width": size[1]})
        if result.truth is not None:
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append({**annotation, "segmentation": result.truth, "area": _area(result.truth)})
        if result.found is not None:
            found.append({"image_id": number, "category_id": 1, "segmentation": result.found, "score": result.score})
    if not annotations or not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "target"}]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _area(run_lengths: RunLengths) -> float:
    from pycocotools import mask

    return float(mask.area({**run_lengths, "counts": str(run_lengths["counts"]).encode("ascii")}))


def masked_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen values over all processes' batches, as the loss of this process.

    Processes see different numbers of chosen values; the mean of their losses is still the mean over all.

    Args:
        values: (N,).
        chosen: (N,) bool.
    """
    total, count = (values * chosen).sum(), chosen.sum().to(values.dtype)
    world = 1
    if torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        torch.distributed.all_reduce(count)
    return world * total / count.clamp(min=1)
