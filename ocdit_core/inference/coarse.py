"""The coarse stage (paper 3.4, 4.2): where in the whole image is each target, seen through one or several windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.mask_generator import MaskGenerator
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.windows import Window, WindowMean, crop_windows, full_window, guided_window
from ocdit_core.models.ocdit import TargetSet


class CoarseStage:
    """Looks at a whole image for all targets at once.

    Args:
        generator: of masks, with the coarse model.
        settings: of the inference.
    """

    def __init__(self, generator: MaskGenerator, settings: InferenceSettings) -> None:
        self._generator = generator
        self._settings = settings
        self._canvas_size = settings.image_size or generator.model.config.image_size

    def find(
        self, image: np.ndarray, runs: Sequence[TargetSet], random: torch.Generator, clock: StageClock
    ) -> np.ndarray:
        """Return (O, H, W) float32: the probability of each pixel to show each object of all runs.

        Args:
            image: (H, W, 3) uint8 RGB.
            runs: sets of target objects, each looked for in a run of its own.
            random: of the initial noise.
            clock: takes the time.
        """
        size = (image.shape[0], image.shape[1])
        mean = WindowMean(sum(run.templates.features.shape[1] for run in runs), size)
        windows = [full_window(size, self._canvas_size), *crop_windows(size, self._canvas_size, self._settings.crops)]
        self._look(image, windows, runs, mean, random, clock)
        if self._settings.guided_crop:
            guided = guided_window(mean.result(), self._canvas_size, threshold=self._settings.mask_threshold)
            if guided is not None:
                self._look(image, [guided], runs, mean, random, clock)
        return mean.result()

    def _look(
        self,
        image: np.ndarray,
        windows: Sequence[Window],
        runs: Sequence[TargetSet],
        mean: WindowMean,
        random: torch.Generator,
        clock: StageClock,
    ) -> None:
        """Add to `mean` what the windows show."""
        features = self._generator.encode(np.stack([window.forward(image) for window in windows]), clock)
        begin = 0
        for run in runs:
            end = begin + run.templates.features.shape[1]
            (found,) = self._generator.generate(
                features,
                run,
                sampler=self._settings.sampler,
                ensemble=self._settings.ensemble,
                random=random,
                clock=clock,
            )
            for window, canvases in zip(windows, found, strict=True):
                mean.add(window, canvases, slice(begin, end))
            begin = end
