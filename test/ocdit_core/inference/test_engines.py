"""The image encoder in other runtimes than torch."""

import faulthandler
import gc
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_network import PRIOR, difference, generate, make_model, make_network

from ocdit_core.errors import ConfigError
from ocdit_core.inference.engines import ImageEncoder
from ocdit_core.inference.settings import recommended_settings

pytest.importorskip("onnx", reason="optional package: pip install 'ocdit_ros[onnx]'")
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


@pytest.fixture(params=EXTRAS)
def engine(request):
    pytest.importorskip(request.param, reason=f"optional package: pip install 'ocdit_ros[{EXTRAS[request.param]}]'")
    return request.param


def images(count, size=(64, 96)):
    return np.random.default_rng(2).integers(0, 256, (count, *size, 3), np.uint8)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["published", "prior"])
def test_features_and_masks_are_those_of_torch(engine, prior):
    model = make_model(prior=prior)
    torch_network, other = make_network(model), make_network(model, engine=engine)
    for size in ((64, 96), (32, 48), (64, 96)):
        expected, found = torch_network.encode(images(3, size)), other.encode(images(3, size))
        assert len(found.descriptors) == len(expected.descriptors)
        for a, b in zip((expected.features, *expected.descriptors), (found.features, *found.descriptors), strict=True):
            assert a.dtype == b.dtype
            assert difference(a.numpy(), b.numpy()) < 1e-4
    assert difference(generate(torch_network), generate(other)) < 1e-4


def test_bfloat16_is_only_computed_if_asked_for():
    pytest.importorskip("openvino", reason="optional package: pip install 'ocdit_ros[openvino]'")
    model = make_model()
    expected, half = (
        make_network(model, engine=one, precision=precision).encode(images(1)).features.float().numpy()
        for one, precision in (("torch", "float32"), ("openvino", "bfloat16"))
    )
    # Some CPUs have no bfloat16, and compute in float32.
    assert difference(expected, half) < 0.2


def test_an_engine_computes_with_the_threads_of_torch(engine, monkeypatch):
    if engine == "onnxruntime":
        import onnxruntime

        found = []
        session = onnxruntime.InferenceSession
        monkeypatch.setattr(
            onnxruntime,
            "InferenceSession",
            lambda path, options, **others: (
                found.append(options.intra_op_num_threads) or session(path, options, **others)
            ),
        )
    else:
        import openvino

        found, compiled = [], openvino.Core.compile_model
        monkeypatch.setattr(
            openvino.Core,
            "compile_model",
            lambda core, path, device, options: (
                found.append(options["INFERENCE_NUM_THREADS"]) or compiled(core, path, device, options)
            ),
        )
    make_network(make_model(), engine=engine).encode(images(1))
    assert found == [torch.get_num_threads()]


def test_signals_are_handled_after_models_have_gone():
    """OpenVINO sets the stack of signal handlers; that of a runtime that has ended must not stay set."""
    pytest.importorskip("openvino", reason="optional package: pip install 'ocdit_ros[openvino]'")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def handle_a_signal_after_models_have_gone():
    faulthandler.enable()
    signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
    networks = [make_network(make_model(), engine="openvino") for _ in range(2)]
    while networks:
        for number in range(len(networks)):
            networks[number].encode(images(1))
        del networks[0]
        gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)


def test_without_tensorrt_another_provider_is_named_in_one_line(caplog):
    onnxruntime = pytest.importorskip("onnxruntime", reason="optional package: pip install 'ocdit_ros[onnx]'")
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    model = make_model()
    network = make_network(model, engine="tensorrt")
    with caplog.at_level(logging.WARNING):
        found = [network.encode(images(1)).features.numpy() for _ in range(2)]
    assert [one.getMessage() for one in caplog.records] == [
        "engine: tensorrt: this onnxruntime has no TensorrtExecutionProvider here; CPUExecutionProvider takes its place"
    ]
    assert difference(make_network(model).encode(images(1)).features.numpy(), found[1]) < 1e-4


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("onnxruntime", "onnxruntime", "onnx"), ("tensorrt", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_package_is_one_line(name, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        make_network(make_model(), engine=name)
    assert str(caught.value) == f"engine: {name}: needs the package {package}: pip install 'ocdit_ros[{extra}]'"


def test_openvino_is_for_the_cpu():
    with pytest.raises(ConfigError, match="engine: openvino runs on the CPU, not on cuda:0"):
        ImageEncoder(make_model(), "openvino", torch.device("cuda:0"), half=False)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="engine"):
        recommended_settings("ocdit-small", overrides=["engine=onnx"])


if __name__ == "__main__":
    handle_a_signal_after_models_have_gone()
