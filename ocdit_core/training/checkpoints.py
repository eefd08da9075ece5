"""The state of a run and its checkpoints, by torch.distributed.checkpoint: no process holds a whole sharded model.

A checkpoint is a folder `step_00001000`: the tensors of model, average and optimiser in torch's distributed format, and
`rank_N.pt` with the position in the data and the random states of each process.
"""

import logging
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ocdit_core.errors import OutputError, WeightsError
from ocdit_core.models.checkpoints import check_state
from ocdit_core.training.data import TrainingData
from ocdit_core.training.distributed import Runtime, drop_gathered, local, scalar_names

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
KEPT = 2
"""Number of the newest checkpoints that are kept."""
FORMAT = 2
_NAME = re.compile(r"step_(\d{8,})")


class WeightAverage:
    """Exponential moving average of a model's trainable weights; sharded if the model is.

    Args:
        model: model in training.
        decay: decay of the average. In step n it is at most (1 + n) / (10 + n), so that the random initial weights are
            soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._model, self._decay = model, decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights of a step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages = [local(average) for average in self.tensors.values()]
        get_ema_multi_avg_fn(decay)(averages, [local(p.detach()) for p in self._parameters.values()], None)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the averaged weights into the model inside the block; buffers stay the newest."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Gathered copies of sharded weights would outlive the swap.
        drop_gathered(self._model)
        for name, parameter in self._parameters.items():
            ours, theirs = local(self.tensors[name]), local(parameter.detach())
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)


@dataclass(kw_only=True)
class TrainingState:
    """What changes during a run.

    Attributes:
        model: model in training.
        average: average of its weights.
        optimiser: optimiser of its trainable weights; its state exists from the start.
        data: training data.
        step: number of finished steps; the learning rate is a function of it.
    """

    model: nn.Module
    average: WeightAverage
    optimiser: Optimizer
    data: TrainingData
    step: int = 0

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, sharing memory; scalars as vectors, as in a sharded model."""
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.tensors.items()}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                state = self.optimiser.state[parameter]
                tensors |= {f"optimiser.{name}.{key}": value for key, value in state.items()}
        return {name: value[None] if value.ndim == 0 else value for name, value in tensors.items()}

    def save(self, folder: Path, runtime: Runtime) -> Path:
        """Write a checkpoint atomically, and remove all but the newest KEPT; every process must call it.

        Raises:
            OutputError: a folder of the checkpoint's name holds files that are not of a checkpoint.
        """
        path = folder / f"step_{self.step:08d}"
        part = folder / f".{path.name}.part"
        if runtime.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        runtime.barrier()
        own = {
            "format": FORMAT,
            "step": self.step,
            "world": runtime.world,
            "scalars": scalar_names(self.model),
            "data": self.data.state_dict(),
            "random": random_states(),
            "scaler": runtime.scaler.state_dict(),
        }
        torch.save(own, part / f"rank_{runtime.rank}.pt")
        with _quiet():
            dcp.save(self._tensors(), checkpoint_id=part, process_group=runtime.hosts, no_dist=runtime.world == 1)
        runtime.barrier()
        if runtime.rank == 0:
            _remove(path)
            if path.exists():
                raise OutputError(f"{path}: holds files that are not of a checkpoint; move them")
            part.rename(path)
            for old in list_checkpoints(folder)[KEPT:]:
                _remove(old)
        runtime.barrier()
        return path

    def load(self, path: Path, runtime: Runtime) -> None:
        """Load a checkpoint, also one of another number of processes; every process must call it.

        Raises:
            WeightsError: the checkpoint is damaged or of another model.
        """
        first = read_rank(path, 0)
        tensors = self._tensors()
        found = {name: torch.empty(size, device="meta") for name, size in _sizes(_metadata(path)).items()}
        check_state(tensors, found, str(path))
        with _quiet():
            # In place: into the memory of model, average and optimiser.
            dcp.load(tensors, checkpoint_id=path, process_group=runtime.hosts, no_dist=runtime.world == 1)
        self.step = first["step"]
        if first.get("scaler"):
            runtime.scaler.load_state_dict(first["scaler"])
        if first["world"] != runtime.world:
            logger.warning("saved by %d processes, continued by %d", first["world"], runtime.world)
            self.data.load_state_dict(first["data"])
            return
        own = read_rank(path, runtime.rank)
        self.data.load_state_dict(own["data"])
        set_random_states(own["random"])


