"""Images of every kind through the node: its overlay, with nothing found, is the image that it saw."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import NODE, Client, NodeProcess
from PIL import Image as PILImage
from sensor_msgs.msg import CompressedImage, Image
from test_messages import make_message, oracle, tolerance

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))


@pytest.fixture(scope="module")
def client():
    parameters = {"library": "stand-in", "autostart": True, "score_threshold": 1.0, "image_reliability": "reliable"}
    # Depth 1 keeps one of the refused images' successors; nothing is sent faster than it is answered.
    process = NodeProcess(STAND_IN, parameters=parameters, environment={"STAND_IN_SECONDS": "0"})
    client = Client(process)
    client.wait_for_camera()
    client.listen_to_overlay()
    client.wait_until(lambda: client.node.count_publishers(f"{NODE}/overlay"), what="the overlay's publisher")
    yield client
    client.close()
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output


def seen_by_the_node(client, message, publisher=None):
    """Publish until the overlay of this image comes back; returns its pixels."""
    message.header = client.make_image(f"{len(client.overlays)} {id(message)}").header

    def mine():
        return [overlay for overlay in list(client.overlays) if overlay.header == message.header]

    for _ in range(60):
        (publisher or client.camera).publish(message)
        with client.changed:
            if client.changed.wait_for(mine, 1.0):
                break
    (overlay, *_) = mine()
    return np.frombuffer(overlay.data, np.uint8).reshape(overlay.height, overlay.width, 3)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr16", "bayer_gbrg8", "mono16", "yuyv", "nv12"])
def test_every_encoding_with_padded_rows(client, encoding):
    message = make_message(encoding, width=66, height=34, padding=6)
    seen = seen_by_the_node(client, message)
    assert seen.shape == (34, 66, 3)
    assert np.abs(seen.astype(int) - oracle(message)).max() <= tolerance(encoding)


def test_big_endian(client):
    message = make_message("mono16", width=66, height=34, is_bigendian=1)
    assert np.abs(seen_by_the_node(client, message).astype(int) - oracle(message)).max() <= 1


@pytest.mark.parametrize("shape", [(2160, 3840), (1, 1), (1, 4000)])
def test_images_from_one_pixel_to_4k(client, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    message = Image(encoding="rgb8", height=shape[0], width=shape[1], step=3 * shape[1], data=pixels.tobytes())
    assert np.array_equal(seen_by_the_node(client, message), pixels)


def wait_for_error(client, needle, publish):
    client.diagnostics.clear()
    for _ in range(60):
        publish()
        with client.changed:
            if client.changed.wait_for(
                lambda: any(level == DiagnosticStatus.ERROR and needle in text for level, text, _ in client.statuses()),
                1.0,
            ):
                return
    raise AssertionError(f"{needle!r} is not in /diagnostics: {client.statuses()[-1:]}\n{client.process.output}")


def test_images_without_pixels_are_refused(client):
    empty = Image(encoding="rgb8", height=0, width=64, step=192)
    wait_for_error(client, "no pixels: width 64, height 0", lambda: client.camera.publish(empty))
    assert seen_by_the_node(client, make_message("rgb8", width=66, height=34)).shape == (34, 66, 3)


def bomb(side):
    """A PNG whose header promises side x side pixels, in some hundred bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(pixels, kind):
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_compressed_images_and_bombs(client):
    assert client.transition("deactivate")
    assert client.set_parameter("image_transport", "compressed").successful
    assert client.transition("activate")
    camera = client.node.create_publisher(CompressedImage, "/image/compressed", 5)
    client.wait_until(camera.get_subscription_count, what="the subscription of compressed images")
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    smooth = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 3, 48, axis=0).repeat(3, axis=2)
    for kind, image, difference in (("PNG", pixels, 0), ("JPEG", smooth, 4)):
        buffer = io.BytesIO()
        PILImage.fromarray(image).save(buffer, kind)
        message = CompressedImage(format=kind.lower(), data=buffer.getvalue())
        assert np.abs(seen_by_the_node(client, message, camera).astype(int) - image).max() <= difference
    refused = {
        "has far more than the 100,000,000 pixels": bomb(50_000),
        "12000 x 12000 pixels": bomb(12_000),
        "truncated or damaged": bomb(64),
        "not an image": b"nonsense",
    }
    for needle, data in refused.items():
        wait_for_error(client, needle, lambda data=data: camera.publish(CompressedImage(format="png", data=data)))
    message = CompressedImage(format="png", data=encoded(pixels, "PNG"))
    assert np.array_equal(seen_by_the_node(client, message, camera), pixels)
