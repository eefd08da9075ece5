"""From probabilities to instances: proposals, scores, and overlaps resolved."""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from ocdit_core.inference.edges import snap
from ocdit_core.inference.results import Instance
from ocdit_core.inference.settings import InferenceSettings, Score
from ocdit_core.masks import Box, box_iou, tight_box

# Masks below this fraction of the image (60 pixels of 640 x 480) are noise.
MIN_AREA = 0.0002
# Parts below this fraction of an object's largest part are no instances of their own.
MIN_INSTANCE = 0.3
# Parts of an instance below this fraction of its largest part are dropped: an object may be hidden in the middle, but
# is hardly seen as one piece and a speck.
MIN_PART = 0.5
# Two candidates of one object that overlap by more than this fraction of the smaller mask are one instance. A candidate
# with more than this fraction of its mask under better candidates is dropped.
MAX_SHARED = 0.5
# Proposals of the refine stage: least fraction of the image, box IoU from which two of one target are the same, and how
# many there are of each target (or as many as it may have instances).
MIN_PROPOSAL = 0.0003
SAME_BOX_IOU = 0.5
PROPOSALS = 4
# Width of the band along the border of a mask in which it moves to edges of the image, as a fraction of the square root
# of the mask's area, and probability from which on a pixel of the mask stays in it.
BAND = 0.08
CERTAIN = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A possible instance: a proposal of the coarse stage, or its refinement.

    Attributes:
        target: index of the target object.
        score: score in [0, 1].
        region: part of the image in pixels that the arrays cover.
        probabilities: (height, width) float32 probabilities that the region's pixels show the target.
        mask: (height, width) bool mask of the target in the region, not empty.
        snapped: its border lies on edges of the image already.
    """

    target: int
    score: float
    region: Box
    probabilities: np.ndarray
    mask: np.ndarray
    snapped: bool = False

    @property
    def box(self) -> Box:
        """Tight box around the mask, in the image."""
        x, y, width, height = tight_box(self.mask)
        return self.region[0] + x, self.region[1] + y, width, height

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns of the region."""
        x, y, width, height = self.region
        return slice(y, y + height), slice(x, x + width)

    def whole(self, size: tuple[int, ...]) -> np.ndarray:
        """Return the mask in an image of `size` (H, W)."""
        mask = np.zeros(size, bool)
        mask[self.part] = self.mask
        return mask


def propose(maps: Sequence[np.ndarray], targets: int, settings: InferenceSettings) -> list[Candidate]:
    """Return proposals for the refine stage: connected regions of each target, the most probable ones of all maps.

    A region counts from a low probability on and from few pixels: the refine stage rejects what is not the target, but
    cannot find what nobody proposes.

    Args:
        maps: (O, H, W) probabilities of targets, then distractors, from one or several sources.
        targets: number of targets.
        settings: inference settings.
    """
    proposals: list[Candidate] = []
    for target in range(targets):
        found = []
        for probabilities in maps:
            own = probabilities[target]
            mask = (own >= settings.refine.proposal_threshold).astype(np.uint8)
            count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
            for part in range(1, count):
                x, y, width, height, area = (int(value) for value in stats[part])
                if area >= MIN_PROPOSAL * own.size:
                    rows, columns = slice(y, y + height), slice(x, x + width)
                    inside = labels[rows, columns] == part
                    found.append(
                        Candidate(
                            target=target,
                            score=score(own[rows, columns], inside, settings.score),
                            region=(x, y, width, height),
                            probabilities=own[rows, columns],
                            mask=inside,
                        )
                    )
        kept: list[Candidate] = []
        for one in sorted(found, key=lambda one: -float(one.probabilities[one.mask].mean())):
            if len(kept) < max(PROPOSALS, settings.max_instances) and all(
                box_iou(one.region, other.region) < SAME_BOX_IOU for other in kept
            ):
                kept.append(one)
        proposals += kept
    return proposals


