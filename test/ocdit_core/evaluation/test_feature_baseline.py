import dataclasses

import numpy as np
import pytest
import trimesh

from ocdit_core.errors import ConfigError, ImageError, UnknownObjectError
from ocdit_core.evaluation.feature_baseline import FeatureMatching, FeatureSettings, _crop_regions
from ocdit_core.masks import mask_iou
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects

COLOURS = {"red": (200, 30, 30), "blue": (30, 60, 200), "green": (40, 160, 50), "yellow": (230, 200, 30)}
QUICK = FeatureSettings(proposals=120)
SHAPES = {"red": (0.03, 0.1), "blue": (0.06, 0.02), "green": (0.05, 0.05), "yellow": (0.02, 0.12)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Four cylinders of different shapes and colours."""
    folder = tmp_path_factory.mktemp("cnos")
    for name, colour in COLOURS.items():
        radius, height = SHAPES[name]
        mesh = trimesh.creation.cylinder(radius=radius, height=height, sections=24)
        mesh.visual.vertex_colors = np.tile([*colour, 255], (len(mesh.vertices), 1))
        mesh.export(folder / f"{name}.ply")
    add_objects(folder / "lib", sorted(folder.glob("*.ply")))
    return ObjectLibrary(folder / "lib")


@pytest.fixture(scope="module")
def method():
    return FeatureMatching.from_pretrained("ocdit-small", settings=QUICK)


def picture(library, present, seed=0):
    """Views of objects pasted on a noisy grey picture of 300 x 440, a little darker, with the exact masks."""
    rng = np.random.default_rng(seed)
    image = rng.normal(130, 8, (300, 440, 1)).repeat(3, axis=2)
    masks = []
    for place, name in enumerate(present):
        templates = library[name]
        view = rng.integers(len(templates))
        top, left = 10 + 145 * (place // 3), 10 + 142 * (place % 3)
        mask = np.zeros((300, 440), bool)
        mask[top : top + 128, left : left + 128] = templates.mask[view]
        image[mask] = 0.85 * templates.rgb[view][templates.mask[view]]
        masks.append(mask)
    return np.clip(image, 0, 255).astype(np.uint8), masks


@pytest.mark.weights
def test_every_instance_of_every_object_is_found(library, method):
    present = ("red", "blue", "green", "red", "yellow")
    image, masks = picture(library, present)
    method.set_objects(library, sorted(COLOURS))
    found = method.segment(image).instances
    assert sorted(one.object_id for one in found[:5]) == sorted(present)
    for name, mask in zip(present, masks, strict=True):
        assert max(mask_iou(one.mask, mask) for one in found[:5] if one.object_id == name) > 0.8, name


def test_absent_objects_score_less_than_present_ones(library, method):
    image, _ = picture(library, ("yellow", "green"), seed=1)
    careful = FeatureMatching.from_pretrained("ocdit-small", settings=dataclasses.replace(QUICK, score_threshold=0.0))
    careful.set_objects(library, sorted(COLOURS))
    best = {}
    for one in careful.segment(image).instances:
        best.setdefault(one.object_id, one.score)
    assert min(best["yellow"], best["green"]) > max(best.get("red", 0.0), best.get("blue", 0.0))


def test_the_result_is_whole_and_repeatable(library, method):
    method.set_objects(library, ["red", "yellow"])
    image, _ = picture(library, ("yellow", "red", "red"), seed=2)
    before = image.copy()
    result = method.segment(image)
    np.testing.assert_array_equal(image, before)
    assert result.image_size == (300, 440)
    assert result.target_ids == ("red", "yellow")
    assert result.timings["total"] >= result.timings["proposals"] > 0
    scores = [one.score for one in result.instances]
    assert scores == sorted(scores, reverse=True)
    assert all(0.5 <= score <= 1 for score in scores)
    for one in result.instances:
        x, y, width, height = one.box
        assert one.mask.shape == (300, 440)
        assert one.mask[y : y + height, x : x + width].sum() == one.mask.sum() > 0
    again = method.segment(image)
    assert [(a.object_id, a.score) for a in again.instances] == [(b.object_id, b.score) for b in result.instances]
    assert all(mask_iou(a.mask, b.mask) == 1 for a, b in zip(result.instances, again.instances, strict=True))


def test_results_hardly_overlap_and_are_no_more_than_asked_for(library):
    image, _ = picture(library, ("red", "blue", "green"), seed=3)
    all_of_them = dataclasses.replace(QUICK, score_threshold=0.0, instances=12)
    method = FeatureMatching.from_pretrained("ocdit-small", settings=all_of_them)
    method.set_objects(library, sorted(COLOURS))
    masks = [one.mask for one in method.segment(image).instances]
    assert 3 < len(masks) <= 12
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            # A pixel's worth of rounding along the rim, from the reduced picture to the full one.
            assert (mask & other).sum() <= 0.53 * min(mask.sum(), other.sum()) + 2 * np.sqrt(mask.sum()) + 8


@pytest.mark.parametrize("kind", ["vit", "efficientnet_lite"])
def test_any_backbone_gives_features(library, kind):
    architecture = {
        "model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2,
        "patch_size": 14, "image_size": 56,
    }  # fmt: skip
    backbone = BackboneConfig(kind=kind, name="", architecture=architecture if kind == "vit" else None)
    vae = MaskVAEConfig(channels=(8, 8, 8))
    model = OCDiT(
        OCDiTConfig(
            image_size=(64, 64),
            template_size=(64, 64),
            backbone=backbone,
            vae=vae,
            denoiser=DenoiserConfig(width=24, depth=1, heads=2, max_objects=2, max_views=2),
        )
    )
    settings = dataclasses.replace(QUICK, weights={"global": 1.0, "patches": 1.0}, score_threshold=0.0)
    method = FeatureMatching(model, settings=settings)
    method.set_objects(library, ["red", "blue"])
    templates = library["red"]
    crops = method._encode(templates.rgb, templates.mask)
    channels = model.backbone.channels
    assert crops.patches.shape == (len(templates), 16, channels)
    if kind == "vit":
        assert crops.class_tokens.shape == (len(templates), channels)
    for similarity in method._similarities(crops, crops):
        np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    assert method.segment(picture(library, ("red",))[0]).instances


def test_regions_are_cut_out_as_templates_show_objects(library):
    """A view, pasted into a picture, enlarged to it, and cut out again is that view."""
    templates = library["red"]
    masks = np.zeros((1, 200, 260), bool)
    image = np.full((400, 520, 3), 99, np.uint8)
    masks[0, 20:148, 70:198] = templates.mask[0]
    inner = np.zeros((200, 260, 3), np.uint8)
    inner[20:148, 70:198] = templates.rgb[0]
    image = np.where(masks[0][..., None], inner, 99).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    crops, covers = _crop_regions(image, masks, (128, 128))
    assert mask_iou(covers[0], templates.mask[0]) > 0.93
    both = covers[0] & templates.mask[0]
    assert np.abs(crops[0][both].astype(float) - templates.rgb[0][both]).mean() < 4
    assert not crops[0][~covers[0]].any()


def test_bad_input_is_refused(library):
    method = FeatureMatching.from_pretrained("ocdit-small")
    with pytest.raises(ConfigError, match="set_objects"):
        method.segment(np.zeros((9, 9, 3), np.uint8))
    method.set_objects(library, ["red"])
    with pytest.raises(UnknownObjectError, match="pink"):
        method.set_objects(library, ["blue", "pink"])
    with pytest.raises(ConfigError, match="no target"):
        method.set_objects(library, [])
    result = method.segment(np.zeros((9, 9, 3), np.uint8))
    assert (result.target_ids, result.instances) == (("red",), ())
    with pytest.raises(ImageError):
        method.segment(np.zeros((9, 9), np.int32))
    for changes, said in (
        ({"best_views": 0}, "best_views"),
        ({"weights": {"colours": 1.0}}, "weights.colours: unknown cue"),
    ):
        with pytest.raises(ConfigError, match=said):
            dataclasses.replace(FeatureSettings(), **changes)
