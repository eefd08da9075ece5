"""Identity over a video: HOTA, IDF1, identity switches, video ARI and mBO, J&F.

A result counts for an instance of its own object only. Sums over several videos are those of TrackEval: the metrics of
all videos one after the other, with other ids in each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.config import as_dict
from ocdit_core.data.dataset import Dataset
from ocdit_core.data.frame import Frame
from ocdit_core.evaluation.bop_results import ResultRow
from ocdit_core.evaluation.metrics import percent
from ocdit_core.evaluation.records import MIN_VISIBLE
from ocdit_core.evaluation.run import Run
from ocdit_core.evaluation.targets import image_key
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.settings import TrackSettings
from ocdit_core.inference.tracker import Tracker
from ocdit_core.masks import decode_mask, tight_box

Floats = NDArray[np.float64]

ALPHAS = np.arange(0.05, 0.99, 0.05)
"""IoUs from which a result matches, over which HOTA is averaged (Luiten et al., IJCV 2021)."""
MATCHED = 0.5
"""IoU from which a result matches in IDF1 and identity switches."""
BOUNDARY = 0.008
"""Tolerance of a boundary, relative to the image's diagonal (DAVIS)."""
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameOverlaps:
    """Overlaps of G instances and D results in a frame.

    Attributes:
        truths: (G,) id of each instance.
        founds: (D,) id of each result.
        pixels: (G + 1, D + 1) pixels of each pair; index 0 is no instance, or no result.
        iou: (G, D) IoU, 0 for different objects.
        boundary: (G, D) F measure of the boundaries, 0 for different objects.
    """

    truths: tuple[Hashable, ...]
    founds: tuple[Any, ...]
    pixels: NDArray[np.int64]
    iou: Floats
    boundary: Floats


def frame_overlaps(
    truth: NDArray[np.integer[Any]],
    found: NDArray[np.integer[Any]],
    truths: Sequence[Hashable],
    founds: Sequence[Hashable],
    same: NDArray[np.bool_],
) -> FrameOverlaps:
    """Compare the labels of a frame.

    Args:
        truth: (H, W) labels: 0, or the number from 1 on of the instance in `truths`.
        found: (H, W) labels: 0, or the number from 1 on of the result in `founds`.
        truths: ids of G instances.
        founds: ids of D results.
        same: (G, D) whether both are of the same object.
    """
    shape = len(truths) + 1, len(founds) + 1
    pixels = np.bincount(truth.ravel().astype(np.int64) * shape[1] + found.ravel(), minlength=shape[0] * shape[1])
    pixels = pixels.reshape(shape)
    shown, seen = pixels.sum(axis=1)[1:] > 0, pixels.sum(axis=0)[1:] > 0  # others are not in this frame
    pixels = pixels[np.ix_(np.append(True, shown), np.append(True, seen))]
    both = pixels[1:, 1:]
    same = same[np.ix_(shown, seen)]
    union = pixels[1:].sum(axis=1)[:, None] + pixels[:, 1:].sum(axis=0)[None] - both
    reach = math.ceil(BOUNDARY * float(np.linalg.norm(truth.shape)))
    lines = [
        [_outline(labels == number + 1) for number in np.flatnonzero(there)]
        for labels, there in ((truth, shown), (found, seen))
    ]
    boundary = np.zeros(both.shape)
    for i, j in zip(*np.nonzero(same), strict=True):
        boundary[i, j] = _agreement(lines[0][i], lines[1][j], reach)
    return FrameOverlaps(
        truths=tuple(one for one, there in zip(truths, shown, strict=True) if there),
        founds=tuple(one for one, there in zip(founds, seen, strict=True) if there),
        pixels=pixels,
        iou=np.where(same, both / union, 0.0),
        boundary=boundary,
    )


