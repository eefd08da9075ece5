"""OC-DiT, assembled: backbone, mask VAE and denoiser, loaded from and saved to a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.errors import ConfigError
from ocdit_core.models.backbones import BackboneConfig, ViTBackbone, build_backbone
from ocdit_core.models.checkpoint import read_checkpoint, write_checkpoint
from ocdit_core.models.colour_statistics import SUBCELL
from ocdit_core.models.denoiser import Conditioning, Denoiser, DenoiserConfig, TargetTokens
from ocdit_core.models.mask_vae import DOWNSAMPLING, MaskVAE, MaskVAEConfig
from ocdit_core.models.matching_prior import MatchingPrior, MatchingPriorConfig, PriorMaps
from ocdit_core.models.positions import inference_positions
from ocdit_core.models.representation import target_crops


@dataclass(frozen=True, kw_only=True)
class OCDiTConfig:
    """The whole model; the defaults are the published architecture.

    Attributes:
        image_size: (height, width) in pixels that the model is trained at, multiples of 16.
        template_size: (height, width) in pixels of a template, multiples of 16.
        sigma_data: standard deviation of the standardised latents.
        backbone: features of images and templates.
        vae: masks to latents and back.
        denoiser: the diffusion transformer.
        matching_prior: our option; None is the published architecture.
    """

    image_size: tuple[int, int] = (480, 640)
    template_size: tuple[int, int] = (128, 128)
    sigma_data: float = 0.5
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    vae: MaskVAEConfig = field(default_factory=MaskVAEConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    matching_prior: MatchingPriorConfig | None = None

    def __post_init__(self) -> None:
        for name, size in (("image_size", self.image_size), ("template_size", self.template_size)):
            if any(side <= 0 or side % DOWNSAMPLING for side in size):
                raise ConfigError(f"{name}: {list(size)} must be positive multiples of {DOWNSAMPLING}")


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What is computed once for an image.

    Attributes:
        features: (B, C, h, w) of the backbone.
        descriptors: of the matching prior; empty without it.
    """

    features: Tensor
    descriptors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TemplateFeatures:
    """What is computed once for a set of objects.

    Attributes:
        features: (B, O, V, C, t, t) of the backbone.
        descriptors: of the matching prior, each (B, O, ...); empty without it.
        summaries: (B, O, V, C), the backbone's class tokens; None where the denoiser has no presence tokens.
    """

    features: Tensor
    descriptors: tuple[Tensor, ...] = ()
    summaries: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TargetSet:
    """Target objects at their positions: what is computed once for many images.

    Attributes:
        tokens: of the denoiser.
        templates: of the same objects.
    """

    tokens: TargetTokens
    templates: TemplateFeatures

    def select(self, chosen: Tensor) -> TargetSet:
        """Return a batch of those of its sets whose indices are in `chosen`, (B,) int64 on the CPU, perhaps twice."""
        sets, objects = self.tokens.object_indices.shape
        if torch.equal(chosen, torch.arange(sets)):
            return self
        chosen = chosen.to(self.templates.features.device)
        rows = (chosen[:, None] * objects + torch.arange(objects, device=chosen.device)).flatten()
        summaries = self.templates.summaries
        return TargetSet(
            tokens=TargetTokens(
                keys_values=tuple((keys[rows], values[rows]) for keys, values in self.tokens.keys_values),
                object_indices=self.tokens.object_indices[chosen],
            ),
            templates=TemplateFeatures(
                features=self.templates.features[chosen],
                descriptors=tuple(part[chosen] for part in self.templates.descriptors),
                summaries=None if summaries is None else summaries[chosen],
            ),
        )