def coarse_candidates(probabilities: np.ndarray, targets: int, settings: InferenceSettings) -> list[Candidate]:
    """Return candidates without a refine stage: groups of connected parts, at most `max_instances` for each target.

    Each pixel counts for its most probable object only.

    Args:
        probabilities: (O, H, W) probabilities of targets, then distractors.
        targets: number of targets.
        settings: inference settings.
    """
    winner = probabilities.argmax(axis=0)
    candidates = []
    for target in range(targets):
        own = probabilities[target]
        mask = (own >= settings.mask_threshold) & (winner == target)
        groups = [group for group in grouped_parts(mask) if group.sum() >= min_pixels(own.shape)]
        groups.sort(key=lambda group: -float(own[group].sum()))
        for group in groups[: settings.max_instances]:
            x, y, width, height = region = tight_box(group)
            part = (slice(y, y + height), slice(x, x + width))
            candidates.append(
                Candidate(
                    target=target,
                    score=score(own, group, settings.score, groups),
                    region=region,
                    probabilities=own[part],
                    mask=group[part],
                )
            )
    return candidates


def candidate_in(
    target: int,
    region: Box,
    probabilities: np.ndarray,
    presence: float,
    image_size: tuple[int, int],
    settings: InferenceSettings,
) -> Candidate | None:
    """Return the instance of a target that a crop shows, by the thresholds of the refine stage; None: there is none.

    Args:
        target: index of the target object.
        region: part of the image in pixels.
        probabilities: (height, width) float32 probabilities of the target in the region.
        presence: probability of the target being in the region at all, a factor of the score.
        image_size: (H, W) in pixels.
        settings: inference settings.
    """
    groups = grouped_parts(probabilities >= settings.refine.mask_threshold)
    if not groups:
        return None
    mask = max(groups, key=lambda group: float(probabilities[group].sum()))
    if mask.sum() < min_pixels(image_size):
        return None
    confidence = presence * score(probabilities, mask, settings.score, groups)
    return Candidate(target=target, score=confidence, region=region, probabilities=probabilities, mask=mask)


def snapped(candidate: Candidate, image: np.ndarray) -> Candidate:
    """Return a candidate whose mask ends at near edges of the image (H, W, 3) uint8 RGB; its score stays."""
    if candidate.snapped:
        return candidate
    mask = candidate.mask
    band = BAND * math.sqrt(int(mask.sum()))
    x, y, width, height = tight_box(mask)
    margin = math.ceil(2 * band)
    part = np.s_[max(y - margin, 0) : y + height + margin, max(x - margin, 0) : x + width + margin]
    own = mask[part]
    depth, distance = (_distance(one) for one in (own, ~own))
    certain = own & ((depth > band) | (candidate.probabilities[part] >= CERTAIN))
    moved = np.zeros_like(mask)
    moved[part] = snap(image[candidate.part][part], own, certain, distance > band)
    return dataclasses.replace(candidate, mask=moved, snapped=True)


def _distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel of a (H, W) bool mask from the next one outside; the array's end is none."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    return cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]


def score(probabilities: np.ndarray, mask: np.ndarray, kind: Score, others: Sequence[np.ndarray] = ()) -> float:
    """Return the score of a mask, in [0, 1].

    Args:
        probabilities: (H, W) probabilities of the object.
        mask: (H, W) bool, not empty.
        kind: kind of score.
        others: masks of all instances of the object, whose pixels do not count as outside.
    """
    inside, area = float(probabilities[mask].sum()), int(mask.sum())
    if kind == "mean":
        return inside / area
    outside = float(probabilities.sum()) - inside
    for other in others:
        if other is not mask:
            outside -= float(probabilities[other & ~mask].sum())
    return inside / (area + max(outside, 0.0))


def calibrated(candidates: Sequence[Candidate], calibration: tuple[float, float] | None) -> list[Candidate]:
    """Return candidates with calibrated scores, see `InferenceSettings`."""
    if calibration is None:
        return list(candidates)
    scale, offset = calibration
    scores = np.clip([one.score for one in candidates], 1e-6, 1 - 1e-6)
    scores = 1 / (1 + np.exp(-scale * np.log(scores / (1 - scores)) - offset))
    return [dataclasses.replace(one, score=float(new)) for one, new in zip(candidates, scores, strict=True)]


