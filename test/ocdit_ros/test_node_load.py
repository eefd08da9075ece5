"""A camera at 10 Hz, targets that change five times meanwhile: nothing blocks, nothing mixes, nothing dies."""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from harness import NODE, Client, NodeProcess
from vision_msgs.msg import Detection2DArray

from ocdit_interfaces.srv import Segment

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))
FRAMES, RATE, CHANGES = 50, 10.0, 5
SEGMENTING, ENCODING = 0.15, 0.3


@pytest.fixture
def client():
    # Slower than the camera, and encoding takes three frames' time: both queues are in use.
    process = NodeProcess(
        STAND_IN,
        parameters={"library": "stand-in", "autostart": True},
        environment={"STAND_IN_SECONDS": str(SEGMENTING), "STAND_IN_ENCODE": str(ENCODING)},
    )
    client = Client(process)
    yield client
    client.close()
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output


def stamp_of(header):
    return header.stamp.sec + header.stamp.nanosec * 1e-9


def test_frames_and_changes_of_targets(client):
    sets = [list(names) for size in (1, 2, 3) for names in itertools.combinations(["box", "can", "drill", "mug"], size)]
    client.wait_for_camera()
    assert client.set_targets("box", "can")[0].success

    def now():
        return client.node.get_clock().now().nanoseconds * 1e-9

    names = ["box", "can"]
    accepted = [(0.0, 0.0, names)]  # (time of the call, of the reply, names)
    replies, sent, arrivals = [], [], {}
    client.node.create_subscription(
        Detection2DArray, f"{NODE}/detections", lambda array: arrivals.setdefault(array.header.frame_id, now()), 200
    )
    start = time.perf_counter()
    for frame in range(FRAMES):
        time.sleep(max(0.0, start + frame / RATE - time.perf_counter()))
        image = client.make_image(f"frame {frame}", (480, 640), frame)
        sent.append(image.header)
        client.camera.publish(image)
        if frame % (FRAMES // CHANGES) == 5:
            names = sets[len(accepted) + 1]
            called = now()
            reply, seconds = client.set_targets(*names)
            assert reply.success, reply.message
            assert list(reply.object_ids) == names
            accepted.append((called, now(), names))
            assert seconds > ENCODING, "the reply came before the set was encoded"
        if frame % (FRAMES // CHANGES) == 8:
            reply, seconds = client.set_targets("box", "spoon")
            assert list(reply.unknown) == ["spoon"]
            assert list(reply.object_ids) == names
            replies.append(seconds)
    client.wait_for(lambda: client.of(sent[-1]) and sent[-1].frame_id in arrivals, what="the last frame's result")
    assert len(accepted) == 1 + CHANGES
    assert np.median(replies) < SEGMENTING, f"they wait for frames: replies took {np.round(replies, 3)} s"

    results = [array for array in client.detections if array.header.frame_id.startswith("frame ")]
    assert len(results) >= 10
    order = [int(array.header.frame_id.split()[1]) for array in results]
    assert order == sorted(set(order)), "frames came back twice or out of order"
    for array in results:
        assert array.header in sent
        found = [detection.results[0].hypothesis.class_id for detection in array.detections]
        sent_at, arrived_at = stamp_of(array.header), arrivals[array.header.frame_id]
        # It began between its stamp and its arrival: the set of the last reply before, or one asked for meanwhile.
        oldest = max(index for index, (_, replied, _) in enumerate(accepted) if replied <= sent_at)
        current = [names for called, _, names in accepted[oldest:] if called <= arrived_at]
        assert found in current, f"{array.header.frame_id}: {found} is none of {current}"
    # What the node itself says: one target set a frame, the one whose objects were published.
    said = {v["frame id"]: v["frame targets"] for _, _, v in client.statuses() if v.get("frame id", "") != ""}
    for array in results:
        found = ", ".join(detection.results[0].hypothesis.class_id for detection in array.detections)
        assert said.get(array.header.frame_id, found) == found
    assert client.process.alive()


def test_services_answer_while_images_are_segmented_on_request(client):
    client.wait_for_camera()
    assert client.set_targets("box", "mug")[0].success
    # The reply must not lie until the next timer wakes the node (1 s): asked alone, it takes the frame's 150 ms.
    assert min(client.call("segment", Segment.Request(image=client.make_image("alone")))[1] for _ in range(5)) < 0.8
    futures = [
        client.services["segment"].call_async(Segment.Request(image=client.make_image(f"asked {number}")))
        for number in range(8)
    ]
    client.call("list_objects")
    assert client.set_targets("can")[0].success
    assert not all(future.done() for future in futures), "the answers waited for all requests"
    deadline = time.monotonic() + 60
    while not all(future.done() for future in futures):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    replies = [future.result() for future in futures]
    # Four wait at most, one is under way: the rest is told to come back.
    assert sum(reply.success for reply in replies) >= 4
    assert all("ask again" in reply.message for reply in replies if not reply.success)
