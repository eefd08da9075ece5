"""The facade: set the target objects once, segment many images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.images import as_rgb8
from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.coarse import CoarseStage
from ocdit_core.inference.instances import resolve
from ocdit_core.inference.labelling import Label, label_regions
from ocdit_core.inference.mask_generator import MaskGenerator
from ocdit_core.inference.proposals import Candidate, propose
from ocdit_core.inference.refinement import RefineStage
from ocdit_core.inference.results import Segmentation
from ocdit_core.inference.settings import InferenceSettings, load_settings
from ocdit_core.inference.targets import EncodedObjects, TargetEncoder
from ocdit_core.inference.tiles import new_proposals
from ocdit_core.inference.weights import find_weights, refine_weights
from ocdit_core.masks import Box
from ocdit_core.models.checkpoints import pick_device
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.objects.library import ObjectLibrary


class Segmenter:
    """Finds target objects in images: a coarse model proposes, a refine model sharpens and rejects.

    `encode_objects` and `segment` may run in different threads at the same time; on a CPU one thread for both, and for
    loading, is faster. `from_pretrained` describes the arguments; the models' weights must not change any more.
    """

    def __init__(
        self,
        model: OCDiT,
        *,
        name: str,
        device: str = "auto",
        settings: InferenceSettings | None = None,
        feature_cache: str | Path | None = "auto",
        refine: OCDiT | None = None,
    ):
        self.settings = settings or InferenceSettings()
        self.model_name = name
        self._device = pick_device(device)
        self._objects: EncodedObjects | None = None
        generator = MaskGenerator(model, self._device, settings=self.settings)
        self._model = generator.model
        self._coarse = CoarseStage(generator, self.settings)
        self._refine: RefineStage | None = None
        if refine is not None and self.settings.refine.enabled:
            closer = MaskGenerator(refine, self._device, "refine_", self.settings)
            self._refine = RefineStage(closer, self.settings)
        second = self._refine.model if self._refine is not None else None
        self._targets = TargetEncoder(self._model, second, self._device, self.settings, feature_cache)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str = "auto",
        settings: InferenceSettings | None = None,
        feature_cache: str | Path | None = "auto",
        refine: str | Path | None = "auto",
    ) -> Segmenter:
        """Load a model.

        Args:
            name_or_path: an embedded model's name (ocdit-tiny), a folder, or a hub id such as owner/model.
            device: auto, cpu, cuda or cuda:N.
            settings: of the inference; by default those that the model recommends (see `recommended_settings`).
            feature_cache: folder where features of objects' views are kept between programs; "auto": $OCDIT_CACHE, or
                ocdit in the user's cache folder; None: nothing is kept.
            refine: the refine model, named as the coarse one is; "auto": that in the coarse model's folder `refine`
                where it has one; None: none.

        Raises:
            WeightsError: there is no such model, or its files are damaged or do not fit together.
            ConfigError: its config, or the device, is not valid.
        """
        folder = find_weights(name_or_path)
        second = refine_weights(folder) if refine == "auto" else refine and find_weights(refine)
        settings = settings or load_settings(folder)
        return cls(
            OCDiT.from_pretrained(folder),
            name=Path(name_or_path).name,
            device=device,
            settings=settings,
            feature_cache=feature_cache,
            refine=OCDiT.from_pretrained(second) if second and settings.refine.enabled else None,
        )

    @property
    def device(self) -> str:
        """Where the network runs."""
        return str(self._device)

    @property
    def objects(self) -> EncodedObjects | None:
        """The current target objects."""
        return self._objects

    @property
    def object_ids(self) -> tuple[str, ...]:
        """Names of the current target objects."""
        return self._objects.object_ids if self._objects else ()

    @property
    def refines(self) -> bool:
        """Whether there is a refine stage."""
        return self._refine is not None

    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str] | None = None) -> None:
        """Look for these objects from now on, by default for all of the library; on an error nothing changes.

        Raises:
            UnknownObjectError: the library does not hold one of them.
            ConfigError: none was named, or one twice.
            LibraryError: an object's file is damaged.
        """
        self._objects = self.encode_objects(library, library.object_ids if object_ids is None else object_ids)

    def encode_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> EncodedObjects:
        """Return target objects for `segment`, without making them current; raises as `set_objects` does."""
        return self._targets.encode(library, object_ids)

    def segment(self, image: np.ndarray, objects: EncodedObjects | None = None) -> Segmentation:
        """Find the target objects in one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: the targets, by default those of `set_objects`.

        Returns:
            Instances with masks at the image's own size, disjoint.

        Raises:
            ImageError: `image` is not a picture.
            OcditError: no target objects have been set.
        """
        return self.segment_batch([image], objects)[0]

    @torch.inference_mode()
    def segment_batch(self, images: Sequence[np.ndarray], objects: EncodedObjects | None = None) -> list[Segmentation]:
        """Find the target objects in several images, of several cameras say, which may differ in size.

        Each result is that of `segment` on its image alone, to rounding; the coarse stage runs once for all, so the
        timings are those of the whole batch. Arguments and errors are those of `segment`.
        """
        objects = self._current(objects)
        images = [as_rgb8(image) for image in images]
        if not images:
            return []
        clock, randoms = StageClock(self._device), [self._random() for _ in images]
        found = self._coarse.find(images, objects.runs, randoms, clock)
        results = [
            self._finish(image, probabilities, objects, random, clock)
            for image, probabilities, random in zip(images, found, randoms, strict=True)
        ]
        timings = clock.stop()
        return [dataclasses.replace(result, timings=dict(timings)) for result in results]

    def _finish(
        self,
        image: np.ndarray,
        probabilities: np.ndarray,
        objects: EncodedObjects,
        random: torch.Generator,
        clock: StageClock,
    ) -> Segmentation:
        """From the coarse stage's probabilities to a result without timings."""
        targets = len(objects.object_ids)
        candidates = self._candidates(image, probabilities, objects, random, clock)
        size = (image.shape[0], image.shape[1])
        instances = resolve(candidates, objects.object_ids, size, self.settings)
        uncertainty = uncertainty_map(probabilities[:targets], candidates) if self.settings.uncertainty else None
        clock.lap("instances")
        return Segmentation(
            instances=instances, image_size=size, target_ids=objects.object_ids, uncertainty=uncertainty
        )

    def _candidates(
        self,
        image: np.ndarray,
        probabilities: np.ndarray,
        objects: EncodedObjects,
        random: torch.Generator,
        clock: StageClock,
    ) -> list[Candidate]:
        """Where targets may be, looked at closely where there is a refine stage."""
        targets, settings = len(objects.object_ids), self.settings
        size = (image.shape[0], image.shape[1])
        coarse_only = self._refine is None or objects.singles is None
        # Objects that look alike may all claim the same pixels: the refine stage tells them apart.
        threshold = settings.mask_threshold if coarse_only else settings.refine.proposal_threshold
        proposals = propose(probabilities, targets, settings, threshold=threshold, exclusive=coarse_only)
        clock.lap("proposals")
        seen = self._coarse.find_in_tiles(image, objects.runs, random, clock)
        threshold = settings.mask_threshold if coarse_only else settings.tiles.proposal_threshold
        new = new_proposals(proposals, seen, targets, size, settings, threshold=threshold)
        clock.lap("proposals")
        if self._refine is not None and objects.singles is not None:
            proposals = self._refine.refine(image, proposals, objects.singles, random, clock)
            new = self._refine.refine(image, new, objects.singles, random, clock)
        factor = settings.tiles.score_factor
        return proposals + [dataclasses.replace(one, score=factor * one.score) for one in new]

    @torch.inference_mode()
    def label(
        self,
        image: np.ndarray,
        regions: Sequence[Box | np.ndarray],
        objects: EncodedObjects | None = None,
    ) -> tuple[Label, ...]:
        """Tell which target object each region shows, or none: for boxes or masks that any detector has found.

        Args:
            image: (H, W, 3) uint8 RGB.
            regions: (x, y, width, height) in pixels, or (H, W) bool masks.
            objects: the targets, by default those of `set_objects`.

        Raises:
            ImageError: `image` is not a picture, or a region is not inside it.
            OcditError: no target objects have been set.
            ConfigError: there is no refine model, which this takes.
        """
        objects = self._current(objects)
        if self._refine is None or objects.singles is None:
            raise ConfigError(f"labelling takes a refine model, and {self.model_name} has none, or it is not enabled")
        return label_regions(
            as_rgb8(image),
            regions,
            self._refine,
            objects.singles,
            objects.object_ids,
            threshold=self.settings.label_threshold,
            random=self._random(),
            clock=StageClock(self._device),
        )

    @torch.inference_mode()
    def presence(self, image: np.ndarray, objects: EncodedObjects | None = None) -> dict[str, float]:
        """Return how present each target is in an image as a whole, -1 to 1, by the network's presence tokens.

        Arguments and errors are those of `segment`; ConfigError: the network was trained without presence tokens.
        """
        objects = self._current(objects)
        scores = self._coarse.presence(as_rgb8(image), objects.runs, StageClock(self._device))
        return dict(zip(objects.object_ids, scores[: len(objects.object_ids)].tolist(), strict=True))

    def _current(self, objects: EncodedObjects | None) -> EncodedObjects:
        objects = objects or self._objects
        if objects is None:
            raise OcditError("no target objects are set: call set_objects first")
        return objects

    def _random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings.seed)


def uncertainty_map(probabilities: np.ndarray, candidates: Sequence[Candidate]) -> np.ndarray:
    """Return (H, W) float32 in [0, 1]: 1 where it is a toss-up whether a pixel shows a target, 0 where it is certain.

    It is the variance 4 p (1 - p) of that yes or no: what ensemble members and windows disagree on is part of it.

    Args:
        probabilities: (O, H, W) of the coarse stage; of the target that is most probable at a pixel.
        candidates: which count where they lie, in place of the coarse stage.
    """
    found = probabilities.max(axis=0)
    for candidate in sorted(candidates, key=lambda one: one.score):
        x, y, width, height = candidate.region
        found[y : y + height, x : x + width][candidate.mask] = candidate.probabilities[candidate.mask]
    return np.asarray(4 * found * (1 - found), np.float32)
