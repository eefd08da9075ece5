"""Features of templates that a frozen backbone has seen before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor


class FeatureCache:
    """Backbone features of views, the least recently used ones given up first.

    A view is known by its pixels, so whatever the data does to templates, what comes out is what the backbone would
    have said; recoloured or augmented templates merely never hit.

    Args:
        limit_mb: of features kept, in MiB.
    """

    def __init__(self, limit_mb: int):
        self._limit = limit_mb << 20
        self._features: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()
        self.bytes = self.hits = self.misses = 0

    @torch.no_grad()
    def features(self, views: Tensor, backbone: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what the backbone makes of (N, 3, h, w) uint8 views, each output (N, ...).

        Args:
            views: pixels.
            backbone: frozen, in evaluation; takes (M, 3, h, w) in [0, 1] and returns some tensors (M, ...).
        """
        keys = [hashlib.blake2b(view.tobytes(), digest_size=16).digest() for view in views.cpu().numpy()]
        wanted = dict.fromkeys(keys)
        missing = {key: keys.index(key) for key in wanted if key not in self._features}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        found = {key: self._features[key] for key in wanted if key not in missing}
        if missing:
            outputs = backbone(views[list(missing.values())].float() / 255)
            for i, key in enumerate(missing):
                # Clones: a slice would keep the whole batch alive.
                found[key] = tuple(output[i].clone() for output in outputs)
        for key, tensors in found.items():
            self._keep(key, tensors)
        return tuple(torch.stack(parts) for parts in zip(*(found[key] for key in keys), strict=True))

    def _keep(self, key: bytes, tensors: tuple[Tensor, ...]) -> None:
        if key not in self._features:
            self.bytes += _bytes(tensors)
        self._features[key] = tensors
        self._features.move_to_end(key)
        while self.bytes > self._limit and len(self._features) > 1:
            self.bytes -= _bytes(self._features.popitem(last=False)[1])


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
