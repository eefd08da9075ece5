"""From candidates to instances: duplicates and rivals removed, overlaps resolved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ocdit_core.inference.proposals import Candidate
from ocdit_core.inference.results import Instance
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.masks import tight_box

# Two candidates of one object are the same instance where they share more of the smaller mask than this; one that
# shares more of its own mask with better ones of other objects is mistaken.
_SHARED = 0.5


def resolve(
    candidates: Sequence[Candidate], names: Sequence[str], image_size: tuple[int, int], settings: InferenceSettings
) -> tuple[Instance, ...]:
    """Return instances by falling score; a pixel shows one instance only: that where it is most probable.

    Args:
        candidates: any number of them.
        names: of the targets.
        image_size: (H, W) in pixels.
        settings: of the inference.
    """
    kept: list[tuple[Candidate, np.ndarray]] = []
    taken = np.full(image_size, -1, np.int32)
    best = np.zeros(image_size, np.float32)
    for candidate in sorted(candidates, key=lambda one: -one.score):
        if candidate.score < settings.score_threshold:
            break
        x, y, width, height = candidate.region
        part = (slice(y, y + height), slice(x, x + width))
        mask = np.zeros(image_size, bool)
        mask[part] = candidate.mask
        same = [other for one, other in kept if one.target == candidate.target]
        if len(same) >= settings.max_instances or any(_shared(mask, other) for other in same):
            continue
        if (mask & (taken >= 0)).sum() > _SHARED * mask.sum():
            continue
        wins = candidate.mask & (candidate.probabilities > best[part])
        taken[part][wins] = len(kept)
        best[part][wins] = candidate.probabilities[wins]
        kept.append((candidate, mask))
    instances = []
    for number, (candidate, _) in enumerate(kept):
        mask = taken == number
        if mask.any():
            name = names[candidate.target]
            instances.append(Instance(object_id=name, score=candidate.score, box=tight_box(mask), mask=mask))
    return tuple(instances)


def _shared(mask: np.ndarray, other: np.ndarray) -> bool:
    return bool((mask & other).sum() > _SHARED * min(mask.sum(), other.sum()))
