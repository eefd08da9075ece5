"""Regions of another detector, answered with the names of the targets that they show and with refined masks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import ImageError
from ocdit_core.inference.results import Segmentation
from ocdit_ros.messages import MAX_MONO16
from ocdit_ros.worker import describe

if TYPE_CHECKING:
    from ocdit_core.inference.labelling import Label
    from ocdit_core.masks import Box
    from ocdit_ros.worker import Worker

KEPT = 60
"""Images that are kept for regions of their stamp, while somebody publishes regions."""

MAX_REGIONS = 100
"""Regions of one image; each is segmented once for every target."""


def box_regions(message: Any, image_size: Sequence[int]) -> tuple[list[Box], list[int]]:
    """Return the boxes of a Detection2DArray, cut to the image (H, W), and a number for each.

    The numbers are the detections' ids if these are different numbers from 1 to 65535, else their positions from 1.

    Raises:
        ImageError: a box is not inside the image, or is none.
    """
    boxes: list[Box] = []
    for position, detection in enumerate(message.detections, start=1):
        box = detection.bbox
        values = np.array([box.center.position.x, box.center.position.y, box.size_x, box.size_y])
        # `MessageMaker.to_detections` says what the centre is.
        low, high = values[:2] - (values[2:] - 1) / 2, values[:2] + (values[2:] + 1) / 2
        corners = np.concatenate([low, high])
        if not np.isfinite(corners).all() or (high <= low).any():
            raise ImageError(f"region {position}: the box with center and size {values.tolist()} is no box")
        left, top, right, bottom = np.clip(np.rint(corners), 0, [*image_size[1::-1]] * 2).astype(int).tolist()
        if right <= left or bottom <= top:
            size = f"{image_size[1]} x {image_size[0]}"
            raise ImageError(
                f"region {position}: the box with center and size {values.tolist()} is outside the image of {size}"
            )
        boxes.append((left, top, right - left, bottom - top))
    given = [detection.id for detection in message.detections]
    numbers = [int(text) for text in given if text.isascii() and text.isdecimal() and 0 < int(text) <= MAX_MONO16]
    return boxes, numbers if len(set(numbers)) == len(boxes) else list(range(1, len(boxes) + 1))


def mask_regions(message: Any, image_size: Sequence[int]) -> tuple[list[np.ndarray], list[int]]:
    """Return the (H, W) bool masks of a mono16 label image, and their values; 0 is background.

    Raises:
        ImageError: another encoding or size, or missing data.
    """
    if message.encoding not in ("mono16", "16UC1"):
        raise ImageError(f"regions: encoding {message.encoding!r} is not mono16, 0 = background")
    if (message.height, message.width) != tuple(image_size):
        sides = f"{message.width} x {message.height} pixels, the image {image_size[1]} x {image_size[0]}"
        raise ImageError(f"regions: the label image has {sides}")
    if message.step < 2 * message.width or len(message.data) < message.step * message.height:
        raise ImageError(f"regions: the label image holds {len(message.data)} bytes, too few for its size")
    rows = np.frombuffer(message.data, np.uint8, message.step * message.height).reshape(message.height, message.step)
    labels = np.ascontiguousarray(rows[:, : 2 * message.width]).view(">u2" if message.is_bigendian else "<u2")
    numbers = [int(value) for value in np.unique(labels) if value]
    return [labels == value for value in numbers[: MAX_REGIONS + 1]], numbers


class Regions:
    """Labels the regions of one camera's images: the newest message, when the network is free.

    Args:
        worker: has the network.
        read: returns the (H, W, 3) uint8 RGB image of a message.
        publish: called with the regions' message, the labelled instances and their numbers, in the worker's thread.
        on_error: called with one line about each failure.
    """

    def __init__(
        self,
        worker: Worker,
        read: Callable[[Any], np.ndarray],
        publish: Callable[[Any, Segmentation, list[int]], None],
        on_error: Callable[[str], None],
    ):
        self._worker = worker
        self._read = read
        self._publish = publish
        self._on_error = on_error
        self._lock = threading.Lock()
        self._images: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._waiting: Any = None
        self._busy = False

    def clear(self) -> None:
        """Forget images and regions."""
        with self._lock:
            self._images.clear()
            self._waiting = None

    def add_image(self, message: Any) -> None:
        """Keep an image for its regions."""
        with self._lock:
            self._images[message.header.stamp.sec, message.header.stamp.nanosec] = message
            while len(self._images) > KEPT:
                self._images.popitem(last=False)

    def add_regions(self, message: Any) -> None:
        """Take regions, which replace those that still wait."""
        with self._lock:
            self._waiting = message
            if self._busy:
                return
            self._busy = True
        self._next()

    def _next(self) -> None:
        with self._lock:
            message, self._waiting = self._waiting, None
            if message is None:
                self._busy = False
                return
            image = self._images.get((message.header.stamp.sec, message.header.stamp.nanosec))
        try:
            if image is None:
                stamp = f"{message.header.stamp.sec}.{message.header.stamp.nanosec:09d}"
                raise ImageError(f"no image has the stamp {stamp} of the regions: they must have that of their image")
            reply = self._worker.label(lambda network, objects: self._label(network, objects, message, image))
            reply.add_done_callback(self._done)
        except Exception as error:
            self._failed(error)

    def _done(self, reply: Future[Any]) -> None:
        error = reply.exception()
        if error is not None:
            self._failed(error)
        else:
            self._next()

    def _failed(self, error: BaseException) -> None:
        self._on_error(f"regions could not be labelled: {describe(error)}")
        self._next()

    def _label(self, network: Any, objects: Any, message: Any, image_message: Any) -> None:
        image = self._read(image_message)
        size = (image.shape[0], image.shape[1])
        regions: Sequence[Any]
        regions, numbers = (box_regions if hasattr(message, "detections") else mask_regions)(message, size)
        if len(regions) > MAX_REGIONS:
            raise ImageError(f"{len(numbers)} regions are more than the {MAX_REGIONS} accepted for one image")
        labels: Sequence[Label] = network.label(image, regions, objects) if regions else ()
        found = [
            (label.instance, number)
            for label, number in zip(labels, numbers, strict=True)
            if label.instance is not None
        ]
        found.sort(key=lambda one: -one[0].score)
        names = labels[0].scores if labels else ()
        result = Segmentation(
            instances=tuple(instance for instance, _ in found), image_size=size, target_ids=tuple(names)
        )
        self._publish(message, result, [number for _, number in found])
