"""Write datasets in BOP's format: scenes as folders or webdataset shards, and models.

Each scene, shard and model appears under its name when it is complete.

The formats: https://github.com/thodan/bop_toolkit/blob/master/docs/bop_datasets_format.md
https://github.com/thodan/bop_toolkit/blob/master/bop_toolkit_lib/dataset/bop_webdataset.py
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.frame import read_json
from ocdit_core.errors import DataError
from ocdit_core.files import replacing, write_text
from ocdit_core.masks import Box, encode_mask, tight_box

if TYPE_CHECKING:
    import trimesh

Floats = NDArray[np.floating[Any]]

DEPTH_SCALE = 0.1
"""Millimetres of one unit of the depth maps: up to 6.5 m."""
JPEG_QUALITY = 95
MODELS_INFO = "models_info.json"

_UNSEEN = [-1, -1, -1, -1]
_PART = ".part-"
# trimesh's names of texture coordinates, and those of the BOP toolkit (and of MeshLab).
_PLY_NAMES = {b"s": b"texture_u", b"t": b"texture_v"}
_PLY_FORMAT = b"format ascii 1.0\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledObject:
    """One object of an image.

    Attributes:
        object_id: BOP's obj_id, 0 or more.
        rotation: (3, 3) camera-from-model, OpenCV axes.
        translation: (3,) camera-from-model, metres.
        visible: (H, W) bool, its visible part.
        silhouette: (H, W) bool, all of it inside the image (amodal).
        whole: number of pixels and box of the whole silhouette, including its part outside the image; default: those
            of `silhouette`.
    """

    object_id: int
    rotation: Floats
    translation: Floats
    visible: NDArray[np.bool_]
    silhouette: NDArray[np.bool_]
    whole: tuple[int, Box] | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels of the whole silhouette."""
        inside = int(np.count_nonzero(self.silhouette))
        # Two renderings of one silhouette may differ by a pixel of its rim.
        return inside if self.whole is None else max(inside, self.whole[0])

    @property
    def visible_fraction(self) -> float:
        """BOP's visib_fract: visible pixels / pixels of the whole silhouette, 0 to 1."""
        return int(np.count_nonzero(self.visible)) / self.pixels if self.pixels else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledFrame:
    """An image with its ground truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        K: (3, 3) intrinsics in pixels.
        depth: (H, W) metres along the optical axis, 0 where there is nothing; None: no depth map is written.
        objects: annotated objects, including those that are not visible.
        rotation: (3, 3) camera-from-world, optional.
        translation: (3,) camera-from-world, metres, optional.
    """

    image: NDArray[np.uint8]
    K: Floats
    depth: Floats | None = None
    objects: Sequence[LabelledObject] = ()
    rotation: Floats | None = None
    translation: Floats | None = None


def scene_folder(path: str | Path, split: str, scene_id: int) -> Path:
    """Return the folder of a scene; where it exists, the scene is complete."""
    return Path(path) / split / f"{scene_id:06d}"


def shard_path(folder: str | Path, number: int) -> Path:
    """Return the path of a shard; where it exists, the shard is complete."""
    return Path(folder) / f"shard-{number:06d}.tar"


def model_path(folder: str | Path, object_id: int) -> Path:
    """Return the path of an object's mesh in a folder of models."""
    return Path(folder) / f"obj_{object_id:06d}.ply"


