"""Training samples of composed scenes that share one set of objects: endless, and each depends on its number alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ocdit_core.data.augment import Crop, tight_crop
from ocdit_core.data.sampling import MIN_PIXELS, SampleSettings, pack_sample
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.masks import tight_box
from ocdit_core.objects.viewpoints import icosphere_directions, spread_indices
from ocdit_core.synthesis.bank import ObjectBank
from ocdit_core.synthesis.composed import SceneSettings, compose_scene, random_recolouring, recolour

Rng = np.random.Generator
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Recolouring = NDArray[np.float32] | None

RECOLOUR_PROBABILITY = 0.7
"""Probability for an object to get new colours, the same in its templates and in the scenes."""
LOOKALIKE_PROBABILITY = 0.1
"""Probability for a distractor to have a target's shape in other colours."""

_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class ComposedDataSettings:
    """Training data composed on the fly from an object bank.

    Attributes:
        kind: synthetic.
        bank: folder of an object bank.
        scene: how scenes look. Coarse samples show whole scenes, so that `sample.image_size` replaces its image_size;
            refine samples show crops of scenes.
        sample: what a sample holds; composed scenes have effects of their own instead of `sample.augment`, and draw
            absent objects at random instead of `sample.hard_negatives`.
        distractors: smallest and largest number of other objects in a scene.
        recolour: give objects new colours at random.
        seed: random seed.
    """

    kind: Literal["synthetic"] = "synthetic"
    bank: str
    scene: SceneSettings = field(default_factory=SceneSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    distractors: tuple[int, int] = (0, 3)
    recolour: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.distractors[0] <= self.distractors[1]:
            raise ConfigError(f"distractors: {self.distractors} has to be two rising numbers from 0 on")
        if self.sample.mode == "refine" and self.sample.negative_probability > 0 and self.distractors[1] < 1:
            raise ConfigError(f"distractors: {self.distractors} leaves no other object for a negative sample")


class ConsecutiveBatches(Sampler[list[int]]):
    """Sample numbers of each batch: batch b of a process is the (b world + rank)-th of the whole run.

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


class ComposedScenes(Dataset[dict[str, Tensor]]):
    """Endless samples by number; sample k depends on the settings and k alone, so a run can continue at any of them.

    Use it with `torch.utils.data.DataLoader(dataset, batch_sampler=ConsecutiveBatches(...), num_workers=W)`.

    Raises:
        DataError: the bank is missing or damaged.
        ConfigError: the bank is too small for the settings, or has templates of another size.
    """

    def __init__(self, settings: ComposedDataSettings):
        self.settings = settings
        self._bank: ObjectBank | None = None  # opened in each worker
        sample = settings.sample
        self._scene_settings = (
            replace(settings.scene, image_size=sample.image_size) if sample.mode == "coarse" else settings.scene
        )
        bank = ObjectBank.open(Path(settings.bank))
        if len(bank) < sample.objects + settings.distractors[1]:
            raise ConfigError(
                f"objects: {sample.objects} targets and {settings.distractors[1]} distractors need a bank of that many "
                f"objects; {settings.bank} holds {len(bank)}"
            )
        if sample.views > bank.settings.views:
            raise ConfigError(f"views: {sample.views} wanted, the bank holds {bank.settings.views} of each object")
        if sample.template_size != bank.settings.template_size:
            raise ConfigError(
                f"template_size: {sample.template_size} wanted, {settings.bank} holds {bank.settings.template_size}"
            )
        self._directions = icosphere_directions(bank.settings.views)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        """Return sample k; see `pack_sample`. The object numbers are indices into the bank."""
        if self._bank is None:
            self._bank = ObjectBank.open(Path(self.settings.bank))
        bank, sample = self._bank, self.settings.sample
        rng = np.random.default_rng([self.settings.seed, k])
        targets = rng.choice(len(bank), sample.objects, replace=False)
        colours = [self._recolouring(rng) for _ in targets]
        views = []
        for target, matrix in zip(targets, colours, strict=True):
            chosen = spread_indices(self._directions, sample.views, int(rng.integers(len(self._directions))))
            views.append(_recoloured(bank.templates[target][chosen], matrix))
        draw = self._refine if sample.mode == "refine" else self._coarse
        drawn = [draw(rng, bank, targets, colours) for _ in range(sample.crops)]
        return pack_sample([image for image, _ in drawn], [masks for _, masks in drawn], views, targets.tolist())

    def _recolouring(self, rng: Rng) -> Recolouring:
        # Drawn in any case, so that scenes stay the same without recolouring.
        wanted = rng.random() < (RECOLOUR_PROBABILITY if self.settings.recolour else 0)
        return random_recolouring(rng) if wanted else None

    def _coarse(
        self, rng: Rng, bank: ObjectBank, targets: NDArray[np.int64], colours: Sequence[Recolouring]
    ) -> tuple[Image, Mask]:
        """Return a scene (H, W, 3) and the masks of the targets in it (O, H, W)."""
        settings = self.settings
        present = np.flatnonzero(rng.random(len(targets)) >= settings.sample.absent_probability)
        sprites = [_sprite(rng, bank, int(targets[i]), colours[int(i)]) for i in present]
        sprites += self._distractors(rng, bank, targets, settings.distractors[0])
        scene = compose_scene(rng, sprites, self._scene_settings)
        masks = np.zeros((len(targets), *self._scene_settings.image_size), bool)
        masks[present] = scene.masks[: len(present)]
        return scene.image, masks

    def _refine(
        self, rng: Rng, bank: ObjectBank, targets: NDArray[np.int64], colours: Sequence[Recolouring]
    ) -> tuple[Image, Mask]:
        """Return a crop of a scene (h, w, 3) and the target's mask in it (1, h, w)."""
        settings, size = self.settings, self.settings.sample.image_size
        negative = bool(rng.random() < settings.sample.negative_probability)
        present = not negative or bool(rng.random() < settings.sample.elsewhere_probability)
        for _ in range(_ATTEMPTS):
            sprites = [_sprite(rng, bank, int(targets[0]), colours[0])] if present else []
            sprites += self._distractors(rng, bank, targets, max(settings.distractors[0], int(negative)))
            scene = compose_scene(rng, sprites, self._scene_settings)
            mask = scene.masks[0] if present else np.zeros(self._scene_settings.image_size, bool)
            crop = self._crop(rng, scene.masks[int(present) :], mask) if negative else self._crop(rng, [mask], None)
            if crop is not None:
                return crop.image(scene.image, size), crop.mask(mask, size)[None]
            # Another object covers the target, or the target is in every crop: without it there is always one.
            present = present and not negative
        raise DataError(f"in {_ATTEMPTS} scenes no object shows {MIN_PIXELS} pixels; raise scene.object_size")

    def _distractors(self, rng: Rng, bank: ObjectBank, targets: NDArray[np.int64], least: int) -> list[Image]:
        sprites = []
        for _ in range(int(rng.integers(least, self.settings.distractors[1] + 1))):
            other = int(rng.integers(len(bank)))
            if other in targets or rng.random() < LOOKALIKE_PROBABILITY:
                other = int(rng.choice(targets))
                sprites.append(_sprite(rng, bank, other, random_recolouring(rng)))
            else:
                sprites.append(_sprite(rng, bank, other, self._recolouring(rng)))
        return sprites

    def _crop(self, rng: Rng, masks: Sequence[Mask] | Mask, avoid: Mask | None) -> Crop | None:
        """Draw a crop around any of the masks that shows nothing of `avoid`; None where there is none."""
        sample = self.settings.sample
        for i in rng.permutation(len(masks)):
            if masks[i].sum() < MIN_PIXELS:
                continue
            crop = tight_crop(rng, tight_box(masks[i]), self._scene_settings.image_size, sample.image_size, sample.crop)
            if avoid is None or not crop.mask(avoid, sample.image_size).any():
                return crop
        return None


def _sprite(rng: Rng, bank: ObjectBank, index: int, colours: Recolouring) -> Image:
    return _recoloured(bank.sprites[index, rng.integers(bank.settings.sprites)], colours)


def _recoloured(rgba: Image, matrix: Recolouring) -> Image:
    return np.asarray(rgba) if matrix is None else recolour(rgba, matrix)
