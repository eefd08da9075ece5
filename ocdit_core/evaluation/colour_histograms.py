"""Colour histograms of regions and of objects' views, for baselines that go by colour."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ocdit_core.objects.archive import ObjectTemplates


@dataclass(frozen=True, kw_only=True)
class ColourHistograms:
    """How colours are counted.

    Attributes:
        bins: of the joint histogram over lightness and the two colour axes of CIE Lab.
        spread: how far a colour reaches into its neighbours, in bins: tolerance for other light.
    """

    bins: tuple[int, int, int] = (5, 16, 16)
    spread: float = 1.0

    def index(self, rgb: np.ndarray) -> np.ndarray:
        """Return the histogram bin of each pixel of (..., 3) uint8 RGB."""
        flat = np.ascontiguousarray(rgb.reshape(-1, 1, 3)).astype(np.float32) / 255
        lab = cv2.cvtColor(flat, cv2.COLOR_RGB2Lab).reshape(-1, 3)
        # Lightness is in 0..100; real colours lie within about 100 of the grey axis, most of them far closer:
        # the square root gives these the finer bins.
        unit = np.empty_like(lab)
        unit[:, 0] = lab[:, 0] / 100
        unit[:, 1:] = 0.5 + 0.5 * np.sign(lab[:, 1:]) * np.sqrt(np.minimum(np.abs(lab[:, 1:]) / 110, 1))
        bins = np.array(self.bins)
        place = np.clip((unit * bins).astype(np.int64), 0, bins - 1)
        return np.ravel_multi_index(tuple(place.T), self.bins).reshape(rgb.shape[:-1])

    def histogram(self, colours: np.ndarray) -> np.ndarray:
        """Return the smoothed histogram of bin numbers, summing to 1."""
        counts = np.bincount(colours.ravel(), minlength=int(np.prod(self.bins))).astype(np.float32)
        cube = counts.reshape(self.bins)
        if self.spread > 0:
            reach = np.arange(-2, 3)
            kernel = np.exp(-0.5 * (reach / self.spread) ** 2)
            for axis in range(3):
                padded = np.moveaxis(cube, axis, 0)
                padded = np.pad(padded, ((2, 2), (0, 0), (0, 0)))
                smooth = sum(weight * padded[step : step + len(padded) - 4] for step, weight in enumerate(kernel))
                cube = np.moveaxis(np.asarray(smooth), 0, axis)
        return (cube / max(float(cube.sum()), 1e-12)).ravel()

    @staticmethod
    def ratios(objects: np.ndarray, image: np.ndarray, *, image_weight: float, rival_weight: float) -> np.ndarray:
        """Return how much each colour speaks for each object, (O, bins) in 0 to 1 (Swain & Ballard, IJCV 1991).

        Args:
            objects: (O, bins) histograms.
            image: (bins,) histogram of the image that they are looked for in.
            image_weight: how much it speaks against a colour.
            rival_weight: how much the other objects' histograms do.
        """
        against = image_weight * image + rival_weight * (objects.sum(axis=0) - objects)
        return np.asarray(objects / (objects + against + 1e-6))

    def of_views(self, templates: ObjectTemplates) -> np.ndarray:
        """Return (V, bins) histograms of an object's views."""
        # The outermost pixels are mixed with the black around them.
        kernel = np.ones((3, 3), np.uint8)
        histograms = []
        for rgb, mask in zip(templates.rgb, templates.mask, strict=True):
            inner = cv2.erode(mask.astype(np.uint8), kernel).astype(bool)
            histograms.append(self.histogram(self.index(rgb[inner if inner.any() else mask])))
        return np.stack(histograms)
