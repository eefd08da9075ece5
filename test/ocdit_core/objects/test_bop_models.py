import json

import numpy as np
import pytest
import trimesh

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import expand_meshes, read_cad
from ocdit_core.objects.sources import source_digest

HALF_TURN = [-1, 0, 0, 10, 0, -1, 0, 20, 0, 0, 1, 0, 0, 0, 0, 1]
SIDE = 60.0  # millimetres


@pytest.fixture
def models(tmp_path):
    """A BOP folder of two models: a box of 60 mm with symmetries, and one of 90 mm without."""
    folder = tmp_path / "models"
    folder.mkdir()
    info = {}
    for number, side in ((1, SIDE), (12, 90.0)):
        trimesh.creation.box((side, side, side)).export(folder / f"obj_{number:06d}.ply")
        info[str(number)] = {"diameter": side * 3**0.5, "min_x": -side / 2, "size_x": side}
    identity = np.eye(4).reshape(-1).tolist()
    info["1"]["symmetries_discrete"] = [identity, HALF_TURN]
    info["1"]["symmetries_continuous"] = [{"axis": [0, 0, 2], "offset": [5, 10, 0]}]
    (folder / "models_info.json").write_text(json.dumps(info))
    return folder


def change(models, **entries):
    """Change the entry of model 1 in models_info.json."""
    info = json.loads((models / "models_info.json").read_text())
    info["1"].update(entries)
    (models / "models_info.json").write_text(json.dumps(info))


def test_a_folder_of_models_becomes_its_files_sorted(models, tmp_path):
    (models / "obj_000001.png").write_bytes(b"texture")
    (models / "notes.ply").write_text("")
    wanted = [models / "obj_000001.ply", models / "obj_000012.ply"]
    assert expand_meshes([models]) == wanted
    assert expand_meshes([str(models / "obj_000012.ply"), tmp_path / "absent.glb", models]) == [
        models / "obj_000012.ply", tmp_path / "absent.glb", *wanted,
    ]  # fmt: skip
    (models / "models_info.json").unlink()
    assert expand_meshes([models]) == wanted


