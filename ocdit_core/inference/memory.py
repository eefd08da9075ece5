"""How much memory generating masks takes, and batches that fit into what there is.

Activations are what grows with objects, windows and members. Their peaks are predicted from the sizes of the network,
so that a batch is cut before it is computed. Results do not depend on the cuts: members, windows and sets of targets
never see each other.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ocdit_core.errors import ConfigError
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.ocdit import OCDiTConfig

log = logging.getLogger(__name__)

GIB = 2**30
# Of the free memory, what is used: allocators round up, and others want some too.
_SHARE = 0.8
# Beside the tensors that a convolution reads and writes, libraries hold them once more in an order of their own.
_CONVOLUTION = 1.3


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a model's activations take at their peaks.

    Attributes:
        evaluation: of the denoiser, for one member, in one window, of one set of targets.
        mask: of the decoder, for one mask.
        window: what is kept over all evaluations, for one window of one set of targets.
    """

    evaluation: int
    mask: int
    window: int

    def peak(self, *, sets: int, windows: int, members: int, objects: int) -> int:
        """Return the peak of generating all masks in one batch."""
        units = sets * windows * members
        return sets * windows * self.window + max(units * self.evaluation, units * objects * self.mask)


def footprint(config: OCDiTConfig, *, objects: int, image_size: tuple[int, int], half: bool = False) -> Footprint:
    """Return what a model takes for sets of so many objects.

    Args:
        config: of the model.
        objects: targets that one run of the network looks for.
        image_size: (height, width) in pixels that the network sees.
        half: whether it computes in bfloat16.
    """
    denoiser = config.denoiser
    tokens = objects * math.prod(side // DOWNSAMPLING for side in image_size)
    # The residual stream of two blocks, normalised tokens, and the MLP's hidden channels before and after its GELU.
    hidden = 2 * denoiser.mlp_ratio
    floats = tokens * denoiser.width * (3.5 + hidden * (0.5 if half else 1))
    return Footprint(
        evaluation=round(4 * floats),
        mask=round(4 * _decoder_floats(config, math.prod(image_size)) * (0.75 if half else 1)),
        window=4 * tokens * denoiser.width,
    )


def _decoder_floats(config: OCDiTConfig, pixels: int) -> float:
    """Numbers held at once where the decoder holds most, for one mask."""
    vae = config.vae
    area = pixels / DOWNSAMPLING**2
    peaks = []
    for c_in, c_out in itertools.pairwise(vae.decoder_channels):
        # A residual block: input, normalised, activated, convolved. Then twice the grid, before and after another.
        peaks += [(3 * c_in + c_out) * area, (1 + 4 + 4) * c_out * area]
        area *= 4
    # The last norm and activation, and the mask as logits and probabilities.
    peaks.append(3 * vae.decoder_channels[-1] * area + 3 * pixels)
    return _CONVOLUTION * max(peaks)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device for tensors, those that torch holds without use among them."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Systems that do not tell: nothing is cut.
        return 2**62


class MemoryBudget:
    """How many equal pieces of work fit into memory at once.

    Args:
        device: where the work is done.
        limit: GiB; 0: what is free on the device.
    """

    def __init__(self, device: torch.device, limit: float = 0.0) -> None:
        if limit < 0:
            raise ConfigError(f"max_memory: {limit} is negative; 0 takes what the device has free")
        self._device = device
        self._limit = limit * GIB
        self._bytes = math.inf
        self._ceiling = math.inf

    def refresh(self, kept: int = 0) -> None:
        """Look again at what there is; `kept` bytes of it are spoken for."""
        whole = self._limit or _SHARE * free_memory(self._device)
        self._bytes = max(whole - kept, 0)

    def most(self, piece: int) -> int:
        """Return how many pieces of so many bytes each fit: at least one, there is no smaller one."""
        fit = min(self._bytes, self._ceiling) / piece
        return int(max(min(fit, 2**31), 1))

    def run(self, pieces: int, piece: int, work: Callable[[], Tensor]) -> Tensor | None:
        """Do a batch of work; return None where memory did not suffice: from now on batches are half as large.

        Args:
            pieces: in the batch; where a single one does not fit, the error is raised.
            piece: bytes of each.
            work: what computes the batch.
        """
        try:
            return work()
        except torch.cuda.OutOfMemoryError:
            if pieces == 1:
                raise
        if math.isinf(self._ceiling):
            log.warning(
                "out of memory on %s with %d at once (%.1f GiB predicted): going on in smaller batches; "
                "a lower max_memory avoids this",
                self._device,
                pieces,
                pieces * piece / GIB,
            )
        self._ceiling = min(self._ceiling, pieces * piece / 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None
