"""A segmenter for tests of threads and messages: it finds every target, as bright squares in a known place."""

import os
import threading
import time
from types import SimpleNamespace

import numpy as np

from ocdit_core.errors import ConfigError
from ocdit_core.inference.prompts import check_prompts
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.masks import tight_box

NAMES = ("box", "can", "drill", "mug")


class OutOfMemoryError(RuntimeError):
    """By the name of torch's."""


class Names(tuple):
    """Encoded objects."""

    object_ids = property(tuple)


class StandInLibrary:
    object_ids = NAMES
    # Numbers as a library's manifest gives them: they stay when objects go, so they are not 1, 2, 3 ...
    manifest = {name: SimpleNamespace(id=number) for name, number in zip(NAMES, (7, 2, 4, 9), strict=True)}  # noqa: RUF012


class StandInSegmenter:
    """segment_batch() takes `seconds`; encode_objects() takes `encode_seconds`, and fails for the name in `fails_for`.

    Of more than `room` images at once, memory runs out; a room of 0 is enough for one at the second attempt only.
    """

    model_name = "stand-in"
    device = "cpu"

    def __init__(self, seconds=0.0, encode_seconds=0.0, fails_for=None, room=100):
        self.seconds = seconds
        self.encode_seconds = encode_seconds
        self.fails_for = fails_for
        self.room = room
        self.settings = InferenceSettings()
        self.batches = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    @classmethod
    def from_environment(cls, *_args, **_kwargs):
        time.sleep(float(os.environ.get("STAND_IN_LOAD", "0")))
        return cls(
            float(os.environ.get("STAND_IN_SECONDS", "0.15")),
            float(os.environ.get("STAND_IN_ENCODE", "0.3")),
            os.environ.get("STAND_IN_FAILS_FOR"),
        )

    def encode_objects(self, library, object_ids):
        if not object_ids:
            raise ConfigError("no objects were given")
        time.sleep(self.encode_seconds)
        if self.fails_for in object_ids:
            raise RuntimeError(f"out of memory for {self.fails_for}")
        return Names(object_ids)

    def segment_batch(
        self, images, objects, sources=None, *, score_threshold=0.0, uncertainty=False, prompts=None, **depth
    ):
        """As a segmenter (images and objects), and as the network of a worker (all arguments)."""
        self.depths = depth.get("depths")
        asked = prompts or [()] * len(images)
        for image, own in zip(images, asked, strict=True):
            check_prompts(own, objects, image.shape[:2])
        self.begun.set()
        self.batches.append(len(images))
        assert self.go_on.wait(10)
        if len(images) > self.room:
            self.room = max(1, self.room)
            raise OutOfMemoryError("CUDA out of memory")
        time.sleep(self.seconds)
        return [
            self._found(image, objects, uncertainty, own, score_threshold)
            for image, own in zip(images, asked, strict=True)
        ]

    def label(self, image, regions, objects):
        """Call even regions by the first target, and odd ones by none; a refined mask is the region's left half."""
        if self.fails_for == "regions":
            raise ConfigError("labelling needs a refine model, and stand-in has none")
        labels = []
        for index, region in enumerate(regions):
            mask = np.zeros(image.shape[:2], bool)
            if isinstance(region, np.ndarray):
                mask |= region
            else:
                x, y, width, height = region
                mask[y : y + height, x : x + width // 2] = True
            name = objects[0] if index % 2 == 0 else None
            found = name and Instance(object_id=name, score=0.9 - 0.1 * index, box=tight_box(mask), mask=mask)
            labels.append(SimpleNamespace(instance=found, scores=dict.fromkeys(objects, 0.0)))
        return tuple(labels)

    def _found(self, image, objects, uncertainty, prompts, score_threshold):
        """Return each target's square; of prompted ones only what a point or a box shows of it, in place of that."""
        instances = []
        for number, name in enumerate(objects):
            mask = np.zeros(image.shape[:2], bool)
            mask[2:10, 2 + 12 * number : 12 + 12 * number] = True
            for prompt in (one for one in prompts if one.object_id == name):
                on = [mask[round(y), round(x)] for x, y in prompt.points]
                off = [mask[round(y), round(x)] for x, y in prompt.negative]
                if prompt.box is not None:
                    x, y, width, height = prompt.box
                    on.append(mask[y : y + height, x : x + width].any())
                mask &= all(on) and not any(off)
            if mask.any() and 0.9 - 0.2 * number >= score_threshold:
                instances.append(Instance(object_id=name, score=0.9 - 0.2 * number, box=tight_box(mask), mask=mask))
        return Segmentation(
            instances=tuple(instances),
            image_size=image.shape[:2],
            target_ids=tuple(objects),
            timings={"backbone": self.seconds / 2, "sampling": self.seconds / 2, "total": self.seconds},
            uncertainty=np.full(image.shape[:2], 0.25, np.float32) if uncertainty else None,
        )
