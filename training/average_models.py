#!/usr/bin/env python3
"""Average the weights of two models of one architecture, the second one trained on from the first, at whatever size.

    python training/average_models.py runs/before/model runs/after/model --share 0.5 --out runs/average/model

The average is often better than either where the two were trained on different pictures (Wortsman et al., Robust
fine-tuning of zero-shot models, CVPR 2022): much of what the second training has taught stays, what it has unlearned
comes back.
"""

import argparse
import sys
from pathlib import Path

import torch

from ocdit_core.errors import OcditError, WeightsError
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.export import start_from


def main() -> int:
    """Write the average and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of a model")
    parser.add_argument("second", type=Path, help="folder of another one")
    parser.add_argument("--share", type=float, default=0.5, help="of the second one (default 0.5)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the average, stored as float16")
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        parser.error(f"--share {options.share} is not in 0..1")
    try:
        average(options.first, options.second, options.share).save_pretrained(options.out, half=True)
    except OcditError as error:
        print(f"average_models.py: error: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


def average(first: Path, second: Path, share: float) -> OCDiT:
    """Return the average of two models, with the second one's sizes of pictures.

    Raises:
        WeightsError: one cannot be loaded, or they differ in their architecture.
    """
    model = OCDiT.from_pretrained(second)
    others = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        # Learned positions are interpolated where the two were trained at different sizes.
        start_from(model, first)
    except WeightsError as error:
        raise WeightsError(f"{first} and {second}: only models of one architecture average: {error}") from error
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(others[name], share)
    return model


if __name__ == "__main__":
    sys.exit(main())
