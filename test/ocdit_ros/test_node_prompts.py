"""Prompts over DDS: ~/segment_prompted, and ~/clicked_point; and how a clicked target is followed."""

import dataclasses
import itertools
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point, PointStamped
from harness import NODE, Client, NodeProcess
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from stand_in import StandInSegmenter
from vision_msgs.msg import BoundingBox2D, Point2D

from ocdit_core.errors import OcditError
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.settings import InferenceSettings, TrackSettings
from ocdit_core.masks import tight_box
from ocdit_interfaces.srv import SegmentPrompted
from ocdit_ros.network import Network

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))
SECONDS = 0.1


@pytest.fixture(scope="module")
def client():
    """The targets box and mug are squares of 10 x 8 pixels at (2, 2) and (14, 2)."""
    parameters = {"library": "stand-in", "target_objects": "[box, mug]", "autostart": True}
    process = NodeProcess(STAND_IN, parameters=parameters, environment={"STAND_IN_SECONDS": str(SECONDS)})
    client = Client(process)
    client.services["segment_prompted"] = client.node.create_client(
        SegmentPrompted, f"{NODE}/segment_prompted", qos_profile=QoSProfile(depth=100)
    )
    client.points = client.node.create_publisher(Point, f"{NODE}/clicked_point", 5)
    client.stamped = client.node.create_publisher(PointStamped, f"{NODE}/clicked_point/stamped", 5)
    client.wait_for_camera()
    client.wait_until(lambda: client.points.get_subscription_count() and client.stamped.get_subscription_count())
    client.segment_one(client.make_image("first"))
    yield client
    client.close()
    assert process.stop() == 0, process.output


def bounds(x, y, width, height):
    box = BoundingBox2D(size_x=float(width), size_y=float(height))
    box.center.position.x, box.center.position.y = x + (width - 1) / 2, y + (height - 1) / 2
    return box


def request(name, *points, labels=(), **more):
    places = [Point2D(x=float(x), y=float(y)) for x, y in points]
    return SegmentPrompted.Request(object_id=name, points=places, labels=labels, **more)


def found(client, asked):
    """Return the names of what a request found, and the reply."""
    reply, _ = client.call("segment_prompted", asked)
    return [one.results[0].hypothesis.class_id for one in reply.detections.detections], reply


def test_points_and_boxes_find_their_object_alone(client):
    names, reply = found(client, request("mug", (15, 3), (30, 30), labels=[1, 0]))
    assert (names, reply.success, reply.message) == (["mug"], True, "mug with the score 0.70")
    assert reply.detections.header.frame_id == "first", "the newest image"
    labels = np.frombuffer(reply.instances.data, np.uint16).reshape(48, 64)
    assert (labels[2:10, 14:24] == int(reply.detections.detections[0].id)).all()
    assert (labels > 0).sum() == 80
    names, reply = found(client, request("box", box=bounds(0, 0, 14, 12), image=client.make_image("given")))
    assert (names, reply.detections.header.frame_id) == (["box"], "given")
    # One that is no target.
    assert found(client, request("drill", (3, 3)))[0] == ["drill"]


def test_places_that_do_not_show_it_have_no_mask(client):
    for asked in (request("mug", (3, 3)), request("mug", (15, 3), (16, 3), labels=[1, 0])):
        names, reply = found(client, asked)
        assert (names, reply.success, reply.message) == ([], True, "mug with the score 0.00, which is too low")
    names, reply = found(client, request("mug", (15, 3), score_threshold=0.8))
    assert (names, reply.message) == ([], "mug with the score 0.70, which is too low")


