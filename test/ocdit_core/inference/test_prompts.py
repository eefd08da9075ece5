"""Prompts: their form and their file, and the mechanics of what they do, with an untrained network."""

import json
import re

import numpy as np
import pytest
import torch
from test_segmenter import image_of, make_model, make_segmenter

from ocdit_core import ObjectLibrary
from ocdit_core.errors import ConfigError, ImageError, UnknownObjectError
from ocdit_core.inference.crops import Crop
from ocdit_core.inference.prompted import Evidence
from ocdit_core.inference.prompts import Prompt, parse_prompt, read_prompts
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import InferenceSettings, RefineSettings
from ocdit_core.masks import encode_mask, mask_iou
from ocdit_core.models.matching_prior import MatchingPriorConfig

SIZE = (96, 128)


@pytest.fixture(scope="module")
def segmenter(rendered_library):
    return make_segmenter(ObjectLibrary(rendered_library), refine=True)


@pytest.fixture(scope="module")
def can(segmenter, rendered_library):
    """One target: the masks of an untrained network cover each other."""
    return segmenter.encode_objects(ObjectLibrary(rendered_library), ["can"])


def mask_of(x, y, width, height) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def blocks(*boxes) -> np.ndarray:
    """Return an image with red blocks on grey."""
    image = np.random.default_rng(0).integers(100, 110, (*SIZE, 3), np.uint8)
    for box in boxes:
        image[mask_of(*box)] += np.array([80, 0, 0], np.uint8)
    return image


def test_a_file_holds_prompts_of_every_kind(tmp_path):
    entries = [
        {"object_id": "can", "points": [[30, 20], [31.5, 22]], "negative": [[9, 9]]},
        {"object_id": "can", "scribble": [[1, 2], [3, 4], [5, 6]]},
        {"object_id": "box", "box": [10, 20, 30, 40]},
        {"object_id": "mug", "mask": encode_mask(mask_of(5, 6, 7, 8))},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(entries))
    points, scribble, box, mask = read_prompts(tmp_path / "prompts.json")
    assert (points.object_id, points.points, points.negative) == ("can", ((30, 20), (31.5, 22)), ((9, 9),))
    assert scribble.scribble == ((1, 2), (3, 4), (5, 6))
    assert list(box.box) == [10, 20, 30, 40]
    assert (mask.mask == mask_of(5, 6, 7, 8)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("[", "damaged JSON"),
        ("{}", "must be a list of prompts"),
        ("[]", "must be a list of prompts"),
        ('[{"object_id": "can", "points": [[1, 2]]}, 7]', "prompt 2: 7 has no object_id"),
        ('[{"object_id": "can", "point": [1, 2]}]', "prompt 1: unknown key 'point'; use object_id, points, "),
        ('[{"object_id": "can"}]', "prompt 1: prompt for can: has no points, scribble, box or mask"),
        ('[{"object_id": "can", "points": [1, 2]}]', "points: [1, 2] is not a list of points (x, y)"),
        ('[{"object_id": "can", "points": [[1, 2, 3]]}]', "is not a list of points"),
        ('[{"object_id": "can", "scribble": [[1, NaN]]}]', "scribble: [[1, nan]] is not a list of points"),
        ('[{"object_id": "can", "negative": "here"}]', "negative: 'here' is not a list of points"),
        ('[{"object_id": "can", "mask": {"size": [2, 2], "counts": [9]}}]', "prompt 1: run lengths"),
    ],
)
def test_malformed_files_are_refused_by_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(ImageError, match=re.escape(message)) as error:
        read_prompts(tmp_path / "prompts.json")
    assert "prompts.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_are_points_and_boxes():
    point, box = parse_prompt("my@mug@320,240.5"), parse_prompt("drill@box:40,60,200,120")
    assert (point.object_id, point.points) == ("my@mug", ((320, 240.5),))
    assert (box.object_id, box.box, box.points) == ("drill", (40, 60, 200, 120), ())
    for text in ("mug", "mug@", "@1,2", "mug@1", "mug@1,2,3", "mug@1,b", "mug@box:1,2,3", "mug@circle:1,2,3,4"):
        with pytest.raises(ImageError, match="is not OBJECT@X,Y or OBJECT@box:X,Y,WIDTH,HEIGHT"):
            parse_prompt(text)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [(128, 5)]}, "point (128, 5) is outside the image of 128 x 96 pixels"),
        ({"points": [(5, 5)], "negative": [(-1, 5)]}, "point (-1, 5) is outside"),
        ({"scribble": [(5, 5), (5, 1e12)]}, "point (5, 1e+12) is outside"),
        ({"box": (100, 5, 29, 10)}, "box (100, 5, 29, 10) (x, y, width, height) is not inside the image"),
        ({"box": (5, 5, 0, 10)}, "is not inside the image"),
        ({"box": (5, 5, 10)}, "is neither a box"),
        ({"box": "5,5,10,10"}, "is neither a box"),
        ({"mask": np.zeros(SIZE, bool)}, "the mask is empty"),
        ({"mask": np.ones((9, 9), bool)}, "a mask must be bool and of the image's size"),
        ({"mask": np.ones(SIZE, np.uint8)}, "a mask must be bool"),
    ],
)
def test_prompts_outside_of_the_image_are_refused(segmenter, prompt, message):
    with pytest.raises(ImageError, match=re.escape(message)) as error:
        segmenter.segment(image_of(SIZE), prompts=[Prompt(object_id="can", **prompt)])
    assert str(error.value).startswith("prompt for can: ")


