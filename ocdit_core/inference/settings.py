"""How a Segmenter works: every choice that can be made at inference, typed and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ocdit_core.config import build, read_yaml
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError
from ocdit_core.inference.precision import Precision
from ocdit_core.models.embeddings import MorePositions
from ocdit_core.models.mask_vae import DOWNSAMPLING

SETTINGS_FILE = "inference.yaml"

Score = Literal["mean", "expected_iou"]
"""How an instance is scored: the mean probability of its pixels; or the expected overlap with the truth, which also
counts what lies outside the mask: the sum of the mask's probabilities over its area and the probabilities outside."""


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """Settings of the refine stage (paper 3.3, 4.2), for models that have one.

    Attributes:
        enabled: whether the coarse stage's proposals are looked at once more, closely.
        image_size: (height, width) in pixels that crops are scaled to; by default the size of the refine model's
            training.
        sampler: how latents are generated; by default the posterior mean, one evaluation of the network.
        ensemble: initial noises whose results are averaged.
        windows: crops of each proposal, which differ in margin and place.
        rounds: how often a proposal is looked at: from the second time on around what the time before has found.
        margin: added to each side of a proposal's box, as a share of the box.
        proposal_threshold: a pixel belongs to a proposal from this coarse probability on.
        max_proposals: the best so many proposals of an image are refined.
        mask_threshold: a pixel belongs to a refined mask from this probability on.
        coarse_share: of the coarse stage's score in an instance's score, the exponent of a geometric mean; with several
            rounds, of the score of the round before.
    """

    enabled: bool = True
    image_size: tuple[int, int] | None = None
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=0))
    ensemble: int = 1
    windows: int = 1
    rounds: int = 1
    margin: float = 0.2
    proposal_threshold: float = 0.2
    max_proposals: int = 64
    mask_threshold: float = 0.5
    coarse_share: float = 0.5

    def __post_init__(self) -> None:
        _check_size("image_size", self.image_size)
        for name in ("ensemble", "windows", "rounds", "max_proposals"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("margin", "proposal_threshold", "mask_threshold", "coarse_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class TileSettings:
    """Settings of the overlapping tiles of an image in which the coarse stage looks for what is small.

    Attributes:
        grid: tiles along each side; 0: none.
        share: of each of the image's sides that a tile shows.
        image_size: (height, width) in pixels that tiles are scaled to; by default that of the whole image.
        proposal_threshold: a pixel belongs to a proposal from this probability on.
        max_overlap: a place is new where its box has a smaller intersection over union with all that are known.
        max_proposals: most new places of one target.
        score_factor: of what is found at new places: a part of a picture looks like many things, and what the whole
            picture does not show as well is less certain.
    """

    grid: int = 0
    share: float = 0.4
    image_size: tuple[int, int] | None = None
    proposal_threshold: float = 0.05
    max_overlap: float = 0.5
    max_proposals: int = 2
    score_factor: float = 0.85

    def __post_init__(self) -> None:
        _check_size("image_size", self.image_size)
        if self.grid < 0 or self.grid == 1:
            raise ConfigError(f"grid: {self.grid} must be at least 2, or 0 for no tiles")
        if self.grid and self.grid * self.share < 1:
            raise ConfigError(
                f"share: {self.grid} tiles of {self.share} do not cover a side; at least {1 / self.grid:.2f}"
            )
        for name in ("share", "proposal_threshold", "max_overlap", "score_factor"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not above 0 and up to 1")
        if self.max_proposals < 1:
            raise ConfigError(f"max_proposals: {self.max_proposals} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """Settings of a `Tracker`.

    Attributes:
        keep: frames for which the number of an instance that is not found is kept.
    """

    keep: int = 30

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ConfigError(f"keep: {self.keep} is negative; 0 forgets at once")


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
        tiles: parts of the image that are looked at as well, for what is small.
        positions: what happens to more targets than the model has learned positions for: they take turns
            ("sequential"), or share one run with positions in between ("interpolate").
        distractors: other objects of the library that take positions which the targets leave free, at most this many:
            they claim the pixels that look more like them than like any target.
        views: templates of each object that are used, those that cover it best; 0 takes as many as the model can.
        mask_threshold: a pixel belongs to an object from this probability on.
        score_threshold: an instance is reported from this score on.
        label_threshold: `Segmenter.label` names a region from this score on.
        score: what a score is.
        max_instances: most instances of one object in an image.
        merge_gap: parts of an object's mask that are nearer to each other than this share of the larger one's size
            are one instance, which something else covers in part; those further apart are several instances.
        min_part: of an instance that falls into parts, those below this share of the largest one's area are dropped;
            0 keeps all.
        min_instance: parts below this share of the object's largest part are no instances.
        min_area: masks below this share of the image are specks, not objects.
        uncertainty: whether results carry a map of how uncertain each pixel is.
        refine: of the refine stage.
        track: settings of a `Tracker`.
        seed: of the initial noise: the same image and targets give the same result.
        precision: bfloat16 is faster on GPUs, and rounds: results differ a little.
        compile: compile the denoiser first, which takes a minute or more for each number of objects and size of image.
        max_memory: GiB that activations may take; members, windows and proposals run in as many batches as that needs.
            0 takes what the device has free.
        plain: compute as published, with nothing saved between evaluations: slow, the reference of the fast path.
    """

    image_size: tuple[int, int] | None = None
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=0))
    ensemble: int = 1
    crops: int = 0
    guided_crop: bool = False
    tiles: TileSettings = field(default_factory=TileSettings)
    positions: MorePositions = "sequential"
    distractors: int = 0
    views: int = 0
    mask_threshold: float = 0.5
    score_threshold: float = 0.5
    label_threshold: float = 0.5
    score: Score = "mean"
    max_instances: int = 4
    merge_gap: float = 1.0
    min_part: float = 0.5
    min_instance: float = 0.3
    min_area: float = 0.0005
    uncertainty: bool = False
    refine: RefineSettings = field(default_factory=RefineSettings)
    track: TrackSettings = field(default_factory=TrackSettings)
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = False
    max_memory: float = 0.0
    plain: bool = False

    def __post_init__(self) -> None:
        _check_size("image_size", self.image_size)
        for name in ("ensemble", "max_instances"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.views < 0:
            raise ConfigError(f"views: {self.views} is negative; 0 takes as many as the model can")
        for name in ("crops", "distractors", "merge_gap"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative; 0 is none")
        if self.max_memory < 0:
            raise ConfigError(f"max_memory: {self.max_memory} is negative; 0 takes what the device has free")
        if self.plain and self.compile:
            raise ConfigError("plain: computes as published, without compile")
        shares = (
            "mask_threshold",
            "score_threshold",
            "label_threshold",
            "min_part",
            "min_instance",
            "min_area",
        )
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")


def load_settings(folder: Path) -> InferenceSettings:
    """Return the settings that a model's folder recommends in inference.yaml, or the general defaults without one."""
    path = folder / SETTINGS_FILE
    return build(InferenceSettings, read_yaml(path)) if path.is_file() else InferenceSettings()


def _check_size(name: str, size: tuple[int, int] | None) -> None:
    if size and any(side <= 0 or side % DOWNSAMPLING for side in size):
        raise ConfigError(f"{name}: {list(size)} must be positive multiples of {DOWNSAMPLING}")
