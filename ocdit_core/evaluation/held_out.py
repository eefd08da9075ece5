"""Pictures of objects that no training has seen, with their truth: for benchmarks, examples and tests.

The objects take the way of any user's CAD model: written as GLB files, read and rendered into a library.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ocdit_core.evaluation.metrics import LabelledScene
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects
from ocdit_core.objects.opengl_renderer import Renderer
from ocdit_core.synthesis.bank import render_sprites
from ocdit_core.synthesis.composed import SceneSettings, compose_scene
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, procedural_object


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings:
    """A set of held-out scenes; the same settings give the same pictures.

    Attributes:
        scenes: how many pictures.
        objects: how many different objects they draw from.
        first_object: seed of the first object, counted from HELD_OUT_SEED. Validation during training uses the first
            few hundred; what is reported should not.
        targets: objects that are looked for in each picture.
        absent_share: chance for each target not to be in its picture.
        distractors: most other objects in a picture.
        sprite_size: side in pixels that objects are drawn at.
        scene: how the pictures look.
        seed: of the pictures.
    """

    scenes: int = 50
    objects: int = 60
    first_object: int = 10_000
    targets: int = 4
    absent_share: float = 0.25
    distractors: int = 2
    sprite_size: int = 320
    scene: SceneSettings = field(
        default_factory=lambda: SceneSettings(image_size=(480, 640), object_size=(0.2, 0.6), effects=0.8)
    )
    seed: int = 0


def make_held_out(library: Path, settings: HeldOutSettings) -> tuple[ObjectLibrary, list[LabelledScene]]:
    """Render the objects into the folder `library` and compose the scenes.

    Raises:
        RenderingError: there is no off-screen OpenGL.
    """
    meshes = {}
    for number in range(settings.objects):
        seed = HELD_OUT_SEED + settings.first_object + number
        meshes[f"object_{seed - HELD_OUT_SEED:05d}"] = procedural_object(seed)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, mesh in meshes.items():
            files.append(Path(folder) / f"{name}.glb")
            mesh.export(files[-1])
        add_objects(library, files, unit="m")
    rng = np.random.default_rng([settings.seed, settings.first_object])
    sprites = {}
    with Renderer() as renderer:
        for name, mesh in meshes.items():
            handle = renderer.upload(mesh)
            sprites[name] = render_sprites(renderer, handle, rng, 4, settings.sprite_size)
            handle.release()
    return ObjectLibrary(library), [_scene(rng, sprites, settings) for _ in range(settings.scenes)]


def _scene(rng: np.random.Generator, sprites: dict[str, np.ndarray], settings: HeldOutSettings) -> LabelledScene:
    names = [str(name) for name in rng.permutation(list(sprites))]
    targets, others = names[: settings.targets], names[settings.targets :]
    there = [name for name in targets if rng.random() >= settings.absent_share]
    shown = there + others[: int(rng.integers(settings.distractors + 1))]
    scene = compose_scene(rng, [sprites[name][rng.integers(len(sprites[name]))] for name in shown], settings.scene)
    # The truth is only for the targets; one that others hide altogether counts as absent.
    masks = {name: mask for name, mask in zip(there, scene.masks, strict=False) if mask.any()}
    return LabelledScene(image=scene.image, targets=tuple(targets), masks=masks)