def test_objects_and_models_that_are_missing_are_named(segmenter, rendered_library):
    with pytest.raises(UnknownObjectError, match="unknown object 'cup'"):
        segmenter.segment(image_of(SIZE), prompts=[Prompt(object_id="cup", points=[(1, 1)])])
    coarse = make_segmenter(ObjectLibrary(rendered_library))
    with pytest.raises(ConfigError, match="prompts need a refine model, and untrained has none"):
        coarse.segment(image_of(SIZE), prompts=[Prompt(object_id="can", points=[(1, 1)])])


@pytest.mark.parametrize("kind", [{"box": (20, 10, 60, 50)}, {"mask": mask_of(20, 10, 60, 50)}])
def test_boxes_and_masks_bound_their_instance(segmenter, can, kind):
    image = blocks((20, 10, 60, 50))
    (found,) = segmenter.segment(image, can, prompts=[Prompt(object_id="can", **kind)]).instances
    assert mask_iou(found.mask, mask_of(20, 10, 60, 50)) > 0.9
    assert not (found.mask & ~mask_of(20, 10, 60, 50)).any()


def test_a_prompt_restricts_its_own_object_alone(segmenter):
    image = image_of(SIZE)
    plain = segmenter.segment(image)
    assert {one.object_id for one in plain.instances} == {"mug"}
    # Every mask in the box shows a negative point.
    everywhere = [(x, y) for x in range(128) for y in range(96)]
    away = segmenter.segment(image, prompts=[Prompt(object_id="mug", box=(8, 8, 99, 80), negative=everywhere)])
    assert away.target_ids == plain.target_ids
    assert away.instances
    assert "mug" not in {one.object_id for one in away.instances}
    same = segmenter.segment(image, prompts=[Prompt(object_id="can", box=(8, 8, 99, 80), negative=everywhere)])
    assert [one.box for one in same.instances] == [one.box for one in plain.instances]


def test_two_prompts_are_two_instances(segmenter, can):
    boxes = [(10, 10, 40, 60), (70, 10, 40, 60)]
    prompts = [Prompt(object_id="can", box=box) for box in boxes]
    masks = [one.mask for one in segmenter.segment(blocks(*boxes), can, prompts=prompts).instances]
    assert len(masks) == 2
    assert all(any(mask_iou(mask, mask_of(*box)) > 0.9 for mask in masks) for box in boxes)


def test_negative_points_veto(segmenter, can):
    plain = [one.mask for one in segmenter.segment(image_of(SIZE), can).instances]
    y, x = np.argwhere(plain[0])[0]
    away = segmenter.segment(image_of(SIZE), can, prompts=[Prompt(object_id="can", negative=[(x, y)])])
    assert not any(one.mask[y, x] for one in away.instances)


def test_a_prompt_map_shows_the_part_of_the_crop():
    mask = mask_of(20, 10, 60, 50)
    crop = Crop(box=(16, 0, 64, 64), input_size=(128, 128))  # twice as large
    points = Evidence(Prompt(object_id="can", points=[(26, 30), (100, 30)], negative=[(16, 0)]), ["can"], SIZE)
    on, off, box, region = points.map(crop)
    assert np.argwhere(on).tolist() == [[15, 5]]  # (20, 60) on the input; the other point is outside
    assert np.argwhere(off).tolist() == [[0, 0]]
    assert not box.any()
    assert not region.any()
    expected = np.zeros((32, 32))
    expected[5:30, 2:32] = 1
    (_, _, box, _), (_, _, _, region) = (
        Evidence(Prompt(object_id="can", **place), ["can"], SIZE).map(crop)
        for place in ({"box": (20, 10, 60, 50)}, {"mask": mask})
    )
    assert np.abs(box - expected).max() < 0.5  # half a square at most, at the edges
    assert (box == region).all()


def test_models_trained_with_prompts_see_them(rendered_library):
    prior = MatchingPriorConfig(metric_channels=8, hidden_channels=8)
    refine = make_model(prompts=True, matching_prior=prior)
    torch.nn.init.normal_(refine.prompts.layers[-1].weight)
    image, prompt = image_of(SIZE), Prompt(object_id="can", mask=mask_of(20, 10, 60, 50))

    def found(shown: bool, *prompts: Prompt):
        segmenter = Segmenter(
            make_model(),
            name="untrained",
            device="cpu",
            settings=InferenceSettings(score_threshold=0.0, refine=RefineSettings(prompts=shown)),
            feature_cache=None,
            refine=refine,
        )
        segmenter.set_objects(ObjectLibrary(rendered_library), ["can"])
        return segmenter.segment(image, prompts=prompts).instances

    with_it, without = (found(shown, prompt)[0].score for shown in (True, False))
    assert with_it != without
    assert [one.score for one in found(True)] == [one.score for one in found(False)]


def test_prompts_of_a_batch_belong_to_their_images(segmenter):
    images = [image_of(SIZE), blocks((20, 10, 60, 50))]
    prompt = Prompt(object_id="can", box=(20, 10, 60, 50))
    plain, prompted = segmenter.segment_batch(images, prompts=[(), [prompt]])
    assert "can" in {one.object_id for one in prompted.instances}
    alone = segmenter.segment(images[1], prompts=[prompt])
    assert [one.box for one in prompted.instances] == [one.box for one in alone.instances]
    assert [one.box for one in plain.instances] == [one.box for one in segmenter.segment(images[0]).instances]
