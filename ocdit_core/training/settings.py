"""The settings of a training run, as its YAML file holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ocdit_core.data.synthetic.dataset import SyntheticDataSettings
from ocdit_core.diffusion.noise import NoiseConfig
from ocdit_core.errors import ConfigError
from ocdit_core.models.ocdit import OCDiTConfig


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The loop that all stages share.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_groups: groups (one object set, several scenes) in a batch.
        learning_rate: after the warm-up; it then falls along a cosine.
        final_learning_rate: at the last step, as a share of learning_rate.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this norm.
        ema_decay: of the averaged weights, which are what is validated and exported.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest are kept.
        validate_every: steps between validations.
        validation_groups: held-out groups in a validation.
        log_every: steps between log lines.
        precision: float32, or bfloat16 by autocast.
        device: cpu, cuda, or auto.
        threads: CPU threads of the network; 0 leaves torch's default.
        workers: processes that make data; 0 makes it in the main process.
        max_minutes: stop, with a checkpoint, after this long; 0 never.
        seed: of weights, noise and data.
    """

    steps: int
    batch_groups: int = 4
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.01
    warmup_steps: int = 1000
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    validate_every: int = 500
    validation_groups: int = 16
    log_every: int = 20
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: int = 0
    workers: int = 1
    max_minutes: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_groups", "checkpoint_every", "keep_checkpoints", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate: {self.learning_rate} must be positive")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: {self.ema_decay} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class VAELossSettings:
    """The ELBO of the mask VAE.

    Attributes:
        beta: weight of the KL divergence.
        augment: random flips and affine maps of the masks (paper A.2).
    """

    beta: float = 1e-3
    augment: bool = True


@dataclass(frozen=True, kw_only=True)
class DiffusionLossSettings:
    """The loss of the denoiser and, where the model has one, of the matching prior.

    Attributes:
        noise: distribution of the training noise levels.
        noise_draws: noise levels for one pass of the features.
        min_targets: each step looks for a random number of the group's objects, at least this many.
        prior_weight: weight of the matching prior's own losses.
        prior_only_steps: first steps that train the backbone and the matching prior alone: cheap, and what the
            denoiser then starts from.
    """

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    noise_draws: int = 1
    min_targets: int = 1
    prior_weight: float = 1.0
    prior_only_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run of training/train.py.

    Attributes:
        stage: vae, or diffusion (which needs a trained VAE).
        run: folder of the run: checkpoints, logs, the exported model.
        model: sizes of the network.
        data: where pictures come from.
        held_out_bank: objects for the validation, none of which is in data.bank.
        loop: the loop.
        vae_loss: of the stage vae.
        diffusion_loss: of the stage diffusion.
        vae: for the stage diffusion: the exported model folder of a VAE run.
        init: start from the weights of this exported model folder.
        resume: continue the run in `run` where its newest checkpoint stands.
    """

    stage: Literal["vae", "diffusion"]
    run: str
    model: OCDiTConfig
    data: SyntheticDataSettings
    held_out_bank: str
    loop: LoopSettings
    vae_loss: VAELossSettings = field(default_factory=VAELossSettings)
    diffusion_loss: DiffusionLossSettings = field(default_factory=DiffusionLossSettings)
    vae: str | None = None
    init: str | None = None
    resume: bool = True
