"""Engines: runtimes other than torch for the image encoder.

Its convolutions are half of the time of an image on a CPU. The rest, whose sizes differ from image to image, runs in
torch.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocdit_core.errors import ConfigError
from ocdit_core.inference.graphs import Graph, encoder, required, write_graph
from ocdit_core.inference.settings import Engine
from ocdit_core.models.ocdit import ImageFeatures, OCDiT

log = logging.getLogger(__name__)

_Run = Callable[[np.ndarray], list[np.ndarray]]


class ImageEncoder:
    """Runs the image encoder in an engine, compiled at its first use for each size of the image.

    Several threads may use it at the same time.

    Args:
        model: float32 model; its weights must not change any more.
        engine: any but torch.
        device: device of the features.
        half: compute in bfloat16, where the engine can: openvino.

    Raises:
        ConfigError: the engine's package is missing, or it does not run on the device.
    """

    def __init__(self, model: OCDiT, engine: Engine, device: torch.device, *, half: bool) -> None:
        if engine == "openvino" and device.type != "cpu":
            raise ConfigError(f"engine: openvino runs on the CPU, not on {device}: use torch, onnxruntime or tensorrt")
        openvino, what = engine == "openvino", f"engine: {engine}"
        for package in ("onnx", "openvino" if openvino else "onnxruntime"):
            required(package, "openvino" if openvino else "onnx", what)
        self._model, self._engine, self._device, self._half = model, engine, device, half
        self._compiled: dict[tuple[int, ...], _Run] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Return the features of images (N, 3, H, W) in [0, 1]."""
        size = images.shape[2], images.shape[3]
        # One by one: of a known size, they are a third faster than of any, and a batch is no faster.
        with self._lock:
            if size not in self._compiled:
                self._compiled[size] = self._compile(encoder(self._model, size))
            run = self._compiled[size]
            rows = [run(image[None]) for image in images.cpu().numpy()]
        features, *descriptors = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*rows, strict=True))
        return ImageFeatures(
            features=features.to(self._device), descriptors=tuple(part.to(self._device) for part in descriptors)
        )

    def _compile(self, graph: Graph) -> _Run:
        with TemporaryDirectory() as folder:
            path = Path(folder, "encode.onnx")
            write_graph(graph, path, {name: list(tensor.shape) for name, tensor in graph.inputs.items()})
            if self._engine == "openvino":
                return compile_openvino(path, half=self._half)
            return open_onnxruntime(path, self._engine, self._device)


def compile_openvino(path: Path, *, half: bool) -> _Run:
    """Return a function that runs a graph with one input in OpenVINO, with as many threads as torch has."""
    options = {
        # bfloat16 would be the default, where the CPU has it.
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = _openvino_core().compile_model(path, "CPU", options).create_infer_request()
    # Copies: the next image is written to the same memory.
    return lambda images: [np.array(part) for part in request.infer([images]).values()]


@functools.cache
def _openvino_core() -> Any:
    """Return OpenVINO's runtime, the only one of this process.

    Each sets the stack on which signals are handled. The end of one of several may set that of another that has ended,
    and the next signal then ends the process with a segmentation fault.
    """
    return required("openvino", "openvino", "engine: openvino").Core()


def open_onnxruntime(path: Path, engine: Engine, device: torch.device) -> _Run:
    """Return a function that runs a graph with one input in ONNX Runtime, with as many threads as torch has.

    Without the provider that the engine and the device ask for, another one runs it, which is logged.
    """
    onnxruntime = required("onnxruntime", "onnx", f"engine: {engine}")
    index = {"device_id": device.index or 0}
    providers: dict[str, dict[str, int]] = {"CPUExecutionProvider": {}}
    if device.type == "cuda":
        providers = {"CUDAExecutionProvider": index, **providers}
    if engine == "tensorrt":
        # Without its cache of engines, which takes models of the same layers for the same, whatever their weights.
        providers = {"TensorrtExecutionProvider": index, "CUDAExecutionProvider": index, **providers}
    available = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for work would keep the cores from torch and from the node's input and output.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen = [(name, own) for name, own in providers.items() if name in available]
    session = onnxruntime.InferenceSession(path, options, providers=chosen)
    wanted, used = next(iter(providers)), session.get_providers()[0]
    if used != wanted:
        log.warning("engine: %s: this onnxruntime has no %s here; %s takes its place", engine, wanted, used)
    (name,) = (one.name for one in session.get_inputs())
    return lambda images: session.run(None, {name: images})
