from dataclasses import replace

import numpy as np
import pytest

from ocdit_core.colours import PALETTE, object_colours
from ocdit_core.errors import ImageError
from ocdit_core.images import read_image
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.visualization import ContactSheets, overlay


def instance(name, score, rows, columns, shape):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return Instance(object_id=name, score=score, box=tight_box(mask), mask=mask)


def result(*instances, shape=(240, 320), targets=()):
    names = tuple(dict.fromkeys([*targets, *(one.object_id for one in instances)]))
    return Segmentation(instances=instances, image_size=shape, target_ids=names)


def test_colours_are_distinct_and_stable():
    names = [f"object {number}" for number in range(20)]
    colours = object_colours(names)
    assert len(set(colours.values())) == 20
    assert object_colours(reversed(names)) == colours
    assert set(object_colours([f"{n}" for n in range(50)]).values()) == set(PALETTE)
    assert object_colours(["mug"])["mug"] == object_colours(["mug", "zebra"])["mug"]


def test_masks_are_tinted_and_the_rest_is_left_alone():
    image = np.full((240, 320, 3), 120, np.uint8)
    shown = result(instance("mug", 0.9, slice(100, 180), slice(40, 140), (240, 320)))
    drawn = overlay(image, shown)
    assert (image == 120).all(), "the caller's image was drawn on"
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    colour = np.array(object_colours(["mug"])["mug"])
    np.testing.assert_allclose(drawn[140, 90], 0.55 * 120 + 0.45 * colour, atol=1)
    # Away from the mask, its outline and its label nothing changes.
    assert (drawn[185:] == 120).all()
    assert (drawn[:, 150:] == 120).all()
    assert (np.abs(drawn[100, 60:120].astype(int) - colour).max(axis=1) < 60).all(), "no crisp outline"


@pytest.mark.parametrize("shape", [(240, 320), (60, 80), (1080, 1920), (16, 500), (500, 16), (3, 3)])
def test_labels_stay_inside_images_of_any_shape(shape):
    height, width = shape
    image = np.full((*shape, 3), 90, np.uint8)
    corners = [
        instance("a very long name of an object", 0.9, slice(0, 2), slice(width - 2, width), shape),
        instance("b", 0.8, slice(height - 2, height), slice(0, 2), shape),
        instance("Ölkanne", 0.7, slice(height - 1, height), slice(width - 1, width), shape),
    ]
    assert overlay(image, result(*corners, shape=shape)).shape == image.shape


def test_labels_at_one_place_do_not_cover_each_other():
    shape = (240, 320)
    same = [instance(name, 0.5, slice(100, 140), slice(100, 160), shape) for name in ("cup", "mug", "jar")]
    drawn = overlay(np.full((*shape, 3), 90, np.uint8), result(*same, shape=shape))
    colours = object_colours(["cup", "mug", "jar"])
    for name in ("cup", "mug", "jar"):
        assert (drawn == np.array(colours[name])).all(axis=2).sum() > 300, name


def test_nothing_found_changes_nothing_and_another_size_is_refused():
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    np.testing.assert_array_equal(overlay(image, result(shape=(24, 32), targets=("mug",))), image)
    with pytest.raises(ImageError, match="320 x 240"):
        overlay(image, result())


def templates(name, views):
    rgb = np.zeros((views, 128, 128, 3), np.uint8)
    rgb[:, 32:96, 32:96] = 200
    pose = np.tile(np.eye(4), (views, 1, 1))
    pose[:, 2, 3] = 1
    return ObjectTemplates(
        name=name, rgb=rgb, mask=rgb[..., 0] > 0, box=np.ones((views, 4), np.float32),
        K=np.tile(np.eye(3), (views, 1, 1)), pose=pose, points=np.ones((4, 3), np.float32),
        diameter=0.2, source_sha256="", unit="m",
    )  # fmt: skip


def test_photographs_have_a_row_without_a_size(tmp_path):
    sheets = ContactSheets(tmp_path / "sheet.png", 1)
    sheets.add(replace(templates("a cup with a long name", 2), origin="photos", diameter=float("nan")))
    sheets.finish()
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[0] == 96 + 22
    assert (sheet[:22, 200:] > 200).any(), "the name is cut at the last view"


@pytest.mark.parametrize(
    ("count", "shapes"), [(2, [(2, 1)]), (20, [(20, 1)]), (23, [(20, 2)]), (85, [(20, 2), (20, 2), (5, 1)])]
)
def test_many_objects_fill_pages(tmp_path, count, shapes):
    sheets = ContactSheets(tmp_path / "sheet.png", count)
    for number in range(count):
        sheets.add(templates(f"object {number}", 3))
    sheets.finish()
    names = ["sheet.png"] if len(shapes) == 1 else [f"sheet_{page:02d}.png" for page in range(1, len(shapes) + 1)]
    assert [path.name for path in sheets.written] == names == sorted(path.name for path in tmp_path.glob("[!.]*"))
    for path, (rows, columns) in zip(sheets.written, shapes, strict=True):
        page = read_image(path)
        assert page.shape == (rows * 118, columns * 288 + 12 * (columns - 1), 3)
        centres = page[22 + 48 :: 118, 48::96, 0] if columns == 1 else page[22 + 48 :: 118, 300 + 48 :: 96, 0]
        shown = min(rows, count - 20 if columns == 2 else rows)
        assert (centres[:shown] == 200).all()
        assert (centres[shown:] < 50).all()
