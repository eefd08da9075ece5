"""The facade: set the target objects once, segment many images."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ocdit_core.diffusion.samplers import sample
from ocdit_core.errors import ConfigError, OcditError, WeightsError
from ocdit_core.images import as_rgb8
from ocdit_core.inference.geometry import Letterbox
from ocdit_core.inference.results import Instance, Segmentation, tight_box
from ocdit_core.inference.settings import SETTINGS_FILE, InferenceSettings, load_settings
from ocdit_core.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from ocdit_core.models.device import pick_device
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TemplateFeatures
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary

EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedObjects:
    """Target objects, ready for the network: made once by `Segmenter.encode_objects`, used for many images.

    Attributes:
        object_ids: names, in the order in which they were asked for.
        templates: features of their views.
    """

    object_ids: tuple[str, ...]
    templates: TemplateFeatures


class Segmenter:
    """Finds target objects in images.

    `encode_objects` and `segment` may run in different threads at the same time.
    """

    def __init__(self, model: OCDiT, *, name: str, device: str = "auto", settings: InferenceSettings | None = None):
        self.settings = settings or InferenceSettings()
        self.model_name = name
        self._device = pick_device(device)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._canvas_size = self.settings.image_size or model.config.image_size
        self._objects: EncodedObjects | None = None
        self._features: dict[tuple[str, str, int], TemplateFeatures] = {}
        self._features_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, device: str = "auto", settings: InferenceSettings | None = None
    ) -> Segmenter:
        """Load a model.

        Args:
            name_or_path: an embedded model's name (ocdit-tiny), a folder, or a hub id such as owner/model.
            device: auto, cpu, cuda or cuda:N.
            settings: of the inference; by default those that the model recommends (see `recommended_settings`).

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
        encoded = [self._encode_object(templates) for templates in library.select(names)]
        return EncodedObjects(
            object_ids=names,
            templates=TemplateFeatures(
                features=torch.cat([e.features for e in encoded], dim=1),
                descriptors=tuple(
                    torch.cat(parts, dim=1) for parts in zip(*(e.descriptors for e in encoded), strict=True)
                ),
            ),
        )

    def _encode_object(self, templates: ObjectTemplates) -> TemplateFeatures:
        chosen = templates.best_views(self.settings.views or self._model.config.denoiser.max_views)
        key = (templates.name, templates.source_sha256, len(chosen))
        with self._features_lock:
            cached = self._features.get(key)
        if cached is not None:
            return cached
        height, width = self._model.config.template_size
        rgb = np.stack([cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA) for view in chosen.rgb])
        masks = chosen.mask.astype(np.float32)
        mask = np.stack([cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA) for view in masks])
        encoded = self._model.encode_templates(
            self._to_tensor(rgb)[None, None], torch.from_numpy(mask).to(self._device)[None, None]
        )
        with self._features_lock:
            self._features[key] = encoded
        return encoded

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
        timings: dict[str, float] = {}
        letterbox = Letterbox(image_size=(image.shape[0], image.shape[1]), canvas_size=self._canvas_size)

        features = self._model.encode_image(self._to_tensor(letterbox.forward(image))[None])
        self._clock(timings, "backbone", started)
        generator = torch.Generator().manual_seed(self.settings.seed)
        # More targets than the model has positions for take turns (paper 4.3, i).
        chunks = objects.templates.split(self._model.config.denoiser.max_objects)
        on_canvas = [self._probabilities(features, chunk, generator, timings) for chunk in chunks]
        probabilities = np.stack([letterbox.inverse(p) for chunk in on_canvas for p in chunk])
        instances = self._instances(objects.object_ids, probabilities)
        timings["total"] = time.perf_counter() - started
        return Segmentation(
            instances=instances,
            image_size=letterbox.image_size,
            target_ids=objects.object_ids,
            timings=timings,
        )

    def _probabilities(
        self, image: ImageFeatures, templates: TemplateFeatures, generator: torch.Generator, timings: dict[str, float]
    ) -> np.ndarray:
        """(O, h, w) float32: the probability of each pixel of the canvas to show each object."""
        started = time.perf_counter()
        conditioning = self._model.condition(image, templates)
        channels = self._model.config.vae.latent_channels
        shape = (1, self.settings.ensemble, templates.features.shape[1], channels, *conditioning.grid)
        noise = torch.randn(shape, generator=generator).to(self._device)
        latents = sample(
            lambda x, sigma: self._model.denoiser(x, sigma.expand(x.shape[:2]), conditioning),
            noise,
            self.settings.sampler,
        )
        started = self._clock(timings, "sampling", started)
        probabilities = self._model.decode_masks(latents)[0].mean(0).float().cpu().numpy()
        self._clock(timings, "decoding", started)
        return probabilities

    def _instances(self, names: tuple[str, ...], probabilities: np.ndarray) -> tuple[Instance, ...]:
        """(O, H, W) probabilities -> instances; a pixel shows one object only: the most probable one."""
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


def recommended_settings(name_or_path: str | Path) -> InferenceSettings:
    """Return the settings that a model recommends, to be changed by `dataclasses.replace`; raises WeightsError."""
    return load_settings(find_weights(name_or_path))


def find_weights(name_or_path: str | Path) -> Path:
    """Return the folder of a model: a folder as it is, an embedded model by name, a hub id once downloaded."""
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if (EMBEDDED_WEIGHTS / path).is_dir():
        return EMBEDDED_WEIGHTS / path
    embedded = ", ".join(sorted(p.name for p in EMBEDDED_WEIGHTS.iterdir() if (p / CONFIG_FILE).is_file()))
    complaint = f"no model {str(name_or_path)!r}: neither a folder nor one of the embedded models ({embedded})"
    if str(name_or_path).count("/") != 1 or path.is_absolute():
        raise WeightsError(complaint)
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            str(name_or_path), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, SETTINGS_FILE]
        )
    except Exception as error:  # its many kinds of errors all mean that the model cannot be had
        raise WeightsError(f"{complaint}, nor a hub id that can be reached ({type(error).__name__})") from error
    return Path(folder)
