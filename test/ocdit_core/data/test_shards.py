"""BOP's webdataset shards: tar files written by hand, whole and damaged."""

import json
import pickle

import numpy as np
import pytest
from layouts import CAMERA, DEPTH, SILHOUETTES, VISIBLE, encoded, photo, shard_members, write_tar

from ocdit_core.data.shards import ShardDataset, iterate_shard
from ocdit_core.errors import DataError
from ocdit_core.masks import encode_mask


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "gso" / "shard-000000.tar", {f"000004_00000{i}": shard_members() for i in range(3)})


def read(source, **options):
    """The keys of the frames that are whole, and the errors."""
    errors: list[DataError] = []
    keys = [frame.key for frame in iterate_shard(source, on_error=errors.append, **options)]
    return keys, errors


def test_a_frame_is_what_its_members_say(shard):
    frames = list(iterate_shard(shard))
    assert [frame.key for frame in frames] == ["000004_000000", "000004_000001", "000004_000002"]
    frame = frames[1]
    assert (frame.dataset, frame.scene_id, frame.image_id) == ("gso", 4, 1)
    np.testing.assert_array_equal(frame.image(), photo())
    np.testing.assert_array_equal(frame.K, np.reshape(CAMERA["cam_K"], (3, 3)))
    assert [a.object_id for a in frame.annotations] == [3, 7]
    assert frame.annotations[0].box_visible == (2, 1, 3, 3)
    for index in range(2):
        np.testing.assert_array_equal(frame.mask(index), VISIBLE[index])
        np.testing.assert_array_equal(frame.mask(index, visible=False), SILHOUETTES[index])
    np.testing.assert_allclose(frame.depth(), DEPTH / 10000, rtol=1e-6)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(frame)).mask(0), VISIBLE[0])


def test_compressed_run_lengths_are_read_too(tmp_path):
    masks = {str(i): encode_mask(VISIBLE[i]) for i in range(2)}
    assert isinstance(masks["0"]["counts"], str)
    members = {**shard_members(), "mask_visib.json": json.dumps(masks).encode()}
    (frame,) = iterate_shard(write_tar(tmp_path / "s.tar", {"a": members}))
    np.testing.assert_array_equal(frame.mask(0), VISIBLE[0])
    assert frame.scene_id == -1


def test_keys_in_folders_and_foreign_members(tmp_path):
    """What webdataset's tools add, and members of other kinds, are no frames."""
    foreign = {"notes.txt": b"x", "__url__": b"y"}
    frames = {"train/000001_000002": {**shard_members(), **foreign}, "readme": {"md": b"z"}}
    (frame,) = iterate_shard(write_tar(tmp_path / "s.tar", frames))
    assert (frame.key, frame.scene_id, frame.image_id) == ("train/000001_000002", 1, 2)


def test_what_is_not_wanted_is_not_kept(shard):
    frame = next(iter(iterate_shard(shard, everything=False)))
    assert frame.depth() is None
    assert len(pickle.dumps(frame)) < len(pickle.dumps(next(iter(iterate_shard(shard)))))
    with pytest.raises(DataError, match=r"shard-000000.tar: 000004_000000.mask.json: is missing"):
        frame.mask(0, visible=False)


@pytest.mark.parametrize("missing", ["camera.json", "gt.json", "mask_visib.json", "rgb.png"])
def test_a_missing_member_costs_its_frame_only(tmp_path, missing):
    lacking = shard_members()
    del lacking[missing]
    shard = write_tar(tmp_path / "s.tar", {"a": shard_members(), "b": lacking, "c": shard_members()})
    keys, (error,) = read(shard)
    assert keys == ["a", "c"]
    assert str(shard) in str(error)
    assert f"b: lacks b.{missing.replace('rgb.png', 'rgb.jpg')}" in str(error)
    assert error.kind.startswith("missing")
    with pytest.raises(DataError, match="b: lacks"):
        list(iterate_shard(shard))


