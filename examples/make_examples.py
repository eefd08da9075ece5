#!/usr/bin/env python3
"""Draw the example meshes and pictures again: python examples/make_examples.py.

The objects are held out: no training sees them. Each picture's JSON names the targets that the demo asks for and
holds the true masks of those that are there (COCO run lengths).
"""

import json
from pathlib import Path

import numpy as np

from ocdit_core.files import write_text
from ocdit_core.images import write_image
from ocdit_core.masks import encode_mask
from ocdit_core.objects.opengl_renderer import Renderer
from ocdit_core.synthesis.bank import render_sprites
from ocdit_core.synthesis.composed import SceneSettings, compose_scene
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, procedural_object

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
# picture: (targets asked for, of which in the picture; other objects in it)
PICTURES = {
    "table": (("striped_mug", "mallet", "melon", "labelled_box"), ("striped_mug", "mallet", "melon"), ("ornament",)),
    "shelf": (("megaphone", "yellow_mug", "ornament", "lamp"), ("megaphone", "yellow_mug", "lamp"), ("dotted_book",)),
    "bin": (("dotted_book", "camouflage_mug", "melon", "ornament"), ("dotted_book", "melon", "ornament"), ("mallet",)),
    "bench": (
        ("labelled_box", "lamp", "yellow_mug", "striped_mug"),
        ("labelled_box", "lamp", "striped_mug"),
        ("megaphone",),
    ),
}
SCENE = SceneSettings(image_size=(480, 640), object_size=(0.25, 0.5), effects=0.6)


def main() -> None:
    """Write examples/meshes and examples/pictures."""
    meshes = {name: procedural_object(HELD_OUT_SEED + seed) for name, seed in SEEDS.items()}
    (HERE / "meshes").mkdir(exist_ok=True)
    for name, mesh in meshes.items():
        mesh.export(HERE / "meshes" / f"{name}.glb")
    with Renderer() as renderer:
        for number, (picture, (targets, there, others)) in enumerate(PICTURES.items()):
            rng = np.random.default_rng([2024, number])
            shown = [*there, *others]
            sprites = [render_sprites(renderer, renderer.upload(meshes[name]), rng, 1, 320)[0] for name in shown]
            scene = compose_scene(rng, sprites, SCENE, min_visible=0.6, cut_probability=0.0)
            image = HERE / "pictures" / f"{picture}.jpg"
            write_image(image, scene.image, guard=False)
            truth = {
                "image": image.name,
                "targets": list(targets),
                "objects": [
                    {"object_id": name, "segmentation": encode_mask(mask)}
                    for name, mask in zip(there, scene.masks, strict=False)
                ],
            }
            write_text(image.with_suffix(".json"), json.dumps(truth, indent=1) + "\n", guard=False)


if __name__ == "__main__":
    main()
