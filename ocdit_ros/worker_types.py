"""What goes into the worker and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from ocdit_core.errors import OcditError
from ocdit_core.inference.results import Segmentation

Frame = TypeVar("Frame")


class SegmenterLike(Protocol):
    """What the worker needs of the network."""

    def encode_objects(self, library: Any, object_ids: Sequence[str]) -> Any:
        """Return the features of the objects."""

    def segment_batch(
        self, images: Sequence[np.ndarray], objects: Any, sources: Sequence[str | None]
    ) -> list[Segmentation]:
        """Return the instances on each of several (H, W, 3) uint8 RGB images.

        Each is the next one of the video of the camera that its source names, or of none.
        """


class LibraryLike(Protocol):
    """What the worker needs of `ocdit_core.ObjectLibrary`."""

    @property
    def object_ids(self) -> tuple[str, ...]:
        """The names that the library holds."""


@dataclass(frozen=True, kw_only=True)
class TargetSet:
    """One set of objects to look for.

    Attributes:
        version: 1 for the first set that was accepted, then growing by one.
        object_ids: their names, as they were asked for, without repetition.
    """

    version: int
    object_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Result(Generic[Frame]):
    """One processed frame.

    Attributes:
        frame: what was submitted.
        source: which camera's it is.
        image: (H, W, 3) uint8 RGB, the picture that was segmented.
        segmentation: what was found.
        targets: the set that was current when the work on this frame began.
        timings: seconds: "waiting" (submitted -> begun), "reading" (frame -> RGB), and the segmenter's own stages;
            frames of several cameras that were done at once share these.
    """

    frame: Frame
    source: str
    image: np.ndarray
    segmentation: Segmentation
    targets: TargetSet
    timings: dict[str, float]


@dataclass(kw_only=True)
class Counters:
    """What became of a camera's frames: received = processed + dropped + stale + failed + at most two under way.

    Attributes:
        received: that came in.
        processed: that were segmented.
        dropped: that gave way to a newer one, or to a pause of the stream.
        stale: that were too old when their turn came.
        failed: that could not be segmented.
    """

    received: int = 0
    processed: int = 0
    dropped: int = 0
    stale: int = 0
    failed: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(**{name: value + vars(other)[name] for name, value in vars(self).items()})


def describe(error: BaseException) -> str:
    """Return an error as one line: our own errors speak for themselves, others are named by their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OcditError) and text else f"{type(error).__name__}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or on the host; told by the type's name, as torch is not imported here."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
