"""Which learned object positions a set of targets takes: the paper's six strategies (section 4.3, A.4).

A model is trained with N objects at a time and asked for M. Strategies (i) and (iii) learn N positions and differ at
inference; the others learn as many as will ever be asked for and differ in training.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TrainingPositions = Literal["first", "random_interval", "random_interpolation", "random_permutation"]
"""What a training sample of N objects uses of a capacity of M positions: the first N, which is strategies (i) and (iii)
where N = M is the trained number and (ii) where it is the one wanted at inference; or (iv), (v), (vi)."""

MorePositions = Literal["sequential", "interpolate"]
"""What happens at inference to more targets than positions: they take turns (i), or positions between the learned
ones (iii)."""


def training_positions(
    strategy: TrainingPositions, batch: int, count: int, capacity: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the positions of `count` objects, or views, for each sample.

    Args:
        strategy: how.
        batch: samples, B.
        count: objects of a sample, N.
        capacity: learned positions, M; no less than N.
        generator: of the random numbers.

    Returns:
        (B, N) indices; whole ones as int64, for random_interpolation float32 ones that may lie between two.

    Raises:
        ValueError: there are fewer positions than objects.
    """
    if count > capacity:
        raise ValueError(f"{count} objects do not fit into {capacity} learned positions")
    steps = torch.arange(count)
    if strategy == "first":
        return steps.expand(batch, -1)
    if strategy == "random_interval":
        # (iv): a contiguous interval of length N.
        return torch.randint(0, capacity - count + 1, (batch, 1), generator=generator) + steps
    if strategy == "random_interpolation":
        # (v): an interval of N to M positions, of which N are taken at equal distances.
        length = torch.randint(count, capacity + 1, (batch, 1), generator=generator)
        last = capacity - length
        start = torch.minimum((torch.rand((batch, 1), generator=generator) * (last + 1)).floor(), last)
        return start + steps * ((length - 1) / max(count - 1, 1))
    # (vi): any N of the M, in any order.
    return torch.rand((batch, capacity), generator=generator).argsort(dim=1)[:, :count]


def inference_positions(strategy: MorePositions, count: int, capacity: int) -> list[Tensor]:
    """Return the positions of `count` objects, or views: one tensor of indices for each run of the network.

    Up to `capacity` objects take the first positions, in one run. More take turns by `capacity` at a time
    ("sequential"), or one run with positions spread over all learned ones ("interpolate").
    """
    if count <= capacity:
        return [torch.arange(count)]
    if strategy == "interpolate":
        return [torch.linspace(0, capacity - 1, count)]
    return [torch.arange(min(capacity, count - begin)) for begin in range(0, count, capacity)]
