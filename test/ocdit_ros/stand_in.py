"""A segmenter for tests of threads and messages: it finds every target, as bright squares in a known place."""

import os
import threading
import time

import numpy as np

from ocdit_core.errors import ConfigError
from ocdit_core.inference.results import Instance, Segmentation, tight_box

NAMES = ("box", "can", "drill", "mug")


class StandInLibrary:
    object_ids = NAMES


class StandInSegmenter:
    """segment() takes `seconds`; encode_objects() takes `encode_seconds`, and fails for the name in `fails_for`."""

    model_name = "stand-in"
    device = "cpu"

    def __init__(self, seconds=0.0, encode_seconds=0.0, fails_for=None):
        self.seconds = seconds
        self.encode_seconds = encode_seconds
        self.fails_for = fails_for
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    @classmethod
    def from_environment(cls, *_args, **_kwargs):
        return cls(float(os.environ.get("STAND_IN_SECONDS", "0.15")), float(os.environ.get("STAND_IN_ENCODE", "0.3")))

    def encode_objects(self, library, object_ids):
        if not object_ids:
            raise ConfigError("no objects were given")
        time.sleep(self.encode_seconds)
        if self.fails_for in object_ids:
            raise RuntimeError(f"out of memory for {self.fails_for}")
        return tuple(object_ids)

    def segment(self, image, objects=None):
        self.begun.set()
        assert self.go_on.wait(10)
        time.sleep(self.seconds)
        instances = []
        for number, name in enumerate(objects):
            mask = np.zeros(image.shape[:2], bool)
            mask[2:10, 2 + 12 * number : 12 + 12 * number] = True
            instances.append(Instance(object_id=name, score=0.9 - 0.2 * number, box=tight_box(mask), mask=mask))
        return Segmentation(
            instances=tuple(instances),
            image_size=image.shape[:2],
            target_ids=tuple(objects),
            timings={"backbone": self.seconds / 2, "sampling": self.seconds / 2, "total": self.seconds},
        )
