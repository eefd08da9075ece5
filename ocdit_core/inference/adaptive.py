"""Work that is left out where it would hardly change the result: absent objects, members that only agree."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from ocdit_core.diffusion.samplers import Denoise, LevelOf, SamplerConfig, noise_levels, posterior_mean, sample
from ocdit_core.models.denoiser import Conditioning


def sample_present(
    denoise_for: Callable[[Conditioning], Denoise],
    conditioning: Conditioning,
    noise: Tensor,
    sampler: SamplerConfig,
    decode: Callable[[Tensor], Tensor],
    threshold: float,
    level_of: LevelOf | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample as `sample` does, without the objects that the first evaluation sees nowhere in a picture.

    Their latents are what that evaluation gives. Each picture is on its own: what is left out of one may be in another.

    Args:
        denoise_for: from a conditioning to D_theta given it.
        conditioning: of one set of targets, for W pictures.
        noise: (1, W E, O, z, h, w), the members of a picture one after the other.
        sampler: of more than one evaluation.
        decode: from latents (..., z, h, w) to probabilities (..., H, W).
        threshold: an object is seen where its decoded mean over the members exceeds this probability.
        level_of: how D_theta takes noise levels.
        generator: of the noise that churn puts back, on the CPU.

    Returns:
        Latents of the shape of `noise`.
    """
    windows = conditioning.queries.shape[1]
    first = posterior_mean(denoise_for(conditioning), noise, noise_levels(sampler)[0], level_of)
    first, noise = (rearrange(x, "1 (w e) o ... -> w e o ...", w=windows) for x in (first, noise))
    seen = (decode(first.mean(1)).amax((-2, -1)) > threshold).cpu()
    latents = first.clone()
    # Pictures that show the same objects are sampled together.
    for objects in torch.unique(seen, dim=0):
        if not objects.any():
            continue
        where = torch.nonzero((seen == objects).all(1))[:, 0].to(noise.device)
        kept = torch.nonzero(objects)[:, 0].to(noise.device)
        place = where[:, None, None], torch.arange(noise.shape[1], device=noise.device)[:, None], kept
        found = sample(
            denoise_for(_part(conditioning, where, kept)),
            noise[place].flatten(0, 1)[None],
            sampler,
            generator,
            level_of,
            estimate=first[place].flatten(0, 1)[None],
        )
        latents[place] = found[0].unflatten(0, (len(where), -1))
    return latents.flatten(0, 1)[None]


def _part(conditioning: Conditioning, windows: Tensor, objects: Tensor) -> Conditioning:
    """Some windows and some objects of one set."""
    return dataclasses.replace(
        conditioning,
        queries=conditioning.queries[:, windows][:, :, objects],
        templates=tuple((keys[objects], values[objects]) for keys, values in conditioning.templates),
        prior=None,
    )


def member_groups(ensemble: int, early_exit: float) -> list[slice]:
    """Return which members of an ensemble run together: all; with early exit 2, then as many again as there were."""
    if early_exit == 0:
        return [slice(0, ensemble)]
    ends = [0]
    while ends[-1] < ensemble:
        ends.append(min(max(2, 2 * ends[-1]), ensemble))
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


class MemberMean:
    """The mean over an ensemble's members, taken in group by group until they agree.

    A picture whose members agree takes in no more of them, so that its result does not depend on the others'.

    Args:
        early_exit: members agree where the standard error of the mean probability, itself averaged over the pixels, is
            below this for every object; 0: never.
    """

    def __init__(self, early_exit: float) -> None:
        self._early_exit = early_exit
        self._count = torch.zeros(())
        self._sums: list[Tensor] = []
        self._agree: Tensor | None = None

    def add(self, probabilities: Tensor, latents: Tensor) -> None:
        """Take in a group of members.

        Args:
            probabilities: (B, W, E, O, H, W).
            latents: (B, W, E, O, z, h, w), those that were decoded.
        """
        sums = [probabilities.sum(2), latents.sum(2)]
        if self._early_exit > 0:
            sums.append(probabilities.square().sum(2))
        count = torch.full(probabilities.shape[:2], probabilities.shape[2], device=probabilities.device)
        if self._agree is not None:
            on = ~self._agree
            sums = [old + _over(on, new) * new for old, new in zip(self._sums, sums, strict=True)]
            count = self._count + on * count
        self._sums, self._count = sums, count
        if self._early_exit > 0:
            # A single member cannot agree with anybody.
            self._agree = (count > 1) & (self._standard_error() < self._early_exit)

    @property
    def done(self) -> bool:
        """Whether the members of every picture agree."""
        return self._agree is not None and bool(self._agree.all())

    @property
    def probabilities(self) -> Tensor:
        """(B, W, O, H, W)."""
        return self._sums[0] / _over(self._count, self._sums[0])

    @property
    def latents(self) -> Tensor:
        """(B, W, O, z, h, w)."""
        return self._sums[1] / _over(self._count, self._sums[1])

    def _standard_error(self) -> Tensor:
        """(B, W), of the object that is least certain."""
        count = _over(self._count, self._sums[2])
        variance = (self._sums[2] / count - self.probabilities.square()).clamp(min=0) / (count - 1).clamp(min=1)
        return variance.sqrt().mean((-2, -1)).amax(-1)


def _over(values: Tensor, like: Tensor) -> Tensor:
    """(B, W) -> (B, W, 1, 1, ...)."""
    return values.view(*values.shape, *[1] * (like.ndim - 2))
