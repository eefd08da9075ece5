"""ONNX graphs against torch."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from test_network import CPU, IMAGE, PRIOR, make_model

from ocdit_core import ObjectLibrary, cli
from ocdit_core.images import read_image
from ocdit_core.inference import graphs as graphs_module
from ocdit_core.inference.graphs import GraphError, difference, export, graphs, write_graph
from ocdit_core.inference.network import Network
from ocdit_core.inference.settings import InferenceSettings, find_weights
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig, join_templates
from ocdit_core.objects.onboarding import add_objects

REASON = "optional package: pip install 'ocdit_ros[onnx]'"
pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)

VIT = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 56,
}
# Which images, objects and members of the example there are instead.
LARGER = {
    "images": [0, 0],
    "objects": [0, 1, 0],
    "images_x_objects": [0, 1, 0, 1, 0, 1],
    "members": [0, 0],
    "decoded": [0, 1, 0],
}
# As in the refine stage.
SINGLE = {"images": [0, 0, 0], "objects": [1], "images_x_objects": [1, 0, 1]}


def run(path, tensors):
    """Outputs of a graph by name, of the tensors that it takes."""
    session = onnxruntime.InferenceSession(path)
    inputs = {one.name: tensors[one.name].numpy() for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, inputs)), strict=True))


@pytest.fixture(scope="module", params=[None, PRIOR], ids=["published", "prior"])
def exported(request, tmp_path_factory):
    model, folder = make_model(prior=request.param).requires_grad_(False), tmp_path_factory.mktemp("graphs")
    return model, folder, dict(export({"": (model, (64, 96))}, folder))


def test_each_graph_is_exported_and_equals_torch(exported):
    model, folder, described = exported
    names = ["encode", "templates", *(["match"] if model.prior else []), "denoise", "decode"]
    assert list(described) == [f"{name}.onnx" for name in names]
    assert max(one["difference"] for one in described.values()) < 1e-4
    assert json.loads((folder / "graphs.json").read_text())["graphs"] == described
    assert described["encode.onnx"]["inputs"] == {"images": "float32[images, 3, height, width]"}
    assert described["decode.onnx"]["outputs"] == {"probabilities": "float32[decoded, height, width]"}


def test_exporting_leaves_the_model_in_evaluation_mode(exported):
    assert not any(module.training for module in exported[0].modules())


@pytest.mark.parametrize("chosen", [LARGER, SINGLE], ids=["larger", "single objects"])
def test_graphs_take_other_numbers_of_images_and_objects_and_other_sizes(exported, chosen):
    model, folder, _ = exported
    random = torch.Generator().manual_seed(3)
    for graph in graphs(model, (48, 80)):
        inputs = {}
        for name, shape in graph.shapes(any_size=True).items():
            if name in graph.inputs:
                tensor = graph.inputs[name]
                for axis, one in enumerate(shape):
                    if one in chosen:
                        tensor = tensor.index_select(axis, torch.tensor(chosen[one]))
                noisy = tensor.is_floating_point() and name not in ("images", "templates", "masks")
                inputs[name] = tensor * (1 + torch.rand(tensor.shape, generator=random)) if noisy else tensor
        outputs = dict(zip(graph.outputs, graph.module(*inputs.values()), strict=True))
        assert difference(graph._replace(inputs=inputs, outputs=outputs), folder / f"{graph.name}.onnx") < 1e-4


def test_a_vision_transformer_has_one_size_and_any_number_of_objects(tmp_path):
    config = OCDiTConfig(
        image_size=(48, 64),
        template_size=(32, 32),
        backbone=BackboneConfig(architecture=VIT),
        vae=MaskVAEConfig(channels=(8, 16), blocks=1),
        denoiser=DenoiserConfig(width=32, depth=1, heads=2, max_objects=3, max_views=2),
    )
    described = dict(export({"": (OCDiT(config).eval().requires_grad_(False), (48, 64))}, tmp_path))
    assert described["encode.onnx"]["inputs"] == {"images": "float32[images, 3, 48, 64]"}
    assert described["denoise.onnx"]["outputs"] == {"denoised": "float32[images, members, objects, 32, 3, 4]"}


def test_the_weights_of_a_large_graph_have_a_file_of_their_own(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs_module, "EXTERNAL_BYTES", 1000)
    (graph,) = (one for one in graphs(exported[0], (64, 96)) if one.name == "decode")
    path = tmp_path / "decode.onnx"
    write_graph(graph, path, graph.shapes(any_size=True))
    assert {one.name for one in tmp_path.iterdir()} == {"decode.onnx", "decode.onnx.data", ".ocdit-files.jsonl"}
    data = tmp_path / "decode.onnx.data"
    assert data.stat().st_size > path.stat().st_size
    assert data.stat().st_mode == path.stat().st_mode
    assert difference(graph, path) < 1e-4


def test_a_graph_that_differs_from_torch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs_module, "TOLERANCE", -1.0)
    with pytest.raises(GraphError, match=r"encode.onnx: differs from torch by .*, more than"):
        list(export({"": (make_model(), (64, 96))}, tmp_path))
    assert not (tmp_path / "graphs.json").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line_before_anything_is_written(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["export", "ocdit-small", "--onnx", str(tmp_path / "graphs")]) == 2
    complaint = f"ocdit: error: --onnx: needs the package {package}: pip install 'ocdit_ros[onnx]'\n"
    assert capsys.readouterr().err == complaint
    assert not (tmp_path / "graphs").exists()


@pytest.mark.parametrize("options", [["--half"], ["--step", "3"]])
def test_options_of_training_runs_are_refused(options, tmp_path, capsys):
    assert cli.main(["export", "ocdit-small", "--onnx", str(tmp_path / "graphs"), *options]) == 2
    assert "are for --out" in capsys.readouterr().err
    assert cli.main(["export", "runs/none", "--out", str(tmp_path / "model"), "--set", "image_size=[64,64]"]) == 2
    assert "--set" in capsys.readouterr().err


def test_files_of_others_stay_as_they_are(untrained_model, tmp_path, capsys):
    (tmp_path / "decode.onnx").write_text("mine")
    assert cli.main(["export", str(untrained_model), "--onnx", str(tmp_path)]) == 2
    assert "decode.onnx: exists and was not written by ocdit" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["decode.onnx"]


@pytest.mark.slow
@pytest.mark.weights
def test_the_graphs_of_the_embedded_model_give_its_masks(tmp_path, monkeypatch, capsys):
    assert cli.main(["export", "ocdit-small", "--onnx", str(tmp_path), "--set", "image_size=[192,256]"]) == 0
    assert "refine/decode.onnx: 0.4 MB" in capsys.readouterr().out
    meshes = IMAGE.parents[1] / "meshes"
    add_objects(tmp_path / "lib", [meshes / "melon.glb", meshes / "striped_mug.glb"], unit="m")
    library, size = ObjectLibrary(tmp_path / "lib"), (96, 96)
    views = [library[name].best_views(12).exactly(12) for name in ("melon", "striped_mug")]
    rgb, masks = (
        np.stack([[cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in own] for own in parts])
        for parts in ([own.rgb for own in views], [own.mask.astype(np.float32) for own in views])
    )
    image = cv2.resize(read_image(IMAGE), (320, 240), interpolation=cv2.INTER_AREA)
    monkeypatch.setattr("ocdit_core.models.matching_prior.RULED_OUT", -1.0)
    network = Network(OCDiT.from_pretrained(find_weights("ocdit-small")), CPU, InferenceSettings())
    with torch.inference_mode():
        each = [network.encode_templates(*one) for one in zip(rgb, masks, strict=True)]
        targets = network.encode_targets(join_templates(each))
        expected, _ = network.generate(network.encode(image[None]), targets)

    tensors = {"images": torch.from_numpy(image).permute(2, 0, 1)[None] / 255, "masks": torch.from_numpy(masks)[None]}
    tensors |= {"templates": torch.from_numpy(rgb).permute(0, 1, 4, 2, 3)[None] / 255}
    noise = torch.randn(1, 1, 2, 8, 15, 20, generator=torch.Generator().manual_seed(0))
    tensors |= {"noisy": 80 * noise, "sigma": torch.full((1, 1), 80.0)}
    tensors |= {"positions": torch.arange(2)[None]}
    for name in ("encode", "templates", "match", "denoise"):
        tensors |= run(tmp_path / f"{name}.onnx", tensors)
    found = run(tmp_path / "decode.onnx", {"latents": tensors["denoised"].flatten(0, 2)})["probabilities"]
    assert expected.max() > 0.9
    assert np.abs(found.numpy() - expected[0, 0]).max() < 1e-3
