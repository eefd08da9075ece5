"""Scenes, shards and models out: the numbers worked out by hand, all or nothing, and read back the same."""

import json
import multiprocessing
import os
import signal
import tarfile
import time

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.shards import ShardDataset
from ocdit_core.data.writers import (
    LabelledFrame,
    LabelledObject,
    encode_depth,
    info_entry,
    model_path,
    remove_unfinished,
    scene_folder,
    shard_path,
    write_camera,
    write_key_to_shard,
    write_model,
    write_models_info,
    write_scene,
    write_shard,
)
from ocdit_core.errors import DataError
from ocdit_core.masks import tight_box
from ocdit_core.objects.meshes import read_cad

K = np.array([[50.0, 0, 16], [0, 50, 12], [0, 0, 1]])
TURNED = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


def truth(seed=0, *, depth=True):
    """An image of 32 x 24 with a box that the left border cuts, one that it hides in part, and one not seen at all."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((3, 72, 96), bool)  # three times the image: its first pixel is (32, 24)
    canvas[0, 24 + 5 : 24 + 15, 32 - 4 : 32 + 6] = True
    canvas[1, 24 + 10 : 24 + 20, 32 + 3 : 32 + 13] = True
    canvas[2, 24 + 6 : 24 + 8, 32 + 1 : 32 + 3] = True  # behind the first
    inside = canvas[:, 24:48, 32:64]
    visible = np.stack([inside[0], inside[1] & ~inside[0], np.zeros((24, 32), bool)])
    distances = [0.4, 0.5, 0.6]
    depths = np.full((24, 32), 0.9)
    for mask, distance in zip(visible, distances, strict=True):
        depths[mask] = distance
    depths[7, 2] = 0  # nothing measured on the first object
    objects = [
        LabelledObject(
            object_id=number + 1,
            rotation=TURNED,
            translation=np.array([0.01 * number, 0, distances[number]]),
            visible=visible[number],
            silhouette=inside[number],
            whole=(int(canvas[number].sum()), (box[0] - 32, box[1] - 24, *box[2:])),
        )
        for number, box in enumerate(map(tight_box, canvas))
    ]
    image = cv2.resize(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), (32, 24), interpolation=cv2.INTER_CUBIC)
    return LabelledFrame(
        image=image,
        K=K,
        depth=depths if depth else None,
        objects=objects,
        rotation=TURNED,
        translation=np.array([0.0, 0.1, 1.0]),
    )


def test_info_by_hand():
    """Counted on paper: the boxes leave out the last column and row, as in BOP's files."""
    frame = truth()
    first, second, third = (info_entry(item, frame.depth) for item in frame.objects)
    assert first == {
        "bbox_obj": [-4, 5, 9, 9],
        "bbox_visib": [0, 5, 5, 9],
        "px_count_all": 100,
        "px_count_valid": 59,  # 6 columns of 10 are in the image, one pixel is not measured
        "px_count_visib": 60,
        "visib_fract": 0.6,
    }
    # Columns 3-5 of rows 10-14 are hidden.
    assert second == {
        "bbox_obj": [3, 10, 9, 9],
        "bbox_visib": [3, 10, 9, 9],
        "px_count_all": 100,
        "px_count_valid": 100,
        "px_count_visib": 85,
        "visib_fract": 0.85,
    }
    assert third == {
        "bbox_obj": [-1, -1, -1, -1],
        "bbox_visib": [-1, -1, -1, -1],
        "px_count_all": 4,
        "px_count_valid": 3,  # one of its pixels is the one without depth
        "px_count_visib": 0,
        "visib_fract": 0.0,
    }


def check_read(frame, expected):
    assert np.abs(frame.image().astype(int) - expected.image).mean() < 8  # JPEG
    np.testing.assert_array_equal(frame.K, K)
    for index, (annotation, item) in enumerate(zip(frame.annotations, expected.objects, strict=True)):
        assert annotation.object_id == item.object_id
        np.testing.assert_allclose(annotation.rotation, item.rotation)
        np.testing.assert_allclose(annotation.translation, item.translation)
        np.testing.assert_array_equal(frame.mask(index), item.visible)
        np.testing.assert_array_equal(frame.mask(index, visible=False), item.silhouette)
    assert [a.visible_fraction for a in frame.annotations] == [0.6, 0.85, 0.0]
    assert frame.annotations[0].box_object == (-4, 5, 10, 10)
    assert frame.annotations[2].box_visible is None
    np.testing.assert_allclose(frame.depth(), expected.depth, atol=5.1e-5)


