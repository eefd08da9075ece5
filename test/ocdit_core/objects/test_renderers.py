"""What all renderers have to agree on; one whose package is missing is skipped by its name."""

import importlib.util
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.errors import ConfigError, MeshError, RenderingError
from ocdit_core.objects.opengl_renderer import open_renderer
from ocdit_core.objects.renderers import RENDERERS, Lighting
from ocdit_core.objects.templates import points_inside, render_templates
from ocdit_core.objects.viewpoints import look_at_poses

K = np.array([[150.0, 0.0, 50.0], [0.0, 150.0, 40.0], [0.0, 0.0, 1.0]])
SIZE = (80, 100)
FRONT = look_at_poses([[0.0, -1.0, 0.0]], 1.0)  # a camera at -y: x to the right, z up


@pytest.fixture(scope="module", autouse=True)
def pyvista_first():
    """VTK has to open its window before there is any other context in the process."""
    if importlib.util.find_spec("pyvista") is not None:
        open_renderer("pyvista").close()


@pytest.fixture(scope="module", params=RENDERERS)
def renderer(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    with open_renderer(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference():
    with open_renderer("moderngl") as opened:
        yield opened


def four_coloured_plate(textured):
    """A square in the xz plane: lower left red, lower right green, upper left blue, upper right white."""
    vertices = 0.2 * np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
    if textured:
        image = np.zeros((64, 64, 3), np.uint8)
        image[:32, :32], image[:32, 32:], image[32:, :32], image[32:, 32:] = (
            (0, 0, 250),
            (250, 250, 250),
            (250, 0, 0),
            (0, 250, 0),
        )
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(image))
        uv = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
        visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        return trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    grid = trimesh.creation.box([0.2, 0.001, 0.2])
    parts = []
    for x, z, colour in ((-1, -1, (250, 0, 0)), (1, -1, (0, 250, 0)), (-1, 1, (0, 0, 250)), (1, 1, (250, 250, 250))):
        part = grid.copy().apply_translation([0.1 * x, 0, 0.1 * z])
        part.visual = trimesh.visual.ColorVisuals(part, vertex_colors=[[*colour, 255]] * len(part.vertices))
        parts.append(part)
    return trimesh.util.concatenate(parts)


def lopsided(rng_seed=3):
    """A textured thing without any symmetry: a bent arm on a box."""
    body = trimesh.creation.box([0.1, 0.06, 0.04])
    arm = trimesh.creation.cylinder(0.01, 0.12, sections=24).apply_translation([0.045, 0.02, 0.06])
    hook = trimesh.creation.icosphere(subdivisions=2, radius=0.022).apply_translation([0.07, 0.02, 0.12])
    mesh = trimesh.util.concatenate([body, arm, hook])
    texels = np.random.default_rng(rng_seed).integers(40, 255, (16, 16, 3), dtype=np.uint8)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texels).resize((128, 128), 0))
    uv = mesh.vertices[:, :2] * 5 + mesh.vertices[:, 2:] * [3, 2]
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return mesh


@pytest.mark.parametrize("textured", [False, True], ids=["coloured", "textured"])
def test_left_is_left_and_up_is_up(renderer, textured):
    views = renderer.render(four_coloured_plate(textured), FRONT, K, SIZE)
    rgb = views.rgb[0].astype(int)
    # 0.4 m at 1 m are 60 pixels, from (20, 10) to (80, 70) in the picture.
    seen = {"lower left": (60, 30), "lower right": (60, 70), "upper left": (20, 30), "upper right": (20, 70)}
    colours = {
        name: rgb[row - 3 : row + 4, column - 3 : column + 4].mean(axis=(0, 1)) for name, (row, column) in seen.items()
    }
    assert colours["lower left"][0] > 4 * colours["lower left"][1:].max()
    assert colours["lower right"][1] > 4 * colours["lower right"][[0, 2]].max()
    assert colours["upper left"][2] > 4 * colours["upper left"][:2].max()
    assert colours["upper right"].min() > 120
    rows, columns = np.nonzero(views.alpha[0] > 127)
    np.testing.assert_allclose([columns.min(), columns.max(), rows.min(), rows.max()], [20, 79, 10, 69], atol=1)
    assert (views.rgb[0][views.alpha[0] == 0] == 0).all()