def uncalibrated(score: float, calibration: tuple[float, float] | None) -> float:
    """Return the raw score whose calibrated score is given; values outside (0, 1) are returned as they are."""
    if calibration is None or not 0 < score < 1:
        return score
    scale, offset = calibration
    return 1 / (1 + math.exp((offset - math.log(score / (1 - score))) / scale))


def min_pixels(image_size: Sequence[int]) -> float:
    """Return the number of pixels from which a mask counts in an image (H, W)."""
    return max(MIN_AREA * math.prod(image_size), 1)


def grouped_parts(mask: np.ndarray) -> list[np.ndarray]:
    """Return the connected parts of a (H, W) bool mask as (H, W) masks, without small ones.

    Parts whose boxes touch are one, partly hidden instance.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    # Label 0 is the background.
    areas = stats[:, cv2.CC_STAT_AREA] * (np.arange(count) > 0)
    groups: list[list[int]] = []
    for part in (int(i) for i in np.argsort(-areas, kind="stable") if areas[i] > 0):
        if areas[part] < MIN_INSTANCE * areas.max():
            break
        near = next((group for group in groups if _touch(stats[group[0]], stats[part])), None)
        if near is None:
            groups.append([part])
        elif areas[part] >= MIN_PART * areas[near[0]]:
            near.append(part)
    return [np.isin(np.arange(count), group)[labels] for group in groups]


def _touch(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two boxes (x, y, width, height, ...) overlap or touch."""
    ends = np.minimum(first[:2] + first[2:4], second[:2] + second[2:4])
    return bool((np.maximum(first[:2], second[:2]) <= ends).all())


def resolve(
    candidates: Sequence[Candidate],
    names: Sequence[str],
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    max_instances: int,
    image: np.ndarray | None = None,
) -> tuple[Instance, ...]:
    """Return disjoint instances by falling score; a shared pixel goes to the more probable one.

    Args:
        candidates: candidates of all targets.
        names: names of the targets.
        image_size: (H, W) in pixels.
        score_threshold: lowest score of an instance.
        max_instances: most instances of one object.
        image: (H, W, 3) uint8 RGB, to whose edges the borders of masks move; default: they stay.
    """
    kept: list[tuple[Candidate, np.ndarray]] = []
    owner = np.full(image_size, -1, np.int32)
    best = np.zeros(image_size, np.float32)
    for candidate in sorted(candidates, key=lambda one: -one.score):
        if candidate.score < score_threshold:
            break
        mask = candidate.whole(image_size)
        same = [other for one, other in kept if one.target == candidate.target]
        if len(same) >= max_instances or any(_is_same(mask, other) for other in same):
            continue
        if (mask & (owner >= 0)).sum() > MAX_SHARED * mask.sum():
            continue
        if image is not None:
            candidate = snapped(candidate, image)
            mask = candidate.whole(image_size)
        part = candidate.part
        wins = candidate.mask & (candidate.probabilities > best[part])
        owner[part][wins] = len(kept)
        best[part][wins] = candidate.probabilities[wins]
        kept.append((candidate, mask))
    instances = []
    for number, (candidate, _) in enumerate(kept):
        mask = owner == number
        if mask.any():
            name = names[candidate.target]
            instances.append(Instance(object_id=name, score=candidate.score, box=tight_box(mask), mask=mask))
    return tuple(instances)


def _is_same(mask: np.ndarray, other: np.ndarray) -> bool:
    return bool((mask & other).sum() > MAX_SHARED * min(mask.sum(), other.sum()))


def uncertainty_map(probabilities: np.ndarray, candidates: Sequence[Candidate]) -> np.ndarray:
    """Return the uncertainty of each pixel, (H, W) float32 in [0, 1]: the variance 4 p (1 - p) of showing a target.

    Args:
        probabilities: (O, H, W) probabilities of the coarse stage, of which the highest counts.
        candidates: candidates, whose probabilities replace those of the coarse stage in their masks.
    """
    p = probabilities.max(axis=0)
    for candidate in sorted(candidates, key=lambda one: one.score):
        p[candidate.part][candidate.mask] = candidate.probabilities[candidate.mask]
    return np.asarray(4 * p * (1 - p), np.float32)
