import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photographs import inner_point, photo
from PIL import Image

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.errors import ConfigError, ImageError
from ocdit_core.images import write_image
from ocdit_core.masks import mask_iou
from ocdit_core.objects.archive import save_templates
from ocdit_core.objects.capture import CROP_MARGIN, capture_object, pair_masks
from ocdit_core.objects.templates import check_views
from ocdit_core.visualization import capture_sheet


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A folder of photos p0.png ... p3.png before plain walls, their true masks in masks/, and one broken file."""
    folder = tmp_path_factory.mktemp("album")
    for seed in range(4):
        image, truth = photo(seed)
        write_image(folder / f"p{seed}.png", image)
        write_image(folder / "masks" / f"p{seed}.png", truth)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    return folder


def files(album, pattern="p*.png"):
    return sorted(album.glob(pattern))


def test_given_masks_are_kept_as_they_are(album):
    captured = capture_object("toy", files(album), masks=files(album, "masks/*.png"), diameter=0.2)
    toy = captured.templates
    assert captured.problems == ()
    assert (len(toy), toy.origin, toy.diameter, toy.unit) == (4, "photos", 0.2, "")
    assert np.isnan(toy.K).all()
    assert np.isnan(toy.pose).all()
    assert toy.points.shape == (0, 3)
    assert check_views(toy) == []
    for view in range(4):
        image, truth = photo(view)
        rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
        x, y, w, h = toy.box[view]
        assert (x, y, w, h) == (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        # The longer side fills the crop but for the margin that rendered views have, and the object is centred.
        scale = 128 * (1 - 2 * CROP_MARGIN) / max(w, h)
        inside = np.argwhere(toy.mask[view])
        np.testing.assert_allclose(np.ptp(inside, axis=0) + 1, [h * scale, w * scale], atol=2.5)
        np.testing.assert_allclose((inside.min(axis=0) + inside.max(axis=0) + 1) / 2, 64, atol=2)
        assert toy.mask[view].sum() == pytest.approx(truth.sum() * scale**2, rel=0.03)
        # The photo's own colours where the object is, black elsewhere.
        np.testing.assert_allclose(toy.rgb[view][toy.mask[view]].mean(axis=0), image[truth].mean(axis=0), atol=6)
        assert toy.rgb[view][~toy.mask[view]].mean() < 3


def test_sources_are_the_files_in_order(album):
    photos, masks = files(album)[:2], files(album, "masks/*.png")[:2]
    toy = capture_object("toy", photos, masks=masks).templates
    assert toy.sources == ("p0.png", "p0.png", "p1.png", "p1.png")
    content = b"".join(path.read_bytes() for path in (photos[0], masks[0], photos[1], masks[1]))
    assert toy.source_sha256 == hashlib.sha256(content).hexdigest()
    assert toy.recipe != capture_object("toy", photos).templates.recipe


def test_a_plain_background_and_a_click_need_no_masks(album):
    exact = capture_object("toy", files(album), masks=files(album, "masks/*.png")).templates
    plain = capture_object("toy", files(album)).templates
    clicks = [inner_point(photo(seed)[1]) for seed in range(2)]
    clicked = capture_object("toy", files(album)[:2], clicks=clicks).templates
    # One click for all: the toy is in the middle of each photo.
    middle = capture_object("toy", files(album)[:2], clicks=[(160, 120)]).templates
    for templates in (plain, clicked, middle):
        for view, mask in enumerate(templates.mask):
            assert mask_iou(mask, exact.mask[view]) > 0.9


def test_a_stored_object_goes_through_a_library(album, tmp_path):
    save_templates(tmp_path, capture_object("toy", files(album)).templates)
    stored = ObjectLibrary(tmp_path)["toy"]
    assert stored.origin == "photos"
    assert np.isnan(stored.diameter)


@pytest.mark.weights
def test_the_model_finds_a_captured_object(album, tmp_path):
    save_templates(tmp_path, capture_object("toy", files(album), masks=files(album, "masks/*.png")).templates)
    segmenter = Segmenter.from_pretrained("ocdit-small")
    segmenter.set_objects(ObjectLibrary(tmp_path))
    overlaps = []
    for seed in (20, 21, 22):
        image, truth = photo(seed, textured=True, size=(288, 384))
        found = segmenter.segment(image).instances
        overlaps.append(mask_iou(found[0].mask, truth) if found else 0.0)
    assert np.median(overlaps) > 0.6


def test_transparency_is_a_mask(album, tmp_path):
    image, truth = photo(1, textured=True)
    Image.fromarray(np.dstack([image, truth * np.uint8(255)])).save(tmp_path / "cut.png")
    write_image(tmp_path / "mask.png", truth)
    write_image(tmp_path / "opaque.png", image)
    own = capture_object("toy", [tmp_path / "cut.png"]).templates
    given = capture_object("toy", [tmp_path / "opaque.png"], masks=[tmp_path / "mask.png"]).templates
    np.testing.assert_array_equal(own.mask, given.mask)
    np.testing.assert_array_equal(own.rgb, given.rgb)


def test_clicks_are_meant_in_the_image_as_it_is_shown(tmp_path):
    image, truth = photo(2, textured=True, size=(120, 160))
    upright = Image.fromarray(image)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    turned.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    click = inner_point(truth)
    first = capture_object("toy", [tmp_path / "turned.png"], clicks=[click]).templates
    second = capture_object("toy", [tmp_path / "upright.png"], clicks=[click]).templates
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_array_equal(first.box, second.box)


def test_one_bad_photo_does_not_stop_the_others(album, tmp_path):
    write_image(tmp_path / "void.png", np.full((240, 320, 3), 180, np.uint8))
    (tmp_path / "again.png").write_bytes((album / "p0.png").read_bytes())
    photos = [album / "p0.png", album / "broken.jpg", tmp_path / "void.png", tmp_path / "again.png", album / "p1.png"]
    told = []
    captured = capture_object("toy", photos, on_error=lambda path, error: told.append((path, error)))
    assert len(captured.templates) == 2
    assert captured.templates.sources == ("p0.png", "p1.png")
    assert [path for path, _ in told] == photos[1:4]
    assert tuple(error for _, error in told) == captured.problems
    reasons = ("damaged|not an image", "no object is found", "same image as")
    for (path, error), reason in zip(told, reasons, strict=True):
        assert isinstance(error, ImageError)
        assert str(error).startswith(f"{path}: ")
        assert re.search(reason, str(error))
    # The sheet shows what could be read, the refused ones too.
    assert [preview.template is None for preview in captured.previews] == [False, True, True, False]
    sheet = capture_sheet(captured.previews)
    assert sheet.shape[0] == 2 * capture_sheet(captured.previews[:1]).shape[0]


def test_without_a_usable_photo_nothing_is_made(album):
    with pytest.raises(ImageError, match=r"toy: the only photo cannot be used; the first: .*broken\.jpg"):
        capture_object("toy", [album / "broken.jpg"])
    with pytest.raises(ImageError, match=r"toy: none of the 2 photos can be used; the first: .*none\.png: no such"):
        capture_object("toy", [album / "none.png", album])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.full((100, 320), 255, np.uint8), r"m\.png: is 320 x 100 pixels, its photo .*p0\.png 320 x 240"),
        (np.eye(240, 320, dtype=np.uint8), r"no pixel is above 127 \(the largest is 1\)"),
        (np.full((240, 320), 255, np.uint8), "all pixels are above 127"),
        (np.pad(np.full((9, 9), 255, np.uint8), ((0, 231), (0, 311))), r"p0\.png: the object is only 9 x 9 pixels"),
        (np.pad(np.full((240, 1), 255, np.uint8), ((0, 0), (0, 319))), "too thin to be seen"),
    ],
)
def test_bad_masks_are_refused(album, tmp_path, mask, reason):
    write_image(tmp_path / "m.png", mask)
    with pytest.raises(ImageError, match=reason):
        capture_object("toy", [album / "p0.png"], masks=[tmp_path / "m.png"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "a/b"}, "object name 'a/b'"),
        ({"photos": []}, "no photo was given"),
        ({"masks": ["m.png"]}, "1 masks were given for 4 photos"),
        ({"clicks": [(1, 2)] * 3}, "3 clicks were given for 4 photos; give one for each, or one for all"),
        ({"clicks": []}, "0 clicks were given"),
        ({"clicks": [(1, 2)], "masks": ["m.png"]}, "either is enough"),
        ({"diameter": float("nan")}, "diameter: nan m"),
        ({"diameter": 0.0}, "diameter: 0 m"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(changes, reason):
    arguments = {"name": "toy", "photos": [f"p{index}.png" for index in range(4)], **changes}
    with pytest.raises(ConfigError, match=reason):
        capture_object(arguments.pop("name"), arguments.pop("photos"), **arguments)


# Photos, and the masks that belong to them in this order.
@pytest.mark.parametrize(
    ("photos", "masks"),
    [
        ("1.jpg 10.jpg 2.jpg", "1_mask.png 10_mask.png 2_mask.png"),
        ("1.jpg 10.jpg 2.jpg", "mask_1.png mask_10.png mask_2.png"),
        ("1.jpg 10.jpg 2.jpg", "1-mask.png 10-mask.png 2-mask.png"),
        ("1.jpg 10.jpg 2.jpg", "1.jpg.png 10.jpg.png 2.jpg.png"),
        ("1.jpg 10.jpg 2.jpg", "0001.png 0010.png 0002.png"),
        ("IMG_2024_7.jpg IMG_2024_12.jpg", "mask7.png mask12.png"),
        ("frame_00002.png frame_00010.png", "00002_bgrem.png 00010_bgrem.png"),
        ("front.jpg back.jpg", "m/front.png m/back.png"),
        ("mug.jpg mug_2.jpg mug_10.jpg", "mug_mask.png mug_2_mask.png mug_10_mask.png"),
        ("a/1.jpg b/1.jpg", "masks/a/1.png masks/b/1.png"),
        ("only.jpg", "anything.png"),
    ],
)
def test_masks_are_paired_by_name_in_whatever_order(photos, masks):
    photos, masks = ([Path(name) for name in names.split()] for names in (photos, masks))
    for given in (masks, masks[::-1], sorted(masks)):
        assert pair_masks(photos, given) == masks


@pytest.mark.parametrize("masks", ["m1.png m2.png", "a.png 2.png", "a_mask.png a_mask2.png"])
def test_masks_whose_names_do_not_tell_are_refused(masks):
    with pytest.raises(ConfigError, match=r"not named after the photos, such as a_mask\.png for a\.jpg"):
        pair_masks([Path("a.jpg"), Path("b.jpg")], [Path(name) for name in masks.split()])


def test_the_pairs_of_photos_and_masks_are_said(album, caplog):
    caplog.set_level("INFO", logger="ocdit_core")
    capture_object("toy", files(album)[:2], masks=files(album, "masks/*.png")[1::-1])
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{album}/p{index}.png: mask {album}/masks/p{index}.png" for index in range(2)]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_mask_that_ignores_the_rotation_of_its_photo_is_noticed(tmp_path, caplog, orientation):
    image, truth = photo(2, size=(120, 160))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    write_image(tmp_path / "mask.png", truth)
    capture_object("toy", [tmp_path / "photo.png"], masks=[tmp_path / "mask.png"])
    assert f"is rotated by its EXIF orientation {orientation}" in caplog.text
    # A mask with the same orientation is turned with its photo.
    caplog.clear()
    Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / "mask.png", exif=exif)
    toy = capture_object("toy", [tmp_path / "photo.png"], masks=[tmp_path / "mask.png"]).templates
    assert "EXIF" not in caplog.text
    np.testing.assert_allclose(toy.rgb[0][toy.mask[0]].mean(axis=0), image[truth].mean(axis=0), atol=6)


def test_the_size_tells_whether_a_mask_is_rotated(tmp_path, caplog):
    image, truth = photo(2, size=(120, 160))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    write_image(tmp_path / "shown.png", np.rot90(truth, k=-1))
    write_image(tmp_path / "stored.png", truth)
    toy = capture_object("toy", [tmp_path / "photo.png"], masks=[tmp_path / "shown.png"]).templates
    assert "EXIF" not in caplog.text
    np.testing.assert_allclose(toy.rgb[0][toy.mask[0]].mean(axis=0), image[truth].mean(axis=0), atol=6)
    with pytest.raises(ImageError, match="rotated by its EXIF orientation 6, the mask is not"):
        capture_object("toy", [tmp_path / "photo.png"], masks=[tmp_path / "stored.png"])


def test_of_many_photos_the_best_views_are_unlike_each_other(tmp_path):
    """Five photos of each of four sides: four views show all four sides."""
    paths, masks = [], []
    truth = photo(0)[1]
    for index in range(20):
        # Sides 0 to 3: red, green, blue, grey; each a little brighter in every further photo.
        colour = np.vstack([np.eye(3), np.ones(3)])[index // 5] * (120 + 10 * (index % 5))
        paths.append(tmp_path / f"{index:02d}.png")
        masks.append(tmp_path / "masks" / f"{index:02d}.png")
        write_image(paths[-1], np.broadcast_to(colour, (*truth.shape, 3)).astype(np.uint8))
        write_image(masks[-1], truth)
    toy = capture_object("toy", paths, masks=masks).templates
    assert len(toy) == 20
    colours = [view[mask].mean(axis=0) > 60 for view, mask in zip(*_views(toy.best_views(4)), strict=True)]
    assert {tuple(colour.tolist()) for colour in colours} == {
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, True, True),
    }
    assert len(toy.best_views(12)) == 12


def test_one_odd_photo_is_not_preferred_to_whole_sides(album):
    toy = capture_object("toy", files(album)[:1], masks=files(album, "masks/*.png")[:1]).templates
    many = replace(
        toy, **{key: np.repeat(getattr(toy, key), 19, axis=0) for key in ("rgb", "mask", "box", "K", "pose")}
    )
    for index in range(18):
        many.rgb[index] = toy.mask[0][..., None] * np.eye(3, dtype=np.uint8)[index % 3] * 200
    many.rgb[18], many.mask[18] = 255, True
    sides = [view.max(axis=(0, 1)).argmax() for view in many.best_views(3).rgb]
    assert sorted(sides) == [0, 1, 2]
    assert many.best_views(3).rgb.max() == 200


def _views(templates):
    return templates.rgb, templates.mask


def test_capturing_loads_no_rendering_package(album, tmp_path):
    script = (
        "import sys; from ocdit_core.objects.capture import capture_object; "
        f"capture_object('toy', [{str(album / 'p0.png')!r}]); "
        "print([m for m in ('trimesh', 'moderngl', 'torch', 'scipy', 'pyvista') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
