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
    common += ["loop.steps=6", "loop.checkpoint_every=3", "loop.validate_every=3", "diffusion_loss.prior_only_steps=0"]
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
    [(["--step", "4"], "holds no checkpoint of step 4; it holds 3, 6"), (["--step", "0"], "0 is not above 0")],
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


def files_of(folder):
    """The time of change and the content of all files but our own lists."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".ocdit-files.jsonl")
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def fill(folder, *names):
    """Write files of others."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    return files_of(folder)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "inference.yaml", "README.md"])
def test_export_replaces_no_file_of_others(run, tmp_path, capsys, name):
    before, given = fill(tmp_path, name, "notes.md"), files_of(run)
    assert main(["export", str(run), "--out", str(tmp_path)]) == 2
    assert f"{tmp_path / name}: exists and was not written by ocdit" in capsys.readouterr().err
    assert files_of(tmp_path) == before
    # What it wrote itself it replaces, and everything else stays.
    (tmp_path / name).unlink()
    before = files_of(tmp_path)
    for _ in range(2):
        assert main(["export", str(run), "--out", str(tmp_path)]) == 0
    assert files_of(tmp_path).items() >= before.items()
    assert files_of(run) == given


def test_export_into_the_run_itself_replaces_none_of_its_files(run, capsys):
    given = files_of(run)
    assert main(["export", str(run), "--out", str(run / "model")]) == 2
    assert "exists and was not written by ocdit" in capsys.readouterr().err
    assert files_of(run) == given


def train(run, out, *overrides):
    settings = run / "settings.yaml"
    return main(["train", "--config", str(settings), *set_options([f"run={out}", "resume=auto", *overrides])])


@pytest.mark.parametrize(
    "name", ["settings.yaml", "log.jsonl", "checkpoints/step_00000006/rank_0.pt", "model/config.yaml", "tensorboard/a"]
)
def test_train_replaces_no_file_of_others(run, tmp_path, capsys, name):
    before = fill(tmp_path, name, "notes.md")
    assert train(run, tmp_path) == 2
    assert capsys.readouterr().err.count("ocdit: error: ") == 1
    assert files_of(tmp_path) == before


def test_train_does_not_replace_settings_that_a_user_stored(run, tmp_path, capsys):
    assert main(["train", "--config", str(run / "settings.yaml"), "--print-config"]) == 0
    (tmp_path / "settings.yaml").write_text("# Mine.\n" + capsys.readouterr().out)
    before = fill(tmp_path, "log.jsonl", "model/config.yaml")
    assert main(["train", "--config", str(tmp_path / "settings.yaml"), "--set", f"run={tmp_path}"]) == 2
    assert "holds settings.yaml, log.jsonl, model that no earlier run wrote" in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_files_of_others_in_a_run_stay_when_it_goes_on(run, tmp_path):
    assert train(run, tmp_path / "run", "loop.steps=2", "loop.checkpoint_every=1") == 0
    names = ("notes.md", "model/README.md", "checkpoints/keep.txt", "checkpoints/step_00000001/why.txt", "mask_1.png")
    fill(tmp_path / "run", *names)
    before = {path: content for path, content in files_of(tmp_path).items() if content[1].startswith(b"mine")}
    assert len(before) == len(names)
    assert train(run, tmp_path / "run", "loop.steps=4", "loop.checkpoint_every=1") == 0
    assert files_of(tmp_path).items() >= before.items()
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "step_00000001").iterdir()] == ["why.txt"]
