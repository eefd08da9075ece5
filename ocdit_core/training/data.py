"""Training data of a run: endless, exactly resumable batches, held-out batches, and random numbers of samples."""

import itertools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ocdit_core.data.dataset import megapose_names, open_dataset
from ocdit_core.data.streaming import Source, TrainingSamples, load_batches
from ocdit_core.data.templates import TemplateCache
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.training.settings import BopDataset, TrainSettings

Batch = dict[str, Tensor]
"""G episodes of S images that share one set of O objects with V templates each: images (G, S, 3, H, W), templates
(G, O, V, 3, h, w), template_masks (G, O, V, h, w), masks (G, S, O, H, W) uint8, present (G, S, O) bool, number (G,)
int64, the index of each episode in the whole run, object_ids (G, O)."""

REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that announce the end of a SLURM job's time."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *REQUEUE_SIGNALS)
_VALIDATION_GROUPS = 16
_HELD_OUT_SEED = 1_000_003  # added to the seed of held-out samples
_PREFETCH = 8  # batches that each worker keeps ready
_CACHE_MB = 512  # memory for decoded templates, in each worker and for each dataset


class TrainingData:
    """Batches of one process among `world`, which take turns.

    Args:
        settings: settings of the run.
        rank: index of this process.
        world: number of processes.
        held_out: validation data instead of training data.

    Raises:
        OcditError: the data is missing or damaged, or does not fit the settings.
    """

    def __init__(self, settings: TrainSettings, *, rank: int = 0, world: int = 1, held_out: bool = False):
        loop, data = settings.loop, settings.data
        self._episodes, self._rank, self._world = loop.batch_groups, rank, world
        self._batches = 0
        workers = 0 if held_out else loop.workers
        # Without a generator of its own, a loader draws from the global one, whose state is saved and restored.
        self._options: dict[str, Any] = {"pin_memory": torch.cuda.is_initialized(), "generator": torch.Generator()}
        if workers:
            self._options |= {"workers": workers, "prefetch_factor": _PREFETCH, "worker_init_fn": _start_worker}
        datasets, seed = (data.held_out, loop.seed + _HELD_OUT_SEED) if held_out else (data.datasets, loop.seed)
        self._samples = TrainingSamples(
            [_source(dataset, settings) for dataset in datasets],
            data.sample,
            mode="refine" if settings.stage == "refine" else "coarse",
            image_size=settings.model.image_size,
            seed=seed,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the current position on."""
        place = {"rank": self._rank, "world": self._world, "start": self._batches}
        for batch in load_batches(self._samples, self._episodes, **place, **self._options):
            first = (self._batches * self._world + self._rank) * self._episodes
            self._batches += 1
            yield {**batch, "number": torch.arange(first, first + self._episodes)}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data, which is common to all processes, as plain numbers."""
        return {"groups": self._batches * self._world * self._episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position, also with another number of processes or workers, or another batch size."""
        self._batches = state["groups"] // (self._world * self._episodes)


def held_out_batches(settings: TrainSettings, *, rank: int = 0, world: int = 1) -> list[Batch]:
    """Return this process's validation batches, the same number for each process; none without held-out data."""
    if not settings.data.held_out:
        return []
    count = max(_VALIDATION_GROUPS // (settings.loop.batch_groups * world), 1)
    data = TrainingData(settings, rank=rank, world=world, held_out=True)
    return list(itertools.islice(iter(data), count))


def _source(dataset: BopDataset, settings: TrainSettings) -> Source:
    frames = open_dataset(dataset.path)
    templates = TemplateCache(
        ObjectLibrary(dataset.library),
        names=megapose_names(frames.path),
        size=settings.model.template_size[0],
        keep_views=max(settings.data.sample.views, 12),
        byte_limit=_CACHE_MB << 20,
    )
    return Source(frames=frames, templates=templates, weight=dataset.weight)


def _start_worker(worker: int) -> None:
    """Ignore signals to the whole process group in a worker: the loop still needs its data to save a checkpoint."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # workers are parallel enough, and OpenCV's threads do not survive a fork


class SampleRandom:
    """One random stream for each of the G episodes of a batch, a function of the seed and the episode's number alone.

    Hence two processes with batches of B episodes train as one with 2 B, and a resumed run as an uninterrupted one.

    Args:
        seed: seed of the run.
        numbers: (G,) int64, number of each episode in the run, on the CPU.
        device: device of the results.
    """

    def __init__(self, seed: int, numbers: Tensor, device: torch.device):
        self._device = device
        self._small = [_generator(torch.device("cpu"), seed, number, 0) for number in numbers.tolist()]
        self._large = [_generator(device, seed, number, 1) for number in numbers.tolist()]

    def __len__(self) -> int:
        return len(self._small)

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, I) on the device: (G, *shape)."""
        draws = [torch.randn(shape, generator=generator, device=self._device) for generator in self._large]
        return torch.stack(draws)

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Call `draw` with each episode's CPU generator and return the stacked results on the device: (G, ...)."""
        return torch.stack([draw(generator) for generator in self._small]).to(self._device, non_blocking=True)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of what all samples of a step share, the same in every process."""
    return _generator(torch.device("cpu"), seed, step, 2)


def _generator(device: torch.device, seed: int, number: int, stream: int) -> torch.Generator:
    # SeedSequence decorrelates neighbouring numbers; manual_seed alone need not.
    state = int(np.random.SeedSequence([seed, number, stream]).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state & (2**63 - 1))
