"""The refine stage and labelling, with a network that really looks: the embedded models on an example picture."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.errors import ConfigError, ImageError, OcditError
from ocdit_core.images import read_image
from ocdit_core.inference.presets import with_preset
from ocdit_core.inference.proposals import Candidate
from ocdit_core.inference.settings import InferenceSettings, TileSettings
from ocdit_core.inference.weights import recommended_settings
from ocdit_core.masks import decode_mask, mask_iou, tight_box
from ocdit_core.objects.onboarding import add_objects

EXAMPLES = Path(__file__).parents[3] / "examples"
PICTURE = sorted((EXAMPLES / "pictures").glob("*.json"))[0]


@pytest.fixture(scope="module")
def truth():
    return json.loads(PICTURE.read_text())


@pytest.fixture(scope="module")
def image(truth):
    return read_image(PICTURE.parent / truth["image"])


@pytest.fixture(scope="module")
def masks(truth):
    return {entry["object_id"]: decode_mask(entry["segmentation"]) for entry in truth["objects"]}


@pytest.fixture(scope="module")
def library(tmp_path_factory, truth):
    folder = tmp_path_factory.mktemp("library")
    add_objects(folder, [EXAMPLES / "meshes" / f"{name}.glb" for name in truth["targets"]], unit="m")
    return ObjectLibrary(folder)


def segmenter_with(library, **changes) -> Segmenter:
    settings = recommended_settings("ocdit-tiny")
    refine = replace(settings.refine, **changes.pop("refine", {}))
    segmenter = Segmenter.from_pretrained(
        "ocdit-tiny", device="cpu", settings=replace(settings, refine=refine, **changes)
    )
    segmenter.set_objects(library)
    return segmenter


@pytest.fixture(scope="module")
def segmenter(library):
    return segmenter_with(library)


def test_a_second_look_keeps_what_is_there(segmenter, image, masks):
    assert segmenter.refines
    result = segmenter.segment(image)
    assert {"refine_backbone", "refine_sampling", "refine_decoding"} <= set(result.timings)
    found = {one.object_id: one.mask for one in result.instances}
    assert np.mean([mask_iou(found[name], mask) if name in found else 0 for name, mask in masks.items()]) > 0.5
    covered = sum(one.mask.astype(int) for one in result.instances)
    assert covered.max() <= 1


def test_without_refine_the_coarse_masks_stand(library, image):
    coarse = segmenter_with(library, refine={"enabled": False})
    assert not coarse.refines
    assert coarse.objects.singles is None
    assert not any(stage.startswith("refine") for stage in coarse.segment(image).timings)
    with pytest.raises(ConfigError, match="labelling takes a refine model"):
        coarse.label(image, [(10, 10, 50, 50)])


def test_tiles_find_what_is_too_small_in_the_whole_picture(library, image, masks):
    """The same picture from six times as far."""
    far, at = np.full_like(image, 120), (image.shape[0] // 2, image.shape[1] // 8)
    size = (image.shape[1] // 6, image.shape[0] // 6)
    part = (slice(at[0], at[0] + size[1]), slice(at[1], at[1] + size[0]))
    far[part] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def found(tiles: TileSettings, **changes) -> int:
        result = segmenter_with(library, tiles=tiles, **changes).segment(far)
        true = 0
        for one in result.instances:
            whole = cv2.resize(one.mask[part].astype(np.uint8), image.shape[1::-1]) > 0
            true += mask_iou(whole, masks[one.object_id]) > 0.5 if one.object_id in masks else 0
        return true

    nine = TileSettings(grid=3, share=0.4, image_size=(192, 256))
    assert found(nine) > found(TileSettings())
    assert found(replace(nine, score_factor=0.1)) == found(TileSettings()), (
        "their scores are lowered below the threshold"
    )
    coarse_only = {"refine": {"enabled": False}, "score_threshold": 0.3}
    assert found(nine, **coarse_only) >= found(TileSettings(), **coarse_only)


def test_proposals_are_looked_at_together_as_one_by_one(segmenter, image, masks):
    """The same crop gives the same mask, whatever else is in the batch."""
    import torch

    from ocdit_core.inference.clock import StageClock

    stage, objects = segmenter._refine, segmenter.objects.singles
    boxes = [tight_box(mask) for mask in masks.values()]
    targets = [segmenter.object_ids.index(name) for name in masks]

    def look(chosen):
        clock, random = StageClock(torch.device("cpu")), torch.Generator().manual_seed(0)
        with torch.inference_mode():
            where, what = [boxes[i] for i in chosen], [targets[i] for i in chosen]
            return stage.look(image, where, what, objects, random, clock)

    together = look(range(len(boxes)))
    (region, alone), *_ = look([0])
    assert region == together[0][0]
    # The last few numbers of a noise depend on how many are drawn, and the posterior mean hardly on the noise.
    np.testing.assert_allclose(alone, together[0][1], atol=0.05)
    again, other = look([0, 1])
    np.testing.assert_allclose(again[1], alone, atol=0.05)
    assert other[0] == together[1][0] != region


def test_several_windows_cover_a_proposal_together(library, image, masks):
    one, several = (segmenter_with(library, refine={"windows": count}) for count in (1, 4))
    name = max(masks, key=lambda key: masks[key].sum())
    for segmenter in (one, several):
        found = {instance.object_id: instance.mask for instance in segmenter.segment(image).instances}
        assert mask_iou(found[name], masks[name]) > 0.5
    crops = several._refine._windows(tight_box(masks[name]), image.shape[:2])
    assert len(set(crops)) == 4
    for crop in crops:
        x, y, width, height = crop.box
        assert x >= 0 <= y
        assert x + width <= image.shape[1]
        assert y + height <= image.shape[0]


def test_later_rounds_look_around_what_was_found(library, image, masks):
    """A proposal that shows two thirds of its object each way grows to all of it."""
    import torch

    from ocdit_core.inference.clock import StageClock

    name = max(masks, key=lambda key: masks[key].sum())
    x, y, width, height = tight_box(masks[name])
    width, height = 2 * width // 3, 2 * height // 3
    corner = np.ones((height, width), bool)
    regions, overlaps = [], []
    for rounds in (1, 3):
        segmenter = segmenter_with(library, refine={"rounds": rounds})
        target = segmenter.object_ids.index(name)
        part = Candidate(
            target=target,
            score=0.9,
            region=(x, y, width, height),
            probabilities=corner.astype(np.float32),
            mask=corner,
        )
        clock, random = StageClock(torch.device("cpu")), torch.Generator().manual_seed(0)
        with torch.inference_mode():
            (found,) = segmenter._refine.refine(image, [part], segmenter.objects.singles, random, clock)
        full = np.zeros(image.shape[:2], bool)
        left, top, wide, high = found.region
        full[top : top + high, left : left + wide] = found.mask
        regions.append(found.region)
        overlaps.append(mask_iou(full, masks[name]))
    assert regions[0] != regions[1]
    assert overlaps[1] > max(0.8, overlaps[0] + 0.1)


def test_regions_get_their_object_or_none(segmenter, image, masks):
    names = list(masks)
    for regions in ([tight_box(masks[name]) for name in names], [masks[name] for name in names]):
        labels = segmenter.label(image, regions)
        right = [label.instance is not None and label.instance.object_id for label in labels]
        assert sum(a == b for a, b in zip(right, names, strict=True)) >= len(names) - 1
        for label in labels:
            assert set(label.scores) == set(segmenter.object_ids)
            if label.instance:
                assert label.instance.score == max(label.scores.values())
    best = max(label.instance.score for label in labels if label.instance)
    strict = replace(segmenter.settings, label_threshold=min(1.0, best + 1e-6), score_threshold=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter, "settings", strict)
        assert not any(label.instance for label in segmenter.label(image, regions))
    height, width = image.shape[:2]
    free = np.ones((height, width), bool)
    for mask in masks.values():
        free &= ~mask
    corner = min(
        ((0, 0), (width - 90, 0), (0, height - 90), (width - 90, height - 90)),
        key=lambda place: -int(free[place[1] : place[1] + 90, place[0] : place[0] + 90].sum()),
    )
    (empty,) = segmenter.label(image, [(*corner, 90, 90)])
    assert empty.instance is None or empty.instance.score < 0.8


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((0, 0, 0, 10), "not inside the image"),
        ((600, 400, 100, 100), "not inside the image"),
        (np.zeros((480, 640), bool), "the mask is empty"),
        (np.ones((48, 64), bool), "of the image's size"),
    ],
)
def test_regions_outside_the_picture_are_refused(segmenter, image, region, reason):
    with pytest.raises(ImageError, match=f"region 1: .*{reason}"):
        segmenter.label(image, [region])
    assert segmenter.label(image, []) == ()


def test_targets_have_to_be_set_before_labelling():
    with pytest.raises(OcditError, match="set_objects"):
        Segmenter.from_pretrained("ocdit-tiny", device="cpu").label(np.zeros((64, 64, 3), np.uint8), [(0, 0, 9, 9)])


def test_uncertainty_comes_when_asked_for(library, image):
    assert segmenter_with(library).segment(image).uncertainty is None
    doubts = segmenter_with(library, uncertainty=True).segment(image).uncertainty
    assert doubts.shape == image.shape[:2]
    assert doubts.dtype == np.float32
    assert 0 <= doubts.min() < doubts.max() <= 1


def test_presets_are_the_models_own_settings_or_the_papers():
    own = InferenceSettings(image_size=(272, 352), tiles=TileSettings(grid=3), score="expected_iou")
    assert with_preset(own, "fast") == own
    paper = with_preset(own, "paper")
    assert (paper.image_size, paper.refine.image_size) == ((480, 640), (224, 224))
    assert (paper.tiles.grid, paper.refine.rounds, paper.score) == (0, 1, "mean")
    assert (paper.sampler.steps, paper.refine.sampler.steps, paper.crops, paper.guided_crop) == (9, 9, 5, True)
    with pytest.raises(ConfigError, match="preset: 'quick' is not one of fast, paper"):
        with_preset(own, "quick")