@pytest.mark.parametrize(
    ("asked", "needle"),
    [
        (request("cup", (3, 3)), "unknown object 'cup': the library holds box, can, drill, mug"),
        (request("mug"), "prompt for mug: has no points, scribble, box or mask"),
        (request("mug", (64, 3)), "point (64, 3) is outside the image of 64 x 48 pixels"),
        (request("mug", (3, math.nan)), "is not a list of points"),
        (request("mug", (3, 3), labels=[1, 1]), "labels: [1, 1] are not 0 or 1 for each of 1 points"),
        (request("mug", (3, 3), labels=[2]), "labels: [2] are not"),
        (request("mug", box=bounds(60, 0, 9, 9)), "is not inside the image"),
        (request("mug", box=bounds(5, 5, -4, 9)), "is not inside the image"),
        (request("mug", box=bounds(5, 5, math.inf, 9)), "is no box"),
        (request("mug", (3, 3), camera="left"), "camera 'left' is none of "),
        (request("mug", (3, 3), score_threshold=1.5), "score_threshold 1.5 is not a score"),
        (request("mug", (3, 3), timeout=-1.0), "timeout -1 is not a number of seconds"),
        (request("mug", (3, 3), image=Image(width=5, height=5, encoding="rgb8")), "mage"),
    ],
)
def test_bad_requests_get_one_clear_line(client, asked, needle):
    names, reply = found(client, asked)
    assert (names, reply.success) == ([], False)
    assert needle in reply.message
    assert "\n" not in reply.message


def test_a_thousand_malformed_requests_do_no_harm(client):
    chance = random.Random(0)
    odd = (math.nan, math.inf, -math.inf, -1.0, 63.6, 64.0, 1e300, -1e-300, 5.0)

    def some():
        pick = chance.choice
        box = bounds(pick(odd), pick(odd), pick(odd), pick(odd)) if chance.random() < 0.5 else BoundingBox2D()
        image = Image(width=pick((0, 3, 2**31)), height=pick((0, 3)), encoding=pick(("", "rgb8", "mono16", "x")))
        image.step, image.data = pick((0, 9)), bytes(pick((0, 1, 27)))
        points = [(pick(odd), pick(odd)) for _ in range(chance.randrange(4))]
        labels = [chance.randrange(256) for _ in range(chance.randrange(4))]
        name = pick(("mug", "", "no such", "mug\n", "müg", "x" * 10_000))
        return request(name, *points, labels=labels, box=box, image=image, score_threshold=pick((2.0, -1.0, math.nan)))

    began = time.monotonic()
    replies = [client.call("segment_prompted", some())[0] for _ in range(1000)]
    assert all(reply.message and "\n" not in reply.message for reply in replies)
    assert sum(not reply.success for reply in replies) > 900
    assert time.monotonic() - began < 60
    assert found(client, request("mug", (15, 3)))[0] == ["mug"]
    assert len(client.segment_one(client.make_image("after")).detections) == 2


def test_a_reply_comes_within_one_inference(client):
    taken = [client.call("segment_prompted", request("mug", (15, 3)))[1] for _ in range(5)]
    assert sorted(taken)[2] < 2 * SECONDS


def test_a_click_is_followed_and_a_bad_one_changes_nothing(client):
    def names():
        array = client.segment_one(client.make_image("click"))
        return [one.results[0].hypothesis.class_id for one in array.detections]

    client.stamped.publish(PointStamped(point=Point(x=20.0, y=5.0)))
    client.process.wait_for_output("clicked_point: following mug (score 0.70)")
    assert names() == ["box", "mug"]
    client.points.publish(Point(x=3.0, y=3.0))
    client.process.wait_for_output("clicked_point: following box (score 0.90)")
    for x, needle in (
        (64.0, "point (64, 3) is outside the image of 64 x 48 pixels"),
        (math.nan, "is not a list of points"),
        (60.0, "none of box, mug is at (60, 3)"),
    ):
        client.diagnostics.clear()

        def reported(x=x, needle=needle):
            client.points.publish(Point(x=x, y=3.0))
            return any(
                level == DiagnosticStatus.ERROR and "clicked_point: " in text and needle in text
                for level, text, _ in client.statuses()
            )

        client.wait_until(reported, what=needle)
        assert names() == ["box", "mug"]


class TwoBoxes(StandInSegmenter):
    """Two boxes that move to the right; a prompt leaves the one that it points at, `follow` the first one."""

    places, shift, hidden = (5, 40), 0, False

    def follow(self, image, expected, objects):
        found = self._found(image, objects, False, [], 0.0)
        return dataclasses.replace(found, instances=found.instances[: min(len(expected), 1)])

    def _found(self, image, objects, uncertainty, prompts, score_threshold):
        instances = []
        for x in () if self.hidden else [place + self.shift for place in self.places]:
            mask = np.zeros(image.shape[:2], bool)
            mask[10:20, x : x + 10] = True
            if all(mask[round(y), round(x)] for prompt in prompts for x, y in prompt.points):
                instances.append(Instance(object_id="box", score=0.9, box=tight_box(mask), mask=mask))
        return Segmentation(instances=tuple(instances), image_size=image.shape[:2], target_ids=objects)


