"""Randomness that belongs to a sample: the same noise whichever process draws it, and however often it is resumed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class SampleRandom:
    """One random stream for each of the G groups of a batch, a function of the seed and the group's number alone.

    Two processes with a batch of B therefore train as one does with 2 B, and a resumed run as one that was never
    interrupted.

    Args:
        seed: of the run.
        numbers: (G,) each group's number in the whole run, int64.
        device: of large draws.
    """

    def __init__(self, seed: int, numbers: Tensor, device: torch.device):
        self._device = device
        self._small = [_generator(torch.device("cpu"), seed, number, 0) for number in numbers.tolist()]
        self._large = [_generator(device, seed, number, 1) for number in numbers.tolist()]

    def __len__(self) -> int:
        return len(self._small)

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, I), on the device: (G, *shape)."""
        draws = [torch.randn(shape, generator=generator, device=self._device) for generator in self._large]
        return torch.stack(draws)

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return what `draw` makes of each group's generator, drawn on the CPU, on the device: (G, ...)."""
        return torch.stack([draw(generator) for generator in self._small]).to(self._device)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of what all samples of a step share, the same in every process."""
    return _generator(torch.device("cpu"), seed, step, 2)


def _generator(device: torch.device, seed: int, number: int, stream: int) -> torch.Generator:
    # SeedSequence spreads neighbouring numbers far apart, which the generators' own seeding need not.
    state = int(np.random.SeedSequence([seed, number, stream]).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state & (2**63 - 1))
