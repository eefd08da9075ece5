"""The embedded model on the example pictures: objects that it has never seen."""

import dataclasses
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError, ImageError, OcditError, UnknownObjectError, WeightsError
from ocdit_core.images import read_image
from ocdit_core.inference.geometry import Letterbox
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.weights import find_weights, recommended_settings
from ocdit_core.masks import decode_mask, mask_iou
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.models.representation import RepresentationConfig
from ocdit_core.objects.archive import save_templates
from ocdit_core.objects.onboarding import add_objects

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    add_objects(folder, sorted((EXAMPLES / "meshes").glob("*.glb")), unit="m")
    return ObjectLibrary(folder)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("ocdit-tiny", device="cpu")


def scenes():
    for path in sorted((EXAMPLES / "pictures").glob("*.json")):
        truth = json.loads(path.read_text())
        masks = {entry["object_id"]: decode_mask(entry["segmentation"]) for entry in truth["objects"]}
        yield read_image(path.parent / truth["image"]), truth["targets"], masks


def mean_iou(segmenter, library, count: int | None = None) -> float:
    overlaps = []
    for image, targets, masks in itertools.islice(scenes(), count):
        segmenter.set_objects(library, targets)
        found = {instance.object_id: instance.mask for instance in segmenter.segment(image).instances}
        overlaps += [mask_iou(found[name], mask) if name in found else 0.0 for name, mask in masks.items()]
    return float(np.mean(overlaps))


def test_finds_unseen_objects(segmenter, library):
    assert mean_iou(segmenter, library) > 0.5


def test_results_are_well_formed(segmenter, library):
    image, targets, _ = next(scenes())
    segmenter.set_objects(library, targets)
    result = segmenter.segment(image)
    assert result.image_size == image.shape[:2]
    assert result.target_ids == tuple(targets)
    assert {"backbone", "sampling", "decoding", "total"} <= set(result.timings)
    scores = [instance.score for instance in result.instances]
    assert scores == sorted(scores, reverse=True)
    covered = np.zeros(image.shape[:2], int)
    for instance in result.instances:
        assert instance.object_id in targets
        assert instance.mask.shape == image.shape[:2]
        x, y, w, h = instance.box
        assert instance.mask[y : y + h, x : x + w].sum() == instance.mask.sum()
        covered += instance.mask
    assert covered.max() <= 1
    labels = result.label_map()
    assert labels.max() == len(result.instances)


def test_the_same_input_gives_the_same_result(segmenter, library):
    image, targets, _ = next(scenes())
    segmenter.set_objects(library, targets)
    first, second = segmenter.segment(image), segmenter.segment(image)
    assert np.array_equal(first.label_map(), second.label_map())


@pytest.mark.parametrize("size", [(100, 100), (97, 301), (960, 400), (33, 40)])
def test_any_picture_size(segmenter, library, size):
    image, targets, _ = next(scenes())
    segmenter.set_objects(library, targets)
    result = segmenter.segment(cv2.resize(image, size[::-1]))
    assert result.image_size == size
    assert all(instance.mask.shape == size for instance in result.instances)


def test_a_mask_lies_where_the_object_is_at_any_aspect(segmenter, library):
    """The picture in the corner of a larger one: what was padded and scaled comes back to its place."""
    image, targets, masks = next(scenes())
    name = max(masks, key=lambda key: masks[key].sum())
    canvas = np.full((900, 700, 3), 127, np.uint8)
    canvas[400:880, 50:690] = image
    segmenter.set_objects(library, targets)
    found = {instance.object_id: instance.mask for instance in segmenter.segment(canvas).instances}
    truth = np.zeros((900, 700), bool)
    truth[400:880, 50:690] = masks[name]
    assert name in found
    assert mask_iou(found[name], truth) > 0.4


def test_more_targets_than_positions_take_turns(segmenter, library):
    image, _, _ = next(scenes())
    assert len(library) > 8
    segmenter.set_objects(library)
    assert set(segmenter.segment(image).target_ids) == set(library.object_ids)


def test_heun_sampler_and_ensemble_agree_with_the_posterior_mean_on_a_clear_object(library):
    settings = replace(recommended_settings("ocdit-tiny"), sampler=SamplerConfig(steps=4), ensemble=2, seed=3)
    assert mean_iou(Segmenter.from_pretrained("ocdit-tiny", device="cpu", settings=settings), library, 2) > 0.3


def test_distractors_take_pixels_and_are_not_reported(library):
    image, targets, masks = next(scenes())
    absent = [name for name in targets if name not in masks]
    assert absent
    alone = replace(recommended_settings("ocdit-tiny"), score_threshold=0.0)
    for count in (0, 7):
        segmenter = Segmenter.from_pretrained(
            "ocdit-tiny", device="cpu", settings=replace(alone, distractors=count, seed=1)
        )
        segmenter.set_objects(library, absent)
        assert segmenter.objects.count == len(absent) + min(count, 8 - len(absent))
        result = segmenter.segment(image)
        assert {instance.object_id for instance in result.instances} <= set(absent)
        claimed = sum(int(instance.mask.sum()) for instance in result.instances)
        if not count:
            before = claimed
    assert claimed < before


