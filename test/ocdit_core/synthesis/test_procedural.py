import numpy as np
import pytest

from ocdit_core.data.painting import random_paint, random_palette
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, LARGEST, SMALLEST, procedural_object


def test_the_same_seed_gives_the_same_object():
    for seed in (0, 7, HELD_OUT_SEED + 3):
        first, second = procedural_object(seed), procedural_object(seed)
        np.testing.assert_array_equal(first.vertices, second.vertices)
        np.testing.assert_array_equal(first.faces, second.faces)
        if first.visual.kind == "texture":
            np.testing.assert_array_equal(first.visual.uv, second.visual.uv)
            images = [np.asarray(mesh.visual.material.baseColorTexture) for mesh in (first, second)]
            np.testing.assert_array_equal(*images)
        else:
            np.testing.assert_array_equal(first.visual.vertex_colors, second.visual.vertex_colors)


def test_objects_are_sane_and_varied():
    meshes = [procedural_object(seed) for seed in range(150)]
    for mesh in meshes:
        assert np.isfinite(mesh.vertices).all()
        assert 40 <= len(mesh.faces) <= 5000
        extent = 2 * np.linalg.norm(mesh.vertices, axis=1).max()
        assert SMALLEST - 1e-9 <= extent <= LARGEST + 1e-9
        np.testing.assert_allclose(mesh.bounds.sum(axis=0), 0, atol=1e-9)
    assert len({len(mesh.faces) for mesh in meshes}) > 40
    textured = sum(mesh.visual.kind == "texture" for mesh in meshes)
    assert 105 < textured < 140  # one in five is plain


@pytest.mark.parametrize("seed", range(20))
def test_texture_coordinates_stay_inside(seed):
    mesh = procedural_object(seed)
    if mesh.visual.kind == "texture":
        assert mesh.visual.uv.min() > 0
        assert mesh.visual.uv.max() < 1


def test_paints_use_their_palette():
    rng = np.random.default_rng(0)
    for _ in range(20):
        palette = random_palette(rng)
        assert 2 <= len(palette) <= 4
        image = random_paint(rng, palette, 64, plain=1.0)
        assert image.shape == (64, 64, 3)
        assert np.abs(image[0, 0] - palette).sum(axis=1).min() < 4


def test_photographs_are_cropped_and_tinted():
    photograph = np.zeros((40, 60, 3), np.uint8)
    photograph[:, :30] = (200, 60, 60)
    drawn = [random_paint(np.random.default_rng(seed), random_palette(np.random.default_rng(0)), 32, plain=0.0,
                          photographs=[photograph]) for seed in range(30)]  # fmt: skip
    assert all(texture.shape == (32, 32, 3) and texture.dtype == np.uint8 for texture in drawn)
    halves = [texture for texture in drawn if len(np.unique(texture.reshape(-1, 3), axis=0)) == 2]
    assert halves, "no crop shows the photograph's two colours alone"
