"""What the loop asks of a stage of training."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ocdit_core.models.mask_vae import MaskVAE
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.metrics import MaskResult

Batch = dict[str, Tensor]
"""images (G, S, 3, H, W), templates (G, O, V, 3, h, w), template_masks (G, O, V, h, w), masks (G, S, O, H, W) uint8,
present (G, S, O) bool and number (G,) int64: G groups of S scenes that share one set of O objects, and the number of
each group in the whole run. Data in BOP's format adds object_ids (G, O)."""


class Picture(NamedTuple):
    """A picture for people to watch.

    Attributes:
        name: what it shows.
        pixels: (H, W, 3) uint8 RGB.
    """

    name: str
    pixels: np.ndarray


class Stage(Protocol):
    """A model in training; every method but `model` is called by way of the module that Engine.setup returned."""

    @property
    def model(self) -> OCDiT | MaskVAE:
        """All that is saved, averaged and resumed."""

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, and figures for the log: its parts, and perhaps `sigma` and `error`.

        These two belong together, one of each for every sample's noise level, of any equal shape.
        """

    def validate(self, batch: Batch) -> list[MaskResult]:
        """Return what becomes of each mask of a held-out batch."""

    def pictures(self, batch: Batch, count: int) -> list[Picture]:
        """Draw some samples of a held-out batch and what the model makes of them."""

    def finish(self, batches: list[Batch]) -> None:
        """Complete the model for export, by held-out batches."""
