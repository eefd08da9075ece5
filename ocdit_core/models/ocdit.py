"""The OC-DiT model: backbone, mask VAE, denoiser and optional matching prior."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.config import build, read_yaml
from ocdit_core.diffusion import edm
from ocdit_core.diffusion.samplers import Denoise, SamplerConfig, guide, sample
from ocdit_core.errors import ConfigError, WeightsError
from ocdit_core.models.backbones import BackboneConfig, ViTBackbone, build_backbone
from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE, check_state, read_weights, write_checkpoint
from ocdit_core.models.denoiser import Conditioning, Denoiser, DenoiserConfig, TargetTokens
from ocdit_core.models.embeddings import random_positions
from ocdit_core.models.mask_vae import DOWNSAMPLING, MaskVAE, MaskVAEConfig
from ocdit_core.models.matching_prior import (
    MatchingPrior,
    MatchingPriorConfig,
    PriorMaps,
    relevant_cells,
    without_empty_cells,
)
from ocdit_core.models.prompt_embedding import PromptEmbedding
from ocdit_core.models.published import (
    dinov2_architecture,
    find_checkpoint,
    find_dinov2,
    load_dinov2,
    load_published,
    published_config,
    read_checkpoint,
)
from ocdit_core.models.representation import target_crops


@dataclass(frozen=True, kw_only=True)
class OCDiTConfig:
    """Model configuration; the defaults are the published architecture.

    Attributes:
        image_size: (height, width) of training images in pixels, multiples of 16.
        template_size: (height, width) of templates in pixels, multiples of 16.
        grid: (height, width) of the learned positions of image cells; default: image_size / 16, the cells themselves.
        template_grid: the same for templates.
        backbone: backbone configuration.
        vae: mask VAE configuration.
        denoiser: denoiser configuration.
        matching_prior: matching prior configuration; None is the published architecture.
        prompts: queries know the location prompts (see `PromptEmbedding`); not part of the paper, needs the prior.
    """

    image_size: tuple[int, int] = (480, 640)
    template_size: tuple[int, int] = (128, 128)
    grid: tuple[int, int] | None = None
    template_grid: tuple[int, int] | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    vae: MaskVAEConfig = field(default_factory=MaskVAEConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    matching_prior: MatchingPriorConfig | None = None
    prompts: bool = False

    def __post_init__(self) -> None:
        for name, size in (("image_size", self.image_size), ("template_size", self.template_size)):
            if any(side <= 0 or side % DOWNSAMPLING for side in size):
                raise ConfigError(f"{name}: {list(size)} must be positive multiples of {DOWNSAMPLING}")
        for name, grid in (("grid", self.grid), ("template_grid", self.template_grid)):
            if grid is not None and min(grid) < 1:
                raise ConfigError(f"{name}: {list(grid)} must be positive")
        if self.prompts and self.matching_prior is None:
            raise ConfigError("prompts: true needs a matching_prior, whose read-out the prompts are seen beside")


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Features of images, shared by all targets.

    Attributes:
        features: (B, C, h, w) backbone features.
        descriptors: (B, ...) descriptors of the matching prior; empty without it.
    """

    features: Tensor
    descriptors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TemplateFeatures:
    """Features of templates, shared by all images.

    Attributes:
        features: (B, O, V, C, t, t) backbone features.
        descriptors: (B, O, ...) descriptors of the matching prior; empty without it.
        global_features: (B, O, V, C) global features of the backbone; None without presence tokens.
    """

    features: Tensor
    descriptors: tuple[Tensor, ...] = ()
    global_features: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> TemplateFeatures:
        """Return the features with each tensor changed."""
        return TemplateFeatures(
            features=change(self.features),
            descriptors=tuple(change(part) for part in self.descriptors),
            global_features=None if self.global_features is None else change(self.global_features),
        )


@dataclass(frozen=True, kw_only=True)
class TargetSet:
    """B sets of O target objects with their learned positions, shared by all images.

    Attributes:
        tokens: template tokens of the denoiser.
        templates: features of the templates.
    """

    tokens: TargetTokens
    templates: TemplateFeatures

    def select(self, chosen: Tensor) -> TargetSet:
        """Return the sets with the given indices, (N,) int64 on the CPU; an index may occur repeatedly."""
        sets, objects = self.tokens.object_indices.shape
        if torch.equal(chosen, torch.arange(sets)):
            return self
        chosen = chosen.to(self.templates.features.device)
        rows = (chosen[:, None] * objects + torch.arange(objects, device=chosen.device)).flatten()
        return TargetSet(
            tokens=TargetTokens(
                keys_values=tuple((keys[rows], values[rows]) for keys, values in self.tokens.keys_values),
                object_indices=self.tokens.object_indices[chosen],
            ),
            templates=self.templates.map(lambda part: part[chosen]),
        )