def test_presence_takes_a_network_with_presence_tokens(segmenter, library):
    image, targets, _ = next(scenes())
    segmenter.set_objects(library, targets)
    with pytest.raises(ConfigError, match="no presence tokens"):
        segmenter.presence(image)
    torch.manual_seed(0)
    sizes = dataclasses.replace(
        segmenter._model.config.denoiser, representation=RepresentationConfig(projection=False), depth=1
    )
    model = OCDiT(dataclasses.replace(segmenter._model.config, denoiser=sizes))
    entangled = Segmenter(model, name="untrained", device="cpu", feature_cache=None)
    entangled.set_objects(library, targets)
    scores = entangled.presence(image)
    assert list(scores) == list(targets)
    assert all(-1 <= score <= 1 for score in scores.values())


def test_targets_beyond_the_positions_can_share_one_run(library):
    image, _, _ = next(scenes())
    settings = replace(recommended_settings("ocdit-tiny"), positions="interpolate")
    segmenter = Segmenter.from_pretrained("ocdit-tiny", device="cpu", settings=settings)
    segmenter.set_objects(library)
    assert len(segmenter.objects.runs) == 1
    assert segmenter.objects.count == len(library) > 8
    assert segmenter.segment(image).instances


def test_crops_and_the_guided_crop_still_find_the_objects(library):
    settings = replace(recommended_settings("ocdit-tiny"), crops=5, guided_crop=True)
    assert mean_iou(Segmenter.from_pretrained("ocdit-tiny", device="cpu", settings=settings), library, 2) > 0.5


def test_objects_with_few_views_stand_beside_those_with_many(tmp_path, library):
    image, targets, masks = next(scenes())
    folder = tmp_path / "library"
    for name in targets:
        templates = library[name]
        save_templates(folder, templates.exactly(5) if name == targets[0] else templates)
    mixed = Segmenter.from_pretrained("ocdit-tiny", device="cpu")
    mixed.set_objects(ObjectLibrary(folder), targets)
    found = {instance.object_id: instance.mask for instance in mixed.segment(image).instances}
    assert float(np.mean([mask_iou(found[name], mask) if name in found else 0.0 for name, mask in masks.items()])) > 0.5


def test_a_refused_target_set_changes_nothing(segmenter, library):
    segmenter.set_objects(library, ["melon"])
    with pytest.raises(UnknownObjectError, match=r"unknown object 'nessie', 'yeti': the library holds camouflage_mug"):
        segmenter.set_objects(library, ["lamp", "nessie", "yeti"])
    with pytest.raises(ConfigError, match="no target objects"):
        segmenter.set_objects(library, [])
    with pytest.raises(ConfigError, match="named twice"):
        segmenter.set_objects(library, ["lamp", "lamp"])
    assert segmenter.object_ids == ("melon",)


def test_bad_images_are_refused(segmenter, library):
    segmenter.set_objects(library, ["melon"])
    for image in (
        np.full((10, 10, 3), np.nan, np.float32),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10, 10, 7), np.uint8),
    ):
        with pytest.raises(ImageError):
            segmenter.segment(image)
    assert segmenter.segment(np.zeros((64, 64, 3), np.uint8)).image_size == (64, 64)


def test_no_targets_and_no_model(segmenter):
    with pytest.raises(OcditError, match="no target objects are set"):
        Segmenter.from_pretrained("ocdit-tiny", device="cpu").segment(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(WeightsError, match=r"no model 'ocdit-huge'.*embedded models \(ocdit-tiny\)"):
        Segmenter.from_pretrained("ocdit-huge")
    with pytest.raises(ConfigError, match="device"):
        Segmenter.from_pretrained("ocdit-tiny", device="abacus")


def test_a_model_recommends_its_settings(tmp_path, library):
    recommended = recommended_settings("ocdit-tiny")
    assert recommended.image_size == (368, 480)
    shutil.copytree(find_weights("ocdit-tiny"), tmp_path / "own")
    (tmp_path / "own" / "inference.yaml").write_text("image_size: [128, 160]\nscore_threshold: 0.99\n")
    segmenter = Segmenter.from_pretrained(tmp_path / "own", device="cpu")
    assert segmenter.settings == InferenceSettings(image_size=(128, 160), score_threshold=0.99)
    (tmp_path / "own" / "inference.yaml").write_text("image_size: [128, 100]\n")
    with pytest.raises(ConfigError, match=r"image_size: \[128, 100\] must be positive multiples of 16"):
        Segmenter.from_pretrained(tmp_path / "own", device="cpu")


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 1000), (33, 17)])
def test_letterbox_inverse_undoes_forward(size):
    box = Letterbox(image_size=size, canvas_size=(128, 160))
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    image = np.stack([255 * rows / size[0], 255 * columns / size[1], 0 * rows], axis=-1).astype(np.uint8)
    canvas = box.forward(image)
    assert canvas.shape == (128, 160, 3)
    back = box.inverse(canvas[..., 1].astype(np.float32))
    assert back.shape == size
    assert np.abs(back - image[..., 1]).mean() < 3
