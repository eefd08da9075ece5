"""Training from a BOP folder and its library is exactly resumable."""

import itertools

import pytest
import torch
import yaml
from builders import set_options

from ocdit_core.cli import main
from ocdit_core.config import as_dict, build
from ocdit_core.training.checkpoints import find_checkpoint, read_rank, read_weights
from ocdit_core.training.data import TrainingData, held_out_batches
from ocdit_core.training.settings import TrainSettings


@pytest.fixture(scope="module")
def config(lab, vae, tmp_path_factory):
    """A refine config on painted frames, made from the smoke config."""
    path = tmp_path_factory.mktemp("bop")
    values = as_dict(lab.settings("smoke_refine", "x"))
    values |= {"vae": str(vae), "run": str(path / "run"), "init": None}
    values["loop"] |= {"steps": 5, "validate_every": 5, "checkpoint_every": 3, "workers": 2}
    (path / "refine.yaml").write_text(yaml.safe_dump(values))
    return path / "refine.yaml"


def test_a_run_on_bop_data_resumes_exactly(config):
    path = config.parent

    def train(run, *overrides):
        return main(["train", "--config", str(config), *set_options([f"run={path / run}", *overrides])])

    def losses(run):
        lines = map(yaml.safe_load, (path / run / "log.jsonl").read_text().splitlines())
        return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}

    assert train("run") == 0
    whole = losses("run")
    assert set(whole) == {1, 2, 3, 4, 5}
    source = f"resume={find_checkpoint(path / 'run', 3)}"
    assert train("resumed", source) == 0
    assert losses("resumed") == {4: whole[4], 5: whole[5]}
    one, other = (find_checkpoint(path / run) for run in ("run", "resumed"))
    assert read_rank(one, 0)["data"] == read_rank(other, 0)["data"]
    weights = read_weights(other, averaged=False)
    assert all(torch.equal(value, weights[name]) for name, value in read_weights(one, averaged=False).items())
    assert train("other", source, "loop.workers=1") == 0
    assert losses("other") == losses("resumed")


def test_held_out_batches_come_from_the_held_out_split(config):
    settings = build(TrainSettings, yaml.safe_load(config.read_text()))
    batches = held_out_batches(settings)
    assert len(batches) == 8
    assert batches[0]["images"].shape == (2, 2, 3, 64, 64)
    again = held_out_batches(settings)
    assert torch.equal(batches[1]["images"], again[1]["images"])
    trained = list(itertools.islice(iter(TrainingData(settings)), 2))
    assert [batch["number"].tolist() for batch in trained] == [[0, 1], [2, 3]]
    assert not torch.equal(trained[0]["images"], batches[0]["images"])
