"""Objects that are added and removed while the node runs: real renderings and a real library, stand-in masks."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import make_library, make_mesh
from harness import NODE, Client, NodeProcess
from std_srvs.srv import Trigger
from vision_msgs.msg import BoundingBox2D

from ocdit_core.objects.library import ObjectLibrary
from ocdit_interfaces.srv import AddObject, RemoveObject
from ocdit_ros import topics

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_library(tmp_path_factory.mktemp("objects") / "library", ("box", "can"))
    make_mesh(folder.parent / "mug.ply", "mug")
    make_mesh(folder.parent / "broken.ply", "mug")
    make_mesh(folder.parent / "unlucky.ply", "mug")
    (folder.parent / "broken.ply").write_bytes(b"ply\nnonsense")
    return folder


@pytest.fixture(scope="module")
def client(folder):
    parameters = {"library": folder, "target_objects": "[box]", "autostart": True, "object_limits": "['can=1']"}
    environment = {"STAND_IN_SECONDS": "0.02", "STAND_IN_ENCODE": "0", "STAND_IN_FAILS_FOR": "unlucky"}
    process = NodeProcess(STAND_IN, parameters=parameters, environment=environment)
    client = Client(process)
    for name, kind in {"add_object": AddObject, "remove_object": RemoveObject, "reload_library": Trigger}.items():
        client.services[name] = client.node.create_client(kind, f"{NODE}/{name}")
    client.wait_for_camera()
    yield client
    client.close()
    assert process.stop() == 0, process.output


def names_in(client, frame):
    array = client.segment_one(client.make_image(frame))
    return [detection.results[0].hypothesis.class_id for detection in array.detections]


def numbers(client):
    return {entry.class_name: entry.class_id for entry in client.labels[-1].class_map}


def add(client, **values):
    return client.call("add_object", AddObject.Request(**values), timeout=120)[0]


def test_a_cad_file_becomes_a_target_and_leaves_again(client, folder):
    assert names_in(client, "before") == ["box"]
    version = client.infos[-1].database_version
    reply = add(client, mesh=str(folder.parent / "mug.ply"), target=True)
    assert reply.success, reply.message
    assert (reply.object_id, reply.class_id) == ("mug", 3)
    assert names_in(client, "added") == ["box", "mug"]
    client.wait_for(lambda: numbers(client) == {"box": 1, "can": 2, "mug": 3})
    client.wait_for(lambda: client.infos[-1].database_version > version)
    assert client.get_parameter("target_objects") == ["box", "mug"]
    assert "mug" in ObjectLibrary(folder)

    reply = add(client, mesh=str(folder.parent / "mug.ply"))
    assert (reply.success, reply.object_id) == (False, "")
    assert "holds mug already: remove it first, or choose another name" in reply.message
    assert client.set_parameter("mask_object", "mug").successful
    reply, _ = client.call("remove_object", RemoveObject.Request(object_id="mug"))
    assert (reply.success, list(reply.targets)) == (True, ["box"])
    assert names_in(client, "removed") == ["box"]
    client.wait_for(lambda: numbers(client) == {"box": 1, "can": 2})
    assert client.get_parameter("mask_object") == ""
    assert client.get_parameter("object_limits") == ["can=1"]
    assert "mug" not in ObjectLibrary(folder)
    # Another object does not get its number, and it gets its own again.
    reply = add(client, name="cup", mesh=str(folder.parent / "mug.ply"))
    assert (reply.success, reply.class_id) == (True, 4)
    assert names_in(client, "not a target") == ["box"]
    assert client.call("remove_object", RemoveObject.Request(object_id="cup"))[0].success
    reply = add(client, mesh=str(folder.parent / "mug.ply"))
    assert (reply.success, reply.class_id) == (True, 3)
    assert client.call("remove_object", RemoveObject.Request(object_id="mug"))[0].success


def photographs(client):
    """Messages with a red disc before a busy background, and its masks and boxes."""
    images, masks, boxes = [], [], []
    background = np.random.default_rng(0).integers(0, 90, (120, 160, 3), np.uint8)
    for number in range(3):
        image, mask = background.copy(), np.zeros((120, 160, 3), np.uint8)
        for pixels, colour in ((image, (230, 40 + 40 * number, 40)), (mask, (255, 255, 255))):
            cv2.ellipse(pixels, (80 + 5 * number, 60), (30 + 3 * number, 25), 0, 0, 360, colour, -1)
        header = client.make_image("photo").header
        images.append(topics.maker.from_rgb(image, header))
        masks.append(topics.maker.from_rgb(mask, header))
        boxes.append(BoundingBox2D(size_x=70.0 + 6 * number, size_y=58.0))
        boxes[-1].center.position.x, boxes[-1].center.position.y = 80.0 + 5 * number, 60.0
    return images, masks, boxes


@pytest.mark.parametrize("what", ["masks", "boxes"])
def test_images_with_masks_or_boxes_become_an_object(client, folder, what):
    images, masks, boxes = photographs(client)
    given = {"masks": masks} if what == "masks" else {"boxes": boxes}
    reply = add(client, name="disc", images=images, diameter=0.125, target=True, **given)
    assert reply.success, reply.message
    assert names_in(client, f"disc by {what}") == ["box", "disc"]
    templates = ObjectLibrary(folder)["disc"]
    assert (len(templates), templates.origin, templates.diameter) == (3, "photos", 0.125)
    # Of the square around the ellipse, whose sides are its longer axis and the margin.
    assert templates.mask.mean(axis=(1, 2)) == pytest.approx([0.5, 0.47, 0.44], abs=0.08)
    assert client.call("remove_object", RemoveObject.Request(object_id="disc"))[0].success


@pytest.mark.parametrize(
    ("values", "needle"),
    [
        ({}, "give either mesh, the path of a CAD file, or images"),
        ({"mesh": "{meshes}/mug.ply", "diameter": 0.1}, "belong to images, not to a CAD file"),
        ({"mesh": "{meshes}/none.ply"}, "none.ply: no such mesh file"),
        ({"mesh": "{meshes}/broken.ply"}, "broken.ply: "),
        ({"mesh": "{meshes}/mug.ply", "name": "../mug"}, "object name '../mug': use 1 to 100 letters"),
        ({"mesh": "{meshes}/mug.ply", "unit": "mile"}, "'mile'"),
        ({"mesh": "{meshes}/unlucky.ply", "target": True}, "out of memory for unlucky"),
        ({"images": 3}, "object name ''"),
        ({"images": 3, "name": "disc", "masks": 2}, "2 masks were given for 3 images; give one for each"),
        ({"images": 3, "name": "disc", "masks": 3, "boxes": 3}, "masks and boxes were given; either is enough"),
        ({"images": 3, "name": "disc", "black": 3}, "no pixel is above 127"),
        ({"images": 3, "name": "disc", "diameter": -1.0, "masks": 3}, "diameter: -1 m is not a length above 0"),
    ],
)
def test_a_failure_is_reported_and_changes_nothing(client, folder, values, needle):
    images, masks, boxes = photographs(client)
    black = [topics.maker.from_rgb(np.zeros((120, 160, 3), np.uint8), mask.header) for mask in masks]
    given = {"images": images, "masks": masks, "boxes": boxes, "black": black}
    values = {key: given[key][:value] if key in given else value for key, value in values.items()}
    if "black" in values:
        values["masks"] = values.pop("black")
    if "mesh" in values:
        values["mesh"] = values["mesh"].format(meshes=folder.parent)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npz", ".json")}
    reply = add(client, **values)
    assert (reply.success, reply.object_id, reply.class_id) == (False, "", 0)
    assert needle in reply.message
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npz", ".json")} == before
    assert list(client.call("list_objects")[0].object_ids) == ["box", "can"]
    assert list(client.call("list_objects")[0].targets) == ["box"]


@pytest.mark.parametrize(("name", "needle"), [("spoon", "unknown object 'spoon'"), ("box", "box is the only target")])
def test_what_cannot_be_removed_stays(client, folder, name, needle):
    reply, _ = client.call("remove_object", RemoveObject.Request(object_id=name))
    assert (reply.success, list(reply.targets)) == (False, ["box"])
    assert needle in reply.message
    assert ObjectLibrary(folder).object_ids == ("box", "can")


@pytest.mark.slow
def test_no_frame_has_a_wrong_name_while_objects_come_and_go(client):
    images, masks, _ = photographs(client)
    stop = threading.Event()

    def film():
        while not stop.wait(0.05):
            client.camera.publish(client.make_image("filmed"))

    def now():
        return client.node.get_clock().now().nanoseconds

    camera = threading.Thread(target=film)
    camera.start()
    gone, numbers = {}, []
    try:
        for cycle in range(4):
            reply = add(client, name=f"part_{cycle}", images=images, masks=masks, target=True)
            assert reply.success, reply.message
            numbers.append(reply.class_id)
            refused = add(client, name=f"part_{cycle}", images=images, masks=masks, target=True)
            assert (refused.success, "holds part_" in refused.message) == (False, True)
            seen = len(client.detections)
            client.wait_for(lambda seen=seen: len(client.detections) > seen + 2)
            assert client.call("remove_object", RemoveObject.Request(object_id=f"part_{cycle}"))[0].success
            gone[f"part_{cycle}"] = now()
    finally:
        stop.set()
        camera.join()
    assert numbers == sorted(set(numbers))
    shown = set()
    for array in client.detections:
        if array.header.frame_id == "filmed":
            stamp = array.header.stamp.sec * 10**9 + array.header.stamp.nanosec
            names = {detection.results[0].hypothesis.class_id for detection in array.detections}
            assert "box" in names
            assert all(stamp <= gone[name] for name in names - {"box"})
            shown |= names
    assert shown == {"box", *gone}


def test_a_library_changed_by_others_is_read_again(client, folder):
    def reload():
        return client.call("reload_library")[0]

    assert reload().message == "2 objects; new: none; gone: none; looking for box"
    archive = (folder / "can.npz").read_bytes()
    (folder / "lamp.npz").write_bytes(archive)
    (folder / "can.npz").unlink()
    assert client.set_targets("box", "can")[0].success
    assert reload().message == "2 objects; new: lamp; gone: can; looking for box"
    assert client.get_parameter("target_objects") == ["box"]
    assert names_in(client, "reloaded") == ["box"]
    assert client.set_parameter("target_objects", [""]).successful
    (folder / "can.npz").write_bytes(archive)
    assert reload().message == "3 objects; new: can; gone: none; looking for box, can, lamp"
    assert client.get_parameter("target_objects") == [""]
    # A library that cannot be read leaves all as it is.
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_text("{")
    reply = reload()
    assert not reply.success
    assert "manifest.json: damaged" in reply.message
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "lamp.npz").unlink()
    assert reload().success
    assert client.set_targets("box")[0].success


def test_the_services_of_an_unconfigured_node_say_so(client, folder):
    assert client.transition("deactivate")
    # Without a network, the object is stored, and encoded by the next activate.
    reply = add(client, mesh=str(folder.parent / "mug.ply"), target=True)
    assert reply.success, reply.message
    assert client.transition("activate")
    client.wait_for_camera()
    assert names_in(client, "encoded later") == ["box", "mug"]
    assert client.call("remove_object", RemoveObject.Request(object_id="mug"))[0].success
    assert client.transition("deactivate")
    assert client.transition("cleanup")
    for name in ("add_object", "remove_object", "reload_library"):
        reply, _ = client.call(name)
        assert (reply.success, reply.message) == (False, "the node is unconfigured: configure it first")
