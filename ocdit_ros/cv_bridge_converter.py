"""sensor_msgs/Image -> (H, W, 3) uint8 RGB by cv_bridge, where it is installed and works."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from ocdit_ros import converter

PROBE = """
import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import Image

pixels = np.arange(12, dtype=np.uint8)
message = Image(height=2, width=2, step=6, encoding="rgb8", data=pixels.tobytes())
converted = CvBridge().imgmsg_to_cv2(message, "bgr8")
assert np.array_equal(converted[..., ::-1], pixels.reshape(2, 2, 3))
"""
PROBE_TIMEOUT = 60.0


def is_installed() -> bool:
    """Whether there is a cv_bridge, working or not."""
    return importlib.util.find_spec("cv_bridge") is not None


def make() -> Callable[[Any], np.ndarray] | None:
    """Return a converter of sensor_msgs/Image that does what `converter.to_rgb` does, or None.

    A cv_bridge that was built for another NumPy or OpenCV may be imported and then end the process on its first image:
    a process of its own tries it.
    """
    if not is_installed() or not _works():
        return None
    from cv_bridge import CvBridge, CvBridgeError

    bridge = CvBridge()
    known = set()
    # 16 bits are ours: to cv_bridge, 16UC1 is no colour format.
    for encoding in (name for name, (_, size, _) in converter.ENCODINGS.items() if size == 1):
        # Some versions lack uyvy and yuyv.
        with suppress(CvBridgeError):
            bridge.encoding_to_cvtype2(encoding)
            known.add(encoding)

    def convert(message: Any) -> np.ndarray:
        # Padding it takes for whole pixels: unless it is, the picture comes out scrambled, without a word.
        padded = message.step != message.width * converter.ENCODINGS[message.encoding][0]
        if padded or message.encoding not in known:
            return converter.to_rgb(message)
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))

    return convert


def _works() -> bool:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, timeout=PROBE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0
