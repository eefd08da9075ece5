#!/usr/bin/env python3
"""Draw the example meshes and images again: python examples/make_examples.py [--textures FOLDER].

The objects are held out: no training sees them. Images are path-traced table-top scenes (Mitsuba 3). Each image's JSON
names the targets that the demo asks for and holds the true masks of those that are there (COCO run lengths).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ocdit_core.errors import DataError
from ocdit_core.files import write_text
from ocdit_core.images import write_image
from ocdit_core.masks import encode_mask
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, procedural_object
from ocdit_core.synthesis.scenes import SceneMaker, SceneSettings
from ocdit_core.synthesis.sources import TexturePool, mesh_folder

HERE = Path(__file__).parent
SEEDS = {
    "striped_mug": 20004,
    "ornament": 20012,
    "lamp": 20015,
    "camouflage_mug": 20022,
    "megaphone": 20032,
    "yellow_mug": 20035,
    "mallet": 20039,
    "labelled_box": 20045,
    "dotted_book": 20054,
    "melon": 20058,
}
# image: (objects in the image, all of them targets but the last; a target that is not there)
IMAGES = {
    "table": ("striped_mug", "mallet", "melon", "ornament", "labelled_box"),
    "shelf": ("megaphone", "yellow_mug", "lamp", "dotted_book", "ornament"),
    "bin": ("dotted_book", "melon", "ornament", "mallet", "camouflage_mug"),
    "bench": ("labelled_box", "lamp", "striped_mug", "megaphone", "yellow_mug"),
    "desk": ("yellow_mug", "mallet", "dotted_book", "lamp", "melon"),
    "counter": ("striped_mug", "camouflage_mug", "labelled_box", "melon", "lamp"),
    "cart": ("megaphone", "ornament", "mallet", "dotted_book", "yellow_mug"),
    "tray": ("melon", "lamp", "camouflage_mug", "labelled_box", "megaphone"),
    "stool": ("dotted_book", "striped_mug", "ornament", "yellow_mug", "mallet"),
    "sideboard": ("labelled_box", "yellow_mug", "megaphone", "camouflage_mug", "dotted_book"),
}
PLAIN = SceneSettings(targets=(4, 4), distractors=(0, 0), depth=False)
TRACED = replace(PLAIN, path_traced=1.0)
MIN_PIXELS, MIN_SEEN = 1500, 0.8  # of each target in an image


def well_seen(maker: SceneMaker, scene: int) -> bool:
    """Return whether the first camera of a scene sees all targets well."""
    try:
        (frame,) = maker.frames(scene, 1)
    except DataError:
        return False
    pixels = [(item.visible.sum(), item.whole[0]) for item in frame.objects if item.object_id < 4]
    return len(pixels) == 3 and all(seen >= max(MIN_PIXELS, MIN_SEEN * whole) for seen, whole in pixels)


def main() -> None:
    """Write examples/meshes and examples/images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", type=Path, help="folder of photographs for the room, beside painted ones")
    options = parser.parse_args()
    (HERE / "meshes").mkdir(exist_ok=True)
    for name, seed in SEEDS.items():
        procedural_object(HELD_OUT_SEED + seed).export(HERE / "meshes" / f"{name}.glb")
    meshes = mesh_folder(HERE / "meshes")
    textures = TexturePool(painted=0 if options.textures else 96, folder=options.textures)
    for place, (name, (*objects, absent)) in enumerate(IMAGES.items()):
        source = {name: meshes[name] for name in objects}
        numbers = dict(zip(objects, range(1, 5), strict=True))
        with SceneMaker(source, PLAIN, seed=place, textures=textures, object_ids=numbers) as maker:
            scene = next(scene for scene in range(1000) if well_seen(maker, scene))
        with SceneMaker(source, TRACED, seed=place, textures=textures, object_ids=numbers) as maker:
            (frame,) = maker.frames(scene, 1)
        image = HERE / "images" / f"{name}.jpg"
        write_image(image, frame.image, guard=False)
        truth = {
            "image": image.name,
            "targets": [*objects[:3], absent],
            "objects": [
                {"object_id": objects[item.object_id - 1], "segmentation": encode_mask(item.visible)}
                for item in frame.objects
                if item.object_id < 4
            ],
        }
        write_text(image.with_suffix(".json"), json.dumps(truth, indent=1) + "\n", guard=False)


if __name__ == "__main__":
    main()