class OCDiT(nn.Module):
    """The model: generates masks of target objects from an image and templates of the objects.

    Args:
        config: configuration; None: the published one, with the sizes below.
        embed_dim: channels of the tokens.
        depth: number of blocks.
        num_heads: attention heads.
        sizes: other fields of `OCDiTConfig`, such as image_size and template_size.
    """

    def __init__(
        self,
        config: OCDiTConfig | None = None,
        *,
        embed_dim: int = 1024,
        depth: int = 12,
        num_heads: int = 16,
        **sizes: Any,
    ):
        super().__init__()
        if config is None:
            config = OCDiTConfig(denoiser=DenoiserConfig(width=embed_dim, depth=depth, heads=num_heads), **sizes)
        self.backbone = build_backbone(config.backbone)
        if isinstance(self.backbone, ViTBackbone) and config.backbone.architecture is None:
            # A saved model is rebuilt without a hub.
            backbone = dataclasses.replace(config.backbone, architecture=self.backbone.architecture())
            config = dataclasses.replace(config, backbone=backbone)
        elif config.backbone.kind != "vit":
            # Saved models carry their weights.
            config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, name=""))
        self.config = config
        if config.backbone.frozen:
            self.backbone.requires_grad_(False)
        self.vae = MaskVAE(config.vae)
        self.denoiser = Denoiser(
            config.denoiser,
            features=self.backbone.channels,
            latents=config.vae.latent_channels,
            grid=config.grid or _grid(config.image_size),
            template_grid=config.template_grid or _grid(config.template_size),
        )
        self.prior = (
            MatchingPrior(
                config.matching_prior, self.backbone.channels, config.vae.latent_channels, config.denoiser.width
            )
            if config.matching_prior
            else None
        )
        self.prompts = PromptEmbedding(config.denoiser.width) if config.prompts else None

    def train(self, mode: bool = True) -> OCDiT:
        """Set the training mode; parts without trainable weights stay in evaluation mode."""
        super().train(mode)
        for part in self.children():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Return the features of images (B, 3, H, W) in [0, 1]."""
        features = self.backbone(images)
        if self.prior is None:
            return ImageFeatures(features=features)
        return ImageFeatures(features=features, descriptors=self.prior.describe_image(images, features))

    def encode_templates(self, templates: Tensor, masks: Tensor) -> TemplateFeatures:
        """Return the features of templates.

        Args:
            templates: (B, O, V, 3, h, w) in [0, 1], on black.
            masks: (B, O, V, h, w) object masks in [0, 1], for the matching prior.
        """
        features, global_features = (
            found.unflatten(0, templates.shape[:3])
            for found in self.backbone.with_global_feature(templates.flatten(0, 2))
        )
        return TemplateFeatures(
            features=features,
            descriptors=self.prior.describe_templates(templates, masks, features) if self.prior is not None else (),
            global_features=global_features if self.denoiser.presence is not None else None,
        )

    @torch.no_grad()
    def target_features(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the backbone's global feature of each target as its image shows it.

        Args:
            images: (B, 3, H, W) in [0, 1].
            masks: (B, O, H, W) in [0, 1].

        Returns:
            (B, O, C), not standardised.
        """
        crops = target_crops(images, masks, self.config.template_size)
        return self.backbone.with_global_feature(crops.flatten(0, 1))[1].unflatten(0, masks.shape[:2])

    def encode_targets(
        self, templates: TemplateFeatures, object_indices: Tensor | None = None, view_indices: Tensor | None = None
    ) -> TargetSet:
        """Return target objects with their learned positions.

        Args:
            templates: features of B sets of O objects with V views.
            object_indices: (B, O) learned positions of the objects; default: the first ones.
            view_indices: (B, V) learned positions of the views; default: the first ones.
        """
        batch, objects, views = templates.features.shape[:3]
        device = templates.features.device
        if object_indices is None:
            object_indices = torch.arange(objects, device=device).expand(batch, -1)
        if view_indices is None:
            view_indices = torch.arange(views, device=device).expand(batch, -1)
        tokens = self.denoiser.encode_targets(templates.features, object_indices, view_indices)
        return TargetSet(tokens=tokens, templates=templates)

    def condition(self, image: ImageFeatures, targets: TargetSet, prompts: Tensor | None = None) -> Conditioning:
        """Return what the denoiser is conditioned on.

        Args:
            image: features of B W crops, W for each set of targets.
            targets: B sets of targets.
            prompts: see `match`.
        """
        return self.denoiser.condition(image.features, targets.tokens, *self.match(image, targets, prompts))

    def unconditional(self, image: ImageFeatures, targets: TargetSet) -> Conditioning:
        """Return what the denoiser is conditioned on without templates: their features are 0, and there is no prior."""
        nothing = dataclasses.replace(targets.templates, features=torch.zeros_like(targets.templates.features))
        tokens = self.encode_targets(nothing, targets.tokens.object_indices).tokens
        return self.denoiser.condition(image.features, tokens)

    def guided(
        self,
        conditioned_on: Callable[[Conditioning], Denoise],
        image: ImageFeatures,
        targets: TargetSet,
        conditioning: Conditioning,
        sampler: SamplerConfig,
    ) -> Denoise:
        """Return D_theta with the guidance of the sampler's configuration, if there is any.

        Args:
            conditioned_on: returns D_theta for a conditioning.
            image: features of B W crops.
            targets: B sets of targets; a single target has no look-alike to be led away from.
            conditioning: conditioning on both.
            sampler: sampler and guidance.
        """
        objects = targets.tokens.object_indices.shape[1]
        if not sampler.guided or (sampler.negative == "look_alike" and objects == 1):
            return conditioned_on(conditioning)
        if sampler.negative == "nothing":
            negative = self.unconditional(image, targets)
        else:
            looks = F.normalize(targets.templates.features.mean((2, 4, 5)).float(), dim=-1)
            itself = torch.eye(objects, dtype=torch.bool, device=looks.device)
            negative = conditioning.exchanged((looks @ looks.mT).masked_fill(itself, -torch.inf).argmax(2))
        found = conditioned_on(conditioning), conditioned_on(negative)
        return guide(*found, sampler, self.denoiser.token_channels)

    def match(
        self, image: ImageFeatures, targets: TargetSet, prompts: Tensor | None = None
    ) -> tuple[Tensor | None, PriorMaps | None]:
        """Return the matching prior's part of the query tokens, (B W, O, h w, D), and its maps; None without it.

        Args:
            image: features of B W crops, W for each set of targets.
            targets: B sets of targets.
            prompts: (B W, O, KINDS, 4h, 4w) prompt maps, whose embedding is added; None: no prompts.
        """
        if self.prior is None:
            return None, None
        descriptors, crops = targets.templates.descriptors, len(image.features) // len(targets.templates.features)
        if crops > 1:
            descriptors = tuple(part.repeat_interleave(crops, dim=0) for part in descriptors)
        maps = self.prior(image.descriptors, descriptors)
        addition = self.prior.query_part(maps)
        if prompts is not None and self.prompts is not None:
            addition = addition + self.prompts(prompts, maps.logits)
        return addition, maps

    def encode_masks(self, masks: Tensor) -> Tensor:
        """Encode masks (..., H, W) in [0, 1] -> standardised latents (..., z, H/16, W/16)."""
        return self.vae.encode(masks.flatten(0, -3)).unflatten(0, masks.shape[:-2])

    def decode_masks(self, latents: Tensor) -> Tensor:
        """Decode standardised latents (..., z, h, w) -> probabilities (..., 16 h, 16 w)."""
        return self.vae.decode(latents.flatten(0, -4)).unflatten(0, latents.shape[:-3])

    def forward_loss(
        self, images: Tensor, templates: Tensor, masks: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the training loss of eq. (6), with one noise level and random learned positions for each sample.

        `training/train.py` adds what a run needs: data, schedule, averaged weights, the matching prior's losses.

        Args:
            images: (B, 3, H, W), normalised by mean 0.5 and standard deviation 0.5.
            templates: (B, O, V, 3, h, w) templates on black, normalised the same way.
            masks: (B, O, H, W) ground truth in [0, 1].
            generator: random generator on the CPU; default: the global one.

        Returns:
            (B,) each: loss; loss_masks, the squared error of the denoised latents; logvar, u(sigma); and sigma.
        """
        (batch, objects), views, config = masks.shape[:2], templates.shape[2], self.config.denoiser
        image, features = self._features(images, templates)
        positions = (
            random_positions(batch, count, capacity, generator).to(images.device)
            for count, capacity in ((objects, config.max_objects), (views, config.max_views))
        )
        conditioning = self.condition(image, self.encode_targets(features, *positions))
        with torch.no_grad():
            clean = self.encode_masks(masks)[:, None]
        sigma = edm.draw_sigma((batch, 1), generator=generator).to(clean)
        level = sigma[:, :, None, None, None, None]
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        denoised = self.denoiser(clean + level * noise, sigma, conditioning).latents
        logvar = self.denoiser.uncertainty(sigma)
        loss = edm.denoising_loss(denoised, clean, edm.loss_weight(level), logvar[:, :, None, None, None, None])
        return {
            "loss": loss.flatten(1).mean(1),
            "loss_masks": (denoised - clean).square().flatten(1).mean(1),
            "logvar": logvar[:, 0],
            "sigma": sigma[:, 0],
        }

    @torch.no_grad()
    def generate_segmentations(
        self,
        images: Tensor,
        templates: Tensor,
        ensemble_size: int = 1,
        *,
        sampler: SamplerConfig = SamplerConfig(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> Tensor:
        """Return the mask probabilities of the objects, averaged over the ensemble: (B, O, H, W).

        This is what the coarse stage does with one crop. `Segmenter` adds more crops, the matching prior's own masks
        (`prior_weight`), proposals, refinement and instances.

        Args:
            images: (B, 3, H, W), normalised by mean 0.5 and standard deviation 0.5; H and W are multiples of 16.
            templates: (B, O, V, 3, h, w) templates on black, normalised the same way.
            ensemble_size: samples of each image, from different noise.
            sampler: sampler and noise schedule; default: the paper's.
            seed: random seed of the noise, which is the same for all images.
        """
        image, features = self._features(images, templates)
        if features.descriptors:
            features = dataclasses.replace(features, descriptors=without_empty_cells(features.descriptors))
        targets = self.encode_targets(features)
        matched = self.match(image, targets)
        latents, _ = self.sample_latents(image, targets, matched, sampler, ensemble=ensemble_size, seed=seed)
        return self.decode_masks(latents).mean(1)

    def sample_latents(
        self,
        image: ImageFeatures,
        targets: TargetSet,
        matched: tuple[Tensor | None, PriorMaps | None],
        sampler: SamplerConfig,
        *,
        ensemble: int = 1,
        crops: int = 1,
        seed: int = 0,
        all_cells: bool = False,
        denoise: Callable[[Tensor, float, Conditioning], Tensor] | None = None,
        trace: Callable[[float, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Generate the latents of masks, and presence tokens.

        Args:
            image: features of B W crops, W for each set of targets.
            targets: B sets of O objects.
            matched: result of `match`.
            sampler: sampler, noise schedule and guidance.
            ensemble: samples E of each crop, from different noise.
            crops: crops of the same image, which have different noise; W is a multiple of it.
            seed: random seed of the noise, which is the same for all images and all sets of targets.
            all_cells: compute also the cells that the matching prior rules out.
            denoise: D_theta at a noise level, in place of `Denoiser.denoise`.
            trace: called with the noise level and the denoised latents (B, W E, O, z, h, w) of each evaluation.

        Returns:
            (B, W E, O, z, h, w) latents, the E members of a crop in succession; (B, W E, O, C) presence tokens, if any.
        """
        sets, objects = targets.tokens.object_indices.shape
        windows, grid = image.features.shape[0] // sets, (image.features.shape[2], image.features.shape[3])
        conditioning = self.denoiser.condition(image.features, targets.tokens, *matched)
        if conditioning.prior is not None and leaves_out_cells(sampler) and not all_cells:
            cells, mask = (part.unflatten(0, (sets, windows)) for part in relevant_cells(conditioning.prior))
            conditioning = dataclasses.replace(conditioning, cells=cells, mask=mask)
        levels = functools.cache(self.denoiser.level)
        evaluated = denoise or (lambda x, sigma, given: self.denoiser.denoise(x, levels(sigma), given))

        def conditioned_on(given: Conditioning) -> Denoise:
            return lambda x, sigma: evaluated(x, sigma, given)

        evaluate = self.guided(conditioned_on, image, targets, conditioning, sampler)

        def traced(x: Tensor, sigma: float) -> Tensor:
            denoised = evaluate(x, sigma)
            if trace is not None:
                trace(sigma, self.denoiser.split(denoised, grid)[0])
            return denoised

        generator = torch.Generator().manual_seed(seed)
        noise = self.denoiser.start((crops * ensemble, objects), grid, generator).to(image.features.device)
        noise = noise.repeat(windows // crops, 1, 1).expand(sets, -1, -1, -1)
        return self.denoiser.split(sample(traced, noise, sampler, generator), grid)

    def _features(self, images: Tensor, templates: Tensor) -> tuple[ImageFeatures, TemplateFeatures]:
        """Return the features of normalised images and of normalised templates, whose masks are what is not black."""
        views = templates * 0.5 + 0.5
        return self.encode_image(images * 0.5 + 0.5), self.encode_templates(views, (views > 0).any(3).float())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> OCDiT:
        """Load a model from a folder with config.yaml and model.safetensors, float32 and in evaluation mode.

        A folder without config.yaml, but with one checkpoint in the published naming, is loaded by `from_published`.

        Raises:
            WeightsError: a file is missing or damaged, or the weights do not fit.
            ConfigError: the configuration is not valid.
        """
        folder = Path(folder)
        if folder.is_dir() and not (folder / CONFIG_FILE).exists() and (checkpoint := find_checkpoint(folder)):
            return cls.from_published(checkpoint)
        for path in (folder, folder / CONFIG_FILE):
            if not path.exists():
                raise WeightsError(f"{path}: missing; a model's folder has {CONFIG_FILE} and {WEIGHTS_FILE}")
        config = build(OCDiTConfig, read_yaml(folder / CONFIG_FILE))
        state = read_weights(folder / WEIGHTS_FILE)
        model = cls(config)
        check_state(model.state_dict(), state, str(folder / WEIGHTS_FILE))
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def from_published(
        cls,
        path: str | Path,
        *,
        image_size: tuple[int, int] = (480, 640),
        template_size: tuple[int, int] = (128, 128),
        heads: int | None = None,
        backbone: str | Path = BackboneConfig.name,
    ) -> OCDiT:
        """Load a checkpoint in the published naming (.pth, .ckpt, .safetensors), float32 and in evaluation mode.

        All other sizes are inferred from the tensors.

        Args:
            path: the checkpoint.
            image_size: (height, width) of the training images in pixels.
            template_size: (height, width) of the templates in pixels.
            heads: attention heads; None: the published 16, for the published width of 1024.
            backbone: backbone of a checkpoint that has none: hub id, folder, or a DINOv2 checkpoint.

        Raises:
            WeightsError: a file is missing or damaged, or sizes or weights do not fit; the first key is named.
        """
        state, source = read_checkpoint(Path(path)), str(path)
        vit = find_dinov2(state)
        if not vit and Path(backbone).is_file():
            source = str(backbone)
            vit = find_dinov2(read_checkpoint(Path(backbone)))
            if not vit:
                raise WeightsError(f"{backbone}: no DINOv2 in it")
        given = {"architecture": dinov2_architecture(vit, source)} if vit else {"name": str(backbone)}
        sizes = published_config(state, str(path), image_size=image_size, template_size=template_size, heads=heads)
        model = cls(build(OCDiTConfig, {**sizes, "backbone": given}))
        load_published(model, state, str(path))
        if vit and isinstance(model.backbone, ViTBackbone):
            load_dinov2(model.backbone.vit, vit, source)
        return model.eval()

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write config.yaml and model.safetensors to a folder, as float16 if `half`."""
        write_checkpoint(Path(folder), self.config, self.state_dict(), half=half)


def join_templates(parts: Sequence[TemplateFeatures], *, one_set: bool = True) -> TemplateFeatures:
    """Concatenate features of templates; all objects need the same number of views.

    Args:
        parts: features of one set each.
        one_set: join the objects to one set; False: batch the sets.
    """
    axis = int(one_set)
    global_features = [part.global_features for part in parts if part.global_features is not None]
    return TemplateFeatures(
        features=torch.cat([part.features for part in parts], axis),
        descriptors=tuple(torch.cat(same, axis) for same in zip(*(part.descriptors for part in parts), strict=True)),
        global_features=torch.cat(global_features, axis) if global_features else None,
    )


def leaves_out_cells(sampler: SamplerConfig) -> bool:
    """Return whether the denoiser may leave out the cells that the matching prior rules out.

    In several steps, noise would remain in them, and guidance leads away from what is not computed.
    """
    return sampler.steps == 0 and not sampler.guided


def _grid(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // DOWNSAMPLING, size[1] // DOWNSAMPLING


def occupancy(masks: Tensor, side: int) -> Tensor:
    """Return the fraction of each square of `side` pixels that a mask covers: (B, O, H, W) -> (B, O, H/s, W/s)."""
    return F.avg_pool2d(masks, side)