def _outline(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return the boundary of a mask as DAVIS defines it, and the distance of each pixel to it."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    line = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    line[-1, -1] = False
    if not line.any():
        return line, np.full(mask.shape, np.inf, np.float32)
    return line, np.asarray(cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _agreement(first: tuple[Any, Any], second: tuple[Any, Any], reach: int) -> float:
    """Return the F measure of two outlines."""
    (truth, to_truth), (found, to_found) = first, second
    near = reach + 1e-3
    precision = float((to_truth[found] <= near).mean()) if found.any() else float(not truth.any())
    recall = float((to_found[truth] <= near).mean()) if truth.any() else float(not found.any())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoCounts:
    """Counts of one video; those of several videos are added, or joined.

    Attributes:
        matched: (alphas,) matches of HOTA at each of ALPHAS.
        associated: (alphas,) sum over them of the association score.
        instances: number of instances, over all frames.
        results: number of results, over all frames.
        kept: matches of the best assignment of ids (IDTP).
        switches: times that an instance is matched by a result of another id than the last time.
        ari: adjusted Rand index of the pixels of instances; NaN without any.
        best_overlaps: largest IoU of each instance with a track, over the whole video.
        regions: mean over the frames of the IoU of each instance with its track (J).
        boundaries: mean over the frames of the F measure of their boundaries (F).
    """

    matched: Floats
    associated: Floats
    instances: int
    results: int
    kept: int
    switches: int
    ari: float
    best_overlaps: Floats
    regions: Floats
    boundaries: Floats


def video_counts(frames: Sequence[FrameOverlaps]) -> VideoCounts:
    """Count the matches of a video, its frames in order."""
    from scipy.optimize import linear_sum_assignment

    truths: dict[Hashable, int] = {}
    founds: dict[Hashable, int] = {}
    places = []
    for frame in frames:
        rows = np.array([truths.setdefault(one, len(truths)) for one in frame.truths], np.int64)
        places.append((rows, np.array([founds.setdefault(one, len(founds)) for one in frame.founds], np.int64)))
    size = len(truths), len(founds)
    potential, at_half, overlap, pixels, regions, boundaries = (np.zeros(size) for _ in range(6))
    shown, seen, area = np.zeros(size[0]), np.zeros(size[1]), np.zeros(size[0])
    confusion = np.zeros((size[0], size[1] + 1))
    found_area, absent = np.zeros(size[1]), np.zeros(size)
    for frame, (g, d) in zip(frames, places, strict=True):
        pairs = np.ix_(g, d)
        spread = frame.iou.sum(axis=0)[None] + frame.iou.sum(axis=1)[:, None] - frame.iou
        potential[pairs] += np.divide(frame.iou, spread, out=np.zeros_like(frame.iou), where=spread > _EPS)
        at_half[pairs] += frame.iou >= MATCHED
        pixels[pairs] += np.where(frame.iou > 0, frame.pixels[1:, 1:], 0)
        regions[pairs] += frame.iou
        boundaries[pairs] += frame.boundary
        confusion[np.ix_(g, np.append(0, d + 1))] += frame.pixels[1:]
        shown[g] += 1
        seen[d] += 1
        area[g] += frame.pixels[1:].sum(axis=1)
        found_area[d] += frame.pixels[:, 1:].sum(axis=0)
        gone = np.ones(size, bool)
        gone[g], gone[:, d] = False, False
        absent += gone
    alignment = potential / np.maximum(shown[:, None] + seen[None] - potential, _EPS)
    matches = np.zeros((len(ALPHAS), *size))
    # Id that each instance had in the frame before, and when it was last matched.
    before: dict[int, int] = {}
    last: dict[int, int] = {}
    switches = 0
    for frame, (g, d) in zip(frames, places, strict=True):
        if not len(g) or not len(d):
            continue
        i, j = linear_sum_assignment(-alignment[np.ix_(g, d)] * frame.iou)
        matches[:, g[i], d[j]] += frame.iou[i, j] >= ALPHAS[:, None] - _EPS
        same = np.array([[before.get(one) == other for other in d] for one in g])
        score = np.where(frame.iou >= MATCHED - _EPS, 1000 * same + frame.iou, 0.0)
        i, j = linear_sum_assignment(-score)
        before = {int(g[a]): int(d[b]) for a, b in zip(i, j, strict=True) if score[a, b] > _EPS}
        switches += sum(last.get(one, other) != other for one, other in before.items())
        last |= before
    matched = matches.sum(axis=(1, 2))
    associated = (matches**2 / np.maximum(1, shown[:, None] + seen[None] - matches)).sum(axis=(1, 2))
    kept = int(at_half[linear_sum_assignment(-at_half)].sum())
    overlap = pixels / np.maximum(area[:, None] + found_area[None] - pixels, 1)
    # DAVIS: the best assignment of tracks to instances; an instance without a track has an empty one.
    count = max(len(frames), 1)
    missing = np.repeat((len(frames) - shown)[:, None], max(size[0] - size[1], 0), axis=1)
    regions, boundaries = (np.append(one + absent, missing, axis=1) / count for one in (regions, boundaries))
    best = linear_sum_assignment(-(regions + boundaries))
    return VideoCounts(
        matched=matched,
        associated=associated,
        instances=int(shown.sum()),
        results=int(seen.sum()),
        kept=kept,
        switches=switches,
        ari=adjusted_rand_index(confusion),
        best_overlaps=overlap.max(axis=1, initial=0.0),
        regions=regions[best],
        boundaries=boundaries[best],
    )


def adjusted_rand_index(confusion: Floats) -> float:
    """Return the adjusted Rand index of two partitions (Hubert and Arabie, 1985); NaN without points.

    Args:
        confusion: (G, D) number of points in each pair of groups.
    """
    points = confusion.sum()
    rows, columns = confusion.sum(axis=1), confusion.sum(axis=0)
    if points < 2:
        return math.nan
    if np.count_nonzero(rows) == np.count_nonzero(columns) == 1:
        return 1.0
    index, first, second = (float((one * (one - 1)).sum()) for one in (confusion, rows, columns))
    expected = first * second / (points * (points - 1))
    return float((index - expected) / ((first + second) / 2 - expected))


def tracking_metrics(videos: Sequence[VideoCounts]) -> dict[str, float | int | None]:
    """Return the metrics of videos; ARI is a mean over videos, mBO, J and F are over instances. None: undefined."""
    matched = sum((video.matched for video in videos), np.zeros(len(ALPHAS)))
    associated = sum((video.associated for video in videos), np.zeros(len(ALPHAS)))
    instances, results, kept = (
        sum(getattr(video, name) for video in videos) for name in ("instances", "results", "kept")
    )
    detection = matched / np.maximum(1, instances + results - matched)
    association = associated / np.maximum(1, matched)
    means = {
        "video_ari": [video.ari for video in videos if not math.isnan(video.ari)],
        "video_mbo": [value for video in videos for value in video.best_overlaps],
        "j": [value for video in videos for value in video.regions],
        "f": [value for video in videos for value in video.boundaries],
    }
    mean = {name: float(np.mean(values)) if values else None for name, values in means.items()}
    return {
        "hota": float(np.sqrt(detection * association).mean()) if instances else None,
        "idf1": 2 * kept / (instances + results) if instances else None,
        "switches": sum(video.switches for video in videos),
        **mean,
        "j_and_f": None if mean["j"] is None or mean["f"] is None else (mean["j"] + mean["f"]) / 2,
    }


def evaluate_tracking(dataset: Dataset, run: Run, settings: TrackSettings) -> dict[str, Any]:
    """Run a `Tracker` over the results of each scene, in the order of its images, and measure the ids.

    Results from the score threshold on count, of overlapping ones the best. The identity of an instance is its place
    among the scene's annotations. Instances that are no targets or hardly visible, and what lies on them, are left out.

    Args:
        dataset: dataset of the run; the images of a scene are the frames of a video.
        run: a finished evaluation.
        settings: settings of the tracker.

    Returns:
        {"settings", "videos", "frames", "tracked": metrics, "by_score": metrics of untracked results, whose id is their
        rank by score among those of their object}, see `tracking_metrics`.
    """
    rows, asked = run.rows(), run.asked
    videos: dict[str, list[VideoCounts]] = {"tracked": [], "by_score": []}
    count = 0
    for _, scene in groupby(dataset.frames(asked), key=lambda frame: frame.scene_id):
        frames = sorted(scene, key=lambda frame: frame.image_id)
        tracker = Tracker(settings)
        overlaps: dict[str, list[FrameOverlaps]] = {name: [] for name in videos}
        for frame in frames:
            key = image_key(frame)
            found = _segmentation(frame, rows[key], run.metrics["score_threshold"])
            for name, result in (("tracked", tracker.update(found, frame.image())), ("by_score", found)):
                overlaps[name].append(_compare(frame, asked[key], result))
        count += len(frames)
        for name, counts in videos.items():
            counts.append(video_counts(overlaps[name]))
    metrics = {name: tracking_metrics(counts) for name, counts in videos.items()}
    return {"settings": as_dict(settings), "videos": len(videos["tracked"]), "frames": count, **metrics}


def tracking_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the printed table: in percent, except the identity switches."""
    names = ("hota", "idf1", "video_ari", "video_mbo", "j_and_f")
    title = f"{metrics['videos']:,} videos, {metrics['frames']:,} frames"
    rows = [
        [label, *(percent(metrics[key][name]) for name in names), str(metrics[key]["switches"])]
        for label, key in (("tracked", "tracked"), ("untracked, by score", "by_score"))
    ]
    return [title, "HOTA", "IDF1", "video ARI", "video mBO", "J&F", "identity switches"], rows


def _segmentation(frame: Frame, rows: Sequence[ResultRow], threshold: float) -> Segmentation:
    instances = []
    for row in sorted(rows, key=lambda row: -row.score):
        mask = decode_mask(row.segmentation)
        if row.score >= threshold and mask.any():
            instances.append(Instance(object_id=str(row.category_id), score=row.score, box=tight_box(mask), mask=mask))
    names = {instance.object_id: None for instance in instances}
    return Segmentation(instances=tuple(instances), image_size=frame.size, target_ids=tuple(names))


def _compare(frame: Frame, asked: set[int], result: Segmentation) -> FrameOverlaps:
    """Compare results with the annotations of a frame; the id of an untracked one is (object, rank by score)."""
    truth, void = np.zeros(frame.size, np.int64), np.zeros(frame.size, bool)
    for index, one in enumerate(frame.annotations):
        # NaN, where the dataset does not say, is not below.
        ignored = one.object_id not in asked or one.visible_fraction < MIN_VISIBLE
        mask = frame.mask(index)
        void |= mask if ignored else False
        truth[mask] = 0 if ignored else index + 1
    found = result.label_map(dtype=np.int64)
    size, hidden = (np.bincount(labels, minlength=len(result.instances) + 1) for labels in (found.ravel(), found[void]))
    found[(hidden > size / 2)[found]] = 0  # also without those pixels, the rest of such a mask is no error
    truth[void] = found[void] = 0
    objects = np.array([one.object_id for one in frame.annotations], np.int64)
    results = np.array([int(one.object_id) for one in result.instances], np.int64)
    ranks: defaultdict[str, Iterator[int]] = defaultdict(lambda: iter(range(len(results))))
    founds = [one.track_id or (one.object_id, next(ranks[one.object_id])) for one in result.instances]
    return frame_overlaps(truth, found, range(len(objects)), founds, objects[:, None] == results[None])
