"""Training of the denoiser (stages coarse and refine), with the matching prior and a backbone that is not frozen."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ocdit_core.diffusion.edm import denoising_loss, draw_sigma, loss_weight
from ocdit_core.diffusion.samplers import SamplerConfig, sample
from ocdit_core.errors import ConfigError
from ocdit_core.masks import mask_iou
from ocdit_core.models.denoiser import Conditioning, Denoised
from ocdit_core.models.embeddings import random_positions
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.matching_prior import SUBCELL, PriorMaps
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TemplateFeatures, occupancy
from ocdit_core.training.data import Batch, SampleRandom, step_generator
from ocdit_core.training.export import load_vae, start_from
from ocdit_core.training.prompts import PROMPTED, PROMPTED_ALONE, draw_prompt_maps
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.validation import MaskResult, mask_results, mask_sheets

_POSTERIOR_MEAN = SamplerConfig(steps=0)  # validation takes one evaluation
_PROJECTION_WEIGHT, _TOKEN_WEIGHT = 0.5, 0.03  # losses of denoiser.representation
_COMPETITION_WEIGHT, _DRAFT_WEIGHT, _PRESENCE_WEIGHT = 0.1, 0.3, 0.2  # losses of the matching prior
_CACHE_BYTES = 3 << 30  # features of templates, in each process


class DiffusionStage:
    """The loss of eq. (6) on the latents of the masks, and the matching prior's own losses."""

    def __init__(self, settings: TrainSettings):
        self.settings, self.seed = settings.diffusion_loss, settings.loop.seed
        self.model = OCDiT(settings.model)
        if settings.init is not None:
            start_from(self.model, settings.init)
        if settings.vae is not None:
            load_vae(self.model, Path(settings.vae))
        elif settings.init is None:
            raise ConfigError(f"vae: the stage {settings.stage} needs the exported folder of a VAE run, or init")
        self.model.vae.requires_grad_(False)
        if self.model.prompts is not None and self.settings.prompts_only:
            self.model.requires_grad_(False)
            self.model.prompts.requires_grad_(True)
        self.cache = FeatureCache(_CACHE_BYTES) if settings.model.backbone.frozen else None

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch over a random number of its objects, and values to log; see `Stage.loss`."""
        random = SampleRandom(self.seed, batch["number"], batch["images"].device)
        batch = choose_targets(batch, random, step_generator(self.seed, step), self.settings.min_targets)
        masks = rearrange(batch["masks"], "g s o h w -> (g s) o h w").float()
        present = rearrange(batch["present"], "g s o -> (g s) o")
        image, templates = self.encode(batch)
        with torch.no_grad():
            target = self.model.encode_masks(masks)[:, None].float()
        if step < self.settings.prior_only_steps and self.model.prior is not None:
            maps = self.model.prior(image.descriptors, templates.descriptors)
            loss = prior_loss(maps, masks, target[:, 0], present)
            return loss, {"prior": loss.detach()}

        targets = self.model.encode_targets(templates, *self._positions(batch, random))
        conditioning = self.model.condition(image, targets, self._prompts(masks, random))
        total, parts = masks.new_zeros(()), {}
        if conditioning.prior is not None:
            total = prior_loss(conditioning.prior, masks, target[:, 0], present)
            parts["prior"] = total.detach()

        scenes, dropped = batch["images"].shape[1], self.settings.drop_templates
        if dropped:
            kept = random.each(lambda g: torch.rand(scenes, generator=g) >= dropped).flatten()
            conditioning = conditioning.where(kept, self.model.unconditional(image, targets))
        # One noise level for all objects of a sample.
        sigma = random.each(lambda g: draw_sigma((scenes, 1), self.settings.high_noise_share, g)).flatten(0, 1)
        level = sigma[:, :, None, None, None, None]
        noisy = target + level * random.normal(scenes, 1, *target.shape[2:]).flatten(0, 1)
        clean, presence = self.presence(batch, masks), None
        if clean is not None:
            noise = random.normal(scenes, 1, *clean.shape[1:]).flatten(0, 1)
            presence = clean[:, None] + sigma[:, :, None, None] * noise
        found = self.model.denoiser(noisy, sigma, conditioning, presence)
        for name, factor, loss in self._representation_losses(found, clean, sigma, image, masks):
            parts[name] = loss.detach()
            total = total + factor * loss
        denoised = found.latents.float()
        uncertainty = self.model.denoiser.uncertainty(sigma)[:, :, None, None, None, None]
        loss = denoising_loss(denoised, target, loss_weight(level), uncertainty).mean()
        parts["diffusion"], parts["sigma"] = loss.detach(), sigma
        parts["error"] = (loss_weight(level) * (denoised.detach() - target) ** 2).mean((2, 3, 4, 5))
        return total + loss, parts

    def _prompts(self, masks: Tensor, random: SampleRandom) -> Tensor | None:
        """Return random prompt maps for masks (B, O, H, W); None for a model without prompts."""
        if self.model.prompts is None:
            return None
        seeds = random.each(lambda g: torch.randint(2**31, (), generator=g))
        share = PROMPTED_ALONE if self.settings.prompts_only else PROMPTED
        return draw_prompt_maps(masks, seeds.tolist(), share)

    @torch.no_grad()
    def presence(self, batch: Batch, masks: Tensor) -> Tensor | None:
        """Return the clean presence tokens (B, O, C): standardised global features, zero for an absent target."""
        token = self.model.denoiser.presence
        if token is None:
            return None
        images = rearrange(batch["images"], "g s c h w -> (g s) c h w").float() / 255
        features, there = self.model.target_features(images, masks), masks.flatten(2).any(2)
        if self.model.training:
            token.update(features[there])
        return token.standardised(features) * there[..., None]

    def _representation_losses(
        self, found: Denoised, clean: Tensor | None, sigma: Tensor, image: ImageFeatures, masks: Tensor
    ) -> list[tuple[str, float, Tensor]]:
        """Return name, weight and loss of the parts of models/representation.py that the model has."""
        losses = []
        if self.model.denoiser.projection is not None and found.middle is not None:
            loss = self.model.denoiser.projection.loss(found.middle, image.features, occupancy(masks, DOWNSAMPLING))
            losses.append(("projection", _PROJECTION_WEIGHT, loss))
        if found.presence is not None and clean is not None:
            error = (found.presence.float() - clean[:, None]) ** 2
            losses.append(("presence", _TOKEN_WEIGHT, (loss_weight(sigma)[:, :, None, None] * error).mean()))
        return losses

    def _positions(self, batch: Batch, random: SampleRandom) -> tuple[Tensor, Tensor]:
        """Return indices of the learned positions of each sample's objects (B, O) and templates (B, V)."""
        (scenes, objects), views = batch["masks"].shape[1:3], batch["templates"].shape[2]
        config = self.model.config.denoiser
        return (
            random.each(lambda g: random_positions(scenes, objects, config.max_objects, g)).flatten(0, 1),
            random.each(lambda g: random_positions(scenes, views, config.max_views, g)).flatten(0, 1),
        )

    def encode(self, batch: Batch) -> tuple[ImageFeatures, TemplateFeatures]:
        """Return the features of all images of a batch, and of each image's templates, computed once per episode."""
        scenes = batch["images"].shape[1]
        images = rearrange(batch["images"], "g s c h w -> (g s) c h w").float() / 255
        image, templates = self.model.encode_image(images), self._encode_templates(batch)
        return image, templates.map(lambda part: part.repeat_interleave(scenes, 0))

    def _encode_templates(self, batch: Batch) -> TemplateFeatures:
        model, views, masks = self.model, batch["templates"], batch["template_masks"].float() / 255
        if self.cache is None:
            return model.encode_templates(views.float() / 255, masks)
        found = self.cache.features(views.flatten(0, 2), model.backbone.with_global_feature)
        features, global_features = (tensor.unflatten(0, views.shape[:3]) for tensor in found)
        prior = model.prior
        return TemplateFeatures(
            features=features,
            descriptors=() if prior is None else prior.describe_templates(views.float() / 255, masks, features),
            global_features=global_features if model.denoiser.presence is not None else None,
        )

    @torch.no_grad()
    def _predict(self, batch: Batch) -> tuple[Tensor, Conditioning]:
        """Return the probabilities (B, O, H, W) of the posterior mean, and the conditioning."""
        image, templates = self.encode(batch)
        conditioning = self.model.condition(image, self.model.encode_targets(templates))
        # Fixed noise: validations differ in the weights alone.
        generator = torch.Generator().manual_seed(0)
        groups, scenes, objects = batch["masks"].shape[:3]
        denoiser = self.model.denoiser
        noise = denoiser.start((groups * scenes, 1, objects), conditioning.grid, generator).to(image.features.device)
        found = sample(lambda x, sigma: denoiser.denoise(x, sigma, conditioning), noise, _POSTERIOR_MEAN)
        latents, _ = denoiser.split(found, conditioning.grid)
        return self.model.decode_masks(latents)[:, 0].float(), conditioning

    @torch.no_grad()
    def validate(self, batch: Batch) -> list[MaskResult]:
        """Return the result for each target in each image: posterior mean, threshold 0.5."""
        probabilities, conditioning = self._predict(batch)
        masks = rearrange(batch["masks"], "g s o h w -> (g s) o h w") > 0
        prior_iou = None
        if conditioning.prior is not None:
            squares = occupancy(masks.float(), SUBCELL) > 0.5
            prior_iou = mask_iou(conditioning.prior.logits > 0, squares).flatten()
        present = batch["present"].flatten()
        return mask_results(probabilities.flatten(0, 1), masks.flatten(0, 1), present, prior_iou)

    @torch.no_grad()
    def draw(self, batch: Batch, count: int) -> dict[str, np.ndarray]:
        """Draw masks and templates for the first images of a batch; see `Stage.draw`."""
        scenes = batch["images"].shape[1]
        batch = {name: value[: -(-count // scenes)] for name, value in batch.items()}
        templates = rearrange(batch["templates"][:, :, 0], "g o c h w -> g o h w c").repeat_interleave(scenes, 0)
        return mask_sheets(batch, self._predict(batch)[0], templates, count)

    def finish(self, batches: list[Batch]) -> None:
        """Complete the model for export: nothing to do."""


def choose_targets(batch: Batch, random: SampleRandom, shared: torch.Generator, least: int) -> Batch:
    """Return the batch with a random subset of at least `least` of its objects.

    Its size is the same for all episodes of a step, its objects are not.
    """
    objects = batch["masks"].shape[2]
    count = int(torch.randint(min(least, objects), objects + 1, (), generator=shared))
    chosen = random.each(lambda g: torch.randperm(objects, generator=g)[:count])
    group = torch.arange(len(chosen), device=chosen.device)[:, None]
    picked = {name: batch[name][group, chosen] for name in ("templates", "template_masks")}
    for name in ("masks", "present"):
        picked[name] = batch[name].transpose(1, 2)[group, chosen].transpose(1, 2)
    return {**batch, **picked}


def prior_loss(maps: PriorMaps, masks: Tensor, latents: Tensor, present: Tensor) -> Tensor:
    """Return the matching prior's own loss.

    Binary cross-entropy of the read-out against the fraction of each cell that a mask covers; for the metric, a
    cross-entropy over the objects that compete for a cell; the squared error of the drafted latents; the cross-entropy
    of the objects' presence.

    Args:
        maps: matching maps of B images and O objects.
        masks: (B, O, H, W) in [0, 1].
        latents: (B, O, z, h, w), standardised latents of the masks.
        present: (B, O) bool.
    """
    read_out = F.binary_cross_entropy_with_logits(maps.logits.float(), occupancy(masks, SUBCELL))
    covered = occupancy(masks, DOWNSAMPLING)
    background = (1 - covered.sum(1, keepdim=True)).clamp(min=0)
    competition = -(maps.log_assignment * torch.cat([covered, background], dim=1)[:, None]).sum(2).mean()
    loss = read_out + _COMPETITION_WEIGHT * competition
    # Over sigma_data squared, as the denoiser's loss at high noise levels.
    draft = (maps.draft.float() - latents).square().mean() / 0.25
    presence = F.binary_cross_entropy_with_logits(maps.presence.float(), present.float())
    return loss + _DRAFT_WEIGHT * draft + _PRESENCE_WEIGHT * presence


class FeatureCache:
    """LRU cache of a frozen backbone's features, by the pixels of the templates.

    Args:
        limit: memory for features in bytes.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._features: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()
        self.bytes = self.hits = self.misses = 0

    @torch.no_grad()
    def features(self, views: Tensor, backbone: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return the backbone's outputs, each (N, ...), for (N, 3, h, w) uint8 templates.

        Args:
            views: templates; on a GPU, hashing them waits for the device.
            backbone: maps (M, 3, h, w) in [0, 1] to tensors (M, ...).
        """
        keys = [hashlib.blake2b(view.tobytes(), digest_size=16).digest() for view in views.cpu().numpy()]
        found = {key: self._features[key] for key in keys if key in self._features}
        missing = {key: number for number, key in enumerate(keys) if key not in found}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            outputs = backbone(views[list(missing.values())].float() / 255)
            # A slice would keep the whole batch in memory.
            found |= {key: tuple(output[i].clone() for output in outputs) for i, key in enumerate(missing)}
        for key, features in found.items():
            self.bytes += 0 if key in self._features else sum(part.nbytes for part in features)
            self._features[key] = features
            self._features.move_to_end(key)
        while self.bytes > self._limit and len(self._features) > 1:
            self.bytes -= sum(part.nbytes for part in self._features.popitem(last=False)[1])
        return tuple(torch.stack(parts) for parts in zip(*(found[key] for key in keys), strict=True))
