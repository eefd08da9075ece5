"""Settings of a training run, as in the files of config/train."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ocdit_core.config import read_yaml
from ocdit_core.data.sampling import SampleSettings
from ocdit_core.errors import ConfigError
from ocdit_core.models.ocdit import OCDiTConfig

SETTINGS_FILE = "settings.yaml"
"""File with the settings of a run, in its folder."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of the training loop, for all stages.

    A group is an episode: one set of objects with several images.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_groups: groups in a batch of one process.
        accumulate: batches of each process whose gradients make one step.
        learning_rate: learning rate after the warm-up; it later falls along a cosine to a hundredth.
        warmup_steps: steps of linear warm-up.
        decay_from: fraction of the steps after which the cosine begins; until then the learning rate is constant.
        ema_decay: decay of the averaged weights, which are validated and exported; 0 disables the averaging.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations.
        wandb: Weights & Biases project to log to, beside TensorBoard; empty: none.
        strategy: several processes: ddp, or fsdp2 (weights, gradients and optimiser states are sharded, too: for models
            that do not fit otherwise).
        precision: float32; tf32: the same with matrix products in TensorFloat-32 (NVIDIA A100 and newer); bfloat16
            by autocast; float16 by autocast, with scaled gradients, for GPUs without bfloat16 (V100, T4).
        compile: compile the transformer's blocks (or the VAE's halves): slower to start, faster to run.
        workers: processes that load data, for each process of training; 0 loads in the main process.
        seed: random seed of weights, noise and data.
    """

    steps: int
    batch_groups: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    decay_from: float = 0.0
    ema_decay: float = 0.999
    checkpoint_every: int = 500
    validate_every: int = 500
    wandb: str = ""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_groups", "accumulate", "checkpoint_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("workers", "warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must not be negative")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate: {self.learning_rate} must be positive")
        for name in ("ema_decay", "decay_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        if self.precision == "float16" and self.strategy == "fsdp2":
            raise ConfigError("precision: float16 needs the strategy ddp; for fsdp2 use bfloat16")


@dataclass(frozen=True, kw_only=True)
class DiffusionLossSettings:
    """Settings of the stages coarse and refine.

    Attributes:
        high_noise_share: probability of drawing a noise level from the top of their range, where a single-evaluation
            sampler starts; 0 in the paper.
        min_targets: minimum number of a group's objects that a step uses, drawn at random.
        prior_only_steps: number of first steps that train the backbone and the matching prior alone.
        prompts_only: train the embedding of location prompts alone (model.prompts), so that results without prompts do
            not change.
        drop_templates: probability of training the denoiser on an image without its templates, for guidance.
    """

    high_noise_share: float = 0.0
    min_targets: int = 1
    prior_only_steps: int = 0
    prompts_only: bool = False
    drop_templates: float = 0.0

    def __post_init__(self) -> None:
        for name in ("high_noise_share", "drop_templates"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")
        if self.min_targets < 1:
            raise ConfigError(f"min_targets: {self.min_targets} must be at least 1")


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
    resume: str = "auto"

    def __post_init__(self) -> None:
        objects = self.data.sample.objects
        if self.stage == "refine" and objects != 1:
            raise ConfigError(f"data.sample.objects: the stage refine asks for 1 object, not {objects}")
        if self.diffusion_loss.prompts_only and not (self.model.prompts and self.init):
            raise ConfigError("diffusion_loss.prompts_only: true needs model.prompts: true, and init")
        if self.stage != "vae" and objects > self.model.denoiser.max_objects:
            raise ConfigError(
                f"model.denoiser.max_objects: {self.model.denoiser.max_objects} positions are too few for the "
                f"{objects} objects of a sample"
            )


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a file, on top of those of the file beside it that its key `base` names.

    Raises:
        ConfigError: a file is missing, or is no YAML mapping.
    """
    values = read_yaml(path)
    base = values.pop("base", None)
    return values if base is None else _merged(read_yaml(path.parent / str(base)), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with values replaced, those of nested mappings one by one."""
    result = dict(base)
    for key, value in values.items():
        old = base.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
