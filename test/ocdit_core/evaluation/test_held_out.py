import numpy as np
import pytest

from ocdit_core.evaluation.baselines import ColourBackProjection
from ocdit_core.evaluation.held_out import HeldOutSettings, make_held_out
from ocdit_core.evaluation.metrics import evaluate_scenes
from ocdit_core.synthesis.composed import SceneSettings

SETTINGS = HeldOutSettings(
    scenes=4,
    objects=8,
    targets=3,
    sprite_size=96,
    absent_share=0.4,
    scene=SceneSettings(image_size=(120, 160), object_size=(0.3, 0.5)),
)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("held_out"), SETTINGS)


def test_scenes_are_as_asked_for(held_out):
    library, scenes = held_out
    assert len(library) == 8
    assert len(scenes) == 4
    present = absent = 0
    for scene in scenes:
        assert scene.image.shape == (120, 160, 3)
        assert len(set(scene.targets)) == 3
        assert set(scene.targets) <= set(library.object_ids)
        assert set(scene.masks) <= set(scene.targets)
        assert all(mask.any() for mask in scene.masks.values())
        # Modal masks: no pixel shows two objects.
        assert sum(mask.astype(int) for mask in scene.masks.values()).max() <= 1
        present += len(scene.masks)
        absent += 3 - len(scene.masks)
    assert present > 0
    assert absent > 0


def test_the_same_settings_give_the_same_pictures(held_out, tmp_path):
    _, again = make_held_out(tmp_path, SETTINGS)
    for first, second in zip(held_out[1], again, strict=True):
        assert np.array_equal(first.image, second.image)
        assert first.targets == second.targets


def test_truth_lies_on_the_objects(held_out):
    """Colours alone find a good part of them: the masks and the library belong together."""
    library, scenes = held_out
    assert evaluate_scenes(ColourBackProjection(), library, scenes).mean_iou > 0.2
