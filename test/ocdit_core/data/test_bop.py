"""BOP folders, written by hand in the public layout, and every kind of damage that they can have."""

import json
import math
import pickle

import numpy as np
import pytest
from layouts import DEPTH, SILHOUETTES, TRUTH, VISIBLE, encoded, photo, write_bop_scene

from ocdit_core.data.bop import BopFolder, model_paths, read_targets, splits_of
from ocdit_core.errors import DataError


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def scene(tmp_path):
    return write_bop_scene(tmp_path / "ycbv")


@pytest.fixture
def folder(scene):
    return BopFolder(scene.parents[1], "test")


def test_a_frame_is_what_the_files_say(folder):
    assert len(folder) == 2
    frame = folder[1]
    assert (frame.dataset, frame.key, frame.scene_id, frame.image_id) == ("ycbv", "000002/000005", 2, 5)
    np.testing.assert_array_equal(frame.K, [[10, 0, 4], [0, 11, 3], [0, 0, 1]])
    np.testing.assert_array_equal(frame.image(), photo(105))
    assert frame.size == (6, 8)

    first, second = frame.annotations
    assert (first.object_id, second.object_id) == (3, 7)
    np.testing.assert_allclose(first.translation, [0.01, -0.02, 0.5])
    np.testing.assert_array_equal(second.rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert first.visible_fraction == pytest.approx(7 / 9)
    # 3 columns and 3 rows, which BOP writes as 2, 2.
    assert first.box_visible == first.box_object == (2, 1, 3, 3)
    assert second.box_visible == (4, 2, 2, 4)

    for index in range(2):
        np.testing.assert_array_equal(frame.mask(index), VISIBLE[index])
        np.testing.assert_array_equal(frame.mask(index, visible=False), SILHOUETTES[index])
    depth = frame.depth()
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, DEPTH / 10000, rtol=1e-6)
    with pytest.raises(IndexError):
        frame.mask(2)


@pytest.mark.parametrize(("suffix", "colour"), [(".jpg", "rgb"), (".tif", "gray"), (".png", "gray")])
def test_images_of_all_kinds(tmp_path, suffix, colour):
    write_bop_scene(tmp_path, suffix=suffix, colour=colour)
    image = BopFolder(tmp_path, "test")[0].image()
    assert image.shape == (6, 8, 3)
    assert abs(int(image[3, 5, 0]) - 120) <= (4 if suffix == ".jpg" else 0)
    if colour == "gray":
        assert (image == image[..., :1]).all()


def test_reduced_decoding_halves_an_image(tmp_path):
    write_bop_scene(tmp_path, suffix=".jpg")
    frame = BopFolder(tmp_path, "test")[0]
    assert frame.image(reduction=2).shape == (3, 4, 3)
    assert frame.size == (6, 8)
    with pytest.raises(ValueError, match="reduction is 3"):
        frame.image(reduction=3)


def test_scenes_and_images_come_in_order_and_are_found(tmp_path):
    write_bop_scene(tmp_path, scene=10, images=(3, 100, 20))
    write_bop_scene(tmp_path, scene=9, images=(7,))
    (tmp_path / "test" / ".part-000011-1234").mkdir()
    (tmp_path / "models").mkdir()
    folder = BopFolder(tmp_path, "test")
    keys = [frame.key for frame in folder]
    assert keys == ["000009/000007", "000010/000003", "000010/000020", "000010/000100"]
    assert folder.index(10, 20) == 2
    assert splits_of(tmp_path) == ["test"]
    with pytest.raises(DataError, match="has no image 000010/000004"):
        folder.index(10, 4)
    with pytest.raises(IndexError):
        folder[4]


def test_frames_can_be_sent_to_other_processes(folder):
    frame = folder[0]
    assert len(frame.annotations) == 2
    sent = pickle.dumps(folder[0])
    assert len(sent) < 2000  # no index of a scene's files travels along
    np.testing.assert_array_equal(pickle.loads(sent).mask(1), VISIBLE[1])


def test_without_gt_info_boxes_come_from_masks(tmp_path):
    write_bop_scene(tmp_path, info=False)
    frame = BopFolder(tmp_path, "test")[0]
    annotation = frame.annotations[1]
    assert math.isnan(annotation.visible_fraction)
    assert annotation.box_visible is None
    assert frame.visible_box(1) == (4, 2, 2, 4)


def test_what_is_not_seen_has_no_box(scene, folder):
    def hide(info):
        info["0"][0].update(bbox_visib=[-1, -1, -1, -1], bbox_obj=[-1, -1, -1, -1], visib_fract=0.0)

    edit(scene / "scene_gt_info.json", hide)
    frame = BopFolder(scene.parents[1], "test")[0]
    assert frame.annotations[0].box_visible is None
    assert frame.visible_box(0) is None


