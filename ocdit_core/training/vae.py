"""Stage 1: the mask VAE (paper A.2)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.models.checkpoint import write_checkpoint
from ocdit_core.models.mask_vae import MaskVAE
from ocdit_core.training.metrics import iou
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.stage import Batch


class VAEStage:
    """ELBO on the masks of the scenes."""

    def __init__(self, settings: TrainSettings):
        self.settings = settings.vae_loss
        self.model = MaskVAE(settings.model.vae, settings.model.sigma_data)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative ELBO."""
        masks = _masks(batch)
        if self.settings.augment:
            masks = augment_masks(masks)
        reconstruction, kl = self.model.elbo_terms(masks)
        return reconstruction + self.settings.beta * kl, {"reconstruction": reconstruction, "kl": kl}

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: list[Batch]) -> dict[str, float]:
        """Return the mean IoU of the reconstructions."""
        assert isinstance(model, MaskVAE)
        ious = []
        for batch in batches:
            masks = _masks(batch)
            truth = masks > 0.5
            ious.append(iou(model.decode(model.encode(masks)) > 0.5, truth)[truth.any(2).any(1)])
        return {"reconstruction_iou": torch.cat(ious).mean().item()}

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path, batches: list[Batch]) -> None:
        """Measure the latents' mean and deviation, store them in the model, write it."""
        assert isinstance(model, MaskVAE)
        latents = torch.cat([model.encoder(_masks(batch)[:, None])[0] for batch in batches])
        # One pair of numbers for all channels would leave the quiet ones below sigma_data.
        mean = latents.mean((0, 2, 3))
        std = latents.std((0, 2, 3)).clamp(min=1e-3)
        model.latent_mean.copy_(mean[:, None, None])
        model.latent_std.copy_(std[:, None, None])
        write_checkpoint(folder, model.config, model.state_dict())


def _masks(batch: Batch) -> Tensor:
    """All masks of a batch that show something: (N, H, W) float."""
    masks = rearrange(batch["masks"], "g s o h w -> (g s o) h w").float()
    shown = masks[masks.any(2).any(1)]
    return shown if len(shown) else masks[:1]


def augment_masks(masks: Tensor) -> Tensor:
    """Return masks flipped, rotated, scaled, shifted and sheared at random: (N, H, W) -> (N, H, W)."""
    count, height, width = masks.shape
    angle = (torch.rand(count) * 2 - 1) * math.pi
    scale = torch.exp((torch.rand(count) * 2 - 1) * math.log(1.6))
    flip = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    shear = (torch.rand(count) * 2 - 1) * 0.3
    shift = (torch.rand(count, 2) * 2 - 1) * 0.4
    cos, sin, aspect = angle.cos() * scale, angle.sin() * scale, width / height
    rows = torch.stack(
        [
            torch.stack([cos * flip, -sin / aspect + shear, shift[:, 0]], dim=1),
            torch.stack([sin * aspect * flip, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    ).to(masks)
    grid = F.affine_grid(rows, [count, 1, height, width], align_corners=False)
    moved = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    return (moved > 0.5).float()