def _remove(path: Path) -> None:
    """Remove a checkpoint's files, and its folder unless it holds others."""
    for file in path.glob("*"):
        if re.fullmatch(r"rank_\d+\.pt|__\d+_\d+\.distcp|\.metadata", file.name):
            file.unlink()
    with suppress(OSError):
        path.rmdir()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """Return the checkpoint of a run at a step, by default the newest intact one.

    Raises:
        WeightsError: there is no such checkpoint, or it is damaged.
    """
    folder = run / FOLDER
    if step is not None:
        path = folder / f"step_{step:08d}"
        if not path.is_dir():
            steps = ", ".join(str(int(p.name.removeprefix("step_"))) for p in reversed(list_checkpoints(folder)))
            raise WeightsError(f"{run}: holds no checkpoint of step {step}; it holds {steps or 'none'}")
        require_intact(path)
        return path
    for path in list_checkpoints(folder):
        try:
            require_intact(path)
        except WeightsError as error:
            logger.warning("%s; using the one before", error)
        else:
            return path
    raise WeightsError(f"{run}: holds no checkpoint that can be read")


def require_intact(path: Path) -> None:
    """Check that all files of a checkpoint are complete.

    Raises:
        WeightsError: one is missing, truncated, or of another version.
    """
    metadata = _metadata(path)
    for entry in metadata.storage_data.values():
        file = path / entry.relative_path
        if not file.is_file() or file.stat().st_size < entry.offset + entry.length:
            raise WeightsError(f"{path}: damaged checkpoint, {entry.relative_path} is missing or truncated")
    for rank in range(read_rank(path, 0)["world"]):
        read_rank(path, rank)


def read_rank(path: Path, rank: int) -> dict[str, Any]:
    """Return what a process has stored beside the tensors.

    Raises:
        WeightsError: the file is missing, damaged, or of another version.
    """
    try:
        state = torch.load(path / f"rank_{rank}.pt", map_location="cpu", weights_only=True)
        version = state["format"]
    except Exception as error:  # torch raises many types for a damaged file
        raise WeightsError(f"{path}: not readable as a checkpoint ({' '.join(str(error).split())[:200]})") from error
    if version != FORMAT:
        raise WeightsError(f"{path}: has checkpoint format {version}, this program reads {FORMAT}")
    return dict(state)


def read_weights(path: Path, *, averaged: bool = True) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint's model, on the CPU.

    Args:
        path: the checkpoint.
        averaged: use the averaged weights where there are some.

    Raises:
        WeightsError: the checkpoint is damaged.
    """
    scalars = set(read_rank(path, 0)["scalars"])
    prefixes = ("model.", "average.") if averaged else ("model.",)
    storage = _metadata(path).state_dict_metadata.items()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in storage
        if isinstance(entry, TensorStorageMetadata) and name.startswith(prefixes)
    }
    with _quiet():
        dcp.load(tensors, checkpoint_id=path, no_dist=True)
    # In this order: averages replace the newest weights.
    state = {name.removeprefix(p): value for p in prefixes for name, value in tensors.items() if name.startswith(p)}
    return {name: value.reshape(()) if name in scalars else value for name, value in state.items()}


def _metadata(path: Path) -> Metadata:
    try:
        return dcp.FileSystemReader(path).read_metadata()
    except Exception as error:  # pickle raises many types for a damaged file
        raise WeightsError(f"{path}: not readable as a checkpoint ({' '.join(str(error).split())[:200]})") from error


def _sizes(metadata: Metadata) -> dict[str, torch.Size]:
    entries = metadata.state_dict_metadata.items()
    return {name: entry.size for name, entry in entries if isinstance(entry, TensorStorageMetadata)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's remark that a single process saves or loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*", category=UserWarning)
        yield


def seed_random_states(seed: int) -> None:
    """Seed the random generators of this process."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_states() -> dict[str, Any]:
    """Return the states of this process's random generators: torch on the CPU and its GPU, NumPy, Python."""
    kind, keys, *numbers = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (str(kind), [int(key) for key in keys], *(float(number) for number in numbers)),
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), int(position), int(has_gauss), gauss))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