def test_a_depth_map_may_be_missing(scene, folder):
    (scene / "depth" / "000000.png").unlink()
    assert folder[0].depth() is None


def test_targets_of_both_kinds(tmp_path):
    path = tmp_path / "targets.json"
    located = [
        {"im_id": 5, "inst_count": 2, "obj_id": 3, "scene_id": 2},
        {"im_id": 5, "inst_count": 1, "obj_id": 7, "scene_id": 2},
    ]
    path.write_text(json.dumps(located))
    assert read_targets(path) == {(2, 5): {3: 2, 7: 1}}
    path.write_text(json.dumps([{"im_id": 0, "scene_id": 2}]))
    assert read_targets(path) == {(2, 0): {}}
    path.write_text(json.dumps([{"image": 1}]))
    with pytest.raises(DataError, match=r"targets.json\[0\]: not a target"):
        read_targets(path)


def test_chosen_images_are_read_by_number_and_a_limit_spreads_them(scene):
    folder = BopFolder(scene.parents[1], "test")
    assert [frame.key for frame in folder.frames([(2, 5)])] == ["000002/000005"]
    assert [frame.key for frame in folder.read(*folder.units([(2, 5)]))] == ["000002/000005"]
    assert len(list(folder.frames(limit=1))) == 1
    with pytest.raises(DataError, match="has no image 000002/000077"):
        list(folder.frames([(2, 77)]))


def test_models_are_found(tmp_path):
    with pytest.raises(DataError, match="models: no such folder"):
        model_paths(tmp_path / "models")
    (tmp_path / "models").mkdir()
    with pytest.raises(DataError, match="holds no models"):
        model_paths(tmp_path / "models")
    (tmp_path / "models" / "obj_000012.ply").touch()
    assert model_paths(tmp_path / "models") == {12: tmp_path / "models" / "obj_000012.ply"}


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        BopFolder(tmp_path / "none", "test")
    write_bop_scene(tmp_path, split="train_pbr")
    with pytest.raises(DataError, match=r"test: no such split; .* has train_pbr"):
        BopFolder(tmp_path, "test")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="val: holds no scene"):
        BopFolder(tmp_path, "val")


def test_a_damaged_scene_is_left_out_and_named(tmp_path, caplog):
    broken = write_bop_scene(tmp_path, scene=1)
    path = broken / "scene_camera.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match=r"000001.scene_camera.json: truncated or damaged JSON"):
        BopFolder(tmp_path, "test")
    write_bop_scene(tmp_path, scene=2)
    folder = BopFolder(tmp_path, "test")
    assert {frame.scene_id for frame in folder} == {2}
    assert len(folder.damaged) == 1
    assert "000001" in caplog.text


