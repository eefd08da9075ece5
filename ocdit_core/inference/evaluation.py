"""Evaluations of a network in batches that fit into memory, and the noise levels that they share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ocdit_core.diffusion.samplers import Denoise
from ocdit_core.inference.memory import Footprint, MemoryBudget
from ocdit_core.models.denoiser import Conditioning, NoiseLevel
from ocdit_core.models.ocdit import OCDiT


class BatchedModel:
    """A model's denoiser and decoder, in batches as large as memory allows.

    Args:
        model: in evaluation.
        budget: of memory.
    """

    def __init__(self, model: OCDiT, budget: MemoryBudget) -> None:
        self._model = model
        self._budget = budget
        self._levels: dict[float, NoiseLevel] = {}

    def level(self, sigma: float) -> NoiseLevel:
        """Return what depends on a noise level alone, computed once for all images."""
        if sigma not in self._levels:
            self._levels[sigma] = self._model.denoiser.level(sigma)
        return self._levels[sigma]

    def denoise_for(self, conditioning: Conditioning, footprint: Footprint) -> Denoise:
        """Return D_theta, given a conditioning."""
        return lambda x, sigma: self._denoise(x, self.level(sigma), conditioning, footprint.evaluation)

    def _denoise(self, x: Tensor, level: NoiseLevel, conditioning: Conditioning, piece: int) -> Tensor:
        """(B, W E, O, z, h, w) -> the same shape."""
        units, most = x.shape[0] * x.shape[1], self._budget.most(piece)
        if units <= most:
            found = self._budget.run(units, piece, lambda: self._model.denoiser(x, level, conditioning).latents)
            return self._denoise(x, level, conditioning, piece) if found is None else found
        sets, windows = conditioning.queries.shape[:2]
        members = x.shape[1] // windows
        if sets > 1:
            axis, size, step = 0, sets, max(most // x.shape[1], 1)
        elif windows > 1:
            axis, size, step = 1, windows, max(most // members, 1)
        else:
            axis, size, step = 1, members, most
        parts = []
        for begin in range(0, size, step):
            chosen = slice(begin, begin + step)
            if sets > 1:
                part, own = x[chosen], _some_sets(conditioning, chosen)
            elif windows > 1:
                part = x[:, begin * members : (begin + step) * members]
                own = dataclasses.replace(
                    conditioning,
                    queries=conditioning.queries[:, chosen],
                    draft=None if conditioning.draft is None else conditioning.draft[:, chosen],
                )
            else:
                part, own = x[:, chosen], conditioning
            parts.append(self._denoise(part, level, own, piece))
        return torch.cat(parts, dim=axis)

    def decode(self, latents: Tensor, footprint: Footprint) -> Tensor:
        """Standardised latents (..., z, h, w) -> probabilities (..., 16 h, 16 w)."""
        return self._decode(latents.flatten(0, -4), footprint.mask).unflatten(0, latents.shape[:-3])

    def _decode(self, latents: Tensor, piece: int) -> Tensor:
        most = self._budget.most(piece)
        if len(latents) <= most:
            found = self._budget.run(len(latents), piece, lambda: self._model.vae.decode(latents))
            return self._decode(latents, piece) if found is None else found
        return torch.cat([self._decode(part, piece) for part in latents.split(most)])


def _some_sets(conditioning: Conditioning, chosen: slice) -> Conditioning:
    objects = conditioning.queries.shape[2]
    rows = slice(chosen.start * objects, chosen.stop * objects)
    return dataclasses.replace(
        conditioning,
        queries=conditioning.queries[chosen],
        draft=None if conditioning.draft is None else conditioning.draft[chosen],
        templates=tuple((keys[rows], values[rows]) for keys, values in conditioning.templates),
    )
