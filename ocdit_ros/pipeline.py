"""What a configured node owns: the library and the worker, and while it is loaded, the network."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ocdit_core.errors import OcditError, UnknownObjectError
from ocdit_core.inference.results import Segmentation
from ocdit_core.inference.tracker import Tracker
from ocdit_ros import heap, messages, pip_home
from ocdit_ros.parameters import Settings
from ocdit_ros.worker import Worker

pip_home.prepare()

from std_msgs.msg import Header  # noqa: E402  (needs the prefix)

ENCODING_TIMEOUT = 600.0
WARM_UP_SIZE = (480, 640, 3)


def load_library(settings: Settings) -> Any:
    """Open the library of rendered objects; LibraryError says what is wrong with it."""
    from ocdit_core import ObjectLibrary

    return ObjectLibrary(settings.library)


def load_segmenter(settings: Settings) -> Any:
    """Load the network as its model recommends, or the parameters; WeightsError or ConfigError say why not."""
    import torch

    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.weights import recommended_settings

    own = _own_threads()
    torch.set_num_threads(settings.compute_threads or own)
    inference = recommended_settings(
        settings.model, preset=settings.preset or None, overrides=settings.inference_settings
    )
    return Segmenter.from_pretrained(settings.model, device=settings.device, settings=inference)


@cache
def _own_threads() -> int:
    """Return PyTorch's choice, before anything was set."""
    import torch

    return torch.get_num_threads()


class Pipeline:
    """Library and worker, from `configure` to `cleanup`; the network, from `load` to `unload`.

    Args:
        settings: the node's.
        library: of rendered objects.
        load_segmenter: makes the network.
        wants_uncertainty: whether somebody looks at the map of the uncertainty at present.
        on_error: called with one line for what failed, from the worker's thread.
        callbacks: further ones of the worker, see there.

    Raises:
        OcditError: a target is unknown, or the library's numbers are damaged.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        library: Any,
        load_segmenter: Callable[[Settings], Any],
        wants_uncertainty: Callable[[], bool],
        on_error: Callable[[str], None],
        **callbacks: Callable[..., Any],
    ):
        self.library = library
        self.labels = {name: entry.id for name, entry in library.manifest.items()}
        self.model_name = settings.model
        self.device = settings.device
        self.loaded = False
        self.recommended_threshold = 0.0
        self._settings = settings
        self._load_segmenter = load_segmenter
        self._wants_uncertainty = wants_uncertainty
        self._report = on_error
        self._last_error = ""
        self.worker: Worker[Any] = Worker(library=library, read=messages.to_rgb, on_error=self._on_error, **callbacks)
        self.worker.set_fresh_within(settings.fresh_within)
        self.set_targets(settings.target_objects)

    def load(self) -> None:
        """Load the network, encode the targets and run once; on an error nothing stays loaded.

        Raises:
            OcditError: the weights cannot be loaded, or the targets could not be encoded.
        """
        try:
            batch = max(1, len(self._settings.cameras))
            self.worker.start(self._make_network, batch=batch)
            if not self.worker.wait_until_encoded(ENCODING_TIMEOUT):
                raise OcditError(self._last_error or f"the targets were not encoded within {ENCODING_TIMEOUT:.0f} s")
            # The first run is many times slower (memory, kernels): on a black image, not on the first frame.
            black = messages.from_rgb(np.zeros(WARM_UP_SIZE, np.uint8), Header())
            self.worker.request(black).result(ENCODING_TIMEOUT)
        except BaseException:
            self.unload()
            raise
        self.loaded = True

    def unload(self, timeout: float = 30.0) -> bool:
        """Give the network's memory back, on the GPU too; the targets stay known.

        Returns:
            Whether the frame under way ended in time (seconds); if not, the memory is free after it.
        """
        self.loaded = False
        ended = self.worker.stop(timeout)
        heap.free()
        return ended

    def check_names(self, names: Sequence[str]) -> None:
        """Raise UnknownObjectError when the library lacks one of these objects."""
        unknown = [name for name in names if name not in self.library.object_ids]
        if unknown:
            raise UnknownObjectError(unknown, list(self.library.object_ids))

    def set_targets(self, names: Sequence[str]) -> None:
        """Look for these objects from the next frame on, or for all of the library; raises as the worker does."""
        wanted = list(names or self.library.object_ids)
        if self.targets() != wanted:
            self.worker.set_targets(wanted)

    def targets(self) -> list[str]:
        """Return the names that the next frame will be searched for."""
        targets = self.worker.targets
        return list(targets.object_ids) if targets else []

    def _make_network(self) -> _Network:
        segmenter = self._load_segmenter(self._settings)
        self.model_name, self.device = segmenter.model_name, segmenter.device
        # Its own threshold is off: the node's one decides, which changes while it runs.
        self.recommended_threshold = segmenter.settings.score_threshold
        segmenter.settings = dataclasses.replace(segmenter.settings, score_threshold=0.0)
        return _Network(segmenter, tracking=self._settings.tracking, wants_uncertainty=self._wants_uncertainty)

    def _on_error(self, text: str) -> None:
        self._last_error = text
        self._report(text)


class _Network:
    """The segmenter, asked for what the node wants at present.

    Args:
        segmenter: an `ocdit_core.Segmenter`.
        tracking: whether a camera's images are frames of a video, whose instances keep their track id.
        wants_uncertainty: whether the map of the uncertainty is to be worked out.
    """

    def __init__(self, segmenter: Any, *, tracking: bool, wants_uncertainty: Callable[[], bool]):
        self._segmenter = segmenter
        self._tracking = tracking
        self._wants_uncertainty = wants_uncertainty
        self._trackers: dict[str, Tracker] = {}
        self._numbers = itertools.count(1)

    def encode_objects(self, library: Any, object_ids: Sequence[str]) -> Any:
        return self._segmenter.encode_objects(library, object_ids)

    def segment_batch(
        self, images: Sequence[np.ndarray], objects: Any, sources: Sequence[str | None]
    ) -> list[Segmentation]:
        wanted = self._wants_uncertainty()
        if self._segmenter.settings.uncertainty != wanted:
            self._segmenter.settings = dataclasses.replace(self._segmenter.settings, uncertainty=wanted)
        found: list[Segmentation] = self._segmenter.segment_batch(images, objects)
        if not self._tracking:
            return found
        for number, source in enumerate(sources):
            if source is not None:
                if source not in self._trackers:
                    self._trackers[source] = Tracker(self._segmenter, self._numbers)
                found[number] = self._trackers[source].update(found[number])
        return found
