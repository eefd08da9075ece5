"""A run's checkpoints: written whole or not at all, the newest few kept, a damaged one passed over."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from ocdit_core.errors import WeightsError
from ocdit_core.files import replacing

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_NAME = re.compile(r"step_(\d+)\.pt")


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state of `step`, and remove all but the newest `keep` checkpoints."""
    path = folder / f"step_{step:08d}.pt"
    with replacing(path, guard=False) as temporary:
        torch.save(state, temporary)
    for old in listed(folder)[keep:]:
        old.unlink()
    return path


def listed(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    return sorted((p for p in folder.glob("step_*.pt") if _NAME.fullmatch(p.name)), reverse=True)


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state on the CPU; raises WeightsError where it is missing or damaged."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise WeightsError(f"{path}: not readable as a checkpoint ({' '.join(str(error).split())[:200]})") from error


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that can be read, or None."""
    for path in listed(folder):
        try:
            return load(path)
        except WeightsError as error:
            logger.warning("%s; trying the one before", error)
    return None


def find(run: Path, step: int | None = None) -> dict[str, Any]:
    """Return the state of a run at `step`, or at its newest readable checkpoint; raises WeightsError."""
    folder = run / FOLDER
    if step is None:
        state = load_newest(folder)
        if state is None:
            raise WeightsError(f"{run}: holds no checkpoint that can be read")
        return state
    path = folder / f"step_{step:08d}.pt"
    if not path.is_file():
        steps = ", ".join(str(int(p.stem.removeprefix("step_"))) for p in reversed(listed(folder)))
        raise WeightsError(f"{run}: holds no checkpoint of step {step}; it holds {steps or 'none'}")
    return load(path)
