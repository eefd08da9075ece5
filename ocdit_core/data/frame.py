"""Annotated images of any layout, and what their datasets have in common.

Nothing is decoded before it is needed. The format of the JSON entries:
https://github.com/thodan/bop_toolkit/blob/master/docs/bop_datasets_format.md
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import DataError, ImageError
from ocdit_core.images import decode_image, decode_pixels, image_size
from ocdit_core.masks import Box, tight_box

ImageKey = tuple[int, int]
"""scene_id and image_id."""
OnError = Callable[[DataError], None]
T = TypeVar("T", dict[str, Any], list[Any])

MIN_DISTANCE, MAX_DISTANCE = 0.01, 100.0
"""Range in metres from the camera to an object's origin, and of a median depth; values outside have a wrong unit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotation:
    """One object instance in a frame.

    Attributes:
        object_id: BOP's obj_id.
        rotation: (3, 3) float64 camera-from-model.
        translation: (3,) float64 camera-from-model, metres (BOP stores millimetres).
        visible_fraction: visible pixels / pixels of the whole silhouette, including its part outside the image; NaN
            where the dataset does not say.
        box_visible: x, y, width, height in pixels of the visible part, including the last column and row (BOP's files
            leave them out); None when nothing is visible, or the dataset does not say.
        box_object: the same of the whole silhouette, which may reach outside the image.
    """

    object_id: int
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    visible_fraction: float
    box_visible: Box | None
    box_object: Box | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """The pinhole camera of a frame.

    Attributes:
        K: (3, 3) float64 intrinsics in pixels.
        depth_scale: millimetres of one unit of the depth map.
    """

    K: NDArray[np.float64]
    depth_scale: float


