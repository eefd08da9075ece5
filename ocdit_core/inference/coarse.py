"""The coarse stage (paper 3.4, 4.2): probabilities of all targets in whole images and crops."""

from collections.abc import Sequence

import numpy as np

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.inference.crops import Crop, CropMean, augmentation_crops, full_crop, guided_crop
from ocdit_core.inference.network import Network
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.ocdit import TargetSet

_TILE = 192
"""Width in pixels of the masks that `CoarseStage.steps` returns."""


class CoarseStage:
    """Segments all targets at once.

    Args:
        network: the coarse model.
        settings: inference settings.
    """

    def __init__(self, network: Network, settings: InferenceSettings) -> None:
        self._network = network
        self._settings = settings
        self._input_size = settings.image_size or network.model.config.image_size

    def segment(self, images: Sequence[np.ndarray], runs: Sequence[TargetSet]) -> list[np.ndarray]:
        """Return the probabilities (O, H, W) float32 of all runs' objects for each image.

        Args:
            images: (H, W, 3) uint8 RGB images, which may differ in size.
            runs: sets of target objects, one run of the network each.
        """
        settings = self._settings
        jobs = []
        for image in images:
            jobs.append((CropMean(sum(_objects(run) for run in runs), _size(image)), image, self._crops(image)))
        self._add(jobs, runs)
        if settings.guided_crop:
            guided = []
            for mean, image, _ in jobs:
                crop = guided_crop(mean.result(), self._input_size, settings.mask_threshold)
                if crop is not None:
                    guided.append((mean, image, [crop]))
            if guided:
                self._add(guided, runs)
        return [mean.result() for mean, _, _ in jobs]

    def steps(
        self, image: np.ndarray, runs: Sequence[TargetSet], sampler: SamplerConfig | None
    ) -> tuple[np.ndarray, dict[float, np.ndarray]]:
        """Return the crops of an image and the masks of all runs' objects during sampling; see `Segmenter.steps`."""
        crops = np.stack([crop.forward(image) for crop in self._crops(image)])
        features = self._network.encode(crops)
        size = round(_TILE * crops.shape[1] / crops.shape[2]), _TILE
        found = [self._network.steps(features, run, size, sampler) for run in runs]
        return crops, {sigma: np.concatenate([one[sigma] for one in found], axis=1) for sigma in found[0]}

    def _crops(self, image: np.ndarray) -> list[Crop]:
        size = _size(image)
        return [full_crop(size, self._input_size), *augmentation_crops(size, self._input_size, self._settings.crops)]

    def match(self, image: np.ndarray, runs: Sequence[TargetSet]) -> np.ndarray | None:
        """Return the matching prior's probabilities (O, H, W) float32 at `fine_image_size`; None without either."""
        if self._settings.fine_image_size is None or self._network.model.prior is None:
            return None
        crop = full_crop(_size(image), self._settings.fine_image_size)
        features = self._network.encode(crop.forward(image)[None])
        masks = [found[0] for run in runs if (found := self._network.match(features, run)) is not None]
        return np.stack([crop.inverse(mask) for mask in np.concatenate(masks)])

    def presence(self, image: np.ndarray, runs: Sequence[TargetSet]) -> np.ndarray:
        """Return the probabilities (O,) float32 of all runs' objects being in an image at all."""
        features = self._network.encode(full_crop(_size(image), self._input_size).forward(image)[None])
        return np.concatenate([self._network.generate(features, run)[1][0, 0] for run in runs])

    def _add(self, jobs: Sequence[tuple[CropMean, np.ndarray, list[Crop]]], runs: Sequence[TargetSet]) -> None:
        """Add the probabilities of crops to the means of their images, in one batch; all have as many crops."""
        features = self._network.encode(np.stack([crop.forward(image) for _, image, crops in jobs for crop in crops]))
        places = [(mean, crop) for mean, _, crops in jobs for crop in crops]
        begin = 0
        for run in runs:
            objects = slice(begin, begin + _objects(run))
            generated, _ = self._network.generate(features, run, len(jobs[0][2]))
            for (mean, crop), probabilities in zip(places, generated[0], strict=True):
                mean.add(crop, probabilities, objects)
            begin = objects.stop


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _objects(run: TargetSet) -> int:
    return run.tokens.object_indices.shape[1]
