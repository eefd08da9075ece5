"""Datasets in BOP's format out: scenes as folders or webdataset shards, and models; each appears whole, or not at all.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.bop import read_bytes
from ocdit_core.data.decoding import picture_size
from ocdit_core.data.frame import parse_json
from ocdit_core.errors import DataError
from ocdit_core.files import replacing, write_text
from ocdit_core.masks import encode_mask, tight_box

if TYPE_CHECKING:
    import trimesh

DEPTH_SCALE = 0.1
"""Millimetres of one unit of the depth maps that are written: up to 6.5 m."""

_UNSEEN = [-1, -1, -1, -1]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTruth:
    """One object of a picture.

    Attributes:
        object_id: BOP's obj_id, 0 or more.
        rotation: (3, 3) camera-from-model, OpenCV axes.
        translation: (3,) camera-from-model, metres.
        visible: (H, W) bool, what is seen of it.
        silhouette: (h, w) bool, all of it, on the picture or on a larger canvas, where objects that the picture's
            border cuts are whole.
        origin: x and y of the picture's first pixel on that canvas.
        whole: pixels of the whole silhouette and its box (x, y, width, height, from the picture's first pixel), where
            they are known though the canvas ends at the picture's border; default: counted on the canvas.
    """

    object_id: int
    rotation: NDArray[np.floating[Any]]
    translation: NDArray[np.floating[Any]]
    visible: NDArray[np.bool_]
    silhouette: NDArray[np.bool_]
    origin: tuple[int, int] = (0, 0)
    whole: tuple[int, tuple[int, int, int, int]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTruth:
    """A picture and all that is known of it.

    Attributes:
        image: (H, W, 3) uint8 RGB, or the bytes of a JPEG or PNG file, which are kept as they are.
        K: (3, 3) intrinsics in pixels.
        depth: (H, W) metres along the optical axis, 0 where there is nothing; None: no depth map is written.
        objects: those in the picture; what is not seen at all may be among them.
        rotation: (3, 3) camera-from-world, optional.
        translation: (3,) camera-from-world, metres, optional.
    """

    image: NDArray[np.uint8] | bytes
    K: NDArray[np.floating[Any]]
    depth: NDArray[np.floating[Any]] | None = None
    objects: Sequence[ObjectTruth] = field(default_factory=tuple)
    rotation: NDArray[np.floating[Any]] | None = None
    translation: NDArray[np.floating[Any]] | None = None


def camera_entry(frame: FrameTruth) -> dict[str, Any]:
    """Return a picture's entry in scene_camera.json."""
    entry: dict[str, Any] = {"cam_K": _list(frame.K, (3, 3), "K"), "depth_scale": DEPTH_SCALE}
    if frame.rotation is not None and frame.translation is not None:
        entry["cam_R_w2c"] = _list(frame.rotation, (3, 3), "rotation")
        entry["cam_t_w2c"] = _list(np.asarray(frame.translation) * 1000, (3,), "translation")
    return entry


def object_entry(truth: ObjectTruth) -> dict[str, Any]:
    """Return an object's entry in scene_gt.json: the pose in millimetres."""
    return {
        "obj_id": int(truth.object_id),
        "cam_R_m2c": _list(truth.rotation, (3, 3), "rotation"),
        "cam_t_m2c": _list(np.asarray(truth.translation) * 1000, (3,), "translation"),
    }


def info_entry(truth: ObjectTruth, depth: NDArray[np.floating[Any]] | None) -> dict[str, Any]:
    """Return an object's entry in scene_gt_info.json, by the rules of the BOP toolkit's calc_gt_info.py.

    Counts of the whole silhouette hold its part outside the picture, as far as the canvas reaches. A box is x, y and
    the differences from the first to the last column and row, so that one pixel has the box x, y, 0, 0; an object of
    which nothing is seen has the boxes -1, -1, -1, -1.
    """
    everything = pixels_of_silhouette(truth)
    seen = int(np.count_nonzero(truth.visible))
    valid = 0 if depth is None else int(np.count_nonzero((depth > 0) & inside(truth)))
    return {
        "bbox_obj": _whole_box(truth) if seen else _UNSEEN,
        "bbox_visib": _bop_box(truth.visible, (0, 0)) if seen else _UNSEEN,
        "px_count_all": everything,
        "px_count_valid": valid,
        "px_count_visib": seen,
        "visib_fract": visible_fraction(truth),
    }


def pixels_of_silhouette(truth: ObjectTruth) -> int:
    """Return the pixels of the whole silhouette, as far as it is known."""
    counted = int(np.count_nonzero(truth.silhouette))
    # Two drawings of one silhouette differ by a pixel of its rim now and then.
    return counted if truth.whole is None else max(counted, truth.whole[0])


def visible_fraction(truth: ObjectTruth) -> float:
    """Return BOP's visib_fract: the share of the whole silhouette that is seen, 0 to 1."""
    everything = pixels_of_silhouette(truth)
    return int(np.count_nonzero(truth.visible)) / everything if everything else 0.0


def inside(truth: ObjectTruth) -> NDArray[np.bool_]:
    """Return the (H, W) part of a silhouette that is in the picture: BOP's `mask`."""
    (x, y), (height, width) = truth.origin, truth.visible.shape
    return truth.silhouette[y : y + height, x : x + width]


def check(frame: FrameTruth, where: str) -> tuple[int, int]:
    """Return a picture's height and width.

    Raises:
        DataError: masks or depth of another size, pixels that are seen but not of the silhouette, or a canvas that does
            not hold the picture; the message names `where`.
    """
    image = frame.image
    if isinstance(image, bytes):
        size = picture_size(image, f"{where}: the image's bytes")
    else:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(f"{where}: the image is {image.dtype} {image.shape}, not uint8 (H, W, 3)")
        size = image.shape[:2]
    if frame.depth is not None and frame.depth.shape != size:
        raise DataError(f"{where}: depth has the shape {frame.depth.shape}, the image {size}")
    for number, truth in enumerate(frame.objects):
        if truth.visible.shape != size:
            raise DataError(f"{where}: object {number}: visible has the shape {truth.visible.shape}, the image {size}")
        if min(truth.origin) < 0 or inside(truth).shape != size:
            raise DataError(
                f"{where}: object {number}: the canvas {truth.silhouette.shape} from {truth.origin} does not hold "
                f"the image {size}"
            )
        stray = int(np.count_nonzero(truth.visible & ~inside(truth)))
        if stray:
            raise DataError(f"{where}: object {number}: {stray} pixels are visible but not of its silhouette")
    return size[0], size[1]


def encode_image(image: NDArray[np.uint8] | bytes, *, quality: int) -> tuple[bytes, str]:
    """Return a picture's file and its suffix: JPEG of this quality, or the bytes that were given."""
    if isinstance(image, bytes):
        return image, ".png" if image.startswith(b"\x89PNG") else ".jpg"
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return _encoded(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality]), ".jpg"


