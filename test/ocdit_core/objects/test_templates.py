"""Templates: which views, masks that hold the points, colours on black, light where it is needed."""

import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.objects import templates
from ocdit_core.objects.renderer import Renderer
from ocdit_core.objects.surfaces import surface_of, surface_points
from ocdit_core.objects.templates import points_inside, render_templates
from ocdit_core.objects.viewpoints import look_at_poses

K = np.array([[150.0, 0.0, 50.0], [0.0, 150.0, 40.0], [0.0, 0.0, 1.0]])
SIZE = (80, 100)


@pytest.fixture(scope="module")
def renderer():
    with Renderer() as opened:
        yield opened


def square(side=0.2):
    corners = side / 2 * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


def needle():
    return trimesh.creation.cone(0.0004, 0.2, sections=8)


def wire():
    """A ring of wire, 0.3 mm thick and 160 mm wide."""
    return trimesh.creation.torus(0.08, 0.00015, major_sections=48, minor_sections=6)


def whisk():
    """Many thin wires in all directions."""
    rods = [trimesh.creation.cylinder(0.0003, 0.1, sections=5) for _ in range(12)]
    for rod, direction in zip(rods, np.random.default_rng(0).normal(size=(12, 3)), strict=True):
        rod.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], direction))
    return trimesh.util.concatenate(rods)


def coloured(mesh, rgb):
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=[[*rgb, 255]] * len(mesh.vertices))
    return mesh


def with_material(mesh, **factors):
    mesh.metadata.update(factors)
    return mesh


def lattice(cells, tile=16):
    """A square with a texture of round holes; about two thirds of it are solid."""
    y, x = np.mgrid[:tile, :tile] - (tile - 1) / 2
    alpha = np.where(x**2 + y**2 < (0.32 * tile) ** 2, 0, 255).astype(np.uint8)
    texels = np.full((tile * cells, tile * cells, 4), (60, 200, 90, 255), np.uint8)
    texels[..., 3] = np.tile(alpha, (cells, cells))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texels), alphaMode="MASK")
    mesh = square()
    uv = [[0, 0], [1, 0], [1, 1], [0, 1]]
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.array(uv, float), material=material)
    return mesh


