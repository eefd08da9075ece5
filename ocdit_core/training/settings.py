"""Settings of a training run, as in the files of config/train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ocdit_core.data.sampling import SampleSettings
from ocdit_core.diffusion.edm import NoiseConfig
from ocdit_core.errors import ConfigError
from ocdit_core.models.embeddings import TrainingPositions
from ocdit_core.models.ocdit import OCDiTConfig

SETTINGS_FILE = "settings.yaml"
"""File with the settings of a run, in its folder."""

ModelPart = Literal["backbone", "vae", "denoiser", "prior"]
MODEL_PARTS: tuple[ModelPart, ...] = get_args(ModelPart)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of the training loop, for all stages.

    A group is an episode: one set of objects with several images.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_groups: groups in a batch of one process.
        accumulate: batches of each process whose gradients make one step.
        learning_rate: learning rate after the warm-up; it then falls along a cosine.
        final_learning_rate: learning rate of the last step, as a fraction of learning_rate.
        warmup_steps: steps of linear warm-up.
        ema_decay: decay of the averaged weights, which are validated and exported; 0 disables the averaging.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations.
        validation_groups: held-out groups in a validation.
        log_every: steps between log lines.
        wandb: Weights & Biases project to log to, beside TensorBoard; empty: none.
        strategy: ddp, fsdp2 (weights, gradients and optimiser states are sharded, too: for models that do not fit
            otherwise), or auto, which is ddp.
        precision: float32, or bfloat16 by autocast.
        compile: compile the transformer's blocks (or the VAE's halves): slower to start, faster to run.
        device: cpu, cuda, or auto.
        threads: CPU threads of the network; 0 is torch's default.
        workers: processes that load data, for each process of training; 0 loads in the main process.
        feature_cache_mb: memory in MiB for features of templates, for each process; needs a frozen backbone, and
            templates that are neither recoloured nor augmented. 0 disables the cache.
        requeue: requeue a SLURM job after SIGUSR1, once the checkpoint is written.
        seed: random seed of weights, noise and data.
    """

    steps: int
    batch_groups: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.01
    warmup_steps: int = 1000
    ema_decay: float = 0.999
    checkpoint_every: int = 500
    validate_every: int = 500
    validation_groups: int = 16
    log_every: int = 20
    wandb: str = ""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    device: str = "auto"
    threads: int = 0
    workers: int = 1
    feature_cache_mb: int = 0
    requeue: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "batch_groups", "accumulate", "checkpoint_every", "validate_every", "validation_groups")
        for name in (*positive, "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("threads", "workers", "feature_cache_mb", "warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must not be negative")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate: {self.learning_rate} must be positive")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: {self.ema_decay} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DiffusionLossSettings:
    """Settings of the stages coarse and refine.

    Attributes:
        noise: distribution of the noise levels.
        noise_draws: noise levels per image and pass of the backbone.
        positions: learned object positions that a sample uses (paper 4.3, A.4).
        min_targets: minimum number of a group's objects that a step uses, drawn at random.
        max_targets: maximum number; 0 is all.
        uncertainty: weight the error by the learned u(sigma) of eq. (6); otherwise u = 0.
        prior_only_steps: number of first steps that train the backbone and the matching prior alone.
    """

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    noise_draws: int = 1
    positions: TrainingPositions = "random_interval"
    min_targets: int = 1
    max_targets: int = 0
    uncertainty: bool = True
    prior_only_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("noise_draws", "min_targets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.max_targets and self.max_targets < self.min_targets:
            raise ConfigError(f"max_targets: {self.max_targets} is below min_targets, {self.min_targets}; 0 is all")


@dataclass(frozen=True, kw_only=True)
class BopDataset:
    """A dataset in BOP format with the templates of its objects.

    Attributes:
        path: folder of a split (DATASET/train_pbr); or a .tar shard, or a folder of them.
        library: folder of its objects' templates, written by `ocdit render`.
        weight: sampling weight, relative to those of the other datasets.
    """

    path: str
    library: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Training data in BOP format.

    Attributes:
        datasets: training datasets, mixed by weight.
        held_out: validation datasets; without any there is no validation.
        sample: content and sampling of a sample.
    """

    datasets: tuple[BopDataset, ...]
    held_out: tuple[BopDataset, ...] = ()
    sample: SampleSettings = field(default_factory=SampleSettings)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("datasets: empty; training needs at least one (`ocdit synthesize` makes one)")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of a run.

    Attributes:
        stage: vae; or coarse or refine, which need a trained VAE.
        run: output folder: checkpoints, logs, the exported model.
        model: architecture.
        data: training data.
        loop: training loop.
        diffusion_loss: loss of the stages coarse and refine.
        vae: stages coarse and refine: model folder of a VAE run.
        init: model folder to initialise from; learned positions are interpolated to other sizes, so that a refine model
            can start from a coarse one.
        init_parts: parts to initialise from `init`; the others start from random weights.
        resume: auto: resume from the newest intact checkpoint in `run`; never: refuse a folder with checkpoints; else
            a checkpoint, or the folder of another run, to continue from.
    """

    stage: Literal["vae", "coarse", "refine"]
    run: str
    model: OCDiTConfig
    data: DataSettings
    loop: LoopSettings
    diffusion_loss: DiffusionLossSettings = field(default_factory=DiffusionLossSettings)
    vae: str | None = None
    init: str | None = None
    init_parts: tuple[ModelPart, ...] = MODEL_PARTS
    resume: str = "auto"

    def __post_init__(self) -> None:
        if not self.init_parts:
            raise ConfigError("init_parts: empty; set init to null to start from random weights")
        objects = self.data.sample.objects
        if self.stage == "refine" and objects != 1:
            raise ConfigError(f"data.sample.objects: the stage refine asks for 1 object, not {objects}")
        objects = min(objects, self.diffusion_loss.max_targets or objects)
        if self.stage != "vae" and objects > self.model.denoiser.max_objects:
            raise ConfigError(
                f"model.denoiser.max_objects: {self.model.denoiser.max_objects} positions are too few for the "
                f"{objects} objects of a sample"
            )
