"""What the loop asks of a stage of training."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

Batch = dict[str, Tensor]
"""images (G, S, 3, H, W), templates (G, O, V, 3, h, w), template_masks (G, O, V, h, w), masks (G, S, O, H, W) uint8
and present (G, S, O) bool: G groups of S scenes that share one set of O objects."""


class Stage(Protocol):
    """A model in training."""

    @property
    def model(self) -> nn.Module:
        """All that is saved, averaged and resumed."""

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, and its parts for the log."""

    def validate(self, model: nn.Module, batches: list[Batch]) -> dict[str, float]:
        """Return figures of `model` (the averaged weights) on held-out batches."""

    def export(self, model: nn.Module, folder: Path, batches: list[Batch]) -> None:
        """Write `model` as others load it."""