SHAPES = {
    "box": lambda: trimesh.creation.box([0.1, 0.06, 0.2]),
    "annulus": lambda: trimesh.creation.annulus(0.05, 0.12, 0.2).apply_translation([0.4, -0.1, 2.0]),
    "paper": square,
    "needle": needle,
    "wire": wire,
    "whisk": whisk,
    "lattice": lambda: lattice(6),
    "fine lattice": lambda: lattice(40),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_surface_lies_in_the_mask_of_every_view(renderer, name):
    mesh = SHAPES[name]()
    views = render_templates(renderer, mesh, views=42)
    points = surface_points(surface_of(mesh), 2048, seed=5)
    inside = [points_inside(views.mask[i], points, views.pose[i], views.K[i]) for i in range(len(views.mask))]
    assert min(inside) >= 0.99
    assert not views.mask[:, [0, -1]].any()  # nothing is cropped
    assert not views.mask[:, :, [0, -1]].any()


def test_masks_are_tight(renderer):
    views = render_templates(renderer, trimesh.creation.icosphere(subdivisions=4, radius=0.1))
    for mask in views.mask:
        radius = np.sqrt(mask.sum() / np.pi)
        assert 128 * 0.46 < radius < 128 * 0.46 + 1.2  # the margin leaves 0.92 of the side; one pixel at most is added


def test_a_sheet_seen_from_its_edge_keeps_its_colour(renderer):
    mesh = coloured(square(), (230, 40, 40)).apply_transform(
        # Into the plane of one of the cameras.
        trimesh.geometry.align_vectors([1, 0, 0], look_at_poses([[0.0, 0.5257, 0.8507]], 1.0)[0, 2, :3])
    )
    views = render_templates(renderer, mesh)
    for rgb, mask in zip(views.rgb, views.mask, strict=True):
        assert mask.sum() >= 100
        mean = rgb[mask].mean(axis=0)
        assert mean[0] > 3 * mean[1:].max()
        assert mean[0] > 90


def test_colours_are_the_objects_own_up_to_the_rim_and_black_outside(renderer, monkeypatch):
    ball = coloured(trimesh.creation.icosphere(subdivisions=4, radius=0.1), (200, 120, 40))
    monkeypatch.setattr(templates, "TEMPLATE_LIGHTING", templates.UNLIT)
    views = render_templates(renderer, ball)
    np.testing.assert_allclose(views.rgb[views.mask], np.tile([[200, 120, 40]], (views.mask.sum(), 1)), atol=4)
    assert (views.rgb[~views.mask] == 0).all()


def test_the_points_of_holes_do_not_count():
    mesh = lattice(6)
    points = surface_points(surface_of(mesh), 4096, seed=1)
    assert points.shape == (4096, 3)
    # The holes' centres are 1/6 of the side apart.
    inside_cell = (points[:, :2] / 0.2 + 0.5) * 6 % 1 - 0.5
    distance = np.linalg.norm(inside_cell, axis=1)
    assert (distance > 0.27).all()  # 0.32 but for the corners of texels
    assert distance.max() > 0.6  # the corners between the holes are there
    solid = square()
    expected = trimesh.sample.sample_surface(solid, 100, seed=2)[0]
    np.testing.assert_allclose(surface_points(surface_of(solid), 100, seed=2), expected, atol=1e-6)


def test_lattices_neither_vanish_nor_close(renderer):
    for cells in (6, 26, 37):  # cells of 10, 2.3 and 1.6 pixels
        drawn = renderer.render(lattice(cells), look_at_poses([[0.0, 0.001, 1.0]], 0.5), K, SIZE)
        share = drawn.alpha[0][15:65, 25:75].mean() / 255
        assert share == pytest.approx(0.69, abs=0.06)


def test_no_view_is_too_dark_for_its_object(renderer, monkeypatch):
    # Seen from its edge, a plate shows little more than the side that turns away from all lights.
    box = coloured(trimesh.creation.box([0.1, 0.1, 0.02]), (120, 120, 120))
    box.apply_transform(trimesh.transformations.rotation_matrix(0.4, [1, 0.3, 0]))
    views = render_templates(renderer, box, views=42)
    monkeypatch.setattr(templates, "TOO_DARK", 0.0)  # no light at the camera
    dark = render_templates(renderer, box, views=42)
    mean = np.array([rgb[mask].mean() for rgb, mask in zip(views.rgb, views.mask, strict=True)])
    before = np.array([rgb[mask].mean() for rgb, mask in zip(dark.rgb, dark.mask, strict=True)])
    assert before.min() < 0.7 * 120  # without the light at the camera there are such views
    assert mean.min() >= 0.7 * 120
    assert mean.max() <= 1.05 * before.max()


def test_black_shows_on_black(renderer):
    box = coloured(trimesh.creation.box([0.1, 0.1, 0.1]), (0, 0, 0))
    views = render_templates(renderer, box)
    for rgb, mask in zip(views.rgb, views.mask, strict=True):
        assert 25 < rgb[mask].mean() < 60
        assert np.ptp(rgb[mask].astype(int), axis=0).max() >= 5  # its sides can be told apart


def test_broken_normals_do_not_make_it_black(renderer):
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=np.zeros_like(mesh.vertices), process=False)
    mesh.faces[::2] = mesh.faces[::2, ::-1]  # and every other face is wound the wrong way
    views = render_templates(renderer, mesh)
    assert np.percentile(views.rgb[views.mask].max(axis=1), 1) > 60


def test_metals_shine_and_are_not_black(renderer):
    def drawn(**factors):
        ball = coloured(trimesh.creation.icosphere(subdivisions=4, radius=0.1), (150, 150, 150))
        views = render_templates(renderer, with_material(ball, **factors))
        return views.rgb[views.mask].mean(axis=1)

    matt, plastic, metal = drawn(), drawn(metallic=0.0, roughness=0.3), drawn(metallic=1.0, roughness=0.35)
    assert 0.75 < metal.mean() / matt.mean() < 1.4
    assert np.percentile(metal, 5) > 45
    assert metal.max() > matt.max() + 40  # a highlight
    assert plastic.max() > matt.max() + 15
    assert plastic.mean() == pytest.approx(matt.mean(), rel=0.08)
    np.testing.assert_array_equal(matt, drawn(metallic=0.0, roughness=1.0))
