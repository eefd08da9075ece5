import cv2
import numpy as np
import pytest

from ocdit_core.evaluation.region_proposals import find_superpixels, propose_regions


def scene(seed=0, size=(240, 320)):
    """A disc, a bar of two colours and a small square on a noisy, shaded background, and their masks."""
    rng = np.random.default_rng(seed)
    height, width = size
    shade = np.linspace(90, 150, width)[None, :, None]
    image = np.broadcast_to(shade, (height, width, 3)) + rng.normal(0, 4, (height, width, 3))
    things = np.zeros((3, height, width), np.uint8)
    cv2.circle(things[0], (80, 80), 40, 1, -1)
    cv2.rectangle(things[1], (170, 140), (290, 180), 1, -1)
    cv2.rectangle(things[2], (240, 40), (258, 58), 1, -1)
    for mask, colour in zip(things, ((190, 40, 50), (40, 80, 190), (230, 220, 60)), strict=True):
        image[mask > 0] = np.array(colour) + rng.normal(0, 4, (int(mask.sum()), 3))
    image[140:181, 230:291] = (60, 170, 200)
    return np.clip(image, 0, 255).astype(np.uint8), things.astype(bool)


def overlaps(masks, truth):
    return (masks & truth).sum(axis=(1, 2)) / (masks | truth).sum(axis=(1, 2))


def test_objects_are_among_the_regions():
    image, truths = scene()
    masks, strengths = propose_regions(image, 100)
    assert masks.shape == (len(strengths), 240, 320)
    best = [overlaps(masks, truth).max() for truth in truths]
    assert min(best) > 0.85, best
    # By descending saliency: the plain disc is among the first.
    assert (np.diff(strengths) <= 0).all()
    assert overlaps(masks, truths[0]).argmax() < 20


def test_regions_differ_and_are_within_the_size_limits():
    image, _ = scene(1)
    masks, _ = propose_regions(image, 60)
    assert 10 < len(masks) <= 60
    shares = masks.mean(axis=(1, 2))
    assert shares.min() >= 0.0006
    assert shares.max() <= 0.5
    for index in range(1, len(masks)):
        assert overlaps(masks[:index], masks[index]).max() <= 0.85 + 1e-6


def test_large_images_are_reduced_and_results_are_repeatable():
    image, truths = scene(2)
    large = cv2.resize(image, (1280, 960), interpolation=cv2.INTER_NEAREST)
    first, second = (propose_regions(large, 300) for _ in range(2))
    assert first[0].shape[1:] == (240, 320)
    np.testing.assert_array_equal(first[0], second[0])
    assert overlaps(first[0], truths[0]).max() > 0.85


@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 900, 3), (15, 15, 3)])
def test_tiny_images_have_no_regions(shape):
    masks, strengths = propose_regions(np.full(shape, 90, np.uint8), 300)
    assert len(masks) == len(strengths) == 0


def test_an_image_of_one_colour():
    masks, strengths = propose_regions(np.full((64, 80, 3), 90, np.uint8), 300)
    assert np.isfinite(strengths).all()
    assert strengths.max(initial=0) < 0.01
    assert masks.shape[1:] == (64, 80)


def test_superpixels_cover_the_image_and_follow_edges():
    image, truths = scene()
    pixels = find_superpixels(image, 8)
    labels, count = pixels.labels, len(pixels.areas)
    assert set(np.unique(labels)) == set(range(count))
    np.testing.assert_array_equal(pixels.areas, np.bincount(labels.ravel()))
    np.testing.assert_allclose(pixels.colours.sum(axis=1), 3 * pixels.areas)
    for number in (0, count // 2, count - 1):
        rows, columns = np.nonzero(labels == number)
        assert pixels.boxes[number].tolist() == [columns.min(), rows.min(), -columns.max() - 1, -rows.max() - 1]
    assert (pixels.edges[:, 0] < pixels.edges[:, 1]).all()
    across = (labels[:, 1:] != labels[:, :-1]).sum() + (labels[1:] != labels[:-1]).sum()
    assert pixels.lengths.sum() == across
    # They follow the disc's edge: nearly all pixels lie in one that is inside or outside as a whole.
    inside = np.bincount(labels.ravel(), weights=truths[0].ravel()) / pixels.areas
    assert np.minimum(inside, 1 - inside) @ pixels.areas < 0.05 * truths[0].sum()
    rim = np.abs(inside[pixels.edges[:, 0]] - inside[pixels.edges[:, 1]]) > 0.9
    assert pixels.contrasts[rim].mean() > 3 * pixels.contrasts[~rim].mean()
