"""A small bank of objects, drawn once, and the training command on the smoke configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import set_options

from ocdit_core.cli import main
from ocdit_core.config import apply_overrides, build, read_yaml
from ocdit_core.synthesis.bank import BankSettings, build_bank
from ocdit_core.synthesis.procedural import HELD_OUT_SEED
from ocdit_core.training.settings import TrainSettings

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "config" / "train"


class Lab:
    """A folder with data, and runs in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def overrides(self, run: str, *overrides: str) -> list[str]:
        paths = [f"data.bank={self.folder / 'bank'}", f"held_out_bank={self.folder / 'held_out'}"]
        return [*paths, f"run={self.folder / run}", *overrides]

    def arguments(self, config: str, run: str, *overrides: str) -> list[str]:
        return ["--config", str(CONFIGS / f"{config}.yaml"), *set_options(self.overrides(run, *overrides))]

    def train(self, config: str, run: str, *overrides: str) -> int:
        return main(["train", *self.arguments(config, run, *overrides)])

    def train_together(self, processes: int, config: str, run: str, *overrides: str) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [str(ROOT / "training" / "train.py"), *self.arguments(config, run, *overrides)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    def settings(self, config: str, run: str, *overrides: str) -> TrainSettings:
        values = read_yaml(CONFIGS / f"{config}.yaml")
        return build(TrainSettings, apply_overrides(values, self.overrides(run, *overrides)))

    def logged(self, run: str, name: str = "train/loss") -> dict[int, float]:
        lines = map(json.loads, (self.folder / run / "log.jsonl").read_text().splitlines())
        return {line["step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    small = {"template_size": 64, "sprites": 2, "sprite_size": 48}
    build_bank(folder / "bank", BankSettings(objects=8, **small), progress=False)
    build_bank(folder / "held_out", BankSettings(objects=8, first_seed=HELD_OUT_SEED, **small), progress=False)
    return Lab(folder)


@pytest.fixture(scope="session")
def vae(lab):
    """The exported model of the VAE smoke run."""
    assert lab.train("smoke_vae", "vae") == 0
    return lab.folder / "vae" / "model"


@pytest.fixture(scope="session")
def coarse(lab, vae):
    """The exported model of the coarse smoke run."""
    assert lab.train("smoke_coarse", "coarse", f"vae={vae}") == 0
    return lab.folder / "coarse" / "model"
