"""From names of objects in a library to what the networks look for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ocdit_core.errors import ConfigError
from ocdit_core.inference.object_encoder import ObjectEncoder
from ocdit_core.inference.precision import computes_in_half, half_context
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.embeddings import inference_positions
from ocdit_core.models.ocdit import OCDiT, TargetSet, TemplateFeatures, join_templates
from ocdit_core.objects.library import ObjectLibrary


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedObjects:
    """Target objects, ready for the network: made once by `Segmenter.encode_objects`, used for many images.

    Attributes:
        object_ids: names, in the order in which they were asked for.
        runs: what the coarse model looks for in each of its runs over an image: the targets, then the distractors.
        singles: what the refine model looks for in a crop: the targets, as sets of one object each; None without it.
    """

    object_ids: tuple[str, ...]
    runs: tuple[TargetSet, ...]
    singles: TargetSet | None = None

    @property
    def count(self) -> int:
        """How many objects are looked for, distractors among them."""
        return sum(run.templates.features.shape[1] for run in self.runs)


class TargetEncoder:
    """Makes target objects ready for a coarse and a refine model; safe to use from several threads.

    Args:
        coarse: on `device`, in evaluation.
        refine: likewise; None where there is none.
        device: where they run.
        settings: of the inference.
        feature_cache: see `ObjectEncoder`.
    """

    def __init__(
        self,
        coarse: OCDiT,
        refine: OCDiT | None,
        device: torch.device,
        settings: InferenceSettings,
        feature_cache: str | Path | None,
    ) -> None:
        self._coarse, self._refine = coarse, refine
        self._device, self._settings = device, settings
        self._half = computes_in_half(settings.precision, device)
        self._coarse_encoder = ObjectEncoder(coarse, device, feature_cache)
        self._refine_encoder = ObjectEncoder(refine, device, feature_cache) if refine is not None else None

    @torch.inference_mode()
    def encode(self, library: ObjectLibrary, object_ids: Sequence[str]) -> EncodedObjects:
        """Return target objects; raises as `Segmenter.set_objects` does."""
        names = tuple(object_ids)
        if not names:
            raise ConfigError(f"no target objects were named; the library holds {', '.join(library.object_ids)}")
        if len(set(names)) < len(names):
            raise ConfigError(f"a target object is named twice in {', '.join(names)}")
        everything = [*names, *self._distractors(library, names)]
        encoded = self._features(self._coarse_encoder, self._coarse, library, everything)
        runs = []
        for positions in inference_positions(self._settings.positions, len(encoded), self._capacity):
            run, encoded = encoded[: len(positions)], encoded[len(positions) :]
            with half_context(self._device, self._half):
                runs.append(self._coarse.encode_targets(join_templates(run), positions[None].to(self._device)))
        singles = None
        if self._refine is not None and self._refine_encoder is not None:
            parts = self._features(self._refine_encoder, self._refine, library, names)
            with half_context(self._device, self._half):
                singles = self._refine.encode_targets(join_templates(parts, one_set=False))
        return EncodedObjects(object_ids=names, runs=tuple(runs), singles=singles)

    @property
    def _capacity(self) -> int:
        return self._coarse.config.denoiser.max_objects

    def _distractors(self, library: ObjectLibrary, names: tuple[str, ...]) -> list[str]:
        """Names of other objects for the positions that the last run's targets leave (paper 4.2)."""
        free = -len(names) % self._capacity
        others = [name for name in library.object_ids if name not in names]
        count = min(self._settings.distractors, free, len(others))
        return [others[i] for i in np.random.default_rng(self._settings.seed).permutation(len(others))[:count]]

    def _features(
        self, encoder: ObjectEncoder, model: OCDiT, library: ObjectLibrary, names: Sequence[str]
    ) -> list[TemplateFeatures]:
        """Features of each object, all of as many views."""
        library.require(names)
        most = self._settings.views or model.config.denoiser.max_views
        # Archives may hold hundreds of views: no more than one is in memory as a whole.
        chosen = [library[name].best_views(most) for name in names]
        views = max(len(templates) for templates in chosen)
        encoded = [encoder.encode(templates, views) for templates in chosen]
        encoder.trim()
        return encoded
