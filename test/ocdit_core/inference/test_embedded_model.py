"""The embedded model on the example images: objects that it has never seen."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ImageError, UnknownObjectError
from ocdit_core.images import read_image
from ocdit_core.inference.prompts import Prompt
from ocdit_core.inference.refine import RefineStage
from ocdit_core.inference.settings import recommended_settings
from ocdit_core.masks import decode_mask, mask_iou, tight_box
from ocdit_core.objects.archive import save_templates
from ocdit_core.objects.onboarding import add_objects

pytestmark = pytest.mark.weights
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    add_objects(folder, sorted((EXAMPLES / "meshes").glob("*.glb")), unit="m")
    return ObjectLibrary(folder)


@pytest.fixture(scope="module")
def scenes():
    """(image, names of the targets, mask of each visible target)."""
    found = []
    for path in sorted((EXAMPLES / "images").glob("*.json")):
        truth = json.loads(path.read_text())
        masks = {entry["object_id"]: decode_mask(entry["segmentation"]) for entry in truth["objects"]}
        found.append((read_image(path.parent / truth["image"]), truth["targets"], masks))
    return found


def make_segmenter(**changes) -> Segmenter:
    settings = recommended_settings("ocdit-small")
    refine = replace(settings.refine, **changes.pop("refine", {}))
    return Segmenter.from_pretrained("ocdit-small", device="cpu", settings=replace(settings, refine=refine, **changes))


@pytest.fixture(scope="module")
def segmenter():
    return make_segmenter()


def mean_iou(segmenter, library, scenes) -> float:
    overlaps = []
    for image, targets, masks in scenes:
        segmenter.set_objects(library, targets)
        found = {instance.object_id: instance.mask for instance in segmenter.segment(image).instances}
        overlaps += [mask_iou(found[name], mask) if name in found else 0.0 for name, mask in masks.items()]
    return float(np.mean(overlaps))


def test_unseen_objects_are_found(segmenter, library, scenes):
    assert mean_iou(segmenter, library, scenes) > 0.5


def test_samples_and_ensembles_find_them_too(library, scenes):
    sampled = make_segmenter(sampler=SamplerConfig(steps=4), ensemble=2)
    assert mean_iou(sampled, library, scenes[:1]) > 0.3


def test_crops_and_the_guided_crop_find_them_too(library, scenes):
    assert mean_iou(make_segmenter(crops=5, guided_crop=True), library, scenes[:1]) > 0.5


def test_a_mask_lies_where_the_object_is_at_any_aspect(segmenter, library, scenes):
    """The image in the corner of a larger one: what is padded and scaled comes back to its place."""
    image, targets, masks = scenes[0]
    name = max(masks, key=lambda key: masks[key].sum())
    large = np.full((900, 700, 3), 127, np.uint8)
    large[400:880, 50:690] = image
    segmenter.set_objects(library, targets)
    found = {instance.object_id: instance.mask for instance in segmenter.segment(large).instances}
    truth = np.zeros((900, 700), bool)
    truth[400:880, 50:690] = masks[name]
    assert mask_iou(found[name], truth) > 0.4


def test_objects_with_few_views_stand_beside_those_with_many(tmp_path, segmenter, library, scenes):
    image, targets, masks = scenes[0]
    for name in targets:
        templates = library[name]
        save_templates(tmp_path / "library", templates.exactly(5) if name == targets[0] else templates)
    assert mean_iou(segmenter, ObjectLibrary(tmp_path / "library"), [(image, targets, masks)]) > 0.5


def test_the_fine_size_finds_what_is_too_small_in_the_whole_image(library, scenes):
    """The same image from three times as far."""
    image, targets, masks = scenes[0]
    far, at = np.full_like(image, 120), (image.shape[0] // 2, image.shape[1] // 8)
    size = (image.shape[1] // 3, image.shape[0] // 3)
    part = (slice(at[0], at[0] + size[1]), slice(at[1], at[1] + size[0]))
    far[part] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def overlap(**changes) -> float:
        segmenter = make_segmenter(**changes)
        segmenter.set_objects(library, targets)
        best = dict.fromkeys(masks, 0.0)
        for one in segmenter.segment(far, score_threshold=0.0).instances:
            whole = cv2.resize(one.mask[part].astype(np.uint8), image.shape[1::-1]) > 0
            if one.object_id in masks:
                best[one.object_id] = max(best[one.object_id], float(mask_iou(whole, masks[one.object_id])))
        return sum(best.values())

    assert overlap() > overlap(fine_image_size=None, image_size=(240, 320))


def test_regions_get_their_names(segmenter, library, scenes):
    image, targets, masks = scenes[0]
    segmenter.set_objects(library, targets)
    names = list(masks)
    for regions in ([tight_box(masks[name]) for name in names], [masks[name] for name in names]):
        labels = [label.instance and label.instance.object_id for label in segmenter.label(image, regions)]
        assert sum(found == name for found, name in zip(labels, names, strict=True)) >= len(names) - 1


def test_what_is_followed_is_found_where_it_is_expected_alone(segmenter, library, scenes):
    image, targets, masks = scenes[0]
    segmenter.set_objects(library, targets)
    whole = segmenter.segment(image)
    followed = segmenter.follow(image, [(one.object_id, one.box) for one in whole.instances])
    pairs = zip(*(sorted(found.instances, key=lambda one: one.box) for found in (whole, followed)), strict=True)
    for one, other in pairs:
        assert one.object_id == other.object_id
        assert mask_iou(one.mask, other.mask) > 0.8
    name, *_ = masks
    (alone,) = segmenter.follow(image, [(name, tight_box(masks[name]))]).instances
    assert alone.object_id == name
    assert segmenter.follow(image, []).instances == ()
    with pytest.raises(ImageError, match=rf"{name} is expected: box \(600, 0, 99, 9\) .* is not inside the image"):
        segmenter.follow(image, [(name, (600, 0, 99, 9))])
    with pytest.raises(UnknownObjectError, match="hammer"):
        segmenter.follow(image, [("hammer", (0, 0, 9, 9))])


def test_every_kind_of_prompt_places_its_object(segmenter, library, scenes):
    image, targets, masks = scenes[0]
    segmenter.set_objects(library, targets)

    def row(mask) -> list[tuple[int, int]]:
        """Return a line along a row of the mask."""
        y = np.argwhere(mask)[mask.sum() // 2, 0]
        across = np.flatnonzero(mask[y])
        return [(across[len(across) // 4], y), (across[3 * len(across) // 4], y)]

    for kind, of in (("points", lambda mask: row(mask)[:1]), ("scribble", row), ("box", tight_box), ("mask", np.array)):
        prompts = [Prompt(object_id=name, **{kind: of(mask)}) for name, mask in masks.items()]
        found = segmenter.segment(image, prompts=prompts, score_threshold=0.0).instances
        assert sorted(one.object_id for one in found if one.object_id in masks) == sorted(masks)
        assert all(mask_iou(one.mask, masks[one.object_id]) > 0.5 for one in found if one.object_id in masks)


def test_prompted_targets_alone_are_the_same_with_less_work(segmenter, library, scenes, monkeypatch):
    image, targets, masks = scenes[0]
    segmenter.set_objects(library, targets)
    refined, refine = [], RefineStage.refine
    monkeypatch.setattr(
        RefineStage,
        "refine",
        lambda stage, *args, **more: (refined.append(len(args[1])), refine(stage, *args, **more))[1],
    )
    for name, mask in list(masks.items())[:2]:
        y, x = np.argwhere(mask)[mask.sum() // 2]
        prompts = [Prompt(object_id=name, points=[(x, y)])]
        whole, alone = (
            segmenter.segment(image, prompts=prompts, only_prompted=only).instances for only in (False, True)
        )
        (expected,) = [one for one in whole if one.object_id == name] or [None]
        (found,) = [one for one in alone if one.object_id == name] or [None]
        assert (found is None) == (expected is None)
        if found is not None:
            assert found.score == pytest.approx(expected.score, abs=1e-4)
            assert mask_iou(found.mask, expected.mask) > 0.99
    # Each time what a point is on, then the others.
    assert sum(refined[2::4] + refined[3::4]) < 0.7 * sum(refined[::4] + refined[1::4])


def test_a_prompt_on_background_finds_nothing(segmenter, library, scenes):
    image, targets, masks = scenes[0]
    segmenter.set_objects(library, targets)
    distance = cv2.distanceTransform((~np.any([*masks.values()], axis=0)).astype(np.uint8), cv2.DIST_L2, 5)
    free = np.argwhere(distance > distance.max() / 2)
    places = free[:: len(free) // len(targets)]
    prompts = [Prompt(object_id=name, points=[(x, y)]) for name, (y, x) in zip(targets, places, strict=False)]
    assert not segmenter.segment(image, prompts=prompts).instances


def test_another_engine_finds_the_same_instances(segmenter, library, scenes):
    pytest.importorskip("openvino", reason="optional package: pip install 'ocdit_ros[openvino]'")
    image, targets, _ = scenes[0]
    segmenter.set_objects(library, targets)
    other = make_segmenter(engine="openvino")
    other.set_objects(library, targets)
    expected, found = segmenter.segment(image).instances, other.segment(image).instances
    assert len(expected) > 2
    assert [one.object_id for one in found] == [one.object_id for one in expected]
    assert np.allclose([one.score for one in found], [one.score for one in expected], atol=1e-3)
    assert min(mask_iou(a.mask, b.mask) for a, b in zip(expected, found, strict=True)) > 0.99
