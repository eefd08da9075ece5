"""Regions of another detector, answered with names and masks."""

from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import NODE, Client, NodeProcess
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2D, Detection2DArray

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))


@pytest.fixture(scope="module")
def client():
    parameters = {"library": "stand-in", "target_objects": "[mug, box]", "autostart": True}
    process = NodeProcess(STAND_IN, parameters=parameters, environment={"STAND_IN_SECONDS": "0.05"})
    client = Client(process)
    client.boxes = client.node.create_publisher(Detection2DArray, "/regions", 5)
    client.labels = client.node.create_publisher(Image, "/regions/instances", 5)
    client.answers = client.listen_to(Detection2DArray, f"{NODE}/regions/detections", 50)
    client.masks = client.listen_to(Image, f"{NODE}/regions/instances", 50)
    client.wait_for_camera()
    client.wait_until(lambda: client.boxes.get_subscription_count() and client.labels.get_subscription_count())
    yield client
    client.close()
    assert process.stop() == 0, process.output


def detection(x, y, width, height, name=""):
    """A box of columns x to x + width - 1, as the node's own detections have them."""
    found = Detection2D(id=name)
    found.bbox.center.position.x, found.bbox.center.position.y = x + (width - 1) / 2, y + (height - 1) / 2
    found.bbox.size_x, found.bbox.size_y = float(width), float(height)
    return found


def label_image(header, values, encoding="mono16"):
    message = Image(header=header, height=values.shape[0], width=values.shape[1], encoding=encoding)
    message.step, message.data = 2 * values.shape[1], values.astype(np.uint16).tobytes()
    return message


def answer(client, publish):
    """Publish images and their regions until an answer comes; returns it with its masks."""
    sent = []

    def found():
        image = client.make_image("with regions")
        sent.append(image.header)
        client.camera.publish(image)
        publish(image.header)
        return [array for array in list(client.answers) if array.header in sent]

    client.wait_until(found, what="an answer to regions")
    array = found()[0]
    client.wait_for(lambda: any(message.header == array.header for message in client.masks))
    mask = next(message for message in client.masks if message.header == array.header)
    return array, np.frombuffer(mask.data, np.uint16).reshape(48, 64)


def test_boxes_are_answered_with_names_and_masks(client):
    # Partly outside of the image, and without an id.
    regions = [detection(10, 5, 20, 8), detection(0, 0, 5, 5), detection(50, 40, 40, 4)]
    array, mask = answer(
        client, lambda header: client.boxes.publish(Detection2DArray(header=header, detections=regions))
    )
    found = [
        (d.id, d.results[0].hypothesis.class_id, round(d.results[0].hypothesis.score, 3)) for d in array.detections
    ]
    assert found == [("1", "mug", 0.9), ("3", "mug", 0.7)]
    assert (mask[5:13, 10:20] == 1).all()
    assert (mask[40:44, 50:57] == 3).all()
    assert (mask > 0).sum() == 80 + 28
    assert array.detections[0].bbox.size_x == 10


def test_ids_that_are_numbers_come_back(client):
    regions = [detection(10, 5, 20, 8, "77"), detection(0, 0, 5, 5, "5"), detection(40, 30, 8, 8, "1234")]
    array, mask = answer(
        client, lambda header: client.boxes.publish(Detection2DArray(header=header, detections=regions))
    )
    assert [d.id for d in array.detections] == ["77", "1234"]
    assert set(np.unique(mask)) == {0, 77, 1234}


def test_masks_of_a_label_image_are_answered(client):
    values = np.zeros((48, 64))
    values[3:9, 3:9], values[20:30, 20:40], values[40, :] = 7, 300, 9
    array, mask = answer(client, lambda header: client.labels.publish(label_image(header, values)))
    assert [d.id for d in array.detections] == ["7", "300"]
    assert np.array_equal(mask, np.where(values == 9, 0, values))


def test_no_regions_are_answered_with_none(client):
    array, mask = answer(client, lambda header: client.boxes.publish(Detection2DArray(header=header)))
    assert (len(array.detections), mask.any()) == (0, False)


@pytest.mark.parametrize(
    ("make", "needle"),
    [
        (
            lambda header: Detection2DArray(header=header, detections=[detection(70, 5, 5, 5)]),
            "is outside the image of 64 x 48",
        ),
        (lambda header: Detection2DArray(header=header, detections=[detection(5, 5, 0, 5)]), "is no box"),
        (lambda header: Detection2DArray(header=header, detections=[detection(float("nan"), 5, 5, 5)]), "is no box"),
        (
            lambda header: Detection2DArray(header=header, detections=[detection(5, 5, 5, 5)] * 101),
            "101 regions are more than the 100",
        ),
        (lambda header: Detection2DArray(detections=[detection(5, 5, 5, 5)]), "no image has the stamp 0.000000000"),
        (
            lambda header: label_image(header, np.ones((20, 64))),
            "the label image has 64 x 20 pixels, the image 64 x 48",
        ),
        (lambda header: label_image(header, np.ones((48, 64)), "mono8"), "encoding 'mono8' is not mono16"),
    ],
)
def test_bad_regions_are_reported_and_the_node_goes_on(client, make, needle):
    client.diagnostics.clear()

    def reported():
        image = client.make_image("bad regions")
        client.camera.publish(image)
        message = make(image.header)
        (client.labels if isinstance(message, Image) else client.boxes).publish(message)
        text = "regions could not be labelled: "
        return any(
            level == DiagnosticStatus.ERROR and text in found and needle in found
            for level, found, _ in client.statuses()
        )

    client.wait_until(reported, what=needle)
    assert not any(array.header.frame_id == "bad regions" for array in client.answers)
    client.segment_one(client.make_image("after"))
