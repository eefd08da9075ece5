"""A model's computations as ONNX graphs, for other runtimes.

An output has the name of the input that takes it in another graph:

- encode: images -> features; with a matching prior, also its descriptors
- templates: templates and masks of objects -> keys and values of each block, and descriptors
- match: all descriptors -> what the matching prior finds (`PriorMaps`) and adds to the queries
- denoise: one evaluation of D_theta, for noisy latents at a noise level
- decode: latents -> probabilities
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ocdit_core.diffusion.edm import SIGMA_MAX
from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.files import check_output, replacing, write_text
from ocdit_core.models.backbones import ViTBackbone
from ocdit_core.models.denoiser import Conditioning
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.matching_prior import MEASURES
from ocdit_core.models.ocdit import OCDiT

# The lowest version with all of our operators; OpenVINO, ONNX Runtime and TensorRT read it.
OPSET = 17
GRAPHS_FILE = "graphs.json"
# Largest difference of an exported graph from torch.
TOLERANCE = 1e-3
# A graph of more bytes has its weights in a file of their own: a protocol buffer ends at 2 GiB.
EXTERNAL_BYTES = 1 << 30

_IMAGE = (*(f"image_{number}" for number in range(MEASURES)), "bins", "context")
_TEMPLATES = (*(f"template_{number}" for number in range(MEASURES)), "histogram")
# Names of the axes of tensors, by the part of their name before a number; those of _ have the example's size.
_AXES = {
    "images": "images _ height width",
    "features": "images _ rows columns",
    "image": "images _ rows columns",
    "bins": "images height width",
    "context": "images _ rows columns",
    "templates": "images objects",
    "masks": "images objects",
    "template": "images objects",
    "histogram": "images objects",
    "keys": "images_x_objects",
    "values": "images_x_objects",
    "logits": "images objects subrows subcolumns",
    "presence": "images objects",
    "draft": "images objects _ rows columns",
    "addition": "images objects cells",
    "noisy": "images members objects _ rows columns",
    "sigma": "images members",
    "positions": "images objects",
    "denoised": "images members objects _ rows columns",
    "latents": "decoded _ rows columns",
    "probabilities": "decoded height width",
}


class GraphError(OcditError):
    """A graph cannot be exported, or does not compute what the model does."""


class _Function(nn.Module):
    """A function of tensors as a module, which holds the part of the model with its weights."""

    def __init__(self, part: nn.Module, function: Callable[..., Sequence[Tensor]]) -> None:
        super().__init__()
        self.part = part
        self._function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._function(*inputs))


class _Exportable(TorchFunctionMode):
    """Replaces what the exporter cannot do, or takes sizes as constants after."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.Tensor.unflatten:
            x, dim, sizes = args
            return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
        if func is F.batch_norm and options["weight"] is None:
            options |= {"weight": torch.ones_like(args[1]), "bias": torch.zeros_like(args[1])}
        if func is F.interpolate and options.get("antialias"):
            # A vision transformer's images: bilinear, to 14/16 of their size.
            rows, columns = (
                _shrinking(int(before), int(after))
                for before, after in zip(args[0].shape[2:], options["size"], strict=True)
            )
            return rows @ args[0] @ columns.T
        return func(*args, **options)


def _shrinking(before: int, after: int) -> Tensor:
    """Return the matrix (after, before) of a bilinear interpolation with antialiasing along one axis."""
    scale = before / after
    centres = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(1 - np.abs(np.arange(before) + 0.5 - centres) / scale, 0)
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))


class Graph(NamedTuple):
    """A computation with tensors in and out.

    Attributes:
        name: its name.
        module: the computation.
        inputs: an example of each input.
        outputs: what torch computes of these.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def shapes(self, *, any_size: bool) -> dict[str, list[int | str]]:
        """Return the shape of each tensor, with the name of an axis whose size may differ from the example's."""
        shapes = {}
        for name, tensor in (self.inputs | self.outputs).items():
            axes = _AXES[name.rstrip("0123456789").rstrip("_")].split()
            kept = ("images", "members", "objects", "images_x_objects", "decoded")
            shapes[name] = [
                axis if axis != "_" and (any_size or axis in kept) else size
                for size, axis in zip(tensor.shape, axes + ["_"] * (tensor.ndim - len(axes)), strict=True)
            ]
        return shapes


