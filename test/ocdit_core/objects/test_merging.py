import numpy as np
import trimesh
from PIL import Image

from ocdit_core.objects.merging import merge


def square(at, *, colour=None, picture=None, factor=None, repeat=1.0):
    """A unit square in the plane z = 0, its lower left corner at (at, 0)."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    mesh = trimesh.Trimesh(corners + np.array([at, 0, 0]), [[0, 1, 2], [0, 2, 3]], process=False)
    if picture is not None or factor is not None:
        image = None if picture is None else Image.fromarray(np.asarray(picture, np.uint8))
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, baseColorFactor=factor)
        mesh.visual = trimesh.visual.TextureVisuals(uv=corners[:, :2] * repeat, material=material)
    elif colour is not None:
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.tile([*colour, 255], (4, 1)))
    return mesh


def colour_at(mesh, x, y):
    """The texel or the interpolated vertex colour at a point of the plane."""
    triangles = mesh.vertices[mesh.faces]
    for face, triangle in enumerate(triangles):
        weights = trimesh.triangles.points_to_barycentric(triangle[None], [[x, y, 0.0]])[0]
        if (weights >= -1e-9).all():
            if mesh.visual.kind != "texture":
                return weights @ mesh.visual.vertex_colors[mesh.faces[face]][:, :3]
            u, v = weights @ mesh.visual.uv[mesh.faces[face]]
            image = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
            height, width = image.shape[:2]
            return image[int((1 - v) % 1 * height), int(u % 1 * width)]
    raise AssertionError("no face there")


QUARTERS = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]  # first row at the top
BIG = np.kron(np.array(QUARTERS, np.uint8), np.ones((16, 16, 1), np.uint8))


def test_one_textured_part_is_left_as_it_is():
    part = square(0, picture=BIG)
    assert merge([part], linear_colours=True) is part


def test_different_textures_and_a_plain_colour_share_an_atlas():
    other = np.full((64, 8, 3), (90, 60, 30), np.uint8)
    merged = merge(
        [square(0, picture=BIG), square(2, picture=other), square(4, colour=(10, 200, 100)), square(6)],
        linear_colours=False,
    )
    assert merged.visual.kind == "texture"
    for x, y, colour in [
        (0.2, 0.8, (255, 0, 0)), (0.8, 0.8, (0, 255, 0)), (0.2, 0.2, (0, 0, 255)), (0.8, 0.2, (255, 255, 0)),
        (2.5, 0.5, (90, 60, 30)), (4.3, 0.7, (10, 200, 100)), (6.5, 0.5, (165, 165, 165)),
    ]:  # fmt: skip
        np.testing.assert_array_equal(colour_at(merged, x, y), colour)


def test_a_repeating_texture_still_repeats_in_the_atlas():
    merged = merge([square(0, picture=BIG, repeat=2), square(2, picture=BIG)], linear_colours=False)
    assert merged.visual.kind == "texture"
    for x in (0.1, 0.6):
        for y in (0.1, 0.6):
            np.testing.assert_array_equal(colour_at(merged, x, y), (0, 0, 255))
            np.testing.assert_array_equal(colour_at(merged, x + 0.25, y + 0.25), (0, 255, 0))


def test_a_texture_that_repeats_too_often_becomes_vertex_colours():
    plain = np.full((4, 4, 3), (9, 8, 7), np.uint8)
    merged = merge([square(0, picture=plain, repeat=50), square(2, picture=BIG)], linear_colours=False)
    assert merged.visual.kind == "vertex"
    np.testing.assert_allclose(colour_at(merged, 0.5, 0.5), (9, 8, 7))


def test_linear_factors_become_srgb_colours():
    merged = merge([square(0, factor=[255, 55, 0, 255]), square(2, factor=[0, 0, 255, 255])], linear_colours=True)
    assert merged.visual.kind == "vertex"
    np.testing.assert_allclose(colour_at(merged, 0.5, 0.5), (255, 127, 0), atol=2)
    np.testing.assert_allclose(colour_at(merged, 2.5, 0.5), (0, 0, 255))


def test_a_factor_tints_its_texture():
    white = np.full((4, 4, 3), 255, np.uint8)
    merged = merge([square(0, picture=white, factor=[55, 255, 255, 255]), square(2, picture=BIG)], linear_colours=True)
    np.testing.assert_allclose(colour_at(merged, 0.5, 0.5), (127, 255, 255), atol=2)


def test_face_colours_stay_sharp():
    part = square(0)
    part.visual = trimesh.visual.ColorVisuals(part, face_colors=[[255, 0, 0, 255], [0, 0, 255, 255]])
    merged = merge([part, square(2, colour=(1, 2, 3))], linear_colours=False)
    np.testing.assert_allclose(colour_at(merged, 0.9, 0.1), (255, 0, 0))
    np.testing.assert_allclose(colour_at(merged, 0.1, 0.9), (0, 0, 255))
    np.testing.assert_allclose(colour_at(merged, 2.5, 0.5), (1, 2, 3))


def test_parts_without_colours_stay_without():
    merged = merge([square(0), square(2)], linear_colours=False)
    assert not merged.visual.defined
    assert len(merged.faces) == 4
