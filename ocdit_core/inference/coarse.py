"""The coarse stage (paper 3.4, 4.2): where in whole images is each target, seen through one or several windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.mask_generator import MaskGenerator
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.tiles import tile_windows
from ocdit_core.inference.windows import Window, WindowMean, crop_windows, full_window, guided_window
from ocdit_core.models.ocdit import TargetSet


@dataclass(frozen=True)
class _Look:
    """What is looked at of one image, and what has been seen on it so far."""

    image: np.ndarray
    random: torch.Generator
    mean: WindowMean
    windows: list[Window]


class CoarseStage:
    """Looks at whole images for all targets at once.

    Args:
        generator: of masks, with the coarse model.
        settings: of the inference.
    """

    def __init__(self, generator: MaskGenerator, settings: InferenceSettings) -> None:
        self._generator = generator
        self._settings = settings
        self._canvas_size = settings.image_size or generator.model.config.image_size

    def find(
        self,
        images: Sequence[np.ndarray],
        runs: Sequence[TargetSet],
        randoms: Sequence[torch.Generator],
        clock: StageClock,
    ) -> list[np.ndarray]:
        """Return for each image the probability of each pixel to show each object of all runs, (O, H, W) float32.

        Args:
            images: (H, W, 3) uint8 RGB, each of its own size: they go through the network together.
            runs: sets of target objects, each looked for in a run of its own.
            randoms: of the initial noise of each image.
            clock: takes the time.
        """
        looks = []
        for image, random in zip(images, randoms, strict=True):
            size = (image.shape[0], image.shape[1])
            windows = [full_window(size, self._canvas_size)]
            windows += crop_windows(size, self._canvas_size, self._settings.crops)
            looks.append(_Look(image, random, WindowMean(_objects(runs), size), windows))
        self._look(looks, runs, clock)
        if self._settings.guided_crop:
            guided = []
            for look in looks:
                window = guided_window(look.mean.result(), self._canvas_size, threshold=self._settings.mask_threshold)
                if window is not None:
                    guided.append(replace(look, windows=[window]))
            if guided:
                self._look(guided, runs, clock)
        return [look.mean.result() for look in looks]

    def find_in_tiles(
        self, image: np.ndarray, runs: Sequence[TargetSet], random: torch.Generator, clock: StageClock
    ) -> list[tuple[Window, np.ndarray]]:
        """Return the tiles of an image and what each shows, (O, height, width) float32 of its pixels.

        Args:
            image: (H, W, 3) uint8 RGB.
            runs: sets of target objects, each looked for in a run of its own.
            random: of the initial noise.
            clock: takes the time.
        """
        windows = tile_windows((image.shape[0], image.shape[1]), self._canvas_size, self._settings)
        if not windows:
            return []
        features = self._generator.encode(np.stack([window.forward(image) for window in windows]), clock)
        parts = [
            self._generator.generate(
                features,
                run,
                sampler=self._settings.sampler,
                ensemble=self._settings.ensemble,
                random=random,
                clock=clock,
            ).probabilities[0]
            for run in runs
        ]
        return [
            (window, np.stack([window.letterbox.inverse(canvas) for canvas in canvases]))
            for window, canvases in zip(windows, np.concatenate(parts, axis=1), strict=True)
        ]

    def presence(self, image: np.ndarray, runs: Sequence[TargetSet], clock: StageClock) -> np.ndarray:
        """Return (O,) float32: how present each object of all runs is in a (H, W, 3) image (see `presence_scores`)."""
        window = full_window((image.shape[0], image.shape[1]), self._canvas_size)
        features = self._generator.encode(window.forward(image)[None], clock)
        sigma = self._settings.sampler.sigma_max
        found = [self._generator.model.presence_scores(features, run, sigma)[0] for run in runs]
        scores: np.ndarray = torch.cat(found).float().cpu().numpy()
        return scores

    def _look(self, looks: Sequence[_Look], runs: Sequence[TargetSet], clock: StageClock) -> None:
        """Add to each mean what its windows show."""
        settings = self._settings
        canvases = [window.forward(look.image) for look in looks for window in look.windows]
        features = self._generator.encode(np.stack(canvases), clock)
        places = [(look.mean, window) for look in looks for window in look.windows]
        begin = 0
        for run in runs:
            end = begin + run.templates.features.shape[1]
            found = self._generator.generate(
                features,
                run,
                sampler=settings.sampler,
                ensemble=settings.ensemble,
                random=[(look.random, len(look.windows)) for look in looks],
                clock=clock,
            )
            for (mean, window), canvas in zip(places, found.probabilities[0], strict=True):
                mean.add(window, canvas, slice(begin, end))
            begin = end


def _objects(runs: Sequence[TargetSet]) -> int:
    return sum(run.templates.features.shape[1] for run in runs)
