"""Small labelled datasets and libraries for tests of evaluation."""

import numpy as np

from ocdit_core.data.writers import LabelledFrame, LabelledObject, shard_path, write_scene, write_shard
from ocdit_core.objects.archive import ObjectTemplates, save_templates

SIZE = (60, 80)
COLOURS = {1: (200, 30, 30), 2: (30, 200, 30), 3: (30, 30, 200), 4: (200, 200, 30)}
K = np.array([[100.0, 0, 40], [0, 100, 30], [0, 0, 1]])


def block(left, top, width, height, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def truth(number, visible, silhouette=None):
    return LabelledObject(
        object_id=number, rotation=np.eye(3), translation=np.array([0, 0, 0.5]), visible=visible,
        silhouette=visible if silhouette is None else silhouette,
    )  # fmt: skip


def frame(*objects):
    image = np.full((*SIZE, 3), 120, np.uint8)
    for one in objects:
        image[one.visible] = COLOURS[one.object_id]
    return LabelledFrame(image=image, K=K, depth=None, objects=objects)


def scenes(images):
    """Two scenes; blocks of their objects' colours move through the images."""
    made = {0: [], 7: []}
    for number in range(images):
        x = 4 + 3 * (number % 8)
        objects = [truth(1, block(x, 5, 14, 20)), truth(2, block(x + 20, 10, 10, 30))]
        if number % 2:
            objects.append(truth(3, block(x + 3, 35, 16, 15)))
        made[0 if number < images // 2 else 7].append(frame(*objects))
    return made


def write_set(path, images=6):
    for scene, frames in scenes(images).items():
        write_scene(path, "test", scene, frames)
    return path


def write_shards(path, images=6):
    for number, (scene, frames) in enumerate(scenes(images).items()):
        write_shard(shard_path(path, number), ((f"{scene:06d}_{at:06d}", one) for at, one in enumerate(frames)))
    return path


def write_library(path, names=("obj_000001", "obj_000002", "obj_000003")):
    """Objects of one colour each."""
    for number, name in enumerate(names, start=1):
        mask = np.zeros((1, 128, 128), bool)
        mask[:, 20:100, 20:100] = True
        rgb = mask[..., None] * np.array(COLOURS[number], np.uint8)
        save_templates(
            path,
            ObjectTemplates(
                name=name, rgb=rgb, mask=mask, box=np.ones((1, 4), np.float32), K=np.eye(3)[None],
                pose=np.eye(4)[None], points=np.ones((1, 3), np.float32), diameter=1.0, source_sha256="", unit="m",
            ),
        )  # fmt: skip
    return path
