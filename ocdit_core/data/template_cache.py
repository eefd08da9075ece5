"""Templates for training: decoded once, at the size that is needed, and kept while they fit into memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.archive import TEMPLATE_SIZE
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.viewpoints import spread_indices

Rng = np.random.Generator


class TemplateCache:
    """Views of a library's objects by object number, the most recently used objects decoded in memory.

    An archive is compressed as a whole, so reading one view costs as much as reading all; hot objects are therefore
    kept decoded. Each loader worker has a cache of its own.

    Args:
        library: of the data set's objects; their numbers are those of its manifest (obj_000005 is number 5).
        size: side of a template in pixels, at most 128.
        keep_views: of an object with more views, so many that cover it best are kept in memory.
        byte_limit: of decoded views in memory; one object is kept whatever its size.

    Raises:
        ConfigError: a size or a number is out of range.
        LibraryError: the library's manifest is damaged.
    """

    def __init__(
        self, library: ObjectLibrary, *, size: int = TEMPLATE_SIZE, keep_views: int = 12, byte_limit: int = 512 << 20
    ) -> None:
        if not 8 <= size <= TEMPLATE_SIZE:
            raise ConfigError(f"template_size: {size} is not in 8..{TEMPLATE_SIZE}, the size of stored views")
        if keep_views < 1:
            raise ConfigError(f"keep_views: {keep_views} has to be at least 1")
        self.library, self.size, self.keep_views, self.byte_limit = library, size, keep_views, byte_limit
        self._names = {entry.id: name for name, entry in library.manifest.items()}
        self.object_ids: tuple[int, ...] = tuple(sorted(self._names))
        self._clear()

    def _clear(self) -> None:
        # For each object its views (V, size, size, 4) and their directions (V, 3), the least recently used first.
        self._views: OrderedDict[int, tuple[NDArray[np.uint8], NDArray[np.float64]]] = OrderedDict()
        self.bytes = self.hits = self.misses = 0

    def __getstate__(self) -> dict[str, Any]:
        """A worker started afresh gets no copy of what is decoded here."""
        return {**self.__dict__, "_views": OrderedDict(), "bytes": 0, "hits": 0, "misses": 0}

    def __contains__(self, object_id: object) -> bool:
        return object_id in self._names

    def __len__(self) -> int:
        return len(self._names)

    def draw(self, rng: Rng, object_id: int, count: int) -> NDArray[np.uint8]:
        """Return `count` views of an object that cover it well, starting from a random one.

        Returns:
            (count, size, size, 4) uint8: RGB on black, and the mask, 0 or 255. An object with fewer views shows some
            of them again.

        Raises:
            DataError: the library has no such object.
            LibraryError: its archive is missing or damaged.
        """
        views, directions = self._load(object_id)
        stored = len(views)
        if not np.isfinite(directions).all():  # photographs
            chosen = rng.permutation(stored)[:count]
        else:
            chosen = spread_indices(directions, min(count, stored), int(rng.integers(stored)))
        if stored < count:
            chosen = np.concatenate([chosen, rng.integers(stored, size=count - stored)])
        return np.asarray(views[chosen])

    def _load(self, object_id: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        if object_id in self._views:
            self.hits += 1
            self._views.move_to_end(object_id)
            return self._views[object_id]
        self.misses += 1
        if object_id not in self._names:
            raise DataError(f"object {object_id} has no templates in {self.library.path}")
        templates = self.library[self._names[object_id]].best_views(self.keep_views)
        views = np.empty((len(templates), self.size, self.size, 4), np.uint8)
        for out, rgb, mask in zip(views, templates.rgb, templates.mask, strict=True):
            out[..., :3] = _scaled(rgb, self.size)
            out[..., 3] = np.where(_scaled(mask.view(np.uint8) * np.uint8(255), self.size) > 127, 255, 0)
        self._views[object_id] = (views, templates.directions())
        self.bytes += views.nbytes
        while self.bytes > self.byte_limit and len(self._views) > 1:
            self.bytes -= self._views.popitem(last=False)[1][0].nbytes
        return self._views[object_id]


def _scaled(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if picture.shape[0] == size:
        return picture
    return np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
