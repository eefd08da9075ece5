"""For tests of nodes over real DDS: a process to be tested, and a client that records what comes out of it."""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo, VisionInfo

from ocdit_interfaces.srv import ListObjects, Segment, SetTargetObjects
from ocdit_ros import topics

# Of a process on a machine whose cores others have taken; on an idle one it is five.
STARTED_WITHIN = 90

ROOT = Path(__file__).resolve().parents[2]
NODE = "/ocdit_segmentation"
STATES = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}
assert STATES["configure"] == Transition.TRANSITION_CONFIGURE


class NodeProcess:
    """A node in a process of its own; its output is kept for the message of a failed test."""

    def __init__(self, *command, parameters=None, environment=None, remappings=()):
        arguments = ["--ros-args"]
        for remapping in remappings:
            arguments += ["-r", remapping]
        for name, value in (parameters or {}).items():
            arguments += ["-p", f"{name}:={value}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}"
        self.process = subprocess.Popen(
            [sys.executable, *command, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        # A test that fails half-way shall leave nobody behind who talks to the tests after it.
        atexit.register(self.process.kill)
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self):
        return "".join(self.lines)

    def alive(self):
        return self.process.poll() is None

    def wait_for_output(self, text):
        """Wait until the process has said something."""
        deadline = time.monotonic() + STARTED_WITHIN
        while text not in self.output:
            assert time.monotonic() < deadline, f"it did not say {text!r}:\n{self.output}"
            assert self.alive(), self.output
            time.sleep(0.02)

    def stop(self, number=signal.SIGINT, timeout=STARTED_WITHIN):
        if self.alive():
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(5)
        return code


class Client:
    """A node of the test's own process: calls the services, sends images, and records every output."""

    def __init__(self, process, node=NODE, image="/image"):
        self.process = process
        self.context = rclpy.Context()
        rclpy.init(context=self.context, args=[])
        self.node = rclpy.create_node("test_client", context=self.context)
        self.changed = threading.Condition()
        self.detections, self.instances, self.masks, self.overlays = [], [], [], []
        self.labels, self.infos, self.diagnostics, self.calibrations = [], [], [], []
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        many = QoSProfile(depth=200)
        self._listen(Detection2DArray, f"{node}/detections", self.detections, many)
        self._listen(Image, f"{node}/instances", self.instances, many)
        self._listen(Image, f"{node}/mask", self.masks, many)
        self._listen(CameraInfo, f"{node}/camera_info", self.calibrations, many)
        self._listen(LabelInfo, f"{node}/label_info", self.labels, latched)
        self._listen(VisionInfo, f"{node}/vision_info", self.infos, latched)
        self._listen(DiagnosticArray, "/diagnostics", self.diagnostics, many)
        self.camera = self.node.create_publisher(Image, image, QoSProfile(depth=5))
        self.services = {
            # The client's queue counts as well: the default of 10 loses replies of a burst.
            name: self.node.create_client(kind, f"{node}/{name}", qos_profile=QoSProfile(depth=100))
            for name, kind in {
                "change_state": ChangeState,
                "get_state": GetState,
                "set_parameters": SetParameters,
                "get_parameters": GetParameters,
                "set_target_objects": SetTargetObjects,
                "list_objects": ListObjects,
                "segment": Segment,
            }.items()
        }
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def close(self):
        self.executor.shutdown()
        self.thread.join(10)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def _listen(self, kind, topic, where, qos):
        def note(message):
            with self.changed:
                where.append(message)
                self.changed.notify_all()

        self.node.create_subscription(kind, topic, note, qos)

    def listen_to(self, kind, topic, qos=5):
        """Record what comes on a topic; returns the growing list."""
        found = []
        self._listen(kind, topic, found, qos)
        return found

    def listen_to_overlay(self):
        self.overlays = self.listen_to(Image, f"{NODE}/overlay")

    def wait_for(self, condition, timeout=30.0, what="the condition"):
        with self.changed:
            assert self.changed.wait_for(condition, timeout), f"{what} not met in {timeout} s:\n{self.process.output}"

    def call(self, name, request=None, timeout=30.0):
        """Call a service; returns its reply and the seconds that it took."""
        client = self.services[name]
        assert client.wait_for_service(STARTED_WITHIN), f"no service {name}:\n{self.process.output}"
        arrived = threading.Event()
        start = time.perf_counter()
        future = client.call_async(request or client.srv_type.Request())
        future.add_done_callback(lambda _: arrived.set())
        assert arrived.wait(timeout), f"no reply from {name} in {timeout} s:\n{self.process.output}"
        return future.result(), time.perf_counter() - start

    def transition(self, name, timeout=60.0):
        request = ChangeState.Request()
        request.transition.id = STATES[name]
        return self.call("change_state", request, timeout)[0].success

    def state(self):
        return self.call("get_state")[0].current_state.label

    def set_targets(self, *names):
        return self.call("set_target_objects", SetTargetObjects.Request(object_ids=list(names)))

    def set_parameter(self, name, value):
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call("set_parameters", request)[0].results[0]

    def get_parameter(self, name):
        (value,) = self.call("get_parameters", GetParameters.Request(names=[name]))[0].values
        return parameter_value_to_python(value)

    def wait_until(self, condition, timeout=30.0, what="the condition"):
        """Poll for what no message announces."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what} not met in {timeout} s:\n{self.process.output}"
            time.sleep(0.02)

    def make_image(self, frame_id, shape=(48, 64), value=0):
        header = Header(frame_id=frame_id, stamp=self.node.get_clock().now().to_msg())
        return topics.maker.from_rgb(np.full((*shape, 3), value, np.uint8), header)

    def wait_for_camera(self):
        """Wait until the node has found the test's camera; what is published before is lost."""
        deadline = time.monotonic() + STARTED_WITHIN
        while self.camera.get_subscription_count() == 0:
            assert time.monotonic() < deadline, f"the node does not subscribe:\n{self.process.output}"
            time.sleep(0.01)

    def segment_one(self, message, timeout=30.0):
        """Publish an image until its detections arrive (best effort may lose one)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.camera.publish(message)
            with self.changed:
                if self.changed.wait_for(lambda: self.of(message.header), 1.0):
                    return self.of(message.header)[0]
        raise AssertionError(f"no detections for {message.header.frame_id}:\n{self.process.output}")

    def of(self, header):
        return [array for array in self.detections if array.header == header]

    def statuses(self):
        """Every status of the node so far, oldest first: (level, message, values)."""
        return [
            (status.level, status.message, {entry.key: entry.value for entry in status.values})
            for array in list(self.diagnostics)
            for status in array.status
        ]
