"""A picture with what is known of it, whatever files it comes from: nothing is decoded before it is needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.bop_json import Annotation, Box, Camera
from ocdit_core.data.decoding import decode_depth, decode_image, picture_size
from ocdit_core.errors import DataError

__all__ = ["Annotation", "Frame"]

MAX_DEPTH = 100.0
"""Metres: a median depth beyond is a wrong depth_scale."""


class Frame(ABC):
    """A picture with its camera and its objects; frames can be sent to other processes.

    Everything but the names is read when asked for, and whatever is wrong with it is a DataError then: it names file
    (or shard) and key, and its `kind` groups such errors.

    Attributes:
        dataset: the name of the dataset it comes from.
        key: unique in the dataset: "000003/000012" (scene and image) of a folder, the shard's key of a shard.
        scene_id: BOP's number of the scene; -1 where a shard's key does not tell.
        image_id: BOP's number of the image in its scene; -1 likewise.
        where: the file (or shard) and key, as messages name it.
    """

    def __init__(self, *, dataset: str, key: str, scene_id: int, image_id: int, where: str) -> None:
        self.dataset = dataset
        self.key = key
        self.scene_id = scene_id
        self.image_id = image_id
        self.where = where

    @cached_property
    def camera(self) -> Camera:
        """Intrinsics, and the unit of the depth map.

        Raises:
            DataError: missing or damaged.
        """
        return self._read_camera()

    @property
    def K(self) -> NDArray[np.float64]:  # noqa: N802 - the field's letter
        """(3, 3) float64 intrinsics in pixels.

        Raises:
            DataError: missing or damaged.
        """
        return self.camera.K

    @cached_property
    def annotations(self) -> tuple[Annotation, ...]:
        """The objects, in the dataset's order; an index into them is that of `mask`.

        Raises:
            DataError: missing or damaged.
        """
        return self._read_annotations()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, from the picture's header.

        Raises:
            DataError: the picture is missing or damaged.
        """
        return picture_size(*self._image_data())

    def image(self, *, reduction: int = 1) -> NDArray[np.uint8]:
        """Return (H, W, 3) uint8 RGB; a grey picture has three equal channels.

        Args:
            reduction: 1, 2, 4 or 8: decode at so small a share of each side (rounded up).

        Raises:
            DataError: missing, truncated or damaged.
        """
        data, where = self._image_data()
        # Read already: `size` needs no second look at the file.
        self.__dict__.setdefault("size", picture_size(data, where))
        return decode_image(data, where, reduction=reduction)

    def depth(self) -> NDArray[np.float32] | None:
        """Return (H, W) float32 metres along the optical axis, 0 where nothing was measured; None: it has no depth map.

        Raises:
            DataError: truncated, damaged, of another size than the picture, or so far from the objects' poses (or
                from any robot's world) that the depth scale is wrong.
        """
        found = self._depth_data()
        if found is None:
            return None
        depth = decode_depth(*found, self.camera.depth_scale)
        if depth.shape != self.size:
            raise DataError(
                f"{found[1]}: depth is {_size(depth.shape)}, the picture {_size(self.size)}", kind="depth size"
            )
        self._check_depth_scale(depth, found[1])
        return depth

    def mask(self, index: int, *, visible: bool = True) -> NDArray[np.bool_]:
        """Return the (H, W) mask of an object.

        Args:
            index: of the object in `annotations`.
            visible: what is seen of it (modal); else its whole silhouette within the picture (amodal).

        Raises:
            DataError: missing, damaged, or of another size than the picture.
            IndexError: there is no such object.
        """
        if not 0 <= index < len(self.annotations):
            raise IndexError(f"{self.where}: has {len(self.annotations)} objects, none with the index {index}")
        mask, where = self._read_mask(index, visible)
        if mask.shape != self.size:
            raise DataError(
                f"{where}: the mask is {_size(mask.shape)}, the picture {_size(self.size)}", kind="mask size"
            )
        return mask

    def visible_box(self, index: int) -> Box | None:
        """Return x, y, width, height in pixels of what is seen of an object, from its mask if the dataset does not say.

        Returns:
            None when nothing is seen of it.

        Raises:
            DataError: it has to come from the mask, which cannot be read.
        """
        annotation = self.annotations[index]
        known = annotation.box_visible is not None or annotation.visible_fraction == annotation.visible_fraction
        return annotation.box_visible if known else mask_box(self.mask(index))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dataset!r}, {self.key!r})"

    @abstractmethod
    def _read_camera(self) -> Camera: ...

    @abstractmethod
    def _read_annotations(self) -> tuple[Annotation, ...]: ...

    @abstractmethod
    def _image_data(self) -> tuple[bytes, str]:
        """The picture's file, and its name for messages."""

    @abstractmethod
    def _depth_data(self) -> tuple[bytes, str] | None: ...

    @abstractmethod
    def _read_mask(self, index: int, visible: bool) -> tuple[NDArray[np.bool_], str]: ...

    def _check_depth_scale(self, depth: NDArray[np.float32], where: str) -> None:
        measured = depth[depth > 0]
        if measured.size and not 1e-3 < float(np.median(measured)) < MAX_DEPTH:
            raise DataError(
                f"{where}: half of the depths are beyond {float(np.median(measured)):.4g} m; is depth_scale "
                f"{self.camera.depth_scale:g} right?",
                kind="depth scale",
            )
        try:
            annotations = self.annotations
        except DataError:
            return  # a depth map can be used without them, and whoever asks for them is told
        ratios = []
        for annotation in annotations:
            if annotation.box_visible is None or not annotation.visible_fraction > 0.5:
                continue
            x, y, w, h = annotation.box_visible
            there = depth[max(y, 0) : y + h, max(x, 0) : x + w]
            there = there[there > 0]
            if there.size and annotation.translation[2] > 0:
                ratios.append(float(np.median(there)) / float(annotation.translation[2]))
        # Sensors lack objects, and boxes hold background: only most objects together tell, and only of factors.
        if ratios and not 1 / 4 < float(np.median(ratios)) < 4:
            raise DataError(
                f"{where}: depths are {float(np.median(ratios)):.3g} times those of the objects' poses; is depth_scale "
                f"{self.camera.depth_scale:g} right?",
                kind="depth scale",
            )


def mask_box(mask: NDArray[np.bool_]) -> Box | None:
    """Return the tight x, y, width, height in pixels of a (H, W) mask; None when it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1])
    columns = np.flatnonzero(mask[top : bottom + 1].any(axis=0))
    return int(columns[0]), top, int(columns[-1] - columns[0] + 1), bottom - top + 1


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
