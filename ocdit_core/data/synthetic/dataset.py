"""The training stream: groups of composed scenes that share one set of objects, endless and repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ocdit_core.data.synthetic.bank import ObjectBank
from ocdit_core.data.synthetic.recolouring import random_recolouring, recolour
from ocdit_core.data.synthetic.scenes import SceneSettings, compose_scene
from ocdit_core.errors import ConfigError
from ocdit_core.objects.viewpoints import icosphere_directions, spread_indices


@dataclass(frozen=True, kw_only=True)
class SyntheticDataSettings:
    """What a group holds and how it is drawn."""

    bank: str
    """Folder of an object bank."""
    scene: SceneSettings = field(default_factory=SceneSettings)
    """How scenes look; its image_size is that of the pictures."""
    objects: int = 4
    """Targets in a group (O)."""
    views: int = 4
    """Templates of a target (V)."""
    scenes_per_group: int = 2
    """Pictures with the same targets (S)."""
    absent_share: float = 0.25
    """Chance for each target to be missing from a picture."""
    distractors: tuple[int, int] = (0, 3)
    """Fewest and most other objects in a picture."""
    lookalike_share: float = 0.1
    """Chance for a distractor to have a target's shape in other colours."""
    recolour_share: float = 0.7
    """Chance for an object to get new colours, the same in its templates and in the scenes."""
    min_visible_pixels: int = 12
    """A target of which less is seen counts as absent."""
    seed: int = 0
    """Of the whole stream."""

    def __post_init__(self) -> None:
        if self.objects < 1 or self.views < 1 or self.scenes_per_group < 1:
            raise ConfigError("objects, views and scenes_per_group have to be at least 1")
        if not 0 <= self.absent_share <= 1:
            raise ConfigError(f"absent_share: {self.absent_share} is not in 0..1")
        if not 0 <= self.distractors[0] <= self.distractors[1]:
            raise ConfigError(f"distractors: {self.distractors} has to be two rising numbers from 0 on")


class SyntheticScenes(IterableDataset[dict[str, Tensor]]):
    """Endless groups; group k depends on the settings and k alone.

    With W loader workers, worker w yields the groups start + w, start + w + W, ...; among several processes, give each
    its `rank` of `world`. Use it with `torch.utils.data.DataLoader(dataset, batch_size=B, num_workers=W)`.

    A group is a dict of tensors:
        images (S, 3, H, W) uint8 sRGB; templates (O, V, 3, h, w) uint8 on black; template_masks (O, V, h, w) uint8,
        0 or 255; masks (S, O, H, W) uint8, 0 or 1, what is seen of each target; present (S, O) bool.
    """

    def __init__(self, settings: SyntheticDataSettings, *, start: int = 0, rank: int = 0, world: int = 1):
        """Opens the bank once to check it.

        Raises:
            DataError: the bank is missing or damaged.
            ConfigError: the bank is too small for the settings.
        """
        self.settings = settings
        self.start = start
        self.rank, self.world = rank, world
        self._bank: ObjectBank | None = None
        bank = ObjectBank.open(Path(settings.bank))
        if len(bank) < settings.objects + settings.distractors[1]:
            raise ConfigError(
                f"objects: {settings.objects} targets and {settings.distractors[1]} distractors "
                f"need a bank of that many objects; {settings.bank} holds {len(bank)}"
            )
        if settings.views > bank.settings.views:
            raise ConfigError(f"views: {settings.views} wanted, the bank holds {bank.settings.views} of each object")
        self._directions = icosphere_directions(bank.settings.views)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        k = self.start + self.rank * workers + index
        while True:
            yield self.group(k)
            k += workers * self.world

    def group(self, k: int) -> dict[str, Tensor]:
        """Draws group k of the stream."""
        if self._bank is None:
            self._bank = ObjectBank.open(Path(self.settings.bank))
        bank, settings = self._bank, self.settings
        rng = np.random.default_rng([settings.seed, k])
        targets = rng.choice(len(bank), settings.objects, replace=False)
        maps = [self._colours(rng) for _ in targets]

        templates = []
        for target, colours in zip(targets, maps, strict=True):
            chosen = spread_indices(self._directions, settings.views, int(rng.integers(len(self._directions))))
            templates.append(_coloured(bank.templates[target][chosen], colours))
        views = np.stack(templates)

        drawn = [self._scene(rng, bank, targets, maps) for _ in range(settings.scenes_per_group)]
        images, masks, present = (np.stack(parts) for parts in zip(*drawn, strict=True))
        return {
            "images": _channels_first(images),
            "templates": _channels_first(views[..., :3]),
            "template_masks": torch.from_numpy(np.where(views[..., 3] > 127, np.uint8(255), np.uint8(0))),
            "masks": torch.from_numpy(masks),
            "present": torch.from_numpy(present),
        }

    def _colours(self, rng: np.random.Generator) -> NDArray[np.float32] | None:
        return random_recolouring(rng) if rng.random() < self.settings.recolour_share else None

    def _scene(
        self,
        rng: np.random.Generator,
        bank: ObjectBank,
        targets: NDArray[np.int64],
        maps: list[NDArray[np.float32] | None],
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """One picture (H, W, 3), its masks (O, H, W) and who is present (O,)."""
        settings = self.settings
        there = np.flatnonzero(rng.random(len(targets)) >= settings.absent_share)
        sprites = [self._sprite(rng, bank, int(targets[i]), maps[i]) for i in there]
        for _ in range(int(rng.integers(settings.distractors[0], settings.distractors[1] + 1))):
            other = int(rng.integers(len(bank)))
            if other in targets or rng.random() < settings.lookalike_share:
                other = int(rng.choice(targets))
                sprites.append(self._sprite(rng, bank, other, random_recolouring(rng)))
            else:
                sprites.append(self._sprite(rng, bank, other, self._colours(rng)))
        scene = compose_scene(rng, sprites, settings.scene)
        masks = np.zeros((len(targets), *settings.scene.image_size), np.uint8)
        seen = scene.masks[: len(there)]
        enough = seen.sum(axis=(1, 2)) >= settings.min_visible_pixels
        masks[there[enough]] = seen[enough]
        present = np.zeros(len(targets), bool)
        present[there[enough]] = True
        return scene.image, masks, present

    @staticmethod
    def _sprite(
        rng: np.random.Generator, bank: ObjectBank, index: int, colours: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        return _coloured(bank.sprites[index, rng.integers(bank.settings.sprites)], colours)


def _coloured(rgba: NDArray[np.uint8], colours: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    return np.asarray(rgba) if colours is None else recolour(rgba, colours)


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    """(..., h, w, 3) to a tensor (..., 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, -1, -3)))