class OCDiT(nn.Module):
    """The model: masks of target objects, generated from an image and views of the objects."""

    def __init__(self, config: OCDiTConfig):
        super().__init__()
        self.backbone = build_backbone(config.backbone)
        if isinstance(self.backbone, ViTBackbone) and config.backbone.architecture is None:
            # Kept with the weights, so that a saved model is rebuilt without a hub.
            backbone = dataclasses.replace(config.backbone, architecture=self.backbone.architecture())
            config = dataclasses.replace(config, backbone=backbone)
        elif config.backbone.kind != "vit":
            # Saved models carry their weights.
            config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, name=""))
        self.config = config
        if config.backbone.frozen:
            self.backbone.requires_grad_(False)
        self.vae = MaskVAE(config.vae, config.sigma_data)
        self.denoiser = Denoiser(
            config.denoiser,
            features=self.backbone.channels,
            latents=config.vae.latent_channels,
            grid=_grid(config.image_size),
            template_grid=_grid(config.template_size),
            sigma_data=config.sigma_data,
        )
        self.prior = (
            MatchingPrior(
                config.matching_prior, self.backbone.channels, config.vae.latent_channels, config.denoiser.width
            )
            if config.matching_prior
            else None
        )

    def train(self, mode: bool = True) -> OCDiT:
        """Switch between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.config.backbone.frozen:
            self.backbone.eval()
        return self

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """(B, 3, H, W) in [0, 1] -> what all targets share."""
        features = self.backbone(images)
        if self.prior is None:
            return ImageFeatures(features=features)
        return ImageFeatures(features=features, descriptors=self.prior.describe_image(images, features))

    def encode_templates(self, templates: Tensor, masks: Tensor) -> TemplateFeatures:
        """Return what all images share.

        Args:
            templates: (B, O, V, 3, h, w) in [0, 1], on black.
            masks: (B, O, V, h, w) in [0, 1], the object's pixels; only the matching prior reads them.
        """
        batch, objects, views = templates.shape[:3]
        features, summaries = (
            found.unflatten(0, (batch, objects, views))
            for found in self.backbone.with_global_feature(templates.flatten(0, 2))
        )
        return TemplateFeatures(
            features=features,
            descriptors=self.prior.describe_templates(templates, masks, features) if self.prior is not None else (),
            summaries=summaries if self.denoiser.presence is not None else None,
        )

    @torch.no_grad()
    def summarise_targets(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the backbone's summary of each target as its image shows it.

        (B, 3, H, W) in [0, 1] and masks (B, O, H, W) in [0, 1] -> (B, O, C), not standardised.
        """
        crops = target_crops(images, masks, self.config.template_size)
        return self.backbone.with_global_feature(crops.flatten(0, 1))[1].unflatten(0, masks.shape[:2])

    def encode_targets(
        self, templates: TemplateFeatures, object_indices: Tensor | None = None, view_indices: Tensor | None = None
    ) -> TargetSet:
        """Give target objects their positions.

        Args:
            templates: of B sets of O objects with V views.
            object_indices: (B, O) learned positions, by default the first ones, spread over the capacity by
                interpolation where there are more objects than positions.
            view_indices: (B, V), likewise.
        """
        batch, objects, views = templates.features.shape[:3]
        device, sizes = templates.features.device, self.config.denoiser
        if object_indices is None:
            (indices,) = inference_positions("interpolate", objects, sizes.max_objects)
            object_indices = indices.to(device).expand(batch, -1)
        if view_indices is None:
            (indices,) = inference_positions("interpolate", views, sizes.max_views)
            view_indices = indices.to(device).expand(batch, -1)
        tokens = self.denoiser.encode_targets(templates.features, object_indices, view_indices)
        return TargetSet(tokens=tokens, templates=templates)

    def condition(self, image: ImageFeatures, targets: TargetSet) -> Conditioning:
        """Bring images and their targets together.

        Args:
            image: of B W windows, W of each of B images.
            targets: B sets.
        """
        addition, maps = self.prior_part(image, targets)
        return self.denoiser.condition(image.features, targets.tokens, addition, maps)

    def prior_part(self, image: ImageFeatures, targets: TargetSet) -> tuple[Tensor | None, PriorMaps | None]:
        """Return what the matching prior adds to the query tokens, (B W, O, h w, D), and what it found; or None."""
        if self.prior is None:
            return None, None
        sets, windows = targets.tokens.object_indices.shape[0], image.features.shape[0]
        descriptors = targets.templates.descriptors
        if windows != sets:
            descriptors = tuple(d.repeat_interleave(windows // sets, dim=0) for d in descriptors)
        maps = self.prior(image.descriptors, descriptors)
        return self.prior.query_part(maps, self._draft(maps.logits)), maps

    @torch.no_grad()
    def _draft(self, logits: Tensor) -> Tensor:
        """The read-out's probabilities as latents: (B, O, 4h, 4w) -> (B, O, z, h, w)."""
        soft = F.interpolate(logits.sigmoid(), scale_factor=SUBCELL, mode="bilinear", align_corners=False)
        return self.encode_masks(soft)

    def presence_scores(self, image: ImageFeatures, targets: TargetSet, sigma: float) -> Tensor:
        """Return how present each target is in each picture: (B W, O), -1 to 1; one evaluation of the denoiser.

        Args:
            image: of B W pictures, W windows for each set of targets.
            targets: B sets of O objects.
            sigma: the noise level that is asked at, of which nothing but the mean goes in: a high one.

        Raises:
            ConfigError: the network has no presence tokens.
        """
        summaries = targets.templates.summaries
        if self.denoiser.presence is None or summaries is None:
            raise ConfigError("presence: the network has no presence tokens (denoiser.representation.presence_token)")
        conditioning = self.condition(image, targets)
        sets, windows, objects = conditioning.queries.shape[:3]
        shape = (sets, windows, objects, self.config.vae.latent_channels, *conditioning.grid)
        level = image.features.new_full((sets, 1), sigma)
        found = self.denoiser.denoise(image.features.new_zeros(shape), level, conditioning).presence
        assert found is not None
        each = [self.denoiser.presence.score(found[:, w : w + 1], summaries) for w in range(windows)]
        return torch.stack(each, dim=1).flatten(0, 1)

    def encode_masks(self, masks: Tensor) -> Tensor:
        """(..., H, W) in [0, 1] -> standardised latents (..., z, H/16, W/16)."""
        return self.vae.encode(masks.flatten(0, -3)).unflatten(0, masks.shape[:-2])

    def decode_masks(self, latents: Tensor) -> Tensor:
        """(..., z, h, w) standardised latents -> probabilities (..., 16 h, 16 w)."""
        return self.vae.decode(latents.flatten(0, -4)).unflatten(0, latents.shape[:-3])

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> OCDiT:
        """Load a model from a folder with config.yaml and model.safetensors; raises WeightsError or ConfigError."""
        return read_checkpoint(Path(folder), OCDiTConfig, cls)

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write config.yaml and model.safetensors to `folder`; `half` stores float16."""
        write_checkpoint(Path(folder), self.config, self.state_dict(), half=half)


def join_templates(parts: Sequence[TemplateFeatures], *, one_set: bool = True) -> TemplateFeatures:
    """Put several sets of objects together; each object needs as many views as the others.

    Args:
        parts: each of one set.
        one_set: whether their objects follow each other in one set, or the sets stay apart, as a batch.
    """
    axis = int(one_set)
    summaries = [part.summaries for part in parts if part.summaries is not None]
    return TemplateFeatures(
        features=torch.cat([part.features for part in parts], axis),
        descriptors=tuple(torch.cat(same, axis) for same in zip(*(part.descriptors for part in parts), strict=True)),
        summaries=torch.cat(summaries, axis) if summaries else None,
    )


def _grid(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // DOWNSAMPLING, size[1] // DOWNSAMPLING


def occupancy(masks: Tensor, side: int) -> Tensor:
    """Return the share of each square of `side` pixels that a mask covers: (B, O, H, W) -> (B, O, H/side, W/side)."""
    return F.avg_pool2d(masks, side)
