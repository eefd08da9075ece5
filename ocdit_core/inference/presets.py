"""Ready choices between speed and care; what belongs to a model (its size, its thresholds) stays as it recommends."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError
from ocdit_core.inference.settings import InferenceSettings

Preset = Literal["fast", "balanced", "accurate", "paper"]
"""fast: one evaluation of each network. balanced: also a closer look at where something was found, and three looks at
each proposal. accurate: also five crops. paper: as published, the full sampler on six windows and the guided one, all
positions taken."""

_MEAN = SamplerConfig(steps=0)
_HEUN = SamplerConfig(steps=9, rho=9.0)


def with_preset(settings: InferenceSettings, preset: str) -> InferenceSettings:
    """Return the settings with a preset's choices.

    Args:
        settings: what the model recommends.
        preset: one of `Preset`.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset == "fast":
        return _chosen(settings, sampler=_MEAN)
    if preset == "balanced":
        return _chosen(settings, sampler=_MEAN, guided_crop=True, windows=3)
    if preset == "accurate":
        return _chosen(settings, sampler=_MEAN, crops=5, guided_crop=True, windows=5)
    if preset == "paper":
        return _chosen(settings, sampler=_HEUN, crops=5, guided_crop=True, windows=6, distractors=64)
    raise ConfigError(f"preset: {preset!r} is not one of {', '.join(get_args(Preset))}")


def _chosen(
    settings: InferenceSettings,
    *,
    sampler: SamplerConfig,
    crops: int = 0,
    guided_crop: bool = False,
    windows: int = 1,
    distractors: int = 0,
) -> InferenceSettings:
    return dataclasses.replace(
        settings,
        sampler=sampler,
        ensemble=1,
        crops=crops,
        guided_crop=guided_crop,
        distractors=distractors,
        refine=dataclasses.replace(settings.refine, sampler=sampler, ensemble=1, windows=windows),
    )
