"""Record what the segmentation node finds, one line of JSON for each frame, for statistics or a replay without images.

python3 examples/recorder.py --ros-args -p out:=found.jsonl
"""

import json
import time
from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from vision_msgs.msg import Detection2DArray, Detection3DArray

WAIT = 1.0  # seconds for the 3D results of a frame; without depth there are none


class Recorder(Node):
    """Writes the 2D and 3D results of each frame together."""

    def __init__(self):
        super().__init__("recorder")
        # Never over an existing file.
        self.file = open(self.declare_parameter("out", "found.jsonl").value, "x", encoding="utf-8")  # noqa: SIM115
        self.frames = {}  # stamp -> time of the arrival, and the line to be written
        self.create_subscription(Detection2DArray, "ocdit_segmentation/detections", self.add, 50)
        self.create_subscription(Detection3DArray, "ocdit_segmentation/detections_3d", self.add_3d, 50)
        self.create_timer(0.1, self.write)

    def frame(self, message):
        """Return the line of a message's stamp, a new one if it is the first."""
        stamp = message.header.stamp
        seconds = f"{stamp.sec}.{stamp.nanosec:09d}"
        new = {"stamp": seconds, "frame_id": message.header.frame_id, "objects": {}}
        return self.frames.setdefault(seconds, (time.monotonic(), new))[1]

    def add(self, message):
        """Note names, scores and boxes in pixels."""
        objects = self.frame(message)["objects"]
        for found in message.detections:
            box, result = found.bbox, found.results[0].hypothesis
            sides = [box.center.position.x, box.center.position.y, box.size_x, box.size_y]
            objects.setdefault(found.id, {}).update(name=result.class_id, score=round(result.score, 4), box=sides)

    def add_3d(self, message):
        """Note centres and sizes in metres."""
        objects = self.frame(message)["objects"]
        for found in message.detections:
            centre, size = found.bbox.center.position, found.bbox.size
            metres = {"centre": [centre.x, centre.y, centre.z], "size": [size.x, size.y, size.z]}
            objects.setdefault(found.id, {}).update(frame_3d=message.header.frame_id, **metres)

    def write(self, wait=WAIT):
        """Write the frames that are older than `wait` seconds."""
        for seconds, (arrived, line) in list(self.frames.items()):
            if time.monotonic() - arrived >= wait:
                del self.frames[seconds]
                self.file.write(json.dumps(line) + "\n")
                self.file.flush()

    def close(self):
        """Write what is left."""
        self.write(wait=0.0)
        self.file.close()


if __name__ == "__main__":
    rclpy.init()
    recorder = Recorder()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(recorder)
    recorder.close()
