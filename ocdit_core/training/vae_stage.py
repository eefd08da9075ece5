"""Training of the mask VAE (paper A.2)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ocdit_core.models.mask_vae import DOWNSAMPLING, MaskVAE
from ocdit_core.training.data import Batch, SampleRandom
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.validation import MaskResult, mask_results, mask_sheets

_KL_WEIGHT = 1e-3  # beta


class VAEStage:
    """The ELBO on the masks of the images."""

    def __init__(self, settings: TrainSettings):
        self.seed = settings.loop.seed
        self.model = MaskVAE(settings.model.vae)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative ELBO of the masks that are not empty, and values to log; see `Stage.loss`."""
        scenes, objects, height, width = batch["masks"].shape[1:]
        random = SampleRandom(self.seed, batch["number"], batch["masks"].device)
        # Random flips, affine maps and perspective (paper A.2).
        matrices = random.each(lambda g: random_projections(scenes * objects, width / height, g)).flatten(0, 1)
        masks = warp_masks(batch["masks"].flatten(0, 2).float(), matrices)
        grid = (height // DOWNSAMPLING, width // DOWNSAMPLING)
        noise = random.normal(scenes * objects, self.model.config.latent_channels, *grid).flatten(0, 1)
        reconstruction, kl = self.model.elbo_terms(masks, noise)
        shown = batch["present"].flatten()
        reconstruction, kl = masked_mean(reconstruction.float(), shown), masked_mean(kl.float(), shown)
        parts = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        return reconstruction + _KL_WEIGHT * kl, parts

    @torch.no_grad()
    def validate(self, batch: Batch) -> list[MaskResult]:
        """Return the result for each mask that is not empty."""
        masks = _shown(batch)
        present = torch.ones(len(masks), dtype=torch.bool)
        return mask_results(self.model.decode(self.model.encode(masks)).float(), masks > 0.5, present)

    @torch.no_grad()
    def draw(self, batch: Batch, count: int) -> dict[str, np.ndarray]:
        """Draw the masks of the first images of a batch and their reconstructions; see `Stage.draw`."""
        masks = batch["masks"].flatten(0, 1).float()
        decoded = self.model.decode(self.model.encode(masks.flatten(0, 1))).float().unflatten(0, masks.shape[:2])
        return mask_sheets(batch, decoded, decoded.new_zeros(len(masks), 0), count)

    @torch.no_grad()
    def finish(self, batches: list[Batch]) -> None:
        """Measure the mean and standard deviation of the latents, by which the exported VAE standardises them."""
        if not batches:
            return
        latents = torch.cat([self.model.encoder(_shown(batch)[:, None])[0].float() for batch in batches])
        # Per channel: a common value would leave channels of low variance below SIGMA_DATA.
        self.model.latent_mean.copy_(latents.mean((0, 2, 3))[:, None, None])
        self.model.latent_std.copy_(latents.std((0, 2, 3)).clamp(min=1e-3)[:, None, None])


def _shown(batch: Batch) -> Tensor:
    """Return all masks of a batch that are not empty: (N, H, W) float."""
    masks = batch["masks"].flatten(0, 2).float()
    shown = masks[batch["present"].flatten()]
    return shown if len(shown) else masks[:1]


def random_projections(count: int, aspect: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw projective maps (count, 3, 3) of coordinates in [-1, 1].

    Flips, rotations, scales, shifts, shears and perspective; aspect is width / height.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    angle = uniform(count) * math.pi
    scale = torch.exp(uniform(count) * math.log(1.6))
    flip = torch.where(uniform(count) < 0, -1.0, 1.0)
    shear = uniform(count) * 0.3
    shift = uniform(count, 2) * 0.4
    tilt = uniform(count, 2) * 0.25
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack(
        [
            torch.stack([cos * flip, -sin / aspect + shear, shift[:, 0]], dim=1),
            torch.stack([sin * aspect * flip, cos, shift[:, 1]], dim=1),
            F.pad(tilt, (0, 1), value=1.0),
        ],
        dim=1,
    )


def warp_masks(masks: Tensor, matrices: Tensor) -> Tensor:
    """Warp masks (N, H, W) by projective maps (N, 3, 3); the results are 0 or 1."""
    count, height, width = masks.shape
    # Numerator and denominator of the projected coordinates, both linear in those of the pixels.
    above, below = (
        F.affine_grid(rows, [count, 1, height, width], align_corners=False)
        for rows in (matrices[:, :2].to(masks), matrices[:, 2:].to(masks).expand(-1, 2, -1))
    )
    grid = above / below
    moved = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    return (moved > 0.5).float()


def masked_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return this process's share of the mean of the chosen values (N,) over all processes.

    Processes have different numbers of chosen values; the mean of the results over the processes is the mean of all.
    """
    total, count = (values * chosen).sum(), chosen.sum().to(values.dtype)
    world = 1
    if torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        torch.distributed.all_reduce(count)
    return world * total / count.clamp(min=1)
