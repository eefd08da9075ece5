#!/usr/bin/env python3
"""Draw the example meshes and images again: python examples/make_examples.py [--textures FOLDER].

The objects are held out: no training sees them. Images are path-traced table-top scenes (Mitsuba 3). Each image's JSON
names the targets that the demo asks for and holds the true masks of those that are there (COCO run lengths).
"""

import argparse
import json
from pathlib import Path

from ocdit_core.files import write_text
from ocdit_core.images import write_image
from ocdit_core.masks import encode_mask
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, procedural_object
from ocdit_core.synthesis.scenes import CameraSettings, SceneMaker, SceneSettings
from ocdit_core.synthesis.sources import MeshFolder, OnlyObjects, TexturePool

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
# image: (targets asked for, of which in the image; other objects in it; number of the scene)
IMAGES = {
    "table": (("striped_mug", "mallet", "melon", "labelled_box"), ("striped_mug", "mallet", "melon"), ("ornament",), 7),
    "shelf": (
        ("megaphone", "yellow_mug", "ornament", "lamp"),
        ("megaphone", "yellow_mug", "lamp"),
        ("dotted_book",),
        5,
    ),
    "bin": (
        ("dotted_book", "camouflage_mug", "melon", "ornament"),
        ("dotted_book", "melon", "ornament"),
        ("mallet",),
        9,
    ),
    "bench": (
        ("labelled_box", "lamp", "yellow_mug", "striped_mug"),
        ("labelled_box", "lamp", "striped_mug"),
        ("megaphone",),
        4,
    ),
}
SCENE = SceneSettings(
    targets=(3, 3),
    distractors=(1, 1),
    cameras=(1, 1),
    table_share=1.0,
    effects=(0.2, 0.4),
    path_traced=1.0,
    camera=CameraSettings(elevation=(25.0, 60.0), fill=(0.7, 1.1), min_seen=0.7, min_pixels=1500),
)


def main() -> None:
    """Write examples/meshes and examples/images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", type=Path, help="folder of photographs for the room, beside painted ones")
    options = parser.parse_args()
    (HERE / "meshes").mkdir(exist_ok=True)
    for name, seed in SEEDS.items():
        procedural_object(HELD_OUT_SEED + seed).export(HERE / "meshes" / f"{name}.glb")
    meshes = MeshFolder(HERE / "meshes")
    textures = TexturePool(painted=0 if options.textures else 96, folder=options.textures)
    for name, (targets, there, others, number) in IMAGES.items():
        sources = OnlyObjects(meshes, there), OnlyObjects(meshes, others)
        with SceneMaker(sources[0], SCENE, seed=2024, textures=textures, distractors=sources[1]) as maker:
            (scene,) = maker.images(number, count=1)
        image = HERE / "images" / f"{name}.jpg"
        write_image(image, scene.rgb, guard=False)
        truth = {
            "image": image.name,
            "targets": list(targets),
            "objects": [
                {"object_id": instance.name, "segmentation": encode_mask(mask)}
                for instance, mask in zip(scene.instances, scene.masks_visible, strict=True)
            ],
        }
        write_text(image.with_suffix(".json"), json.dumps(truth, indent=1) + "\n", guard=False)


if __name__ == "__main__":
    main()
