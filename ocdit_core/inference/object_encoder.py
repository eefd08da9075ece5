"""From an object's views to its features, each object once: in memory, and on disk across programs."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import torch

from ocdit_core.inference.feature_cache import FeatureCache, default_cache, plain_layout, views_digest, weights_digest
from ocdit_core.models.ocdit import OCDiT, TemplateFeatures
from ocdit_core.objects.archive import ObjectTemplates


class ObjectEncoder:
    """Computes features of objects' views, and remembers them; safe to use from several threads.

    Args:
        model: on `device`, in evaluation; its weights must not change any more.
        device: where features are wanted.
        cache: folder of features on disk; "auto": the user's (see `default_cache`); None: none.
    """

    def __init__(self, model: OCDiT, device: torch.device, cache: str | Path | None = "auto") -> None:
        self._model, self._device = model, device
        folder = default_cache() if cache == "auto" else cache
        self._disk = None if folder is None else FeatureCache(folder)
        self._memory: dict[str, TemplateFeatures] = {}
        self._lock = threading.Lock()
        self._weights = ""

    @torch.inference_mode()
    def encode(self, templates: ObjectTemplates, views: int | None = None) -> TemplateFeatures:
        """Return the features of one object, (1, 1, V, ...).

        Args:
            templates: the object.
            views: V, how many of its views are taken (see `ObjectTemplates.exactly`); default: all.
        """
        chosen = templates.exactly(len(templates) if views is None else views)
        key = views_digest(chosen)
        with self._lock:
            known = self._memory.get(key)
        if known is not None:
            return known
        encoded = self._read(key)
        if encoded is None:
            encoded = plain_layout(self._compute(chosen))
            if self._disk is not None:
                self._disk.write(self._file(key), encoded)
        with self._lock:
            self._memory[key] = encoded
        return encoded

    def trim(self) -> None:
        """Bound the cache on disk; called after objects were encoded."""
        if self._disk is not None:
            self._disk.trim()

    def _read(self, key: str) -> TemplateFeatures | None:
        return None if self._disk is None else self._disk.read(self._file(key), self._device)

    def _file(self, key: str) -> str:
        with self._lock:
            # Once, and only where there is something to encode: large backbones take a moment.
            self._weights = self._weights or weights_digest(self._model, self._device)
        return f"{self._weights[:24]}-{key[:40]}"

    def _compute(self, chosen: ObjectTemplates) -> TemplateFeatures:
        height, width = self._model.config.template_size
        rgb = np.stack([cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA) for view in chosen.rgb])
        masks = chosen.mask.astype(np.float32)
        mask = np.stack([cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA) for view in masks])
        colours = torch.from_numpy(np.moveaxis(rgb, -1, -3)).to(self._device).float() / 255
        return self._model.encode_templates(colours[None, None], torch.from_numpy(mask).to(self._device)[None, None])
