"""A worker, and what it reports."""

import threading

import numpy as np
from stand_in import StandInLibrary, StandInSegmenter

from ocdit_core.errors import ImageError
from ocdit_ros.worker import Worker


class Recorder:
    """A worker with all that it reports; a frame is any value, the string "bad" cannot be read."""

    def __init__(self, **options):
        self.results, self.errors, self.stayed = [], [], []
        self.changed = threading.Condition()
        self.segmenter = StandInSegmenter(**options)
        self.worker = Worker(
            library=StandInLibrary(),
            read=self.read,
            on_result=lambda result: self.note(self.results, result),
            on_error=lambda text: self.note(self.errors, text),
            on_targets_failed=lambda targets: self.note(self.stayed, targets),
            is_stale=lambda frame, source: frame == "stale",
        )

    @staticmethod
    def read(frame):
        if frame == "bad":
            raise ImageError("image encoding 'bad' is not supported")
        return np.zeros((32, 64, 3), np.uint8)

    def note(self, where, what):
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def wait_for(self, condition, timeout=10.0):
        with self.changed:
            assert self.changed.wait_for(condition, timeout), f"results {self.results}, errors {self.errors}"
