"""The coarse stage, the refine stage and labelling on a network that sees colours: object 0 is red, 1 green, 2 blue."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ocdit_core.errors import ConfigError, ImageError
from ocdit_core.inference.coarse import CoarseStage
from ocdit_core.inference.labelling import label_regions
from ocdit_core.inference.postprocess import Candidate
from ocdit_core.inference.refine import MAX_PROPOSALS, RefineStage
from ocdit_core.inference.settings import InferenceSettings, RefineSettings
from ocdit_core.masks import mask_iou, tight_box
from ocdit_core.models.denoiser import TargetTokens
from ocdit_core.models.ocdit import ImageFeatures, TargetSet, TemplateFeatures

INPUT = (96, 128)
SIZE = (120, 160)
NAMES = ("red", "green", "blue")


class ColourNetwork:
    """Stands for a `Network`: the probability of an object at a pixel is the value of its colour channel."""

    def __init__(self):
        self.model = SimpleNamespace(config=SimpleNamespace(image_size=INPUT), prior=object())
        self.encoded, self.generated = [], []

    def encode(self, images):
        self.encoded.append(images.shape)
        return ImageFeatures(features=torch.from_numpy(images).movedim(-1, 1).float() / 255)

    def generate(self, image, targets, crops=1, *, prompts=None):
        self.generated.append(crops)
        indices = targets.tokens.object_indices
        features = image.features.unflatten(0, (len(indices), -1))
        masks = np.stack([features[b][:, indices[b]].numpy() for b in range(len(indices))])
        return masks, np.ones(masks.shape[:3], np.float32)

    def match(self, image, targets):
        return self.generate(image, targets)[0][:, 0]


def targets(indices) -> TargetSet:
    """Sets of objects, (B, O) numbers of colour channels."""
    indices = torch.tensor(indices)
    return TargetSet(
        tokens=TargetTokens(keys_values=(), object_indices=indices),
        templates=TemplateFeatures(features=torch.zeros(*indices.shape, 1)),
    )


RUNS = [targets([[0, 1]]), targets([[2]])]
SINGLES = targets([[0], [1], [2]])
SQUARES = {"red": (30, 40, 24, 24), "green": (90, 20, 40, 30), "blue": (100, 80, 30, 20)}


def draw(size=SIZE, squares=None) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    for name, (x, y, width, height) in (SQUARES if squares is None else squares).items():
        image[y : y + height, x : x + width, NAMES.index(name)] = 255
    return image


def full_mask(candidate: Candidate, size=SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[candidate.part] = candidate.mask
    return mask


def assert_in_place(probabilities: np.ndarray, image: np.ndarray) -> None:
    assert probabilities.shape == (3, *image.shape[:2])
    for found, wanted in zip(probabilities > 0.5, np.moveaxis(image, -1, 0) > 0, strict=True):
        assert mask_iou(found, wanted) > 0.9


@pytest.mark.parametrize(
    "settings", [{}, {"crops": 7}, {"guided_crop": True}, {"crops": 2, "guided_crop": True, "image_size": (64, 64)}]
)
def test_objects_of_all_runs_are_found_in_their_places(settings):
    stage = CoarseStage(ColourNetwork(), InferenceSettings(**settings))
    images = [
        draw(),
        draw((200, 150), {"red": (20, 30, 60, 60), "green": (90, 20, 40, 30), "blue": (100, 150, 40, 40)}),
    ]
    for image, found in zip(images, stage.segment(images, RUNS), strict=True):
        assert_in_place(found, image)
        (alone,) = stage.segment([image], RUNS)
        np.testing.assert_allclose(found, alone, atol=1e-6)


def test_images_and_their_crops_are_one_batch_for_each_run():
    network = ColourNetwork()
    CoarseStage(network, InferenceSettings(crops=2)).segment([draw(), draw()], RUNS)
    assert network.encoded == [(6, *INPUT, 3)]
    assert network.generated == [3, 3]


def test_the_guided_crop_shows_small_objects_larger():
    image = draw((480, 640), {"red": (300, 200, 9, 9)})
    wanted = image[..., 0] > 0
    once, twice = (
        CoarseStage(ColourNetwork(), InferenceSettings(guided_crop=guided)).segment([image], RUNS)[0][0] > 0.5
        for guided in (False, True)
    )
    assert mask_iou(twice, wanted) > mask_iou(once, wanted)


def test_the_prior_proposes_at_the_fine_size():
    image = draw((480, 640), {"red": (300, 200, 9, 9), "blue": (600, 440, 30, 30)})
    stage = CoarseStage(ColourNetwork(), InferenceSettings(fine_image_size=(480, 640)))
    assert_in_place(stage.match(image, RUNS), image)
    assert CoarseStage(ColourNetwork(), InferenceSettings()).match(image, RUNS) is None


def refine_stage(**refine) -> RefineStage:
    return RefineStage(ColourNetwork(), InferenceSettings(refine=RefineSettings(**refine)))


def proposal(name: str, box, score=0.9) -> Candidate:
    x, y, width, height = box
    mask = np.ones((height, width), bool)
    return Candidate(
        target=NAMES.index(name),
        score=score,
        region=(x, y, width, height),
        probabilities=mask.astype(np.float32),
        mask=mask,
    )


@pytest.mark.parametrize("crops", [1, 4, 9])
def test_proposals_become_masks_of_their_objects(crops):
    image, stage = draw(), refine_stage(crops=crops)
    refined = stage.refine(image, [proposal(name, box) for name, box in SQUARES.items()], SINGLES)
    refined.sort(key=lambda one: one.target)
    assert [NAMES[one.target] for one in refined] == list(SQUARES)
    for one in refined:
        assert mask_iou(full_mask(one), image[..., one.target] > 0) > 0.85
    # Once for all crops of all proposals.
    assert len(stage._network.encoded) == len(stage._network.generated) == 1


def test_a_proposal_without_its_object_is_dropped():
    image = draw()
    kept = refine_stage().refine(image, [proposal("green", SQUARES["red"]), proposal("red", SQUARES["red"])], SINGLES)
    assert [NAMES[one.target] for one in kept] == ["red"]
    assert refine_stage().refine(image, [], SINGLES) == []


def test_later_rounds_crop_around_what_was_found():
    image = draw(squares={"red": (40, 30, 60, 60)})
    corner = proposal("red", (40, 30, 30, 30))
    overlaps = []
    for rounds in (1, 4):
        (found,) = refine_stage(rounds=rounds, margin=0.3).refine(image, [corner], SINGLES)
        overlaps.append(mask_iou(full_mask(found), image[..., 0] > 0))
    assert overlaps[0] < 0.7
    assert overlaps[1] > 0.9


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 0.25), (0.5, 0.5), (0.0, 1.0)])
def test_the_score_is_a_weighted_geometric_mean(weight, expected):
    (found,) = refine_stage(coarse_weight=weight).refine(draw(), [proposal("red", SQUARES["red"], 0.25)], SINGLES)
    assert found.score == pytest.approx(expected, abs=0.03)


def test_the_best_proposals_are_refined_and_equal_results_count_once():
    good = [proposal("red", SQUARES["red"], score) for score in np.linspace(0.2, 0.9, MAX_PROPOSALS)]
    stage = refine_stage(coarse_weight=1.0)
    (found,) = stage.refine(draw(), [*good, proposal("green", SQUARES["green"], 0.1)], SINGLES)
    assert (found.target, found.score) == (good[0].target, pytest.approx(0.9))
    assert len(stage.refine(draw(), [good[0], proposal("green", SQUARES["green"], 0.1)], SINGLES)) == 2


@pytest.mark.parametrize(("min_score", "crops"), [(0.0, [3, 3]), (0.7, [2, 1]), (0.8, [1, 1])])
def test_proposals_that_cannot_reach_the_score_are_not_refined(min_score, crops):
    image, stage = draw(), refine_stage(rounds=2, coarse_weight=0.5)
    # Of at most 0.95, 0.74 and 0.65 after both rounds; the second is less certain than that: 0.62 after the first.
    image[..., 1] //= 2
    image[image == 127] = 130
    proposals = [proposal(name, SQUARES[name], one) for name, one in zip(SQUARES, (0.8, 0.3, 0.18), strict=True)]
    everything = stage.refine(image, proposals, SINGLES)
    stage._network.encoded.clear()
    found = stage.refine(image, proposals, SINGLES, min_score=min_score)
    assert [one.score for one in found] == [one.score for one in everything if one.score >= min_score]
    assert [shape[0] for shape in stage._network.encoded] == crops


def label(image, regions, threshold=0.5, known=None):
    settings = InferenceSettings()
    return label_regions(image, regions, refine_stage(), SINGLES, NAMES, settings, threshold, known)


def test_a_region_whose_object_is_known_is_segmented_for_it_alone():
    image = draw()
    boxes = [SQUARES["red"], SQUARES["green"]]
    right, wrong = label(image, boxes, known=["red", "red"])
    assert (right.instance.object_id, set(right.scores), wrong.instance) == ("red", {"red"}, None)
    assert right.scores["red"] == label(image, boxes)[0].scores["red"]
    for known in (["red"], ["red", "hammer"]):
        with pytest.raises(ConfigError, match="are not one of the targets for each region"):
            label(image, boxes, known=known)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_regions_get_the_object_that_they_show_or_none(kind):
    image = draw()
    masks = [image[..., channel] > 0 for channel in range(3)] + [np.zeros(SIZE, bool)]
    masks[3][5:20, 5:20] = True
    labels = label(image, [tight_box(mask) for mask in masks] if kind == "boxes" else masks)
    assert [one.instance and one.instance.object_id for one in labels] == [*NAMES, None]
    for one, mask in zip(labels[:3], masks, strict=False):
        assert set(one.scores) == set(NAMES)
        assert one.instance.score == max(one.scores.values())
        assert mask_iou(one.instance.mask, mask) > 0.85
    assert all(one.instance is None for one in label(image, masks, threshold=1.01))
    assert label(image, []) == ()


def test_a_region_that_fits_worse_scores_less():
    image = draw()
    x, y, width, height = SQUARES["green"]
    exact, half = label(image, [(x, y, width, height), (x, y, width // 2, height)])
    assert half.scores["green"] < 0.7 < exact.scores["green"]


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((0, 0, 0, 10), "not inside the image"),
        ((150, 100, 20, 20), "not inside the image"),
        *(
            (wrong, r"is neither a box \(x, y, width, height\) nor a bool mask")
            for wrong in (
                (1, 2),
                (1, float("nan"), 5, 5),
                (1, 1, float("inf"), 5),
                "box!",
                ("1", "2", "3", "4"),
                None,
                [[1, 2, 3, 4]],
                [[1], [2, 3]],
                7,
                (True, True, True, True),
                {1: 2},
            )
        ),
        (np.ones(4), "a mask must be bool"),
        (np.zeros(SIZE, bool), "the mask is empty"),
        (np.ones((48, 64), bool), "of the image's size"),
    ],
)
def test_malformed_regions_and_those_outside_the_image_are_refused(region, reason):
    with pytest.raises(ImageError, match=f"region 2: .*{reason}"):
        label(draw(), [SQUARES["red"], region])
