"""What loading takes, unloading gives back: with the real network."""

import gc
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from builders import make_library, make_untrained_model
from std_msgs.msg import Header

from ocdit_core.errors import ConfigError, WeightsError
from ocdit_ros import messages, parameters
from ocdit_ros import pipeline as pipeline_module
from ocdit_ros.pipeline import Pipeline, load_library, load_segmenter

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def tensors():
    """Count the tensors that are alive in this process."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("OCDIT_CACHE", str(tmp_path / "cache"))
    library, model = make_library(tmp_path / "library"), make_untrained_model(tmp_path / "model")
    made = []

    def make(device="cpu", **changes):
        values = parameters.typed({name: spec.default for name, spec in parameters.SPECS.items()})
        settings = parameters.Settings(**{**values, "library": str(library), "model": str(model), "device": device})
        settings = replace(settings, **changes)
        errors, results = [], []
        pipeline = Pipeline(
            settings=settings,
            library=load_library(settings),
            load_segmenter=load_segmenter,
            wants_uncertainty=lambda: bool(errors),
            on_error=errors.append,
            on_result=results.append,
        )
        made.append(pipeline)
        return pipeline, results, errors

    yield make
    for pipeline in made:
        assert pipeline.unload()


def segment(pipeline, size=(96, 128)):
    image = messages.from_rgb(np.full((*size, 3), 90, np.uint8), Header())
    return pipeline.worker.request(image).result(60).segmentation


@pytest.mark.parametrize("device", DEVICES)
def test_unloading_frees_every_tensor_and_loading_again_goes_on(make, device):
    pipeline, _, _ = make(device)
    before = tensors()
    found = []
    for _ in range(2):
        pipeline.load()
        assert tensors() > before + 20
        if device == "cuda":
            assert torch.cuda.memory_allocated() > 0
        found.append(segment(pipeline))
        assert pipeline.unload()
        assert not pipeline.loaded
        assert tensors() == before
        if device == "cuda":
            assert torch.cuda.memory_allocated() == 0
    assert [one.score for one in found[0].instances] == [one.score for one in found[1].instances]
    assert pipeline.targets() == ["box", "can", "mug"]


def test_settings_of_the_inference_are_parameters(make):
    pipeline, _, errors = make(preset="paper", inference_settings=("score_threshold=0.625", "image_size=[96, 128]"))
    found = []
    load = pipeline._load_segmenter
    pipeline._load_segmenter = lambda settings: found.append(load(settings)) or found[-1]
    pipeline.load()
    assert pipeline.recommended_threshold == 0.625
    assert found[0].settings.score_threshold == 0.0, "the node's own threshold decides"
    assert found[0].settings.guided_crop
    assert found[0].settings.image_size == (96, 128)
    for changes, needle in (
        ({"preset": "quick"}, "preset: 'quick' is not one of fast, paper"),
        ({"inference_settings": ("ensembel=4",)}, "did you mean 'ensemble'"),
    ):
        other, _, _ = make(**changes)
        with pytest.raises(ConfigError, match=needle):
            other.load()
    assert not errors


def test_threads_are_those_asked_for_or_as_many_as_at_first(make, monkeypatch):
    own = torch.get_num_threads()
    monkeypatch.setattr(pipeline_module, "_own_threads", cache(pipeline_module._own_threads.__wrapped__))
    try:
        torch.set_num_threads(3)
        for asked, expected in ((2, 2), (0, 3)):
            pipeline, _, _ = make(compute_threads=asked)
            # The number is each thread's own, so it is asked for where the network runs.
            found = []
            pipeline._wants_uncertainty = lambda found=found: found.append(torch.get_num_threads())
            pipeline.load()
            assert set(found) == {expected}
            pipeline.unload()
    finally:
        torch.set_num_threads(own)


def test_a_load_that_fails_leaves_nothing(make, tmp_path):
    pipeline, _, _ = make()
    weights = next((tmp_path / "model").glob("*.safetensors"))
    good = weights.read_bytes()
    before = tensors()
    weights.write_bytes(good[:1000])
    with pytest.raises(WeightsError):
        pipeline.load()
    assert not pipeline.loaded
    assert tensors() == before
    weights.write_bytes(good)
    pipeline.load()
    assert segment(pipeline).target_ids == ("box", "can", "mug")


def test_the_uncertainty_is_worked_out_on_request_only(make):
    pipeline, _, wanted = make()
    pipeline.load()
    assert segment(pipeline).uncertainty is None
    wanted.append("somebody looks")
    assert segment(pipeline).uncertainty.shape == (96, 128)
    wanted.clear()
    assert segment(pipeline).uncertainty is None


def test_labels_are_the_manifest_s(make):
    pipeline, _, _ = make()
    assert pipeline.labels == {name: entry.id for name, entry in pipeline.library.manifest.items()}
    assert len(set(pipeline.labels.values())) == 3


def test_tracked_frames_keep_their_numbers_by_camera_and_given_images_have_none(make):
    pipeline, results, errors = make(tracking=True, cameras=("left", "right"))
    pipeline.load()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)
    for turn in range(3):
        for source, image in zip(("left", "right"), pixels, strict=True):
            pipeline.worker.submit(messages.from_rgb(image, Header(frame_id=f"{source} {turn}")), source)
            deadline = time.monotonic() + 60
            while not any(result.frame.header.frame_id == f"{source} {turn}" for result in list(results)):
                assert time.monotonic() < deadline, errors
                time.sleep(0.01)
    tracks = {}
    for result in results:
        assert result.segmentation.instances
        found = {one.track_id for one in result.segmentation.instances}
        tracks.setdefault(result.source, []).append(found)
    assert not set.union(*tracks["left"]) & set.union(*tracks["right"])
    # Untrained weights find other masks when a frame starts from the one before; what stays keeps its number.
    for of_camera in tracks.values():
        assert set.intersection(*of_camera)
    assert all(one.track_id is None for one in segment(pipeline).instances)
    assert segment(pipeline).instances
