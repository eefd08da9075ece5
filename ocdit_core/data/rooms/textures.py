"""Pictures for floors, walls and tables: painted from numbers, or any folder of pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.painting import random_background
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.images import SUFFIXES, read_image


class TexturePool:
    """Pictures by number; the same seed or folder gives the same ones.

    Args:
        seed: of the painted pictures.
        painted: how many of these there are.
        folder: its pictures, and those in folders below, come after the painted ones.
        size: side in pixels; pictures of a folder are cropped to a square from their middle.

    Raises:
        ConfigError: fewer than none, or a size under 16 pixels.
        DataError: the folder is missing or holds no picture.
    """

    def __init__(self, seed: int = 0, *, painted: int = 96, folder: str | Path | None = None, size: int = 512) -> None:
        if painted < 0 or size < 16:
            raise ConfigError(f"textures: {painted} painted, {size} pixels; at least 0, and at least 16 pixels")
        self._seed, self._painted, self._size = seed, painted, size
        self._files: list[Path] = []
        if folder is not None:
            if not Path(folder).is_dir():
                raise DataError(f"{folder}: no such folder of pictures")
            self._files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not self._files:
                raise DataError(f"{folder}: no picture in it; known are {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        return self._painted + len(self._files)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Returns picture `index` as (size, size, 3) uint8 sRGB.

        Raises:
            ImageError: a file of the folder is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"texture {index} of {len(self)}")
        if index < self._painted:
            rng = np.random.default_rng([self._seed, index, 0x7E87])
            return random_background(rng, (self._size, self._size), clutter=0.25).astype(np.uint8)
        picture = read_image(self._files[index - self._painted])
        side = min(picture.shape[:2])
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        resized = cv2.resize(square, (self._size, self._size), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, dtype=np.uint8)
