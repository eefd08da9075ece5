"""The segmenter: set the target objects once, segment many images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError, ImageError, OcditError, UnknownObjectError
from ocdit_core.images import as_rgb8
from ocdit_core.inference.coarse import CoarseStage
from ocdit_core.inference.depth import Pose, checked_camera, registered_depth
from ocdit_core.inference.geometry import size_checked
from ocdit_core.inference.labelling import LABEL_THRESHOLD, Label, label_regions
from ocdit_core.inference.network import Network, collect_timings, lap
from ocdit_core.inference.pose import PoseStage
from ocdit_core.inference.postprocess import (
    Candidate,
    calibrated,
    candidate_in,
    coarse_candidates,
    propose,
    resolve,
    uncalibrated,
    uncertainty_map,
)
from ocdit_core.inference.prompted import Evidence, prompted_candidates
from ocdit_core.inference.prompts import Prompt, check_prompts, checked_box
from ocdit_core.inference.refine import RefineStage
from ocdit_core.inference.results import Segmentation
from ocdit_core.inference.settings import InferenceSettings, find_weights, load_settings, refine_weights
from ocdit_core.inference.targets import EncodedObjects, TargetEncoder
from ocdit_core.masks import Box, box_iou
from ocdit_core.models.checkpoints import pick_device
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.objects.library import ObjectLibrary


class Segmenter:
    """Segments target objects in images with a coarse model and, where there is one, a refine model.

    Several threads may use it at the same time. On a CPU, one thread that loads, encodes and segments is faster.

    Args:
        model: the coarse model; its weights must not change any more.
        name: name of the model.
        device: auto, cpu, cuda or cuda:N.
        settings: inference settings.
        feature_cache: see `from_pretrained`.
        refine: the refine model; its weights must not change any more.

    Raises:
        ConfigError: there is no such device, or the settings need a refine model.
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
        self.model_name = name
        self._settings = settings = settings or InferenceSettings()
        self._device = pick_device(device)
        self._objects: EncodedObjects | None = None
        network = Network(model, self._device, settings)
        self._coarse = CoarseStage(network, settings)
        self._poses = PoseStage(network)
        self._refine: RefineStage | None = None
        refine_network: Network | None = None
        if refine is not None and settings.refine.enabled:
            refine_network = Network(refine, self._device, settings, "refine_")
            self._refine = RefineStage(refine_network, settings)
        elif settings.track.interval > 1:
            raise ConfigError(
                f"track.interval: {settings.track.interval} needs a refine model, and {name} has none, "
                "or it is not enabled"
            )
        self._targets = TargetEncoder(network, refine_network, settings, feature_cache)

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
            name_or_path: name of an embedded model (ocdit-small), a folder, or a hub id (owner/model).
            device: auto, cpu, cuda or cuda:N.
            settings: inference settings; default: those that the model recommends (see `recommended_settings`).
            feature_cache: folder of template features, shared by all programs; "auto": $OCDIT_CACHE, or ocdit in the
                user's cache folder; None: no cache on disk.
            refine: the refine model, named as the coarse one; "auto": the folder `refine` in the coarse model's folder,
                where there is one; None: no refine model.

        Raises:
            WeightsError: there is no such model, or its files are damaged or do not fit together.
            ConfigError: the model's configuration, or the device, is not valid.
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
    def settings(self) -> InferenceSettings:
        """Inference settings."""
        return self._settings

    @property
    def device(self) -> str:
        """Device of the network."""
        return str(self._device)

    @property
    def objects(self) -> EncodedObjects | None:
        """Current target objects."""
        return self._objects

    @property
    def object_ids(self) -> tuple[str, ...]:
        """Names of the current target objects."""
        return self._objects.object_ids if self._objects else ()

    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str] | None = None) -> None:
        """Set the target objects; on an error, the current ones stay.

        Args:
            library: the library.
            object_ids: names of the targets; default: all of the library.

        Raises:
            UnknownObjectError: the library has no such object.
            ConfigError: no object is named, or one is named twice.
            LibraryError: an object's file is damaged.
        """
        self._objects = self.encode_objects(library, library.object_ids if object_ids is None else object_ids)

    def encode_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> EncodedObjects:
        """Return target objects for `segment`, without setting them; raises the errors of `set_objects`."""
        return self._targets.encode(library, object_ids)

    def segment(
        self,
        image: np.ndarray,
        objects: EncodedObjects | None = None,
        *,
        score_threshold: float | None = None,
        uncertainty: bool = False,
        depth: np.ndarray | None = None,
        camera_matrix: np.ndarray | None = None,
        prompts: Sequence[Prompt] = (),
        only_prompted: bool = False,
    ) -> Segmentation:
        """Segment the target objects in an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: target objects; default: those of `set_objects`.
            score_threshold: lowest score of an instance; default: that of the settings.
            uncertainty: compute the uncertainty of each pixel, too.
            depth: (H, W) depth of the image's pixels (see `depth_in_metres`), to check the size of the objects;
                default: none.
            camera_matrix: (3, 3) intrinsics of the image in pixels, with `depth`.
            prompts: where targets are: of each object that these place, there are only the instances that they point
                at, one for each prompt at most; the other targets are found as without prompts.
            only_prompted: segment no more of the targets without prompts than what competes for the place of the
                others, which takes less time.

        Returns:
            Instances with disjoint masks of the image's size.

        Raises:
            ImageError: `image` is not an image, the depth is not of its size or has no valid camera matrix, or a prompt
                is not inside the image.
            UnknownObjectError: a prompt is for an object that is none of the targets.
            ConfigError: there are prompts, but no refine model, which they need.
            OcditError: no target objects have been set.
        """
        return self.segment_batch(
            [image],
            objects,
            score_threshold=score_threshold,
            uncertainty=uncertainty,
            depths=[depth],
            camera_matrices=[camera_matrix],
            prompts=[prompts],
            only_prompted=only_prompted,
        )[0]

    @torch.inference_mode()
    def segment_batch(
        self,
        images: Sequence[np.ndarray],
        objects: EncodedObjects | None = None,
        *,
        score_threshold: float | None = None,
        uncertainty: bool = False,
        depths: Sequence[np.ndarray | None] | None = None,
        camera_matrices: Sequence[np.ndarray | None] | None = None,
        prompts: Sequence[Sequence[Prompt]] | None = None,
        only_prompted: bool = False,
    ) -> list[Segmentation]:
        """Segment several images, which may differ in size; the coarse model runs once for all of them.

        Each result is that of `segment`, to rounding; its timings are those of the batch. Arguments and errors are
        those of `segment`; `depths` and `camera_matrices` have one for each image, None where there is none, and
        `prompts` those of each image.
        """
        objects = self._current(objects)
        images = [as_rgb8(image) for image in images]
        if not images:
            return []
        measured = [
            None if depth is None else (registered_depth(depth, image.shape[:2]), checked_camera(camera_matrix))
            for image, depth, camera_matrix in zip(
                images, depths or [None] * len(images), camera_matrices or [None] * len(images), strict=True
            )
        ]
        asked: Sequence[Sequence[Prompt]] = [()] * len(images) if prompts is None else prompts
        for own, image in zip(asked, images, strict=True):
            self._check_prompts(own, image, objects)
        threshold = self._settings.score_threshold if score_threshold is None else score_threshold
        results = []
        with collect_timings() as seconds:
            for image, depth, own, probabilities in zip(
                images, measured, asked, self._coarse.segment(images, objects.runs), strict=True
            ):
                # The map of uncertainty shows all candidates.
                min_score = 0.0 if uncertainty else uncalibrated(threshold, self._settings.calibration)
                candidates = self._candidates(image, probabilities, objects, own, only_prompted, min_score)
                if depth is not None and self._settings.size_weight:
                    candidates = size_checked(candidates, objects.geometry, *depth, self._settings.size_weight)
                size = (image.shape[0], image.shape[1])
                instances = resolve(
                    candidates,
                    objects.object_ids,
                    size,
                    score_threshold=threshold,
                    max_instances=max(self._settings.max_instances, len(own)),
                    image=image if self._settings.refine.snap else None,
                )
                targets = probabilities[: len(objects.object_ids)]
                results.append(
                    Segmentation(
                        instances=instances,
                        image_size=size,
                        target_ids=objects.object_ids,
                        uncertainty=uncertainty_map(targets, candidates) if uncertainty else None,
                    )
                )
                lap("instances")
        return [dataclasses.replace(result, timings=dict(seconds)) for result in results]

    def _check_prompts(self, prompts: Sequence[Prompt], image: np.ndarray, objects: EncodedObjects) -> None:
        """Raise the errors of `segment` for prompts."""
        if prompts and (self._refine is None or objects.singles is None):
            raise ConfigError(f"prompts need a refine model, and {self.model_name} has none, or it is not enabled")
        check_prompts(prompts, objects.object_ids, (image.shape[0], image.shape[1]))

    def _candidates(
        self,
        image: np.ndarray,
        probabilities: np.ndarray,
        objects: EncodedObjects,
        prompts: Sequence[Prompt],
        only_prompted: bool,
        min_score: float,
    ) -> list[Candidate]:
        """Return candidates of all targets: proposals, refined where there is a refine stage, or those of prompts."""
        settings, targets = self._settings, len(objects.object_ids)
        pointed: list[Candidate] = []
        if self._refine is None or objects.singles is None:
            candidates = coarse_candidates(probabilities, targets, settings)
        else:
            fine = self._coarse.match(image, objects.runs)
            maps = [probabilities] if fine is None else [probabilities, fine]
            proposals = propose(maps, targets, settings)
            size = (image.shape[0], image.shape[1])
            evidence = [Evidence(prompt, objects.object_ids, size) for prompt in prompts]
            lap("proposals")
            placed = {one.target for one in evidence if one.places}
            touched = [one for one in proposals if any(prompt.touches(one) for prompt in evidence)]
            refined = calibrated(self._refine.refine(image, touched, objects.singles), settings.calibration)
            pointed = prompted_candidates(image, maps, refined, evidence, self._refine, objects.singles, settings)
            rest = [one for one in proposals if one.target not in placed]
            if only_prompted:
                asked = {one.target for one in evidence}
                rest = [
                    one
                    for one in rest
                    if one.target in asked or any(box_iou(one.box, other.box) > 0 for other in pointed)
                ]
            candidates = self._refine.refine(image, rest, objects.singles, min_score=min_score)
            candidates = [one for one in candidates if not any(prompt.excludes(one) for prompt in evidence)]
        lap("proposals")
        return calibrated(candidates, settings.calibration) + pointed

    @torch.inference_mode()
    def steps(
        self, image: np.ndarray, objects: EncodedObjects | None = None, *, sampler: SamplerConfig | None = None
    ) -> tuple[np.ndarray, dict[float, np.ndarray]]:
        """Return the masks that the coarse model predicts during sampling, before members and crops are averaged.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: target objects; default: those of `set_objects`.
            sampler: sampler; default: that of the settings.

        Returns:
            The whole image and its A crops as the model sees them, (A + 1, h, w, 3) uint8; by noise level, falling,
            ((A + 1) E, O, h', w') float32 probabilities of the targets in these, E members of the ensemble for each.

        Raises:
            ImageError: `image` is not an image.
            OcditError: no target objects have been set.
        """
        objects = self._current(objects)
        crops, masks = self._coarse.steps(as_rgb8(image), objects.runs, sampler)
        return crops, {sigma: one[:, : len(objects.object_ids)] for sigma, one in masks.items()}

    @torch.inference_mode()
    def poses(
        self,
        image: np.ndarray,
        segmentation: Segmentation,
        camera_matrix: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        objects: EncodedObjects | None = None,
    ) -> list[Pose | None]:
        """Return an approximate pose of each instance, to initialise a pose refiner or complete 3D boxes (see `lift`).

        Args:
            image: (H, W, 3) uint8 RGB.
            segmentation: its result.
            camera_matrix: (3, 3) intrinsics in pixels.
            depth: (H, W) depth of the image's pixels (see `depth_in_metres`), without which poses are coarse.
            objects: target objects of the result; default: those of `set_objects`.

        Returns:
            Poses in the order of the instances; None for objects from photographs, whose shape is not known.

        Raises:
            ImageError: `image` is not an image of the result's size, or the depth or camera matrix is not valid.
            ConfigError: the result has instances of other objects.
            OcditError: no target objects have been set.
        """
        objects, image = self._current(objects), as_rgb8(image)
        size, metres = segmentation.image_size, None
        if image.shape[:2] != size:
            raise ImageError(f"the image is {image.shape[:2]} (H, W), the segmentation {size}")
        if depth is not None:
            metres = registered_depth(depth, size)
        return self._poses.estimate(image, segmentation.instances, objects, checked_camera(camera_matrix), metres)

    @torch.inference_mode()
    def label(
        self,
        image: np.ndarray,
        regions: Sequence[Box | np.ndarray],
        objects: EncodedObjects | None = None,
        *,
        threshold: float = LABEL_THRESHOLD,
        names: Sequence[str] | None = None,
    ) -> tuple[Label, ...]:
        """Return the target object that each region shows, for boxes or masks of any detector.

        Args:
            image: (H, W, 3) uint8 RGB.
            regions: boxes (x, y, width, height) in pixels, or (H, W) bool masks.
            objects: target objects; default: those of `set_objects`.
            threshold: lowest score of a label.
            names: name of the target that each region shows, where the detector tells: only its mask is generated then.

        Raises:
            ImageError: `image` is not an image, or a region is malformed or not inside it.
            OcditError: no target objects have been set.
            ConfigError: there is no refine model, which labelling needs, or a name is none of the targets.
        """
        objects = self._current(objects)
        if self._refine is None or objects.singles is None:
            raise ConfigError(f"labelling needs a refine model, and {self.model_name} has none, or it is not enabled")
        image, settings = as_rgb8(image), self._settings
        return label_regions(
            image, regions, self._refine, objects.singles, objects.object_ids, settings, threshold, names
        )

    @torch.inference_mode()
    def follow(
        self, image: np.ndarray, expected: Sequence[tuple[str, Box]], objects: EncodedObjects | None = None
    ) -> Segmentation:
        """Segment targets where they are expected, by the refine model alone: a fraction of the time of `segment`.

        Args:
            image: (H, W, 3) uint8 RGB.
            expected: name and box (x, y, width, height) in pixels of each instance.
            objects: target objects; default: those of `set_objects`.

        Returns:
            Instances with disjoint masks of the image's size, at most one for each that is expected.

        Raises:
            ImageError: `image` is not an image, or a box is malformed or not inside it.
            UnknownObjectError: a name is none of the targets.
            OcditError: no target objects have been set.
            ConfigError: there is no refine model.
        """
        objects, image, settings = self._current(objects), as_rgb8(image), self._settings
        if self._refine is None or objects.singles is None:
            raise ConfigError(
                f"following instances needs a refine model, and {self.model_name} has none, or it is not enabled"
            )
        size = (image.shape[0], image.shape[1])
        boxes = [checked_box(box, size, f"{name} is expected") for name, box in expected]
        if unknown := sorted({name for name, _ in expected} - set(objects.object_ids)):
            raise UnknownObjectError(unknown, list(objects.object_ids))
        targets = [objects.object_ids.index(name) for name, _ in expected]
        with collect_timings() as seconds:
            segmented = self._refine.segment(image, boxes, targets, objects.singles)
            found = (candidate_in(target, *one, size, settings) for target, one in zip(targets, segmented, strict=True))
            candidates = calibrated([one for one in found if one is not None], settings.calibration)
            instances = resolve(
                candidates,
                objects.object_ids,
                size,
                score_threshold=settings.score_threshold,
                max_instances=len(expected),
                image=image if settings.refine.snap else None,
            )
            lap("instances")
        return Segmentation(instances=instances, image_size=size, target_ids=objects.object_ids, timings=dict(seconds))

    @torch.inference_mode()
    def presence(self, image: np.ndarray, objects: EncodedObjects | None = None) -> dict[str, float]:
        """Return the estimated probability in [0, 1] of each target being in an image.

        It is that of the matching prior times that of the presence tokens; for a network without one of them, it is 1.

        Raises:
            ImageError: `image` is not an image.
            OcditError: no target objects have been set.
        """
        objects = self._current(objects)
        scores = self._coarse.presence(as_rgb8(image), objects.runs)
        return dict(zip(objects.object_ids, scores[: len(objects.object_ids)].tolist(), strict=True))

    def _current(self, objects: EncodedObjects | None) -> EncodedObjects:
        objects = objects or self._objects
        if objects is None:
            raise OcditError("no target objects are set: call set_objects first")
        return objects
