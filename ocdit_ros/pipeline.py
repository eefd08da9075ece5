"""What a configured node owns: the library, the network, and the worker that brings them together."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ocdit_core.errors import OcditError, UnknownObjectError
from ocdit_ros import messages, pip_home
from ocdit_ros.parameters import Settings
from ocdit_ros.worker import Worker
from ocdit_ros.worker_types import Result

pip_home.prepare()

from std_msgs.msg import Header  # noqa: E402  (needs the prefix)

ENCODING_TIMEOUT = 600.0
WARM_UP_SIZE = (480, 640, 3)


def load_library(settings: Settings) -> Any:
    """Open the library of rendered objects; LibraryError says what is wrong with it."""
    from ocdit_core import ObjectLibrary

    return ObjectLibrary(settings.library)


def load_segmenter(settings: Settings) -> Any:
    """Load the network; WeightsError or ConfigError say why not. Its own threshold is off: the node's one decides."""
    import torch

    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.weights import recommended_settings

    if settings.compute_threads:
        torch.set_num_threads(settings.compute_threads)
    inference = dataclasses.replace(recommended_settings(settings.model), score_threshold=0.0)
    return Segmenter.from_pretrained(settings.model, device=settings.device, settings=inference)


class Pipeline:
    """Library, network and worker from `start` to `close`.

    Args:
        library: of rendered objects.
        segmenter: the network.
        on_result: called with every frame's result, from the worker's thread.
        on_error: called with one line for a frame or target set that failed, from the worker's threads.
    """

    def __init__(
        self, *, library: Any, segmenter: Any, on_result: Callable[[Result], None], on_error: Callable[[str], None]
    ):
        self.library = library
        self.segmenter = segmenter
        self.worker: Worker[Any] = Worker(
            segmenter=segmenter, library=library, read=messages.to_rgb, on_result=on_result, on_error=self._on_error
        )
        self._report = on_error
        self._last_error = ""

    def start(self, target_objects: tuple[str, ...]) -> None:
        """Encode the targets (all of the library when none is named) and run once.

        Raises:
            OcditError: a target is unknown, or could not be encoded.
        """
        self.worker.start()
        self.worker.set_targets(target_objects or self.library.object_ids)
        if not self.worker.wait_until_encoded(ENCODING_TIMEOUT):
            raise OcditError(self._last_error or f"the targets were not encoded within {ENCODING_TIMEOUT:.0f} s")
        # The first run is many times slower (memory, kernels): it is done on a black image, not on the first frame.
        black = messages.from_rgb(np.zeros(WARM_UP_SIZE, np.uint8), Header())
        self.worker.request(black).result(ENCODING_TIMEOUT)

    def check_names(self, names: list[str]) -> None:
        """Raise UnknownObjectError when the library lacks one of these objects."""
        unknown = [name for name in names if name not in self.library.object_ids]
        if unknown:
            raise UnknownObjectError(unknown, list(self.library.object_ids))

    def targets(self) -> list[str]:
        """Return the names that the next frame will be searched for."""
        targets = self.worker.targets
        return list(targets.object_ids) if targets else []

    def close(self) -> bool:
        """End the worker; False when the frame under way did not end within 30 s."""
        return self.worker.stop()

    def _on_error(self, text: str) -> None:
        self._last_error = text
        self._report(text)


def free_memory() -> None:
    """Give back what a dropped pipeline held, on the GPU too."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