def write_scene(path: str | Path, split: str, scene_id: int, frames: Iterable[LabelledFrame]) -> Path:
    """Write a scene of a dataset as a folder; it appears under its name when it is complete.

    Args:
        path: the dataset's folder, created when missing.
        split: its subfolder, such as "train_pbr".
        scene_id: the scene's number.
        frames: its images, numbered from 0; they are written one by one as they come.

    Returns:
        The scene's folder.

    Raises:
        DataError: the scene exists, a frame is inconsistent, or the folder cannot be written.
    """
    final = scene_folder(path, split, scene_id)
    if final.exists():
        raise DataError(f"{final}: exists already")
    part = final.with_name(f"{_PART}{final.name}-{secrets.token_hex(4)}")
    try:
        for name in ("rgb", "depth", "mask_visib", "mask"):
            (part / name).mkdir(parents=True)
        cameras, objects, infos = {}, {}, {}
        for number, frame in enumerate(frames):
            _check(frame, f"{final}: {number}")
            _write_images(part, number, frame)
            cameras[number] = _camera_entry(frame)
            objects[number] = [_object_entry(item) for item in frame.objects]
            infos[number] = [info_entry(item, frame.depth) for item in frame.objects]
        if not cameras:
            raise DataError(f"{final}: a scene needs a frame")
        for name, entries in (("camera", cameras), ("gt", objects), ("gt_info", infos)):
            (part / f"scene_{name}.json").write_text(_by_number(entries), encoding="utf-8")
        if not any((part / "depth").iterdir()):
            (part / "depth").rmdir()
        # Fails when another process has written the same scene meanwhile: a folder is renamed onto an empty one only.
        os.rename(part, final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if final.exists():
            raise DataError(f"{final}: exists already") from error
        raise DataError(f"{final}: cannot be written ({error.strerror})") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return final


def remove_unfinished(path: str | Path, split: str) -> None:
    """Remove unfinished scenes of killed writers; only while nobody writes this split."""
    for folder in (Path(path) / split).glob(f"{_PART}*"):
        shutil.rmtree(folder, ignore_errors=True)


def write_shard(path: str | Path, frames: Iterable[tuple[str, LabelledFrame]]) -> list[str]:
    """Write a shard; it appears under its name when it is complete, in place of an older one.

    The same frames give the same bytes.

    Args:
        path: the .tar file; see `shard_path`.
        frames: key, usually "000003_000012" (scene and image), and frame; written one by one as they come.

    Returns:
        The keys.

    Raises:
        DataError: no frame, a key twice or with a dot, an inconsistent frame, or the file cannot be written.
    """
    keys: dict[str, None] = {}  # in order
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, frame in frames:
            if "." in key or key in keys:
                raise DataError(f"{path}: the key {key!r} has a dot in it, or occurs twice")
            keys[key] = None
            _check(frame, f"{path}: {key}")
            for kind, data in _members(frame):
                header = tarfile.TarInfo(f"{key}.{kind}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        if not keys:
            raise DataError(f"{path}: a shard needs a frame")
    return list(keys)


def write_key_to_shard(folder: str | Path) -> int:
    """Write key_to_shard.json, the number of the shard of each key in a folder, and return the number of keys.

    Raises:
        DataError: a shard is damaged.
    """
    keys: dict[str, int] = {}
    for shard in sorted(Path(folder).glob("shard-*.tar")):
        try:
            with tarfile.open(shard) as tar:
                here = sorted({name.split(".")[0] for name in tar.getnames()})
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{shard}: truncated or damaged shard ({error})", kind="damaged shard") from error
        keys.update(dict.fromkeys(here, int(shard.stem.removeprefix("shard-"))))
    write_text(Path(folder) / "key_to_shard.json", json.dumps(keys))
    return len(keys)


def write_camera(path: str | Path, K: Floats, size: tuple[int, int]) -> None:
    """Write a dataset's camera.json: typical intrinsics K (3, 3) and `size`, height and width in pixels."""
    intrinsics = {"cx": float(K[0, 2]), "cy": float(K[1, 2]), "fx": float(K[0, 0]), "fy": float(K[1, 1])}
    camera = {**intrinsics, "depth_scale": DEPTH_SCALE, "height": int(size[0]), "width": int(size[1])}
    write_text(Path(path) / "camera.json", json.dumps(camera, indent=2, sort_keys=True) + "\n")


def write_model(folder: str | Path, object_id: int, mesh: trimesh.Trimesh) -> dict[str, Any]:
    """Write an object's mesh in millimetres as obj_NNNNNN.ply, and its texture as obj_NNNNNN.png, atomically each.

    Args:
        folder: "models" in the dataset's folder, created when missing.
        object_id: its number.
        mesh: in metres, in the frame of the poses; with a texture, vertex or face colours, or neither.

    Returns:
        Its entry for `write_models_info`.

    Raises:
        DataError: the mesh has no faces, or the files cannot be written.
    """
    from trimesh.visual import ColorVisuals, TextureVisuals

    from ocdit_core.objects.meshes import diameter
    from ocdit_core.objects.surfaces import texture_of

    path = model_path(folder, object_id)
    if not len(mesh.faces):
        raise DataError(f"{path}: the mesh has no faces")
    mesh = mesh.copy()
    mesh.remove_unreferenced_vertices()
    mesh.apply_scale(1000)
    texture = texture_of(mesh.visual)
    if texture is None and isinstance(mesh.visual, TextureVisuals):
        mesh.visual = mesh.visual.to_color()
    if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "face":
        # The toolkit knows colours of vertices only.
        mesh.visual = ColorVisuals(mesh, vertex_colors=mesh.visual.vertex_colors)
    data = mesh.export(file_type="ply", encoding="ascii", vertex_normal=True)
    assert isinstance(data, bytes)
    if texture is not None:
        image = path.with_suffix(".png")
        header, mark, body = data.partition(b"end_header\n")
        for name, instead in _PLY_NAMES.items():
            header = re.sub(rb"property (\w+) " + name + b"\n", rb"property \1 " + instead + b"\n", header)
        comment = b"comment TextureFile " + image.name.encode() + b"\n"
        data = header.replace(_PLY_FORMAT, _PLY_FORMAT + comment, 1) + mark + body
        with replacing(image) as temporary:
            texture.convert("RGB").save(temporary, "PNG")
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    low, high = mesh.bounds
    entry: dict[str, Any] = {"diameter": float(diameter(mesh.vertices))}
    for axis, letter in enumerate("xyz"):
        entry[f"min_{letter}"] = float(low[axis])
        entry[f"size_{letter}"] = float(high[axis] - low[axis])
    return entry


def write_models_info(folder: str | Path, entries: dict[int, dict[str, Any]]) -> None:
    """Write models_info.json, atomically; entries of other objects in an existing file stay.

    Raises:
        DataError: the existing file is damaged, or it cannot be written.
    """
    path = Path(folder) / MODELS_INFO
    known: dict[int, Any] = {}
    if path.is_file():
        old = read_json(path)
        if not isinstance(old, dict) or not all(key.isdecimal() for key in old):
            raise DataError(f"{path}: not an object with a number for each model", kind="damaged JSON")
        known = {int(key): value for key, value in old.items()}
    write_text(path, _by_number({**known, **entries}))


def info_entry(item: LabelledObject, depth: Floats | None) -> dict[str, Any]:
    """Return an object's entry in scene_gt_info.json, by the rules of the BOP toolkit's calc_gt_info.py.

    A box is x, y and the differences from the first to the last column and row, so that one pixel has the box
    x, y, 0, 0; an object that is not visible has the boxes -1, -1, -1, -1.
    """
    seen = int(np.count_nonzero(item.visible))
    return {
        "bbox_obj": _bop_box(tight_box(item.silhouette) if item.whole is None else item.whole[1]) if seen else _UNSEEN,
        "bbox_visib": _bop_box(tight_box(item.visible)) if seen else _UNSEEN,
        "px_count_all": item.pixels,
        "px_count_valid": 0 if depth is None else int(np.count_nonzero((depth > 0) & item.silhouette)),
        "px_count_visib": seen,
        "visib_fract": item.visible_fraction,
    }


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """Return a JPEG file of an image."""
    return _encoded(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def encode_depth(depth: Floats) -> bytes:
    """Return a PNG file of 16 bits in units of DEPTH_SCALE; values out of range or not finite become 0."""
    units = np.nan_to_num(np.asarray(depth, np.float32) * np.float32(1000 / DEPTH_SCALE), posinf=0, neginf=0)
    units = np.where((units < 0) | (units > 65535), 0, np.rint(units))
    # Surfaces are smooth from row to row; by default OpenCV tries all filters in each row, which takes twice as long.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, *_filter("IMWRITE_PNG_FILTER_UP")]
    return _encoded(".png", units.astype(np.uint16), options)


def _encode_mask_image(mask: NDArray[np.bool_]) -> bytes:
    # Masks are runs of equal bytes: five times as fast as OpenCV's default, and smaller.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    options += _filter("IMWRITE_PNG_FILTER_NONE")
    return _encoded(".png", mask.astype(np.uint8) * 255, options)


def _filter(name: str) -> list[int]:
    # Older versions of OpenCV do not offer the choice.
    return [cv2.IMWRITE_PNG_FILTER, getattr(cv2, name)] if hasattr(cv2, name) else []


def _encoded(suffix: str, pixels: NDArray[Any], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise DataError(f"an image of {pixels.shape} cannot be written as {suffix}")
    return data.tobytes()


def _check(frame: LabelledFrame, where: str) -> None:
    """Raise DataError for masks of another size than the image, and for visible pixels outside the silhouette."""
    for number, item in enumerate(frame.objects):
        shapes, size = (item.visible.shape, item.silhouette.shape), frame.image.shape[:2]
        if shapes != (size, size):
            raise DataError(f"{where}: object {number}: masks of {shapes[0]} and {shapes[1]}, the image has {size}")
        if (item.visible & ~item.silhouette).any():
            raise DataError(f"{where}: object {number}: some pixels are visible but not of its silhouette")


def _camera_entry(frame: LabelledFrame) -> dict[str, Any]:
    entry: dict[str, Any] = {"cam_K": _numbers(frame.K), "depth_scale": DEPTH_SCALE}
    if frame.rotation is not None and frame.translation is not None:
        entry["cam_R_w2c"] = _numbers(frame.rotation)
        entry["cam_t_w2c"] = _numbers(np.asarray(frame.translation) * 1000)
    return entry


def _object_entry(item: LabelledObject) -> dict[str, Any]:
    return {
        "obj_id": int(item.object_id),
        "cam_R_m2c": _numbers(item.rotation),
        "cam_t_m2c": _numbers(np.asarray(item.translation) * 1000),
    }


def _numbers(values: Floats) -> list[float]:
    return [float(value) for value in np.ravel(values)]


def _bop_box(box: Box) -> list[int]:
    return [box[0], box[1], box[2] - 1, box[3] - 1]


def _by_number(entries: Mapping[int, Any]) -> str:
    """Return a JSON object with a line for each number, as BOP's files are."""
    lines = [f'  "{number}": {json.dumps(entry, sort_keys=True)}' for number, entry in sorted(entries.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _write_images(folder: Path, number: int, frame: LabelledFrame) -> None:
    (folder / "rgb" / f"{number:06d}.jpg").write_bytes(encode_image(frame.image))
    if frame.depth is not None:
        (folder / "depth" / f"{number:06d}.png").write_bytes(encode_depth(frame.depth))
    for index, item in enumerate(frame.objects):
        name = f"{number:06d}_{index:06d}.png"
        (folder / "mask_visib" / name).write_bytes(_encode_mask_image(item.visible))
        (folder / "mask" / name).write_bytes(_encode_mask_image(item.silhouette))


def _members(frame: LabelledFrame) -> Iterable[tuple[str, bytes]]:
    yield "rgb.jpg", encode_image(frame.image)
    if frame.depth is not None:
        yield "depth.png", encode_depth(frame.depth)
    yield "camera.json", json.dumps(_camera_entry(frame)).encode()
    yield "gt.json", json.dumps([_object_entry(item) for item in frame.objects]).encode()
    yield "gt_info.json", json.dumps([info_entry(item, frame.depth) for item in frame.objects]).encode()
    for kind, field in (("mask_visib.json", "visible"), ("mask.json", "silhouette")):
        # Plain lists of numbers, as the BOP toolkit and the published shards have them.
        masks = [encode_mask(getattr(item, field), compressed=False) for item in frame.objects]
        yield kind, json.dumps({str(number): mask for number, mask in enumerate(masks)}).encode()
