"""The real network inside the node, in the test's own process: what configure loads, deactivate and cleanup free."""

import gc
import shutil

import pytest
import rclpy
import torch
from rclpy.lifecycle import TransitionCallbackReturn

from ocdit_ros import network
from ocdit_ros.network import Network, load_segmenter
from ocdit_ros.segmentation_node import SegmentationNode

SUCCESS = TransitionCallbackReturn.SUCCESS
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def tensors():
    """Count the tensors that are alive in this process."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.fixture
def make(untrained_model, rendered_library):
    """Make nodes with the given parameters."""
    nodes = []

    def make(**parameters):
        values = {"library": rendered_library, "model": untrained_model, "device": "cpu", **parameters}
        arguments = [part for name, value in values.items() for part in ("-p", f"{name}:={value}")]
        rclpy.init(args=["--ros-args", *arguments])
        nodes.append(SegmentationNode())
        return nodes[-1]

    yield make
    for node in nodes:
        node.trigger_shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


@pytest.mark.parametrize("device", DEVICES)
def test_deactivate_frees_every_tensor_and_activate_loads_them_again(make, device):
    node = make(device=device)
    before = tensors()
    assert node.trigger_configure() == SUCCESS
    for _ in range(2):
        assert node.trigger_activate() == SUCCESS
        assert tensors() > before + 20
        assert node.trigger_deactivate() == SUCCESS
        assert tensors() == before
        if device == "cuda":
            assert torch.cuda.memory_allocated() == 0


def test_a_configure_that_fails_leaves_nothing_loaded_and_says_why(make, untrained_model, tmp_path):
    model = shutil.copytree(untrained_model, tmp_path / "model")
    node = make(model=model)
    weights = next(model.glob("*.safetensors"))
    good, before = weights.read_bytes(), tensors()
    weights.write_bytes(good[:1000])
    assert node.trigger_configure() != SUCCESS
    assert node.state == "unconfigured"
    assert node._monitor.failure.startswith("configure failed: ")
    assert tensors() == before
    weights.write_bytes(good)
    assert node.trigger_configure() == SUCCESS
    assert node._monitor.failure == ""


def test_inference_settings_are_parameters(make):
    loaded = []
    node = make(preset="paper", inference_settings="['score_threshold=0.625', 'image_size=[96, 128]']")
    node._load_segmenter = lambda settings: loaded.append(load_segmenter(settings)) or loaded[-1]
    assert node.trigger_configure() == SUCCESS
    assert node.score_threshold == 0.625
    assert loaded[0].settings.score_threshold == 0.625
    assert loaded[0].settings.image_size == (96, 128)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"preset": "quick"}, "preset: 'quick' is not one of fast, paper"),
        ({"inference_settings": "['ensembel=4']"}, "did you mean 'ensemble'"),
        ({"library": "~/no/such/library"}, "/no/such/library"),
        ({"library": "''"}, "library is not set: it must name a folder made by `ocdit render`"),
        ({"device": "gpu"}, "device: 'gpu' is not auto, cpu, cuda or cuda:N"),
        ({"target_objects": "[spoon]"}, "unknown object 'spoon': the library holds box, can, mug"),
    ],
)
def test_bad_settings_are_named(make, parameters, reason):
    node = make(**parameters)
    assert node.trigger_configure() != SUCCESS
    assert reason in node._monitor.failure
    assert "~" not in node._monitor.failure


@pytest.mark.parametrize(("asked", "cores", "expected"), [(3, 3, 3), (0, 3, 2), (0, 2, 2)])
def test_the_network_takes_the_threads_asked_for_or_leaves_one_free(make, monkeypatch, asked, cores, expected):
    default, found = torch.get_num_threads(), []
    monkeypatch.setattr(network, "_default_threads", lambda: cores)
    segment = Network.segment_batch
    monkeypatch.setattr(
        Network,
        "segment_batch",
        # The number is each thread's own, so it is asked for where the network runs.
        lambda *arguments, **options: found.append(torch.get_num_threads()) or segment(*arguments, **options),
    )
    try:
        assert make(compute_threads=asked).trigger_configure() == SUCCESS
        assert found == [expected]
    finally:
        torch.set_num_threads(default)
