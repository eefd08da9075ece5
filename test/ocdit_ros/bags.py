"""Recorded bags for tests, of every kind that `ros2 bag record` leaves behind."""

import io

import numpy as np
from PIL import Image as PILImage
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

from ocdit_core.cli import main
from ocdit_ros.bag_files import _add_checksums, load_typestore, make, quality_of_service

STORE = load_typestore()
IMAGE, COMPRESSED, STRING = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "std_msgs/msg/String"
SECOND = 10**9
START = 1_700_000_000 * SECOND
OURS = "/ocdit_segmentation"


def header(time, frame_id="camera"):
    stamp = make(STORE, "builtin_interfaces/msg/Time", sec=time // SECOND, nanosec=time % SECOND)
    return make(STORE, "std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def image(time, pixels, encoding="bgr8"):
    """A message of (H, W, 3) RGB, in another order of colours or as it is."""
    pixels = pixels[..., ::-1] if encoding == "bgr8" else pixels
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    step = data.size // height
    return make(
        STORE, IMAGE, header=header(time), height=height, width=width, encoding=encoding, step=step, data=data
    )  # fmt: skip


def compressed(time, pixels, damaged=False):
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    data = data[: data.size // 2] if damaged else data
    return make(STORE, COMPRESSED, header=header(time), format="rgb8; png compressed bgr8", data=data)


def string(text):
    return make(STORE, STRING, data=text)


def write_bag(path, topics):
    """Write a bag.

    Args:
        path: NAME.mcap (compressed) or NAME.db3 for one file, NAME or NAME_sqlite3 for a folder.
        topics: name -> (type, messages); one a tenth of a second, recorded a millisecond after its stamp.
    """
    single = path.suffix in (".mcap", ".db3")
    folder = path.with_suffix(".folder") if single else path
    sqlite = path.suffix == ".db3" or path.name.endswith("sqlite3")
    writer = Writer(folder, version=8, storage_plugin=StoragePlugin.SQLITE3 if sqlite else StoragePlugin.MCAP)
    if path.suffix == ".mcap":
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        for topic, (kind, messages) in topics.items():
            connection = writer.add_connection(
                topic, kind, typestore=STORE, offered_qos_profiles=[quality_of_service(latched=topic == "/map")]
            )
            for number, message in enumerate(messages):
                time = START + number * SECOND // 10 + SECOND // 1000
                writer.write(connection, time, STORE.serialize_cdr(message, kind))
    if not sqlite:
        # As `ros2 bag record` writes them.
        _add_checksums(folder / f"{folder.name}.mcap")
    if single:
        (folder / f"{folder.name}{path.suffix}").rename(path)
    return path


def read_bag(path):
    """Return topic -> list of (time of recording, message), and the connections by topic."""
    with Reader(path) as reader:
        found = {connection.topic: [] for connection in reader.connections}
        for connection, time, data in reader.messages():
            store = STORE if connection.msgtype in STORE.types else None
            found[connection.topic].append((time, store.deserialize_cdr(data, connection.msgtype) if store else data))
        return found, {connection.topic: connection for connection in reader.connections}


TIMES = [START + number * SECOND // 10 for number in range(3)]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), np.uint8)


def images(make_one=image, **changes):
    return [make_one(time, pixels, **changes) for time, pixels in zip(TIMES, PIXELS, strict=True)]


def run(place, recorded, out, *more):
    model = ["--objects", f"{place}/library", "--weights", f"{place}/model", "--preset", "fast"]
    more = more if "--targets" in more else ("--targets", "can", *more)
    return main(["bag", str(recorded), *model, "--out", str(out), *more])
