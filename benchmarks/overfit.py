"""How well a tiny model learns eight images by heart: what cannot memorise cannot learn.

    python benchmarks/overfit.py [--steps 700]

Takes the smoke config, trains its VAE and its coarse model on the same four groups of two images again and again, and
prints the IoU of the masks on these images: of the posterior mean, and of the paper's sampler in nine steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from einops import rearrange

from ocdit_core.config import apply_overrides, build, read_yaml
from ocdit_core.diffusion.samplers import SamplerConfig, sample
from ocdit_core.masks import mask_iou
from ocdit_core.synthesis.bank import BankSettings, build_bank
from ocdit_core.training.average import WeightAverage
from ocdit_core.training.data import TrainingData
from ocdit_core.training.diffusion import DiffusionStage
from ocdit_core.training.export import write_model
from ocdit_core.training.loop import clip_gradients, learning_rate_factor, make_optimiser
from ocdit_core.training.settings import LoopSettings, TrainSettings
from ocdit_core.training.stage import Batch, Stage
from ocdit_core.training.vae import VAEStage

CONFIGS = Path(__file__).parents[1] / "config" / "train"


def main() -> int:
    """Train both stages on eight images and print their IoU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700, help="of the coarse model; the VAE gets half as many more")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_bank(folder / "bank", BankSettings(objects=12, sprites=4), progress=False)
        batch = next(iter(TrainingData(settings("smoke_vae", folder))))
        images = batch["images"].shape[0] * batch["images"].shape[1]

        vae = VAEStage(settings("smoke_vae", folder, "vae_loss.augment=false"))
        learn(vae, batch, options.steps * 3 // 2)
        vae.finish([batch])
        results = vae.validate(batch)
        print(f"VAE: IoU {sum(r.iou for r in results) / len(results):.3f} on {len(results)} masks of {images} images")
        state = {"model": vae.model.state_dict(), "average": {}}
        write_model(folder / "vae", vae.model.config, state)

        coarse = DiffusionStage(settings("smoke_coarse", folder, f"vae={folder / 'vae'}"))
        learn(coarse, batch, options.steps)
        for name, value in sampled_iou(coarse, batch).items():
            print(f"coarse, {name}: IoU {value:.3f} on {int(batch['present'].sum())} masks of {images} images")
    return 0


def settings(config: str, folder: Path, *overrides: str) -> TrainSettings:
    """The smoke config, with four groups in a batch and all targets in every step."""
    values = [f"data.bank={folder / 'bank'}", f"held_out_bank={folder / 'bank'}", "loop.batch_groups=4"]
    values += ["diffusion_loss.min_targets=3", "diffusion_loss.noise_draws=4", "data.views=4", *overrides]
    return build(TrainSettings, apply_overrides(read_yaml(CONFIGS / f"{config}.yaml"), values))


def learn(stage: Stage, batch: Batch, steps: int) -> None:
    """Train on one batch; the noise is another in every step. The averaged weights stay in the model."""
    torch.manual_seed(0)
    loop = LoopSettings(steps=steps, learning_rate=3e-3, warmup_steps=50)
    optimiser, average = make_optimiser(stage.model, loop), WeightAverage(stage.model, 0.99)
    stage.model.train()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = loop.learning_rate * learning_rate_factor(step, loop)
        numbers = batch["number"] + step * len(batch["number"])
        loss, parts = stage.loss({**batch, "number": numbers}, 10**6)
        loss.backward()
        clip_gradients(stage.model, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(step + 1)
        if step % 100 == 99:
            figures = ", ".join(f"{name} {float(v.float().mean()):.3f}" for name, v in parts.items())
            print(f"  step {step + 1}: {figures}", file=sys.stderr)
    average.swapped().__enter__()
    stage.model.eval()


@torch.no_grad()
def sampled_iou(stage: DiffusionStage, batch: Batch) -> dict[str, float]:
    """Mean IoU of present targets, by how latents are sampled."""
    model = stage.model
    image, templates = stage.encode(batch)
    conditioning = model.condition(image, model.encode_targets(templates))
    truth = rearrange(batch["masks"], "g s o h w -> (g s) o h w") > 0
    present = rearrange(batch["present"], "g s o -> (g s) o")
    generator = torch.Generator().manual_seed(0)
    shape = (truth.shape[0], 1, truth.shape[1], model.config.vae.latent_channels, *conditioning.grid)
    noise = torch.randn(shape, generator=generator)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return model.denoiser(x, sigma, conditioning).latents

    latents = {
        "posterior mean": sample(denoise, noise, SamplerConfig(steps=0)),
        "Heun, 9 steps": sample(denoise, noise, SamplerConfig()),
    }
    return {
        name: float(mask_iou(model.decode_masks(found)[:, 0] > 0.5, truth)[present].mean())
        for name, found in latents.items()
    }


if __name__ == "__main__":
    sys.exit(main())
