"""The exponential moving average of the weights: what is validated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ocdit_core.training.sharding import full_tensor, like, local, reshard, scalars


class WeightAverage:
    """The average of all weights of a model that learn; sharded where the model is.

    Args:
        model: in training.
        decay: of the average, reached slowly: in step n it is at most (1 + n) / (10 + n), so that the first weights,
            which are random, are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._model = model
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights of step `step`, counted from 1, into the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages = [local(a) for a in self._averages.values()]
        get_ema_multi_avg_fn(decay)(averages, [local(p.detach()) for p in self._parameters.values()], None)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the model have the averaged weights inside the block; the other buffers stay the newest."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Gathered copies of sharded weights would outlive the exchange.
        reshard(self._model)
        for name, parameter in self._parameters.items():
            ours, theirs = local(self._averages[name]), local(parameter.detach())
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole averages on the CPU; every process must call it."""
        short = scalars(self._model)
        return {name: full_tensor(average, scalar=name in short) for name, average in self._averages.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        for name, average in self._averages.items():
            local(average).copy_(local(like(state[name], average)))
