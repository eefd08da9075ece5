"""The segmenter with an untrained network: its masks mean nothing, its mechanics are the real ones."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from builders import TINY_MODEL

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError, ImageError, OcditError, UnknownObjectError, WeightsError
from ocdit_core.inference import postprocess
from ocdit_core.inference.settings import (
    PAPER,
    InferenceSettings,
    RefineSettings,
    TrackSettings,
    find_weights,
    recommended_settings,
)
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.models.representation import RepresentationConfig

SIZES = [(96, 128), (150, 100), (33, 40), (40, 300)]


@pytest.fixture(scope="module")
def library(rendered_library):
    return ObjectLibrary(rendered_library)


def make_model(**changes) -> OCDiT:
    torch.manual_seed(0)
    model = OCDiT(dataclasses.replace(TINY_MODEL, **changes))
    with torch.no_grad():
        # A fresh model's last layers are zero: it gives the same result for every image.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def make_segmenter(library=None, *, refine=False, model=None, **settings) -> Segmenter:
    if isinstance(refine, RefineSettings):
        settings["refine"] = refine
    settings = InferenceSettings(**{"score_threshold": 0.0, "mask_threshold": 0.3, **settings})
    segmenter = Segmenter(
        model or make_model(),
        name="untrained",
        device="cpu",
        settings=settings,
        feature_cache=None,
        refine=make_model() if refine else None,
    )
    if library is not None:
        segmenter.set_objects(library)
    return segmenter


def image_of(size, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("snap", [False, True])
def test_instances_and_labels_end_at_edges_if_the_settings_say_so(library, snap, monkeypatch):
    moved = []
    monkeypatch.setattr(postprocess, "snap", lambda image, mask, *rest: moved.append(mask) or mask)
    segmenter = make_segmenter(library, refine=RefineSettings(mask_threshold=0.3, snap=snap))
    image = image_of((96, 128))
    instances = segmenter.segment(image).instances
    assert len(moved) == snap * len(instances)
    assert instances
    followed = segmenter.follow(image, [(one.object_id, one.box) for one in instances]).instances
    assert len(moved) == snap * (len(instances) + len(followed))
    labels = [one.instance for one in segmenter.label(image, [(10, 10, 40, 40)], threshold=0.0) if one.instance]
    assert len(moved) == snap * (len(instances) + len(followed) + len(labels))
    assert labels


@pytest.mark.parametrize("method", ["heun", "dpm++2m"])
def test_the_last_of_the_steps_is_what_the_result_averages(library, method):
    sampler = SamplerConfig(steps=3, method=method)
    settings = {"image_size": (96, 192), "ensemble": 2, "crops": 2, "sampler": sampler}
    segmenter, image = make_segmenter(library, **settings), image_of((96, 192))
    crops, masks = segmenter.steps(image)
    assert crops.shape == (3, 96, 192, 3)
    np.testing.assert_array_equal(crops[0], image)
    assert list(masks) == pytest.approx([80, 1.75, 0.002], rel=0.01)
    assert {one.shape for one in masks.values()} == {(6, len(library), 96, 192)}
    whole = make_segmenter(library, **{**settings, "crops": 0})
    (expected,) = whole._coarse.segment([image], whole.objects.runs)
    _, masks = whole.steps(image)
    np.testing.assert_allclose(list(masks.values())[-1].mean(0), expected, atol=1e-5)
    assert np.abs(next(iter(masks.values())).mean(0) - expected).max() > 0.01


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_results_are_well_formed_at_any_size(library, refine, size):
    segmenter = make_segmenter(library, refine=refine, fine_image_size=(96, 128), prior_weight=0.5)
    result = segmenter.segment(image_of(size), uncertainty=True)
    assert result.image_size == result.uncertainty.shape == size
    assert result.target_ids == library.object_ids
    assert result.instances
    scores = [instance.score for instance in result.instances]
    assert scores == sorted(scores, reverse=True)
    covered = np.zeros(size, int)
    for instance in result.instances:
        assert instance.object_id in library.object_ids
        assert instance.track_id is None
        x, y, width, height = instance.box
        assert instance.mask[y : y + height, x : x + width].sum() == instance.mask.sum() > 0
        covered += instance.mask
    assert covered.max() <= 1
    assert result.label_map().max() == len(result.instances)
    stages = {"backbone", "sampling", "decoding", "proposals", "instances", "total"}
    refined = {f"refine_{stage}" for stage in ("backbone", "sampling", "decoding")}
    assert set(result.timings) == (stages | refined if refine else stages)


def test_depth_changes_the_scores_unless_it_is_missing_or_has_no_weight(library):
    image, depth, K = (
        image_of((96, 128)),
        np.full((96, 128), 1000, np.uint16),
        np.array([[90, 0, 64], [0, 90, 48], [0, 0, 1]]),
    )
    segmenter = make_segmenter(library, refine=True)

    def scores(segmenter, *depths):
        results = segmenter.segment_batch([image] * len(depths), depths=depths, camera_matrices=[K] * len(depths))
        return [[instance.score for instance in result.instances] for result in results]

    plain = [instance.score for instance in segmenter.segment(image).instances]
    alone, with_depth, nothing = scores(segmenter, None, depth, 0 * depth)
    assert alone == nothing == pytest.approx(plain)
    # At 1 m, masks of half of the image are metres wide.
    assert max(with_depth) < min(plain)
    assert scores(make_segmenter(library, refine=True, size_weight=0.0), depth)[0] == pytest.approx(plain)
    assert segmenter.segment(image, depth=depth / np.float32(1000), camera_matrix=K).instances[0].score < min(plain)
    for wrong, camera, message in (
        (depth[1:], K, "register it"),
        (depth, None, "camera_matrix must"),
        (image, K, "depth must"),
    ):
        with pytest.raises(ImageError, match=message):
            segmenter.segment(image, depth=wrong, camera_matrix=camera)


@pytest.mark.parametrize(
    "settings",
    [{}, {"crops": 2, "ensemble": 2, "guided_crop": True}, {"sampler": SamplerConfig(steps=2)}],
    ids=["posterior mean", "crops and ensemble", "sampled"],
)
def test_a_batch_gives_what_each_image_gives_alone(library, settings):
    segmenter = make_segmenter(library, refine=True, **settings)
    images = [image_of(size, seed) for seed, size in enumerate(SIZES)]
    together = segmenter.segment_batch(images, uncertainty=True)
    for image, result in zip(images, together, strict=True):
        alone = segmenter.segment(image, uncertainty=True)
        assert np.abs(result.uncertainty - alone.uncertainty).max() < 1e-4
        assert [one.object_id for one in result.instances] == [one.object_id for one in alone.instances]
        for first, second in zip(result.instances, alone.instances, strict=True):
            assert first.score == pytest.approx(second.score, abs=1e-4)
            assert np.mean(first.mask != second.mask) < 1e-3
    # The images differ, so a mix-up would show.
    assert np.abs(together[0].uncertainty.mean() - together[1].uncertainty.mean()) > 1e-4
    assert together[0].timings == together[1].timings
    assert segmenter.segment_batch([]) == []


def test_the_same_input_gives_the_same_result(library):
    segmenter = make_segmenter(library, refine=True, sampler=SamplerConfig(steps=3, churn=5.0))
    first, second = (segmenter.segment(image_of((96, 128))) for _ in range(2))
    assert np.array_equal(first.label_map(), second.label_map())
    assert [one.score for one in first.instances] == [one.score for one in second.instances]


def test_the_threshold_and_the_uncertainty_are_those_of_the_call(library):
    segmenter = make_segmenter(library, score_threshold=0.9)
    image = image_of((96, 128))
    assert segmenter.segment(image).instances == ()
    everything = segmenter.segment(image, score_threshold=0.0)
    scores = [one.score for one in everything.instances]
    assert len(segmenter.segment(image, score_threshold=scores[0]).instances) == 1
    assert everything.uncertainty is None
    doubts = segmenter.segment(image, uncertainty=True).uncertainty
    assert doubts.dtype == np.float32
    assert 0 <= doubts.min() < doubts.max() <= 1


def test_settings_cannot_change(library):
    segmenter = make_segmenter(library)
    with pytest.raises(AttributeError):
        segmenter.settings = InferenceSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        segmenter.settings.ensemble = 4


def test_targets_beyond_the_positions_take_turns(library):
    model = make_model(denoiser=dataclasses.replace(TINY_MODEL.denoiser, max_objects=2))
    segmenter = make_segmenter(library, model=model)
    assert [run.tokens.object_indices.tolist() for run in segmenter.objects.runs] == [[[0, 1]], [[0]]]
    assert segmenter.objects.count == 3
    found = segmenter.segment(image_of((96, 128)))
    assert found.target_ids == library.object_ids


@pytest.mark.parametrize(("distractors", "count"), [(0, 1), (1, 2), (9, 3)])
def test_distractors_take_free_positions_and_are_not_reported(library, distractors, count):
    segmenter = make_segmenter(distractors=distractors)
    segmenter.set_objects(library, ["can"])
    assert segmenter.objects.count == count
    result = segmenter.segment(image_of((96, 128)))
    assert {instance.object_id for instance in result.instances} == {"can"}
    assert result.target_ids == ("can",)


def test_a_refused_target_set_changes_nothing(library):
    segmenter = make_segmenter()
    segmenter.set_objects(library, ["mug"])
    with pytest.raises(UnknownObjectError, match="unknown object 'nessie', 'yeti': the library holds box"):
        segmenter.set_objects(library, ["can", "nessie", "yeti"])
    with pytest.raises(ConfigError, match="no target objects"):
        segmenter.set_objects(library, [])
    with pytest.raises(ConfigError, match="named twice"):
        segmenter.set_objects(library, ["can", "can"])
    assert segmenter.object_ids == ("mug",)


def test_bad_images_are_refused(library):
    segmenter = make_segmenter(library)
    for image in (
        np.full((10, 10, 3), np.nan, np.float32),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10, 10, 7), np.uint8),
    ):
        with pytest.raises(ImageError):
            segmenter.segment(image)
        with pytest.raises(ImageError):
            segmenter.segment_batch([np.zeros((64, 64, 3), np.uint8), image])


def test_targets_and_models_that_are_missing_are_named(library):
    segmenter = make_segmenter()
    image = image_of((96, 128))
    for call in (segmenter.segment, segmenter.presence, lambda image: segmenter.label(image, [(0, 0, 9, 9)])):
        with pytest.raises(OcditError, match="no target objects are set: call set_objects first"):
            call(image)
    segmenter.set_objects(library)
    with pytest.raises(ConfigError, match="labelling needs a refine model, and untrained has none"):
        segmenter.label(image, [(0, 0, 9, 9)])
    with pytest.raises(ConfigError, match="following instances needs a refine model, and untrained has none"):
        segmenter.follow(image, [])
    with pytest.raises(ConfigError, match=r"track.interval: 4 needs a refine model, and untrained has none"):
        make_segmenter(track=TrackSettings(interval=4))
    with pytest.raises(WeightsError, match=r"no model 'ocdit-huge'.*embedded models \(ocdit-small\)"):
        Segmenter.from_pretrained("ocdit-huge")
    with pytest.raises(ConfigError, match="device"):
        Segmenter(make_model(), name="untrained", device="abacus")


def test_labels_come_from_the_refine_model(library):
    segmenter = make_segmenter(library, refine=True)
    labels = segmenter.label(image_of((96, 128)), [(10, 10, 40, 40), (50, 30, 30, 30)], threshold=0.0)
    assert len(labels) == 2
    assert all(set(one.scores) == set(library.object_ids) for one in labels)


def test_presence_is_an_estimate_for_each_target(library):
    image = image_of((96, 128))
    # A network without matching prior and presence tokens does not know.
    assert make_segmenter(library).presence(image) == dict.fromkeys(library.object_ids, 1.0)
    sizes = dataclasses.replace(TINY_MODEL.denoiser, representation=RepresentationConfig(projection=False))
    estimates = make_segmenter(library, model=make_model(denoiser=sizes)).presence(image)
    assert list(estimates) == list(library.object_ids)
    assert all(0 <= one < 1 for one in estimates.values())


def test_a_model_recommends_its_settings(tmp_path, untrained_model):
    shutil.copytree(untrained_model, tmp_path / "own")
    (tmp_path / "own" / "inference.yaml").write_text("image_size: [128, 160]\nscore_threshold: 0.99\n")
    own = InferenceSettings(image_size=(128, 160), score_threshold=0.99)
    assert Segmenter.from_pretrained(tmp_path / "own", device="cpu").settings == own
    assert recommended_settings(tmp_path / "own") == recommended_settings(tmp_path / "own", preset="fast") == own
    changed = recommended_settings(tmp_path / "own", overrides=["ensemble=4", "refine.margin=0.3"])
    assert changed == dataclasses.replace(own, ensemble=4, refine=RefineSettings(margin=0.3))
    (tmp_path / "own" / "inference.yaml").write_text("image_size: [128, 100]\n")
    with pytest.raises(ConfigError, match=r"image_size: \[128, 100\] must be positive multiples of 16"):
        Segmenter.from_pretrained(tmp_path / "own", device="cpu")


def test_the_preset_paper_is_the_paper_alone():
    paper = recommended_settings("ocdit-small", preset="paper")
    assert paper == PAPER
    assert (paper.image_size, paper.refine.image_size) == ((480, 640), (224, 224))
    assert (paper.fine_image_size, paper.refine.rounds, paper.score) == (None, 1, "mean")
    assert paper.sampler.evaluations == 17
    with pytest.raises(ConfigError, match="preset: 'quick' is not one of fast, paper"):
        recommended_settings("ocdit-small", preset="quick")


def test_the_embedded_settings_are_valid():
    assert recommended_settings("ocdit-small") != InferenceSettings()
    assert find_weights("ocdit-small").is_dir()


def test_a_hub_id_is_downloaded_or_refused(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert find_weights("owner/model") == tmp_path
    assert asked == ["owner/model"]

    def unreachable(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(WeightsError, match=r"no model 'owner/model': .*nor a hub id that can be reached"):
        find_weights("owner/model")
    with pytest.raises(WeightsError, match=r"no model 'small': neither a folder nor one of the embedded models"):
        find_weights("small")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InferenceSettings(ensemble=0), "ensemble: 0 must be at least 1"),
        (lambda: InferenceSettings(calibration=(0, 1)), r"calibration: \[0, 1\]: the first number must be positive"),
        (lambda: InferenceSettings(score_threshold=1.5), r"score_threshold: 1.5 is not in \[0, 1\]"),
        (lambda: InferenceSettings(image_size=(50, 64)), r"image_size: \[50, 64\] must be positive multiples of 16"),
        (lambda: RefineSettings(crops=0), "crops: 0 must be at least 1"),
        (lambda: RefineSettings(margin=2.0), r"margin: 2.0 is not in \[0, 1\]"),
        (
            lambda: InferenceSettings(fine_image_size=(90, 128)),
            r"image_size: \[90, 128\] must be positive multiples of 16",
        ),
        (lambda: TrackSettings(keep=-1), "keep: -1 must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
