"""The training data of a run, whatever its kind: endless batches that can be continued exactly, and held-out ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ocdit_core.data.dataset import open_dataset
from ocdit_core.data.streaming import Source, TrainingLoader, TrainingStream
from ocdit_core.data.templates import TemplateCache
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.synthesis.composed_dataset import ComposedScenes, ConsecutiveBatches
from ocdit_core.training.settings import BopDataset, BopDataSettings, TrainSettings
from ocdit_core.training.stage import Batch
from ocdit_core.training.stopping import leave_signals_to_the_loop

# Held-out samples come from a stream of their own.
_HELD_OUT_SEED = 1_000_003


class TrainingData:
    """Batches of one process among `world`, which take turns; each sample's number in the run is its own.

    Raises:
        OcditError: the data is missing, damaged, or cannot serve the settings.
    """

    def __init__(self, settings: TrainSettings, *, rank: int = 0, world: int = 1, held_out: bool = False):
        loop, data = settings.loop, settings.data
        self._groups, self._rank, self._world = loop.batch_groups, rank, world
        self._batches = 0
        self._workers = 0 if held_out else loop.workers
        # A loader without a generator of its own would draw from the one that is saved and restored.
        options: dict[str, Any] = {"pin_memory": torch.cuda.is_available(), "generator": torch.Generator()}
        if self._workers:
            options |= {"prefetch_factor": loop.prefetch, "worker_init_fn": leave_signals_to_the_loop}
        self._options = options
        self._scenes: ComposedScenes | None = None
        self._loader: TrainingLoader | None = None
        if isinstance(data, BopDataSettings):
            datasets, seed = (data.held_out, data.seed + _HELD_OUT_SEED) if held_out else (data.datasets, data.seed)
            sources = [_source(dataset, data) for dataset in datasets]
            stream = TrainingStream(sources, data.sample, seed=seed, rank=rank, world=world)
            self._loader = TrainingLoader(stream, batch_size=self._groups, workers=self._workers, **options)
        else:
            if held_out:
                assert settings.held_out_bank is not None
                # In their own colours.
                data = dataclasses.replace(data, bank=settings.held_out_bank, recolour=False)
            self._scenes = ComposedScenes(data)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from where the data stands."""
        for batch in self._batches_from_here():
            first = (self._batches * self._world + self._rank) * self._groups
            self._batches += 1
            yield {**batch, "number": torch.arange(first, first + self._groups)}

    def _batches_from_here(self) -> Iterator[Batch]:
        if self._loader is not None:
            return iter(self._loader)
        assert self._scenes is not None
        order = ConsecutiveBatches(self._groups, rank=self._rank, world=self._world, start=self._batches)
        return iter(DataLoader(self._scenes, batch_sampler=order, num_workers=self._workers, **self._options))

    def state_dict(self) -> dict[str, Any]:
        """Return where the data of this process stands, as plain numbers and lists."""
        stream = self._loader.state_dict() if self._loader is not None else None
        return {"groups": self._batches * self._world * self._groups, "stream": stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on from there.

        Synthetic data may be continued by another number of processes or workers, or in batches of another size.

        Raises:
            ConfigError: a stream of BOP data was divided among another number of processes or workers.
        """
        self._batches = state["groups"] // (self._world * self._groups)
        if self._loader is not None:
            self._loader.load_state_dict(state["stream"])


def held_out_batches(settings: TrainSettings, *, rank: int = 0, world: int = 1) -> list[Batch]:
    """Return this process's share of the validation's batches: objects, in their own colours, that training never sees.

    All processes get equally many; without held-out data the list is empty.
    """
    if isinstance(settings.data, BopDataSettings) and not settings.data.held_out:
        return []
    count = max(settings.loop.validation_groups // (settings.loop.batch_groups * world), 1)
    data = TrainingData(settings, rank=rank, world=world, held_out=True)
    return list(itertools.islice(iter(data), count))


def _source(dataset: BopDataset, settings: BopDataSettings) -> Source:
    frames = open_dataset(dataset.path, None if dataset.split == "shards" else dataset.split)
    templates = TemplateCache(
        ObjectLibrary(dataset.library),
        size=settings.sample.template_size,
        keep_views=max(settings.sample.views, 12),
        byte_limit=settings.cache_mb << 20,
    )
    return Source(frames=frames, templates=templates, weight=dataset.weight)
