"""The settings of a training run, as its YAML file holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ocdit_core.data.sampling import SampleSettings
from ocdit_core.diffusion.edm import NoiseConfig
from ocdit_core.errors import ConfigError
from ocdit_core.models.embeddings import TrainingPositions
from ocdit_core.models.ocdit import OCDiTConfig
from ocdit_core.synthesis.composed_dataset import ComposedDataSettings

SETTINGS_FILE = "settings.yaml"
"""Where a run keeps its settings."""

ModelPart = Literal["backbone", "vae", "denoiser", "prior"]
MODEL_PARTS: tuple[ModelPart, ...] = get_args(ModelPart)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The loop that all stages share.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_groups: groups (one object set, several scenes) in a batch of one process.
        accumulate: batches of each process whose gradients make one step.
        learning_rate: after the warm-up; it then falls along a cosine.
        final_learning_rate: at the last step, as a share of learning_rate.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this norm.
        ema_decay: of the averaged weights, which are what is validated and exported; 0 averages none.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest are kept.
        validate_every: steps between validations.
        validation_groups: held-out groups in a validation.
        pictures: samples of which a validation draws masks and denoising strips; 0 draws none.
        log_every: steps between log lines.
        strategy: how several processes share the work: ddp, fsdp2 (parameters, gradients and optimiser states are
            sharded too: for models that do not fit otherwise), or auto, which is ddp.
        precision: float32, or bfloat16 by autocast.
        compile: torch.compile the transformer's blocks (or the VAE's halves): slower to start, faster to run.
        device: cpu, cuda, or auto.
        threads: CPU threads of the network; 0 leaves torch's default.
        workers: processes that make data, for each process of training; 0 makes it in the main process.
        prefetch: batches that each worker keeps ready.
        feature_cache_mb: memory for features of templates that were seen before, per process; only for a frozen
            backbone, and only worth it where templates are neither recoloured nor augmented. 0 caches none.
        max_minutes: stop, with a checkpoint, after this long; 0 never.
        requeue: on SIGUSR1 in a SLURM job, put the job back into the queue once the checkpoint is written.
        seed: of weights, noise and data.
    """

    steps: int
    batch_groups: int = 4
    accumulate: int = 1
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
    pictures: int = 4
    log_every: int = 20
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    device: str = "auto"
    threads: int = 0
    workers: int = 1
    prefetch: int = 8
    feature_cache_mb: int = 0
    max_minutes: float = 0.0
    requeue: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            *("steps", "batch_groups", "accumulate", "checkpoint_every", "keep_checkpoints", "validate_every"),
            *("validation_groups", "log_every", "prefetch"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("pictures", "threads", "workers", "feature_cache_mb", "max_minutes", "warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must not be negative")
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must be positive")
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
        positions: which of the learned object positions a sample uses (paper 4.3, A.4).
        min_targets: each step looks for a random number of the group's objects, at least this many.
        max_targets: and at most this many; 0 is all of them.
        uncertainty: weight the error by the learned u(sigma) of eq. (6); without it u = 0.
        prior_weight: weight of the matching prior's own losses.
        prior_only_steps: first steps that train the backbone and the matching prior alone: cheap, and what the
            denoiser then starts from.
        projection_weight: weight of the projection to backbone features, where denoiser.representation has it.
        presence_weight: weight of the presence tokens' loss, likewise.
    """

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    noise_draws: int = 1
    positions: TrainingPositions = "random_interval"
    min_targets: int = 1
    max_targets: int = 0
    uncertainty: bool = True
    prior_weight: float = 1.0
    prior_only_steps: int = 0
    projection_weight: float = 0.5
    presence_weight: float = 0.03

    def __post_init__(self) -> None:
        for name in ("noise_draws", "min_targets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.max_targets and self.max_targets < self.min_targets:
            raise ConfigError(f"max_targets: {self.max_targets} is below min_targets, {self.min_targets}; 0 is all")


@dataclass(frozen=True, kw_only=True)
class BopDataset:
    """A dataset in BOP's format, with the templates of its objects.

    Attributes:
        path: a dataset's folder, or with split "shards": a .tar file, a folder of them, or one of these
            with braces (shard-{000000..000099}.tar).
        split: the dataset's subfolder (train_pbr, test ...), or shards.
        library: folder of its objects' templates, as `ocdit render` writes it.
        weight: its share of the samples, relative to the other datasets' weights.
    """

    path: str
    split: str
    library: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BopDataSettings:
    """Training data in BOP's format.

    Attributes:
        kind: bop.
        datasets: what is trained on, mixed by weight.
        held_out: what the validation sees; without any there is no validation.
        sample: what a sample holds and how it is drawn.
        cache_mb: memory for decoded templates, in each loader worker and for each dataset.
        seed: of the stream.
    """

    kind: Literal["bop"] = "bop"
    datasets: tuple[BopDataset, ...]
    held_out: tuple[BopDataset, ...] = ()
    sample: SampleSettings = field(default_factory=SampleSettings)
    cache_mb: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("datasets: empty; training needs at least one")
        if self.cache_mb < 1:
            raise ConfigError(f"cache_mb: {self.cache_mb} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run of training/train.py.

    Attributes:
        stage: vae, or coarse or refine, which need a trained VAE.
        run: folder of the run: checkpoints, logs, the exported model.
        model: sizes of the network.
        data: where pictures come from; `kind` is synthetic (composed on the fly) or bop.
        held_out_bank: with synthetic data: objects for the validation, none of which is in data.bank.
        loop: the loop.
        vae_loss: of the stage vae.
        diffusion_loss: of the stages coarse and refine.
        vae: for the stages coarse and refine: the exported model folder of a VAE run.
        init: start from the weights of this exported model folder; positions are interpolated to other sizes, so
            that a refine model can start from a coarse one.
        init_parts: what is taken from there; the rest starts from random weights.
        resume: auto continues the run in `run` where its newest readable checkpoint stands; never refuses a folder
            that has one; anything else is a checkpoint, or the folder of another run, to go on from.
    """

    stage: Literal["vae", "coarse", "refine"]
    run: str
    model: OCDiTConfig
    data: ComposedDataSettings | BopDataSettings
    loop: LoopSettings
    held_out_bank: str | None = None
    vae_loss: VAELossSettings = field(default_factory=VAELossSettings)
    diffusion_loss: DiffusionLossSettings = field(default_factory=DiffusionLossSettings)
    vae: str | None = None
    init: str | None = None
    init_parts: tuple[ModelPart, ...] = MODEL_PARTS
    resume: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.data, ComposedDataSettings) and self.held_out_bank is None:
            raise ConfigError("held_out_bank: missing; synthetic data needs objects to be validated on")
        sample, templates = self.data.sample, self.model.template_size
        if templates != (sample.template_size, sample.template_size):
            raise ConfigError(
                f"model.template_size: {list(templates)}, but data.sample.template_size is {sample.template_size}"
            )
        mode, size, objects = sample.mode, sample.image_size, sample.objects
        if not self.init_parts:
            raise ConfigError("init_parts: empty; init: null starts from random weights")
        if self.stage != "vae" and mode != self.stage:
            raise ConfigError(f"data mode: {mode!r} does not train the stage {self.stage}; it must be {self.stage!r}")
        if tuple(size) != tuple(self.model.image_size):
            raise ConfigError(
                f"model.image_size: {list(self.model.image_size)}, but the data's pictures are {list(size)}; "
                "they must be equal"
            )
        objects = min(objects, self.diffusion_loss.max_targets or objects)
        if self.stage != "vae" and objects > self.model.denoiser.max_objects:
            raise ConfigError(
                f"model.denoiser.max_objects: {self.model.denoiser.max_objects} positions are too few for the "
                f"{objects} objects of a sample"
            )