def test_folders_of_scans_and_of_objaverse_stand_for_their_objects(tmp_path):
    names = ["a/meshes/model.obj", "b/meshes/model.obj", "ycb/1/google_16k/textured.obj", "glbs/000-012/x.glb"]
    for name in [*names, "glbs/readme.glb", "c/model.obj"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [expand_meshes([tmp_path / folder]) for folder in ("", "ycb", "glbs")]
    assert found == [[tmp_path / name for name in part] for part in (names[:2], names[2:3], names[3:])]


def test_another_folder_is_refused_with_what_to_give(models, tmp_path):
    with pytest.raises(MeshError, match=r"of no known layout.*give .*/models$"):
        expand_meshes([tmp_path])
    (tmp_path / "cad").mkdir()
    with pytest.raises(MeshError, match=r"cad: is a folder of no known layout.*cad/\*\.glb"):
        expand_meshes([tmp_path / "cad"])


def test_a_model_is_in_millimetres_and_has_its_symmetries(models):
    model = read_cad(models / "obj_000001.ply")
    assert (model.unit, model.guessed, model.warnings) == ("mm", False, ())
    assert model.diameter == pytest.approx(0.06 * 3**0.5)
    assert model.sources == ("obj_000001.ply", "models_info.json")
    # The identity, which BOP's files may list, says nothing.
    np.testing.assert_allclose(
        model.symmetries_discrete, [[[-1, 0, 0, 0.01], [0, -1, 0, 0.02], [0, 0, 1, 0], [0, 0, 0, 1]]]
    )
    np.testing.assert_allclose(model.symmetries_continuous, [[[0, 0, 1], [0.005, 0.01, 0]]])
    other = read_cad(models / "obj_000012.ply")
    assert other.symmetries_discrete.shape == (0, 4, 4)
    assert other.symmetries_continuous.shape == (0, 2, 3)


def test_millimetres_are_believed_where_a_size_alone_would_say_metres(models):
    trimesh.creation.box((1.9, 1.9, 8)).export(models / "obj_000001.ply")  # a small screw
    change(models, diameter=8.44)
    model = read_cad(models / "obj_000001.ply")
    assert (model.unit, model.warnings) == ("mm", ())
    assert read_cad(models / "obj_000001.ply", "cm").symmetries_discrete[0, 0, 3] == pytest.approx(0.1)


def test_the_diameter_is_checked(models):
    change(models, diameter=SIDE * 3**0.5 * 1.04)
    assert read_cad(models / "obj_000001.ply").warnings == ()
    change(models, diameter=SIDE * 3**0.5 * 1.1)
    (warning,) = read_cad(models / "obj_000001.ply").warnings
    assert warning.startswith("obj_000001.ply: is 103.9 mm wide, but models_info.json states a diameter of 114.3 mm")


def test_the_digest_covers_the_description(models):
    path = models / "obj_000001.ply"
    model = read_cad(path)
    assert source_digest(path, model.sources) == model.sha256
    change(models, symmetries_continuous=[])
    assert source_digest(path, model.sources) not in (None, model.sha256)
    assert source_digest(path, model.sources) == read_cad(path).sha256


def test_models_at_another_resolution_use_the_description_beside_them(models):
    for name in ("models_eval", "models_fine", "elsewhere"):
        folder = models.parent / name
        folder.mkdir()
        (folder / "obj_000001.ply").write_bytes((models / "obj_000001.ply").read_bytes())
    (models.parent / "models_eval" / "models_info.json").write_text(json.dumps({"1": {"diameter": 104}}))
    own = read_cad(models.parent / "models_eval" / "obj_000001.ply")
    assert own.sources[1] == "models_info.json"
    assert len(own.symmetries_discrete) == 0
    path = models.parent / "models_fine" / "obj_000001.ply"
    borrowed = read_cad(path)
    assert borrowed.sources[1] == "../models/models_info.json"
    assert len(borrowed.symmetries_discrete) == 1
    assert source_digest(path, borrowed.sources) == borrowed.sha256
    assert read_cad(models.parent / "elsewhere" / "obj_000001.ply").guessed


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"diameter": None}, r'at or before the key "1"'),
        ({"diameter": "wide"}, r"could not convert string to float: 'wide'"),
        ({"diameter": -3}, r"the diameter is -3, not above 0"),
        ({"diameter": float("nan")}, r"the diameter is nan, not above 0"),
        ({"symmetries_discrete": [HALF_TURN, HALF_TURN[:15]]}, r'the key "1"'),
        ({"symmetries_discrete": [[2.0] * 16]}, r"symmetries_discrete: one is not a rotation"),
        ({"symmetries_discrete": [[-1, *HALF_TURN[1:5], 1, *HALF_TURN[6:]]]}, r"one is not a rotation"),  # mirrors
        ({"symmetries_continuous": [[0, 0, 1]]}, r'the key "1"'),
        ({"symmetries_continuous": [{"axis": [0, 0, 1]}]}, r"lacks the key 'offset'"),
        ({"symmetries_continuous": [{"axis": [0, 0, 0], "offset": [0, 0, 0]}]}, r"one axis has no direction"),
    ],
)
def test_a_damaged_description_is_refused_by_file_and_key(models, entries, reason):
    change(models, **entries)
    with pytest.raises(MeshError, match=rf"models_info\.json: .*{reason}") as caught:
        read_cad(models / "obj_000001.ply")
    assert "\n" not in str(caught.value)
    read_cad(models / "obj_000012.ply")  # another model's entry is no concern of this one


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "damaged"), ("[]", "damaged"), ("{}", "lacks the key '1'"), ('{"1": 3}', "damaged")]
)
def test_a_description_that_is_none_is_refused(models, text, reason):
    (models / "models_info.json").write_text(text)
    with pytest.raises(MeshError, match=rf"models_info\.json: .*{reason}"):
        read_cad(models / "obj_000001.ply")
