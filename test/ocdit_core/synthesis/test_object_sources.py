import json

import numpy as np
import pytest
import trimesh

from ocdit_core.errors import DataError, MeshError
from ocdit_core.synthesis.sources import mesh_folder, procedural_objects, read_split, write_split


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kitchen").mkdir()
    trimesh.creation.box((0.1, 0.2, 0.1)).apply_translation((1, 0, 0)).export(tmp_path / "kitchen" / "brick.stl")
    trimesh.creation.icosphere(radius=1.5).export(tmp_path / "ball.ply")
    return tmp_path


def test_procedural_objects_by_name():
    source = procedural_objects(3, first_seed=7)
    assert list(source) == ["procedural_000000007", "procedural_000000008", "procedural_000000009"]
    np.testing.assert_array_equal(source["procedural_000000008"]().vertices, source["procedural_000000008"]().vertices)


def test_meshes_are_centred_and_of_a_tables_size(folder):
    source = mesh_folder(folder)
    assert list(source) == ["ball", "kitchen/brick"]
    brick = source["kitchen/brick"]()
    np.testing.assert_allclose(brick.bounds.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.ptp(brick.bounds, axis=0), (0.1, 0.2, 0.1), rtol=1e-5)  # its size is kept
    ball = source["ball"]()
    assert 0.05 <= np.ptp(ball.bounds, axis=0).max() <= 0.35
    assert ball.visual.kind == "texture"  # it had no colours


def test_a_mesh_is_the_same_whenever_it_is_read(folder):
    first, again = (mesh_folder(folder, seed=3)["ball"]() for _ in range(2))
    other = mesh_folder(folder, seed=4)["ball"]()
    np.testing.assert_array_equal(first.vertices, again.vertices)
    assert first.visual.material.baseColorTexture.tobytes() == again.visual.material.baseColorTexture.tobytes()
    assert np.ptp(first.bounds) != np.ptp(other.bounds)


def test_folders_that_cannot_serve(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        mesh_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no mesh"):
        mesh_folder(tmp_path / "empty")
    trimesh.creation.box((1, 1, 1)).export(folder / "ball.stl")
    with pytest.raises(DataError, match="rename one"):
        mesh_folder(folder)


def test_a_damaged_file_is_an_error_when_it_is_read(folder):
    (folder / "damaged.glb").write_bytes(b"glTF\x02\x00\x00\x00 no more")
    with pytest.raises(MeshError):
        mesh_folder(folder)["damaged"]()


def test_a_split_file_is_read_as_written(tmp_path):
    parts = {"train": ["a", "b"], "test": ["c"]}
    write_split(tmp_path / "split.json", parts)
    assert read_split(tmp_path / "split.json") == parts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truncated or damaged JSON"),
        (json.dumps({"train": ["a"]}), "not a split file"),
        (json.dumps({"train": ["a", "b"], "test": ["b"]}), "b .1 in all. are in both parts"),
    ],
)
def test_damaged_split_files(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / "split.json")


def test_a_missing_split_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_split(tmp_path / "split.json")
