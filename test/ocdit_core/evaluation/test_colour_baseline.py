import numpy as np
import pytest
import trimesh

from ocdit_core.errors import ConfigError, ImageError, UnknownObjectError
from ocdit_core.evaluation.colour_baseline import ColourBackProjection
from ocdit_core.masks import mask_iou
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects

COLOURS = {"red": (200, 30, 30), "blue": (30, 60, 200), "green": (40, 160, 50), "yellow": (230, 200, 30)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Four solids: two colours each, so that none is a flat patch."""
    folder = tmp_path_factory.mktemp("baseline")
    for (name, colour), section in zip(COLOURS.items(), (6, 8, 12, 20), strict=True):
        mesh = trimesh.creation.cylinder(radius=0.03, height=0.1, sections=section)
        colours = np.tile([*colour, 255], (len(mesh.vertices), 1))
        colours[mesh.vertices[:, 2] > 0.04, :3] = np.array(colour) // 2 + 60
        mesh.visual.vertex_colors = colours
        mesh.export(folder / f"{name}.ply")
    add_objects(folder / "lib", sorted(folder.glob("*.ply")))
    return ObjectLibrary(folder / "lib")


def scene(library, present, seed):
    """Views of objects pasted on a noisy grey picture, a little darker than rendered, with the exact masks."""
    rng = np.random.default_rng(seed)
    image = rng.normal(130, 12, (300, 400, 1)).repeat(3, axis=2)
    masks = {}
    for place, name in enumerate(present):
        templates = library[name]
        view = rng.integers(len(templates))
        top, left = 10 + 140 * (place // 2), 20 + 180 * (place % 2)
        mask = np.zeros((300, 400), bool)
        mask[top : top + 128, left : left + 128] = templates.mask[view]
        image[mask] = 0.85 * templates.rgb[view][templates.mask[view]]
        masks[name] = mask
    return np.clip(image, 0, 255).astype(np.uint8), masks


def test_objects_are_told_apart_by_their_colours(library):
    method = ColourBackProjection()
    method.set_objects(library, sorted(COLOURS))
    overlaps, false_masks = [], 0
    for seed, present in enumerate([("red", "blue"), ("green", "yellow", "red")]):
        image, masks = scene(library, present, seed)
        found = {one.object_id: one.mask for one in method.segment(image).instances}
        overlaps += [mask_iou(found[name], mask) if name in found else 0.0 for name, mask in masks.items()]
        false_masks += len(set(found) - set(masks))
    assert np.mean(overlaps) > 0.8, overlaps
    assert false_masks <= 1


def test_the_result_is_whole_and_repeatable(library):
    method = ColourBackProjection()
    method.set_objects(library, ["red", "yellow"])
    image, _ = scene(library, ("yellow", "red"), 3)
    before = image.copy()
    result = method.segment(image)
    np.testing.assert_array_equal(image, before)
    assert result.image_size == (300, 400)
    assert result.target_ids == ("red", "yellow")
    assert result.timings["total"] > 0
    scores = [one.score for one in result.instances]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    for one in result.instances:
        assert one.mask.shape == (300, 400)
        x, y, width, height = one.box
        assert one.mask[y : y + height, x : x + width].sum() == one.mask.sum()
    again = method.segment(image)
    assert all(mask_iou(a.mask, b.mask) == 1 for a, b in zip(result.instances, again.instances, strict=True))


def test_pictures_of_any_size_are_taken(library):
    method = ColourBackProjection()
    method.set_objects(library, ["red"])
    for shape in [(1, 1, 3), (5, 900, 3), (64, 64), (900, 1200, 3)]:
        result = method.segment(np.full(shape, 130, np.uint8))
        assert result.image_size == shape[:2]
        assert result.instances == ()


def test_bad_input_is_refused(library):
    method = ColourBackProjection()
    with pytest.raises(ConfigError, match="set_objects"):
        method.segment(np.zeros((9, 9, 3), np.uint8))
    method.set_objects(library, ["red"])
    with pytest.raises(UnknownObjectError, match="pink"):
        method.set_objects(library, ["blue", "pink"])
    with pytest.raises(ConfigError, match="no target"):
        method.set_objects(library, [])
    assert method.segment(np.zeros((9, 9, 3), np.uint8)).target_ids == ("red",)
    with pytest.raises(ImageError):
        method.segment(np.zeros((9, 9), np.int32))