def encode_depth(depth: NDArray[np.floating[Any]]) -> bytes:
    """Return a PNG file of 16 bits in units of DEPTH_SCALE; what is beyond its range or not finite becomes 0."""
    units = np.nan_to_num(np.asarray(depth, np.float32) * np.float32(1000 / DEPTH_SCALE), posinf=0, neginf=0)
    units = np.where((units < 0) | (units > 65535), 0, np.rint(units))
    # Surfaces are smooth from row to row; by itself OpenCV tries all filters in each row, which takes twice as long.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, *_filter("IMWRITE_PNG_FILTER_UP")]
    return _encoded(".png", units.astype(np.uint16), options)


def encode_mask_image(mask: NDArray[np.bool_]) -> bytes:
    """Return a PNG file of a mask: 255 where it is True."""
    # Runs of equal bytes are what masks are made of: five times as quick as OpenCV's own choice, and smaller.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    options += _filter("IMWRITE_PNG_FILTER_NONE")
    return _encoded(".png", mask.astype(np.uint8) * 255, options)


def _bop_box(mask: NDArray[np.bool_], origin: tuple[int, int]) -> list[int]:
    if not mask.any():
        return _UNSEEN
    x, y, width, height = tight_box(mask)
    return [x - origin[0], y - origin[1], width - 1, height - 1]


