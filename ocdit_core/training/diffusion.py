"""Stage 2: the denoiser, with the matching prior and a backbone of its own where the model has them."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.config import build, read_yaml
from ocdit_core.diffusion.loss import denoising_loss
from ocdit_core.diffusion.noise import draw_sigma
from ocdit_core.diffusion.samplers import posterior_mean
from ocdit_core.errors import ConfigError
from ocdit_core.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, check_state, read_weights
from ocdit_core.models.colour_statistics import SUBCELL
from ocdit_core.models.mask_vae import DOWNSAMPLING, MaskVAEConfig
from ocdit_core.models.matching_prior import PriorMaps
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TemplateFeatures, occupancy
from ocdit_core.training.metrics import iou
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.stage import Batch


class DiffusionStage:
    """Eq. (6) on the latents of the masks, and the matching prior's own losses."""

    def __init__(self, settings: TrainSettings):
        self.settings = settings.diffusion_loss
        self.model = OCDiT(settings.model)
        if settings.init is not None:
            state = OCDiT.from_pretrained(settings.init).state_dict()
            check_state(self.model.state_dict(), state, settings.init)
            self.model.load_state_dict(state)
        if settings.vae is not None:
            load_vae(self.model, Path(settings.vae))
        elif settings.init is None:
            raise ConfigError("vae: the stage diffusion needs the exported folder of a VAE run, or init")
        self.model.vae.requires_grad_(False)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, over a random number of its target objects."""
        chosen = self._choose_targets(batch["masks"].shape[2])
        masks = rearrange(batch["masks"][:, :, chosen], "g s o h w -> (g s) o h w").float()
        image, templates = encode(self.model, batch, chosen)
        parts: dict[str, Tensor] = {}
        total = masks.new_zeros(())

        if step < self.settings.prior_only_steps and self.model.prior is not None:
            parts["prior"] = prior_loss(self.model.prior(image.descriptors, templates.descriptors), masks)
            return self.settings.prior_weight * parts["prior"], parts

        objects, capacity = masks.shape[1], self.model.config.denoiser.max_objects
        view_capacity = self.model.config.denoiser.max_views
        conditioning = self.model.condition(
            image,
            templates,
            random_interval(masks.shape[0], objects, capacity).to(masks.device),
            random_interval(masks.shape[0], templates.features.shape[2], view_capacity).to(masks.device),
        )
        if conditioning.prior is not None:
            parts["prior"] = prior_loss(conditioning.prior, masks)
            total = total + self.settings.prior_weight * parts["prior"]

        with torch.no_grad():
            target = self.model.encode_masks(masks)[:, None].float()
        sigma = draw_sigma(self.settings.noise, (masks.shape[0], self.settings.noise_draws)).to(masks.device)
        level = sigma[:, :, None, None, None, None]
        denoised = self.model.denoiser(target + level * torch.randn_like(target + level), sigma, conditioning)
        weight = self.model.denoiser.preconditioning.loss_weight(level)
        uncertainty = self.model.denoiser.uncertainty(sigma)[:, :, None, None, None, None]
        parts["diffusion"] = denoising_loss(denoised.float(), target, weight, uncertainty).mean()
        with torch.no_grad():
            error = (weight * (denoised - target) ** 2).mean((2, 3, 4, 5))
            for name, chosen_levels in (("high", sigma > 5), ("middle", (sigma > 0.2) & (sigma <= 5))):
                if chosen_levels.any():
                    parts[f"error_{name}_noise"] = error[chosen_levels].mean()
        return total + parts["diffusion"], parts

    def _choose_targets(self, objects: int) -> Tensor:
        least = min(self.settings.min_targets, objects)
        count = int(torch.randint(least, objects + 1, ()))
        return torch.randperm(objects)[:count]

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: list[Batch]) -> dict[str, float]:
        """Return the mean IoU on present targets and the share of absent ones with a mask; posterior mean, 0.5."""
        assert isinstance(model, OCDiT)
        generator = torch.Generator().manual_seed(0)
        ious, prior_ious, false_masks = [], [], []
        for batch in batches:
            image, templates = encode(model, batch)
            conditioning = model.condition(image, templates)
            masks = rearrange(batch["masks"], "g s o h w -> (g s) o h w") > 0
            present = rearrange(batch["present"], "g s o -> (g s) o")
            shape = (masks.shape[0], 1, masks.shape[1], model.config.vae.latent_channels, *conditioning.grid)
            noise = torch.randn(shape, generator=generator).to(image.features.device)

            def denoise(x: Tensor, sigma: Tensor, conditioning: object = conditioning) -> Tensor:
                return model.denoiser(x, sigma.expand(x.shape[0], 1), conditioning)

            found = model.decode_masks(posterior_mean(denoise, noise, 80.0))[:, 0] > 0.5
            ious.append(iou(found, masks)[present])
            if conditioning.prior is not None:
                squares = occupancy(masks.float(), SUBCELL) > 0.5
                prior_ious.append(iou(conditioning.prior.logits > 0, squares)[present])
            # Specks say nothing: a mask counts from a quarter of a latent cell on.
            false_masks.append((found.sum((2, 3)) > 64).float()[~present])
        figures = {"iou": ious, "prior_iou": prior_ious, "false_masks": false_masks}
        return {name: torch.cat(values).mean().item() for name, values in figures.items() if values}

    def export(self, model: nn.Module, folder: Path, batches: list[Batch]) -> None:
        """Write the model as Segmenter loads it."""
        assert isinstance(model, OCDiT)
        model.save_pretrained(folder, half=True)


def encode(model: OCDiT, batch: Batch, objects: Tensor | None = None) -> tuple[ImageFeatures, TemplateFeatures]:
    """Return the features of all scenes of a batch, and of each scene's templates; those are computed once a group."""
    scenes = batch["images"].shape[1]
    templates, masks = batch["templates"], batch["template_masks"]
    if objects is not None:
        templates, masks = templates[:, objects], masks[:, objects]
    image = model.encode_image(rearrange(batch["images"], "g s c h w -> (g s) c h w").float() / 255)
    encoded = model.encode_templates(templates.float() / 255, masks.float() / 255)
    return image, TemplateFeatures(
        features=encoded.features.repeat_interleave(scenes, 0),
        descriptors=tuple(d.repeat_interleave(scenes, 0) for d in encoded.descriptors),
    )


