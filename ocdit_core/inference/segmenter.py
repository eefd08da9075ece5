"""The facade: set the target objects once, segment many images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ocdit_core.diffusion.samplers import sample
from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.images import as_rgb8
from ocdit_core.inference.object_encoder import ObjectEncoder
from ocdit_core.inference.results import Instance, Segmentation, tight_box
from ocdit_core.inference.settings import InferenceSettings, load_settings
from ocdit_core.inference.weights import find_weights
from ocdit_core.inference.windows import Window, WindowMean, crop_windows, full_window, guided_window
from ocdit_core.models.device import pick_device
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet, TemplateFeatures, join_templates
from ocdit_core.models.positions import inference_positions
from ocdit_core.objects.library import ObjectLibrary


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedObjects:
    """Target objects, ready for the network: made once by `Segmenter.encode_objects`, used for many images.

    Attributes:
        object_ids: names, in the order in which they were asked for.
        runs: what the network looks for in each of its runs over an image: the targets, then the distractors.
    """

    object_ids: tuple[str, ...]
    runs: tuple[TargetSet, ...]

    @property
    def count(self) -> int:
        """How many objects are looked for, distractors among them."""
        return sum(run.templates.features.shape[1] for run in self.runs)


class Segmenter:
    """Finds target objects in images.

    `encode_objects` and `segment` may run in different threads at the same time. `from_pretrained` describes the
    arguments; the model's weights must not change any more.
    """

    def __init__(
        self,
        model: OCDiT,
        *,
        name: str,
        device: str = "auto",
        settings: InferenceSettings | None = None,
        feature_cache: str | Path | None = "auto",
    ):
        self.settings = settings or InferenceSettings()
        self.model_name = name
        self._device = pick_device(device)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._canvas_size = self.settings.image_size or model.config.image_size
        self._objects: EncodedObjects | None = None
        self._encoder = ObjectEncoder(self._model, self._device, feature_cache)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str = "auto",
        settings: InferenceSettings | None = None,
        feature_cache: str | Path | None = "auto",
    ) -> Segmenter:
        """Load a model.

        Args:
            name_or_path: an embedded model's name (ocdit-tiny), a folder, or a hub id such as owner/model.
            device: auto, cpu, cuda or cuda:N.
            settings: of the inference; by default those that the model recommends (see `recommended_settings`).
            feature_cache: folder where features of objects' views are kept between programs; "auto": $OCDIT_CACHE, or
                ocdit in the user's cache folder; None: nothing is kept.

        Raises:
            WeightsError: there is no such model, or its files are damaged or do not fit together.
            ConfigError: its config, or the device, is not valid.
        """
        folder = find_weights(name_or_path)
        return cls(
            OCDiT.from_pretrained(folder),
            name=Path(name_or_path).name,
            device=device,
            settings=settings or load_settings(folder),
            feature_cache=feature_cache,
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

    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str] | None = None) -> None:
        """Look for these objects from now on, by default for all of the library; on an error nothing changes.

        Raises:
            UnknownObjectError: the library does not hold one of them.
            ConfigError: none was named, or one twice.
            LibraryError: an object's file is damaged.
        """
        self._objects = self.encode_objects(library, library.object_ids if object_ids is None else object_ids)

    @torch.inference_mode()
    def encode_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> EncodedObjects:
        """Return target objects for `segment`, without making them current; raises as `set_objects` does."""
        names = tuple(object_ids)
        if not names:
            raise ConfigError(f"no target objects were named; the library holds {', '.join(library.object_ids)}")
        if len(set(names)) < len(names):
            raise ConfigError(f"a target object is named twice in {', '.join(names)}")
        encoded = self._encode(library, [*names, *self._distractors(library, names)])
        self._encoder.trim()
        runs = []
        for positions in inference_positions(self.settings.positions, len(encoded), self._capacity):
            run, encoded = encoded[: len(positions)], encoded[len(positions) :]
            templates = join_templates(run)
            runs.append(self._model.encode_targets(templates, positions[None].to(self._device)))
        return EncodedObjects(object_ids=names, runs=tuple(runs))

    @property
    def _capacity(self) -> int:
        return self._model.config.denoiser.max_objects

    def _distractors(self, library: ObjectLibrary, names: tuple[str, ...]) -> list[str]:
        """Names of other objects for the positions that the last run's targets leave (paper 4.2)."""
        free = -len(names) % self._capacity
        others = [name for name in library.object_ids if name not in names]
        count = min(self.settings.distractors, free, len(others))
        return [others[i] for i in np.random.default_rng(self.settings.seed).permutation(len(others))[:count]]

    def _encode(self, library: ObjectLibrary, names: Sequence[str]) -> list[TemplateFeatures]:
        """Features of each object, all of as many views."""
        library.require(names)
        most = self.settings.views or self._model.config.denoiser.max_views
        # Archives may hold hundreds of views: no more than one is in memory as a whole.
        chosen = [library[name].best_views(most) for name in names]
        views = max(len(templates) for templates in chosen)
        return [self._encoder.encode(templates, views) for templates in chosen]

    def _to_tensor(self, rgb: np.ndarray) -> Tensor:
        """(..., h, w, 3) uint8 -> (..., 3, h, w) in [0, 1]."""
        return torch.from_numpy(np.moveaxis(rgb, -1, -3)).to(self._device).float() / 255

    @torch.inference_mode()
    def segment(self, image: np.ndarray, objects: EncodedObjects | None = None) -> Segmentation:
        """Find the target objects in one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: the targets, by default those of `set_objects`.

        Returns:
            At most one instance for each target, masks at the image's own size, disjoint.

        Raises:
            ImageError: `image` is not a picture.
            OcditError: no target objects have been set.
        """
        started = time.perf_counter()
        objects = objects or self._objects
        if objects is None:
            raise OcditError("no target objects are set: call set_objects first")
        image = as_rgb8(image)
        size = (image.shape[0], image.shape[1])
        timings: dict[str, float] = {}
        generator = torch.Generator().manual_seed(self.settings.seed)
        mean = WindowMean(objects.count, size)
        windows = [full_window(size, self._canvas_size), *crop_windows(size, self._canvas_size, self.settings.crops)]
        self._look(image, windows, objects, mean, generator, timings)
        if self.settings.guided_crop:
            guided = guided_window(mean.result(), self._canvas_size, threshold=self.settings.mask_threshold)
            if guided is not None:
                self._look(image, [guided], objects, mean, generator, timings)
        instances = self._instances(objects.object_ids, mean.result())
        timings["total"] = time.perf_counter() - started
        return Segmentation(instances=instances, image_size=size, target_ids=objects.object_ids, timings=timings)

    def _look(
        self,
        image: np.ndarray,
        windows: list[Window],
        objects: EncodedObjects,
        mean: WindowMean,
        generator: torch.Generator,
        timings: dict[str, float],
    ) -> None:
        """Add to `mean` what the windows show."""
        started = time.perf_counter()
        canvases = np.stack([window.forward(image) for window in windows])
        features = self._model.encode_image(self._to_tensor(canvases))
        self._clock(timings, "backbone", started)
        begin = 0
        for run in objects.runs:
            end = begin + run.templates.features.shape[1]
            for window, found in zip(windows, self._probabilities(features, run, generator, timings), strict=True):
                mean.add(window, found, slice(begin, end))
            begin = end

    def _probabilities(
        self, image: ImageFeatures, targets: TargetSet, generator: torch.Generator, timings: dict[str, float]
    ) -> np.ndarray:
        """(W, O, h, w) float32: the probability of each pixel of each window to show each object."""
        started = time.perf_counter()
        conditioning = self._model.condition(image, targets)
        windows, objects = conditioning.queries.shape[1:3]
        shape = (1, windows * self.settings.ensemble, objects, self._model.config.vae.latent_channels)
        noise = torch.randn(*shape, *conditioning.grid, generator=generator).to(self._device)
        latents = sample(
            # One noise level for all members: what depends on it alone is computed once.
            lambda x, sigma: self._model.denoiser(x, sigma.reshape(1, 1), conditioning),
            noise,
            self.settings.sampler,
        )
        started = self._clock(timings, "sampling", started)
        decoded = rearrange(self._model.decode_masks(latents), "1 (w e) o h x -> w e o h x", w=windows)
        probabilities: np.ndarray = decoded.mean(1).float().cpu().numpy()
        self._clock(timings, "decoding", started)
        return probabilities

    def _instances(self, names: tuple[str, ...], probabilities: np.ndarray) -> tuple[Instance, ...]:
        """(O, H, W) probabilities -> instances; a pixel shows one object only: the most probable one.

        Distractors come after the named objects: they take pixels, and are not reported.
        """
        winner = probabilities.argmax(axis=0)
        instances = []
        for index, name in enumerate(names):
            mask = (winner == index) & (probabilities[index] >= self.settings.mask_threshold)
            mask = without_small_parts(mask, self.settings.min_part)
            if mask.sum() < max(self.settings.min_area * mask.size, 1):
                continue
            score = float(probabilities[index][mask].mean())
            if score >= self.settings.score_threshold:
                instances.append(Instance(object_id=name, score=score, box=tight_box(mask), mask=mask))
        return tuple(sorted(instances, key=lambda instance: -instance.score))

    def _clock(self, timings: dict[str, float], stage: str, since: float) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        timings[stage] = timings.get(stage, 0.0) + now - since
        return now


def without_small_parts(mask: np.ndarray, share: float) -> np.ndarray:
    """Return a (H, W) bool mask without its connected parts that have less than `share` of the largest one's area."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if areas.size < 2:
        return mask
    keep = np.concatenate([[False], areas >= share * areas.max()])
    return keep[labels]
