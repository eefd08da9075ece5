import os
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ocdit_core.errors import ImageError, OutputError
from ocdit_core.files import OWN_FILES
from ocdit_core.images import as_rgb8, decode_image, decode_pixels, image_size, read_image, write_image

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [200, 100, 50], [255, 255, 255]]], np.uint8)


def noise(height=40, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    write_image(tmp_path / f"a{suffix}", COLOURS)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), COLOURS)
    assert [path.name for path in tmp_path.iterdir() if path.name != OWN_FILES] == [f"a{suffix}"], (
        "a temporary file was left behind"
    )


def test_one_pixel_and_long_images(tmp_path):
    for shape in [(1, 1, 3), (1, 5000, 3), (3000, 2, 3)]:
        write_image(tmp_path / "a.png", np.full(shape, 7, np.uint8))
        assert read_image(tmp_path / "a.png").shape == shape


def test_jpeg_keeps_colours_in_order(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    write_image(tmp_path / "red.jpg", red)
    assert np.abs(read_image(tmp_path / "red.jpg").astype(int) - red).max() <= 6


def test_grey_palette_and_transparency(tmp_path):
    Image.fromarray(COLOURS[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(COLOURS[..., :1], 3, axis=2))
    Image.fromarray(COLOURS).quantize(8).save(tmp_path / "palette.gif")
    assert np.abs(read_image(tmp_path / "palette.gif").astype(int) - COLOURS).max() <= 8
    rgba = np.dstack([COLOURS, np.array([[255, 0, 128], [255, 255, 255]], np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    expected = COLOURS.copy()
    expected[0, 1], expected[0, 2] = 0, (0, 0, 128)
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), expected)
    grey_alpha = np.dstack([np.full((2, 2), 200, np.uint8), np.array([[255, 0], [255, 0]], np.uint8)])
    Image.fromarray(grey_alpha).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[..., 1], [[200, 0], [200, 0]])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_divided_by_257(tmp_path, suffix):
    deep = np.array([[[0, 256, 65535], [12850, 385, 386], [257 * 77, 128, 129]]], np.uint16)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), deep[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / f"deep{suffix}"), [[[0, 1, 255], [50, 1, 2], [77, 0, 1]]])
    cv2.imwrite(str(tmp_path / f"grey{suffix}"), deep[..., 2])
    np.testing.assert_array_equal(read_image(tmp_path / f"grey{suffix}")[0, :, 0], [255, 2, 1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_camera_rotation_is_applied(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    image = Image.fromarray(noise())
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(read_image(path), expected)
    assert expected.shape[:2] == ((60, 40) if orientation > 4 else (40, 60))


def test_sixteen_bit_colour_with_a_rotation(tmp_path):
    deep = noise().astype(np.uint16) * 257
    _, data = cv2.imencode(".png", deep[..., ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = len(body).to_bytes(4, "big") + b"eXIf" + body + zlib.crc32(b"eXIf" + body).to_bytes(4, "big")
    turned = data.tobytes()[:33] + chunk + data.tobytes()[33:]
    np.testing.assert_array_equal(decode_image(turned, "deep"), np.rot90(noise(), k=-1))
    np.testing.assert_array_equal(decode_image(turned, "deep", upright=False), noise())


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_tiffs_in_0_to_1_are_scaled(tmp_path, channels):
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(4, 12 // channels, channels).squeeze()
    cv2.imwrite(str(tmp_path / "float.tif"), values if channels == 1 else np.ascontiguousarray(values[..., ::-1]))
    expected = np.rint(values * 255).astype(np.uint8)
    found = read_image(tmp_path / "float.tif")
    np.testing.assert_array_equal(found[..., 0] if channels == 1 else found, expected)


@pytest.mark.parametrize(("value", "reason"), [(200.0, "divide 0-255 by 255"), (np.nan, "not finite")])
def test_other_floating_point_tiffs_are_refused(tmp_path, value, reason):
    cv2.imwrite(str(tmp_path / "float.tif"), np.full((4, 5), value, np.float32))
    with pytest.raises(ImageError, match=rf"float\.tif.*{reason}"):
        read_image(tmp_path / "float.tif")


def test_fully_transparent_images_and_several_pages_are_refused(tmp_path):
    Image.fromarray(np.dstack([COLOURS, np.zeros((2, 3), np.uint8)])).save(tmp_path / "clear.png")
    with pytest.raises(ImageError, match=r"clear\.png.*fully transparent"):
        read_image(tmp_path / "clear.png")
    pages = [Image.fromarray(noise(8, 8)), Image.fromarray(noise(8, 8))]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match=r"scan\.tif.*2 pages"):
        read_image(tmp_path / "scan.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_reduced_decoding_keeps_what_is_seen(suffix):
    smooth = cv2.GaussianBlur(noise(121, 160), (0, 0), 6)
    _, data = cv2.imencode(suffix, smooth[..., ::-1])
    for reduction in (1, 2, 4, 8):
        found = decode_image(data.tobytes(), "smooth", reduction=reduction)
        assert found.shape == (-(-121 // reduction), 160 // reduction, 3)
        expected = cv2.resize(smooth, found.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(found.astype(int) - expected).mean() < 3
    assert image_size(data.tobytes(), "smooth") == (121, 160)


def test_pixels_keep_their_depth_and_channels():
    deep = np.array([[0, 1, 65535], [256, 7, 9]], np.uint16)
    shallow = deep.astype(np.uint8)
    for stored in (deep, shallow, np.dstack([deep] * 3), COLOURS, np.dstack([COLOURS, shallow])):
        order = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[stored.shape[-1] if stored.ndim == 3 else 2]
        _, data = cv2.imencode(".png", stored if order is None else cv2.cvtColor(stored, order))
        found = decode_pixels(data.tobytes(), "stored")
        assert found.dtype == stored.dtype
        np.testing.assert_array_equal(found, stored)


def test_bad_files_are_refused_with_their_name(tmp_path):
    write_image(tmp_path / "whole.png", noise())
    write_image(tmp_path / "whole.jpg", noise())
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a image at all")
    (tmp_path / "folder.png").mkdir()
    for suffix in ("png", "jpg"):
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"half.{suffix}").write_bytes(data[: len(data) // 2])
        (tmp_path / f"stub.{suffix}").write_bytes(data[:20])
    frames = [Image.fromarray(noise(8, 8)), Image.fromarray(noise(8, 8)[::-1])]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    expected = {
        "missing.png": "no such", "empty.png": "empty", "text.png": "not an image", "folder.png": "folder",
        "half.png": "truncated", "half.jpg": "truncated", "stub.png": "", "stub.jpg": "", "moving.gif": "2 pages",
    }  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ImageError, match="is not a regular file"):
            read_image(path)


@pytest.mark.parametrize("mark", [b"II*\0", b"MM\0*"])
def test_a_tiff_of_its_first_bytes_is_refused(tmp_path, mark):
    for length in (4, 7, 8):
        (tmp_path / "cut.tif").write_bytes((mark + bytes(8))[:length])
        with pytest.raises(ImageError, match=r"cut\.tif: (truncated|not an image .* convert it to PNG)"):
            read_image(tmp_path / "cut.tif")


def test_damaged_exif_data_costs_no_warning(tmp_path, recwarn):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    at = data.index(b"\x12\x01" if b"II*" in data else b"\x01\x12")
    (tmp_path / "a.jpg").write_bytes(data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :])
    assert sorted(read_image(tmp_path / "a.jpg").shape[:2]) == sorted(COLOURS.shape[:2])
    assert not recwarn.list


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    write_image(tmp_path / "small.png", noise(4, 4))
    data = bytearray((tmp_path / "small.png").read_bytes())
    for side in (20_000, 100_000):
        data[16:24] = np.array([side, side], ">u4").tobytes()
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (tmp_path / "bomb.png").write_bytes(bytes(data))
        with pytest.raises(ImageError, match="100,000,000"):
            read_image(tmp_path / "bomb.png")


def test_arrays_are_accepted_in_every_usual_form():
    np.testing.assert_array_equal(as_rgb8(COLOURS), COLOURS)
    np.testing.assert_array_equal(as_rgb8(COLOURS.astype(np.float32) / 255), COLOURS)
    np.testing.assert_array_equal(as_rgb8(COLOURS.astype(np.uint16) * 257), COLOURS)
    np.testing.assert_array_equal(as_rgb8(COLOURS[..., 0])[..., 2], COLOURS[..., 0])
    assert as_rgb8(COLOURS[:, ::-1]).flags["C_CONTIGUOUS"]
    assert as_rgb8(np.full((2, 2, 4), 255, np.uint8)).shape == (2, 2, 3)
    assert as_rgb8(np.ones((3, 4), bool)).min() == 255


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        ([[1, 2]], "NumPy array"),
        (np.zeros((3, 4, 2), np.uint8), "shape"),
        (np.zeros((1, 3, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((3, 4, 3), np.int64), "int64"),
        (np.full((3, 4, 3), np.nan, np.float32), "not finite"),
        (np.full((3, 4, 3), 200.0), "divide"),
        (np.array([["a"]]), "uint8"),
    ],
)
def test_bad_arrays_are_refused(array, reason):
    with pytest.raises(ImageError, match=reason):
        as_rgb8(array)


def test_writing_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ImageError, match="suffix"):
        write_image(tmp_path / "a.xyz", COLOURS)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_image(tmp_path / "file" / "a.png", COLOURS)
    write_image(tmp_path / "mask.png", np.array([[True, False]]))
    np.testing.assert_array_equal(read_image(tmp_path / "mask.png")[0, :, 0], [255, 0])


def test_photographs_of_phones_in_heic_are_refused_with_what_to_do():
    with pytest.raises(ImageError, match=r"a\.heic: not an image in a known format .*; convert HEIC to JPEG first"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "a.heic")
