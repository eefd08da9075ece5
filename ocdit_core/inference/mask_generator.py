"""One model, asked for masks: pictures and target objects in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ocdit_core.diffusion.samplers import SamplerConfig, sample
from ocdit_core.inference.clock import StageClock
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet


class MaskGenerator:
    """Generates masks with one model, coarse or refine.

    Args:
        model: on `device`, in evaluation.
        device: where it runs.
        stage: put before the names of its stages in timings.
    """

    def __init__(self, model: OCDiT, device: torch.device, stage: str = "") -> None:
        self.model = model
        self._device = device
        self._stage = stage

    def encode(self, canvases: np.ndarray, clock: StageClock) -> ImageFeatures:
        """(N, h, w, 3) uint8 RGB -> features of the N pictures."""
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
    ) -> np.ndarray:
        """Return (B, W, O, h, w) float32: the probability of each pixel of each window to show each object.

        Args:
            image: of B W pictures, W windows for each set of targets.
            targets: B sets of O objects.
            sampler: how latents are generated.
            ensemble: initial noises whose probabilities are averaged.
            random: of the initial noise, on the CPU: results do not depend on the device. Several with their numbers of
                windows, which come one after the other in W, give each the noise that it would get alone.
            clock: takes the time.
        """
        conditioning = self.model.condition(image, targets)
        sets, windows, objects = conditioning.queries.shape[:3]
        shape = (objects, self.model.config.vae.latent_channels, *conditioning.grid)
        shares = [(random, windows)] if isinstance(random, torch.Generator) else random
        noise = [torch.randn(sets, count * ensemble, *shape, generator=generator) for generator, count in shares]
        latents = sample(
            # One noise level for all members: what depends on it alone is computed once.
            lambda x, sigma: self.model.denoiser(x, sigma.expand(sets, 1), conditioning),
            torch.cat(noise, dim=1).to(self._device),
            sampler,
        )
        clock.lap(f"{self._stage}sampling")
        decoded = rearrange(self.model.decode_masks(latents), "b (w e) o h x -> b w e o h x", w=windows)
        probabilities: np.ndarray = decoded.mean(2).float().cpu().numpy()
        clock.lap(f"{self._stage}decoding")
        return probabilities

    def _to_tensor(self, rgb: np.ndarray) -> Tensor:
        """(..., h, w, 3) uint8 -> (..., 3, h, w) in [0, 1]."""
        return torch.from_numpy(np.moveaxis(rgb, -1, -3)).to(self._device).float() / 255
