"""Images of several cameras through the network at once, and fewer at a time where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ocdit_core.inference.results import Segmentation
from ocdit_ros import heap
from ocdit_ros.worker_types import SegmenterLike, is_out_of_memory


class Batcher:
    """Segments batches of images with one network.

    Args:
        segmenter: the network.
        limit: how many images at once at most; it is halved when memory runs out.
        on_error: called with one line on each such step down.
    """

    def __init__(self, segmenter: SegmenterLike, *, limit: int, on_error: Callable[[str], None]):
        self.limit = limit
        self._segmenter = segmenter
        self._on_error = on_error

    def segment(self, images: Sequence[np.ndarray], objects: Any, sources: Sequence[str | None]) -> list[Segmentation]:
        """Return the result of each image; raises what the network raises, once a single image is too much as well."""
        found: list[Segmentation] = []
        while len(found) < len(images):
            part, of = images[len(found) :][: self.limit], sources[len(found) :][: self.limit]
            try:
                found += self._segmenter.segment_batch(part, objects, of)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Not in the except clause: the error's traceback holds on to what is to be freed.
            heap.free()
            if len(part) == 1:
                found += self._segmenter.segment_batch(part, objects, of)
                self._on_error("memory ran out on a frame; it was done again after freeing what was not in use")
            else:
                self.limit = len(part) // 2
                self._on_error(f"memory ran out with {len(part)} images at once: from now on {self.limit} at a time")
        return found
