"""How a Segmenter works: every choice that can be made at inference, typed and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ocdit_core.config import build, read_yaml
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.positions import MorePositions

SETTINGS_FILE = "inference.yaml"


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """Settings of a Segmenter.

    Attributes:
        image_size: (height, width) in pixels that images are scaled to, multiples of 16; by default the size that the
            model was trained at. A larger one shows small objects better (the paper's choice for LM-O and HB): patch
            positions are interpolated.
        sampler: how latents are generated; by default the posterior mean, one evaluation of the network.
        ensemble: initial noises whose results are averaged.
        crops: parts of the image that are looked at as well, larger: 5 or 10 in the paper.
        guided_crop: whether to look once more, at the part of the image where something was found.
        positions: what happens to more targets than the model has learned positions for: they take turns
            ("sequential"), or share one run with positions in between ("interpolate").
        distractors: other objects of the library that take positions which the targets leave free, at most this many:
            they claim the pixels that look more like them than like any target.
        views: templates of each object that are used, those that cover it best; 0 takes as many as the model can.
        mask_threshold: a pixel belongs to an object from this probability on.
        score_threshold: an instance is reported from this score on; the score is the mean probability of its pixels.
        min_part: of a mask that falls into parts, those below this share of the largest part's area are dropped; an
            object that others cover in part may well be seen in two pieces. 0 keeps all.
        min_area: masks below this share of the image are specks, not objects.
        seed: of the initial noise: the same image and targets give the same result.
    """

    image_size: tuple[int, int] | None = None
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=0))
    ensemble: int = 1
    crops: int = 0
    guided_crop: bool = False
    positions: MorePositions = "sequential"
    distractors: int = 0
    views: int = 0
    mask_threshold: float = 0.5
    score_threshold: float = 0.5
    min_part: float = 0.5
    min_area: float = 0.0005
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size and any(side <= 0 or side % DOWNSAMPLING for side in self.image_size):
            raise ConfigError(f"image_size: {list(self.image_size)} must be positive multiples of {DOWNSAMPLING}")
        if self.ensemble < 1:
            raise ConfigError(f"ensemble: {self.ensemble} must be at least 1")
        if self.views < 0:
            raise ConfigError(f"views: {self.views} is negative; 0 takes as many as the model can")
        for name in ("crops", "distractors"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative; 0 is none")
        for name in ("mask_threshold", "score_threshold", "min_part", "min_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")


def load_settings(folder: Path) -> InferenceSettings:
    """Return the settings that a model's folder recommends in inference.yaml, or the general defaults without one."""
    path = folder / SETTINGS_FILE
    return build(InferenceSettings, read_yaml(path)) if path.is_file() else InferenceSettings()
