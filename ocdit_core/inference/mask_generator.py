"""One model, asked for masks: pictures and target objects in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ocdit_core.diffusion.samplers import Denoise, SamplerConfig, sample
from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.evaluation import BatchedModel
from ocdit_core.inference.memory import MemoryBudget, footprint
from ocdit_core.inference.plain import PlainPath
from ocdit_core.inference.precision import computes_in_half, half_context, prepared
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What is generated for B sets of O objects in W windows each: means over the ensemble.

    Attributes:
        probabilities: (B, W, O, h, w) float32, of each pixel of each window to show each object.
        latents: (B, W, O, z, h/16, w/16), on the device.
    """

    probabilities: np.ndarray
    latents: Tensor


class MaskGenerator:
    """Generates masks with one model, coarse or refine.

    Args:
        model: on `device`, in evaluation.
        device: where it runs.
        stage: put before the names of its stages in timings.
        settings: how it computes.
    """

    def __init__(
        self, model: OCDiT, device: torch.device, stage: str = "", settings: InferenceSettings | None = None
    ) -> None:
        settings = settings or InferenceSettings()
        self._half = computes_in_half(settings.precision, device)
        self.model = prepared(model, half=self._half, compiled=settings.compile, plain=settings.plain, device=device)
        self._device = device
        self._stage = stage
        self._budget = MemoryBudget(device, settings.max_memory)
        self._batched = BatchedModel(self.model, self._budget)
        self._plain = PlainPath(self.model) if settings.plain else None

    def encode(self, canvases: np.ndarray, clock: StageClock) -> ImageFeatures:
        """(N, h, w, 3) uint8 RGB -> features of the N pictures."""
        # The matching prior compares features that differ by little.
        with half_context(self._device, self._half and self.model.prior is None):
            features = self.model.encode_image(self._to_tensor(canvases))
        clock.lap(f"{self._stage}backbone")
        return features

    def generate(
        self,
        image: ImageFeatures,
        targets: TargetSet,
        *,
        sampler: SamplerConfig,
        ensemble: int,
        random: torch.Generator | Sequence[tuple[torch.Generator, int]],
        clock: StageClock,
    ) -> Generated:
        """Generate masks.

        Args:
            image: of B W pictures, W windows for each set of targets.
            targets: B sets of O objects.
            sampler: how latents are generated.
            ensemble: initial noises whose probabilities are averaged.
            random: of the initial noise, on the CPU: results do not depend on the device. Several with their numbers of
                windows, which come one after the other in W, give each the noise that it would get alone.
            clock: takes the time.
        """
        sets, objects = targets.tokens.object_indices.shape
        windows, grid = image.features.shape[0] // sets, image.features.shape[2:]
        shape = (objects, self.model.config.vae.latent_channels, *grid)
        shares = [(random, windows)] if isinstance(random, torch.Generator) else random
        parts = [torch.randn(sets, count, ensemble, *shape, generator=generator) for generator, count in shares]
        noise = torch.cat(parts, dim=1).to(self._device)
        size = (DOWNSAMPLING * grid[0], DOWNSAMPLING * grid[1])
        needs = footprint(self.model.config, objects=objects, image_size=size, half=self._half)
        self._budget.refresh(kept=sets * windows * needs.window)
        addition, maps = self.model.match(image, targets)
        with half_context(self._device, self._half):
            denoise: Denoise
            if self._plain is not None:
                denoise = self._plain.denoise_for(image, targets, addition)
            else:
                conditioning = self.model.denoiser.condition(image.features, targets.tokens, addition, maps)
                denoise = self._batched.denoise_for(conditioning, needs)
            latents = sample(denoise, noise.flatten(1, 2), sampler, shares[0][0])
            clock.lap(f"{self._stage}sampling")
            decoded = self._batched.decode(latents, needs)
            mean, latents = (rearrange(x, "b (w e) ... -> b w e ...", w=windows).mean(2) for x in (decoded, latents))
        probabilities: np.ndarray = mean.float().cpu().numpy()
        clock.lap(f"{self._stage}decoding")
        return Generated(probabilities=probabilities, latents=latents)

    def _to_tensor(self, rgb: np.ndarray) -> Tensor:
        """(..., h, w, 3) uint8 -> (..., 3, h, w) in [0, 1]."""
        return torch.from_numpy(np.moveaxis(rgb, -1, -3)).to(self._device).float() / 255
