"""Class-agnostic region proposals without learning: superpixels, merged step by step as selective search does.

After Uijlings et al., "Selective search for object recognition", IJCV 2013: every union of a hierarchical grouping is
a candidate, several similarities give several groupings. What stands out of its surroundings comes first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError
from ocdit_core.evaluation.superpixels import Superpixels, find_superpixels

Array = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ProposalSettings:
    """Settings of the proposals.

    Attributes:
        side: longer side in pixels to which the image is reduced.
        step: distance of the superpixels' seeds in pixels of the reduced image.
        proposals: how many are kept.
        min_area: smallest region, as a share of the image.
        max_area: largest one.
        max_overlap: of two regions of a larger intersection over union only the one that stands out more is kept.
    """

    side: int = 320
    step: int = 8
    proposals: int = 300
    min_area: float = 0.0006
    max_area: float = 0.5
    max_overlap: float = 0.85

    def __post_init__(self) -> None:
        if self.side < 16 or self.step < 3 or self.proposals < 1:
            raise ConfigError(
                f"side, step, proposals: {self.side}, {self.step}, {self.proposals} have to be at least 16, 3 and 1"
            )
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ConfigError(f"min_area, max_area: {self.min_area}, {self.max_area} are not rising within 0 to 1")


def propose_regions(image: NDArray[np.uint8], settings: ProposalSettings | None = None) -> tuple[Bools, Array]:
    """Return regions that may be objects.

    Args:
        image: (H, W, 3) uint8 RGB.
        settings: how many, and how fine.

    Returns:
        Masks (N, h, w) at the reduced size, those that stand out most first; and how much they do, (N,).
    """
    settings = settings or ProposalSettings()
    height, width = image.shape[:2]
    scale = min(1.0, settings.side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    if min(size) < 2 * settings.step:
        return np.zeros((0, size[1], size[0]), bool), np.zeros(0, np.float32)
    pixels = find_superpixels(small, settings.step)
    members = np.concatenate([_grouping(pixels, similarity) for similarity in (_by_look, _by_border)])
    members = np.concatenate([np.eye(len(pixels.areas), dtype=bool), members])
    areas = members @ pixels.areas
    total = pixels.areas.sum()
    members = members[(areas >= settings.min_area * total) & (areas <= settings.max_area * total)]
    strengths = _standing_out(pixels, members)
    kept = _different(members, pixels.areas, strengths, settings)
    return members[kept][:, pixels.labels], strengths[kept]


class _Regions:
    """Superpixels, and the regions that they have been merged to: what is compared of them, row by row."""

    def __init__(self, pixels: Superpixels) -> None:
        count = len(pixels.areas)
        more = np.zeros(count - 1)
        self.total = float(pixels.areas.sum())
        self.areas = np.concatenate([pixels.areas, more])
        self.boxes = np.concatenate([pixels.boxes, np.zeros((count - 1, 4), np.int64)])
        self.colours = np.concatenate([pixels.colours, np.zeros((count - 1, pixels.colours.shape[1]))])
        self.members = np.zeros((2 * count - 1, count), bool)
        self.members[:count] = np.eye(count, dtype=bool)
        # Of each living region its neighbours, with the length of the border and the sum of the contrast over it.
        self.borders: list[dict[int, tuple[float, float]]] = [{} for _ in range(count)]
        for (a, b), length, contrast in zip(pixels.edges.tolist(), pixels.lengths, pixels.contrasts, strict=True):
            self.borders[a][b] = self.borders[b][a] = (float(length), float(length * contrast))

    def merge(self, a: int, b: int) -> int:
        """Merge two neighbours; returns the number of the new region."""
        new = len(self.borders)
        for rows in (self.areas, self.colours):
            rows[new] = rows[a] + rows[b]
        self.boxes[new, :2] = np.minimum(self.boxes[a, :2], self.boxes[b, :2])
        self.boxes[new, 2:] = np.maximum(self.boxes[a, 2:], self.boxes[b, 2:])
        self.members[new] = self.members[a] | self.members[b]
        border: dict[int, tuple[float, float]] = {}
        for old in (a, b):
            for other, (length, contrast) in self.borders[old].items():
                del self.borders[other][old]
                if other not in (a, b):
                    known = border.get(other, (0.0, 0.0))
                    border[other] = (known[0] + length, known[1] + contrast)
            self.borders[old] = {}
        for other, values in border.items():
            self.borders[other][new] = values
        self.borders.append(border)
        return new


_Similarity = Callable[[_Regions, int, NDArray[np.int64]], NDArray[np.float64]]


def _by_look(regions: _Regions, one: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Colour, size and fill, as selective search adds them up."""
    mine = regions.colours[one] / regions.areas[one] / 3
    theirs = regions.colours[others] / regions.areas[others, None] / 3
    common: NDArray[np.float64] = np.minimum(mine, theirs).sum(axis=1)
    return common + _compactness(regions, one, others)


