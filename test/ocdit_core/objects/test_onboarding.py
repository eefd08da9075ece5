import numpy as np
import pytest
import trimesh

from ocdit_core.errors import ConfigError, MeshError
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Meshes: a red L-shaped block in millimetres, a blue ball in metres, a flat sheet, and a broken file."""
    folder = tmp_path_factory.mktemp("cad")
    block = trimesh.util.concatenate(
        [
            trimesh.creation.box(bounds=[[0, 0, 0], [90, 30, 30]]),
            trimesh.creation.box(bounds=[[0, 0, 30], [30, 30, 70]]),
        ]
    )
    block.visual.vertex_colors = np.tile([220, 30, 30, 255], (len(block.vertices), 1))
    block.export(folder / "block.ply")
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.06)
    ball.visual.vertex_colors = np.tile([30, 30, 220, 255], (len(ball.vertices), 1))
    ball.export(folder / "ball.glb")
    sheet = trimesh.Trimesh([[0, 0, 0], [0, 0.1, 0], [0, 0.1, 0.1], [0, 0, 0.1]], [[0, 1, 2], [0, 2, 3]])
    sheet.export(folder / "sheet.stl")
    (folder / "broken.glb").write_bytes((folder / "ball.glb").read_bytes()[:500])
    return folder


def test_meshes_become_a_library(folder, tmp_path):
    added = add_objects(tmp_path / "lib", [folder / "block.ply", folder / "ball.glb"])
    assert added == ("block", "ball")
    library = ObjectLibrary(tmp_path / "lib")
    block, ball = library.select(["block", "ball"])
    assert block.unit == "mm"
    assert ball.unit == "m"
    assert block.diameter == pytest.approx(np.linalg.norm([0.09, 0.03, 0.03]), rel=0.3)
    assert ball.diameter == pytest.approx(0.12, rel=0.01)
    np.testing.assert_allclose(block.points.min(axis=0), 0, atol=2e-3)
    np.testing.assert_allclose(block.points.max(axis=0), [0.09, 0.03, 0.07], atol=2e-3)
    for templates, strongest in ((block, 0), (ball, 2)):
        inside = templates.rgb[templates.mask]
        assert (inside.argmax(axis=1) == strongest).mean() > 0.99
        assert templates.rgb[~templates.mask].mean() < 2  # black but for the edge's half-covered pixels
        assert templates.mask.mean() > 0.2


def test_stored_cameras_project_the_points_onto_the_mask(folder, tmp_path):
    add_objects(tmp_path, [folder / "block.ply"])
    block = ObjectLibrary(tmp_path)["block"]
    for view in range(len(block)):
        seen = block.points @ block.pose[view, :3, :3].T + block.pose[view, :3, 3]
        assert (seen[:, 2] > 0).all()
        pixel = seen @ block.K[view].T
        column, row = np.floor(pixel[:, :2] / pixel[:, 2:]).astype(int).T
        assert block.mask[view][row, column].mean() > 0.98
        # and the mask is no larger than what the points span
        rows, columns = np.nonzero(block.mask[view])
        assert abs(columns.min() - column.min()) <= 2
        assert abs(rows.max() - row.max()) <= 2


def test_one_bad_mesh_does_not_stop_the_others(folder, tmp_path):
    failed = []
    meshes = [folder / "ball.glb", folder / "broken.glb", folder / "absent.stl", folder / "block.ply"]
    added = add_objects(tmp_path, meshes, on_error=lambda path, error: failed.append((path.name, error)))
    assert added == ("ball", "block")
    assert [name for name, _ in failed] == ["broken.glb", "absent.stl"]
    assert all(isinstance(error, MeshError) for _, error in failed)
    with pytest.raises(MeshError):
        add_objects(tmp_path, meshes)


def test_names_and_replacement(folder, tmp_path):
    add_objects(tmp_path, [folder / "ball.glb"], names=["thing"])
    before = ObjectLibrary(tmp_path)["thing"].rgb
    add_objects(tmp_path, [folder / "block.ply"], names=["thing"])
    assert ObjectLibrary(tmp_path).object_ids == ("thing",)
    assert not np.array_equal(ObjectLibrary(tmp_path)["thing"].rgb, before)
    with pytest.raises(ConfigError, match="2 names were given for 1"):
        add_objects(tmp_path, [folder / "ball.glb"], names=["a", "b"])
    with pytest.raises(ConfigError, match="both be called 'ball'"):
        add_objects(tmp_path, [folder / "ball.glb", folder / "ball.glb"])
    with pytest.raises(ConfigError, match="object name"):
        add_objects(tmp_path, [folder / "ball.glb"], names=["../ball"])
    with pytest.raises(ConfigError, match="no mesh"):
        add_objects(tmp_path, [])


def test_more_views_and_their_best_twelve(folder, tmp_path):
    add_objects(tmp_path, [folder / "ball.glb"], views=42)
    ball = ObjectLibrary(tmp_path)["ball"]
    assert len(ball) == 42
    directions = ball.best_views(12).directions()
    angles = np.degrees(np.arccos(np.clip(directions @ directions.T - 2 * np.eye(12), -1, 1)))
    assert angles.min(axis=1).max() < 64
    assert np.sort(angles, axis=1)[:, 0].min() > 30
    with pytest.raises(ConfigError, match="13"):
        add_objects(tmp_path, [folder / "ball.glb"], views=13)


def test_a_thin_sheet_has_a_picture_in_every_view(folder, tmp_path):
    # Some icosphere directions look at it exactly edge-on.
    add_objects(tmp_path, [folder / "sheet.stl"])
    assert ObjectLibrary(tmp_path)["sheet"].mask.any(axis=(1, 2)).all()


def test_the_same_mesh_gives_the_same_views(folder, tmp_path):
    for name in ("a", "b"):
        add_objects(tmp_path / name, [folder / "block.ply"])
    first, second = (ObjectLibrary(tmp_path / name)["block"] for name in ("a", "b"))
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.points, second.points)