# Each: what is done to the scene, what is asked of frame 0, the file that the message names, what it says.
DAMAGE = {
    "truncated annotations": (
        lambda s: (s / "scene_gt.json").write_text((s / "scene_gt.json").read_text()[:-20]),
        lambda f: f.annotations,
        "scene_gt.json: truncated or damaged JSON",
    ),
    "damage within an entry": (
        lambda s: (s / "scene_gt.json").write_text((s / "scene_gt.json").read_text().replace("obj_id", 'obj_id"', 1)),
        lambda f: f.annotations,
        "scene_gt.json: 0: truncated or damaged JSON",
    ),
    "no annotations": (
        lambda s: (s / "scene_gt.json").unlink(),
        lambda f: f.annotations,
        "scene_gt.json: no such file",
    ),
    "no annotations of one image": (
        lambda s: edit(s / "scene_gt.json", lambda c: c.pop("0")),
        lambda f: f.annotations,
        "scene_gt.json: has no entry for image 0",
    ),
    "gt_info of fewer objects": (
        lambda s: edit(s / "scene_gt_info.json", lambda c: c["0"].pop()),
        lambda f: f.annotations,
        "scene_gt_info.json: 0: has 1 entries for 2 objects",
    ),
    "a pose in metres": (
        lambda s: edit(s / "scene_gt.json", lambda c: c["0"][1].update(cam_t_m2c=[0, 0, 0.4])),
        lambda f: f.annotations,
        r"scene_gt.json: 0\[1\]: cam_t_m2c is 0.4 mm long, .* BOP stores millimetres",
    ),
    "a pose that is not finite": (
        lambda s: edit(s / "scene_gt.json", lambda c: c["0"][0].update(cam_t_m2c=[0, float("nan"), 400])),
        lambda f: f.annotations,
        r"scene_gt.json: 0\[0\]: cam_t_m2c is \[0, NaN, 400\], not 3 finite numbers",
    ),
    "a mirror for a rotation": (
        lambda s: edit(s / "scene_gt.json", lambda c: c["0"][0].update(cam_R_m2c=[1, 0, 0, 0, 1, 0, 0, 0, -1])),
        lambda f: f.annotations,
        r"0\[0\]: cam_R_m2c is not a rotation \(determinant -1\)",
    ),
    "no object id": (
        lambda s: edit(s / "scene_gt.json", lambda c: c["0"][0].pop("obj_id")),
        lambda f: f.annotations,
        r"0\[0\]: obj_id is null",
    ),
    "no intrinsics": (
        lambda s: edit(s / "scene_camera.json", lambda c: c["0"].pop("cam_K")),
        lambda f: f.K,
        "scene_camera.json: 0: cam_K is missing",
    ),
    "a fisheye camera": (
        lambda s: edit(s / "scene_camera.json", lambda c: c["0"].update(cam_model={}) or c["0"].pop("cam_K")),
        lambda f: f.K,
        "only pinhole cameras",
    ),
    "no image": (lambda s: (s / "rgb/000000.png").unlink(), lambda f: f.image(), "000002: 0: has no image"),
    "an empty image": (
        lambda s: (s / "rgb/000000.png").write_bytes(b""),
        lambda f: f.image(),
        "rgb/000000.png: the file is empty",
    ),
    "a truncated image": (
        lambda s: (s / "rgb/000000.png").write_bytes(encoded(photo())[:-20]),
        lambda f: f.image(),
        "rgb/000000.png: truncated or damaged image",
    ),
    "a truncated JPEG": (
        lambda s: (s / "rgb/000000.png").write_bytes(encoded(photo(), "JPEG")[:-20]),
        lambda f: f.image(),
        "rgb/000000.png: truncated or damaged image",
    ),
    "no mask": (
        lambda s: (s / "mask_visib/000000_000001.png").unlink(),
        lambda f: f.mask(1),
        "mask_visib/000000_000001.png: the mask of object 1 is missing",
    ),
    "a mask of another size": (
        lambda s: (s / "mask_visib/000000_000001.png").write_bytes(encoded(np.zeros((3, 4), np.uint8))),
        lambda f: f.mask(1),
        "000000_000001.png: the mask is 4 x 3, the image 8 x 6",
    ),
    "depth of another size": (
        lambda s: (s / "depth/000000.png").write_bytes(encoded(np.full((3, 4), 5000, np.uint16))),
        lambda f: f.depth(),
        "depth/000000.png: the depth is 4 x 3, the image 8 x 6",
    ),
    "depth in colours": (
        lambda s: (s / "depth/000000.png").write_bytes(encoded(photo())),
        lambda f: f.depth(),
        "not one channel of 16 bits",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_an_error_that_names_file_and_key(scene, kind):
    damage, ask, message = DAMAGE[kind]
    damage(scene)
    folder = BopFolder(scene.parents[1], "test")
    with pytest.raises(DataError, match=message):
        ask(folder[0])
    if kind not in ("truncated annotations", "no annotations"):
        ask(folder[1])  # the other frame is not touched by it


@pytest.mark.parametrize("scale", [0, -0.1, float("nan"), float("inf"), "0.1", None])
def test_a_depth_scale_that_is_none(scene, scale):
    edit(scene / "scene_camera.json", lambda c: c["0"].update(depth_scale=scale))
    with pytest.raises(DataError, match=r"scene_camera.json: 0: depth_scale is .*, not a number above 0"):
        BopFolder(scene.parents[1], "test")[0].depth()


@pytest.mark.parametrize(
    ("scale", "message"), [(100.0, "the median depth is 900 m"), (1e-5, "the median depth is 9e-05 m")]
)
def test_a_depth_scale_that_cannot_be(scene, scale, message):
    edit(scene / "scene_camera.json", lambda c: c["0"].update(depth_scale=scale))
    with pytest.raises(DataError, match=message) as caught:
        BopFolder(scene.parents[1], "test")[0].depth()
    assert caught.value.kind == "depth scale"


def test_annotations_without_objects_are_no_damage(scene):
    edit(scene / "scene_gt.json", lambda c: c.update({"0": []}))
    edit(scene / "scene_gt_info.json", lambda c: c.update({"0": []}))
    assert BopFolder(scene.parents[1], "test")[0].annotations == ()


def test_only_the_entry_asked_for_is_parsed(scene):
    """A damaged neighbour in the same file harms nobody, because nobody parses it."""
    text = json.dumps({"5": TRUTH, "0": TRUTH}).replace("obj_id", 'obj_id"', 1)
    (scene / "scene_gt.json").write_text(text)
    folder = BopFolder(scene.parents[1], "test")
    assert len(folder[0].annotations) == 2
    with pytest.raises(DataError, match=r"scene_gt.json: 5:"):
        folder[1].annotations  # noqa: B018