def random_interval(batch: int, count: int, capacity: int) -> Tensor:
    """Return positions (B, count): a random contiguous interval of the capacity for each sample (paper 4.3, iv)."""
    start = torch.randint(0, max(capacity - count, 0) + 1, (batch, 1))
    return (start + torch.arange(count)).clamp(max=capacity - 1)


def prior_loss(maps: PriorMaps, masks: Tensor) -> Tensor:
    """Return the matching prior's own loss against the share of each cell that a mask covers.

    Binary cross-entropy of the read-out, and for the metric a cross-entropy over the objects that compete for a cell.
    """
    read_out = F.binary_cross_entropy_with_logits(maps.logits.float(), occupancy(masks, SUBCELL))
    covered = occupancy(masks, DOWNSAMPLING)
    background = (1 - covered.sum(1, keepdim=True)).clamp(min=0)
    competition = -(maps.shares * torch.cat([covered, background], dim=1)[:, None]).sum(2).mean()
    return read_out + 0.1 * competition


def load_vae(model: OCDiT, folder: Path) -> None:
    """Copy the weights of an exported VAE into `model`; raises WeightsError or ConfigError where they do not fit."""
    config = build(MaskVAEConfig, read_yaml(folder / CONFIG_FILE))
    if config != model.config.vae:
        raise ConfigError(f"vae: {folder} holds another VAE than model.vae describes")
    state = read_weights(folder / WEIGHTS_FILE)
    check_state(model.vae.state_dict(), state, str(folder))
    model.vae.load_state_dict(state)
