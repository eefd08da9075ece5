"""Train on samples that depend on their number alone: the same data for any number of processes.

Streams divide a dataset among processes. To compare one process with several, this script runs `ocdit train` with
`NumberedData` in the place of `TrainingData`.
"""

import itertools
import sys

import numpy as np
import pytest
import torch

from ocdit_core.cli import main
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.sampling import make_sample
from ocdit_core.data.templates import TemplateCache
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.training import data, loop


class NumberedData:
    """Batch b of a process is the (b * world + rank)-th of the whole run."""

    def __init__(self, settings, *, rank=0, world=1, held_out=False):
        (dataset,) = settings.data.held_out if held_out else settings.data.datasets
        self.sample = settings.data.sample
        self.frames = BopFolder(dataset.path, dataset.split)
        self.templates = TemplateCache(ObjectLibrary(dataset.library), size=self.sample.template_size)
        self.size, self.rank, self.world = settings.loop.batch_groups, rank, world
        self.batches = 0

    def __iter__(self):
        while True:
            first = (self.batches * self.world + self.rank) * self.size
            self.batches += 1
            samples = [self.draw(number) for number in range(first, first + self.size)]
            batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
            yield {**batch, "number": torch.arange(first, first + self.size)}

    def draw(self, number):
        for attempt in itertools.count():
            frame = self.frames[(number + attempt) % len(self.frames)]
            sample = make_sample(frame, self.templates, self.sample, np.random.default_rng([number, attempt]))
            if sample is not None:
                return sample

    def state_dict(self):
        return {"groups": self.batches * self.world * self.size}

    def load_state_dict(self, state):
        self.batches = state["groups"] // (self.world * self.size)


def use_numbered_data(patch):
    """Replace TrainingData until the monkeypatch `patch` is undone."""
    for module in (data, loop):
        patch.setattr(module, "TrainingData", NumberedData)


if __name__ == "__main__":
    use_numbered_data(pytest.MonkeyPatch())
    sys.exit(main(["train", *sys.argv[1:]]))