def _by_border(regions: _Regions, one: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    """What no edge parts belongs together, small things first."""
    means = [regions.borders[one][int(other)] for other in others]
    return 0.5 * _compactness(regions, one, others) - 4 * np.array([total / length for length, total in means])


def _compactness(regions: _Regions, one: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    areas = regions.areas[one] + regions.areas[others]
    low = np.minimum(regions.boxes[one, :2], regions.boxes[others, :2])
    high = np.maximum(regions.boxes[one, 2:], regions.boxes[others, 2:])
    gap = (high - low).prod(axis=1) - areas
    return (2 * regions.total - areas - gap) / regions.total


def _grouping(pixels: Superpixels, similarity: _Similarity) -> Bools:
    """Merge the most similar neighbours until one region is left; returns which superpixels each union has."""
    regions = _Regions(pixels)
    heap = [
        (-float(value), one, int(other))
        for one, border in enumerate(regions.borders)
        for other, value in zip(border, similarity(regions, one, np.array(list(border), np.int64)), strict=True)
        if one < other
    ]
    heapq.heapify(heap)
    while heap:
        _, a, b = heapq.heappop(heap)
        if b not in regions.borders[a]:
            continue  # one of them has been merged meanwhile
        new = regions.merge(a, b)
        others = np.array(list(regions.borders[new]), np.int64)
        for other, value in zip(others.tolist(), similarity(regions, new, others).tolist(), strict=True):
            heapq.heappush(heap, (-value, other, new))
    return regions.members[len(pixels.areas) : len(regions.borders)]


def _standing_out(pixels: Superpixels, members: Bools) -> Array:
    """How much regions differ from what surrounds them, by the edge around them and by colour, 0 to 1."""
    a, b = pixels.edges.T
    unit = pixels.colours / pixels.areas[:, None]
    strong = pixels.lengths * pixels.contrasts
    lengths, edge = np.zeros(len(members), np.float32), np.zeros(len(members), np.float32)
    around = np.zeros((len(members), unit.shape[1]), np.float32)
    for mine, theirs in ((a, b), (b, a)):
        crossing = (members[:, mine] & ~members[:, theirs]).astype(np.float32)
        lengths += crossing @ pixels.lengths
        edge += crossing @ strong
        # What is next to a region counts by the length of the border to it.
        around += crossing @ (pixels.lengths[:, None] * unit[theirs])
    inside = members.astype(np.float32)
    own = inside @ pixels.colours / (inside @ pixels.areas)[:, None]
    lengths = np.maximum(lengths, 1)
    colour = 1 - np.minimum(own, around / lengths[:, None]).sum(axis=1) / 3
    return np.asarray(np.sqrt(edge / lengths * colour), dtype=np.float32)


def _different(members: Bools, areas: Array, strengths: Array, settings: ProposalSettings) -> NDArray[np.int64]:
    """Numbers of regions that stand out most, none of them nearly the same as one before."""
    kept: list[int] = []
    inside = members.astype(np.float32)
    sizes = inside @ areas
    for index in np.argsort(-strengths, kind="stable"):
        if kept:
            common = inside[kept] @ (inside[index] * areas)
            if (common > settings.max_overlap * (sizes[kept] + sizes[index] - common)).any():
                continue
        kept.append(int(index))
        if len(kept) == settings.proposals:
            break
    return np.array(kept, np.int64)
