"""Where the time of one picture goes."""

from __future__ import annotations

import time

import torch


class StageClock:
    """Seconds spent by stage, from its creation on; on a GPU a stage ends when its work is done there.

    Attributes:
        seconds: of each stage so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._started = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last call, or the creation, to a stage."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def stop(self) -> dict[str, float]:
        """Return the seconds of each stage, with that of all together as "total"."""
        self.seconds["total"] = time.perf_counter() - self._started
        return self.seconds
