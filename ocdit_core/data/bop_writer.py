"""Scenes out, in BOP's folders: a scene appears whole, or not at all.

The format: https://github.com/thodan/bop_toolkit/blob/master/docs/bop_datasets_format.md
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.truth import (
    DEPTH_SCALE,
    FrameTruth,
    camera_entry,
    check,
    encode_depth,
    encode_image,
    encode_mask_image,
    info_entry,
    inside,
    object_entry,
)
from ocdit_core.errors import DataError
from ocdit_core.files import write_text

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
