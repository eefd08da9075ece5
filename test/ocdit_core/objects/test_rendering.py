import os
import subprocess
import sys

import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.errors import MeshError, RenderingError
from ocdit_core.objects.renderer import Light, Lighting, Renderer
from ocdit_core.objects.surfaces import surface_of
from ocdit_core.objects.templates import render_templates
from ocdit_core.objects.viewpoints import look_at_poses, project

WALL = 0.85  # ambient light is this much weaker on an upright wall than from above
FLAT = Lighting(ambient=(1 / WALL, 1 / WALL, 1 / WALL), lights=())
K = np.array([[150.0, 0.0, 50.0], [0.0, 150.0, 40.0], [0.0, 0.0, 1.0]])
SIZE = (80, 100)


@pytest.fixture(scope="module")
def renderer():
    with Renderer() as opened:
        yield opened


def front(distance=1.0):
    """A camera at -y that looks along +y: x to the right, z up."""
    return look_at_poses([[0.0, -1.0, 0.0]], distance)


def plate(colours=None, uv=None, image=None, flip=False):
    """A square in the xz plane, 0.4 m wide; corners: lower left, lower right, upper right, upper left."""
    vertices = 0.2 * np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    faces = faces[:, ::-1] if flip else faces
    if image is not None:
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(image))
        visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        return trimesh.Trimesh(vertices, faces, visual=visual, process=False)
    return trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)


def test_left_is_left_and_up_is_up(renderer):
    colours = [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]]
    views = renderer.render(plate(colours), front(), K, SIZE, FLAT)
    rgb = views.rgb[0].astype(int)
    # The plate reaches from (20, 10) to (80, 70) in the image: K scales 0.4 m at 1 m to 60 pixels.
    corners = {(67, 23): 0, (67, 76): 1, (12, 76): 2}
    for (row, column), channel in corners.items():
        assert rgb[row, column].argmax() == channel
        assert rgb[row, column, channel] > 220
    assert rgb[12, 23].min() > 200
    covered = np.zeros(SIZE, bool)
    covered[10:70, 20:80] = True
    np.testing.assert_array_equal(views.alpha[0] > 127, covered)
    assert (views.rgb[0][~covered] == 0).all()


def test_textures_are_the_right_way_up(renderer):
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, :32], image[:32, 32:], image[32:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    rgb = renderer.render(plate(uv=uv, image=image), front(), K, SIZE, FLAT).rgb[0]
    np.testing.assert_allclose(rgb[25, 35], (250, 0, 0), atol=3)
    np.testing.assert_allclose(rgb[25, 65], (0, 250, 0), atol=3)
    np.testing.assert_allclose(rgb[55, 35], (0, 0, 250), atol=3)
    np.testing.assert_allclose(rgb[55, 65], (0, 0, 0), atol=3)


def test_colours_survive_full_white_light(renderer):
    shown = renderer.render(plate([[200, 120, 40, 255]] * 4), front(), K, SIZE, FLAT)
    np.testing.assert_allclose(shown.rgb[0, 40, 50], (200, 120, 40), atol=2)


def test_both_sides_are_lit_whatever_the_winding(renderer):
    light = Lighting(ambient=(0.1, 0.1, 0.1), lights=(Light(direction=(0, 0, -1)),))
    images = [
        renderer.render(plate([[200, 200, 200, 255]] * 4, flip=flip), pose, K, SIZE, light).rgb[0]
        for flip in (False, True)
        for pose in (front(), look_at_poses([[0.0, 1.0, 0.0]], 1.0))
    ]
    for image in images:
        assert image[40, 50, 0] > 180


def test_light_comes_from_where_it_is(renderer):
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.2)
    light = Lighting(ambient=(0, 0, 0), lights=(Light(direction=(1, 0, 0)),))
    poses = np.concatenate([front(), look_at_poses([[0.0, 1.0, 0.0]], 1.0)])
    left, right = (
        part.mean(axis=(1, 2, 3)) for part in np.split(renderer.render(ball, poses, K, SIZE, light).rgb, 2, 2)
    )
    assert (right > 3 * left).all()  # from the camera's right, whichever side of the object that is


