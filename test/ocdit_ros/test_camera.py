"""A camera of the node in the test's own process, over real DDS."""

import time
from types import SimpleNamespace

import pytest
import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from ocdit_ros import camera, parameters
from ocdit_ros.messages import instance_numbers

needs_message_info = pytest.mark.skipif(
    not hasattr(Subscription, "CallbackType"), reason="rclpy of Humble tells callbacks nothing but the message"
)


class Place:
    """A camera that records what it hands in, and who publishes its images."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, args=[])
        self.node = LifecycleNode("taking", context=self.context)
        parameters.declare(self.node)
        self.settings = parameters.read(self.node)
        self.submitted = []
        self.camera = camera.Camera(
            self.node,
            "",
            ReentrantCallbackGroup(),
            self.submit,
            instance_numbers(unique=False),
            {},
        )
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.publisher = self.node.create_publisher(Image, "image", 1)
        self.subscribe()

    def submit(self, frame, source, *, waited, uncertainty):
        assert not uncertainty, "nobody has subscribed to it"
        self.submitted.append((frame.message.header.frame_id, source, waited))

    def subscribe(self):
        self.camera.unsubscribe()
        self.submitted.clear()
        self.camera.subscribe(self.settings)
        # Until both sides of DDS have found each other, images are lost.
        self.spin_until(lambda: self.submitted, lambda: self.publisher.publish(Image()))

    def send(self, frame_id, seconds):
        """Publish an image, which then lies in the middleware for some time; return what was handed in."""
        message = Image()
        message.header.frame_id = frame_id
        self.publisher.publish(message)
        time.sleep(seconds)
        self.spin_until(lambda: self.submitted[-1][0] == frame_id)
        return self.submitted[-1]

    def spin_until(self, condition, act=lambda: None):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            act()
            self.executor.spin_once(timeout_sec=0.1)

    def close(self):
        self.executor.shutdown()
        self.camera.destroy()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def place():
    place = Place()
    yield place
    place.close()


def message_at(nanoseconds):
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9))
    )


@pytest.fixture
def calibrations(monkeypatch):
    """Calibrations with the list of the published ones, and a clock to be set."""
    published, clock = [], [0.0]
    monkeypatch.setattr(camera.time, "monotonic", lambda: clock[0])
    return camera.Calibrations(published.append), published, clock


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_calibration_stays_with_its_frame_however_long_inference_takes(calibrations, order):
    calibrations, published, clock = calibrations
    info = message_at(0)
    if order == "before":
        calibrations.add_info(info)
    frame = calibrations.of(message_at(0))
    if order == "after":
        calibrations.add_info(info)
    for number in range(1, 3601):  # a minute at 60 Hz
        clock[0] = number / 60
        calibrations.add_info(message_at(number * 10**9 // 60))
    assert len(calibrations._found) <= 60 * camera.KEEP_SECONDS + 1
    calibrations.publish(frame)
    assert published == [info]


def test_a_calibration_that_comes_after_the_result_is_published_then(calibrations):
    calibrations, published, clock = calibrations
    late = message_at(5)
    calibrations.publish(calibrations.of(message_at(5)))
    clock[0] = camera.KEEP_SECONDS - 1
    calibrations.add_info(late)
    calibrations.add_info(message_at(5))
    assert published == [late]


@needs_message_info
def test_an_image_has_waited_since_the_middleware_received_it(place):
    frame_id, source, waited = place.send("late", 0.4)
    assert (frame_id, source) == ("late", "")
    assert 0.35 < waited < camera.PLAUSIBLE_WAIT


@needs_message_info
@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
def test_a_clock_that_was_set_is_no_waiting(place, set_by, monkeypatch):
    now = time.time
    monkeypatch.setattr(camera.time, "time", lambda: now() + set_by)
    assert place.send("after", 0.1) == ("after", "", 0.0)


def test_without_information_from_the_middleware_nothing_has_waited(place, monkeypatch):
    monkeypatch.setattr(camera, "Subscription", object)
    place.subscribe()
    assert place.send("of Humble", 0.1) == ("of Humble", "", 0.0)
