"""Cache of decoded templates for training."""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.archive import TEMPLATE_SIZE
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.viewpoints import spread_indices

logger = logging.getLogger(__name__)

_Views = tuple[NDArray[np.uint8], NDArray[np.float64]]


class TemplateCache:
    """Templates of a library's objects by object number; the most recently used objects stay decoded in memory.

    An archive is compressed as a whole, so reading one template costs as much as reading all. Each loader worker has a
    cache of its own.

    Args:
        library: templates of the dataset's objects.
        names: name of each of the dataset's object numbers, where the dataset states them; default: the numbers of the
            library's manifest (obj_000005 is number 5).
        size: side of a template in pixels, at most 128.
        keep_views: most templates of an object in memory; of more, those that cover it best are kept.
        byte_limit: size of decoded templates in memory; one object is kept whatever its size.

    Attributes:
        object_ids: numbers of the library's objects, ascending.
        misses: how often an object had to be read.
        bytes: size of the decoded templates in memory.

    Raises:
        ConfigError: a size or a number is out of range.
        LibraryError: the library's manifest is damaged.
    """

    def __init__(
        self,
        library: ObjectLibrary,
        *,
        names: Mapping[int, str] | None = None,
        size: int = TEMPLATE_SIZE,
        keep_views: int = 12,
        byte_limit: int = 512 << 20,
    ) -> None:
        if not 8 <= size <= TEMPLATE_SIZE:
            raise ConfigError(f"template_size: {size} is not in 8..{TEMPLATE_SIZE}, the size of stored templates")
        if keep_views < 1:
            raise ConfigError(f"keep_views: {keep_views} must be at least 1")
        self.library, self.size, self.keep_views, self.byte_limit = library, size, keep_views, byte_limit
        stated = {number: name for number, name in (names or {}).items() if name in library}
        self._names = stated or {entry.id: name for name, entry in library.manifest.items()}
        self.object_ids: tuple[int, ...] = tuple(sorted(self._names))
        self._views: OrderedDict[int, _Views] = OrderedDict()  # the least recently used first
        self._histograms: dict[int, NDArray[np.float64]] = {}
        self._missing: set[int] = set()
        self.bytes = self.misses = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out decoded templates: a spawned worker gets no copy."""
        return {**self.__dict__, "_views": OrderedDict(), "bytes": 0, "misses": 0}

    def __len__(self) -> int:
        return len(self._names)

    def has(self, object_id: int, where: str) -> bool:
        """Return whether there are templates of an object; the first time that they are missing is logged."""
        if object_id in self._names:
            return True
        if object_id not in self._missing:
            self._missing.add(object_id)
            logger.warning(
                "%s: object %d has no templates in %s: it is never asked for", where, object_id, self.library.path
            )
        return False

    def draw(self, rng: np.random.Generator, object_id: int, count: int) -> NDArray[np.uint8]:
        """Return `count` templates of an object that cover it well, starting from a random one.

        Returns:
            (count, size, size, 4) uint8: RGB on black, and the mask, 0 or 255. An object with fewer templates shows
            some of them again.

        Raises:
            DataError: the library has no such object.
            LibraryError: its archive is missing or damaged.
        """
        rgba, directions = self._load(object_id)
        stored = len(rgba)
        if np.isfinite(directions).all():
            chosen = spread_indices(directions, min(count, stored), int(rng.integers(stored)))
        else:  # photographs have no poses
            chosen = rng.permutation(stored)[:count]
        if stored < count:
            chosen = np.concatenate([chosen, rng.integers(stored, size=count - stored)])
        return np.asarray(rgba[chosen])

    def similarity(self, one: int, other: int) -> float:
        """Return the Bhattacharyya coefficient of the colour histograms of two objects, 0 to 1.

        Raises as `draw` does.
        """
        return float((self._histogram(one) * self._histogram(other)).sum())

    def _histogram(self, object_id: int) -> NDArray[np.float64]:
        """Return the square root of an object's colour histogram; it stays in memory when its templates do not."""
        if object_id not in self._histograms:
            rgba, _ = self._load(object_id)
            steps = rgba[..., :3][rgba[..., 3] > 0].astype(np.int64) // 64
            counts = np.bincount(steps @ (16, 4, 1), minlength=64)
            self._histograms[object_id] = np.sqrt(counts / max(counts.sum(), 1))
        return self._histograms[object_id]

    def _load(self, object_id: int) -> _Views:
        """Return an object's templates (V, size, size, 4) and their directions (V, 3)."""
        if object_id in self._views:
            self._views.move_to_end(object_id)
            return self._views[object_id]
        self.misses += 1
        if object_id not in self._names:
            raise DataError(f"object {object_id} has no templates in {self.library.path}")
        templates = self.library[self._names[object_id]].best_views(self.keep_views)
        views = np.empty((len(templates), self.size, self.size, 4), np.uint8)
        for out, rgb, mask in zip(views, templates.rgb, templates.mask, strict=True):
            out[..., :3] = _resized(rgb, self.size)
            out[..., 3] = np.where(_resized(mask.view(np.uint8) * np.uint8(255), self.size) > 127, 255, 0)
        self._views[object_id] = views, templates.directions()
        self.bytes += views.nbytes
        while self.bytes > self.byte_limit and len(self._views) > 1:
            self.bytes -= self._views.popitem(last=False)[1][0].nbytes
        return self._views[object_id]


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if image.shape[0] == size:
        return image
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
