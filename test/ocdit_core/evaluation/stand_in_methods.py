"""Methods that need no network, in a module of their own: spawned processes import it."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from small_sets import COLOURS

from ocdit_core.evaluation.methods import MethodSpec
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box


class ByColour:
    """Find each object by its exact colour; log every call to a file, and kill the process at the n-th.

    The leftmost `cut` columns of each mask are removed.
    """

    def __init__(self, log: Path, die_at: int, pause: float, cut: int = 0):
        self.log, self.die_at, self.pause, self.cut, self.colours = log, die_at, pause, cut, {}

    def set_objects(self, library, object_ids):
        views = library.select(object_ids)
        self.colours = {one.name: np.median(one.rgb[0][one.mask[0]], axis=0) for one in views}

    def segment(self, image):
        with self.log.open("a") as file:
            file.write(f"{sorted(self.colours)}\n")
        if self.log.stat().st_size and len(self.log.read_text().splitlines()) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        instances = []
        for name, colour in self.colours.items():
            # JPEG changes colours a little.
            mask = np.abs(image.astype(int) - colour).max(axis=-1) < 60
            if mask.any():
                mask[:, : tight_box(mask)[0] + self.cut] = False
                instances.append(Instance(object_id=name, score=0.9, box=tight_box(mask), mask=mask))
        return Segmentation(
            instances=tuple(instances), image_size=image.shape[:2], target_ids=tuple(self.colours),
            timings={"looking": 0.001},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ByColourSpec(MethodSpec):
    log: Path
    die_at: int = -1
    pause: float = 0.0

    def open(self):
        return ByColour(self.log, self.die_at, self.pause)


assert len(set(COLOURS.values())) == len(COLOURS)
