"""Training data of composed scenes: samples of scenes that share one set of objects, endless and repeatable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ocdit_core.data.augment import CropSettings, Window, tight_window
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.viewpoints import icosphere_directions, spread_indices
from ocdit_core.synthesis.bank import ObjectBank
from ocdit_core.synthesis.composed import SceneSettings, compose_scene, random_recolouring, recolour

_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class SyntheticDataSettings:
    """What a group holds and how it is drawn."""

    kind: Literal["synthetic"] = "synthetic"
    """Composed on the fly from drawn objects."""
    mode: Literal["coarse", "refine"] = "coarse"
    """Whole pictures and several targets, or the surroundings of one object in a picture, and one target."""
    bank: str
    """Folder of an object bank."""
    scene: SceneSettings = field(default_factory=SceneSettings)
    """How scenes look; in the mode coarse its image_size is that of the pictures."""
    objects: int = 4
    """Targets in a group (O)."""
    views: int = 4
    """Templates of a target (V)."""
    scenes_per_group: int = 2
    """Pictures with the same targets (S)."""
    absent_share: float = 0.25
    """Coarse: chance for each target to be missing from a picture."""
    crop_size: tuple[int, int] = (96, 96)
    """Refine: height and width in pixels of a picture, which is a window of a scene."""
    crop: CropSettings = field(default_factory=CropSettings)
    """Refine: how tightly windows are laid around objects."""
    negative_share: float = 0.3
    """Refine: chance for a picture to show another object than the target, which half of the time is elsewhere in the
    scene and otherwise not there at all."""
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
        if self.mode == "refine":
            if self.objects != 1:
                raise ConfigError(f"objects: a refine picture has 1 target, not {self.objects}")
            if not 0 <= self.negative_share <= 1:
                raise ConfigError(f"negative_share: {self.negative_share} is not in 0..1")
            if self.negative_share > 0 and self.distractors[1] < 1:
                raise ConfigError(f"distractors: {self.distractors} leaves no other object for a negative picture")

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures."""
        return self.crop_size if self.mode == "refine" else self.scene.image_size


class ConsecutiveBatches(Sampler[list[int]]):
    """The numbers of the groups of each batch: batch b of a process is the (b world + rank)-th of the whole stream.

    An endless batch sampler for `torch.utils.data.DataLoader`, which keeps its order whatever the number of workers.
    """

    def __init__(self, size: int, *, rank: int = 0, world: int = 1, start: int = 0):
        self.size, self.rank, self.world, self.start = size, rank, world, start

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate from this process's batch number `start` on."""
        batch = self.start
        while True:
            first = (batch * self.world + self.rank) * self.size
            yield list(range(first, first + self.size))
            batch += 1


class SyntheticScenes(Dataset[dict[str, Tensor]]):
    """Endlessly many groups; group k depends on the settings and k alone, so a run can be continued at any of them.

    Use it with `torch.utils.data.DataLoader(dataset, batch_sampler=ConsecutiveBatches(...), num_workers=W)`.

    A group is a dict of tensors:
        images (S, 3, H, W) uint8 sRGB; templates (O, V, 3, h, w) uint8 on black; template_masks (O, V, h, w) uint8,
        0 or 255; masks (S, O, H, W) uint8, 0 or 1, what is seen of each target; present (S, O) bool.
    """

    def __init__(self, settings: SyntheticDataSettings):
        """Opens the bank once to check it.

        Raises:
            DataError: the bank is missing or damaged.
            ConfigError: the bank is too small for the settings.
        """
        self.settings = settings
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

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return self.group(k)

    def group(self, k: int) -> dict[str, Tensor]:
        """Draws group k."""
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

        draw = self._window if settings.mode == "refine" else self._scene
        drawn = [draw(rng, bank, targets, maps) for _ in range(settings.scenes_per_group)]
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
        sprites += self._distractors(rng, bank, targets, settings.distractors[0])
        scene = compose_scene(rng, sprites, settings.scene)
        masks = np.zeros((len(targets), *settings.scene.image_size), np.uint8)
        seen = scene.masks[: len(there)]
        enough = seen.sum(axis=(1, 2)) >= settings.min_visible_pixels
        masks[there[enough]] = seen[enough]
        present = np.zeros(len(targets), bool)
        present[there[enough]] = True
        return scene.image, masks, present

    def _distractors(
        self, rng: np.random.Generator, bank: ObjectBank, targets: NDArray[np.int64], least: int
    ) -> list[NDArray[np.uint8]]:
        settings, sprites = self.settings, []
        for _ in range(int(rng.integers(least, settings.distractors[1] + 1))):
            other = int(rng.integers(len(bank)))
            if other in targets or rng.random() < settings.lookalike_share:
                other = int(rng.choice(targets))
                sprites.append(self._sprite(rng, bank, other, random_recolouring(rng)))
            else:
                sprites.append(self._sprite(rng, bank, other, self._colours(rng)))
        return sprites

    def _window(
        self,
        rng: np.random.Generator,
        bank: ObjectBank,
        targets: NDArray[np.int64],
        maps: list[NDArray[np.float32] | None],
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """A refine picture (h, w, 3), the target's mask in it (1, h, w) and whether it is there (1,)."""
        settings = self.settings
        negative = bool(rng.random() < settings.negative_share)
        there = not negative or bool(rng.random() < 0.5)
        for _ in range(_ATTEMPTS):
            sprites = [self._sprite(rng, bank, int(targets[0]), maps[0])] if there else []
            sprites += self._distractors(rng, bank, targets, max(settings.distractors[0], int(negative)))
            scene = compose_scene(rng, sprites, settings.scene)
            mask = scene.masks[0] if there else np.zeros(settings.scene.image_size, bool)
            window = self._around(rng, scene.masks[int(there) :], mask) if negative else self._around(rng, [mask], None)
            if window is not None:
                break
            # Another object covers the target, or the target is in every window: without it there is always one.
            there = there and not negative
        else:
            raise DataError(
                f"in {_ATTEMPTS} scenes no object shows {settings.min_visible_pixels} pixels: "
                "raise scene.object_size, or lower min_visible_pixels"
            )
        image, seen = window.image(scene.image, settings.crop_size), window.mask(mask, settings.crop_size)
        present = seen.sum() >= settings.min_visible_pixels
        return image, (seen & present)[None].astype(np.uint8), np.array([present])

    def _around(
        self,
        rng: np.random.Generator,
        masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_],
        avoid: NDArray[np.bool_] | None,
    ) -> Window | None:
        """A window around one of the masks, any of them, that shows nothing of `avoid`; None where there is none."""
        for i in rng.permutation(len(masks)):
            if masks[i].sum() < self.settings.min_visible_pixels:
                continue
            x, y, width, height = cv2.boundingRect(masks[i].astype(np.uint8))
            window = tight_window(
                rng, (x, y, width, height), self.settings.scene.image_size, self.settings.crop_size, self.settings.crop
            )
            if avoid is None or not window.mask(avoid, self.settings.crop_size).any():
                return window
        return None

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
