"""Small data in BOP's two public layouts, written by hand: nothing here goes through the project's own writers.

One image of 8 x 6 pixels (width x height), two objects. Object 3 is a block of columns 2-4, rows 1-3; object 7 is
columns 4-5, rows 2-5, and hides two pixels of it.
"""

import io
import json
import tarfile

import numpy as np
from PIL import Image

SILHOUETTES = np.zeros((2, 6, 8), bool)
SILHOUETTES[0, 1:4, 2:5] = True
SILHOUETTES[1, 2:6, 4:6] = True
VISIBLE = SILHOUETTES.copy()
VISIBLE[0] &= ~SILHOUETTES[1]

CAMERA = {"cam_K": [10.0, 0.0, 4.0, 0.0, 11.0, 3.0, 0.0, 0.0, 1.0], "depth_scale": 0.1}
TRUTH = [
    {"cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [10.0, -20.0, 500.0], "obj_id": 3},
    {"cam_R_m2c": [0, -1, 0, 1, 0, 0, 0, 0, 1], "cam_t_m2c": [0.0, 0.0, 400.0], "obj_id": 7},
]
INFO = [
    {
        "bbox_obj": [2, 1, 2, 2],
        "bbox_visib": [2, 1, 2, 2],
        "px_count_all": 9,
        "px_count_valid": 9,
        "px_count_visib": 7,
        "visib_fract": 7 / 9,
    },
    {
        "bbox_obj": [4, 2, 1, 3],
        "bbox_visib": [4, 2, 1, 3],
        "px_count_all": 8,
        "px_count_valid": 8,
        "px_count_visib": 8,
        "visib_fract": 1.0,
    },
]
# By hand, column by column: the uncompressed run lengths that the BOP toolkit writes.
RUNS = {"0": {"counts": [13, 3, 3, 3, 3, 1, 22], "size": [6, 8]}, "1": {"counts": [26, 4, 2, 4, 12], "size": [6, 8]}}
DEPTH = np.full((6, 8), 9000, np.uint16)  # 0.9 m in units of 0.1 mm
DEPTH[VISIBLE[0]] = 5000
DEPTH[VISIBLE[1]] = 4000
DEPTH[0, 0] = 0


def photo(value: int = 100) -> np.ndarray:
    image = np.full((6, 8, 3), value, np.uint8)
    image[:, :, 0] += np.arange(8, dtype=np.uint8) * 4
    return image


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def write_bop_scene(root, split="test", scene=2, images=(0, 5), *, suffix=".png", colour="rgb", info=True):
    """One scene by hand: indented JSON as some datasets have it, others have a line for each image."""
    folder = root / split / f"{scene:06d}"
    for name in (colour, "depth", "mask", "mask_visib"):
        (folder / name).mkdir(parents=True)
    for image in images:
        kind = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}[suffix]
        pixels = photo(100 + image)
        (folder / colour / f"{image:06d}{suffix}").write_bytes(
            encoded(pixels if colour == "rgb" else pixels[..., 0], kind)
        )
        (folder / "depth" / f"{image:06d}.png").write_bytes(encoded(DEPTH))
        for index in range(2):
            name = f"{image:06d}_{index:06d}.png"
            (folder / "mask" / name).write_bytes(encoded(SILHOUETTES[index].astype(np.uint8) * 255))
            (folder / "mask_visib" / name).write_bytes(encoded(VISIBLE[index].astype(np.uint8) * 255))
    (folder / "scene_camera.json").write_text(json.dumps({str(image): CAMERA for image in images}, indent=2))
    lines = ",\n".join(f'  "{image}": {json.dumps(TRUTH)}' for image in images)
    (folder / "scene_gt.json").write_text("{\n" + lines + "\n}")
    if info:
        (folder / "scene_gt_info.json").write_text(json.dumps({str(image): INFO for image in images}))
    return folder


def shard_members() -> dict[str, bytes]:
    return {
        "rgb.png": encoded(photo()),
        "depth.png": encoded(DEPTH),
        "camera.json": json.dumps(CAMERA).encode(),
        "gt.json": json.dumps(TRUTH).encode(),
        "gt_info.json": json.dumps(INFO).encode(),
        "mask.json": json.dumps(
            {
                "0": {"counts": [13, 3, 3, 3, 3, 3, 20], "size": [6, 8]},
                "1": {"counts": [26, 4, 2, 4, 12], "size": [6, 8]},
            }
        ).encode(),
        "mask_visib.json": json.dumps(RUNS).encode(),
    }


def write_tar(path, frames: dict[str, dict[str, bytes]]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in frames.items():
            for kind, data in members.items():
                header = tarfile.TarInfo(f"{key}.{kind}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path