def read_bytes(path: Path) -> bytes:
    """Return a file's contents.

    Raises:
        DataError: missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", kind="missing file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", kind="missing file") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: missing, unreadable, truncated or damaged.
    """
    return parse_json(read_bytes(path), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """Return what a JSON text holds; `where` names it in errors.

    Raises:
        DataError: truncated or damaged.
    """
    try:
        return json.loads(data)
    except ValueError as error:
        text = " ".join(str(error).split())[:100]
        raise DataError(f"{where}: truncated or damaged JSON ({text})", kind="damaged JSON") from error


def parse_camera(entry: Any, where: str) -> Camera:
    """Return the camera of a frame from its entry in scene_camera.json, or a shard's camera.json.

    Raises:
        DataError: K is missing or not that of a pinhole camera, or depth_scale is not a number above 0; the message
            names `where` and the key. A missing depth_scale is 1.
    """
    entry = _checked(entry, dict, where)
    if "cam_K" not in entry and "cam_model" in entry:
        raise DataError(f"{where}: has a cam_model, only pinhole cameras (cam_K) are supported", kind="camera")
    K = _numbers(entry, "cam_K", (3, 3), where, kind="camera")
    if not (K[0, 0] > 0 and K[1, 1] > 0 and abs(K[2, 2] - 1) < 1e-6):
        raise DataError(f"{where}: cam_K is {K.ravel().tolist()}, not fx, 0, cx, 0, fy, cy, 0, 0, 1", kind="camera")
    scale = entry.get("depth_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise DataError(f"{where}: depth_scale is {json.dumps(scale)[:60]}, not a number above 0", kind="depth scale")
    return Camera(K=K, depth_scale=float(scale))


def parse_annotations(entries: Any, info: Any | None, where: str, where_info: str) -> tuple[Annotation, ...]:
    """Return the objects of a frame from its entries in scene_gt.json and scene_gt_info.json (None: there is none).

    Raises:
        DataError: an entry or key is missing, of a wrong type or not finite, a matrix is not a rotation, a translation
            is outside 1 cm .. 100 m, or the two files disagree in number; the message names `where`, number and key.
    """
    entries = _checked(entries, list, where)
    infos: list[Any] = [None] * len(entries) if info is None else _checked(info, list, where_info)
    if len(infos) != len(entries):
        raise DataError(f"{where_info}: has {len(infos)} entries for {len(entries)} objects", kind="gt_info")
    return tuple(
        _annotation(entry, extra, f"{where}[{number}]", f"{where_info}[{number}]")
        for number, (entry, extra) in enumerate(zip(entries, infos, strict=True))
    )


def _annotation(entry: Any, info: Any | None, where: str, where_info: str) -> Annotation:
    entry = _checked(entry, dict, where)
    object_id = entry.get("obj_id")
    if isinstance(object_id, bool) or not isinstance(object_id, int) or object_id < 0:
        raise DataError(f"{where}: obj_id is {json.dumps(object_id)[:60]}, not a number", kind="object id")
    rotation = _numbers(entry, "cam_R_m2c", (3, 3), where, kind="pose")
    # Written out: numpy.linalg costs more than all the rest here, and a frame has dozens of these.
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if abs(determinant - 1) > 0.05 or np.abs(rotation @ rotation.T - _IDENTITY).max() > 0.02:
        raise DataError(f"{where}: cam_R_m2c is not a rotation (determinant {determinant:.3g})", kind="pose")
    translation = _numbers(entry, "cam_t_m2c", (3,), where, kind="pose") / 1000
    x, y, z = translation.tolist()
    distance = (x * x + y * y + z * z) ** 0.5
    if not MIN_DISTANCE <= distance <= MAX_DISTANCE:
        raise DataError(
            f"{where}: cam_t_m2c is {distance * 1000:.4g} mm long, not within {MIN_DISTANCE * 1000:g} mm .. "
            f"{MAX_DISTANCE:g} m; BOP stores millimetres",
            kind="pose",
        )
    fraction, visible, whole = float("nan"), None, None
    if info is not None:
        info = _checked(info, dict, where_info)
        fraction = float(_numbers(info, "visib_fract", (), where_info, kind="gt_info"))
        visible, whole = _box(info, "bbox_visib", where_info), _box(info, "bbox_obj", where_info)
    seen: dict[str, Any] = {"visible_fraction": fraction, "box_visible": visible, "box_object": whole}
    return Annotation(object_id=object_id, rotation=rotation, translation=translation, **seen)


_IDENTITY = np.eye(3)


def _box(info: dict[str, Any], key: str, where: str) -> Box | None:
    x, y, w, h = _numbers(info, key, (4,), where, kind="gt_info").tolist()
    if w < 0 or h < 0:  # -1, -1, -1, -1: nothing is seen
        return None
    # BOP's width is that from the first to the last column's left edge: one less than the columns.
    return round(x), round(y), round(w) + 1, round(h) + 1


def _numbers(entry: dict[str, Any], key: str, shape: tuple[int, ...], where: str, *, kind: str) -> NDArray[np.float64]:
    value = entry.get(key)
    try:
        numbers = np.array(value, dtype=np.float64).reshape(shape)
    except (TypeError, ValueError):
        numbers = None
    if value is None or numbers is None or not np.isfinite(numbers).all():
        count = int(np.prod(shape))
        text = "missing" if value is None else json.dumps(value)[:60]
        raise DataError(f"{where}: {key} is {text}, not {count} finite number{'s'[: count > 1]}", kind=kind)
    return numbers


def _checked(value: Any, kind: type[T], where: str) -> T:
    if not isinstance(value, kind):
        name = {dict: "an object", list: "a list"}[kind]
        raise DataError(f"{where}: is a {type(value).__name__}, not {name}", kind="damaged JSON")
    return value


class Frame(ABC):
    """An image with its camera and its annotated objects; frames can be sent to other processes.

    Files are read and decoded when a property is asked for; a DataError names file (or shard) and key, and its `kind`
    groups such errors.

    Attributes:
        dataset: the name of the dataset it comes from.
        key: unique in the dataset: "000003/000012" (scene and image) of a folder, the shard's key of a shard.
        scene_id: BOP's number of the scene; -1 where a shard's key does not tell.
        image_id: BOP's number of the image in its scene; -1 likewise.
        where: the file (or shard) and key, for error messages.
    """

    def __init__(self, *, dataset: str, key: str, scene_id: int, image_id: int, where: str) -> None:
        self.dataset, self.key, self.where = dataset, key, where
        self.scene_id, self.image_id = scene_id, image_id

    @cached_property
    def camera(self) -> Camera:
        """Intrinsics, and the unit of the depth map; raises DataError."""
        return self._read_camera()

    @property
    def K(self) -> NDArray[np.float64]:  # noqa: N802 - the field's letter
        """(3, 3) float64 intrinsics in pixels; raises DataError."""
        return self.camera.K

    @cached_property
    def annotations(self) -> tuple[Annotation, ...]:
        """The objects, in the dataset's order, which is that of the indices of `mask`; raises DataError."""
        return self._read_annotations()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, from the image's header; raises DataError."""
        return self._size_of(*self._image_data())

    def image(self, *, reduction: int = 1) -> NDArray[np.uint8]:
        """Return (H, W, 3) uint8 RGB; a grey image has three equal channels.

        Args:
            reduction: 1, 2, 4 or 8: decode at this fraction of each side (rounded up), which is faster for JPEG.

        Raises:
            DataError: missing, truncated or damaged.
        """
        data, where = self._image_data()
        # So that `size` does not read the file again.
        self.__dict__.setdefault("size", self._size_of(data, where))
        with _data_errors("damaged image"):
            # Not upright: poses and masks belong to the pixels as stored.
            return decode_image(data, where, upright=False, reduction=reduction)

    def depth(self) -> NDArray[np.float32] | None:
        """Return (H, W) float32 metres along the optical axis, 0 where nothing was measured; None without a depth map.

        Raises:
            DataError: truncated, damaged, not the size of the image, or with a median that shows a wrong depth scale.
        """
        found = self._depth_data()
        if found is None:
            return None
        data, where = found
        with _data_errors("damaged depth"):
            values = decode_pixels(data, where)
        if values.ndim != 2:
            raise DataError(
                f"{where}: is {values.dtype} {values.shape}, not one channel of 16 bits", kind="damaged depth"
            )
        depth = values.astype(np.float32) * np.float32(self.camera.depth_scale / 1000)
        if not np.isfinite(depth).all():
            raise DataError(f"{where}: depth holds values that are not finite", kind="damaged depth")
        self._check_size(depth.shape, "depth", where)
        self._check_depth_scale(depth, where)
        return depth

    def mask(self, index: int, *, visible: bool = True) -> NDArray[np.bool_]:
        """Return the (H, W) mask of an object.

        Args:
            index: index of the object in `annotations`.
            visible: its visible part (modal); else its whole silhouette within the image (amodal).

        Raises:
            DataError: missing, damaged, or not the size of the image.
            IndexError: there is no such object.
        """
        if not 0 <= index < len(self.annotations):
            raise IndexError(f"{self.where}: has {len(self.annotations)} objects, none with the index {index}")
        mask, where = self._read_mask(index, visible)
        self._check_size(mask.shape, "mask", where)
        return mask

    def visible_box(self, index: int) -> Box | None:
        """Return the tight box of an object's visible part, from its mask if the dataset does not say.

        Returns:
            x, y, width, height in pixels; None when nothing is visible.

        Raises:
            DataError: it has to come from the mask, which cannot be read.
        """
        annotation = self.annotations[index]
        if annotation.box_visible is not None or not np.isnan(annotation.visible_fraction):
            return annotation.box_visible
        mask = self.mask(index)
        return tight_box(mask) if mask.any() else None

    @abstractmethod
    def _read_camera(self) -> Camera: ...

    @abstractmethod
    def _read_annotations(self) -> tuple[Annotation, ...]: ...

    @abstractmethod
    def _image_data(self) -> tuple[bytes, str]:
        """Return the image file's bytes, and its name for messages."""

    @abstractmethod
    def _depth_data(self) -> tuple[bytes, str] | None: ...

    @abstractmethod
    def _read_mask(self, index: int, visible: bool) -> tuple[NDArray[np.bool_], str]: ...

    @staticmethod
    def _size_of(data: bytes, where: str) -> tuple[int, int]:
        with _data_errors("damaged image"):
            return image_size(data, where)

    def _check_size(self, shape: tuple[int, ...], what: str, where: str) -> None:
        if shape != self.size:
            (height, width), (h, w) = self.size, shape
            raise DataError(f"{where}: the {what} is {w} x {h}, the image {width} x {height}", kind=f"{what} size")

    def _check_depth_scale(self, depth: NDArray[np.float32], where: str) -> None:
        measured = depth[depth > 0]
        if measured.size and not 1e-3 < float(np.median(measured)) < MAX_DISTANCE:
            raise DataError(
                f"{where}: the median depth is {float(np.median(measured)):.4g} m; is depth_scale "
                f"{self.camera.depth_scale:g} right?",
                kind="depth scale",
            )


def decode_mask_image(data: bytes, where: str) -> NDArray[np.bool_]:
    """Decode a mask that is stored as an image: (H, W) bool, True where it is not black.

    Raises:
        DataError: truncated, damaged or not an image.
    """
    with _data_errors("damaged mask"):
        pixels = decode_pixels(data, where)
    return np.asarray(pixels > 0 if pixels.ndim == 2 else pixels[..., :3].any(axis=2))


@contextmanager
def _data_errors(kind: str) -> Iterator[None]:
    """Raise image errors as data errors of a kind, which are counted."""
    try:
        yield
    except ImageError as error:
        raise DataError(str(error), kind=kind) from error


class RandomOrder:
    """Endless random order of the numbers below `count`, each once per epoch.

    Args:
        count: how many numbers there are, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._key: tuple[int, ...] = ()
        self._order = np.zeros(0, np.int64)

    def __call__(self, seed: Sequence[int], place: int) -> int:
        """Return the number at a place of the order of a seed."""
        epoch, at = divmod(place, self._count)
        if self._key != (*seed, epoch):
            self._key = (*seed, epoch)
            self._order = np.random.default_rng(self._key).permutation(self._count)
        return int(self._order[at])
