"""Metrics of a trained model on held-out groups: its error at fixed noise, and the masks of two samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from cells import FEW, Task
from einops import rearrange
from torch import Tensor

from ocdit_core.diffusion.samplers import SamplerConfig, sample
from ocdit_core.models.denoiser import Conditioning
from ocdit_core.models.embeddings import inference_positions
from ocdit_core.models.ocdit import TemplateFeatures
from ocdit_core.training.data import Batch
from ocdit_core.training.diffusion_stage import DiffusionStage
from ocdit_core.training.validation import MaskResult, mask_results, summarise

LEVELS = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0, 80.0)
"""Noise levels of the error."""
# After so few steps the network has learned nothing below this noise level.
SAMPLERS = {"posterior mean": SamplerConfig(steps=0), "Heun": SamplerConfig(steps=4, sigma_min=0.2)}


@torch.no_grad()
def measure(stage: DiffusionStage, batches: Sequence[Batch], tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the metrics of a stage's model.

    Args:
        stage: stage with the model.
        batches: held-out batches.
        tasks: tests, FEW among them.

    Returns:
        error: lambda(sigma) times the mean squared error of the latents at each of LEVELS; then the metrics of
            `summarise` by task and sampler. The noise does not depend on the model.
    """
    stage.model.eval()
    errors: list[Tensor] = []
    results: dict[str, dict[str, list[MaskResult]]] = {str(task): {name: [] for name in SAMPLERS} for task in tasks}
    for number, batch in enumerate(batches):
        image, templates = stage.encode(batch)
        masks, present = rearrange(batch["masks"], "g s o h w -> (g s) o h w").float(), batch["present"].flatten(0, 1)
        generator = torch.Generator().manual_seed(number)
        for task in tasks:
            runs, begin = [], 0
            for positions in inference_positions(task.more, task.targets, stage.model.config.denoiser.max_objects):
                indices = positions.expand(len(masks), -1)
                some = _objects(templates, begin, begin + len(positions))
                runs.append(stage.model.condition(image, stage.model.encode_targets(some, indices)))
                begin += len(positions)
            if task == FEW:
                errors.append(_error(stage, batch, masks[:, :begin], runs[0], generator))
            truth, there = masks[:, :begin].flatten(0, 1) > 0, present[:, :begin].flatten()
            for name, sampler in SAMPLERS.items():
                generator.manual_seed(number)
                latents = torch.cat([_latents(stage, run, sampler, generator) for run in runs], dim=2)
                found = stage.model.decode_masks(latents)[:, 0].float()
                results[str(task)][name] += mask_results(found.flatten(0, 1), truth, there)
    figures = {task: {name: summarise(some) for name, some in found.items()} for task, found in results.items()}
    return {"error": torch.stack(errors).mean(0).tolist(), **figures}


def _objects(templates: TemplateFeatures, begin: int, end: int) -> TemplateFeatures:
    """Those of the objects from `begin` to `end`."""
    global_features = templates.global_features
    return TemplateFeatures(
        features=templates.features[:, begin:end],
        descriptors=tuple(descriptor[:, begin:end] for descriptor in templates.descriptors),
        global_features=None if global_features is None else global_features[:, begin:end],
    )


def _error(
    stage: DiffusionStage, batch: Batch, masks: Tensor, conditioning: Conditioning, generator: torch.Generator
) -> Tensor:
    """The weighted error at each of LEVELS."""
    target = stage.model.encode_masks(masks)[:, None]
    sigma = torch.tensor(LEVELS).expand(len(masks), -1)
    level = sigma[:, :, None, None, None, None]
    noisy = target + level * torch.randn(len(masks), len(LEVELS), *target.shape[2:], generator=generator)
    clean, presence = stage.presence(batch, masks), None
    if clean is not None:
        shape = (len(masks), len(LEVELS), *clean.shape[1:])
        presence = clean[:, None] + level[..., 0, 0] * torch.randn(shape, generator=generator)
    found = stage.model.denoiser(noisy, sigma, conditioning, presence).latents
    weight = stage.model.denoiser.preconditioning.loss_weight(level)
    return (weight * (found - target) ** 2).mean((0, 2, 3, 4, 5))


def _latents(
    stage: DiffusionStage, conditioning: Conditioning, sampler: SamplerConfig, generator: torch.Generator
) -> Tensor:
    """Latents (B, 1, O, z, h, w) of the masks; presence tokens are denoised together with them."""
    denoiser, grid = stage.model.denoiser, conditioning.grid
    latent = (stage.model.config.vae.latent_channels, *grid)
    cells = latent[0] * grid[0] * grid[1]
    tokens = 0 if denoiser.presence is None else len(denoiser.presence.mean)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        presence = x[..., cells:] if tokens else None
        found = denoiser(x[..., :cells].unflatten(-1, latent), sigma, conditioning, presence)
        parts = [found.latents.flatten(3)] + ([found.presence] if found.presence is not None else [])
        return torch.cat(parts, dim=-1)

    batch, _, objects = conditioning.queries.shape[:3]
    noise = [torch.randn(batch, 1, objects, count, generator=generator) for count in (cells, tokens)]
    return sample(denoise, torch.cat(noise, dim=-1), sampler)[..., :cells].unflatten(-1, latent)
