"""Figures of a validation."""

from __future__ import annotations

from torch import Tensor


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boolean masks: twice (..., H, W) -> (...)."""
    return (first & second).sum((-2, -1)) / (first | second).sum((-2, -1)).clamp(min=1)