def test_a_clicked_instance_is_followed_until_it_is_lost(caplog):
    segmenter, image, region = TwoBoxes(), np.zeros((48, 96, 3), np.uint8), None
    network = Network(segmenter, None, lambda: region, lambda found: found)
    objects = segmenter.encode_objects(None, ["box"])

    def places():
        (found,) = network.segment_batch([image], objects, ["left"], uncertainty=False)
        return [one.box[0] for one in found.instances]

    assert places() == [5, 40]
    assert network.follow(image, objects, "left", (42.0, 12.0)) == ("box", 0.9)
    for segmenter.shift in range(0, 40, 4):
        assert places() == [40 + segmenter.shift]
    # Other cameras and single images have nothing to do with it.
    for source in ("right", None):
        (found,) = network.segment_batch([image], objects, [source], uncertainty=False)
        assert len(found.instances) == 2
    region = (30, 0, 66, 48)
    with pytest.raises(OcditError, match=r"\(5, 12\) is outside of region_of_interest \[30, 0, 66, 48\]"):
        network.follow(image, objects, "left", (5.0, 12.0))
    segmenter.shift = 10  # of the part of the image
    assert places() == [30 + 50]
    region, segmenter.hidden = None, True
    for _ in range(segmenter.settings.track.keep + 1):
        assert places() == []
    assert "the clicked box is lost" in caplog.text
    segmenter.shift, segmenter.hidden = 0, False
    assert places() == [5, 40]
    network.follow(image, objects, "left", (42.0, 12.0))
    assert places() == [40]
    network.reset_tracking()
    assert places() == [5, 40]


def test_of_a_divided_mask_only_the_clicked_part_is_published():
    class Touching(TwoBoxes):
        places, merged = (20, 30), False

        def _found(self, *arguments):
            found = super()._found(*arguments)
            if not self.merged:
                return found
            mask = np.any([one.mask for one in super()._found(*arguments[:3], [], 0.0).instances], axis=0)
            both = Instance(object_id="box", score=0.9, box=tight_box(mask), mask=mask)
            return dataclasses.replace(found, instances=(both,))

    segmenter, image = Touching(), np.zeros((48, 96, 3), np.uint8)
    network = Network(segmenter, itertools.count(1), lambda: None, lambda found: found)
    objects = segmenter.encode_objects(None, ["box"])

    def boxes():
        (found,) = network.segment_batch([image], objects, ["left"], uncertainty=False)
        return [one.box for one in found.instances]

    assert [boxes() for _ in range(2)] == [[(20, 10, 10, 10), (30, 10, 10, 10)]] * 2
    network.follow(image, objects, "left", (34.0, 14.0))
    segmenter.merged = True
    assert [boxes() for _ in range(3)] == [[(30, 10, 10, 10)]] * 3


def test_cameras_are_segmented_whole_at_intervals_unless_more_is_asked_for():
    segmenter, image, region = TwoBoxes(), np.zeros((48, 96, 3), np.uint8), None
    segmenter.settings = InferenceSettings(track=TrackSettings(interval=3))
    network = Network(segmenter, itertools.count(1), lambda: region, lambda found: found)
    objects = segmenter.encode_objects(None, ["box"])

    def counts(*sources, uncertainty=False):
        found = network.segment_batch([image] * len(sources), objects, sources, uncertainty=uncertainty)
        return [len(one.instances) for one in found]

    assert [counts("left") for _ in range(4)] == [[2], [1], [1], [2]]
    # Each camera has its own turn, and single images have none.
    assert counts("right", "left", None) == [2, 1, 2]
    assert counts("right", "left") == [1, 1]
    assert counts("right", uncertainty=True) == [2]
    region = (0, 0, 96, 48)
    assert counts("right") == [2]
    region, objects = None, segmenter.encode_objects(None, ["box", "mug"])
    assert [counts("right") for _ in range(2)] == [[2], [1]]
    network.follow(image, objects, "right", (42.0, 12.0))
    assert counts("right") == [1]
    assert segmenter.batches[-1] == 1
