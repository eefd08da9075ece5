import numpy as np
import pytest
import trimesh

from ocdit_core.errors import ConfigError, ImageError, UnknownObjectError
from ocdit_core.evaluation import baselines
from ocdit_core.evaluation.baselines import ColourBackProjection, FeatureMatching
from ocdit_core.evaluation.methods import method_spec
from ocdit_core.masks import mask_iou
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects

COLOURS = {"red": (200, 30, 30), "blue": (30, 60, 200), "green": (40, 160, 50), "yellow": (230, 200, 30)}
SHAPES = {"red": (0.03, 0.1), "blue": (0.06, 0.02), "green": (0.05, 0.05), "yellow": (0.02, 0.12)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Four cylinders of different shapes, each of two shades of its colour."""
    folder = tmp_path_factory.mktemp("baselines")
    for name, colour in COLOURS.items():
        radius, height = SHAPES[name]
        mesh = trimesh.creation.cylinder(radius=radius, height=height, sections=24)
        colours = np.tile([*colour, 255], (len(mesh.vertices), 1))
        colours[mesh.vertices[:, 2] > 0, :3] = np.array(colour) // 2 + 60
        mesh.visual.vertex_colors = colours
        mesh.export(folder / f"{name}.ply")
    add_objects(folder / "lib", sorted(folder.glob("*.ply")))
    return ObjectLibrary(folder / "lib")


@pytest.fixture(scope="module")
def features():
    return method_spec("cnos", device="cpu").open()


@pytest.fixture(scope="module")
def colours():
    return method_spec("colour").open()


@pytest.fixture(params=["colours", "features"])
def method(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def few_proposals(monkeypatch):
    monkeypatch.setattr(baselines, "_PROPOSALS", 120)


def scene(library, present, seed=0):
    """Templates pasted on a noisy grey image of 300 x 440, a little darker, with the exact masks."""
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


def test_the_colour_baseline_tells_objects_apart(library, colours):
    colours.set_objects(library, sorted(COLOURS))
    overlaps, false_masks = [], 0
    for seed, present in enumerate([("red", "blue"), ("green", "yellow", "red")]):
        image, masks = scene(library, present, seed)
        found = {one.object_id: one.mask for one in colours.segment(image).instances if one.score >= colours.threshold}
        overlaps += [
            mask_iou(found[name], mask) if name in found else 0.0 for name, mask in zip(present, masks, strict=True)
        ]
        false_masks += len(set(found) - set(present))
    assert np.mean(overlaps) > 0.8, overlaps
    assert false_masks <= 1


@pytest.mark.weights
def test_the_feature_baseline_finds_every_instance(library, features):
    present = ("red", "blue", "green", "red", "yellow")
    image, masks = scene(library, present)
    features.set_objects(library, sorted(COLOURS))
    found = features.segment(image).instances
    assert sorted(one.object_id for one in found[:5]) == sorted(present)
    for name, mask in zip(present, masks, strict=True):
        assert max(mask_iou(one.mask, mask) for one in found[:5] if one.object_id == name) > 0.8, name


def test_absent_objects_score_less_than_present_ones(library, features):
    image, _ = scene(library, ("yellow", "green"), seed=1)
    features.set_objects(library, sorted(COLOURS))
    best = {}
    for one in features.segment(image).instances:
        best.setdefault(one.object_id, one.score)
    assert min(best["yellow"], best["green"]) > max(best.get("red", 0.0), best.get("blue", 0.0))


def test_results_of_the_feature_baseline_hardly_overlap(library, features):
    image, _ = scene(library, ("red", "blue", "green"), seed=3)
    features.set_objects(library, sorted(COLOURS))
    masks = [one.mask for one in features.segment(image).instances]
    assert 3 < len(masks) <= 40
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            # A pixel of rounding along the boundary, from the reduced image to the full one.
            assert (mask & other).sum() <= 0.53 * min(mask.sum(), other.sum()) + 2 * np.sqrt(mask.sum()) + 8


def test_the_result_is_complete_and_repeatable(library, method):
    method.set_objects(library, ["red", "yellow"])
    image, _ = scene(library, ("yellow", "red"), 3)
    before = image.copy()
    result = method.segment(image)
    np.testing.assert_array_equal(image, before)
    assert result.image_size == (300, 440)
    assert result.target_ids == ("red", "yellow")
    assert result.timings["total"] > 0
    scores = [one.score for one in result.instances]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    for one in result.instances:
        assert one.mask.shape == (300, 440)
        x, y, width, height = one.box
        assert one.mask[y : y + height, x : x + width].sum() == one.mask.sum() > 0
    again = method.segment(image)
    assert [(a.object_id, a.score) for a in again.instances] == [(b.object_id, b.score) for b in result.instances]
    assert all(mask_iou(a.mask, b.mask) == 1 for a, b in zip(result.instances, again.instances, strict=True))


def test_an_image_of_one_colour_has_no_results(library, method):
    method.set_objects(library, ["red"])
    for shape in [(1, 1, 3), (5, 900, 3), (64, 64)]:
        result = method.segment(np.full(shape, 130, np.uint8))
        assert result.image_size == shape[:2]
        assert not [one for one in result.instances if one.score >= method.threshold]


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
    method = FeatureMatching(model)
    method.set_objects(library, ["red", "blue"])
    templates = library["red"]
    patches, inside = method._encode(templates.rgb, templates.mask)
    assert patches.shape == (len(templates), 16, model.backbone.channels)
    assert inside.any(1).all()
    np.testing.assert_allclose(np.diag(method._similarity((patches, inside), (patches, inside))), 1, atol=1e-5)
    assert method.segment(scene(library, ("red",))[0]).instances


def test_regions_are_cut_out_as_templates_show_objects(library):
    """A template, pasted into an image, enlarged with it, and cut out again is that template."""
    templates = library["red"]
    masks = np.zeros((1, 200, 260), bool)
    masks[0, 20:148, 70:198] = templates.mask[0]
    inner = np.zeros((200, 260, 3), np.uint8)
    inner[20:148, 70:198] = templates.rgb[0]
    image = np.where(masks[0][..., None], inner, 99).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    crops, covers = baselines._crop_regions(image, masks, (128, 128))
    assert mask_iou(covers[0], templates.mask[0]) > 0.93
    both = covers[0] & templates.mask[0]
    assert np.abs(crops[0][both].astype(float) - templates.rgb[0][both]).mean() < 4
    assert not crops[0][~covers[0]].any()


@pytest.mark.parametrize("kind", [ColourBackProjection, lambda: method_spec("cnos", device="cpu").open()])
def test_invalid_input_is_refused(library, kind):
    method = kind()
    with pytest.raises(ConfigError, match="set_objects"):
        method.segment(np.zeros((9, 9, 3), np.uint8))
    method.set_objects(library, ["red"])
    with pytest.raises(UnknownObjectError, match="pink"):
        method.set_objects(library, ["blue", "pink"])
    with pytest.raises(ConfigError, match="no target"):
        method.set_objects(library, [])
    assert method.segment(np.zeros((9, 9, 3), np.uint8)).target_ids == ("red",)
    with pytest.raises(ImageError):
        method.segment(np.zeros((9, 9), np.int32))


def test_baselines_have_no_settings():
    for method in ("colour", "cnos"):
        with pytest.raises(ConfigError, match=f"{method} has no settings"):
            method_spec(method, overrides=["blur=0.1"])
