"""Small BOP data for tests: flat shapes, each object in a colour of its own, so that an image tells what is where."""

import colorsys
from pathlib import Path

import cv2
import numpy as np

from ocdit_core.data.writers import LabelledFrame, LabelledObject, write_scene
from ocdit_core.objects.archive import ObjectTemplates, save_templates

SIZE = (240, 320)
OBJECTS = 10


def colour_of(object_id):
    """RGB of an object: hues far apart, none grey."""
    red, green, blue = colorsys.hsv_to_rgb((object_id - 1) / OBJECTS, 0.85, 0.85)
    return np.array([red, green, blue]) * 255


def write_library(folder, objects=range(1, OBJECTS + 1), views=6):
    """Archives of ellipses in the objects' colours; the widths differ between views."""
    for object_id in objects:
        rgb = np.zeros((views, 128, 128, 3), np.uint8)
        mask = np.zeros((views, 128, 128), np.uint8)
        for view in range(views):
            cv2.ellipse(mask[view], (64, 64), (20 + 6 * view, 58), 0, 0, 360, 1, -1)
            rgb[view][mask[view] > 0] = colour_of(object_id)
        angles = 2 * np.pi * np.arange(views) / views
        poses = np.tile(np.eye(4), (views, 1, 1))
        poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angles)
        poses[:, 0, 2], poses[:, 2, 0] = np.sin(angles), -np.sin(angles)
        poses[:, 2, 3] = 1.0
        templates = ObjectTemplates(
            name=f"obj_{object_id:06d}",
            rgb=rgb,
            mask=mask > 0,
            box=np.tile(np.float32([0, 0, 100, 100]), (views, 1)),
            K=np.tile(np.eye(3), (views, 1, 1)),
            pose=poses,
            points=np.float32([[-0.1, -0.1, -0.1], [0.1, 0.1, 0.1]]),
            diameter=0.3,
        )
        save_templates(folder, templates)
    return Path(folder)


def paint(seed, object_ids=None, size=SIZE):
    """Return a grey image with shapes, later ones over earlier ones; five objects unless they are given."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.arange(1, OBJECTS + 1), 5, replace=False) if object_ids is None else object_ids
    grey = rng.integers(90, 110, size, dtype=np.uint8)
    image = np.repeat(cv2.GaussianBlur(grey, (5, 5), 2)[..., None], 3, axis=2)
    labels = np.zeros(size, np.uint8)
    whole = []
    for number, object_id in enumerate(ids, start=1):
        shape = np.zeros(size, np.uint8)
        centre = (int(rng.uniform(30, size[1] - 30)), int(rng.uniform(30, size[0] - 30)))
        axes = (int(rng.uniform(12, 40)), int(rng.uniform(12, 40)))
        cv2.ellipse(shape, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        labels[shape > 0] = number
        image[shape > 0] = colour_of(object_id)
        whole.append(shape > 0)
    objects = [
        LabelledObject(
            object_id=int(object_id),
            rotation=np.eye(3),
            translation=np.array([0.0, 0.0, 1.0]),
            visible=labels == number,
            silhouette=silhouette,
        )
        for number, (object_id, silhouette) in enumerate(zip(ids, whole, strict=True), start=1)
    ]
    return LabelledFrame(image=image, K=np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]), objects=objects)


def looks_like(image, object_id, tolerance=40):
    """(H, W) bool of an (H, W, 3) image: where its colour is that of the object."""
    return np.abs(image.astype(float) - colour_of(object_id)).max(axis=-1) < tolerance


def make_dataset(folder, frames=8):
    """Write objects/, a library, and painted/ with the splits train and test of different frames."""
    write_library(folder / "objects")
    for split, seed in (("train", 0), ("test", 50)):
        write_scene(folder / "painted", split, 0, [paint(seed + number) for number in range(frames)])
