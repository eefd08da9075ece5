"""A worker, and what it reports."""

import threading

import numpy as np
from stand_in import StandInLibrary, StandInSegmenter

from ocdit_core.errors import ImageError
from ocdit_ros.worker import StaleFrameError, Worker


class Recorder:
    """A worker that looks for a mug, and its reports; "bad" frames cannot be read, "stale" ones are too old."""

    def __init__(self, **options):
        self.results, self.errors = [], []
        self.changed = threading.Condition()
        self.segmenter = StandInSegmenter(**options)
        self.worker = Worker(
            library=StandInLibrary(),
            read=self.read,
            on_result=lambda result: self.note(self.results, result),
            on_error=lambda text: self.note(self.errors, text),
        )
        self.worker.set_targets(["mug"])

    @staticmethod
    def read(frame):
        if frame == "bad":
            raise ImageError("image encoding 'bad' is not supported")
        if frame == "stale":
            raise StaleFrameError("too old")
        return np.zeros((32, 64, 3), np.uint8)

    def note(self, where, what):
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def wait_for(self, condition, timeout=10.0):
        with self.changed:
            assert self.changed.wait_for(condition, timeout), f"results {self.results}, errors {self.errors}"

    def hold(self):
        """Begin a frame that does not end before `segmenter.go_on` is set."""
        self.segmenter.go_on.clear()
        self.segmenter.begun.clear()
        self.worker.submit("first", "a")
        assert self.segmenter.begun.wait(10)
