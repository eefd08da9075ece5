"""A small dataset, and the training command on the smoke configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import set_options

from ocdit_core.cli import main
from ocdit_core.config import apply_overrides, build, read_yaml
from ocdit_core.training.settings import TrainSettings

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "test" / "ocdit_core" / "data"))
CONFIGS = ROOT / "config" / "train"


class Lab:
    """A folder with data, and runs in it."""

    SHORT = ("loop.steps=20", "loop.warmup_steps=5", "loop.checkpoint_every=20", "loop.validate_every=20")

    def __init__(self, folder: Path):
        self.folder = folder

    def dataset(self, split: str) -> str:
        return f"{{path: {self.folder / 'painted' / split}, library: {self.folder / 'objects'}}}"

    def overrides(self, run: str, *overrides: str) -> list[str]:
        paths = [f"data.{key}=[{self.dataset(split)}]" for key, split in (("datasets", "train"), ("held_out", "test"))]
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
    from painted import make_dataset

    make_dataset(folder)
    return Lab(folder)


@pytest.fixture(scope="session")
def vae(lab):
    """The exported model of a short VAE smoke run."""
    assert lab.train("smoke_vae", "vae", *lab.SHORT) == 0
    return lab.folder / "vae" / "model"


@pytest.fixture(scope="session")
def coarse(lab, vae):
    """The exported model of a short coarse smoke run of 20 steps."""
    assert lab.train("smoke_coarse", "coarse", f"vae={vae}", "diffusion_loss.prior_only_steps=5", *lab.SHORT) == 0
    return lab.folder / "coarse" / "model"