def test_a_scene_is_read_back(tmp_path):
    frames = [truth(seed) for seed in range(3)]
    folder = write_scene(tmp_path, "train_pbr", 4, frames)
    assert folder == scene_folder(tmp_path, "train_pbr", 4) == tmp_path / "train_pbr" / "000004"
    assert sorted(path.name for path in folder.iterdir()) == [
        "depth", "mask", "mask_visib", "rgb", "scene_camera.json", "scene_gt.json", "scene_gt_info.json",
    ]  # fmt: skip
    read = BopFolder(tmp_path, "train_pbr")
    assert len(read) == 3
    for frame, expected in zip(read, frames, strict=True):
        check_read(frame, expected)

    camera = json.loads((folder / "scene_camera.json").read_text())["1"]
    assert camera["depth_scale"] == 0.1
    assert camera["cam_R_w2c"] == TURNED.ravel().tolist()
    assert camera["cam_t_w2c"] == [0.0, 100.0, 1000.0]
    assert json.loads((folder / "scene_gt.json").read_text())["1"][1]["cam_t_m2c"] == [10.0, 0.0, 500.0]
    stored = cv2.imread(str(folder / "depth" / "000000.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert stored[6, 0] == 4000
    assert Image.open(folder / "mask_visib" / "000002_000001.png").getextrema() == (0, 255)


def test_a_shard_is_read_back_and_the_same_frames_are_the_same_bytes(tmp_path):
    frames = [(f"000007_{seed:06d}", truth(seed)) for seed in range(3)]
    path = shard_path(tmp_path / "web", 0)
    assert write_shard(path, frames) == [key for key, _ in frames]
    for frame, (key, expected) in zip(ShardDataset(path), frames, strict=True):
        assert (frame.key, frame.scene_id) == (key, 7)
        check_read(frame, expected)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        masks = json.load(tar.extractfile("000007_000000.mask_visib.json"))
    assert {name.split(".", 1)[1] for name in names} == {
        "rgb.jpg", "depth.png", "camera.json", "gt.json", "gt_info.json", "mask.json", "mask_visib.json",
    }  # fmt: skip
    # Uncompressed, as the published shards are: columns first, 5 rows above the first run.
    assert masks["0"] == {"size": [24, 32], "counts": [5, 10, 14, 10, 14, 10, 14, 10, 14, 10, 14, 10, 633]}

    again = shard_path(tmp_path / "web", 1)
    write_shard(again, [(key.replace("7_", "8_"), frame) for key, frame in frames])
    assert write_key_to_shard(tmp_path / "web") == 6
    assert json.loads((tmp_path / "web" / "key_to_shard.json").read_text())["000008_000002"] == 1
    before = path.read_bytes()
    write_shard(path, frames)
    assert path.read_bytes() == before


def test_depth_beyond_the_range_is_none():
    depth = np.array([[0.5, 6.5535, 6.6], [np.inf, np.nan, -1.0]], np.float32)
    stored = cv2.imdecode(np.frombuffer(encode_depth(depth), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, [[5000, 65535, 0], [0, 0, 0]])


def test_an_error_leaves_nothing(tmp_path):
    def frames():
        yield truth()
        raise RuntimeError("the renderer broke")

    with pytest.raises(RuntimeError):
        write_scene(tmp_path, "train", 0, frames())
    with pytest.raises(RuntimeError):
        write_shard(shard_path(tmp_path, 0), (("a", frame) for frame in frames()))
    assert [path for path in tmp_path.rglob("*") if path.name != "train"] == []


def test_what_does_not_fit_together_is_refused(tmp_path):
    good = truth()
    stray = LabelledObject(**{**vars(good.objects[0]), "visible": np.ones((24, 32), bool)})
    with pytest.raises(DataError, match=r"0: object 0: some pixels are visible but not of its silhouette"):
        write_scene(tmp_path, "train", 0, [LabelledFrame(**{**vars(good), "objects": [stray]})])
    small = LabelledObject(**{**vars(good.objects[0]), "silhouette": np.ones((72, 96), bool)})
    with pytest.raises(DataError, match=r"masks of \(24, 32\) and \(72, 96\)"):
        write_shard(shard_path(tmp_path, 0), [("a", LabelledFrame(**{**vars(good), "objects": [small]}))])
    for key in ("a.b", "a"):
        with pytest.raises(DataError, match="key"):
            write_shard(shard_path(tmp_path, 0), [("a", good), (key, good)])
    with pytest.raises(DataError, match="needs a frame"):
        write_scene(tmp_path, "train", 0, [])
    assert not scene_folder(tmp_path, "train", 0).exists()
    write_scene(tmp_path, "train", 0, [good])
    with pytest.raises(DataError, match="exists already"):
        write_scene(tmp_path, "train", 0, [good])


def _write_forever(root):
    def frames():
        for seed in range(100):
            yield truth(seed)
            time.sleep(0.01)

    write_scene(root, "train", 0, frames())


def test_a_killed_writer_leaves_no_scene(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("train/.part-*/rgb/*.jpg")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not scene_folder(tmp_path, "train", 0).exists()
    remove_unfinished(tmp_path, "train")
    write_scene(tmp_path, "train", 0, [truth()])
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["000000"]


def test_camera_json(tmp_path):
    write_camera(tmp_path, K, (24, 32))
    assert json.loads((tmp_path / "camera.json").read_text()) == {
        "fx": 50.0, "fy": 50.0, "cx": 16.0, "cy": 12.0, "width": 32, "height": 24, "depth_scale": 0.1,
    }  # fmt: skip


def textured_box():
    mesh = trimesh.creation.box((0.1, 0.2, 0.06))
    mesh.apply_translation((0.01, 0, 0))
    uv = (np.asarray(mesh.vertices)[:, :2] + 0.2) / 0.4
    texture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=texture)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return mesh


def test_models_with_texture_and_colours(tmp_path):
    folder = tmp_path / "models"
    mesh = textured_box()
    before = np.array(mesh.vertices)
    entries = {3: write_model(folder, 3, mesh)}
    np.testing.assert_array_equal(mesh.vertices, before)
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.05)
    ball.visual.face_colors = np.tile([200, 30, 40, 255], (len(ball.faces), 1))
    write_models_info(folder, entries)
    write_models_info(folder, {12: write_model(folder, 12, ball)})

    # In millimetres, by hand: a box of 100 x 200 x 60 around (10, 0, 0).
    info = json.loads((folder / "models_info.json").read_text())
    assert sorted(info) == ["12", "3"]
    box = info["3"]
    wanted = {"min_x": -40, "min_y": -100, "min_z": -30, "size_x": 100, "size_y": 200, "size_z": 60}
    assert {key: box[key] for key in wanted} == pytest.approx(wanted)
    assert box["diameter"] == pytest.approx(np.sqrt(100**2 + 200**2 + 60**2))

    # What reads BOP's models everywhere else in the project reads these.
    path = model_path(folder, 3)
    read = read_cad(path, "mm")
    assert read.diameter == pytest.approx(box["diameter"] / 1000)
    np.testing.assert_allclose(read.mesh.bounds, [[-0.04, -0.1, -0.03], [0.06, 0.1, 0.03]], atol=1e-6)
    assert read.mesh.visual.kind == "texture"
    assert path.with_suffix(".png").is_file()
    order = np.lexsort(np.asarray(read.mesh.vertices).round(5).T)
    expected = np.lexsort(before.round(5).T)
    np.testing.assert_allclose(read.mesh.visual.uv[order], mesh.visual.uv[expected], atol=1e-6)
    colours = read_cad(model_path(folder, 12), "mm").mesh.visual.vertex_colors
    np.testing.assert_array_equal(colours[0], [200, 30, 40, 255])
    header = path.read_bytes().split(b"end_header")[0].decode()
    for line in ("format ascii 1.0", "comment TextureFile obj_000003.png", "property float nx"):
        assert line in header.splitlines()
    assert "texture_u" in header


def test_a_damaged_models_info_is_not_overwritten(tmp_path):
    (tmp_path / "models_info.json").write_text('{"1": {"diam')
    with pytest.raises(DataError, match=r"models_info.json: truncated or damaged JSON"):
        write_models_info(tmp_path, {2: {"diameter": 1.0}})
    with pytest.raises(DataError, match="has no faces"):
        write_model(tmp_path, 1, trimesh.Trimesh(vertices=np.eye(3), faces=np.zeros((0, 3), int)))
