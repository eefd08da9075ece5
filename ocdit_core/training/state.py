"""All that a checkpoint holds, gathered from every process, and put back."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ocdit_core.errors import WeightsError
from ocdit_core.models.checkpoints import check_state
from ocdit_core.training.average import WeightAverage
from ocdit_core.training.data import TrainingData
from ocdit_core.training.engine import Engine
from ocdit_core.training.sharding import full_tensor, like, local, scalars

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(kw_only=True)
class TrainingState:
    """What changes while a run goes on.

    Attributes:
        model: in training.
        average: of its weights.
        optimiser: over all of its parameters that learn.
        data: the training data, which knows where it stands.
        step: optimiser steps done. The learning rate is a function of it.
    """

    model: nn.Module
    average: WeightAverage
    optimiser: Optimizer
    data: TrainingData
    step: int = 0

    def capture(self, engine: Engine) -> dict[str, Any]:
        """Return everything, whole and on the CPU, as torch.save may write it; every process must call it.

        A run that was sharded over several processes can be continued, or exported, by one.
        """
        return {
            "format": FORMAT,
            "step": self.step,
            "world": engine.world,
            "model": self.whole_model(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser_state(),
            "data": engine.gather(self.data.state_dict()),
            "rng": engine.gather(random_states()),
        }

    def whole_model(self) -> dict[str, Tensor]:
        """Return the model's whole state on the CPU; every process must call it."""
        short = scalars(self.model)
        return {name: full_tensor(value, scalar=name in short) for name, value in self.model.state_dict().items()}

    def restore(self, state: Mapping[str, Any], engine: Engine, source: str) -> None:
        """Put back what `capture` returned.

        Raises:
            WeightsError: the checkpoint is of another model, or of another version of this program.
            ConfigError: its data cannot be continued by so many processes and workers.
        """
        if state.get("format") != FORMAT:
            raise WeightsError(f"{source}: checkpoint of format {state.get('format')}, this program reads {FORMAT}")
        own, short = self.model.state_dict(), scalars(self.model)
        expected = {name: torch.empty(()) if name in short else value for name, value in own.items()}
        check_state(expected, state["model"], source)
        with torch.no_grad():
            for name, value in own.items():
                local(value).copy_(local(like(state["model"][name], value)))
        self.average.load_state_dict(state["average"])
        self._load_optimiser_state(state["optimiser"])
        self.step = state["step"]
        same_world = state["world"] == engine.world
        self.data.load_state_dict(state["data"][engine.rank] if same_world else state["data"][0])
        if same_world:
            set_random_states(state["rng"][engine.rank])
        else:
            logger.warning("saved by %d processes, continued by %d", state["world"], engine.world)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        known = {id(p) for group in self.optimiser.param_groups for p in group["params"]}
        return [(name, p) for name, p in self.model.named_parameters() if id(p) in known]

    def _optimiser_state(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's tensors by the parameters' names; a parameter without gradients so far has none."""
        short = scalars(self.model)
        return {
            name: {
                key: full_tensor(value, scalar=name in short) for key, value in self.optimiser.state[parameter].items()
            }
            for name, parameter in self._named()
            if parameter in self.optimiser.state
        }

    def _load_optimiser_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.optimiser.state.clear()
        for name, parameter in self._named():
            if name in state:
                self.optimiser.state[parameter] = {
                    # Moments have the parameter's shape, and its shards; a count of steps has neither.
                    key: self._count(value, parameter) if key == "step" else like(value, parameter)
                    for key, value in state[name].items()
                }

    def _count(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        return value.to(parameter.device) if self.optimiser.defaults.get("fused") else value.clone()


def seed_random_states(seed: int) -> None:
    """Start this process's random generators from `seed`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_states() -> dict[str, Any]:
    """Return the states of this process's random generators: torch on the CPU and its GPU, NumPy, Python."""
    kind, keys, *numbers = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (str(kind), [int(key) for key in keys], *(float(number) for number in numbers)),
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), int(position), int(has_gauss), gauss))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
