import io
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image as PILImage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ocdit_core.errors import ImageError
from ocdit_core.images import read_image
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box
from ocdit_ros import converter
from ocdit_ros.converter import EncodingError
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
    count = height * 3 // 2 if encoding in ("nv12", "nv21") else height
    rows = rng.integers(0, 256, (count, row + padding), np.uint8)
    message = Image(encoding=encoding, width=width, height=height, step=row + padding, is_bigendian=is_bigendian)
    message.data = rows.tobytes()
    return message


# What rosbags-image does not know by name, or only with other channels.
SAME_AS = {"8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8"}


def oracle(message):
    """Decode by rosbags-image, which knows no step: the padding is cut off first."""
    if message.encoding in ("nv12", "nv21"):
        rows = np.frombuffer(message.data, np.uint8).reshape(-1, message.step)[:, : message.width]
        return yuv420(rows, message.height, message.encoding)
    rosbags_image = pytest.importorskip("rosbags.image")
    channels, size, _ = converter.ENCODINGS[message.encoding]
    row = message.width * channels * size
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :row]
    encoding = SAME_AS.get(message.encoding, message.encoding)
    plain = Image(encoding=encoding, width=message.width, height=message.height, step=row)
    plain.is_bigendian = message.is_bigendian
    plain.data = rows.tobytes()
    return rosbags_image.message_to_cvimage(plain, "rgb8")


def tolerance(encoding):
    # 16 bits: the oracle cuts the fraction off, we round; YUV 4:2:0: it computes in floating point.
    return 1 if encoding.endswith("16") else 2 if encoding.startswith("nv") else 0


def yuv420(rows, height, encoding):
    """Convert planes Y and UV by ITU-R BT.601, limited range, in floating point."""
    luma, chroma = rows[:height], rows[height:]
    u, v = (chroma[:, 0::2], chroma[:, 1::2]) if encoding == "nv12" else (chroma[:, 1::2], chroma[:, 0::2])
    y, u, v = (1.164 * np.maximum(luma - 16.0, 0), *(plane.repeat(2, 0).repeat(2, 1) - 128.0 for plane in (u, v)))
    rgb = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=-1)
    return np.clip(np.round(rgb), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", list(converter.ENCODINGS))
def test_every_encoding_equals_the_oracle(convert, encoding, padding):
    message = make_message(encoding, padding=padding * converter.ENCODINGS[encoding][1])
    image = convert(message)
    assert image.shape == (8, 12, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - oracle(message)).max() <= tolerance(encoding)


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_both_planes_may_be_counted_into_the_step(encoding):
    message = make_message(encoding)
    image = converter.to_rgb(message)
    message.step = message.width * 3 // 2
    assert np.array_equal(converter.to_rgb(message), image)


@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bayer_rggb16"])
def test_byte_order_is_honoured(convert, encoding):
    big = make_message(encoding, is_bigendian=1)
    little = make_message(encoding)
    little.data = np.frombuffer(big.data, ">u2").astype("<u2").tobytes()
    assert np.array_equal(convert(big), convert(little))
    assert np.abs(convert(big).astype(int) - oracle(big)).max() <= 1


def test_known_pixels():
    message = Image(encoding="bgr8", width=1, height=1, step=3, data=[1, 2, 3])
    assert converter.to_rgb(message).tolist() == [[[3, 2, 1]]]
    message = Image(encoding="8UC3", width=1, height=1, step=3, data=[1, 2, 3])
    assert converter.to_rgb(message).tolist() == [[[3, 2, 1]]]
    message = Image(encoding="mono16", width=2, height=1, step=4, data=[255, 255, 0, 128])
    assert converter.to_rgb(message)[0, :, 0].tolist() == [255, 128]
    message = Image(encoding="bgr16", width=1, height=1, step=6, data=[0, 0, 0, 128, 255, 255])
    assert converter.to_rgb(message).tolist() == [[[255, 128, 0]]]
    message = Image(encoding="rgba8", width=1, height=1, step=4, data=[9, 8, 7, 0])
    assert converter.to_rgb(message).tolist() == [[[9, 8, 7]]]


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_images_are_refused_with_the_remedy(encoding):
    size = 4 if encoding == "32FC1" else 2
    message = Image(encoding=encoding, width=4, height=4, step=4 * size, data=bytes(16 * size))
    with pytest.raises(EncodingError, match=f"'{encoding}' is a depth image: connect the topic of the colour image"):
        converter.to_rgb(message)
    for kind in (f"{encoding}; png compressed ", f"{encoding}; compressedDepth png", f"{encoding}; compressedDepth"):
        with pytest.raises(EncodingError, match="is a depth image"):
            converter.to_rgb(compressed(np.full((4, 4), 700, np.uint16), "PNG", kind))


@pytest.mark.parametrize(("brightest", "warnings"), [(4095, 1), (700, 1), (4096, 0), (0, 0)])
@pytest.mark.parametrize("how", ["raw", "compressed"])
def test_a_nearly_black_16_bit_image_is_warned_about(how, brightest, warnings):
    pixels = np.linspace(0, brightest, 48).astype(np.uint16).reshape(6, 8)
    if how == "raw":
        message = Image(encoding="mono16", width=8, height=6, step=16, data=pixels.tobytes())
    else:
        message = compressed(pixels, "PNG", "mono16; png compressed ")
    seen = []
    assert converter.to_rgb(message, warn=seen.append).max() == round(brightest / 257)
    assert len(seen) == warnings
    assert all("nearly black" in text and "12-bit" in text and "\n" not in text for text in seen)


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
        (broken(encoding="64FC1"), "encoding '64FC1' is not supported; supported are rgb8, "),
        (broken(encoding=""), "encoding '' is not supported"),
        (broken(encoding="RGB8"), "encoding 'RGB8' is not supported"),
        (broken(step=35), "step is 35 bytes, but 12 pixels take 36"),
        (broken(step=0), "step is 0 bytes"),
        (broken(height=9), "holds 288 bytes, but 9 rows of step 36 take 324"),
        (broken(height=0), "no pixels: width 12, height 0"),
        (broken(data=[]), "holds 0 bytes"),
        (broken(width=100_000, height=100_000), "more than the 100,000,000"),
        (make_message("yuyv", width=11), "even width"),
        (make_message("nv12", width=11), "even size"),
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


def compressed(image, kind, encoding=None):
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, kind, quality=95)
    return CompressedImage(format=encoding or kind.lower(), data=buffer.getvalue())


