import io
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image as Picture
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ocdit_core.errors import ImageError
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box
from ocdit_ros import converter
from ocdit_ros.topics import maker


@pytest.fixture(params=["ocdit_ros", "cv_bridge"])
def convert(request):
    if request.param == "cv_bridge" and converter.converter_name() != "cv_bridge":
        pytest.skip("cv_bridge is not installed or does not work here")
    return partial(converter.to_rgb, cv_bridge=request.param == "cv_bridge")


CRASHES = """
import os, signal

class CvBridge:
    def imgmsg_to_cv2(self, message, encoding):
        os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.parametrize(
    "source",
    [CRASHES, "raise ImportError('numpy.core.multiarray failed to import')", "class CvBridge: pass"],
    ids=["it ends the process", "it cannot be imported", "it lacks a function"],
)
def test_a_cv_bridge_of_another_abi_is_not_used(source, tmp_path, monkeypatch):
    # As apt's is with pip's NumPy 2: it imports, and its first image is a segmentation fault.
    (tmp_path / "cv_bridge.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    converter._cv_bridge.cache_clear()
    try:
        assert converter.converter_name() == "ocdit_ros, as cv_bridge does not work here"
    finally:
        converter._cv_bridge.cache_clear()


def make_message(encoding, width=12, height=8, padding=0, is_bigendian=0, seed=0):
    channels, size, _ = converter.ENCODINGS[encoding]
    rng = np.random.default_rng(seed)
    row = width * channels * size
    rows = rng.integers(0, 256, (height, row + padding), np.uint8)
    message = Image(encoding=encoding, width=width, height=height, step=row + padding, is_bigendian=is_bigendian)
    message.data = rows.tobytes()
    return message


def oracle(message):
    """Decode by rosbags-image, which knows no step: the padding is cut off first."""
    rosbags_image = pytest.importorskip("rosbags.image")
    channels, size, _ = converter.ENCODINGS[message.encoding]
    row = message.width * channels * size
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :row]
    encoding = {"16UC1": "mono16"}.get(message.encoding, message.encoding)
    plain = Image(encoding=encoding, width=message.width, height=message.height, step=row)
    plain.is_bigendian = message.is_bigendian
    plain.data = rows.tobytes()
    return rosbags_image.message_to_cvimage(plain, "rgb8")


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", list(converter.ENCODINGS))
def test_every_encoding_equals_the_oracle(convert, encoding, padding):
    message = make_message(encoding, padding=padding * converter.ENCODINGS[encoding][1])
    image = convert(message)
    assert image.shape == (8, 12, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    # 16 bits: the oracle cuts the fraction off, we round.
    tolerance = 1 if "16" in encoding else 0
    assert np.abs(image.astype(int) - oracle(message)).max() <= tolerance


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_byte_order_is_honoured(convert, encoding):
    big = make_message(encoding, is_bigendian=1)
    little = make_message(encoding)
    little.data = np.frombuffer(big.data, ">u2").astype("<u2").tobytes()
    assert np.array_equal(convert(big), convert(little))
    assert np.abs(convert(big).astype(int) - oracle(big)).max() <= 1


def test_known_pixels():
    message = Image(encoding="bgr8", width=1, height=1, step=3, data=[1, 2, 3])
    assert converter.to_rgb(message).tolist() == [[[3, 2, 1]]]
    message = Image(encoding="mono16", width=2, height=1, step=4, data=[255, 255, 0, 128])
    assert converter.to_rgb(message)[0, :, 0].tolist() == [255, 128]
    message = Image(encoding="rgba8", width=1, height=1, step=4, data=[9, 8, 7, 0])
    assert converter.to_rgb(message).tolist() == [[[9, 8, 7]]]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (480, 640), (1080, 1920)])
def test_rgb_survives_the_way_there_and_back(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    message = maker.from_rgb(image, Header(frame_id="camera"))
    assert (message.encoding, message.step, message.header.frame_id) == ("rgb8", shape[1] * 3, "camera")
    assert np.array_equal(converter.to_rgb(message), image)


def test_a_full_hd_image_takes_milliseconds():
    image = np.zeros((1080, 1920, 3), np.uint8)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        converter.to_rgb(maker.from_rgb(image, Header()))
        seconds.append(time.perf_counter() - start)
    # A list or an ndarray given to rclpy would take 200 ms and more.
    assert min(seconds) < 0.1


def broken(**changes):
    message = make_message("rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "needle"),
    [
        (broken(encoding="32FC1"), "encoding '32FC1' is not supported; supported are rgb8, bgr8"),
        (broken(encoding=""), "encoding '' is not supported"),
        (broken(encoding="RGB8"), "encoding 'RGB8' is not supported"),
        (broken(step=35), "step is 35 bytes, but 12 pixels take 36"),
        (broken(step=0), "step is 0 bytes"),
        (broken(height=9), "holds 288 bytes, but 9 rows of step 36 take 324"),
        (broken(height=0), "no pixels: width 12, height 0"),
        (broken(data=[]), "holds 0 bytes"),
        (broken(width=100_000, height=100_000), "more than the 100,000,000"),
        (make_message("yuyv", width=11), "even width"),
        (make_message("bayer_rggb8", width=1), "at least 2 x 2"),
    ],
)
def test_contradictions_are_refused_by_name(message, needle):
    with pytest.raises(ImageError, match="image") as error:
        converter.to_rgb(message)
    assert needle in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_of_nan_is_refused_by_its_encoding():
    values = np.full((4, 4, 3), np.nan, np.float32)
    message = Image(encoding="32FC3", width=4, height=4, step=48, data=values.tobytes())
    with pytest.raises(ImageError, match="32FC3"):
        converter.to_rgb(message)


def compressed(image, kind):
    buffer = io.BytesIO()
    Picture.fromarray(image).save(buffer, kind)
    return CompressedImage(format=kind.lower(), data=buffer.getvalue())


def test_compressed_images():
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(converter.to_rgb(compressed(image, "PNG")), image)
    assert converter.to_rgb(compressed(image, "JPEG")).shape == (20, 30, 3)
    assert converter.to_rgb(compressed(image[..., 0], "PNG")).shape == (20, 30, 3)


def test_damaged_and_huge_compressed_images_are_refused(monkeypatch):
    good = compressed(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
    with pytest.raises(ImageError, match="damaged"):
        converter.to_rgb(CompressedImage(format="jpeg", data=bytes(good.data)[:-200]))
    with pytest.raises(ImageError, match="not an image"):
        converter.to_rgb(CompressedImage(format="jpeg", data=b"nonsense"))
    with pytest.raises(ImageError, match="empty"):
        converter.to_rgb(CompressedImage(format="jpeg"))
    monkeypatch.setattr("ocdit_core.images.MAX_PIXELS", 64 * 63)
    with pytest.raises(ImageError, match="64 x 64"):
        converter.to_rgb(good)


def make_segmentation():
    low, high = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    high[2:5, 3:9] = True
    low[4:8, 6:12] = True
    instances = tuple(
        Instance(object_id=name, score=score, box=tight_box(mask), mask=mask)
        for name, score, mask in (("mug", 0.9, high), ("drill", 0.6, low))
    )
    return Segmentation(instances=instances, image_size=(10, 20), target_ids=("drill", "mug"))


def test_detections_and_instances_agree():
    segmentation = make_segmentation()
    header = Header(frame_id="camera")
    header.stamp.sec = 7
    detections = maker.to_detections(segmentation, [41, 42], header)
    instances = maker.to_instances(segmentation, [41, 42], header)
    assert detections.header == instances.header == detections.detections[0].header == header
    first = detections.detections[0]
    assert (first.id, first.results[0].hypothesis.class_id, first.results[0].hypothesis.score) == ("41", "mug", 0.9)
    assert (first.bbox.center.position.x, first.bbox.center.position.y) == (5.5, 3.0)
    assert (first.bbox.size_x, first.bbox.size_y) == (6.0, 3.0)
    labels = np.frombuffer(instances.data, np.uint16).reshape(10, 20)
    assert (instances.encoding, instances.step) == ("mono16", 40)
    assert np.array_equal(labels == 41, segmentation.instances[0].mask)
    assert np.array_equal(labels == 42, segmentation.instances[1].mask & ~segmentation.instances[0].mask)


def test_an_empty_result_is_an_empty_message():
    empty = Segmentation(instances=(), image_size=(4, 6), target_ids=("mug",))
    assert maker.to_detections(empty, [], Header()).detections == []
    assert not np.any(np.frombuffer(maker.to_instances(empty, [], Header()).data, np.uint16))
    assert not np.any(np.frombuffer(maker.to_mask(empty, "mug", Header()).data, np.uint8))


def test_mask_of_one_object():
    segmentation = make_segmentation()
    message = maker.to_mask(segmentation, "drill", Header())
    assert message.encoding == "mono8"
    assert np.array_equal(np.frombuffer(message.data, np.uint8).reshape(10, 20) == 255, segmentation.instances[1].mask)


def test_the_uncertainty_keeps_its_values():
    uncertainty = np.random.default_rng(4).random((5, 7), np.float32)
    message = maker.to_uncertainty(uncertainty, Header(frame_id="camera"))
    assert (message.encoding, message.step, message.header.frame_id) == ("32FC1", 28, "camera")
    assert np.array_equal(np.frombuffer(message.data, np.float32).reshape(5, 7), uncertainty)


def test_numbers_beyond_16_bits_make_a_wider_label_image():
    segmentation = make_segmentation()
    message = maker.to_instances(segmentation, [70_000, 5], Header())
    labels = np.frombuffer(message.data, np.int32).reshape(10, 20)
    assert (message.encoding, message.step) == ("32SC1", 80)
    assert np.array_equal(labels == 70_000, segmentation.instances[0].mask)
    assert maker.to_detections(segmentation, [70_000, 5], Header()).detections[0].id == "70000"


def test_label_info_holds_the_library_s_numbers():
    info = maker.to_label_info({"drill": 12, "mug": 5}, 0.5, Header())
    assert [(entry.class_id, entry.class_name) for entry in info.class_map] == [(5, "mug"), (12, "drill")]
    assert info.threshold == 0.5
