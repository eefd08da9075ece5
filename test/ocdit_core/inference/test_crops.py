import numpy as np
import pytest

from ocdit_core.inference.crops import Crop, CropMean, augmentation_crops, expand, full_crop, guided_crop

IMAGE, CANVAS = (60, 80), (48, 64)


def seen(windows):
    pixels = np.zeros(IMAGE, int)
    for window in windows:
        x, y, width, height = window.box
        pixels[y : y + height, x : x + width] += 1
    return pixels


@pytest.mark.parametrize("count", [0, 1, 5, 7, 10, 12])
def test_crops_lie_inside_the_image_and_five_of_them_show_all_of_it(count):
    windows = augmentation_crops(IMAGE, CANVAS, count)
    assert len(windows) == len({window.box for window in windows}) == count
    for window in windows:
        x, y, width, height = window.box
        assert min(x, y) >= 0
        assert x + width <= 80
        assert y + height <= 60
    if count >= 5:
        assert seen(windows).min() >= 1


def test_what_a_crop_shows_comes_back_to_its_place():
    truth = np.zeros((2, *IMAGE), np.float32)
    truth[0, 20:40, 30:50] = 1
    truth[1, 5:15, 60:75] = 1
    mean = CropMean(2, IMAGE)
    for window in [full_crop(IMAGE, CANVAS), *augmentation_crops(IMAGE, CANVAS, 10)]:
        canvases = [window.forward(np.repeat(mask[..., None] * 255, 3, axis=2).astype(np.uint8)) for mask in truth]
        mean.add(window, np.stack(canvases)[..., 0].astype(np.float32) / 255)
    found = mean.result() > 0.5
    for mask, wanted in zip(found, truth > 0, strict=True):
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9


def test_pixels_that_a_crop_does_not_see_keep_the_mean_of_those_that_do():
    mean = CropMean(1, IMAGE)
    mean.add(full_crop(IMAGE, CANVAS), np.full((1, *CANVAS), 0.2, np.float32))
    crop = augmentation_crops(IMAGE, CANVAS, 2)[1]
    mean.add(crop, np.full((1, *CANVAS), 0.8, np.float32))
    result = mean.result()[0]
    assert result[0, 0] == pytest.approx(0.5)
    assert result[-1, -1] == pytest.approx(0.2)


def test_objects_may_come_in_several_runs():
    mean = CropMean(3, IMAGE)
    window = full_crop(IMAGE, CANVAS)
    mean.add(window, np.full((2, *CANVAS), 0.4, np.float32), slice(0, 2))
    mean.add(window, np.full((1, *CANVAS), 0.6, np.float32), slice(2, 3))
    np.testing.assert_allclose(mean.result()[:, 10, 10], [0.4, 0.4, 0.6], rtol=1e-6)


def test_the_guided_crop_bounds_what_was_found():
    probabilities = np.zeros((2, *IMAGE), np.float32)
    assert guided_crop(probabilities, CANVAS, 0.5) is None
    probabilities[0, 20:30, 30:36] = 0.9
    probabilities[1, 28:32, 40:50] = 0.6
    window = guided_crop(probabilities, CANVAS, 0.5)
    x, y, width, height = window.box
    assert x <= 30
    assert y <= 20
    assert x + width >= 50
    assert y + height >= 32
    assert width * height < 0.5 * 60 * 80
    assert width / height == pytest.approx(64 / 48, rel=0.1)
    probabilities[0, 0, 0] = probabilities[0, -1, -1] = 0.9
    assert guided_crop(probabilities, CANVAS, 0.5) is None


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (70, 50, 10, 10), (0, 0, 80, 60), (10, 0, 3, 60), (79, 59, 1, 1)])
def test_expanded_boxes_hold_the_box_and_stay_inside(box):
    x, y, width, height = expand(box, IMAGE, 0.2, CANVAS)
    assert 0 <= x <= box[0]
    assert 0 <= y <= box[1]
    assert box[0] + box[2] <= x + width <= 80
    assert box[1] + box[3] <= y + height <= 60


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 1000), (33, 17)])
def test_inverse_undoes_forward(size):
    crop = full_crop(size, (128, 160))
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    image = np.stack([255 * rows / size[0], 255 * columns / size[1], 0 * rows], axis=-1).astype(np.uint8)
    model_input = crop.forward(image)
    assert model_input.shape == (128, 160, 3)
    back = crop.inverse(model_input[..., 1].astype(np.float32))
    assert back.shape == size
    assert np.abs(back - image[..., 1]).mean() < 3


def test_a_crop_is_its_part_of_the_image():
    crop = Crop(box=(10, 20, 30, 24), input_size=(48, 60))
    image = np.zeros((*IMAGE, 3), np.uint8)
    image[crop.part] = 200
    assert (crop.forward(image) == 200).all()