def test_compressed_images():
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(converter.to_rgb(compressed(image, "PNG")), image)
    assert converter.to_rgb(compressed(image, "JPEG")).shape == (20, 30, 3)
    assert converter.to_rgb(compressed(image[..., 0], "PNG")).shape == (20, 30, 3)


@pytest.mark.parametrize("encoding", ["mono16; png compressed ", "mono16; png compressed mono16", "png"])
def test_a_compressed_16_bit_image_equals_the_raw_one(encoding):
    pixels = np.linspace(0, 65535, 480).astype(np.uint16).reshape(20, 24)
    raw = Image(encoding="mono16", width=24, height=20, step=48, data=pixels.tobytes())
    assert np.array_equal(converter.to_rgb(compressed(pixels, "PNG", encoding)), converter.to_rgb(raw))


@pytest.mark.parametrize("stored", ["", "bayer", "bgr8"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_compressed_mosaic_gets_its_colours(pattern, kind, stored):
    name, (red, green, blue) = f"bayer_{pattern}8", (200, 120, 40)
    tile = np.array([{"r": red, "g": green, "b": blue}[colour] for colour in pattern], np.uint8).reshape(2, 2)
    mosaic = np.tile(tile, (16, 24))
    # Some publishers convert the mosaic before they compress it, and say so; grey may be stored as three channels.
    image = mosaic if stored != "bgr8" else np.full((32, 48, 3), (red, green, blue), np.uint8)
    target = name if stored == "bayer" else stored
    message = compressed(image, kind, f"{name}; {kind.lower()} compressed {target}")
    tolerance = 3 if kind == "PNG" else 12
    assert np.abs(converter.to_rgb(message)[8:-8, 8:-8].astype(int) - (red, green, blue)).max() <= tolerance
    if stored == "bayer":
        grey = compressed(mosaic[..., None].repeat(3, axis=2), kind, message.format)
        assert np.abs(converter.to_rgb(grey).astype(int) - converter.to_rgb(message)).max() <= tolerance


def test_a_compressed_16_bit_mosaic_gets_its_colours():
    tile = np.array([[52000, 30000], [30000, 9000]], np.uint16)
    message = compressed(np.tile(tile, (8, 8)), "PNG", "bayer_rggb16; png compressed bayer_rggb16")
    assert np.abs(converter.to_rgb(message)[4:-4, 4:-4].astype(int) - (202, 117, 35)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_compressed_images_honour_the_exif_orientation_as_files_do(orientation, tmp_path):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:8, :16] = 255
    exif = PILImage.Exif()
    exif[0x112] = orientation
    PILImage.fromarray(image).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    found = converter.to_rgb(CompressedImage(format="jpeg", data=(tmp_path / "photo.jpg").read_bytes()))
    assert np.array_equal(found, read_image(tmp_path / "photo.jpg"))
    assert found.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    # The white quarter is where a viewer shows it.
    rows, columns = (found[..., 0] > 128).any(1), (found[..., 0] > 128).any(0)
    assert (bool(rows[0]), bool(columns[0])) == (orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8))


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