def test_a_shard_cut_off_anywhere_is_noticed(shard, tmp_path):
    """At every 512th byte: between members, within a header, within contents; never a frame that is not whole."""
    data = shard.read_bytes()
    ends = data.rstrip(b"\0")
    reference = [pickle.dumps(frame._members) for frame in iterate_shard(shard)]
    cut = tmp_path / "cut.tar"
    for length in [*range(0, len(ends), 512), 700, 5000, len(ends) - 1]:
        cut.write_bytes(data[:length])
        errors: list[DataError] = []
        frames = list(iterate_shard(cut, on_error=errors.append))
        assert len(errors) == 1, length
        assert errors[0].kind == "damaged shard"
        assert str(cut) in str(errors[0])
        assert len(frames) < 3
        assert [pickle.dumps(frame._members) for frame in frames] == reference[: len(frames)]


def test_a_damaged_header_ends_the_shard_with_an_error(shard):
    data = bytearray(shard.read_bytes())
    at = data.index(b"000004_000001.gt.json")
    data[at : at + 6] = b"\xff" * 6
    shard.write_bytes(data)
    keys, (error,) = read(shard)
    assert keys == ["000004_000000"]
    assert "damaged shard after 000004_000001" in str(error)


def test_no_tar_at_all(tmp_path):
    path = tmp_path / "s.tar"
    path.write_text("<html>not found</html>" * 100)
    keys, (error,) = read(path)
    assert keys == []
    assert "damaged shard" in str(error)
    write_tar(path, {"a": {"txt": b"x"}})
    assert "holds no frame" in str(read(path)[1][0])
    assert "no such shard" in str(read(tmp_path / "none.tar")[1][0])


DAMAGE = {
    "truncated JSON": ("gt.json", json.dumps(CAMERA).encode()[:-5], lambda f: f.annotations, "damaged JSON"),
    "a camera that is a list": ("camera.json", b"[]", lambda f: f.K, "is a list, not an object"),
    "masks of one object": (
        "mask_visib.json",
        json.dumps({"0": encode_mask(VISIBLE[0])}).encode(),
        lambda f: f.mask(1),
        "the mask of object 1 is missing",
    ),
    "a mask of another size": (
        "mask_visib.json",
        json.dumps({"1": encode_mask(np.ones((3, 4), bool))}).encode(),
        lambda f: f.mask(1),
        "mask is 4 x 3, the image 8 x 6",
    ),
    "run lengths that do not add up": (
        "mask_visib.json",
        json.dumps({"1": {"counts": [3, 4], "size": [6, 8]}}).encode(),
        lambda f: f.mask(1),
        "mask_visib.json: 1: run lengths of a mask are damaged",
    ),
    "a truncated image": ("rgb.png", encoded(photo())[:-20], lambda f: f.image(), "truncated or damaged image"),
    "a depth scale of 0": (
        "camera.json",
        json.dumps({**CAMERA, "depth_scale": 0}).encode(),
        lambda f: f.depth(),
        "depth_scale is 0",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_names_shard_and_member(tmp_path, kind):
    member, content, ask, message = DAMAGE[kind]
    shard = write_tar(tmp_path / "s.tar", {"000001_000002": {**shard_members(), member: content}})
    (frame,) = iterate_shard(shard)
    with pytest.raises(DataError, match=message) as caught:
        ask(frame)
    assert f"{shard}: 000001_000002.{member}" in str(caught.value)


def test_sources(tmp_path, shard):
    second = write_tar(shard.with_name("shard-000001.tar"), {"000005_000000": shard_members()})
    (shard.parent / ".shard-000002.tar").write_bytes(b"unfinished")
    both = (str(shard), str(second))
    assert ShardDataset(shard.parent).shards == both
    dataset = ShardDataset(second)
    assert dataset.name == "gso"
    assert [frame.key for frame in dataset] == ["000005_000000"]
    assert len(list(ShardDataset(shard.parent))) == 4
    for absent in (tmp_path, shard.parent / "shard-000002.tar"):
        with pytest.raises(DataError, match=rf"{absent}: no such shard"):
            ShardDataset(absent)


def test_chosen_images_are_found_by_number(shard):
    dataset = ShardDataset(shard.parent)
    assert [frame.key for frame in dataset.frames([(4, 2), (9, 9)])] == ["000004_000002"]
    assert [frame.key for frame in dataset.frames(limit=2)] == ["000004_000000", "000004_000001"]
    assert dataset.units([(4, 2)]) == [str(shard)]
    assert dataset.units([]) == []
    assert len(list(dataset.read(str(shard)))) == 3