def test_box_keeps_its_edges_and_ball_is_smooth():
    box, ball = (surface_of(m) for m in (trimesh.creation.box(), trimesh.creation.icosphere(subdivisions=3)))
    assert (np.abs(box.corners[:, 3:6]).max(axis=1) > 0.999).all()
    cosine = (ball.corners[:, 3:6] * ball.corners[:, :3]).sum(axis=1)
    assert cosine.min() > 0.999


def test_untextured_is_grey_and_images_repeat(renderer):
    mesh = trimesh.creation.capsule(0.1, 0.05)
    first, second = (render_templates(renderer, mesh, size=64) for _ in range(2))
    np.testing.assert_array_equal(first.rgb, second.rgb)
    assert np.ptp(first.rgb.astype(int), axis=3).max() == 0
    assert first.rgb[first.mask].mean() > 60


def test_templates_agree_with_their_cameras(renderer):
    mesh = trimesh.creation.annulus(0.05, 0.12, 0.2).apply_translation([0.4, -0.1, 2.0])
    views = render_templates(renderer, mesh, views=42)
    assert views.rgb.shape == (42, 128, 128, 3)
    points, _ = trimesh.sample.sample_surface(mesh, 3000, seed=0)
    share = np.zeros(42)
    for index in range(42):
        seen = project(points, views.pose[index], views.K[index])
        pixel = np.floor(seen).astype(int)
        assert (views.alpha[index][pixel[:, 1], pixel[:, 0]] > 0).mean() > 0.99
        share[index] = views.mask[index][pixel[:, 1], pixel[:, 0]].mean()
        rows, columns = np.nonzero(views.mask[index])
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.88 * 128 < extent <= 0.94 * 128  # fills the crop, touches no border
    # Flat faces seen from the edge lie on the outline, where half of the points miss the half-covered pixels.
    assert share.min() > 0.98
    assert share.mean() > 0.99
    x, y, w, h = views.box.T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + w <= 640).all()
    assert (y + h <= 480).all()


def test_black_beside_the_object(renderer):
    torus = trimesh.creation.torus(0.1, 0.03)
    views = renderer.render(torus, front(), K, SIZE)
    assert (views.rgb[views.alpha == 0] == 0).all()
    assert (views.rgb.max(axis=3) <= views.alpha).all()


def test_bad_meshes_are_refused(renderer):
    with pytest.raises(MeshError, match="no faces"):
        renderer.upload(trimesh.Trimesh())
    broken = plate()
    broken.vertices[0] = np.nan
    with pytest.raises(MeshError, match="not finite"):
        renderer.upload(broken)


def test_sizes_and_closed_renderers_are_refused(renderer):
    with pytest.raises(RenderingError, match="outside"):
        renderer.render(plate(), front(), K, (10_000, 10))
    closed = Renderer()
    closed.close()
    closed.close()
    with pytest.raises(RenderingError, match="closed"):
        closed.render(plate(), front(), K, SIZE)


def test_a_machine_without_egl_is_told_what_to_install(tmp_path):
    code = "from ocdit_core.objects.renderer import Renderer; Renderer()"
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path), "__EGL_VENDOR_LIBRARY_FILENAMES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "apt-get install libegl1 libgl1-mesa-dri" in done.stderr.strip().splitlines()[-1]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "moderngl", None)  # as if it were not installed
    with pytest.raises(RenderingError, match="pip install moderngl"):
        Renderer()


def test_a_sheet_seen_from_its_edge_shows_as_a_line(renderer):
    sheet = trimesh.Trimesh(
        [[-0.1, -0.1, 0], [0.1, -0.1, 0], [0.1, 0.1, 0], [-0.1, 0.1, 0]], [[0, 1, 2], [0, 2, 3]], process=False
    )
    views = renderer.render(sheet, front(), K, SIZE, edges=True)
    shown = views.alpha[0] > 0
    assert shown[:, 36:64].any(axis=0).all()  # 0.2 m at 1 m are 30 pixels, without a gap
    assert shown.any(axis=1).sum() <= 4
