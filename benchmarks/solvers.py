#!/usr/bin/env python3
"""Error of the solvers against the exact solution of the ODE, by evaluations; takes seconds and needs no model.

    python benchmarks/solvers.py --plot docs/solvers.png

The denoiser is known exactly for normally distributed latents, for which the ODE has a closed solution, and for latents
around two points, for which it is solved in 1,500 steps. Errors are root mean squares over 2,000 initial noises; the
standard deviation of the latents is 0.5 in both cases.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from ocdit_core.diffusion.samplers import SamplerConfig, sample

SIGMA_DATA = 0.5
SPREAD = 0.1
MODE = math.sqrt(SIGMA_DATA**2 - SPREAD**2)


def normal(x: Tensor, sigma: float) -> Tensor:
    """D for latents distributed as N(1, 0.5^2)."""
    return 1 + SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2) * (x - 1)


def two_points(x: Tensor, sigma: float) -> Tensor:
    """D for latents distributed as N(0.49, 0.1^2) or N(-0.49, 0.1^2), one as probable as the other."""
    variance = SPREAD**2 + sigma**2
    nearer = MODE * torch.tanh(x * MODE / variance)
    return nearer + SPREAD**2 / variance * (x - nearer)


def ways() -> dict[str, list[SamplerConfig]]:
    """Return the configurations of each solver, by rising numbers of evaluations."""
    heun = [SamplerConfig(steps=steps) for steps in (3, 4, 5, 6, 7, 9, 12)]
    dpm = [SamplerConfig(steps=steps, method="dpm++2m") for steps in (2, 3, 4, 5, 6, 8, 10, 12, 16)]
    return {"heun": heun, "dpm++2m": dpm}


def main() -> None:
    """Print the table, and draw it with --plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="draw the errors to this PNG")
    options = parser.parse_args()
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    share = SIGMA_DATA / math.sqrt(SIGMA_DATA**2 + 80.0**2)
    cases = {
        "normal": (normal, 1 + (80 * noise - 1) * share),
        "two points": (two_points, sample(two_points, noise, SamplerConfig(steps=1500, rho=7.0))),
    }
    found: dict[str, dict[str, list[tuple[int, float]]]] = {case: {} for case in cases}
    print(f"{'way':<28} {'evaluations':>11} " + " ".join(f"{case:>10}" for case in cases))
    for name, configs in ways().items():
        for config in configs:
            errors = []
            for case, (denoise, truth) in cases.items():
                errors.append((sample(denoise, noise, config) - truth).square().mean().sqrt().item())
                found[case].setdefault(name, []).append((config.evaluations, errors[-1]))
            print(f"{name:<28} {config.evaluations:11d} " + " ".join(f"{error:10.3f}" for error in errors))
    if options.plot:
        draw(options.plot, found)


def draw(path: Path, found: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    """Plot errors against evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (case, rows) in zip(axes, found.items(), strict=True):
        for name, points in rows.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=name)
        axis.axhline(SIGMA_DATA, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=f"latents: {case}", xlabel="evaluations", yscale="log", xlim=(1, 24))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error (dotted: the latents' own spread)")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