def test_geometry_agrees_with_the_first_renderer(renderer, reference):
    mesh = lopsided()
    mine, theirs = render_templates(renderer, mesh), render_templates(reference, mesh)
    np.testing.assert_array_equal(mine.K, theirs.K)
    np.testing.assert_array_equal(mine.pose, theirs.pose)
    np.testing.assert_array_equal(mine.box, theirs.box)
    # By coverage: whether the mask takes in one ring of pixels more is decided for each picture.
    first, second = mine.alpha > 127, theirs.alpha > 127
    both, either = (first & second).sum(axis=(1, 2)), (first | second).sum(axis=(1, 2))
    assert (both / either).min() > 0.97
    points = trimesh.sample.sample_surface(mesh, 2048, seed=11)[0]
    for index in range(12):
        assert points_inside(mine.mask[index], points, mine.pose[index], mine.K[index]) >= 0.99
    # The texture lies where it lies in the others' pictures: far closer than with any other view of it.
    inside = mine.mask & theirs.mask
    apart = np.abs(mine.rgb.astype(int) - theirs.rgb)[inside].mean()
    shifted = np.abs(mine.rgb.astype(int) - np.roll(theirs.rgb, 6, axis=2))[inside].mean()
    assert apart < 0.6 * shifted


def test_a_sheet_seen_from_its_edge_shows_as_a_line(renderer):
    sheet = trimesh.Trimesh(
        [[-0.1, -0.1, 0], [0.1, -0.1, 0], [0.1, 0.1, 0], [-0.1, 0.1, 0]], [[0, 1, 2], [0, 2, 3]], process=False
    )
    views = renderer.render(sheet, FRONT, K, SIZE, edges=True)
    shown = views.alpha[0] > 0
    assert shown[:, 36:64].any(axis=0).all()  # 0.2 m at 1 m are 30 pixels, without a gap
    assert shown.any(axis=1).sum() <= 4


def test_the_same_arguments_give_the_same_bytes(renderer):
    first, second = (render_templates(renderer, lopsided(), size=64) for _ in range(2))
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_unlit_is_the_colour_itself(renderer):
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.2)
    ball.visual = trimesh.visual.ColorVisuals(ball, vertex_colors=[[200, 120, 40, 255]] * len(ball.vertices))
    flat = Lighting(ambient=(1.0, 1.0, 1.0), sky=0.0, lights=())
    views = renderer.render(ball, FRONT, K, SIZE, flat)
    np.testing.assert_allclose(views.rgb[0][views.alpha[0] == 255].mean(axis=0), (200, 120, 40), atol=4)


def test_bad_meshes_and_closed_renderers_are_refused(renderer):
    with pytest.raises(MeshError, match="no faces"):
        renderer.upload(trimesh.Trimesh())
    with pytest.raises(RenderingError, match="outside"):
        renderer.render(lopsided(), FRONT, K, (10_000, 10))
    closed = open_renderer(renderer.name)
    closed.close()
    closed.close()
    with pytest.raises(RenderingError, match="closed"):
        closed.render(lopsided(), FRONT, K, SIZE)


def test_unknown_renderers_are_refused():
    with pytest.raises(ConfigError, match=r"'blender' is unknown; use auto, moderngl, pyvista"):
        open_renderer("blender")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(RenderingError, match=f"pip install {name}"):
        open_renderer(name)


def test_auto_takes_moderngl():
    with open_renderer("auto") as opened:
        assert opened.name == "moderngl"


def test_auto_says_that_it_falls_back(monkeypatch, caplog):
    pytest.importorskip("pyvista", reason="needs pyvista")
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with caplog.at_level(logging.WARNING), open_renderer("auto") as opened:
        assert opened.name == "pyvista"
    assert "drawing with PyVista instead" in caplog.text


def test_pyvista_does_not_break_an_open_context():
    pytest.importorskip("pyvista", reason="needs pyvista")
    code = (
        "import trimesh\n"
        "from ocdit_core.errors import RenderingError\n"
        "from ocdit_core.objects.opengl_renderer import open_renderer\n"
        "with open_renderer('moderngl') as first:\n"
        "    try:\n"
        "        open_renderer('pyvista')\n"
        "    except RenderingError as error:\n"
        "        print(error)\n"
        "    first.upload(trimesh.creation.box()).release()\n"
        "with open_renderer('pyvista'), open_renderer('moderngl') as second:\n"
        "    second.upload(trimesh.creation.box()).release()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "open PyVista's renderer before it" in done.stdout


def test_pyvista_draws_without_egl_drivers(tmp_path):
    """Where EGL has no driver, VTK finds another way (OSMesa), or one line says what to install."""
    pytest.importorskip("pyvista", reason="needs pyvista")
    code = (
        "import trimesh\n"
        "from ocdit_core.errors import RenderingError\n"
        "from ocdit_core.objects.opengl_renderer import open_renderer\n"
        "from ocdit_core.objects.templates import render_templates\n"
        "try:\n"
        "    with open_renderer('auto') as r:\n"
        "        print(r.name, render_templates(r, trimesh.creation.box([.1, .1, .1])).mask.mean())\n"
        "except RenderingError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path), "__EGL_VENDOR_LIBRARY_FILENAMES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().splitlines()[-1]
    if said.startswith("pyvista"):
        assert 0.2 < float(said.split()[1]) < 0.9
    else:
        assert "apt-get install" in said
