"""One model, asked for masks: pictures and target objects in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ocdit_core.diffusion.samplers import Denoise, SamplerConfig, sample
from ocdit_core.inference.adaptive import MemberMean, member_groups, sample_present
from ocdit_core.inference.clock import StageClock
from ocdit_core.models.denoiser import Conditioning
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
        drop_absent: float = 0.0,
        early_exit: float = 0.0,
        estimate: Tensor | None = None,
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
            drop_absent: see `InferenceSettings`; above 0 with one set of targets only.
            early_exit: see `InferenceSettings`.
            estimate: (B, W, O, z, h/16, w/16) latents, see `sample`.
        """
        conditioning = self.model.condition(image, targets)
        sets, windows, objects = conditioning.queries.shape[:3]
        shape = (objects, self.model.config.vae.latent_channels, *conditioning.grid)
        shares = [(random, windows)] if isinstance(random, torch.Generator) else random
        parts = [torch.randn(sets, count, ensemble, *shape, generator=generator) for generator, count in shares]
        noise = torch.cat(parts, dim=1).to(self._device)
        mean = MemberMean(early_exit)
        for members in member_groups(ensemble, early_exit):
            group = noise[:, :, members]
            if drop_absent > 0 and sampler.evaluations > 1 and estimate is None:
                latents = sample_present(
                    self._denoise, conditioning, group.flatten(1, 2), sampler, self.model.decode_masks, drop_absent
                )
            else:
                start = None if estimate is None else estimate.repeat_interleave(group.shape[2], dim=1)
                latents = sample(self._denoise(conditioning), group.flatten(1, 2), sampler, estimate=start)
            clock.lap(f"{self._stage}sampling")
            decoded = self.model.decode_masks(latents)
            mean.add(*(rearrange(x, "b (w e) ... -> b w e ...", w=windows) for x in (decoded, latents)))
            clock.lap(f"{self._stage}decoding")
            if mean.done:
                break
        probabilities: np.ndarray = mean.probabilities.float().cpu().numpy()
        clock.lap(f"{self._stage}decoding")
        return Generated(probabilities=probabilities, latents=mean.latents)

    def _denoise(self, conditioning: Conditioning) -> Denoise:
        # One noise level for all members: what depends on it alone is computed once.
        sets = conditioning.queries.shape[0]
        return lambda x, sigma: self.model.denoiser(x, sigma.expand(sets, 1), conditioning)

    def _to_tensor(self, rgb: np.ndarray) -> Tensor:
        """(..., h, w, 3) uint8 -> (..., 3, h, w) in [0, 1]."""
        return torch.from_numpy(np.moveaxis(rgb, -1, -3)).to(self._device).float() / 255