def _graph(
    name: str,
    part: nn.Module,
    function: Callable[..., Sequence[Tensor]],
    inputs: dict[str, Tensor],
    outputs: Sequence[str],
) -> Graph:
    module = _Function(part, function).eval()
    with torch.no_grad():
        found = module(*inputs.values())
    return Graph(name, module, inputs, dict(zip(outputs, found, strict=True)))


def encoder(model: OCDiT, image_size: tuple[int, int]) -> Graph:
    """Return the image encoder, with one image of a size (height, width) as the example."""

    def encode(images: Tensor) -> Sequence[Tensor]:
        found = model.encode_image(images)
        return found.features, *found.descriptors

    images = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).device)
    return _graph("encode", model, encode, {"images": images}, ["features", *(_IMAGE if model.prior else ())])


def graphs(model: OCDiT, image_size: tuple[int, int]) -> Iterator[Graph]:
    """Yield the graphs of a model, in float32 on the CPU, for an image of a size (height, width) and two objects.

    The example of each has outputs of those before it.
    """
    config, objects, generator = model.config, 2, torch.Generator().manual_seed(0)
    encode = encoder(model, image_size)
    yield encode
    tensors = dict(encode.outputs)

    def encode_templates(rgb: Tensor, *masks: Tensor) -> Sequence[Tensor]:
        found = model.encode_targets(model.encode_templates(rgb, masks[0] if masks else rgb))
        return *(tensor for pair in found.tokens.keys_values for tensor in pair), *found.templates.descriptors

    memory = [f"{part}_{number}" for number in range(config.denoiser.depth) for part in ("keys", "values")]
    shape, size = (1, objects, config.denoiser.max_views), config.template_size
    examples = {"templates": torch.rand(*shape, 3, *size, generator=generator)}
    descriptors: tuple[str, ...] = ()
    if model.prior is not None:
        # Without it, they would be an input that nothing depends on.
        examples["masks"] = (torch.rand(*shape, *size, generator=generator) > 0.2).float()
        descriptors = _TEMPLATES
    templates = _graph("templates", model, encode_templates, examples, [*memory, *descriptors])
    yield templates
    tensors |= templates.outputs

    if (prior := model.prior) is not None:

        def match(*inputs: Tensor) -> Sequence[Tensor]:
            found = prior(inputs[: len(_IMAGE)], inputs[len(_IMAGE) :])
            return found.logits, found.presence, found.draft, prior.query_part(found)

        examples = {name: tensors[name] for name in (*_IMAGE, *_TEMPLATES)}
        matched = _graph("match", prior, match, examples, ["logits", "presence", "draft", "addition"])
        yield matched
        tensors |= matched.outputs

    def denoise(x: Tensor, sigma: Tensor, features: Tensor, positions: Tensor, *rest: Tensor) -> Sequence[Tensor]:
        keys_values, maps = rest[: len(memory)], rest[len(memory) :]
        queries = model.denoiser.query_embedding.image_part(features, positions)
        conditioning = Conditioning(
            queries=(queries + maps[1] if maps else queries)[:, None],
            templates=tuple(zip(keys_values[::2], keys_values[1::2], strict=True)),
            grid=(x.shape[4], x.shape[5]),
            draft=maps[0][:, None] if maps else None,
        )
        return (model.denoiser(x, sigma, conditioning).latents,)

    height, width = (side // DOWNSAMPLING for side in image_size)
    noise = torch.randn(1, 1, objects, config.vae.latent_channels, height, width, generator=generator)
    examples = {"noisy": SIGMA_MAX * noise, "sigma": torch.full((1, 1), SIGMA_MAX), "features": tensors["features"]}
    examples |= {"positions": torch.arange(objects)[None], **{name: tensors[name] for name in memory}}
    examples |= {name: tensors[name] for name in ("draft", "addition") if name in tensors}
    denoised = _graph("denoise", model.denoiser, denoise, examples, ["denoised"])
    yield denoised
    latents = denoised.outputs["denoised"].flatten(0, 2)
    yield _graph("decode", model.vae, lambda x: (model.vae.decode(x),), {"latents": latents}, ["probabilities"])


def export(models: Mapping[str, tuple[OCDiT, tuple[int, int]]], out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write the graphs of models as ONNX, and graphs.json, which describes them; check each one in ONNX Runtime.

    Args:
        models: models in float32 on the CPU, each with the (height, width) of its images, by the folder in `out` of
            their graphs, relative to it.
        out: folder to write into.

    Yields:
        The file of each graph, relative to `out`, and its description in graphs.json.

    Raises:
        ConfigError: the package onnx or onnxruntime is missing.
        GraphError: a graph cannot be exported, or computes something else than the model; graphs.json is not written.
        OutputError: a file cannot be written, or exists and is not ours.
    """
    for package in ("onnx", "onnxruntime"):
        required(package, "onnx", "--onnx")
    names = ("encode", "templates", "match", "denoise", "decode")
    check_output(
        out / GRAPHS_FILE,
        *(out / place / f"{name}.onnx{data}" for place in models for name in names for data in ("", ".data")),
    )
    described = {}
    for place, (model, image_size) in models.items():
        # The positions of a vision transformer are interpolated for one size of the image.
        any_size = not isinstance(model.backbone, ViTBackbone)
        for graph in graphs(model, image_size):
            path = out / place / f"{graph.name}.onnx"
            shapes = graph.shapes(any_size=any_size)
            write_graph(graph, path, shapes)
            found = difference(graph, path)
            if not found <= TOLERANCE:
                raise GraphError(f"{path}: differs from torch by {found:.1e}, more than {TOLERANCE}")
            text = {
                name: f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, shapes[name]))}]"
                for name, tensor in (graph.inputs | graph.outputs).items()
            }
            file = path.relative_to(out).as_posix()
            described[file] = {
                "inputs": {name: text[name] for name in graph.inputs},
                "outputs": {name: text[name] for name in graph.outputs},
                "difference": found,
            }
            yield file, described[file]
    contents = json.dumps({"opset": OPSET, "graphs": described}, indent=1)
    write_text(out / GRAPHS_FILE, f"{contents}\n")


def write_graph(graph: Graph, path: Path, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Write a graph as ONNX; the weights of a large one go into a file of their own, named as it with .data.

    Args:
        graph: the graph.
        path: file to write.
        shapes: shape of each tensor; axes with a name may have any size.

    Raises:
        GraphError: an operator of the model has no counterpart in ONNX.
        OutputError: a file cannot be written, or exists and is not ours.
    """
    named = {
        name: {axis: one for axis, one in enumerate(shape) if isinstance(one, str)} for name, shape in shapes.items()
    }
    data = path.with_name(f"{path.name}.data")
    with (
        replacing(path) as temporary,
        TemporaryDirectory(dir=path.parent, prefix=".graph") as folder,
        warnings.catch_warnings(),
        _Exportable(),
    ):
        # Of the tracer, about sizes that it takes as constants.
        warnings.simplefilter("ignore")
        file = Path(folder, path.name)
        try:
            torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                str(file),  # a Path would not do for more than 2 GiB
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_axes=named,
                opset_version=OPSET,
                dynamo=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise GraphError(f"{path}: the model cannot be exported: {str(error).splitlines()[0]}") from error
        if sum(part.stat().st_size for part in Path(folder).iterdir()) > EXTERNAL_BYTES:
            onnx = required("onnx", "onnx", "--onnx")
            onnx.save_model(onnx.load(file), file, save_as_external_data=True, location=data.name)
            shutil.copymode(file, Path(folder, data.name))  # onnx makes it readable by its owner alone
            with replacing(data) as other:
                os.replace(Path(folder, data.name), other)
        os.replace(file, temporary)


def difference(graph: Graph, path: Path) -> float:
    """Return the largest difference of a graph in ONNX Runtime from torch; above 1, relative to the largest value.

    Of integers, it is the fraction that differ.
    """
    session = required("onnxruntime", "onnx", "--onnx").InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(graph.outputs), {name: tensor.numpy() for name, tensor in graph.inputs.items()})
    differences = []
    for expected, other in zip((tensor.numpy() for tensor in graph.outputs.values()), found, strict=True):
        if np.issubdtype(expected.dtype, np.integer):
            differences.append(float((expected != other).mean()))
        else:
            differences.append(float(np.abs(expected - other).max() / max(1.0, np.abs(expected).max())))
    return max(differences)


def required(package: str, extra: str, what: str) -> Any:
    """Import an optional package; where it is missing, raise ConfigError with what needs it, and the extra."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{what}: needs the package {error.name}: pip install 'ocdit_ros[{extra}]'") from error