def _whole_box(truth: ObjectTruth) -> list[int]:
    if truth.whole is None:
        return _bop_box(truth.silhouette, truth.origin)
    x, y, width, height = truth.whole[1]
    return [x, y, width - 1, height - 1]


def _list(values: NDArray[np.floating[Any]], shape: tuple[int, ...], name: str) -> list[float]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(f"{name} has the shape {array.shape} or values that are not finite, not {shape} numbers")
    return [float(value) for value in array.ravel()]


def _filter(name: str) -> list[int]:
    # Older versions of OpenCV do not let one choose.
    return [cv2.IMWRITE_PNG_FILTER, getattr(cv2, name)] if hasattr(cv2, name) else []


def _encoded(suffix: str, pixels: NDArray[Any], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise DataError(f"a picture of {pixels.shape} cannot be written as {suffix}")
    return data.tobytes()


_PART = ".part-"


def scene_folder(path: str | Path, split: str, scene_id: int) -> Path:
    """Return the folder of a scene; where it exists, the scene is complete."""
    return Path(path) / split / f"{scene_id:06d}"


def write_scene(
    path: str | Path,
    split: str,
    scene_id: int,
    frames: Iterable[FrameTruth],
    *,
    quality: int = 95,
    amodal: bool = True,
) -> Path:
    """Write a scene of a dataset; it appears under its name when all of it is written.

    Args:
        path: the dataset's folder, made when missing.
        split: its subfolder, such as "train_pbr".
        scene_id: the scene's number.
        frames: its pictures, numbered from 0; they are written one by one as they come.
        quality: of the JPEG files, 1 to 100.
        amodal: whether masks of whole silhouettes are written, too.

    Returns:
        The scene's folder.

    Raises:
        DataError: the scene is there already, a frame does not fit together, or nothing can be written here.
    """
    final = scene_folder(path, split, scene_id)
    if final.exists():
        raise DataError(f"{final}: is there already")
    part = final.with_name(f"{_PART}{final.name}-{secrets.token_hex(4)}")
    try:
        for name in ("rgb", "depth", "mask_visib", *(("mask",) if amodal else ())):
            (part / name).mkdir(parents=True)
        cameras, truths, infos = {}, {}, {}
        for number, frame in enumerate(frames):
            check(frame, f"{final}: {number}")
            _write_pictures(part, number, frame, quality=quality, amodal=amodal)
            cameras[number] = camera_entry(frame)
            truths[number] = [object_entry(truth) for truth in frame.objects]
            infos[number] = [info_entry(truth, frame.depth) for truth in frame.objects]
        if not cameras:
            raise DataError(f"{final}: a scene needs a frame")
        for name, entries in (("camera", cameras), ("gt", truths), ("gt_info", infos)):
            (part / f"scene_{name}.json").write_text(line_by_line(entries), encoding="utf-8")
        if not any((part / "depth").iterdir()):
            (part / "depth").rmdir()
        # Fails when another process has written the same scene meanwhile: a folder is renamed onto an empty one only.
        os.rename(part, final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if final.exists():
            raise DataError(f"{final}: is there already") from error
        raise DataError(f"{final}: cannot be written ({error.strerror})") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return final


def remove_unfinished(path: str | Path, split: str) -> int:
    """Remove what killed writers left of scenes; only while nobody writes this split.

    Returns:
        How many were removed.
    """
    left = list((Path(path) / split).glob(f"{_PART}*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)


def write_camera(path: str | Path, K: NDArray[np.floating[Any]], size: tuple[int, int]) -> None:
    """Write a dataset's camera.json: typical intrinsics K (3, 3) and `size`, height and width in pixels."""
    camera = {
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "depth_scale": DEPTH_SCALE,
        "fx": float(K[0, 0]),
        "fy": float(K[1, 1]),
        "height": int(size[0]),
        "width": int(size[1]),
    }
    write_text(Path(path) / "camera.json", json.dumps(camera, indent=2) + "\n")


def line_by_line(entries: Mapping[int, Any]) -> str:
    """Return a JSON object with a line for each number, as BOP's files are."""
    lines = [f'  "{number}": {json.dumps(entry, sort_keys=True)}' for number, entry in sorted(entries.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _write_pictures(folder: Path, number: int, frame: FrameTruth, *, quality: int, amodal: bool) -> None:
    data, suffix = encode_image(frame.image, quality=quality)
    (folder / "rgb" / f"{number:06d}{suffix}").write_bytes(data)
    if frame.depth is not None:
        (folder / "depth" / f"{number:06d}.png").write_bytes(encode_depth(frame.depth))
    for index, truth in enumerate(frame.objects):
        name = f"{number:06d}_{index:06d}.png"
        (folder / "mask_visib" / name).write_bytes(encode_mask_image(truth.visible))
        if amodal:
            (folder / "mask" / name).write_bytes(encode_mask_image(inside(truth)))


def shard_path(folder: str | Path, number: int) -> Path:
    """Return the path of a shard; where it exists, the shard is complete."""
    return Path(folder) / f"shard-{number:06d}.tar"


def write_shard(
    path: str | Path,
    frames: Iterable[tuple[str, FrameTruth]],
    *,
    quality: int = 95,
    amodal: bool = True,
) -> list[str]:
    """Write a shard; it appears under its name when all of it is written, in place of an older one.

    The same frames give the same bytes.

    Args:
        path: the .tar file; see `shard_path`.
        frames: key, usually "000003_000012" (scene and image), and picture; written one by one as they come.
        quality: of the JPEG files, 1 to 100.
        amodal: whether masks of whole silhouettes are written, too.

    Returns:
        The keys.

    Raises:
        DataError: no frame, a key twice or with a dot, a frame that does not fit together, or nothing can be written.
    """
    keys: list[str] = []
    known: set[str] = set()
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, frame in frames:
            if "." in key or key in known:
                raise DataError(f"{path}: the key {key!r} has a dot in it, or is there twice")
            known.add(key)
            keys.append(key)
            check(frame, f"{path}: {key}")
            for kind, data in _members(frame, quality=quality, amodal=amodal):
                header = tarfile.TarInfo(f"{key}.{kind}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        if not keys:
            raise DataError(f"{path}: a shard needs a frame")
    return keys


def write_key_to_shard(folder: str | Path) -> int:
    """Write key_to_shard.json, which says for each key the number of its shard, for all shards in a folder.

    Returns:
        The number of keys.

    Raises:
        DataError: there is no shard, one is damaged, or a key is in two of them.
    """
    keys: dict[str, int] = {}
    shards = sorted(Path(folder).glob("shard-*.tar"))
    if not shards:
        raise DataError(f"{folder}: holds no shard (shard-000000.tar ...)")
    for shard in shards:
        try:
            with tarfile.open(shard) as tar:
                here = {name.split(".")[0] for name in tar.getnames()}
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{shard}: truncated or damaged shard ({error})", kind="damaged shard") from error
        twice = here & keys.keys()
        if twice:
            raise DataError(f"{shard}: the key {min(twice)} is in shard {keys[min(twice)]}, too")
        keys.update(dict.fromkeys(sorted(here), int(shard.stem.removeprefix("shard-"))))
    write_text(Path(folder) / "key_to_shard.json", json.dumps(keys))
    return len(keys)


def _members(frame: FrameTruth, *, quality: int, amodal: bool) -> Iterable[tuple[str, bytes]]:
    data, suffix = encode_image(frame.image, quality=quality)
    yield f"rgb{suffix}", data
    if frame.depth is not None:
        yield "depth.png", encode_depth(frame.depth)
    yield "camera.json", _json(camera_entry(frame))
    yield "gt.json", _json([object_entry(truth) for truth in frame.objects])
    yield "gt_info.json", _json([info_entry(truth, frame.depth) for truth in frame.objects])
    masks = {str(number): encode_mask(truth.visible, compressed=False) for number, truth in enumerate(frame.objects)}
    yield "mask_visib.json", _json(masks)
    if amodal:
        masks = {
            str(number): encode_mask(inside(truth), compressed=False) for number, truth in enumerate(frame.objects)
        }
        yield "mask.json", _json(masks)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


INFO = "models_info.json"

# trimesh's names of texture coordinates, and those of the BOP toolkit (and of MeshLab).
_RENAMED = {b"s": b"texture_u", b"t": b"texture_v"}
_FORMAT = b"format ascii 1.0\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """An object of a dataset.

    Attributes:
        mesh: in metres, in the frame that the poses mean; with a texture, vertex colours, or neither.
        symmetries_discrete: (D, 4, 4) transforms that leave it looking alike, metres, without the identity.
        symmetries_continuous: (C, 2, 3) axes of rotation: direction, and a point on the axis in metres.
    """

    mesh: trimesh.Trimesh
    symmetries_discrete: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4, 4)))
    symmetries_continuous: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2, 3)))


def model_path(folder: str | Path, object_id: int) -> Path:
    """Return the path of an object's mesh in a folder of models."""
    return Path(folder) / f"obj_{object_id:06d}.ply"


def write_model(folder: str | Path, object_id: int, model: Model) -> dict[str, Any]:
    """Write an object's mesh, and its texture as obj_NNNNNN.png, atomically each.

    Args:
        folder: "models" in the dataset's folder, made when missing.
        object_id: its number.
        model: the object.

    Returns:
        Its entry for `write_models_info`.

    Raises:
        DataError: the mesh has no faces, or nothing can be written here.
    """
    from trimesh.visual import ColorVisuals, TextureVisuals

    from ocdit_core.objects.meshes import diameter
    from ocdit_core.objects.surfaces import texture_of

    path = model_path(folder, object_id)
    if not len(model.mesh.faces):
        raise DataError(f"{path}: the mesh has no faces")
    mesh = model.mesh.copy()
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
        picture = path.with_suffix(".png")
        header, mark, body = data.partition(b"end_header\n")
        for name, instead in _RENAMED.items():
            header = re.sub(rb"property (\w+) " + name + b"\n", rb"property \1 " + instead + b"\n", header)
        header = header.replace(_FORMAT, _FORMAT + b"comment TextureFile " + picture.name.encode() + b"\n", 1)
        data = header + mark + body
        encoded = io.BytesIO()
        texture.convert("RGB").save(encoded, "PNG")
        with replacing(picture) as temporary:
            temporary.write_bytes(encoded.getvalue())
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    low, high = np.asarray(mesh.vertices).min(axis=0), np.asarray(mesh.vertices).max(axis=0)
    entry: dict[str, Any] = {"diameter": float(diameter(mesh.vertices))}
    for axis, letter in enumerate("xyz"):
        entry[f"min_{letter}"] = float(low[axis])
        entry[f"size_{letter}"] = float(high[axis] - low[axis])
    if len(model.symmetries_discrete):
        transforms = np.array(model.symmetries_discrete, dtype=np.float64)
        transforms[:, :3, 3] *= 1000
        entry["symmetries_discrete"] = transforms.reshape(-1, 16).tolist()
    if len(model.symmetries_continuous):
        entry["symmetries_continuous"] = [
            {"axis": axis.tolist(), "offset": (offset * 1000).tolist()}
            for axis, offset in np.asarray(model.symmetries_continuous, dtype=np.float64)
        ]
    return entry


def write_models_info(folder: str | Path, entries: dict[int, dict[str, Any]]) -> None:
    """Write models_info.json, atomically; entries of other objects that are in the file already stay.

    Raises:
        DataError: the file that is there is damaged, or nothing can be written here.
    """
    path = Path(folder) / INFO
    known: dict[int, Any] = {}
    if path.is_file():
        old = parse_json(read_bytes(path), str(path))
        if not isinstance(old, dict) or not all(key.isdecimal() for key in old):
            raise DataError(f"{path}: is no object with a number for each model", kind="damaged JSON")
        known = {int(key): value for key, value in old.items()}
    write_text(path, line_by_line({**known, **entries}))
