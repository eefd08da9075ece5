import cv2
import numpy as np
import pytest
from photographs import inner_point, photo

from ocdit_core.errors import ImageError
from ocdit_core.masks import mask_iou, tight_box
from ocdit_core.objects.cutout import cut_out


def test_plain_backgrounds_with_shadows_and_uneven_light():
    overlaps = [mask_iou(cut_out(image), truth) for image, truth in (photo(seed) for seed in range(8))]
    assert np.median(overlaps) > 0.95
    assert min(overlaps) > 0.8


def test_a_click_is_enough_on_textures():
    overlaps = []
    for seed in range(6):
        image, truth = photo(seed, textured=True, size=(180, 240))
        overlaps.append(mask_iou(cut_out(image, inner_point(truth)), truth))
    assert np.median(overlaps) > 0.85


def test_a_click_chooses_among_objects():
    image = np.full((200, 300, 3), 190, np.uint8)
    cv2.circle(image, (80, 100), 40, (200, 30, 30), -1)
    cv2.rectangle(image, (180, 60), (240, 140), (30, 90, 30), -1)
    left, right = cut_out(image, (80, 100)), cut_out(image, (200.5, 80))
    assert left[100, 80]
    assert not left[:, 150:].any()
    assert left.sum() == pytest.approx(np.pi * 40**2, rel=0.05)
    assert right[100, 210]
    assert not right[:, :150].any()
    assert right.sum() == pytest.approx(61 * 81, rel=0.05)


def test_holes_that_show_the_background_stay_and_others_are_filled():
    plain = np.full((240, 320, 3), 200, np.uint8)
    cv2.circle(plain, (160, 120), 70, (180, 40, 40), -1)
    ring, disc = plain.copy(), plain.copy()
    cv2.circle(ring, (160, 120), 35, (200, 200, 200), -1)
    # A dark grey inside is a shade of the background, but darker than any shadow.
    cv2.circle(disc, (160, 120), 35, (40, 40, 40), -1)
    assert not cut_out(ring)[110:130, 150:170].any()
    assert cut_out(ring)[120, 210]
    assert cut_out(disc)[110:130, 150:170].all()


def test_large_photos_get_masks_of_their_own_size():
    image, truth = photo(3, size=(1200, 1600))
    mask = cut_out(image)
    assert mask.shape == truth.shape
    assert mask.dtype == bool
    assert mask_iou(mask, truth) > 0.95


def test_the_same_photo_gives_the_same_mask():
    image, truth = photo(5, textured=True, size=(120, 160))
    cv2.setRNGSeed(7)
    first = cut_out(image, inner_point(truth))
    cv2.setRNGSeed(8)
    np.testing.assert_array_equal(cut_out(image, inner_point(truth)), first)


def scene(*shapes):
    image = np.full((240, 320, 3), 200, np.uint8)
    for (x, y), radius in shapes:
        cv2.circle(image, (x, y), radius, (180, 40, 40), -1)
    return image


@pytest.mark.parametrize(
    ("image", "click", "reason"),
    [
        (scene(), None, r"no object is found; click on the object or give its mask"),
        (scene(((160, 120), 3)), None, "no object is found"),
        (scene(((20, 120), 60)), None, r"reaches the image's border: the object does, or"),
        (scene(((20, 120), 60)), (20, 120), r"reaches the image's border: the object does, or"),
        (scene(((80, 120), 30), ((160, 120), 30), ((240, 120), 30)), None, "falls into 3 parts: the background is too"),
        (
            np.pad(scene()[:230, :310] - 160, ((5, 5), (5, 5), (0, 0)), constant_values=200),
            (160, 120),
            "no object is found",
        ),
        (scene(((160, 120), 60)), (320, 20), r"click 320,20 is outside the image of 320 x 240"),
        (scene(((160, 120), 60)), (-1, 20), "click -1,20 is outside"),
        (scene(((160, 120), 60)), (float("nan"), 20), "click nan,20 is outside"),
        (scene()[:4], None, r"320 x 4 pixels is too small"),
        (np.zeros((10, 10), np.complex64), None, "an image must be"),
    ],
)
def test_what_cannot_be_cut_out_is_refused(image, click, reason):
    with pytest.raises(ImageError, match=reason):
        cut_out(image, click)


def test_a_box_around_the_object_is_enough_on_textures():
    overlaps = []
    for seed in range(6):
        image, truth = photo(seed, textured=True, size=(180, 240))
        x, y, width, height = tight_box(truth)
        left, top = max(x - 3, 0), max(y - 3, 0)
        box = (left, top, min(width + 6, 240 - left), min(height + 6, 180 - top))
        overlaps.append(mask_iou(cut_out(image, box=box), truth))
    assert np.median(overlaps) > 0.85
    for box in ((200, 100, 60, 60), (10, 10, 5, 50), (-1, 0, 50, 50)):
        with pytest.raises(ImageError, match="is not inside the image of 240 x 180 pixels, or below 16 pixels"):
            cut_out(image, box=box)
    with pytest.raises(ImageError, match="leaves no background"):
        cut_out(image, box=(0, 0, 240, 180))
