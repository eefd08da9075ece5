"""A labelled scene and results for it, made of whole numbers alone: the same on every machine, for ever.

What the BOP toolkit says of it is in test_average_precision.py.
"""

import numpy as np

from ocdit_core.data.writers import LabelledFrame, LabelledObject, write_scene
from ocdit_core.evaluation.bop_results import ResultRow
from ocdit_core.masks import encode_mask

SCENE, IMAGES, SIZE = 2, 12, (480, 640)
OBJECTS = (1, 5, 6, 8)
K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


class Dice:
    """Knuth's MMIX generator."""

    def __init__(self, seed):
        self.state = seed

    def __call__(self, below):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % below


def rectangle(x, y, width, height):
    mask = np.zeros(SIZE, bool)
    mask[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    return mask


def boxes_of(image):
    """(obj_id, x, y, width, height), the later ones in front."""
    dice = Dice(1000 + image)
    boxes = []
    for _ in range(2 + dice(7)):
        width, height = 8 + dice(3) * dice(90), 8 + dice(3) * dice(90)
        boxes.append((OBJECTS[dice(4)], dice(640 - width), dice(480 - height), width, height))
        if dice(3) == 0:
            # Something in front of it that leaves a twentieth of it to be seen, or nothing.
            _, x, y, width, height = boxes[-1]
            boxes.append((OBJECTS[dice(4)], x, y, width - (dice(4) > 0) * (1 + width // 20), height))
    return boxes


def write_truth(path):
    frames = []
    for image in range(IMAGES):
        silhouettes = [rectangle(*box[1:]) for box in boxes_of(image)]
        covered = np.zeros(SIZE, bool)
        objects = []
        for box, mask in reversed(list(zip(boxes_of(image), silhouettes, strict=True))):
            objects.append(
                LabelledObject(
                    object_id=box[0],
                    rotation=np.eye(3),
                    translation=np.array([0, 0, 1]),
                    visible=mask & ~covered,
                    silhouette=mask,
                )
            )
            covered |= mask
        frames.append(LabelledFrame(image=np.zeros((*SIZE, 3), np.uint8), K=K, depth=None, objects=tuple(objects)))
    write_scene(path, "test", SCENE, frames)


def result_rows(case):
    """Cases differ in how far results lie off, whether there are many of equal score, and whether they have boxes."""
    dice = Dice(case)
    rows = []

    def add(image, number, x, y, width, height):
        mask = rectangle(x, y, width, height)
        if mask.any():
            score = dice(1000) / 1000 if case % 2 else dice(5) / 4
            box = (float(x), float(y), float(width), float(height)) if case < 2 else None
            rows.append(
                ResultRow(
                    scene_id=SCENE,
                    image_id=image,
                    category_id=number,
                    score=score,
                    box=box,
                    segmentation=encode_mask(mask),
                    time=0.5,
                )
            )

    for image in range(IMAGES):
        for number, x, y, width, height in boxes_of(image):
            for _ in range(dice(4) and 1 + (dice(4) == 0)):
                dx, dy = dice(1 + width // (case + 2)), dice(1 + height // (case + 2))
                add(image, number if dice(8) else OBJECTS[dice(4)], x + dx // 2, y + dy // 2, width, height)
        for _ in range(dice(3)):
            add(image, OBJECTS[dice(4)], dice(600), dice(440), 10 + dice(30), 10 + dice(30))
    if case == 1:
        for _ in range(130):
            add(0, *boxes_of(0)[0])
    return rows
