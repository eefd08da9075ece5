import numpy as np
import pytest

from ocdit_core.data.augment import Crop, random_crop, tight_crop
from ocdit_core.data.sampling import distance, nearest_objects, random_point, union_box

FRAME = (480, 640)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_distance_is_to_the_nearest_point_of_the_box():
    assert distance((5, 5), (0, 0, 10, 10)) == 0
    assert distance((13, 14), (0, 0, 10, 10)) == 5
    assert distance((-2, 5), (0, 0, 10, 10)) == 2


def test_a_box_around_others_is_tight():
    assert union_box([(10, 20, 30, 5), (0, 22, 5, 40)]) == (0, 20, 40, 42)


def test_near_objects_are_drawn_more_often_in_proportion_to_their_weights():
    """At the reach itself the chance is half of that at the point; of one draw, 2/3 to 1/3."""
    boxes = {7: [(0.0, 0.0, 10.0, 10.0)], 9: [(500.0, 500.0, 5.0, 5.0), (55.0, 0.0, 10.0, 10.0)]}
    draws = [nearest_objects(rng(seed), (5, 5), boxes, 1, reach=50)[0] for seed in range(3000)]
    assert np.mean(np.array(draws) == 7) == pytest.approx(2 / 3, abs=0.03)


def test_objects_are_drawn_once_and_all_of_them_where_there_are_few():
    boxes = {number: [(40.0 * number, 0.0, 10.0, 10.0)] for number in range(9)}
    chosen = nearest_objects(rng(), (0, 0), boxes, 4, reach=30)
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(boxes)
    assert sorted(nearest_objects(rng(), (0, 0), boxes, 20, reach=30)) == list(range(9))


def test_a_random_point_is_on_the_mask():
    mask = np.zeros((6, 8), bool)
    mask[4, 7] = True
    assert random_point(rng(), mask) == (7, 4)
    assert random_point(rng(), np.zeros((6, 8), bool)) is None


@pytest.mark.parametrize("output", [(240, 320), (224, 224), (320, 240)])
def test_random_crops_show_the_point_and_keep_inside(output):
    """Also for points in the corners of the frame; sizes are those asked for."""
    for seed in range(200):
        point = [(0, 0), (639, 479), (639, 0), (320, 240)][seed % 4]
        crop = random_crop(rng(seed), FRAME, output, (0.5, 0.9), point)
        assert 0 <= crop.top <= FRAME[0] - crop.height
        assert 0 <= crop.left <= FRAME[1] - crop.width
        assert crop.left <= point[0] < crop.left + crop.width
        assert crop.top <= point[1] < crop.top + crop.height
        assert crop.height / crop.width == pytest.approx(output[0] / output[1], rel=0.02)
        largest = min(FRAME[0] / output[0], FRAME[1] / output[1])
        assert 0.49 < crop.height / (largest * output[0]) < 0.91


def test_random_crops_reach_all_of_the_frame():
    crops = [random_crop(rng(seed), FRAME, (240, 320), (0.5, 0.5)) for seed in range(400)]
    assert min(w.left for w in crops) < 8
    assert max(w.left + w.width for w in crops) > 632
    assert min(w.top for w in crops) < 8
    assert max(w.top + w.height for w in crops) > 472


def test_tight_crops_show_the_object_and_vary():
    """With these margins and shifts an object in the middle is seen altogether, and is at least a third of a side."""
    box = (250.0, 180.0, 120.0, 60.0)
    crops = [tight_crop(rng(seed), box, FRAME, (240, 320), margin=(0.2, 0.35), shift=0.15) for seed in range(200)]
    for crop in crops:
        assert crop.left <= 250
        assert crop.left + crop.width >= 370
        assert crop.top <= 180
        assert crop.top + crop.height >= 240
        assert crop.width < 3 * 120
    assert len({(w.left, w.top, w.width) for w in crops}) > 150


def test_tight_crops_are_moved_into_the_frame():
    for box in [(0.0, 0.0, 50.0, 50.0), (600.0, 430.0, 40.0, 50.0)]:
        crop = tight_crop(rng(), box, FRAME, (224, 224), margin=(0.35, 0.35), shift=0.15)
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= 480
        assert crop.left + crop.width <= 640


def test_the_largest_tight_crop_is_all_of_the_frame():
    crop = tight_crop(rng(), (0, 0, 640, 480), FRAME, (240, 320), margin=(0.05, 0.35), shift=0.15)
    assert (crop.top, crop.left, crop.height, crop.width) == (0, 0, 480, 640)
    square = tight_crop(rng(), (0, 0, 640, 480), FRAME, (224, 224), margin=(0.05, 0.35), shift=0.15)
    assert (square.height, square.width) == (640, 640)
    assert square.left == 0
    assert -160 <= square.top <= 0


def test_image_and_mask_stay_together_under_cropping_and_scaling():
    """The mask of what is white is what is white in the sample, up to the pixels of the edge."""
    image = np.zeros((*FRAME, 3), np.uint8)
    image[200:280, 300:420] = 255
    mask = image[..., 0] > 0
    for seed in range(40):
        crop = tight_crop(rng(seed), (300, 200, 120, 80), FRAME, (240, 320), margin=(0, 1), shift=0.5)
        shown, part = crop.image(image, (240, 320)), crop.mask(mask, (240, 320))
        assert shown.shape == (240, 320, 3)
        assert part.any()
        assert np.mean((shown[..., 0] > 127) != part) < 0.002


def test_outside_the_frame_the_border_is_repeated_and_masks_are_empty():
    image = np.full((*FRAME, 3), 9, np.uint8)
    image[0] = 77
    crop = Crop(top=-40, left=0, height=80, width=80)
    shown = crop.image(image, (80, 80))
    assert (shown[:41] == 77).all()
    assert (shown[41:] == 9).all()
    part = crop.mask(np.ones(FRAME, bool), (80, 80))
    assert not part[:40].any()
    assert part[40:].all()


def test_an_aligned_crop_is_the_same_on_the_reduced_frame():
    """What is decoded at half the size shows the same part: an image of its own coordinates tells."""
    x = np.tile(np.linspace(0, 255, 640, dtype=np.float32), (480, 1)).astype(np.uint8)
    image = np.repeat(x[..., None], 3, axis=2)
    half = image.reshape(240, 2, 320, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    crop = Crop(top=-31, left=101, height=403, width=507).aligned(2)
    assert (crop.top, crop.left, crop.height, crop.width) == (-32, 100, 404, 508)
    a, b = crop.image(image, (200, 250)), crop.reduced(2).image(half, (200, 250))
    assert np.abs(a.astype(int) - b).max() <= 1


def test_crops_know_what_they_meet():
    crop = Crop(top=10, left=20, height=30, width=40)
    assert crop.meets((0, 0, 20.5, 10.5))
    assert not crop.meets((0, 0, 20, 50))
    assert not crop.meets((60, 10, 5, 5))
    assert crop.meets((59, 39, 100, 100))
