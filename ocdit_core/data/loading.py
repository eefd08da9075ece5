"""Batches for training, by worker processes, that go on after an interruption with the very next sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ocdit_core.data.mixing import STATE_KEY, TrainingStream
from ocdit_core.errors import ConfigError, DataError, OcditError

Batch = dict[str, Tensor]
STATE_VERSION = 1


class TrainingLoader:
    """A DataLoader over a training stream that knows what was consumed, however far its workers have read ahead.

    Each sample carries its stream's position from the worker; what a batch that was handed out says is the state.

        loader = TrainingLoader(stream, batch_size=8, workers=2)
        loader.load_state_dict(state)            # when continuing
        for batch in loader:
            ...
            state = loader.state_dict()          # plain numbers and lists: put it into the checkpoint

    Args:
        stream: what to read.
        batch_size: samples in a batch.
        workers: processes that make samples; 0 makes them in this one.
        options: further ones of `torch.utils.data.DataLoader`, such as prefetch_factor and pin_memory.
    """

    def __init__(self, stream: TrainingStream, *, batch_size: int, workers: int = 0, **options: Any) -> None:
        self.stream, self.batch_size, self.workers, self._options = stream, batch_size, workers, options
        self._positions: list[list[int]] | None = None
        self._batches = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches: the dict of `make_sample`, each tensor with a batch dimension before it.

        Raises:
            DataError: too many frames are damaged, or none can be used; one line, also from a worker.
        """
        self.stream.start_from(self._positions, self._batches % max(self.workers, 1))
        positions = self._positions or [[]] * max(self.workers, 1)
        options = {"batch_size": self.batch_size, "num_workers": self.workers, **self._options}
        if self.workers == 0:
            options.setdefault("collate_fn", _stacked)
        batches = iter(DataLoader(self.stream, **options))
        while True:
            try:
                batch = next(batches)
            except OcditError as error:
                raise DataError(_last_line(error)) from error
            worker, *position = batch.pop(STATE_KEY)[-1].tolist()
            # New lists each time: a state that was handed out stays as it is.
            positions = [position if i == worker else before for i, before in enumerate(positions)]
            self._positions, self._batches = positions, self._batches + 1
            yield batch

    @property
    def skipped(self) -> int:
        """Damaged frames that the consumed batches had to do without."""
        return sum(position[1] for position in self._positions or [] if position)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on after the batches handed out so far, of this process alone."""
        stream = self.stream
        return {
            "version": STATE_VERSION,
            "seed": stream.seed,
            "rank": stream.rank,
            "world": stream.world,
            "workers": self.workers,
            "sources": [source.frames.name for source in stream.sources],
            "batches": self._batches,
            "positions": self._positions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken; another batch size is possible.

        Raises:
            ConfigError: the state is of another seed, other data, or other numbers of processes or workers, whose
                streams divide the data differently.
        """
        own = self.state_dict()
        for name in ("version", "seed", "rank", "world", "workers", "sources"):
            if state.get(name) != own[name]:
                raise ConfigError(
                    f"{name}: the training stream was saved with {state.get(name)!r}, now it is {own[name]!r}; "
                    "continue with the same, or start a stream with another seed"
                )
        self._batches, self._positions = state["batches"], state["positions"]


def _stacked(samples: list[Batch]) -> Batch:
    """A batch without torch's threads: on a busy machine they wait longer for each other than copying takes."""
    return {name: torch.from_numpy(np.stack([sample[name].numpy() for sample in samples])) for name in samples[0]}


def _last_line(error: OcditError) -> str:
    """The error's own line: DataLoader puts the worker's whole traceback before it."""
    line = str(error).strip().splitlines()[-1]
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return line.removeprefix(name)
