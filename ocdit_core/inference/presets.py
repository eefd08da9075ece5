"""Named inference settings: those that a model recommends, and those of the paper."""

from __future__ import annotations

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError
from ocdit_core.inference.settings import InferenceSettings, RefineSettings

_HEUN = SamplerConfig(steps=9, rho=9.0)

# Paper 3.3, 3.4, 4.2: full image, five crops and the guided one; no tiles; connected parts are proposals; one round of
# refinement over six crops, whose mean probability is the score.
PAPER = InferenceSettings(
    image_size=(480, 640),
    sampler=_HEUN,
    crops=5,
    guided_crop=True,
    distractors=64,
    merge_gap=0.0,
    refine=RefineSettings(image_size=(224, 224), sampler=_HEUN, windows=6, proposal_threshold=0.5, coarse_share=0.0),
)

PRESETS = ("fast", "paper")


def with_preset(recommended: InferenceSettings, preset: str) -> InferenceSettings:
    """Return the settings of a preset.

    Args:
        recommended: settings that the model recommends.
        preset: fast (the model's recommended settings) or paper (`PAPER`).

    Raises:
        ConfigError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset: {preset!r} is not one of {', '.join(PRESETS)}")
    return PAPER if preset == "paper" else recommended
