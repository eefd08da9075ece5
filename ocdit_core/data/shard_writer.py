"""Shards out, in BOP's webdataset layout: a shard appears whole, or not at all.

The format: https://github.com/thodan/bop_toolkit/blob/master/bop_toolkit_lib/dataset/bop_webdataset.py
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ocdit_core.data.truth import (
    FrameTruth,
    camera_entry,
    check,
    encode_depth,
    encode_image,
    info_entry,
    inside,
    object_entry,
    run_lengths,
)
from ocdit_core.errors import DataError
from ocdit_core.files import replacing, write_text


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
    try:
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
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
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
    masks = {str(number): run_lengths(truth.visible) for number, truth in enumerate(frame.objects)}
    yield "mask_visib.json", _json(masks)
    if amodal:
        masks = {str(number): run_lengths(inside(truth)) for number, truth in enumerate(frame.objects)}
        yield "mask.json", _json(masks)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
