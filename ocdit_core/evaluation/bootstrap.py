"""How sure a figure is: the bootstrap over images or scenes.

B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993.

Images are matched once. A resampled set of images is a weight for each of them, and average precision with weights is
the same as with copies: a copy of a right result only adds a point to the curve that its envelope passes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ocdit_core.evaluation.average_precision import Matches, Pool, mean_of_objects
from ocdit_core.evaluation.records import ImageRecord
from ocdit_core.evaluation.summary import Counts, counts_of

Unit = Literal["image", "scene"]
FIGURES = ("ap", "ap50", "mean_iou", "false_mask_rate")
ENOUGH_SCENES = 20
"""From so many scenes on they are drawn rather than images: those of one scene show the same things."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95% confidence interval.

    Attributes:
        value: of all images; NaN where there is nothing to count.
        low: 2.5th percentile over the resampled sets.
        high: 97.5th percentile.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than chance, at 95%."""
        return self.low > 0 or self.high < 0


class Resampling:
    """The figures of one run for any weights of its images.

    Args:
        records: of the run's images.
        threshold: of the scores, for mean IoU and false masks.
    """

    def __init__(self, records: Sequence[ImageRecord], threshold: float) -> None:
        self._pools: list[Pool] = list(Matches(records).pools().values())
        names = list(asdict(Counts()))
        counts = np.zeros((len(records), len(names)))
        for image, _, one in counts_of(records, threshold):
            counts[image] += list(asdict(one).values())
        self._counts = dict(zip(names, counts.T, strict=True))

    def figures(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (F,) the FIGURES, each 0 to 1, NaN where there is nothing to count.

        Args:
            weights: (I,) how often each image counts.
        """
        each = [value for pool in self._pools if (value := pool.average_precision(weights)) is not None]
        mean = mean_of_objects(each)
        total = {name: float(weights @ column) for name, column in self._counts.items()}
        overlap = total["overlap"] / total["instances"] if total["instances"] else np.nan
        false = total["false_masks"] / total["absent"] if total["absent"] else np.nan
        return np.array([mean.ap, mean.ap50, overlap, false])


def unit_of(records: Sequence[ImageRecord]) -> Unit:
    """Return what is best drawn: scenes where there are enough of them, else images."""
    return "scene" if len({record.scene_id for record in records}) >= ENOUGH_SCENES else "image"


def draw_weights(records: Sequence[ImageRecord], resamples: int, *, unit: Unit, seed: int = 0) -> NDArray[np.int64]:
    """Return (R, I) how often each image counts in each of R resampled sets.

    Args:
        records: of the images.
        resamples: R.
        unit: what is drawn with replacement, as many as there are: images, or scenes with all their images.
        seed: of the drawing.
    """
    groups = [(record.scene_id, record.image_id if unit == "image" else 0) for record in records]
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    count = len(number)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray(drawn[:, [number[group] for group in groups]], np.int64)


def estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """Return a figure with the percentile interval of its (R,) resampled values; NaN values are left out."""
    known = samples[~np.isnan(samples)]
    low, high = np.percentile(known, [2.5, 97.5]) if known.size and not np.isnan(value) else (np.nan, np.nan)
    return Estimate(value=value, low=float(low), high=float(high))
