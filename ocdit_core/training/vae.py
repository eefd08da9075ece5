"""Stage 1: the mask VAE (paper A.2)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ocdit_core.models.mask_vae import DOWNSAMPLING, MaskVAE
from ocdit_core.training.metrics import MaskResult, mask_results, masked_mean
from ocdit_core.training.pictures import denoising_strip
from ocdit_core.training.randomness import SampleRandom
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.stage import Batch, Picture


class VAEStage:
    """ELBO on the masks of the scenes."""

    def __init__(self, settings: TrainSettings):
        self.settings, self.seed = settings.vae_loss, settings.loop.seed
        self.model = MaskVAE(settings.model.vae, settings.model.sigma_data)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative ELBO of the masks that show something; see `Stage.loss`."""
        scenes, objects, height, width = batch["masks"].shape[1:]
        random = SampleRandom(self.seed, batch["number"], batch["masks"].device)
        masks = batch["masks"].flatten(0, 2).float()
        if self.settings.augment:
            matrices = random.each(lambda g: random_affine(scenes * objects, width / height, g)).flatten(0, 1)
            masks = move_masks(masks, matrices)
        grid = (height // DOWNSAMPLING, width // DOWNSAMPLING)
        noise = random.normal(scenes * objects, self.model.config.latent_channels, *grid).flatten(0, 1)
        reconstruction, kl = self.model.elbo_terms(masks, noise)
        shown = batch["present"].flatten()
        reconstruction, kl = masked_mean(reconstruction.float(), shown), masked_mean(kl.float(), shown)
        parts = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        return reconstruction + self.settings.beta * kl, parts

    @torch.no_grad()
    def validate(self, batch: Batch) -> list[MaskResult]:
        """Return how well each mask that shows something comes back."""
        masks = _shown(batch)
        present = torch.ones(len(masks), dtype=torch.bool)
        return mask_results(self.model.decode(self.model.encode(masks)).float(), masks > 0.5, present)

    @torch.no_grad()
    def pictures(self, batch: Batch, count: int) -> list[Picture]:
        """Draw the scenes' masks and what comes back of them."""
        images = rearrange(batch["images"], "g s c h w -> (g s) h w c")[:count].cpu().numpy()
        masks = rearrange(batch["masks"], "g s o h w -> (g s) o h w")[:count].float()
        decoded = self.model.decode(self.model.encode(masks.flatten(0, 1))).unflatten(0, masks.shape[:2])
        pairs = zip(images, masks.cpu().numpy(), decoded[:, None].float().cpu().numpy(), strict=True)
        return [
            Picture(name=f"reconstruction_{i}", pixels=denoising_strip(image, truth, found))
            for i, (image, truth, found) in enumerate(pairs)
        ]

    @torch.no_grad()
    def finish(self, batches: list[Batch]) -> None:
        """Measure the latents' mean and deviation, which the exported VAE standardises by."""
        if not batches:
            return
        latents = torch.cat([self.model.encoder(_shown(batch)[:, None])[0].float() for batch in batches])
        # One pair of numbers for all channels would leave the quiet ones below sigma_data.
        self.model.latent_mean.copy_(latents.mean((0, 2, 3))[:, None, None])
        self.model.latent_std.copy_(latents.std((0, 2, 3)).clamp(min=1e-3)[:, None, None])


def _shown(batch: Batch) -> Tensor:
    """All masks of a batch that show something: (N, H, W) float."""
    masks = batch["masks"].flatten(0, 2).float()
    shown = masks[batch["present"].flatten()]
    return shown if len(shown) else masks[:1]


def random_affine(count: int, aspect: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw flips, rotations, scales, shifts and shears: (count, 2, 3), for pictures of aspect = width / height."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    angle = uniform(count) * math.pi
    scale = torch.exp(uniform(count) * math.log(1.6))
    flip = torch.where(uniform(count) < 0, -1.0, 1.0)
    shear = uniform(count) * 0.3
    shift = uniform(count, 2) * 0.4
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack(
        [
            torch.stack([cos * flip, -sin / aspect + shear, shift[:, 0]], dim=1),
            torch.stack([sin * aspect * flip, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )


def move_masks(masks: Tensor, matrices: Tensor) -> Tensor:
    """Return masks (N, H, W) moved by affine maps (N, 2, 3), still 0 or 1."""
    count, height, width = masks.shape
    grid = F.affine_grid(matrices.to(masks), [count, 1, height, width], align_corners=False)
    moved = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    return (moved > 0.5).float()
