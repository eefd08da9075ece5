"""`ocdit export` on a run that really trained; see training/conftest.py for the same at full length."""

import sys
from pathlib import Path

import numpy as np
import pytest
from builders import set_options

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.cli import main
from ocdit_core.models.checkpoints import read_weights
from ocdit_core.training.checkpoints import find_checkpoint
from ocdit_core.training.checkpoints import read_weights as read_checkpoint

sys.path.append(str(Path(__file__).parent / "data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from painted import make_dataset

    folder = tmp_path_factory.mktemp("export")
    make_dataset(folder)
    names = {"datasets": "train", "held_out": "test"}
    common = [
        f"data.{key}=[{{path: {folder / 'painted' / split}, library: {folder / 'objects'}}}]"
        for key, split in names.items()
    ]
    configs = Path(__file__).parents[2] / "config" / "train"
    common += [
        "loop.log_every=1",
        "loop.steps=6",
        "loop.checkpoint_every=3",
        "loop.validate_every=3",
        "diffusion_loss.prior_only_steps=0",
    ]
    for stage, more in (("vae", []), ("coarse", [f"vae={folder / 'vae' / 'model'}"])):
        arguments = ["train", "--config", str(configs / f"smoke_{stage}.yaml")]
        assert main([*arguments, *set_options([f"run={folder / stage}", *common, *more])]) == 0
    return folder / "coarse"


def test_exports_the_averaged_weights_with_a_card(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--full", "--step", "3"]) == 0
    assert "stage coarse, step 3" in capsys.readouterr().out
    checkpoint = find_checkpoint(run, 3)
    weights = read_weights(tmp_path / "out" / "model.safetensors")
    name = "denoiser.head.mlp.0.weight"
    assert (weights[name] == read_checkpoint(checkpoint)[name]).all()
    assert (weights[name] != read_checkpoint(checkpoint, averaged=False)[name]).any()
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("stage coarse, after 3 of 6 steps", "| step | iou | recall50 |", "64 x 96 pixels", "held_out:"):
        assert text in card
    assert "| 6 |" not in card


def test_the_exported_model_segments(run, tmp_path):
    from painted import write_library

    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    files = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert files == {"config.yaml", "model.safetensors", "inference.yaml", "README.md"}
    assert read_weights(tmp_path / "out" / "model.safetensors")["denoiser.head.mlp.0.weight"].dtype.itemsize == 2
    segmenter = Segmenter.from_pretrained(tmp_path / "out", device="cpu")
    segmenter.set_objects(ObjectLibrary(write_library(tmp_path / "objects", range(1, 3))), ["obj_000001", "obj_000002"])
    result = segmenter.segment(np.full((120, 160, 3), 99, np.uint8))
    assert tuple(result.image_size) == (120, 160)
    assert result.target_ids == ("obj_000001", "obj_000002")


def test_a_vae_is_exported_whole_for_further_training(run, tmp_path):
    assert main(["export", str(run.parent / "vae"), "--out", str(tmp_path / "out")]) == 0
    assert read_weights(tmp_path / "out" / "model.safetensors")["latent_std"].dtype.itemsize == 4
    assert not (tmp_path / "out" / "inference.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "4"], "holds no checkpoint of step 4; it holds 3, 6"),
        (["--step", "0"], "0 is not above 0"),
    ],
)
def test_mistakes_get_one_line(run, tmp_path, capsys, arguments, message):
    try:
        code = main(["export", str(run), "--out", str(tmp_path / "out"), *arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "settings.yaml: no such file" in capsys.readouterr().err
